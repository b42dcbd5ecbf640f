/* Put the page together. */

function drawHead() {
  table.querySelector("colgroup").replaceChildren(...COLUMNS.map((column) => el("col", { class: `c-${column.name}` })));
  head.replaceChildren(el("tr", { "aria-rowindex": 1 }, COLUMNS.map((column) =>
    el("th", { scope: "col", class: `c-${column.name}${column.numeric ? " number" : ""}` },
      column.key ? el("button", { type: "button", onclick: () => sortBy(column) }, column.label) : column.label))));
  const choices = COLUMNS.filter((column) => column.key).flatMap((column) => [
    el("option", { value: `${column.name} up` }, `${column.label} ↑`),
    el("option", { value: `${column.name} down` }, `${column.label} ↓`),
  ]);
  byId("sort").replaceChildren(el("option", { value: "" }, "best first"), ...choices);
}

function drawFacets() {
  byId("facets").replaceChildren(...FACETS.map((facet) => {
    const options = countBy(facet.name).slice(0, 60).map(([value, [accepted, others]]) =>
      el("option", { value }, `${facet.name === "rule" ? words(value) : value} (${whole.format(accepted + others)})`));
    return menu(facet.label, facet.name, options, (value) => toggleFacet(facet.name, value));
  }));
}

function measureRows() {
  rowHeight = parseFloat(getComputedStyle(table).getPropertyValue("--row")) || 68;
  updateRows(true);
}

function listen() {
  let due = false;
  const soon = () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; updateRows(false); });
  };
  addEventListener("scroll", soon, { passive: true });
  addEventListener("resize", measureRows);
  addEventListener("hashchange", showSection);
  addEventListener("popstate", showSection);
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && openedId !== null) closeSection();
  });
  addEventListener("beforeprint", () => {
    printing = true;
    updateRows(true);
    byId("printed").textContent = shown.length > PRINTED ? `The first ${PRINTED} of ${whole.format(shown.length)} datasets.` : "";
  });
  addEventListener("afterprint", () => {
    printing = false;
    updateRows(true);
  });
  byId("search").addEventListener("input", (event) => { state.search = event.target.value; apply(); });
  byId("sort").addEventListener("change", (event) => {
    const [name, way] = event.target.value.split(" ");
    [state.sort, state.down] = [name || null, way === "down"];
    apply();
  });
  byId("clear").addEventListener("click", () => { state.search = ""; state.facets.clear(); apply(); });
}

drawTotals();
drawVerdicts();
drawCharts();
drawHead();
drawFacets();
byId("filters").open = matchMedia("(min-width: 1100px)").matches;
apply();
measureRows();
listen();
showSection();
