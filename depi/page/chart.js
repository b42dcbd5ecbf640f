"use strict";

/* Curves over training steps, which tell their values where the pointer is. */

const FRAME = { width: 640, height: 280, left: 62, right: 14, top: 14, bottom: 30 };
const LEAST = 1e-12; // what a logarithm is taken of at least

const digits = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const reading = (value) => (value && Math.abs(value) < 1e-3 ? value.toExponential(1) : digits.format(value));

/* Where numbers lie between `start` and `end` of an axis. */
function scale(values, start, end, logarithmic) {
  const level = logarithmic ? (value) => Math.log10(Math.max(value, LEAST)) : (value) => value;
  const back = logarithmic ? (at) => 10 ** at : (at) => at;
  let low = Infinity, high = -Infinity;
  for (const value of values) [low, high] = [Math.min(low, level(value)), Math.max(high, level(value))];
  if (high === low) [low, high] = [low - 0.5 * (Math.abs(low) || 1), high + 0.5 * (Math.abs(high) || 1)];
  return {
    at: (value) => start + ((end - start) * (level(value) - low)) / (high - low),
    ticks: (count) => Array.from({ length: count }, (_, tick) => back(low + ((high - low) * tick) / (count - 1))),
  };
}

/* The point of a curve that is nearest to a step; points are in the order of their steps. */
function nearest(points, step) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] <= step) low = middle; else high = middle;
  }
  return step - points[low][0] <= points[high][0] - step ? points[low] : points[high];
}

/* A chart of curves, each { name, points: [[step, value], ...], colour }: points in the order of their steps,
   and a number for the colour, which is the curve's place where there is none. */
function chart(label, curves, logarithmic) {
  const { width, height, left, right, top, bottom } = FRAME;
  const colour = (place) => `curve-${(curves[place].colour ?? place) % 6}`;
  const points = curves.flatMap((curve) => curve.points);
  const x = scale(points.map(([step]) => step), left, width - right, false);
  const y = scale(points.map(([, value]) => value), height - bottom, top, logarithmic);
  const pointer = svg("line", { class: "pointer", y1: top, y2: height - bottom, visibility: "hidden" });
  const names = curves.map(({ name }, place) =>
    svg("text", { class: `name ${colour(place)}`, x: width - right, y: top + 12 + 16 * place, "text-anchor": "end" }, name));
  const drawing = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${label}: ${curves.map(({ name, points }) => `${name} ${reading(points.at(-1)[1])} at last`).join("; ")}` },
    y.ticks(4).map((value) => [
      svg("line", { class: "grid", x1: left, x2: width - right, y1: y.at(value), y2: y.at(value) }),
      svg("text", { x: left - 6, y: y.at(value) + 4, "text-anchor": "end" }, reading(value))]),
    x.ticks(3).map((step, place) =>
      svg("text", { x: x.at(step), y: height - 8, "text-anchor": ["start", "middle", "end"][place] }, whole.format(step))),
    curves.map(({ points }, place) => svg("polyline", { class: `line ${colour(place)}`,
      points: points.map(([step, value]) => `${x.at(step).toFixed(1)},${y.at(value).toFixed(1)}`).join(" ") })),
    pointer, names);

  const tell = (step) => {
    names.forEach((text, place) => {
      const { name, points } = curves[place];
      const found = step === null ? null : nearest(points, step);
      text.textContent = found ? `${name}: ${reading(found[1])} at step ${whole.format(found[0])}` : name;
    });
    pointer.setAttribute("visibility", step === null ? "hidden" : "visible");
    if (step !== null) for (const end of ["x1", "x2"]) pointer.setAttribute(end, x.at(step));
  };
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width * width - left) / (width - left - right);
    const [first, , last] = x.ticks(3);
    tell(first + Math.min(1, Math.max(0, share)) * (last - first));
  });
  drawing.addEventListener("pointerleave", () => tell(null));
  return drawing;
}
