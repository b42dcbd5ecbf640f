"use strict";

/* What every page of DePi is made with. */

const DATA = JSON.parse(document.getElementById("data").textContent);

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

const byId = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  // Strings become text nodes: nothing that a dataset says is ever parsed as markup.
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const camera = (key) => key.replace(/^observation\.images?\./, "");

function picture([name, jpeg], attributes) {
  return el("img", {
    src: `data:image/jpeg;base64,${jpeg}`,
    alt: `camera ${camera(name)}`,
    title: camera(name),
    decoding: "async",
    ...attributes,
  });
}

/* A list to choose one value from, or all. */
function menu(label, name, options, onchoice) {
  return el("label", {}, label,
    el("select", { name, onchange: (event) => onchoice(event.target.value) },
      el("option", { value: "" }, "all"), options));
}

/* What is not known comes last, whichever way; equals stay in the order they had. */
function sorted(rows, key, down) {
  const known = [], unknown = [];
  for (const row of rows) (key(row) === undefined ? unknown : known).push([key(row), row]);
  const sign = down ? -1 : 1;
  known.sort(([a], [b]) => (a < b ? -sign : a > b ? sign : 0));
  return [...known, ...unknown].map(([, row]) => row);
}

byId("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark" ||
    (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});
