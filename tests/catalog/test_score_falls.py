"""The score against planted faults: the clean copy of a recording has a better one than any other."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from catalog_facts import info_json

from depi.catalog.catalogue import Row
from depi.catalog.motion import measure_motion
from depi.catalog.score import score
from depi.datasets.judging.examine import examine, keep
from depi.datasets.judging.faults import Fault, bad_episodes
from depi.datasets.judging.rules import MOTION
from depi.datasets.recording.formats import DatasetMeta, Episodes, parse_info

EPISODES, FPS = 12, 30
STEP = 360 / 4096
LOW = np.array([-90, -80, -70, -80, -150, 2])
HIGH = np.array([90, 80, 80, 80, 150, 90])
TASK = "pick up the cube"


@dataclasses.dataclass
class Take:
    """One episode as a recorder has it: degrees float64 [n, 6], seconds [n]."""

    action: np.ndarray
    state: np.ndarray
    time: np.ndarray
    task: str = TASK
    listed: str | None = None
    frame_index: np.ndarray | None = None
    lost: bool = False


def hand(random: np.random.Generator) -> np.ndarray:
    """The path of a hand: smooth moves between places, pauses, a gripper that closes and opens."""
    here, pieces = (LOW + HIGH) / 2 + random.normal(0, 5, 6), []
    for _ in range(random.integers(5, 8)):
        there = random.uniform(0.8 * LOW, 0.8 * HIGH)
        there[5] = random.choice([5.0, 60.0])
        time = np.linspace(0, 1, random.integers(25, 50))[:, None]
        pieces.append(here + (there - here) * (10 * time**3 - 15 * time**4 + 6 * time**5))
        pieces.append(np.repeat(there[None], random.integers(2, 15), axis=0))
        here = there
    return np.concatenate(pieces)


def takes(seed: int) -> list[Take]:
    random = np.random.default_rng(seed)
    found = []
    for _ in range(EPISODES):
        path = hand(random)
        sag = path + random.normal(0, 0.15, path.shape)
        late = np.concatenate([np.repeat(sag[:1], 3, axis=0), sag[:-3]])
        found.append(Take(path, late, np.arange(len(path)) / FPS))
    return found


def judged(recorded: list[Take]) -> tuple[Row, list[Fault]]:
    """The row of a catalogue, from the verdict on the episodes and the motion of the good ones."""
    tasks = list(dict.fromkeys(take.task for take in recorded))
    length = np.array([len(take.time) for take in recorded])
    info = parse_info(info_json(total_episodes=len(recorded), total_frames=int(length.sum()), fps=FPS))
    listed = tuple((take.listed or take.task,) for take in recorded)
    place = np.arange(len(recorded), dtype=np.int32)
    files = tuple(f"data/{number}.parquet" for number in place)
    episodes = Episodes(place.astype(np.int64), length, listed, files, place, {})
    meta = DatasetMeta("a/b", None, Path("absent"), info, dict(enumerate(tasks)), episodes)
    columns = {
        "action": on_lattice([take.action for take in recorded]),
        "observation.state": on_lattice([take.state for take in recorded]),
        "timestamp": np.concatenate([take.time for take in recorded]).astype(np.float32),
        "task_index": np.repeat([tasks.index(take.task) for take in recorded], length),
        "frame_index": np.concatenate(
            [np.arange(len(take.time)) if take.frame_index is None else take.frame_index for take in recorded]
        ),
    }
    there = np.array([not take.lost for take in recorded])
    unread = [Fault("files_there", int(number), "missing", True) for number in place[~there]]
    if unread:
        rows = np.repeat(there, length)
        columns = {name: values[rows] for name, values in columns.items()}
        kept = dataclasses.replace(
            episodes,
            **{name: getattr(episodes, name)[there] for name in ("episode_index", "length", "data_file")},
            tasks=tuple(texts for texts, whole in zip(listed, there, strict=True) if whole),
        )
        meta = dataclasses.replace(meta, episodes=kept)
    examined = examine(meta, columns, "degrees", unread=unread)
    bad = bad_episodes(examined.faults)
    recording = examined.recording
    good = keep(recording, ~np.isin(recording.meta.episodes.episode_index, list(bad)), bad)
    motion = measure_motion(good.action, good.state, good.length, FPS)
    row = Row(
        *("a/b", "accepted"),
        episodes=len(recorded),
        frames=int(length.sum()),
        num_cameras=2,
        camera_sizes=["640x480"],
        tasks=tasks,
        idle=motion.idle,
        smoothness=motion.smoothness,
        bad_episodes=len(bad),
        good_frames=good.meta.num_frames,
        num_remarks=sum(not fault.leaves_out for fault in examined.faults),
    )
    return row, list(examined.faults)


def on_lattice(values: list[np.ndarray]) -> np.ndarray:
    """As an encoder reads them."""
    return (np.round(np.concatenate(values) / STEP) * STEP).astype(np.float32)


def joined(*parts: Take) -> Take:
    action, state = (np.concatenate([getattr(part, name) for part in parts]) for name in ("action", "state"))
    return Take(action, state, np.arange(len(action)) / FPS)


def resting(take: Take, frame: int, seconds: float) -> Take:
    """The arm at rest where it is in that frame."""
    count = round(seconds * FPS)
    action, state = (np.repeat(values[frame][None], count, axis=0) for values in (take.action, take.state))
    return Take(action, state, np.arange(count) / FPS)


def late_start(take: Take, random: np.random.Generator) -> Take:
    return joined(resting(take, 0, 8), take)


def late_end(take: Take, random: np.random.Generator) -> Take:
    return joined(take, resting(take, -1, 8))


def still(take: Take, random: np.random.Generator) -> Take:
    return resting(take, 0, len(take.time) / FPS)


def frozen_state(take: Take, random: np.random.Generator) -> Take:
    state = take.state.copy()
    state[60:130] = state[60]
    return dataclasses.replace(take, state=state)


def dead_joint(take: Take, random: np.random.Generator) -> Take:
    state = take.state.copy()
    state[:, 1] = state[0, 1]
    return dataclasses.replace(take, state=state)


def jitter(take: Take, random: np.random.Generator) -> Take:
    action, state = (values + random.normal(0, 4, values.shape) for values in (take.action, take.state))
    return dataclasses.replace(take, action=action, state=state)


def teleport(take: Take, random: np.random.Generator) -> Take:
    action, state = (np.delete(values, slice(50, 110), axis=0) for values in (take.action, take.state))
    return Take(action, state, np.arange(len(action)) / FPS)


def spikes(take: Take, random: np.random.Generator) -> Take:
    state = take.state.copy()
    state[[40, 77, 101], 2] += 80
    return dataclasses.replace(take, state=state)


def reversed_joint(take: Take, random: np.random.Generator) -> Take:
    return dataclasses.replace(take, state=take.state * [-1, 1, 1, 1, 1, 1])


def moved_zero(take: Take, random: np.random.Generator) -> Take:
    return dataclasses.replace(take, state=take.state + np.array([0, 40, 0, 0, 0, 0]))


def late_state(take: Take, random: np.random.Generator) -> Take:
    return dataclasses.replace(take, state=np.roll(take.state, 25, axis=0))


def early_state(take: Take, random: np.random.Generator) -> Take:
    return dataclasses.replace(take, state=np.roll(take.state, -12, axis=0))


def lost_frames(take: Take, random: np.random.Generator) -> Take:
    kept = np.delete(np.arange(len(take.time)), slice(60, 75))
    return Take(take.action[kept], take.state[kept], take.time[kept])


def slow_clock(take: Take, random: np.random.Generator) -> Take:
    return dataclasses.replace(take, time=2 * take.time)


def too_short(take: Take, random: np.random.Generator) -> Take:
    return Take(take.action[:6], take.state[:6], take.time[:6])


def no_number(take: Take, random: np.random.Generator) -> Take:
    action = take.action.copy()
    action[20, 3] = np.nan
    return dataclasses.replace(take, action=action)


def no_task(take: Take, random: np.random.Generator) -> Take:
    return dataclasses.replace(take, task="")


def other_task(take: Take, random: np.random.Generator) -> Take:
    return dataclasses.replace(take, task="fold the towel")


def wrong_task(take: Take, random: np.random.Generator) -> Take:
    return dataclasses.replace(take, listed="fold the towel")


def misnumbered(take: Take, random: np.random.Generator) -> Take:
    return dataclasses.replace(take, frame_index=np.arange(len(take.time)) + 5)


def lost_file(take: Take, random: np.random.Generator) -> Take:
    return dataclasses.replace(take, lost=True)


CONTENTS = [no_number, no_task, other_task, wrong_task, misnumbered, lost_file]
STILLNESS = [late_start, late_end, still]
OTHERS = [
    *(frozen_state, dead_joint, jitter, teleport, spikes, reversed_joint, moved_zero),
    *(late_state, early_state, lost_frames, slow_clock, too_short),
]
needs_motion = pytest.mark.skipif(not MOTION, reason="the rules about motion are not here")


def planted(plant: Callable, seed: int, count: int) -> list[Take]:
    random = np.random.default_rng(100 + seed)
    recorded = takes(seed)
    for position in random.choice(EPISODES, count, replace=False):
        recorded[position] = plant(recorded[position], random)
    return recorded


@pytest.fixture(scope="module")
def clean() -> dict[int, float]:
    """Seed -> the score of the clean set; no rule finds anything in it."""
    scores = {}
    for seed in range(3):
        row, faults = judged(takes(seed))
        assert faults == []
        scores[seed] = score(row)
    return scores


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "plant", [*CONTENTS, *STILLNESS, *(pytest.param(x, marks=needs_motion) for x in OTHERS)]
)
def test_a_fault_of_episodes_costs_score(clean, plant, seed, count):
    if plant is other_task and count > 1:
        pytest.skip("two tasks in one dataset are no fault")
    row, faults = judged(planted(plant, seed, count))
    assert score(row) < clean[seed], faults


@needs_motion
@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("seed", range(3))
def test_episodes_that_are_there_twice_cost_score(clean, seed, count):
    recorded = takes(seed)
    row, faults = judged([*recorded, *recorded[:count]])
    assert score(row) < clean[seed], faults


@pytest.mark.parametrize("seed", range(3))
def test_still_episodes_beside_the_others_cost_score(clean, seed):
    recorded = takes(seed)
    row, _ = judged([*recorded, *(still(take, np.random.default_rng()) for take in recorded[:4])])
    assert score(row) < clean[seed]


@pytest.mark.parametrize("seed", range(3))
def test_more_good_episodes_are_worth_more(clean, seed):
    row, _ = judged([*takes(seed), *takes(seed + 50)])
    assert score(row) > clean[seed]
    fewer, _ = judged(takes(seed)[:6])
    assert score(fewer) < clean[seed]
