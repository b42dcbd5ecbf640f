"""What a rule about episodes looks at, and what it finds.

A rule is a function of a `Recording` that yields a `Finding` for each episode in which it finds a fault, with
the numbers in a sentence; its docstring is the help. `depi.datasets.judging.rules` lists all rules.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from depi.datasets.judging.movement import Movement
from depi.datasets.recording.formats import DatasetMeta
from depi.datasets.recording.joints import Detection


@dataclass(frozen=True)
class Recording:
    """The numbers of a recording: F frames in E episodes, one after another in the order of `meta.episodes`.

    meta: of these episodes only
    columns: as recorded: `action`, `observation.state` float32 [F, D], `timestamp` float32 [F] in seconds;
        `task_index`, `frame_index`, `index` int64 [F] where they are recorded, and `episode_index` where each
        episode has a file of its own
    action, state: float32 [F, 6] in canonical degrees, the gripper 0 to 100; of a robot that is no SO-100,
        and for the rules that are asked before the joint convention is known, as recorded and of any width
    detection: the joint convention; None while it is not known
    """

    meta: DatasetMeta
    columns: Mapping[str, np.ndarray]
    action: np.ndarray
    state: np.ndarray
    detection: Detection | None = None

    @property
    def fps(self) -> float:
        """Frames per second, as declared."""
        return self.meta.info.fps

    @property
    def time(self) -> np.ndarray:
        """Seconds since the start of each frame's episode, float32 [F]."""
        return self.columns["timestamp"]

    @property
    def length(self) -> np.ndarray:
        """Frames of each episode, int64 [E]."""
        return self.meta.episodes.length

    @cached_property
    def start(self) -> np.ndarray:
        """The first frame of each episode, int64 [E]."""
        return np.cumsum(self.length) - self.length

    @cached_property
    def inside(self) -> np.ndarray:
        """Whether a frame and the one before it are of the same episode, bool [F]."""
        inside = np.ones(int(self.length.sum()), bool)
        inside[self.start] = False
        return inside

    @cached_property
    def usual_step(self) -> np.ndarray:
        """The median time between frames of each episode, in seconds [E]; of a single frame as declared."""
        step, steps = np.diff(self.time), zip(self.start, self.length, strict=True)
        usual = [np.median(step[first : first + n - 1]) if n > 1 else 1 / self.fps for first, n in steps]
        return np.array(usual, np.float64)

    @cached_property
    def movement(self) -> Movement:
        """How the arm moves; for rules that know its joints."""
        return Movement.of(self.action, self.state, self.length, self.fps)

    def frames(self, position: int) -> slice:
        """The frames of the episode at a position."""
        first = int(self.start[position])
        return slice(first, first + int(self.length[position]))


@dataclass(frozen=True)
class Finding:
    """A fault of one episode.

    position: of the episode in `Recording.meta.episodes`
    text: what is wrong, with the numbers, in one sentence without a full stop
    begin, end: the frames in which it shows, counted from the episode's start, `end` not included; None for
        the whole episode
    """

    position: int
    text: str
    begin: int | None = None
    end: int | None = None


Check = Callable[[Recording], Iterable[Finding]]


@dataclass(frozen=True)
class EpisodeRule:
    """A rule about episodes.

    leaves_out: an episode with such a fault is bad: it is not trained on by default. Else the fault is a
        remark.
    """

    check: Check
    leaves_out: bool = True

    @property
    def name(self) -> str:
        """What the rule is called in reasons and flags."""
        return self.check.__name__


@dataclass(frozen=True)
class Fault:
    """A finding with its rule, of an episode by its recorded number; see `Finding` and `EpisodeRule`."""

    rule: str
    episode: int
    text: str
    leaves_out: bool
    begin: int | None = None
    end: int | None = None

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


def find_faults(recording: Recording, rules: Iterable[EpisodeRule]) -> list[Fault]:
    """The faults of a recording's episodes, rule by rule."""
    numbers = recording.meta.episodes.episode_index
    return [
        Fault(rule.name, int(numbers[found.position]), found.text, rule.leaves_out, found.begin, found.end)
        for rule in rules
        for found in rule.check(recording)
    ]


def bad_episodes(faults: Iterable[Fault]) -> dict[int, str]:
    """The episodes to leave out, by recorded number, each with its first fault."""
    bad: dict[int, str] = {}
    for fault in faults:
        if fault.leaves_out:
            bad.setdefault(fault.episode, str(fault))
    return bad
