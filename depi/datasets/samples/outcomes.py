"""How episodes ended, and what follows: rewards and returns, in frames and as a value network has them.

Time is counted in frames as recorded. The reward is 0 at the last frame of a success, -c_fail at the last
frame of a failure, and -1 at every other frame (pi*0.6 paper, section on the value function, where c_fail is
C_fail; OpenTau's C_neg is -c_fail). So the return of a success is minus the frames that are left, and a
failure lies c_fail below that. Divided by `reward_normalizer`, returns lie in [-1, 0], the range of the value
network.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from depi.datasets.recording.checks import short, whole_number
from depi.datasets.recording.formats import MAX_EPISODES, DatasetMeta, select_episodes
from depi.datasets.recording.meta_v2 import read_lines
from depi.datasets.recording.metadata import load_meta
from depi.datasets.recording.tables import column_names, iter_rows, read_frames
from depi.engine.confined import confined
from depi.errors import DatasetError, UserError
from depi.files import read_json
from depi.threads import threads

logger = logging.getLogger(__name__)

SUCCESS_COLUMNS = ("next.success", "success")
INTERVENTION_COLUMNS = ("is_intervention", "intervention")
SUCCESS_KEY = "success"
"""Of an episode's metadata."""
SOURCES = ("recorded", "file", "assumed")

_CONTRADICTORY = -2
_THREADS = 8
_NAMED = 5


class UnknownOutcomeError(UserError):
    """Of an episode nobody says whether it succeeded."""


class Episodes(Protocol):
    """What is read of a `MultiLeRobotDataset`."""

    repo_ids: tuple[str, ...]
    roots: tuple[Path, ...]
    entries: list[dict[str, Any]]
    dataset_start: np.ndarray
    episode_start: np.ndarray
    episode_recorded: np.ndarray


@dataclass(frozen=True)
class Outcomes:
    """How the E episodes of a training set with F frames ended.

    success: bool [E]
    intervention: bool [F], the frames where a human took over
    sources: repo id -> one of SOURCES -> episodes whose flag comes from there
    """

    success: np.ndarray
    intervention: np.ndarray
    sources: dict[str, dict[str, int]]


def episode_rewards(length: int, success: bool, c_fail: float) -> np.ndarray:
    """The reward of every frame of an episode, float64 [length], in frames; see the module.

    Raises:
        ValueError: the episode has no frame, or c_fail is negative or not finite.
    """
    if length < 1 or not (np.isfinite(c_fail) and c_fail >= 0):
        raise ValueError(f"an episode of {length} frames and c_fail {c_fail} have no rewards")
    rewards = np.full(length, -1.0)
    rewards[-1] = 0.0 if success else -c_fail
    return rewards


def episode_returns(length: int, success: bool, c_fail: float) -> np.ndarray:
    """The sum of the rewards from every frame to the episode's end, float64 [length], in frames."""
    rewards = episode_rewards(length, success, c_fail)
    # The frames left are counted, and only then the last reward is added: no error piles up.
    return rewards[-1] - np.arange(length)[::-1]


def normalised(returns: np.ndarray, reward_normalizer: float, *, clamp: bool = False) -> np.ndarray:
    """Returns in frames as values in [-1, 0], float64, of the same shape.

    Args:
        returns: at most 0.
        reward_normalizer: frames that make -1; see `check_normalizer`, which counts what is clamped.
        clamp: turn values below -1 into -1.

    Raises:
        ValueError: reward_normalizer is not positive, or a value lies outside of [-1, 0].
    """
    if not (np.isfinite(reward_normalizer) and reward_normalizer > 0):
        raise ValueError(f"reward_normalizer is {reward_normalizer}, it must be positive")
    values = np.asarray(returns, np.float64) / reward_normalizer
    if clamp:
        values = np.maximum(values, -1.0)
    if values.size and not (values.min() >= -1 and values.max() <= 0):
        raise ValueError(f"returns from {values.min()} to {values.max()} are outside of [-1, 0]")
    return values


def normalised_returns(
    lengths: Iterable[int],
    success: Iterable[bool],
    c_fail: float,
    reward_normalizer: float,
    *,
    clamp: bool = False,
) -> np.ndarray:
    """The `normalised` return of every frame of episodes one after another, float64 [F].

    Arguments as for `check_normalizer`.
    """
    pairs = zip(lengths, success, strict=True)
    returns = [episode_returns(int(length), bool(succeeded), c_fail) for length, succeeded in pairs]
    return normalised(np.concatenate(returns), reward_normalizer, clamp=clamp)


