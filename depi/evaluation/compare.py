"""`depi compare`: is one policy better than another, judged by the episodes that both have played."""

import json
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from depi.errors import UserError, one_line
from depi.files import read_json
from depi.flags import parse_flags

logger = logging.getLogger(__name__)

# Environments that differ in one of these set different tasks for the same seed.
SAME_TASK = ("type", "task", "setups", "options", "episode_length")
# What else than the policy may make a difference, beside the other settings of the environment.
SETTINGS = ("n_action_steps", "guidance", "num_samples", "versions")


@dataclass
class CompareConfig:
    """Compare two evaluations, episode by episode: depi compare EVAL_A EVAL_B.

    Success rates have Wilson intervals; McNemar's exact test says how likely a difference like this one
    is by chance. Episodes are paired by their seeds.
    """

    # Folders of `depi eval`, or their eval.json.
    a: Path | None = None
    b: Path | None = None
    # Where to write the videos of each seed side by side, bordered green if a success, red if a failure.
    output_dir: Path | None = None
    # Print the result as JSON instead of a table.
    json: bool = False


@dataclass(frozen=True)
class Row:
    """One episode: `index` numbers its video; `length` in steps; `error` names why it does not count."""

    index: int
    seed: int
    success: bool
    length: int
    reward: float
    error: str | None


@dataclass(frozen=True)
class Evaluation:
    """One `eval.json`: where it lies, whose it is, its settings, and its episodes by seed."""

    folder: Path
    policy: str
    env: dict[str, Any]
    settings: dict[str, Any]
    rows: dict[int, Row]

    @property
    def counted(self) -> dict[int, Row]:
        """The episodes without an error."""
        return {seed: row for seed, row in self.rows.items() if row.error is None}


@dataclass(frozen=True)
class Side:
    """What one evaluation shows: over the paired seeds, except `episodes` and `errors`, of all."""

    folder: str
    policy: str
    episodes: int
    errors: int
    success_rate: float
    success_interval_95: tuple[float, float]
    mean_reward: float
    mean_length: float


@dataclass(frozen=True)
class Comparison:
    """Two evaluations over the seeds that both have played; differences are b's minus a's.

    Attributes:
        p_value: of McNemar's exact test, two-sided.
        also_different: settings in which they differ beside the policy, each in one line.
        only_a, only_b: seeds where that one alone succeeded. both, neither: counts.
    """

    a: Side
    b: Side
    paired: int
    both: int
    neither: int
    only_a: list[int]
    only_b: list[int]
    difference: float
    difference_interval_95: tuple[float, float]
    p_value: float
    also_different: list[str]


def read_evaluation(path: Path) -> Evaluation:
    """Read an `eval.json`, or the one in a folder.

    Raises:
        UserError: there is none, or it is something else.
    """
    file = path / "eval.json" if path.is_dir() else path
    found = read_json(file)
    if not isinstance(found, dict) or not found.keys() >= {"env", "episodes"}:
        raise UserError(f"{file} is no result of `depi eval`: it names no environment and episodes")
    if not isinstance(found["env"], dict) or not isinstance(found["episodes"], list):
        raise UserError(f"{file}: env must be an object, and episodes a list")
    rows = {row.seed: row for row in (_row(file, *each) for each in enumerate(found["episodes"]))}
    # Of rigs from a file it matters what they are, not where the file lies.
    env = {**found["env"], "setups": found.get("setups_file") or found["env"].get("setups")}
    settings = {name: found.get(name) for name in SETTINGS}
    return Evaluation(file.parent, str(found.get("policy")), env, settings, rows)


def _row(file: Path, index: int, episode: Any) -> Row:
    """One episode of a file that may come from somebody else: its numbers become names of files."""
    values: dict[str, Any] = {"index": index, "error": None}  # results of earlier versions lack these
    values |= episode if isinstance(episode, dict) else {}
    for name, kinds in _KINDS.items():
        value = values.get(name)
        if type(value) not in kinds or (type(value) is int and not -(2**63) <= value < 2**63):
            raise UserError(f"{file}: {name} of episode {index} is {one_line(repr(value), 40)}")
    if min(values["index"], values["seed"]) < 0 or not math.isfinite(values["reward"]):
        raise UserError(f"{file}: episode {index} has a negative number, or a reward that is none")
    return Row(**{name: values[name] for name in _KINDS})


