/* Episodes with their recorded and new texts, to accept, reject or edit. */

const ROWS = DATA.rows;
const SAVING = DATA.save;

const FACETS = [
  { name: "status", label: "Status", of: (row) => [row.status] },
  { name: "review", label: "Review", of: (row) => [row.review || "not reviewed"] },
  { name: "flag", label: "Flag", of: (row) => row.flags.map((flag) => flag.split(":", 1)[0]) },
  { name: "view", label: "View", of: (row) => row.views.map(([, view]) => view) },
  { name: "dataset", label: "Dataset", of: (row) => [row.repo_id] },
];
const SORTS = [
  ["least confident first", (row) => row.confidence, false],
  ["most confident first", (row) => row.confidence, true],
  ["by dataset and episode", null, false],
];
const state = { search: "", facets: new Map(), sort: 0 };

function drawTotals() {
  const count = (test) => ROWS.filter(test).length;
  const totals = [
    ["Episodes", ROWS.length, "on this page"],
    ["New texts", count((row) => row.task !== null), "as training reads them"],
    ["Recorded texts kept", count((row) => row.status === "kept recorded"), "confidence too low"],
    ["Failed", count((row) => row.status === "failed"), "to be asked again"],
    ["Reviewed", count((row) => row.review), "by a person"],
    ["Datasets", new Set(ROWS.map((row) => row.repo_id)).size, "on this page"],
  ];
  byId("totals").replaceChildren(...totals.map(([name, value, note]) =>
    el("div", {}, el("dt", {}, name), el("dd", { class: "number" }, whole.format(value)), el("dd", { class: "muted" }, note))));
  byId("subtitle").textContent = [
    `written ${DATA.written_at.slice(0, 10)}`,
    DATA.left_out ? `${whole.format(DATA.left_out)} more episodes are not on this page` : null,
    DATA.pictures_left_out ? `${whole.format(DATA.pictures_left_out)} episodes without pictures` : null,
  ].filter(Boolean).join(" · ");
}

function drawFacets() {
  byId("facets").replaceChildren(...FACETS.map((facet) => {
    const counts = new Map();
    for (const row of ROWS) for (const value of facet.of(row)) counts.set(value, (counts.get(value) || 0) + 1);
    const values = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, 500);
    const options = values.map(([value, number]) => el("option", { value }, `${value} (${whole.format(number)})`));
    const choice = menu(facet.label, facet.name, options, (value) => {
      if (value) state.facets.set(facet.name, value);
      else state.facets.delete(facet.name);
      apply();
    });
    choice.querySelector("select").value = state.facets.get(facet.name) ?? "";
    return choice;
  }));
}

/* Filter and sort anew. The elements are kept: what is being typed stays. */
function apply() {
  const terms = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (row) => [row.repo_id, row.recorded, row.task, row.proposed].join("\n").toLowerCase();
  let shown = ROWS.filter((row) =>
    [...state.facets].every(([name, value]) => FACETS.find((facet) => facet.name === name).of(row).includes(value)) &&
    terms.every((term) => text(row).includes(term)));
  const [, key, down] = SORTS[state.sort];
  if (key) shown = sorted(shown, (row) => key(row) ?? undefined, down);
  byId("list").replaceChildren(...shown.map((row) => row.element));
  byId("empty").hidden = shown.length > 0;
  byId("clear").hidden = !terms.length && !state.facets.size;
  byId("search").value = state.search;
  byId("count").textContent = shown.length === ROWS.length ? `${whole.format(ROWS.length)} episodes`
    : `${whole.format(shown.length)} of ${whole.format(ROWS.length)} episodes`;
}

