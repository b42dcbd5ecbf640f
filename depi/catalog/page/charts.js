/* Totals and charts. The bars of a chart filter the table. */

function drawTotals() {
  const accepted = ROWS.filter((row) => row.verdict === "accepted");
  const sum = (key) => accepted.reduce((total, row) => total + (row[key] || 0), 0);
  const hours = accepted.reduce((total, row) => total + seconds(row), 0) / 3600;
  const authors = new Set(accepted.map((row) => row.repo_id.split("/")[0])).size;
  const share = ROWS.length ? Math.round((100 * accepted.length) / ROWS.length) : 0;
  const totals = [
    ["Candidates", whole.format(ROWS.length), "looked at"],
    ["Accepted", whole.format(accepted.length), `${share}% of them`],
    ["Episodes", whole.format(sum("episodes")), "in accepted datasets"],
    ["Frames", short.format(sum("frames")), "in accepted datasets"],
    ["Recorded", hours < 10 ? `${fine.format(hours)} h` : `${whole.format(hours)} h`, "of robot motion"],
    ["Authors", whole.format(authors), "of accepted datasets"],
  ];
  byId("totals").replaceChildren(
    ...totals.map(([name, value, note]) =>
      el("div", {}, el("dt", {}, name), el("dd", { class: "number" }, value), el("dd", { class: "muted" }, note)),
    ),
  );
  const latest = ROWS.reduce((last, row) => (row.checked_at > last ? row.checked_at : last), "");
  const rules = [...new Set(ROWS.map((row) => row.rules_version).filter(Boolean))].sort();
  byId("subtitle").textContent = [
    latest ? `checked ${day(latest)}` : `written ${day(DATA.written_at)}`,
    rules.length ? `rules version ${rules.join(", ")}` : null,
    DATA.pictures_left_out ? `pictures of ${whole.format(DATA.pictures_left_out)} datasets left out` : null,
  ].filter(Boolean).join(" · ");
}

function drawVerdicts() {
  const counts = VERDICTS.map((verdict) => ROWS.filter((row) => row.verdict === verdict).length);
  const bar = svg("svg", { viewBox: "0 0 1000 10", preserveAspectRatio: "none", class: "verdict-bar",
    role: "img", "aria-label": VERDICTS.map((verdict, i) => `${counts[i]} ${verdict}`).join(", ") });
  let x = 0;
  counts.forEach((count, i) => {
    const width = (1000 * count) / Math.max(ROWS.length, 1);
    bar.append(svg("rect", { x, y: 0, width: Math.max(0, width - 1.5), height: 10, class: VERDICTS[i] }));
    x += width;
  });
  const names = { accepted: "accepted", rejected: "rejected", failed: "not inspected" };
  const legend = VERDICTS.map((verdict, i) =>
    el("li", { class: verdict }, `${names[verdict]} `, el("b", {}, whole.format(counts[i]))));
  byId("verdicts").replaceChildren(bar, el("ul", { class: "legend" }, legend));
}

function drawCharts() {
  const growth = el("div", { class: "growth" });
  byId("charts").replaceChildren(
    card("Growth", "datasets by date of creation", growth, "wide"),
    bars("rule", "Rejections by rule", "a dataset may fail several", 8, "tall"),
    bars("version", "Format version", null, 5),
    bars("convention", "Joint convention", null, 6),
    bars("fps", "Frames per second", null, 6),
    bars("cameras", "Number of cameras", null, 6),
    bars("camera", "Camera names", null, 8),
    bars("licence", "Licence", null, 8),
    taskBars("Tasks", "the most frequent instructions", 8),
  );
  const draw = () => drawGrowth(growth, growth.clientWidth || 600);
  draw();
  new ResizeObserver(draw).observe(growth);
}

function card(title, note, content, size) {
  const heading = el("h2", {}, title, note ? el("small", {}, note) : null);
  return el("article", { class: `card ${size || ""}` }, heading, content);
}

function bars(facet, title, note, limit, size) {
  const counts = countBy(facet);
  const rows = counts.slice(0, limit).map(([value, count]) =>
    barRow(facet === "rule" ? words(value) : value, count, counts[0][1], {
      "data-facet": facet, "data-value": value, "aria-pressed": "false",
      onclick: () => toggleFacet(facet, value),
    }, facet === "rule"));
  return card(title, note, barList(rows, counts.length - limit), size);
}

function taskBars(title, note, limit) {
  const counts = new Map();
  for (const row of ROWS) {
    for (const task of new Set((row.tasks || []).map((text) => text.trim()).filter(Boolean))) {
      if (!counts.has(task)) counts.set(task, [0, 0]);
      counts.get(task)[row.verdict === "accepted" ? 0 : 1] += 1;
    }
  }
  const all = [...counts].sort((a, b) => b[1][0] + b[1][1] - a[1][0] - a[1][1] || (a[0] < b[0] ? -1 : 1));
  const rows = all.slice(0, limit).map(([task, count]) =>
    barRow(task, count, all[0][1], { onclick: () => searchFor(task) }));
  return card(title, note, barList(rows, all.length - limit), "wide");
}

