"""Facts of made-up datasets for the rules of the catalogue: a good one, and what can be wrong with it."""

import dataclasses
from pathlib import Path

import numpy as np

from depi.catalog.facts import Facts
from depi.catalog.inspect import gather_joints, judge_tables
from depi.datasets.judging.offsets import Offsets
from depi.datasets.recording.formats import DatasetMeta, Episodes, VideoTable, parse_info
from depi.datasets.recording.joints import JOINTS as JOINT_NAMES
from depi.datasets.recording.tables import Tables

JOINTS = [f"{joint}.pos" for joint in JOINT_NAMES]


def info_json(**changes) -> dict:
    vector = {"dtype": "float32", "shape": [6], "names": JOINTS}
    index = {"dtype": "int64", "shape": [1], "names": None}
    camera = {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
    info = {
        "codebase_version": "v2.1",
        "robot_type": "so101_follower",
        "total_episodes": 2,
        "total_frames": 200,
        "fps": 30,
        "features": {
            "action": vector,
            "observation.state": vector,
            "observation.images.front": camera,
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            "frame_index": index,
            "episode_index": index,
            "index": index,
            "task_index": index,
        },
    }
    return {**info, **changes}


def with_features(**changes) -> dict:
    """info.json with features changed, or removed where the value is None."""
    features = {**info_json()["features"], **changes}
    return info_json(features={name: value for name, value in features.items() if value is not None})


def good_facts(info: dict | None = None) -> Facts:
    """Facts of a dataset that passes every rule: 2 episodes of 100 frames, normalised joints."""
    data = tuple(f"data/chunk-000/episode_{number:06d}.parquet" for number in range(2))
    video = tuple(f"videos/chunk-000/observation.images.front/episode_{n:06d}.mp4" for n in range(2))
    files = dict.fromkeys(("meta/info.json", "meta/episodes.jsonl", "meta/tasks.jsonl", *data, *video), 1000)
    facts = Facts(repo_id="ann/pick_cube", revision="a" * 40, files=files, tags=("LeRobot", "so101"))
    facts.info = parse_info(info or info_json())
    facts.tasks = ("Pick up the red cube.",)
    facts.episode_length = np.array([100, 100])
    facts.data_files, facts.video_files = data, video
    columns: dict[str, np.ndarray] = {"task_index": np.zeros(200, np.int64)}
    facts.meta = meta_of(facts, data, {"observation.images.front": video})
    facts.tables, facts.table_rows = Tables(facts.meta, columns, {}), 200
    wave = np.sin(np.linspace(0, 9, 200))[:, None] * np.array([30, 50, 40, 20, 10, 40])
    action = (wave + np.array([0, -20, 10, 5, 0, 50])).astype(np.float32)
    # The elbow gets to its stop, twice: only normalised values rest there.
    action[:, 2] = np.clip(10 + 2.5 * (action[:, 2] - 10), None, 100)
    columns["action"] = action
    columns["observation.state"] = later(action, 3)  # the arm comes after its leader
    columns["timestamp"] = np.tile(np.arange(100) / 30, 2).astype(np.float32)
    if "action" in facts.info.features:
        rejudge(facts)
    return facts


def later(values: np.ndarray, frames: int) -> np.ndarray:
    """The values so many frames later: negative ones are earlier."""
    return values[np.clip(np.arange(len(values)) - frames, 0, len(values) - 1)]


def rejudge(facts: Facts) -> Facts:
    """Find all that follows from the values in the tables."""
    facts.meta = meta_of(facts, facts.data_files, {"observation.images.front": facts.video_files})
    facts.tables = dataclasses.replace(facts.tables, meta=facts.meta)
    for name in ("good", "motion"):
        vars(facts).pop(name, None)
    judge_tables(facts)
    gather_joints(facts)
    return facts


def meta_of(facts: Facts, data: tuple[str, ...], videos: dict[str, tuple[str, ...]]) -> DatasetMeta:
    """Metadata whose episodes lie in these files: in one for each, or all in the same one."""
    count = len(facts.episode_length)

    def place(paths):
        return paths, np.arange(count, dtype=np.int32) % len(paths)

    tables = {
        key: VideoTable(*place(paths), np.zeros(count), np.ones(count)) for key, paths in videos.items()
    }
    episodes = Episodes(np.arange(count), facts.episode_length, (facts.tasks,) * count, *place(data), tables)
    return DatasetMeta(facts.repo_id, facts.revision, Path(), facts.info, {0: facts.tasks[0]}, episodes)


def changed(**fields) -> Facts:
    facts = good_facts()
    for name, value in fields.items():
        setattr(facts, name, value)
    return facts


def without_file(path: str) -> Facts:
    facts = good_facts()
    del facts.files[path]
    return facts


def with_value(column: str, place, value: float) -> Facts:
    facts = good_facts()
    facts.tables.columns[column][place] = value
    return rejudge(facts)


def with_size(path: str, size: int) -> Facts:
    facts = good_facts()
    facts.files[path] = size
    return facts


def frozen_state() -> Facts:
    return recorded(state=np.tile(np.float32([1, 2, 3, 4, 5, 6]), (200, 1)))


def barely_moving() -> Facts:
    facts = good_facts()
    facts.good = dataclasses.replace(facts.good, state=np.linspace(0, 0.4, 200)[:, None] * np.ones(6))
    return facts


def recorded(action=None, state=None, timestamp=None, length=(100, 100)) -> Facts:
    """Facts of other values in the tables, and all that follows from them."""
    facts = good_facts()
    for name, values in (("action", action), ("observation.state", state), ("timestamp", timestamp)):
        if values is not None:
            facts.tables.columns[name] = values
    facts.episode_length = np.array(length)
    facts.info = dataclasses.replace(facts.info, total_episodes=len(length))
    return rejudge(facts)


def episodes_bad(number: int, of: int) -> Facts:
    """So many episodes of 50 frames with a number that is none."""
    facts = good_facts()
    columns = {name: np.concatenate([values[10:60]] * of) for name, values in facts.tables.columns.items()}
    facts.tables = dataclasses.replace(facts.tables, columns=columns)
    for name in ("action", "observation.state"):
        facts.tables.columns[name][:, 0] += 5 * np.repeat(np.arange(of), 50)  # no two are the same
    facts.tables.columns["action"][np.arange(number) * 50, 0] = np.nan
    facts.tables.columns["timestamp"] = np.tile(np.arange(50) / 30, of)
    facts.episode_length = np.full(of, 50)
    facts.info = dataclasses.replace(facts.info, total_episodes=of, total_frames=50 * of)
    return rejudge(facts)


def late_state(frames: int) -> Facts:
    """The state repeats the action's motion so many frames later: negative ones are earlier."""
    return recorded(state=later(good_facts().tables.columns["action"], frames))


def unrelated_state() -> Facts:
    """What moves has nothing to do with what is commanded."""
    facts = good_facts()
    facts.motion = dataclasses.replace(facts.motion, follow=0.02, lag=None)
    return facts


def commands_off_by(degrees: float) -> Facts:
    """Leader and follower whose pan is calibrated unlike."""
    facts = good_facts()
    offsets = Offsets((degrees, 0, 0, 0, 0, 0), matters=(True, *(False,) * 5))
    facts.motion = dataclasses.replace(facts.motion, offsets=offsets)
    return facts


def some_joints_moving() -> Facts:
    action = good_facts().tables.columns["action"] * np.float32([0, 0.5, 1, 0, 0, 1])
    return recorded(action, later(action, 3))


def gripper_moving(by: float) -> Facts:
    facts = good_facts()
    for name in ("action", "observation.state"):
        facts.tables.columns[name][:, 5] = np.linspace(50, 50 + by, 200)
    return rejudge(facts)


def contradictory() -> Facts:
    """Names of after the change, values of neither kind."""
    facts = good_facts()
    facts.tables.columns["action"][::10, 0] = 500.0
    return rejudge(facts)


def in_degrees() -> Facts:
    facts = good_facts()
    facts.detection = dataclasses.replace(facts.detection, convention="degrees")
    return facts


def calibrated() -> Facts:
    """Normalised joints whose half ranges the encoder shows."""
    facts = good_facts()
    facts.detection = dataclasses.replace(facts.detection, half_range=(110.0, 103.0, 97.0, 101.0, 170.0))
    return facts


def with_tasks_alone(*tasks: str) -> Facts:
    """No camera, and these task texts."""
    facts = good_facts(with_features(**{"observation.images.front": None}))
    facts.tasks = tasks
    return facts
