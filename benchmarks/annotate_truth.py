"""Simulated datasets of which everything is known, and how right annotations of them are."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from depi.sim.community import Contributor, record_community
from depi.sim.setup import CAMERA_KINDS, COLORS, TABLES, Camera, Setup
from depi.sim.tasks import TASKS

# What people leave in the field when a program asks for a task.
JUNK = (
    "test",
    "",
    "asdf",
    "my first dataset",
    "recording 3",
    "TODO",
    "Fold the sock.",
    "none",
)
CAMERA_NAMES = ("cam_a", "image2", "camera1", "video0")
CUBES = ("red", "green", "blue", "orange", "purple")

# Words by which an instruction names a goal. Who picks up also reaches and touches, and who places also
# picks up: the furthest goal that is named counts. None of the tasks goes beyond lifting.
VERBS = (
    (
        "beyond",
        ("place", "put", "drop", "push", "stack", "insert", "throw", "fold", "pour"),
    ),
    ("pick_lift", ("pick", "lift", "grasp", "grab", "raise", "take", "hold")),
    ("touch", ("touch", "tap", "poke", "contact", "reach")),
)
OBJECTS = ("cube", "block", "box", "square")
SAME_COLOR = {"grey": "gray", "violet": "purple", "magenta": "purple"}
ATTRIBUTES = ("goal", "object", "color")

_WORD = re.compile(r"[a-z]+")
_REACH = 3  # words before the object within which its colour stands: "the small bright red cube"


@dataclass(frozen=True)
class Truth:
    """What an episode shows.

    goal: the simulator's name of the task
    color: of the cube
    views: camera key -> view
    """

    goal: str
    color: str
    views: Mapping[str, str]

    @property
    def instruction(self) -> str:
        """The simulator's own text."""
        return TASKS[self.goal].text.format(color=self.color)


def contributors(
    count: int, episodes: int, seed: int = 0, size: tuple[int, int] = (320, 240)
) -> list[Contributor]:
    """Rigs that differ in goal, colour, table and cameras, with texts and camera names that say nothing.

    Args:
        count: of the datasets.
        episodes: of each.
        seed: the same one gives the same datasets.
        size: width and height of the pictures.
    """
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        kinds = rng.permutation(CAMERA_KINDS)[: rng.integers(1, 4)]
        names = rng.permutation(CAMERA_NAMES)[: len(kinds)]
        setup = Setup(
            cameras=tuple(
                Camera(
                    str(name),
                    str(kind),
                    azimuth=float(rng.uniform(-12, 12)),
                    elevation=float(rng.uniform(-6, 6)),
                )
                for name, kind in zip(names, kinds, strict=True)
            ),
            width=size[0],
            height=size[1],
            fps=10,
            format=("v3.0", "v2.1")[number % 2],
            codec="h264",
            task_text=JUNK[number % len(JUNK)],
            object_color=CUBES[int(rng.integers(len(CUBES)))],
            robot_color=("yellow", "white", "black")[int(rng.integers(3))],
            table=list(TABLES)[int(rng.integers(4))],
        )
        goal = list(TASKS)[number // 2 % len(TASKS)]
        repo_id = f"bench/sim_{number:03d}"
        found.append(Contributor(repo_id, goal, setup, episodes, seed=1000 * (seed + 1) + 50 * number))
    return found


def truth_of(contributor: Contributor) -> Truth:
    """What the recordings of a contributor show."""
    views = {f"observation.images.{camera.name}": camera.kind for camera in contributor.setup.cameras}
    return Truth(contributor.task, contributor.setup.object_color, views)


def record(root: Path, rigs: Sequence[Contributor]) -> None:
    """Record those of the datasets to `root/user/name` that are not there yet."""
    missing = [rig for rig in rigs if not (root / rig.repo_id / "meta/info.json").exists()]
    if missing:
        record_community(root, missing)


def attributes_right(text: str | None, truth: Truth) -> dict[str, bool]:
    """Which of ATTRIBUTES an instruction says rightly.

    goal: the furthest goal of which it names a verb, as in VERBS, is this one.
    object: it names the cube, by one of OBJECTS.
    color: the last colour within three words before the object is the cube's; if there is none, the
        only colour that is named at all.
    """
    words = [SAME_COLOR.get(word, word) for word in _WORD.findall((text or "").lower())]
    goal = next((goal for goal, verbs in VERBS if set(verbs) & set(words)), None)
    place = next((index for index, word in enumerate(words) if word in OBJECTS), None)
    near = [] if place is None else words[max(0, place - _REACH) : place]
    colors = [word for word in near if word in COLORS]
    everywhere = {word for word in words if word in COLORS}
    if not colors and len(everywhere) == 1:
        colors = list(everywhere)
    return {
        "goal": goal == truth.goal,
        "object": place is not None,
        "color": bool(colors) and colors[-1] == truth.color,
    }


@dataclass(frozen=True)
class Calibration:
    """How far confidence and truth are apart.

    error: expected calibration error over ten bins of equal width: the mean over episodes of
        |share right - mean confidence| of their bin (Guo et al. 2017, "On Calibration of Modern Neural
        Networks", section 2)
    bins: (lower edge, episodes, mean confidence, share right) of each bin that is not empty
    """

    error: float
    bins: tuple[tuple[float, int, float, float], ...]


def calibration(confidence: Iterable[float], right: Iterable[bool], bins: int = 10) -> Calibration:
    """Compare confidences, 0..1, with what turned out right."""
    said, found = np.array(list(confidence), float), np.array(list(right), float)
    place = np.minimum((said * bins).astype(int), bins - 1)
    rows, total = [], 0.0
    for number in np.unique(place):
        inside = place == number
        mean, share = said[inside].mean(), found[inside].mean()
        total += inside.sum() * abs(share - mean)
        rows.append((float(number / bins), int(inside.sum()), float(mean), float(share)))
    return Calibration(float(total / len(said)) if len(said) else 0.0, tuple(rows))
