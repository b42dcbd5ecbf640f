"""Rules about what a dataset says of itself: numbering, lists, statistics and tasks against the tables.

They are asked of every robot. DePi finds an episode's rows by its file or by the column `episode_index`, and
computes statistics itself, so that most of these faults are remarks: other readers go by what is wrong here.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from depi.datasets.judging.faults import Finding, Recording
from depi.datasets.judging.instructions import is_instruction
from depi.datasets.recording.checks import short
from depi.datasets.recording.statistics import Statistics, read_statistics
from depi.datasets.recording.tables import ACTION, STATE

OTHERS = 4
"""An episode stands alone among this many others at least."""
STATISTICS_TOLERANCE = 0.01
"""Statistics are stale where they differ from the values by more than this share of a joint's range."""
ROUNDING = 1e-3
"""No statistics are compared more closely than this, in the recording's units."""


def task_listed(recording: Recording) -> Iterator[Finding]:
    """Every frame's task_index is that of a listed task."""
    task_index = recording.columns.get("task_index")
    if task_index is None:
        return
    unknown = ~np.isin(task_index, list(recording.meta.tasks))
    for position in np.flatnonzero(np.logical_or.reduceat(unknown, recording.start)):
        rows = recording.frames(position)
        frame = int(unknown[rows].argmax())
        yield Finding(int(position), f"task_index {task_index[rows][frame]} has no task")


def task_matches(recording: Recording) -> Iterator[Finding]:
    """The frames' task_index is that of a task which is listed for the episode."""
    for position, texts in enumerate(_frame_tasks(recording)):
        listed = {text.strip() for text in recording.meta.episodes.tasks[position]}
        strange = [text for text in texts if text.strip() not in listed]
        if listed and strange:
            yield Finding(
                position,
                f"the frames have the task {short(strange[0])}, listed for the episode is "
                f"{short(next(iter(recording.meta.episodes.tasks[position])))}",
            )


def task_instructive(recording: Recording) -> Iterator[Finding]:
    """The task is an instruction, where most episodes of the dataset have one."""
    tasks = _episode_tasks(recording)
    poor = [position for position, text in enumerate(tasks) if not is_instruction(text)]
    if 2 * len(poor) < len(tasks):
        for position in poor:
            yield Finding(position, f"the task text {short(tasks[position])} is no instruction")


def task_shared(recording: Recording) -> Iterator[Finding]:
    """No episode alone has another task than all the others, which share theirs."""
    tasks = _episode_tasks(recording)
    times = Counter(tasks).most_common()
    if len(times) == 2 and times[1][1] == 1 and times[0][1] >= OTHERS:
        (usual, count), (other, _) = times
        if is_instruction(other):
            text = f"its task is {short(other)}, that of the other {count} is {short(usual)}"
            yield Finding(tasks.index(other), text)


def frames_numbered(recording: Recording) -> Iterator[Finding]:
    """The column frame_index counts the frames of an episode from 0."""
    numbers = recording.columns.get("frame_index")
    if numbers is None:
        return
    expected = np.arange(len(numbers)) - np.repeat(recording.start, recording.length)
    wrong = numbers != expected
    for position, frame in _first(recording, wrong):
        found = numbers[recording.frames(position)][frame]
        yield Finding(position, f"frame_index is {found} in frame {frame}", frame)


def index_continues(recording: Recording) -> Iterator[Finding]:
    """The column index counts on from frame to frame, also from one episode to the next."""
    numbers = recording.columns.get("index")
    if numbers is None:
        return
    wrong = np.diff(numbers, prepend=numbers[:1] - 1) != 1
    # Between episodes that do not follow each other, as after a deletion, a gap is right.
    follows = np.diff(recording.meta.episodes.episode_index, prepend=-2) == 1
    wrong[recording.start] &= follows
    for position, frame in _first(recording, wrong):
        row = int(recording.start[position]) + frame
        text = f"index goes from {numbers[row - 1]} to {numbers[row]} in frame {frame}"
        yield Finding(position, text, frame)


def episode_numbered(recording: Recording) -> Iterator[Finding]:
    """The column episode_index in an episode's own file has the number in the file's name."""
    numbers = recording.columns.get("episode_index")
    if numbers is None:
        return
    wrong = numbers != np.repeat(recording.meta.episodes.episode_index, recording.length)
    for position, frame in _first(recording, wrong):
        found = numbers[recording.frames(position)][frame]
        number = recording.meta.episodes.episode_index[position]
        yield Finding(position, f"the file of episode {number} has episode_index {found}")


