"""Rules about a repository, before any of its tables is fetched: listing, meta/info.json, metadata."""

import re
from collections.abc import Sequence

from depi.catalog.facts import Facts, Thresholds
from depi.catalog.text import clean
from depi.datasets.judging.instructions import is_instruction
from depi.datasets.judging.reading import lost_cameras, without_files
from depi.datasets.recording.formats import INFO_FILE, DatasetInfo
from depi.datasets.recording.joints import JOINTS

MAX_INFO_MB = 8
REQUIRED_COLUMNS = ("action", "observation.state", "timestamp", "frame_index", "episode_index", "task_index")
# LeRobot 0.6 records "so_follower" or "bi_so_follower", whichever of the arms it is; phosphobot "so-100".
SO_ARM = re.compile(r"so[-_ ]?(arm[-_ ]?)?10[01]|(?<![a-z])so[-_ ]?(follower|arm)(?![a-z])", re.IGNORECASE)
# Arms with six joints too, some with the same joint names: only the robot type tells them apart.
OTHER_ARMS = re.compile(
    r"aloha|franka|hope|koch|lekiwi|moss|omx|openarm|panda|piper|reachy|stretch|unitree|ur5|ur10|viperx|widowx|xarm",
    re.IGNORECASE,
)
TWO_ARMS = re.compile(r"^bi[-_ ]|bimanual|(?<![a-z])dual(?![a-z])|dual[-_ ]?arm", re.IGNORECASE)
EVALUATION_TASK = re.compile(
    r"^\W*(eval|evaluation|rollout)(?![^\W_])|(?<![^\W_])(policy|model)[\s_-](eval|evaluation|rollout)(?![^\W_])",
    re.IGNORECASE,
)


def reachable(facts: Facts, limits: Thresholds) -> str | None:
    """The repository exists on the Hub and its files may be downloaded with the token in use."""
    return facts.access_error


def has_info(facts: Facts, limits: Thresholds) -> str | None:
    """The repository has a `meta/info.json`, as every LeRobot dataset since v2.0."""
    if INFO_FILE in facts.files:
        return None
    inner = sum(path.endswith("/" + INFO_FILE) for path in facts.files)
    if inner:
        return f"no {INFO_FILE} at the top, and the {inner} folders with one have names that no id can hold"
    return f"no {INFO_FILE} among its {len(facts.files)} files"


def metadata_bounded(facts: Facts, limits: Thresholds) -> str | None:
    """The files under `meta/` are small enough to fetch (`--max_meta_mb`), `meta/info.json` above all."""
    if _megabytes(facts, [INFO_FILE]) > MAX_INFO_MB:
        return f"{INFO_FILE} is {_megabytes(facts, [INFO_FILE]):.0f} MB, at most {MAX_INFO_MB} MB are read"
    size = _megabytes(facts, [path for path in facts.files if path.startswith("meta/")])
    if size > limits.max_meta_mb:
        return f"meta/ is {size:.0f} MB, at most {limits.max_meta_mb:g} MB are read (--max_meta_mb)"
    return None


def not_disabled(facts: Facts, limits: Thresholds) -> str | None:
    """The Hub has not disabled the repository."""
    return "the Hub has disabled this repository" if facts.disabled else None


def not_gated(facts: Facts, limits: Thresholds) -> str | None:
    """Anyone may download it. With access granted, switch this rule off to use gated datasets."""
    return "gated: its author grants access on request" if facts.gated else None


def license_allowed(facts: Facts, limits: Thresholds) -> str | None:
    """Its licence is one of `--licenses`; without that flag any licence passes, also none."""
    if not limits.licenses:
        return None
    given = {name.strip().lower() for name in (facts.license or "").split(",")}
    if given & {name.lower() for name in limits.licenses}:
        return None
    found = f"licence {clean(facts.license, 60)}" if facts.license else "no licence given"
    return f"{found}, wanted {', '.join(limits.licenses)} (--licenses)"


def not_evaluation(facts: Facts, limits: Thresholds) -> str | None:
    """It is not a record of a policy's own attempts: name with `eval` or `rollout_`, or such a tag."""
    return evaluation_by_name(facts)


def info_readable(facts: Facts, limits: Thresholds) -> str | None:
    """`meta/info.json` is of a known format (v2.0, v2.1, v3.0) with sound types, sizes and path templates."""
    return facts.info_error


def required_columns(facts: Facts, limits: Thresholds) -> str | None:
    """The columns that training reads are declared: action, state, timestamp, and the three indices."""
    missing = [name for name in REQUIRED_COLUMNS if name not in facts.info.features]
    return f"no column {', '.join(missing)}" if missing else None


def not_bimanual(facts: Facts, limits: Thresholds) -> str | None:
    """One arm, not two; two-arm recordings have `bimanual` in their rows."""
    if not is_bimanual(facts.info):
        return None
    sizes = [list(facts.info.features[name].shape) for name in ("action", "observation.state")]
    robot = f", robot type {clean(facts.info.robot_type, 60)!r}" if facts.info.robot_type else ""
    return f"two arms: action has shape {sizes[0]}, state {sizes[1]}{robot}"


def single_arm(facts: Facts, limits: Thresholds) -> str | None:
    """Action and state are vectors of 6 numbers: one arm with five joints and a gripper."""
    for name in ("action", "observation.state"):
        feature = facts.info.features.get(name)
        if feature is not None and feature.shape != (6,):
            return f"{name} has shape {list(feature.shape)}; a single arm has [6]"
    return None


