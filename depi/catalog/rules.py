"""The rules of the catalogue: what makes a dataset usable, one small function each.

A rule takes the facts gathered so far and the thresholds, and returns None or the reason for refusing.
`TIERS` is the order: the facts of a tier are gathered only if all rules of the tiers before it passed, and
within a tier its `needs` come first, because the rules behind them could not even ask.

Facts are untrusted. What a dataset says wrongly is a reason; an exception out of a rule is a bug of DePi
and stays an exception: the dataset is then reported as not inspected, never as bad.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from depi.catalog.facts import Facts, Thresholds
from depi.catalog.order import not_duplicate
from depi.catalog.text import clean, is_instruction
from depi.datasets.joints import JOINTS
from depi.errors import UserError

# Raise it with every change that can change a verdict: rows of an older version are judged again.
RULES_VERSION = "1"

Rule = Callable[[Facts, Thresholds], str | None]

INFO_FILE = "meta/info.json"
MAX_INFO_MB = 8
REQUIRED_COLUMNS = ("action", "observation.state", "timestamp", "frame_index", "episode_index", "task_index")
SO_ARM = re.compile(r"so[-_ ]?(arm[-_ ]?)?10[01]", re.IGNORECASE)
# Six joints as well, some with the same names: not told apart by anything but what they call themselves.
OTHER_ARMS = re.compile(
    r"aloha|franka|hope|koch|lekiwi|moss|omx|openarm|panda|piper|reachy|stretch|unitree|ur5|ur10|viperx|widowx|xarm",
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
        return f"no {INFO_FILE} at the top; a collection of {inner} datasets in folders is not read"
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


def not_evaluation(facts: Facts, limits: Thresholds) -> str | None:
    """It is not a record of a policy's own attempts: name with `eval` or `rollout_`, or such a tag."""
    name = facts.repo_id.rpartition("/")[2].lower()
    if name.startswith("rollout_") or {"eval", "evaluation"} & set(re.split(r"[-_.]", name)):
        return f"the name {name} is that of an evaluation run"
    tag = next((tag for tag in facts.tags if tag.lower() in ("eval", "evaluation", "rollout")), None)
    return f"tagged {clean(tag)}: an evaluation run" if tag else None


def info_readable(facts: Facts, limits: Thresholds) -> str | None:
    """`meta/info.json` is of a known format (v2.0, v2.1, v3.0) with sound types, sizes and path templates."""
    return facts.info_error


def required_columns(facts: Facts, limits: Thresholds) -> str | None:
    """The columns that training reads are declared: action, state, timestamp, and the three indices."""
    missing = [name for name in REQUIRED_COLUMNS if name not in facts.info.features]
    return f"no column {', '.join(missing)}" if missing else None


def single_arm(facts: Facts, limits: Thresholds) -> str | None:
    """Action and state are vectors of 6 numbers: one arm with five joints and a gripper."""
    for name in ("action", "observation.state"):
        feature = facts.info.features.get(name)
        if feature is not None and feature.shape != (6,):
            arms = ", as of two arms" if feature.shape in ((12,), (14,)) else ""
            return f"{name} has shape {list(feature.shape)}{arms}; a single arm has [6]"
    return None


def so100_arm(facts: Facts, limits: Thresholds) -> str | None:
    """The robot is called SO-100 or SO-101, or nothing at all, or has its joints and an unfamiliar name."""
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


def counts_match(facts: Facts, limits: Thresholds) -> str | None:
    """As many episodes and frames are listed as `meta/info.json` declares."""
    listed, declared = len(facts.episode_length), facts.info.total_episodes
    if listed != declared:
        return f"{declared} episodes declared, {listed} listed"
    frames = int(facts.episode_length.sum())
    if frames != facts.info.total_frames:
        return f"{facts.info.total_frames} frames declared, {frames} listed"
    return None


def files_present(facts: Facts, limits: Thresholds) -> str | None:
    """Every table and video that the episodes refer to is in the repository."""
    found = []
    for kind, needed in (("data", facts.data_files), ("video", facts.video_files)):
        missing = [path for path in needed if path not in facts.files]
        if missing:
            found.append(f"{len(missing)} of {len(needed)} {kind} files missing, as {clean(missing[0])}")
    return "; ".join(found) or None


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
    return f"no usable task text ({_quoted(facts.tasks)}) and no camera to annotate one from"


def tables_readable(facts: Facts, limits: Thresholds) -> str | None:
    """The parquet tables hold, for each listed episode, as many rows as listed, of the declared shape."""
    return facts.tables_error


def finite_values(facts: Facts, limits: Thresholds) -> str | None:
    """No NaN and no infinity in action, state and timestamps."""
    columns = (("action", facts.action), ("observation.state", facts.state), ("timestamp", facts.timestamp))
    for name, values in columns:
        bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if bad.any():
            return f"{name} is NaN or infinite in {bad.sum()} of {len(bad)} frames, first in {bad.argmax()}"
    return None


def timestamps_monotonic(facts: Facts, limits: Thresholds) -> str | None:
    """Within each episode time moves forward from frame to frame."""
    step, episode = _time_steps(facts)
    bad = ~(step > 0)
    if not bad.any():
        return None
    return f"time stands still or runs back at {bad.sum()} frames, first in episode {episode[bad.argmax()]}"


