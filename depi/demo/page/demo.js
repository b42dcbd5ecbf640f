"use strict";

const percent = (share) => `${Math.round(100 * share)}%`;

function drawTotals() {
  const { rate, interval, successes, episodes } = DATA.success;
  const accepted = DATA.verdicts.filter((row) => row.verdict === "accepted").length;
  const bad = DATA.verdicts.reduce((sum, row) => sum + (row.verdict === "accepted" ? row.bad_episodes : 0), 0);
  const last = DATA.losses[0].points.at(-1);
  const totals = [
    ["Success", rate === null ? "none" : percent(rate), `${successes} of ${episodes} rollouts`],
    ["95% interval", interval ? `${percent(interval[0])} to ${percent(interval[1])}` : "unknown", "of the success rate"],
    ["Loss", fine.format(last[1]), `after ${whole.format(last[0])} steps`],
    ["Datasets", whole.format(DATA.verdicts.length), "published by the community"],
    ["Accepted", whole.format(accepted), `without ${bad} bad episodes`],
    ["Time", `${Math.floor(DATA.seconds / 60)}:${String(DATA.seconds % 60).padStart(2, "0")}`, "minutes, on this machine"],
  ];
  byId("totals").replaceChildren(...totals.map(([name, value, note]) =>
    el("div", {}, el("dt", {}, name), el("dd", { class: "number" }, value), el("dd", { class: "muted" }, note))));
  byId("subtitle").textContent =
    "A tiny pi0, trained on this machine on your own recordings, tries what it has learnt.";
}

function drawFilms() {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const shown = DATA.films.map((film) => el("li", {},
    el("video", { src: `data:video/mp4;base64,${film.mp4}`, muted: true, loop: true, playsinline: true, controls: true,
      "aria-label": `rollout ${film.episode}` }),
    el("p", {}, el("span", { class: `badge ${film.success ? "accepted" : "rejected"}` }, film.success ? "touched" : "missed"),
      ` after ${film.steps} steps`)));
  byId("films").replaceChildren(...shown);
  for (const video of document.querySelectorAll("video")) {
    video.muted = true;
    if (!still) video.play().catch(() => {});
  }
}

function drawSteps() {
  byId("steps").tBodies[0].replaceChildren(...DATA.steps.map(([title, happened, seconds]) =>
    el("tr", {}, el("td", {}, title), el("td", {}, happened), el("td", { class: "number" }, whole.format(seconds)))));
}

function drawNext() {
  byId("begin").textContent = DATA.begin.join("\n");
  byId("next").replaceChildren(...DATA.commands.flatMap(([purpose, command]) =>
    [el("dt", {}, purpose), el("dd", {}, el("pre", { class: "command" }, command))]));
}

function drawVerdicts() {
  byId("verdicts").replaceChildren(...DATA.verdicts.map((row) => {
    const said = row.verdict === "accepted"
      ? `${row.episodes} episodes${row.bad_episodes ? `, ${row.bad_episodes} of them bad` : ""}, score ${fine.format(row.score)}`
      : row.reasons.join("; ");
    return el("li", {},
      row.picture ? picture(row.picture) : el("div", { class: "blank" }, "no picture: it was rejected by its numbers"),
      el("h3", {}, row.repo_id),
      el("p", {}, el("span", { class: `badge ${row.verdict}` }, row.verdict), ` ${said}`));
  }));
}

drawTotals();
drawFilms();
byId("loss").replaceChildren(chart("loss", DATA.losses, true));
drawSteps();
drawNext();
drawVerdicts();