function barList(rows, more) {
  if (!rows.length) return el("p", { class: "muted" }, "nothing recorded");
  const rest = more > 0 ? el("p", { class: "muted more" }, `and ${whole.format(more)} more`) : null;
  return el("div", { class: "bars" }, rows, rest);
}

function barRow(label, [accepted, others], [mostA, mostB], attributes, refused) {
  const scale = 100 / Math.max(mostA + mostB, 1);
  const first = accepted * scale;
  const length = Math.max((accepted + others) * scale, 0.6);
  const drawing = svg("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { x: 0, y: 0, width: length, height: 8, class: refused ? "rejected" : "others" }),
    first ? svg("rect", { x: 0, y: 0, width: first, height: 8, class: "accepted" }) : null);
  const said = `${label}: ${accepted + others} datasets, ${accepted} accepted`;
  return el("button", { type: "button", class: "bar", title: said, "aria-label": said, ...attributes },
    el("span", { class: "bar-label" }, label), drawing,
    el("span", { class: "bar-count" }, whole.format(accepted + others)));
}

/* Datasets per month, added up: [["2025-01", accepted so far, all so far], ...] */
function growthByMonth() {
  const months = new Map();
  for (const row of ROWS) {
    if (!row.created_at) continue;
    const month = row.created_at.slice(0, 7);
    if (!months.has(month)) months.set(month, [0, 0]);
    months.get(month)[0] += row.verdict === "accepted" ? 1 : 0;
    months.get(month)[1] += 1;
  }
  const known = [...months.keys()].sort();
  if (!known.length) return [];
  // One month alone has no area: it grows from nothing.
  const steps = known.length === 1 ? [["before", 0, 0]] : [];
  let [year, month] = known[0].split("-").map(Number);
  let [accepted, all] = [0, 0];
  for (let name = known[0]; name <= known.at(-1) && steps.length < 600; ) {
    const [a, b] = months.get(name) || [0, 0];
    steps.push([name, (accepted += a), (all += b)]);
    [year, month] = month === 12 ? [year + 1, 1] : [year, month + 1];
    name = `${String(year).padStart(4, "0")}-${String(month).padStart(2, "0")}`;
  }
  return steps;
}

function drawGrowth(place, width) {
  const steps = growthByMonth();
  if (!steps.length) return place.replaceChildren(el("p", { class: "muted" }, "no dates recorded"));
  const [height, left, right, top, bottom] = [230, 44, 10, 12, 26];
  const most = steps.at(-1)[2];
  const x = (i) => left + ((width - left - right) * i) / Math.max(steps.length - 1, 1);
  const y = (count) => top + (height - top - bottom) * (1 - count / most);
  const area = (column) =>
    `M${x(0)},${y(0)}` + steps.map((step, i) => `L${x(i).toFixed(1)},${y(step[column]).toFixed(1)}`).join("") +
    `L${x(steps.length - 1)},${y(0)}Z`;
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
    "aria-label": `${most} datasets by ${steps.at(-1)[0]}, of which ${steps.at(-1)[1]} accepted` });
  for (const tick of niceTicks(most)) {
    chart.append(svg("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: "grid" }),
      svg("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, short.format(tick)));
  }
  chart.append(svg("path", { d: area(2), class: "others" }), svg("path", { d: area(1), class: "accepted" }));
  const every = Math.max(1, Math.ceil(steps.length / Math.max(2, Math.floor((width - left) / 76))));
  steps.forEach(([name, accepted, all], i) => {
    if (i % every === 0) {
      const anchor = x(i) > width - 40 ? "end" : "middle";
      chart.append(svg("text", { x: x(i), y: height - 6, "text-anchor": anchor }, name));
    }
    const half = (x(1) - x(0) || width) / 2;
    chart.append(svg("rect", { x: x(i) - half, y: top, width: 2 * half, height: height - top - bottom,
      class: "hover" }, svg("title", {}, `${name}: ${all} datasets, ${accepted} accepted`)));
  });
  const keys = [["accepted", "accepted"], ["others", "all candidates"]];
  return place.replaceChildren(chart,
    el("ul", { class: "legend" }, keys.map(([name, label]) => el("li", { class: name }, label))));
}

function niceTicks(most) {
  const rough = most / 4;
  const power = 10 ** Math.floor(Math.log10(Math.max(rough, 1)));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  return Array.from({ length: Math.floor(most / step) + 1 }, (_, i) => i * step);
}