function draw(row) {
  row.element ??= el("li", { class: "card episode", "data-id": `${row.repo_id} ${row.episode}` });
  row.element.replaceChildren();
  fill(row.element, {}, [
    el("div", { class: "episode-top" },
      el("h2", {}, row.repo_id, ` · episode ${row.episode}`),
      badge(row),
      row.flags.map((flag) => el("span", { class: "flag" }, flag)),
      row.confidence === null ? null : el("span", { class: "confidence" }, "confidence",
        el("meter", { min: 0, max: 1, low: 0.5, high: 0.8, optimum: 1, value: row.confidence }), row.confidence.toFixed(2))),
    frames(row),
    el("div", { class: "texts" },
      el("div", {}, el("h3", {}, "Recorded"), el("p", { class: "recorded" }, row.recorded || "–")),
      el("div", {}, el("h3", {}, heading(row)),
        row.editing ? editor(row) : el("p", { class: "new" }, row.task ?? row.proposed ?? "–"))),
    buttons(row),
  ]);
}

function heading(row) {
  if (row.task === null && row.proposed) return "Proposed, not used";
  return row.task !== null && row.task === row.recorded ? "Same as recorded" : "New";
}

const badge = (row) => el("span", { class: `badge ${row.review || (row.status === "annotated" ? "" : "failed")}` },
  row.review || row.status);

function frames(row) {
  const cameras = new Map(row.views.map(([key, view]) => [key, { view, seen: [] }]));
  for (const [key, frame, jpeg] of row.pictures) {
    if (!cameras.has(key)) cameras.set(key, { view: null, seen: [] });
    cameras.get(key).seen.push([frame, jpeg]);
  }
  return el("div", { class: "frames" }, [...cameras].map(([key, { view, seen }]) =>
    el("div", {}, el("span", { class: "camera" }, camera(key), view ? ` (${view})` : ""),
      seen.map(([frame, jpeg]) => el("figure", {}, picture([key, jpeg]), el("figcaption", {}, `frame ${frame}`))))));
}

function editor(row) {
  const box = el("textarea", { maxlength: DATA.max_text, "aria-label": "New text", oninput: () => { row.draft = box.value; } });
  box.value = row.draft;
  return box;
}

function buttons(row) {
  const button = (label, onclick, off) =>
    el("button", { type: "button", class: "quiet", onclick, disabled: !SAVING || row.saving || off }, label);
  const said = row.said ? el("span", { class: "said", role: "alert" }, row.said) : null;
  if (row.editing) {
    return el("div", { class: "buttons" },
      button("Save", () => save(row, "edited", row.draft)),
      button("Cancel", () => edit(row, false)), said);
  }
  return el("div", { class: "buttons" },
    button("Accept", () => save(row, "accepted", row.task ?? row.proposed), row.task === null && row.proposed === null),
    button("Reject", () => save(row, "rejected"), row.status === "failed"),
    button("Edit", () => edit(row, true)), said);
}

function edit(row, on) {
  [row.editing, row.said] = [on, null];
  row.draft = row.task ?? row.proposed ?? row.recorded ?? "";
  draw(row);
  if (on) row.element.querySelector("textarea").focus();
}

async function save(row, verdict, task) {
  [row.saving, row.said] = [true, null];
  draw(row);
  try {
    const answer = await fetch("review", {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Review-Token": SAVING.token },
      body: JSON.stringify({ repo_id: row.repo_id, episode: row.episode, verdict, task: task ?? null }),
    });
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.error);
    Object.assign(row, said.row, { editing: false });
    drawTotals();
    drawFacets();
  } catch (error) {
    row.said = `not saved: ${error.message}`;
  }
  row.saving = false;
  draw(row);
}

byId("sort").replaceChildren(...SORTS.map(([label], value) => el("option", { value }, label)));
byId("sort").addEventListener("change", (event) => { state.sort = Number(event.target.value); apply(); });
byId("search").addEventListener("input", (event) => { state.search = event.target.value; apply(); });
byId("clear").addEventListener("click", () => { state.search = ""; state.facets.clear(); drawFacets(); apply(); });
if (!SAVING) {
  byId("how").append("This is a copy to read. To accept, reject and edit: ", el("code", {}, DATA.command));
  byId("how").hidden = false;
}
drawTotals();
drawFacets();
ROWS.forEach(draw);
apply();
