/* The table: only the rows in view are in the document. */

const MARGIN = 12;
const PRINTED = 200;
const table = byId("table");
const [head, body] = [table.tHead, table.tBodies[0]];

/* `key` sorts; `falling` columns start with the largest. */
const COLUMNS = [
  { name: "pictures", label: "Views", cell: (row) => pictureStrip(row) },
  { name: "name", label: "Dataset", key: (row) => row.repo_id.toLowerCase(), cell: nameCell },
  { name: "verdict", label: "Verdict", key: (row) => row.verdict, cell: (row) => badge(row.verdict) },
  number("score", "Score", (row) => row.score, (value) => value.toFixed(2)),
  number("episodes", "Episodes", (row) => row.episodes),
  number("frames", "Frames", (row) => row.frames),
  number("fps", "fps", (row) => row.fps, (value) => fine.format(value)),
  number("cameras", "Cameras", (row) => row.num_cameras),
  { name: "version", label: "Version", key: (row) => row.codebase_version,
    cell: (row) => row.codebase_version || "–" },
  { name: "convention", label: "Joints", key: (row) => row.joint_convention,
    cell: (row) => row.joint_convention || "–" },
  { name: "ranges", label: "Joint ranges", cell: (row) => jointRanges(row, 16, 40) || "–" },
  { name: "created", label: "Created", key: (row) => row.created_at, falling: true,
    cell: (row) => day(row.created_at) || "–" },
];

function number(name, label, key, format = (value) => whole.format(value)) {
  const cell = (row) => (typeof key(row) === "number" ? format(key(row)) : "–");
  return { name, label, key, cell, falling: true, numeric: true };
}

const state = { search: "", facets: new Map(), sort: null, down: false };
let shown = ROWS;
let span = [0, 0];
let rowHeight = 68;
let printing = false;
const spacers = [0, 1].map(() => el("tr", { class: "space", "aria-hidden": "true" }, el("td")));

function nameCell(row) {
  const refused = row.verdict !== "accepted" && row.reasons;
  const line = refused ? textOf(row.reasons[0]) || row.reasons[0] : (row.tasks || []).join(" · ");
  return [
    el("a", { class: "name", href: `#${encodeURIComponent(row.repo_id)}`, title: row.repo_id }, row.repo_id),
    el("span", { class: refused ? "second refused" : "second", title: line }, line),
  ];
}

function pictureStrip(row) {
  const all = row.pictures || [];
  if (!all.length) {
    const why = "no picture: depi collect-ids --deep takes them";
    return el("span", { class: "no-picture", title: why }, "no picture");
  }
  const strip = all.slice(0, 2).map((each) => picture(each, { height: 48 }));
  return [strip, all.length > 2 ? el("span", { class: "more-pictures" }, `+${all.length - 2}`) : null];
}

/* A lane per joint: a line from least to greatest action, thick where 98% of them are. */
function jointRanges(row, lane, height) {
  const [low, high, q01, q99] = [row.action_min, row.action_max, row.action_q01, row.action_q99];
  if (![low, high].every((list) => Array.isArray(list) && list.length === JOINTS.length)) return null;
  const labelled = lane > 30;
  const drawing = svg("svg", { width: lane * 6, height: height + (labelled ? 18 : 0), class: "ranges", role: "img" });
  const said = [];
  JOINTS.forEach((joint, i) => {
    if (typeof low[i] !== "number" || typeof high[i] !== "number") return;
    const [bottom, top] = REACH[i];
    const y = (value) => 1 + (height - 2) * (1 - (Math.min(Math.max(value, bottom), top) - bottom) / (top - bottom));
    const x = i * lane + lane / 2;
    const bar = (from, to, size, name) =>
      svg("rect", { x: x - size / 2, y: y(to) - 0.5, width: size, height: y(from) - y(to) + 1, rx: Math.min(size, 3) / 2, class: name });
    drawing.append(svg("line", { x1: x - lane / 3, x2: x + lane / 3, y1: y(0), y2: y(0), class: "zero" }));
    drawing.append(bar(low[i], high[i], 2, "extent"));
    if (typeof q01?.[i] === "number" && typeof q99?.[i] === "number") {
      drawing.append(bar(q01[i], q99[i], lane * 0.45, joint === "gripper" ? "bulk gripper" : "bulk"));
    }
    if (labelled) drawing.append(svg("text", { x, y: height + 15, "text-anchor": "middle" }, SHORT_JOINTS[i]));
    said.push(`${words(joint)} ${fine.format(low[i])} to ${fine.format(high[i])}`);
  });
  drawing.append(svg("title", {}, said.join("\n")));
  return drawing;
}