_KINDS: dict[str, tuple[type, ...]] = {
    "index": (int,),
    "seed": (int,),
    "success": (bool,),
    "length": (int,),
    "reward": (int, float),
    "error": (str, type(None)),
}


def compare(a: Evaluation, b: Evaluation) -> Comparison:
    """Compare two evaluations over the seeds that both have played without an error.

    Raises:
        UserError: their environments differ, or no seed is in both without an error.
    """
    for name in SAME_TASK:
        first, second = a.env.get(name), b.env.get(name)
        if first != second:
            raise UserError(
                f"{a.folder} and {b.folder} are not of the same task: {name} is {_short(first)} there, "
                f"{_short(second)} here"
            )
    for side in (a, b):
        if not side.counted:
            raise UserError(f"{side.folder} has nothing to compare: every episode ended in an error")
    seeds = sorted(a.counted.keys() & b.counted.keys())
    if not seeds:
        raise UserError(
            f"{a.folder} and {b.folder} have no seed in common: run `depi eval` with the same --seed"
        )
    wins = [(a.rows[seed].success, b.rows[seed].success) for seed in seeds]
    only_a = [seed for seed, won in zip(seeds, wins, strict=True) if won == (True, False)]
    only_b = [seed for seed, won in zip(seeds, wins, strict=True) if won == (False, True)]
    both, neither = wins.count((True, True)), wins.count((False, False))
    difference, interval = paired_difference(both, len(only_a), len(only_b), neither)
    return Comparison(
        a=_side(a, seeds),
        b=_side(b, seeds),
        paired=len(seeds),
        both=both,
        neither=neither,
        only_a=only_a,
        only_b=only_b,
        difference=difference,
        difference_interval_95=interval,
        p_value=mcnemar(len(only_a), len(only_b)),
        also_different=also_different(a, b),
    )


