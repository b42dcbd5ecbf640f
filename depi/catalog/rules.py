"""The rules of the catalogue: what makes a dataset usable, one small function each.

A rule takes the facts gathered so far and the thresholds, and returns None or the reason for refusing.
`TIERS` is the order: the facts of a tier are gathered only if all rules of the tiers before it passed, and
within a tier its `needs` come first, because the other rules rely on them.

Facts are untrusted. A wrong statement of a dataset is a reason for refusing it; an exception in a rule is a
bug of DePi and stays an exception: the dataset is then reported as not inspected, never as bad.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from depi.catalog.episodes import episode_flags
from depi.catalog.facts import Facts, Thresholds
from depi.catalog.order import not_duplicate, not_near_duplicate, shared_episodes
from depi.catalog.recording_rules import (
    enough_good_episodes,
    gripper_used,
    joints_known,
    lag_plausible,
    motion_present,
    not_frozen,
    state_follows,
    tables_readable,
    timestamps_in_step,
)
from depi.catalog.repository_rules import (
    counts_match,
    enough_cameras,
    enough_episodes,
    enough_frames,
    files_present,
    fps_in_range,
    has_info,
    info_readable,
    license_allowed,
    metadata_bounded,
    metadata_readable,
    not_bimanual,
    not_disabled,
    not_evaluation,
    not_evaluation_task,
    not_gated,
    quoted,
    reachable,
    required_columns,
    single_arm,
    so100_arm,
    tables_bounded,
    task_known,
)
from depi.datasets.judging.instructions import is_instruction
from depi.datasets.judging.offsets import name_offsets
from depi.datasets.judging.rules import ALWAYS, OPTIONAL
from depi.errors import UserError

# Raise it with every change that can change a verdict: rows of an older version are judged again. That
# asks the Hub for the tables of all datasets, hours of network: too much for every change of any line, and
# so no `depi.fingerprint`.
RULES_VERSION = "6"

Rule = Callable[[Facts, Thresholds], str | None]


def junk_task_text(facts: Facts, limits: Thresholds) -> str | None:
    """A task text is empty, a placeholder or a single word: to be annotated."""
    junk = [task for task in facts.tasks if not is_instruction(task)]
    return f"task text {quoted(junk)}" if junk or not facts.tasks else None


def approximate_joints(facts: Facts, limits: Thresholds) -> str | None:
    """Joints are normalised by a calibration that the values do not show: degrees are right to about 2%."""
    nominal = "normalized" in facts.detection.convention and None in facts.detection.half_range
    return "degrees right to about 2%" if nominal else None


def constant_offset(facts: Facts, limits: Thresholds) -> str | None:
    """Commands are off from where the arm gets, by a constant beyond lag and sag, in most episodes."""
    found = facts.motion.offsets.constant
    if not found:
        return None
    return f"commands are off by {name_offsets(found)}; --dataset.correct_offsets=true takes that out"


@dataclass(frozen=True)
class Tier:
    """Rules over the same facts: `needs` cannot be switched off, because later rules rely on them."""

    name: str
    needs: tuple[Rule, ...]
    rules: tuple[Rule, ...]


TIERS = (
    Tier(
        "listing",
        (reachable, has_info, metadata_bounded),
        (not_disabled, not_gated, license_allowed, not_evaluation),
    ),
    Tier(
        "info",
        (info_readable, required_columns, not_bimanual, single_arm),
        (so100_arm, enough_cameras, fps_in_range, enough_episodes, enough_frames),
    ),
    Tier(
        "metadata",
        (metadata_readable, files_present, tables_bounded),
        (not_evaluation_task, task_known),
    ),
    Tier(
        "tables",
        (tables_readable,),
        (counts_match, timestamps_in_step, not_frozen),
    ),
    Tier(
        "joints",
        (joints_known, enough_good_episodes),
        (motion_present, state_follows, lag_plausible, gripper_used),
    ),
)
# Rules over all datasets that passed the tiers, instead of over the facts of one.
CATALOGUE_RULES = (not_duplicate, not_near_duplicate)
CATALOGUE_FLAGS = (shared_episodes,)
# Remarks on accepted datasets: recorded, but not a reason to refuse.
FLAGS: tuple[Rule, ...] = (junk_task_text, approximate_joints, constant_offset)


def check_disabled(names: Sequence[str]) -> frozenset[str]:
    """The rules to switch off, checked.

    Raises:
        UserError: there is no such rule, or it cannot be switched off.
    """
    optional = {rule.__name__ for rule in CATALOGUE_RULES}
    optional |= {rule.__name__ for tier in TIERS for rule in tier.rules}
    optional |= {rule.name for rule in OPTIONAL}
    needed = {rule.__name__ for tier in TIERS for rule in tier.needs} | {check.__name__ for check in ALWAYS}
    for name in names:
        if name in needed:
            raise UserError(f"rule {name} cannot be switched off: later rules rely on it")
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
    """The flags of a dataset that passed every tier, as "flag: remark", and the remarks on its episodes."""
    flags = [f"{flag.__name__}: {remark}" for flag in FLAGS if (remark := flag(facts, limits))]
    return [*flags, *episode_flags(facts.episodes)]
