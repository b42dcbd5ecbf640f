const ROWS = DATA.rows;
const VERDICTS = ["accepted", "rejected", "failed"];
const JOINTS = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"];
const SHORT_JOINTS = ["pan", "lift", "elbow", "flex", "roll", "gripper"];
const REACH = [[-120, 120], [-120, 120], [-120, 120], [-120, 120], [-180, 180], [0, 100]];
const UNKNOWN = "not known";

const day = (moment) => (moment ? moment.slice(0, 10) : "");
const ruleOf = (reason) => reason.split(":", 1)[0];
const textOf = (reason) => reason.slice(ruleOf(reason).length + 1).trim();
const seconds = (row) => (row.frames && row.fps ? row.frames / row.fps : 0);
const words = (name) => name.replaceAll("_", " ");

function hubLink(row) {
  const [path, inside] = row.repo_id.split(":", 2);
  if (!/^https?:\/\//.test(DATA.hub) || !/^[\w.-]+(\/[\w.-]+)?$/.test(path)) return null;
  const parts = inside ? inside.split("/").map(encodeURIComponent).join("/") : "";
  return `${DATA.hub}/datasets/${path}/tree/${encodeURIComponent(row.revision || "main")}/${parts}`;
}

function badge(verdict) {
  return el("span", { class: `badge ${VERDICTS.includes(verdict) ? verdict : "failed"}` }, verdict);
}

/* Single-arm demonstrations are what is looked for; two arms and evaluation runs are told apart. */
function kinds(row) {
  if (row.bimanual === undefined && !row.evaluation) return [UNKNOWN];
  const found = [row.bimanual ? "two arms" : null, row.evaluation ? "evaluation run" : null].filter(Boolean);
  return found.length ? found : ["one arm"];
}

/* What can be filtered: `of` gives a row's values. */
const FACETS = [
  { name: "verdict", label: "Verdict", of: (row) => [row.verdict] },
  { name: "rule", label: "Rejected by", of: (row) => (row.reasons || []).map(ruleOf) },
  { name: "version", label: "Version", of: (row) => [row.codebase_version || UNKNOWN] },
  { name: "convention", label: "Joint convention", of: (row) => [row.joint_convention || UNKNOWN] },
  { name: "fps", label: "Frames per second", of: (row) => [row.fps ? fine.format(row.fps) : UNKNOWN] },
  { name: "cameras", label: "Number of cameras", of: (row) => [String(row.num_cameras ?? UNKNOWN)] },
  { name: "camera", label: "Camera name", of: (row) => (row.cameras || []).map(camera) },
  { name: "robot", label: "Robot type", of: (row) => [row.robot_type || UNKNOWN] },
  { name: "licence", label: "Licence", of: (row) => [row.license || UNKNOWN] },
  { name: "kind", label: "Kind", of: kinds },
  { name: "flag", label: "Remark", of: (row) => (row.flags || []).map(ruleOf) },
  { name: "fault", label: "Fault in an episode", of: (row) => (row.judged || []).flatMap(([, , faults]) => faults.map(([rule]) => rule)) },
];

/* Each row once: its values per facet, and the text that is searched. */
for (const row of ROWS) {
  row.facets = {};
  for (const facet of FACETS) row.facets[facet.name] = new Set(facet.of(row));
  const texts = [row.tasks, row.cameras, row.reasons, row.flags].map((list) => (list || []).join("\n"));
  row.text = [row.repo_id, row.robot_type, row.license, row.duplicate_of, ...texts].join("\n").toLowerCase();
}

/* value -> [accepted, others], the most frequent first */
function countBy(facet) {
  const counts = new Map();
  for (const row of ROWS) {
    for (const value of row.facets[facet]) {
      if (!counts.has(value)) counts.set(value, [0, 0]);
      counts.get(value)[row.verdict === "accepted" ? 0 : 1] += 1;
    }
  }
  return [...counts].sort((a, b) => b[1][0] + b[1][1] - a[1][0] - a[1][1] || (a[0] < b[0] ? -1 : 1));
}