def so100_arm(facts: Facts, limits: Thresholds) -> str | None:
    """The robot type is SO-100 or SO-101, is missing, or is unknown with the joint names of an SO-100."""
    robot = (facts.info.robot_type or "").strip()
    if SO_ARM.search(robot) or robot.lower() in ("", "unknown", "none", "null"):
        return None
    action = facts.info.features.get("action")
    names = tuple(_bare_joint(name) for name in (action.names or ())) if action else ()
    if names == JOINTS and not OTHER_ARMS.search(robot):
        return None
    return f"robot type is {clean(robot, 60)!r}, not an SO-100 or SO-101"


def enough_cameras(facts: Facts, limits: Thresholds) -> str | None:
    """At least `--min_cameras` colour cameras; depth maps do not count."""
    count = len(facts.info.camera_keys)
    if count >= limits.min_cameras:
        return None
    return f"{count} cameras, at least {limits.min_cameras} are needed (--min_cameras)"


def fps_in_range(facts: Facts, limits: Thresholds) -> str | None:
    """Frames per second within `--min_fps` and `--max_fps`."""
    if limits.min_fps <= facts.info.fps <= limits.max_fps:
        return None
    return f"{facts.info.fps:g} fps, expected {limits.min_fps:g} to {limits.max_fps:g}"


def enough_episodes(facts: Facts, limits: Thresholds) -> str | None:
    """At least `--min_episodes` episodes."""
    if facts.info.total_episodes >= limits.min_episodes:
        return None
    return f"{facts.info.total_episodes} episodes, at least {limits.min_episodes} are needed (--min_episodes)"


def enough_frames(facts: Facts, limits: Thresholds) -> str | None:
    """Between `--min_frames` and `--max_frames` frames: worth training on, and possible to check."""
    frames = facts.info.total_frames
    if limits.min_frames <= frames <= limits.max_frames:
        return None
    return (
        f"{frames} frames, expected {limits.min_frames} to {limits.max_frames} (--min_frames, --max_frames)"
    )


def metadata_readable(facts: Facts, limits: Thresholds) -> str | None:
    """The lists of episodes and tasks under `meta/` can be read and make sense."""
    return facts.meta_error


def files_present(facts: Facts, limits: Thresholds) -> str | None:
    """Every camera has videos, and some episode has its table and all of its videos in the repository."""
    found, missing = [], set[str]()
    for kind, needed in (("data", facts.data_files), ("video", facts.video_files)):
        absent = [path for path in needed if path not in facts.files]
        missing.update(absent)
        if absent:
            found.append(f"{len(absent)} of {len(needed)} {kind} files missing, as {clean(absent[0])}")
    if missing and not lost_cameras(facts.meta, missing):
        bad = without_files(facts.meta, missing)
        return "; ".join(found) if len(bad) == len(facts.meta.episodes) else None
    return "; ".join(found) or None


def counts_match(facts: Facts, limits: Thresholds) -> str | None:
    """As many episodes as `meta/info.json` declares are listed, and so many frames are listed or recorded."""
    listed, declared = len(facts.meta.episodes), facts.info.total_episodes
    if listed != declared:
        return f"{declared} episodes declared, {listed} listed"
    frames, rows = facts.meta.num_frames, facts.table_rows
    if facts.info.total_frames in (frames, rows):
        return None
    return f"{facts.info.total_frames} frames declared, {frames} listed, {rows} in the tables"


def tables_bounded(facts: Facts, limits: Thresholds) -> str | None:
    """The parquet tables are small enough to fetch and check (`--max_table_mb`)."""
    size = _megabytes(facts, facts.data_files)
    if size <= limits.max_table_mb:
        return None
    return f"tables of {size:.0f} MB, at most {limits.max_table_mb:g} MB are read (--max_table_mb)"


def task_known(facts: Facts, limits: Thresholds) -> str | None:
    """There is an instruction, or a camera from whose pictures one can be written."""
    if facts.info.camera_keys or any(is_instruction(task) for task in facts.tasks):
        return None
    return f"no usable task text ({quoted(facts.tasks)}) and no camera to annotate one from"


def not_evaluation_task(facts: Facts, limits: Thresholds) -> str | None:
    """No task text says that a policy was evaluated, as "eval run 3" or "policy rollout" do."""
    return evaluation_by_task(facts.tasks)


def evaluation_by_name(facts: Facts) -> str | None:
    """Why the repository's name or tags make it an evaluation run, or None."""
    name = re.split(r"[/:]", facts.repo_id)[-1].lower()
    if name.startswith("rollout_") or {"eval", "evaluation"} & set(re.split(r"[-_.]", name)):
        return f"the name {clean(name)} is that of an evaluation run"
    tag = next((tag for tag in facts.tags if tag.lower() in ("eval", "evaluation", "rollout")), None)
    return f"tagged {clean(tag)}: an evaluation run" if tag else None


def evaluation_by_task(tasks: Sequence[str]) -> str | None:
    """Why the task texts make it an evaluation run, or None."""
    found = next((task for task in tasks if EVALUATION_TASK.search(task[:1000])), None)
    return f"task text {clean(found, 60)!r} is that of an evaluation run" if found is not None else None


def is_bimanual(info: DatasetInfo) -> bool:
    """Whether two arms were recorded: 12 numbers (14 with seven joints each), or a two-arm robot type."""
    action = info.features.get("action")
    two = action is not None and action.shape in ((12,), (14,))
    return two or TWO_ARMS.search(info.robot_type or "") is not None


def _megabytes(facts: Facts, paths: Sequence[str]) -> float:
    return sum(facts.files.get(path) or 0 for path in paths) / 1e6


def _bare_joint(name: str) -> str:
    return name.removeprefix("main_").removesuffix(".pos")


def quoted(tasks: Sequence[str]) -> str:
    """The first three task texts, fit for a reason."""
    return ", ".join(repr(clean(task, 60)) for task in tasks[:3]) or "none at all"