def timestamps_in_step(facts: Facts, limits: Thresholds) -> str | None:
    """The usual step between frames is that of the declared fps, within a factor of 1.5."""
    step, _ = _time_steps(facts)
    usual = float(np.median(step)) if len(step) else 1 / facts.info.fps
    if 1 / 1.5 <= usual * facts.info.fps <= 1.5:
        return None
    return f"frames are {usual:.4g} s apart, {facts.info.fps:g} fps means {1 / facts.info.fps:.4g} s"


def not_frozen(facts: Facts, limits: Thresholds) -> str | None:
    """Neither action nor state is the same number in every frame."""
    for name, values in (("action", facts.action), ("observation.state", facts.state)):
        if not np.ptp(values, axis=0).any():
            return f"{name} is the same in all {len(values)} frames"
    return None


def joints_known(facts: Facts, limits: Thresholds) -> str | None:
    """The joint convention is certain; the reason carries the evidence."""
    if facts.detection.convention not in ("unknown", "native"):
        return None
    return f"joint convention not certain: {clean(facts.detection.evidence, 300)}"


def motion_present(facts: Facts, limits: Thresholds) -> str | None:
    """Both action and state move: some joint by at least `--min_motion` degrees over the dataset."""
    for name, values in (("action", facts.action_degrees), ("observation.state", facts.state_degrees)):
        moved = float(np.ptp(values, axis=0).max())
        if not moved >= limits.min_motion:
            return f"no joint of {name} moves more than {moved:.2g} degrees (--min_motion)"
    return None


def junk_task_text(facts: Facts, limits: Thresholds) -> str | None:
    """A task text is empty, a placeholder or a single word: to be annotated."""
    junk = [task for task in facts.tasks if not is_instruction(task)]
    return f"task text {_quoted(junk)}" if junk or not facts.tasks else None


def approximate_joints(facts: Facts, limits: Thresholds) -> str | None:
    """Joints are normalised by a calibration that was not published: degrees are right to about 2%."""
    return "degrees right to about 2%" if facts.detection.convention == "normalized" else None


@dataclass(frozen=True)
class Tier:
    """Rules over the same facts: `needs` cannot be switched off, later ones take them for granted."""

    name: str
    needs: tuple[Rule, ...]
    rules: tuple[Rule, ...]


TIERS = (
    Tier("listing", (reachable, has_info, metadata_bounded), (not_disabled, not_gated, not_evaluation)),
    Tier(
        "info",
        (info_readable, required_columns, single_arm),
        (so100_arm, enough_cameras, fps_in_range, enough_episodes, enough_frames),
    ),
    Tier("metadata", (metadata_readable, files_present, tables_bounded), (counts_match, task_known)),
    Tier("tables", (tables_readable, finite_values), (timestamps_monotonic, timestamps_in_step, not_frozen)),
    Tier("joints", (joints_known,), (motion_present,)),
)
# Over all datasets that passed the tiers, instead of over the facts of one.
CATALOGUE_RULES = (not_duplicate,)
# Remarks on accepted datasets: recorded, no reason to refuse.
FLAGS: tuple[Rule, ...] = (junk_task_text, approximate_joints)


def check_disabled(names: Sequence[str]) -> frozenset[str]:
    """The rules to switch off, checked.

    Raises:
        UserError: no such rule, or one that all later rules rest on.
    """
    optional = {rule.__name__ for rule in CATALOGUE_RULES}
    optional |= {rule.__name__ for tier in TIERS for rule in tier.rules}
    needed = {rule.__name__ for tier in TIERS for rule in tier.needs}
    for name in names:
        if name in needed:
            raise UserError(f"rule {name} cannot be switched off: what comes after it rests on it")
        if name not in optional:
            raise UserError(f"there is no rule {name}; `depi collect-ids --list-rules` prints them all")
    return frozenset(names)


def judge(tier: Tier, facts: Facts, limits: Thresholds, disabled: frozenset[str] = frozenset()) -> list[str]:
    """The reasons for refusing, as "rule: reason"; of the tier's `needs` only the first that fails."""
    for rule in tier.needs:
        if reason := rule(facts, limits):
            return [f"{rule.__name__}: {reason}"]
    verdicts = [(rule, rule(facts, limits)) for rule in tier.rules if rule.__name__ not in disabled]
    return [f"{rule.__name__}: {reason}" for rule, reason in verdicts if reason]


def remarks(facts: Facts, limits: Thresholds) -> list[str]:
    """The flags of a dataset that passed every tier, as "flag: remark"."""
    return [f"{flag.__name__}: {remark}" for flag in FLAGS if (remark := flag(facts, limits))]


def _megabytes(facts: Facts, paths: Sequence[str]) -> float:
    return sum(facts.files.get(path) or 0 for path in paths) / 1e6


def _bare_joint(name: str) -> str:
    return name.removeprefix("main_").removesuffix(".pos")


def _quoted(tasks: Sequence[str]) -> str:
    return ", ".join(repr(clean(task, 60)) for task in tasks[:3]) or "none at all"


def _time_steps(facts: Facts) -> tuple[np.ndarray, np.ndarray]:
    """Seconds between neighbouring frames of the same episode, and that episode's position; [F - E]."""
    episode = np.repeat(np.arange(len(facts.episode_length)), facts.episode_length)
    same = episode[1:] == episode[:-1]
    return np.diff(facts.timestamp)[same], episode[1:][same]