def check_normalizer(
    lengths: np.ndarray, success: np.ndarray, c_fail: float, reward_normalizer: float, *, clamp: bool = False
) -> int:
    """How many frames have a return below -1 in the unit of `reward_normalizer`.

    Args:
        lengths: int [E], frames of each episode.
        success: bool [E].
        c_fail: see the module.
        reward_normalizer: frames that make -1.
        clamp: whether such frames are acceptable.

    Raises:
        UserError: there are such frames and `clamp` is False; says which normaliser would do.
    """
    lengths, success = np.asarray(lengths, np.int64), np.asarray(success, bool)
    room = np.where(success, _room(reward_normalizer, 0.0), _room(reward_normalizer, c_fail))
    # The frame k before the last has the return -k, less c_fail in a failure: too low where k > room.
    below = int(np.clip(lengths - 1 - room, 0, lengths).sum())
    if below == 0 or clamp:
        return below
    needed = lengths - 1 + np.where(success, 0.0, c_fail)
    worst = int(needed.argmax())
    raise UserError(
        f"reward_normalizer={reward_normalizer:g} is too small: with c_fail={c_fail:g} the returns of "
        f"{below} of {lengths.sum()} frames fall below -1; a {'success' if success[worst] else 'failure'} of "
        f"{lengths[worst]} frames returns -{needed[worst]:g}: choose a reward_normalizer of at least "
        f"{needed[worst]:g}, a smaller c_fail, or say clamp=true"
    )


def _room(reward_normalizer: float, cost: float) -> int:
    """The most frames whose cost, with that of the end, is within the normaliser; -1 if the end's is not."""
    frames = max(-1, math.floor(reward_normalizer - cost) + 1)
    while frames >= 0 and frames + cost > reward_normalizer:
        frames -= 1
    return frames


def read_outcomes(dataset: Episodes, *, file: Path | None = None, assume_success: bool = False) -> Outcomes:
    """How all episodes of a training set ended, and where humans intervened.

    In this order: `file`; what the recording says, in a frame column (SUCCESS_COLUMNS, true at any frame) or
    in the episodes' metadata (SUCCESS_KEY).

    Args:
        dataset: a MultiLeRobotDataset.
        file: JSON, `{repo_id: {episode: true}}` or `{repo_id: true}` for all episodes.
        assume_success: take an episode of which nothing is known for a success.

    Raises:
        UnknownOutcomeError: nothing is known of an episode. Names the datasets.
        UserError: a recording contradicts itself or cannot be read; or the file is wrong, or names an episode
            that its dataset does not have.
    """
    named = {} if file is None else read_success_file(file)
    if others := [repo_id for repo_id in named if repo_id not in dataset.repo_ids]:
        more = ", ..." if len(others) > _NAMED else ""
        logger.warning(
            "%s names %s datasets that are not in use: %s%s",
            file,
            len(others),
            ", ".join(map(short, others[:_NAMED])),
            more,
        )
    with threads(_THREADS) as pool:
        numbers = range(len(dataset.repo_ids))
        found = list(
            pool.map(
                lambda number: _read_dataset(dataset, number, named.get(dataset.repo_ids[number])), numbers
            )
        )
    success = np.zeros(len(dataset.episode_recorded), bool)
    sources, missing = {}, {}
    for number, (repo_id, (flags, _)) in enumerate(zip(dataset.repo_ids, found, strict=True)):
        episodes = slice(*dataset.dataset_start[number : number + 2].tolist())
        said = _said(named.get(repo_id), dataset.episode_recorded[episodes])
        if (wrong := np.flatnonzero((said < 0) & (flags == _CONTRADICTORY))).size:
            raise UserError(
                f"episode {dataset.episode_recorded[episodes][wrong[0]]} of dataset {repo_id} is a success "
                "by its frames or by its metadata, but not by both: mend it, or tell with --dataset.success"
            )
        unknown = (said < 0) & (flags < 0)
        if unknown.any() and not assume_success:
            missing[repo_id] = f"{int(unknown.sum())} of {len(unknown)}"
        success[episodes] = np.where(said >= 0, said, np.where(flags >= 0, flags, 1)) == 1
        from_file, assumed = int((said >= 0).sum()), int(unknown.sum())
        counts = {"recorded": len(unknown) - from_file - assumed, "file": from_file, "assumed": assumed}
        sources[repo_id] = {name: count for name, count in counts.items() if count}
    if missing:
        raise UnknownOutcomeError(_missing_sentence(missing, len(dataset.repo_ids)))
    assumed = sum("assumed" in counts for counts in sources.values())
    if assumed:
        logger.warning("%s datasets have episodes whose success is assumed, not known", assumed)
    return Outcomes(success, np.concatenate([frames for _, frames in found]), sources)


def _missing_sentence(missing: Mapping[str, str], datasets: int) -> str:
    named = ", ".join(f"{repo_id} ({count} episodes)" for repo_id, count in list(missing.items())[:_NAMED])
    more = ", ..." if len(missing) > _NAMED else ""
    return (
        f"{len(missing)} of {datasets} datasets do not say whether their episodes succeeded: {named}{more}: "
        "name a file with --dataset.success=FILE.json, or take them for successes with "
        "--dataset.assume_success=true"
    )


