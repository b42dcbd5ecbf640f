/* The section of one dataset: all that the catalogue knows about it. */

let openedId = null;
let cameFrom = null;
const INDEX = new Map(ROWS.map((row) => [row.repo_id, row]));
const ELSEWHERE = new Set(["repo_id", "verdict", "reasons", "flags", "pictures", "facets", "text", "tasks",
  "joint_evidence", "judged", "action_min", "action_max", "action_q01", "action_q99"]);

function openSection(row) {
  cameFrom = document.activeElement;
  const hash = `#${encodeURIComponent(row.repo_id)}`;
  if (location.hash !== hash) history.pushState(null, "", hash);
  showSection();
}

function closeSection() {
  history.pushState(null, "", "#datasets");
  showSection();
  if (cameFrom && cameFrom.isConnected) cameFrom.focus({ preventScroll: true });
}

/* Show what the address names: the section of a dataset, or none. */
function showSection() {
  const row = INDEX.get(decode(location.hash.slice(1)));
  openedId = row ? row.repo_id : null;
  // The table makes room: its rows stay where they are on the screen.
  const before = body.getBoundingClientRect().top;
  byId("panel").hidden = !row;
  document.body.classList.toggle("with-panel", Boolean(row));
  scrollBy(0, body.getBoundingClientRect().top - before);
  for (const line of body.rows) line.classList.toggle("opened", Boolean(row) && line.dataset.id === openedId);
  if (!row) return byId("section").replaceChildren();
  byId("section").replaceChildren();
  fill(byId("section"), {}, sectionOf(row));
  byId("panel").scrollTop = 0;
  return byId("section-heading").focus({ preventScroll: true });
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}

function sectionOf(row) {
  const link = hubLink(row);
  return [
    el("div", { class: "section-top" },
      badge(row.verdict),
      typeof row.score === "number" ? el("span", { class: "score" }, `score ${row.score.toFixed(2)}`) : null,
      el("span", { class: "spring" }),
      step(row, -1, "↑", "Previous dataset"), step(row, 1, "↓", "Next dataset"),
      el("button", { type: "button", class: "quiet", onclick: closeSection, "aria-label": "Close" }, "✕")),
    el("h2", { id: "section-heading", tabindex: "-1" }, row.repo_id),
    link ? el("p", {}, el("a", { href: link, target: "_blank", rel: "noopener noreferrer" }, "Open on the Hub ↗")) : null,
    row.pictures ? el("div", { class: "views" }, row.pictures.map((each) =>
      el("figure", {}, picture(each), el("figcaption", {}, camera(each[0]))))) : null,
    ...part("Why it was refused", row.reasons, reasonItem, "reasons"),
    ...part("Remarks", row.flags, reasonItem),
    ...episodes(row),
    ...part("Tasks", row.tasks, (task) => el("li", {}, task)),
    ...joints(row),
    el("h3", {}, "Record"),
    el("dl", { class: "record" }, Object.keys(row).filter((name) => !ELSEWHERE.has(name)).map((name) =>
      el("div", {}, el("dt", {}, words(name)), el("dd", {}, value(row, name))))),
  ];
}

function step(row, by, sign, label) {
  const other = shown[shown.indexOf(row) + by];
  const known = shown.includes(row) && other;
  return el("button", { type: "button", class: "quiet", "aria-label": label, title: label, disabled: !known,
    onclick: () => openSection(other) }, sign);
}

function part(title, items, item, style) {
  return items ? [el("h3", {}, title), el("ul", { class: style }, items.map(item))] : [];
}

const reasonItem = (reason) => el("li", {}, el("code", {}, ruleOf(reason)), " ", textOf(reason));

/* Each episode with a fault: its time from left to right, and where the faults show. */
function episodes(row) {
  if (!row.judged) return [];
  return [el("h3", {}, "Episodes with faults"), el("ul", { class: "judged" }, row.judged.map(([number, frames, faults]) =>
    el("li", {},
      el("span", { class: "episode" }, `episode ${number}`), timeline(frames, faults),
      el("ul", {}, faults.map(([rule, , text, bad]) =>
        el("li", {}, el("code", {}, rule), ` ${text}`, bad ? null : " (remark)"))))))];
}

function timeline(frames, faults) {
  const part = ([rule, , text, bad, begin, end]) =>
    svg("rect", { x: begin ?? 0, y: 0, width: Math.max((end ?? frames) - (begin ?? 0), frames / 200), height: 8,
      class: bad ? "rejected" : "failed" }, svg("title", {}, `${words(rule)}: ${text}`));
  return svg("svg", { viewBox: `0 0 ${frames} 8`, preserveAspectRatio: "none", class: "timeline", role: "img",
    "aria-label": `${frames} frames` },
  svg("rect", { x: 0, y: 0, width: frames, height: 8, class: "others" }), faults.map(part));
}

function joints(row) {
  const drawing = jointRanges(row, 44, 110);
  if (!drawing && !row.joint_evidence) return [];
  const cell = (list, i) => (typeof list?.[i] === "number" ? fine.format(list[i]) : "–");
  const lists = [row.action_min, row.action_q01, row.action_q99, row.action_max];
  const numbers = drawing && el("table", { class: "numbers" },
    el("thead", {}, el("tr", {}, ["action", "least", "1%", "99%", "greatest"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, JOINTS.map((joint, i) =>
      el("tr", {}, el("th", { scope: "row" }, words(joint)), lists.map((list) => el("td", {}, cell(list, i)))))));
  return [
    el("h3", {}, "Joints"),
    row.joint_evidence ? el("p", { class: "evidence" }, row.joint_evidence) : null,
    drawing, numbers,
  ];
}

function value(row, name) {
  const found = row[name];
  if (name.includes("duplicate") && INDEX.has(found)) {
    return el("a", { href: `#${encodeURIComponent(found)}` }, found);
  }
  if (Array.isArray(found)) return el("ul", {}, found.map((item) => el("li", {}, plain(item))));
  return plain(found);
}

function plain(found) {
  if (typeof found === "boolean") return found ? "yes" : "no";
  if (typeof found === "number") return fine.format(found);
  if (typeof found === "string") return /^\d{4}-\d\d-\d\dT[\d:]+Z$/.test(found) ? found.replace("T", " ").replace("Z", " UTC") : found;
  return JSON.stringify(found);
}