function makeRow(position) {
  const row = shown[position];
  const cells = COLUMNS.map((column) =>
    el(column.name === "name" ? "th" : "td", { class: `c-${column.name}${column.numeric ? " number" : ""}`,
      scope: column.name === "name" ? "row" : null }, column.cell(row)));
  const opened = row.repo_id === openedId;
  return el("tr", { "aria-rowindex": position + 2, "data-id": row.repo_id, class: opened ? "opened" : null,
    onclick: (event) => event.target.closest("a") || openSection(row) }, cells);
}

/* Bring the rows in view into the document, and take those far away out of it. */
function updateRows(anew) {
  const limit = printing ? Math.min(PRINTED, shown.length) : 0;
  const offset = -body.getBoundingClientRect().top;
  const first = printing ? 0 : Math.max(0, Math.floor(offset / rowHeight) - MARGIN);
  const last = printing ? limit : Math.ceil((offset + window.innerHeight) / rowHeight) + MARGIN;
  const to = Math.max(0, Math.min(shown.length, last));
  const from = Math.min(first, to);
  if (!anew && from === span[0] && to === span[1]) return;
  if (anew || from >= span[1] || to <= span[0]) {
    body.replaceChildren(spacers[0], ...range(from, to).map(makeRow), spacers[1]);
  } else {
    // Rows that stay are not touched: neither focus nor decoded pictures are lost.
    for (let i = span[0]; i < from; i++) spacers[0].nextSibling.remove();
    for (let i = to; i < span[1]; i++) spacers[1].previousSibling.remove();
    spacers[0].after(...range(from, Math.min(span[0], to)).map(makeRow));
    spacers[1].before(...range(Math.max(span[1], from), to).map(makeRow));
  }
  span = [from, to];
  spacers[0].firstChild.style.height = `${from * rowHeight}px`;
  spacers[1].firstChild.style.height = `${printing ? 0 : (shown.length - to) * rowHeight}px`;
}

const range = (from, to) => Array.from({ length: Math.max(0, to - from) }, (_, i) => from + i);

/* Filter and sort anew. */
function apply() {
  const terms = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  const facets = [...state.facets];
  shown = ROWS.filter((row) =>
    facets.every(([name, value]) => row.facets[name].has(value)) && terms.every((term) => row.text.includes(term)));
  const column = COLUMNS.find((each) => each.name === state.sort);
  if (column) shown = sorted(shown, column.key, state.down);
  updateRows(true);
  table.setAttribute("aria-rowcount", shown.length + 1);
  byId("empty").hidden = shown.length > 0;
  const all = shown.length === ROWS.length;
  byId("count").textContent = all ? `${whole.format(ROWS.length)} datasets`
    : `${whole.format(shown.length)} of ${whole.format(ROWS.length)} datasets`;
  byId("clear").hidden = !terms.length && !facets.length;
  showState();
}

function showState() {
  for (const button of document.querySelectorAll("[data-facet]")) {
    button.setAttribute("aria-pressed", state.facets.get(button.dataset.facet) === button.dataset.value);
  }
  for (const select of document.querySelectorAll("#facets select")) {
    select.value = state.facets.get(select.name) ?? "";
  }
  COLUMNS.forEach((column, i) => {
    if (!column.key) return;
    const order = column.name !== state.sort ? "none" : state.down ? "descending" : "ascending";
    head.rows[0].cells[i].setAttribute("aria-sort", order);
  });
  byId("sort").value = state.sort ? `${state.sort} ${state.down ? "down" : "up"}` : "";
  byId("search").value = state.search;
}

function sortBy(column) {
  if (state.sort === column.name && state.down !== Boolean(column.falling)) [state.sort, state.down] = [null, false];
  else if (state.sort === column.name) state.down = !state.down;
  else [state.sort, state.down] = [column.name, Boolean(column.falling)];
  apply();
}

function toggleFacet(name, value) {
  if (!value || state.facets.get(name) === value) state.facets.delete(name);
  else state.facets.set(name, value);
  apply();
}

function searchFor(text) {
  state.search = text;
  apply();
  byId("datasets").scrollIntoView();
}