def rows_as_listed(recording: Recording) -> Iterator[Finding]:
    """The rows that meta/episodes gives an episode are as many as its frames, and come after those before."""
    rows = recording.meta.episodes.rows
    if rows is None:
        return
    begin, end = rows.T
    long = end - begin != recording.length
    index = recording.columns.get("index")
    away = np.zeros(len(rows), bool) if index is None else index[recording.start] != begin
    follows = np.diff(recording.meta.episodes.episode_index, prepend=-2) == 1
    apart = follows & (begin != np.roll(end, 1))
    for position in np.flatnonzero(long | away | apart).tolist():
        text = f"rows {begin[position]} to {end[position]} are listed"
        if long[position]:
            text += f", it has {recording.length[position]} frames"
        elif index is not None and away[position]:
            text += f", its index begins at {index[recording.start[position]]}"
        else:
            text += f", those of the episode before end at {end[position - 1]}"
        yield Finding(position, text)


def statistics_match(recording: Recording) -> Iterator[Finding]:
    """Recorded statistics of action and state are those of the values."""
    recorded = read_statistics(recording.meta)
    whole = recording.meta.info.total_episodes == len(recording.length)
    for name in (ACTION, STATE):
        values = recording.columns[name].astype(np.float64)
        low, high, mean = (
            np.minimum.reduceat(values, recording.start),
            np.maximum.reduceat(values, recording.start),
            np.add.reduceat(values, recording.start) / recording.length[:, None],
        )
        if name in recorded.episodes:
            for position, text in _stale(recorded.episodes[name], Statistics(low, high, mean)):
                yield Finding(position, f"the statistics of {name} are stale: {text}")
        if whole and name in recorded.dataset:
            actual = Statistics(low.min(0)[None], high.max(0)[None], values.mean(0)[None])
            for _, text in _stale(recorded.dataset[name], actual):
                yield Finding(0, f"the statistics of {name} in meta/stats.json are stale: {text}")


def _stale(recorded: Statistics, actual: Statistics) -> Iterator[tuple[int, str]]:
    """Positions where recorded statistics are not the actual ones, each with the largest difference."""
    if recorded.low.shape != actual.low.shape:
        return
    allowed = ROUNDING + STATISTICS_TOLERANCE * (actual.high - actual.low)
    kinds = {"smallest": "low", "largest": "high", "mean": "mean"}
    said, is_now = (np.stack([getattr(each, name) for name in kinds.values()]) for each in (recorded, actual))
    # What is not recorded is NaN, and differs from nothing.
    excess = np.nan_to_num(np.abs(said - is_now) / allowed, nan=0.0, posinf=np.inf)
    for position in np.flatnonzero((excess > 1).any(axis=(0, 2))).tolist():
        kind, joint = np.unravel_index(excess[:, position].argmax(), excess[:, position].shape)
        place = kind, position, joint
        word = list(kinds)[kind]
        yield (
            position,
            f"{word} value {short(float(said[place]))} of number {joint}, now {is_now[place]:.6g}",
        )


def _frame_tasks(recording: Recording) -> list[list[str]]:
    """The distinct listed texts of each episode's frames; empty where no task_index is recorded."""
    task_index, tasks = recording.columns.get("task_index"), recording.meta.tasks
    if task_index is None:
        return [[] for _ in recording.length]
    first = task_index[recording.start]
    alike = np.repeat(first, recording.length) == task_index
    one = np.logical_and.reduceat(alike, recording.start)
    found = [
        [number] if single else np.unique(task_index[recording.frames(position)]).tolist()
        for position, (number, single) in enumerate(zip(first.tolist(), one.tolist(), strict=True))
    ]
    return [[tasks[number] for number in numbers if number in tasks] for numbers in found]


def _episode_tasks(recording: Recording) -> list[str]:
    """Each episode's first task: the listed one, else that of its frames, else "" """
    listed = recording.meta.episodes.tasks
    pairs = zip(listed, _frame_tasks(recording), strict=True)
    return [next(iter([*texts, *of_frames]), "").strip() for texts, of_frames in pairs]


def _first(recording: Recording, wrong: np.ndarray) -> Iterator[tuple[int, int]]:
    """The positions of the episodes with wrong frames (bool [F]), each with its first wrong frame."""
    if wrong.any():
        for position in np.flatnonzero(np.logical_or.reduceat(wrong, recording.start)).tolist():
            yield position, int(wrong[recording.frames(position)].argmax())