def read_success_file(path: Path) -> dict[str, bool | dict[int, bool]]:
    """A file of success flags, checked; see `read_outcomes`.

    Raises:
        UserError: it is missing, or says something else than true or false.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object of repo ids")
    flags: dict[str, bool | dict[int, bool]] = {}
    for repo_id, value in content.items():
        if isinstance(value, bool):
            flags[repo_id] = value
        elif isinstance(value, dict) and all(
            key.isdecimal() and isinstance(flag, bool) for key, flag in value.items()
        ):
            flags[repo_id] = {int(key): flag for key, flag in value.items()}
        else:
            raise UserError(
                f"{path}: {short(repo_id)} must have true, false, or an object of episodes with true or false"
            )
    return flags


def _said(value: bool | Mapping[int, bool] | None, recorded: np.ndarray) -> np.ndarray:
    """int8 [e]: 1 success, 0 failure, -1 where the file says nothing."""
    if value is None or isinstance(value, bool):
        return np.full(len(recorded), -1 if value is None else value, np.int8)
    return np.array([value.get(episode, -1) for episode in recorded.tolist()], np.int8)


def _read_dataset(
    dataset: Episodes, number: int, named: bool | Mapping[int, bool] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Success of each episode as in `_said` or _CONTRADICTORY, int8 [e]; intervention of frames, bool [f].

    `named` is what a file says of the dataset, whose episodes, in use or not, must be there.
    """
    repo_id, entry = dataset.repo_ids[number], dataset.entries[number]
    first, last = dataset.dataset_start[number : number + 2].tolist()
    recorded = np.asarray(dataset.episode_recorded[first:last])
    length = np.diff(dataset.episode_start[first : last + 1])
    where = (dataset.roots[number], repo_id, entry["revision"])
    try:
        in_frames, in_meta, intervention = confined(_recorded, where, named, recorded, length)
    except DatasetError as error:
        raise UserError(f"how the episodes of dataset {repo_id} ended cannot be read: {error}") from None
    success = in_meta
    if in_frames is not None:
        success = np.where((in_meta >= 0) & (in_meta != in_frames), _CONTRADICTORY, in_frames)
    return success, np.zeros(int(length.sum()), bool) if intervention is None else intervention


def _recorded(
    where: tuple[Path, str, str | None],
    named: bool | Mapping[int, bool] | None,
    recorded: np.ndarray,
    length: np.ndarray,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
    """What a dataset's frames and its metadata say of success, int8 [e], and of intervention, bool [f].

    `where` are the arguments of `load_meta`; the episodes are `recorded`, int [e], of `length` frames each.
    """
    meta = load_meta(*where)
    _check_named(named, meta)
    meta = select_episodes(meta, np.flatnonzero(np.isin(meta.episodes.episode_index, recorded)))
    if not (np.array_equal(meta.episodes.episode_index, recorded) and (meta.episodes.length == length).all()):
        raise DatasetError("its episodes are others than when it was opened")
    present = column_names(meta.root, meta.episodes.data_paths[int(meta.episodes.data_file[0])])
    start = np.cumsum(length) - length
    column = _read_column(meta, SUCCESS_COLUMNS, present)
    in_frames = None if column is None else np.logical_or.reduceat(column, start).astype(np.int8)
    return in_frames, _read_metadata(meta), _read_column(meta, INTERVENTION_COLUMNS, present)


def _check_named(named: bool | Mapping[int, bool] | None, meta: DatasetMeta) -> None:
    wrong = (
        sorted(set(named) - set(meta.episodes.episode_index.tolist())) if isinstance(named, Mapping) else ()
    )
    if wrong:
        raise UserError(
            f"the file of --dataset.success names episode {wrong[0]} of dataset {meta.repo_id}, which has "
            f"{len(meta.episodes)} episodes and not that one"
        )


def _read_column(meta: DatasetMeta, names: Sequence[str], present: Sequence[str]) -> np.ndarray | None:
    """The first of these columns that there is, bool [f]."""
    name = next((name for name in names if name in present), None)
    if name is None:
        return None
    values = read_frames(meta, [name])[name].reshape(-1)
    if len(values) != meta.num_frames or values.dtype == object or not np.isin(values, (0, 1)).all():
        raise DatasetError(f"the column {name} holds other things than truth values")
    return values.astype(bool)


def _read_metadata(meta: DatasetMeta) -> np.ndarray:
    """Success of each episode by its metadata as in `_said`, int8 [e]."""
    if meta.info.version.startswith("v3"):
        files = sorted(meta.root.glob("meta/episodes/*/*.parquet"))
        names = [path.relative_to(meta.root).as_posix() for path in files]
        columns = ["episode_index", SUCCESS_KEY]
        rows = [
            row
            for name in names
            if SUCCESS_KEY in column_names(meta.root, name)
            for row in iter_rows(meta.root, name, columns, max_rows=MAX_EPISODES)
        ]
    else:
        rows = [row for row in read_lines(meta.root, "meta/episodes.jsonl") if SUCCESS_KEY in row]
    known: dict[int, bool] = {}
    for row in rows:
        index = whole_number(row["episode_index"], "episode_index", 0, 10_000_000)
        if row[SUCCESS_KEY] is not None:
            known[index] = _truth(row[SUCCESS_KEY], index)
    return _said(known, meta.episodes.episode_index)


def _truth(value: object, episode: int) -> bool:
    # LeRobot's writer stores a scalar as a list of one.
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise DatasetError(f"success of episode {episode} is {short(value)}, expected true or false")
    return bool(value)
