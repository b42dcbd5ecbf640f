"""Defects of strangers' recordings, each at three strengths, planted into a copy of a clean set.

Written apart from the rules that look for them, and not to be tuned against them. A kind is a function of a
`Copy` and an amount; it returns the episodes that it spoils, or none where the set as a whole is spoilt.
Units: one unit is a degree, or one of the 100 of a normalised joint.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np
from clean_sets import CAMERAS, Episode, RecordedSet, decode, encode, with_noise

STRENGTHS = ("weak", "middle", "strong")
STEP = 360 / 4096  # of the encoder, degrees; a normalised joint's is nearly the same number
BODY = 5  # joints before the gripper

Frames = np.ndarray
Edit = Callable[[Path], None]


@dataclass
class Copy:
    """A copy of a clean set while a defect is planted.

    folder: where its changed videos go
    edits: done to the written files, for metadata that lies
    """

    set: RecordedSet
    folder: Path
    rng: np.random.Generator
    edits: list[Edit] = field(default_factory=list)

    def draw(self, count: int = 1) -> list[int]:
        """Different episodes, in order."""
        drawn = self.rng.choice(len(self.set.episodes), count, replace=False)
        return sorted(drawn.tolist())

    def one(self) -> tuple[int, Episode]:
        """An episode and its number."""
        (number,) = self.draw()
        return number, self.set.episodes[number]

    def joint(self, episodes: Sequence[int]) -> int:
        """A body joint that moves by 15 units in each of these episodes, or else the one that moves most."""
        moved = np.min([np.ptp(self.set.episodes[n].state[:, :BODY], axis=0) for n in episodes], axis=0)
        good = np.flatnonzero(moved > 15)
        return int(self.rng.choice(good)) if len(good) else int(np.argmax(moved))

    def bound(self, number: int) -> None:
        """Keep an episode's values within what normalised joints can be: LeRobot clips them."""
        if self.set.unit == "normalized":
            for values in (self.set.episodes[number].action, self.set.episodes[number].state):
                np.clip(values, [-100] * BODY + [0], 100, out=values)

    def jitter(self, shape: tuple[int, ...]) -> np.ndarray:
        """The encoder's flicker of one step up or down."""
        return (STEP * self.rng.integers(-1, 2, shape)).astype(np.float32)

    def film(self, number: int, camera: str, change: Callable[[Frames], Frames]) -> None:
        """Give an episode another video: what `change` makes of the frames, uint8 [T, H, W, 3]."""
        videos = self.set.episodes[number].videos
        changed = change(decode(videos[camera]))
        path = self.folder / f"{camera}_{number:02d}.mp4"
        encode(path, changed, self.set.fps, self.set.codec)
        videos[camera] = path

    def take(self, number: int, rows: Sequence[int] | np.ndarray) -> None:
        """Make an episode of these of its frames, in tables and videos; the clock runs on as usual.

        A frame that is taken again has the flicker of encoder and camera.
        """
        episode, rows = self.set.episodes[number], np.asarray(rows)
        again = np.r_[False, rows[1:] == rows[:-1]]
        episode.action, episode.state = episode.action[rows], episode.state[rows]
        episode.state[again] += self.jitter((int(again.sum()), 6))
        episode.time = np.arange(len(rows)) / self.set.fps

        def rearrange(frames: Frames) -> Frames:
            taken = frames[rows]
            taken[again] = with_noise(taken[again], self.rng) if again.any() else taken[again]
            return taken

        for camera in CAMERAS:
            self.film(number, camera, rearrange)


Plant = Callable[[Copy, float], list[int]]


@dataclass(frozen=True)
class Kind:
    """A kind of defect.

    amounts: by strength; says: what each amount means
    changes: what it may change: action, state, time, task, videos; or files, where metadata or files lie
    """

    name: str
    plant: Plant
    amounts: tuple[float, float, float]
    says: tuple[str, str, str]
    changes: frozenset[str]


KINDS: dict[str, Kind] = {}
"""By name, in the order of the modules `plant_*.py`, once `load_kinds` has been called."""


def load_kinds() -> dict[str, Kind]:
    """All kinds."""
    for module in ("plant_motion", "plant_units", "plant_files", "plant_videos"):
        import_module(module)
    return KINDS


def kind(changes: str, weak: tuple, middle: tuple, strong: tuple) -> Callable[[Plant], Plant]:
    """Enter a function in KINDS; each strength is an amount and a sentence."""
    amounts, says = zip(weak, middle, strong, strict=True)

    def enter(plant: Plant) -> Plant:
        KINDS[plant.__name__] = Kind(plant.__name__, plant, amounts, says, frozenset(changes.split()))
        return plant

    return enter


def plant(clean: RecordedSet, name: str, strength: str, folder: Path, seed: int) -> tuple[Copy, list[int]]:
    """Plant a defect into a copy of a clean set; returns the copy and the episodes spoilt."""
    level, which = STRENGTHS.index(strength), zlib.crc32(name.encode())
    copy = Copy(clean.copy(), folder, np.random.default_rng([seed, which, level]))
    found = load_kinds()[name]
    return copy, found.plant(copy, found.amounts[level])