def also_different(a: Evaluation, b: Evaluation) -> list[str]:
    """The settings in which two evaluations differ beside the policy, as in `env.fps: 10 in A, 30 in B`."""
    first, second = (flat({"env": side.env, **side.settings}) for side in (a, b))
    return [
        f"{one_line(name, 60)}: {_short(first.get(name))} in A, {_short(second.get(name))} in B"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Values inside objects by their paths, as in `env.fps`."""
    if not isinstance(values, dict):
        return {prefix.removesuffix("."): values}
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.")
    return found


def mcnemar(only_a: int, only_b: int) -> float:
    """The two-sided p-value of McNemar's test in its exact form.

    Under the null hypothesis each discordant pair falls to either side with probability 1/2
    (McNemar 1947, Psychometrika 12, p. 153; the exact binomial form instead of chi squared).
    """
    from scipy.stats import binomtest

    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """The 95% score interval of a rate (Wilson 1927, JASA 22, p. 209)."""
    from scipy.stats import binomtest

    found = binomtest(successes, episodes).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def paired_difference(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, tuple[float, float]]:
    """The difference of two paired rates, b's minus a's, with its 95% interval.

    Wilson's limits of the two rates, combined with the correlation of the pairs: method 10 of Newcombe 1998
    (Statistics in Medicine 17, p. 2635).
    """
    count = both + only_a + only_b + neither
    rate_a, rate_b = (both + only_a) / count, (both + only_b) / count
    (low_a, high_a), (low_b, high_b) = wilson(both + only_a, count), wilson(both + only_b, count)
    margins = math.prod((both + only_a, only_b + neither, both + only_b, only_a + neither))
    product: float = both * neither - only_a * only_b
    if product > 0:
        product = max(product - count / 2, 0)
    phi = product / math.sqrt(margins) if margins else 0.0

    def combined(own: float, other: float) -> float:
        return math.sqrt(max(own * own - 2 * phi * own * other + other * other, 0.0))

    below = combined(rate_b - low_b, high_a - rate_a)
    above = combined(high_b - rate_b, rate_a - low_a)
    difference = rate_b - rate_a
    return difference, (difference - below, difference + above)


def _side(evaluation: Evaluation, seeds: Sequence[int]) -> Side:
    rows = [evaluation.rows[seed] for seed in seeds]
    successes = sum(row.success for row in rows)
    return Side(
        folder=str(evaluation.folder),
        policy=evaluation.policy,
        episodes=len(evaluation.rows),
        errors=len(evaluation.rows) - len(evaluation.counted),
        success_rate=successes / len(rows),
        success_interval_95=wilson(successes, len(rows)),
        mean_reward=sum(row.reward for row in rows) / len(rows),
        mean_length=sum(row.length for row in rows) / len(rows),
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def write_pairs(a: Evaluation, b: Evaluation, seeds: list[int], output_dir: Path) -> list[Path]:
    """Write `seed_N.mp4` for each seed of which both evaluations have a video, and return the paths.

    The shorter video is padded with its last frame. Videos that cannot be read are named in a warning.
    """
    from depi.evaluation.side_by_side import write_side_by_side

    written = []
    for seed in seeds:
        left, right = (e.folder / "videos" / f"episode_{e.rows[seed].index:03d}.mp4" for e in (a, b))
        if not (left.is_file() and right.is_file()):
            continue
        path = output_dir / f"seed_{seed}.mp4"
        try:
            write_side_by_side(path, left, right, a.rows[seed].success, b.rows[seed].success)
        except UserError as error:
            logger.warning("seed %d is left out: %s", seed, error)
        else:
            written.append(path)
    return written


def main(args: Sequence[str]) -> int:
    """Run the `depi compare` verb."""
    config = parse_flags(CompareConfig, args, "depi compare", positionals=("a", "b"))
    if config.a is None or config.b is None:
        raise UserError("name two evaluations: depi compare EVAL_A EVAL_B")
    a, b = read_evaluation(config.a), read_evaluation(config.b)
    result = compare(a, b)
    videos: list[Path] | None = None
    if config.output_dir is not None:
        seeds = sorted(a.counted.keys() & b.counted.keys())
        videos = write_pairs(a, b, seeds, config.output_dir)
    if config.json:
        paths = None if videos is None else [str(path) for path in videos]
        json.dump({**asdict(result), "videos": paths}, sys.stdout, indent=2)
        print()
        return 0
    _print(result)
    if videos is not None:
        print(f"{len(videos)} videos side by side in {config.output_dir}")
    return 0


def _interval(side: Side) -> str:
    low, high = side.success_interval_95
    return f"{low:.0%} to {high:.0%}"


# As rows: side by side they do not fit into 80 columns.
_FACTS: dict[str, Callable[[Side], str]] = {
    "policy": lambda side: side.policy,
    "success rate": lambda side: f"{side.success_rate:.0%}",
    "95% interval": _interval,
    "mean reward": lambda side: f"{side.mean_reward:.2f}",
    "mean length": lambda side: f"{side.mean_length:.1f}",
    "errors": lambda side: f"{side.errors} of {side.episodes}",
}


def _print(result: Comparison) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{result.paired} paired seeds")
    for column in ("", "A", "B"):
        table.add_column(column, overflow="fold")
    for name, shown in _FACTS.items():
        table.add_row(name, *(escape(shown(side)) for side in (result.a, result.b)))
    Console().print(table)
    low, high = result.difference_interval_95
    print(f"B - A: {result.difference:+.0%}, 95% interval {low:+.0%} to {high:+.0%}")
    print(
        f"both succeeded {result.both}, only A {len(result.only_a)}, only B {len(result.only_b)}, "
        f"neither {result.neither}; McNemar's exact test: p = {result.p_value:.3g}"
    )
    if result.also_different:
        print(f"they differ in more than the policy: {'; '.join(result.also_different)}")
    for name, side in (("A", result.a), ("B", result.b)):
        left = side.episodes - side.errors - result.paired
        if left:
            print(f"{left} episodes of {name} have no partner and are left out")
