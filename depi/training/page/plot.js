"use strict";

function drawRuns() {
  const steps = DATA.charts.flatMap(({ curves }) => curves.flatMap(({ points }) => points.at(-1)[0]));
  byId("subtitle").textContent = `${whole.format(Math.max(...steps))} steps; point at a chart to read its values`;
  byId("runs").replaceChildren(...DATA.runs.map((run, place) => el("li", { class: `curve-${place % 6}` }, run)));
}

/* A run has its colour in every chart, also where another run has no such curve. */
function drawCharts() {
  byId("charts").replaceChildren(...DATA.charts.map(({ label, logarithmic, curves }) =>
    el("section", { class: "card", "aria-label": label },
      el("h2", {}, label, " ", el("small", {}, logarithmic ? "by training step, logarithmic" : "by training step")),
      chart(label, curves, logarithmic))));
}

drawRuns();
drawCharts();
