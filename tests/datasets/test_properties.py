"""Generated datasets of every kind, read by MultiLeRobotDataset and by a slow reader that shares no code."""

import json
import tempfile
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import NAMES, Recording, write_v2, write_v3

from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.errors import UserError

HALF_RANGE = np.array([110.8, 103.5, 97.4, 101.2, 170.2])
CAMERAS = ("front", "laptop", "phone", "wrist")
SIZE = (48, 64)
FEW = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}


class Arm(Recording):
    """A recording in one of the conventions, with the tell-tale that makes it certain."""

    convention = "degrees"

    def joints(self, episode):
        rng = np.random.default_rng((self.seed, episode))
        length = self.lengths[episode]
        values = rng.uniform([-40, 60, 60, -30, -50, 5], [40, 80, 80, 60, 50, 60], (length, 6))
        if episode == 0 and self.convention == "degrees":
            values[:3, [1, 4]] = -60, 130
        if episode == 0 and self.convention == "normalized":
            values[:2, 2] = 100
        if episode == 0 and self.convention == "degrees_v1":
            values[:3, 1] = 190
        if self.convention == "radians":
            values[:, 1:3] = rng.uniform([-100, 75], [-85, 95], (length, 2))  # folded
            values = np.column_stack([np.deg2rad(values[:, :5]), values[:, 5] / 100])
        action = values.astype(np.float32)
        return action, (action * np.float32(0.99)).astype(np.float32)


@st.composite
def arms(draw, convention=None, version=None):
    arm = Arm(
        lengths=tuple(draw(st.lists(st.integers(2, 7), min_size=1, max_size=3))),
        fps=draw(st.sampled_from([10, 15, 25, 30, 50, 60])),
        cameras=tuple(
            f"observation.images.{name}"
            for name in draw(st.lists(st.sampled_from(CAMERAS), min_size=1, max_size=4, unique=True))
        ),
        seed=draw(st.integers(0, 999)),
        size=SIZE,
    )
    arm.convention = convention or draw(st.sampled_from(["degrees", "degrees_v1", "normalized", "radians"]))
    if arm.convention == "radians":
        arm.lengths = (3, *arm.lengths)
    if arm.convention == "degrees_v1":
        arm.names = [f"main_{name.removesuffix('.pos')}" for name in NAMES]
    return arm, version or draw(st.sampled_from(["v2.0", "v2.1"]))


def by_hand(values, convention):
    """Canonical degrees of one row, written out joint by joint."""
    row = [float(value) for value in values]
    if convention == "degrees_v1":
        return [row[0], 90 - row[1], row[2] - 90, *row[3:]]
    if convention == "normalized":
        return [*(value * half / 100 for value, half in zip(row, HALF_RANGE, strict=False)), row[5]]
    if convention == "radians":
        opening = (row[5] + 0.174533) / (1.745329 + 0.174533) * 100
        return [*(value * 180 / np.pi for value in row[:5]), opening]
    return row


def interpolated(actions, position):
    """The action at a fractional row, linear between rows, the last one held."""
    rows = np.arange(len(actions))
    return [np.interp(position, rows, [action[joint] for action in actions]) for joint in range(6)]


class SlowReader:
    """One row after another, one decoded frame after another."""

    def __init__(self, root: Path, convention: str) -> None:
        self.root, self.convention = root, convention
        self.info = json.loads((root / "meta/info.json").read_text())
        cameras = [key for key, feature in self.info["features"].items() if feature["dtype"] == "video"]
        views = ["wrist", "front", "top"]  # "laptop" has a "top" in it
        self.cameras = sorted(
            cameras, key=lambda key: (next((i for i, view in enumerate(views) if view in key), 4), key)
        )
        self.episodes = self._v3() if self.info["codebase_version"] == "v3.0" else self._v2()

    def _v2(self):
        tasks = [json.loads(line) for line in (self.root / "meta/tasks.jsonl").open()]
        texts = {row["task_index"]: row["task"] for row in tasks}
        episodes = []
        for line in (self.root / "meta/episodes.jsonl").open():
            index = json.loads(line)["episode_index"]
            rows = pq.read_table(self.root / f"data/chunk-000/episode_{index:06d}.parquet").to_pylist()
            videos = {
                key: decoded(self.root / f"videos/chunk-000/{key}/episode_{index:06d}.mp4")
                for key in self.cameras
            }
            episodes.append((index, rows, [texts[row["task_index"]] for row in rows], videos))
        return episodes

    def _v3(self):
        table = pq.read_table(self.root / "meta/tasks.parquet").to_pylist()
        texts = {row["task_index"]: row.get("__index_level_0__", row.get("task")) for row in table}
        rows = [
            row
            for file in sorted(self.root.glob("data/*/*.parquet"))
            for row in pq.read_table(file).to_pylist()
        ]
        episodes = []
        for episode in pq.read_table(sorted(self.root.glob("meta/episodes/*/*.parquet"))[0]).to_pylist():
            own = [row for row in rows if row["episode_index"] == episode["episode_index"]]
            videos = {}
            for key in self.cameras:
                chunk, file = (episode[f"videos/{key}/{part}_index"] for part in ("chunk", "file"))
                frames = decoded(self.root / f"videos/{key}/chunk-{chunk:03d}/file-{file:03d}.mp4")
                first = round(episode[f"videos/{key}/from_timestamp"] * self.info["fps"])
                videos[key] = frames[first : first + len(own)]
            episodes.append(
                (episode["episode_index"], own, [texts[row["task_index"]] for row in own], videos)
            )
        return episodes

    def samples(self, chunk, action_freq, slots):
        step = 1 if action_freq is None else self.info["fps"] / action_freq
        for index, rows, tasks, videos in self.episodes:
            actions = [by_hand(row["action"], self.convention) for row in rows]
            for frame, row in enumerate(rows):
                positions = [frame + number * step for number in range(chunk)]
                yield {
                    "state": by_hand(row["observation.state"], self.convention),
                    "action": [interpolated(actions, position) for position in positions],
                    "pad": [position > len(rows) - 1 + 1e-9 for position in positions],
                    "task": tasks[frame],
                    "time": row["timestamp"],
                    "where": (index, frame),
                    "images": [videos[key][frame] for key in self.cameras[:slots]],
                }


def decoded(path: Path) -> list[np.ndarray]:
    """All frames of a video, uint8 [H, W, 3], from first to last."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def compare(sample, expected, slots):
    """Joints to float32, images to what two ways of turning YUV into RGB may differ by."""
    np.testing.assert_allclose(sample["observation.state"], expected["state"], rtol=2e-6, atol=2e-5)
    np.testing.assert_allclose(sample["action"], expected["action"], rtol=2e-6, atol=2e-5)
    assert sample["action_is_pad"].tolist() == expected["pad"]
    assert sample["task"] == expected["task"]
    assert float(sample["timestamp"]) == pytest.approx(expected["time"], abs=1e-6)
    assert (int(sample["episode_index"]), int(sample["frame_index"])) == expected["where"]
    for slot in range(slots):
        image, absent = (sample[f"observation.images.{slot}{end}"] for end in ("", "_is_pad"))
        assert bool(absent) == (slot >= len(expected["images"]))
        if absent:
            assert not image.any()
        else:
            shown = image[:, 8:56].numpy().transpose(1, 2, 0).astype(int)
            assert np.abs(shown - expected["images"][slot]).max() <= 6
            assert not image[:, :8].any()
            assert not image[:, 56:].any()


def check(datasets, chunk, action_freq, slots):
    """Write, open together, and compare sample by sample."""
    with tempfile.TemporaryDirectory() as folder:
        sources, expected = [], []
        for number, (arm, version) in enumerate(datasets):
            root = Path(folder) / f"{number}"
            write_v3(root, arm) if version == "v3.0" else write_v2(root, arm, version)
            sources.append(DatasetSource(f"user/{number}", root=root))
            reader = SlowReader(root, arm.convention)
            expected += [(number, sample) for sample in reader.samples(chunk, action_freq, slots)]
        opened = MultiLeRobotDataset(
            sources, chunk_size=chunk, image_size=64, max_cameras=slots, action_freq=action_freq
        )
        assert len(opened) == len(expected)
        assert [entry["convention"] for entry in opened.report()["datasets"]] == [
            arm.convention for arm, _ in datasets
        ]
        for index, (number, sample) in enumerate(expected):
            compare(opened[index], sample, slots)
            assert int(opened[index]["dataset_index"]) == number


@settings(max_examples=20, **FEW)
@given(
    datasets=st.lists(arms(), min_size=1, max_size=2),
    chunk=st.integers(1, 9),
    action_freq=st.sampled_from([None, 10, 30]),
    slots=st.integers(1, 4),
)
def test_every_v2_sample_is_that_of_a_slow_reader(datasets, chunk, action_freq, slots):
    check(datasets, chunk, action_freq, slots)


@pytest.mark.parametrize("action_freq", [10, 30])
@pytest.mark.parametrize("fps", [10, 15, 25, 30, 50, 60])
def test_resampled_actions_are_those_of_numpy_at_even_times(tmp_path, fps, action_freq):
    """A steady motion stays steady at any rate: no step is longer than another by rounding."""
    arm = Arm(lengths=(64,), fps=fps, cameras=("observation.images.front",), size=SIZE)
    seconds = np.arange(64) / fps
    pan = np.linspace(-50, 50, 64)
    wave = 40 * np.sin(2 * np.pi * seconds)
    columns = [pan, wave, wave / 2, -wave, 120 + wave / 4, 50 + wave]
    action = np.column_stack(columns).astype(np.float32)
    arm.joints = lambda episode: (action, action)
    write_v2(tmp_path / "data", arm)
    source = DatasetSource("a/b", root=tmp_path / "data")
    opened = MultiLeRobotDataset(
        [source], chunk_size=25, image_size=64, max_cameras=1, action_freq=action_freq
    )
    for frame in (0, 1, 17, 40, 63):
        sample = opened[frame]
        # The last actions of a long chunk lie past the episode: there the last one is held.
        wanted = seconds[frame] + np.arange(25) / action_freq
        expected = np.column_stack([np.interp(wanted, seconds, column) for column in action.T])
        np.testing.assert_allclose(sample["action"], expected, rtol=0, atol=2e-4)
        past = wanted > seconds[-1] + 1e-9
        assert sample["action_is_pad"].tolist() == past.tolist()
        steps = np.diff(sample["action"][:, 0][~past].double())
        assert not len(steps) or np.ptp(steps) < 1e-4


def arm_in(convention, **values):
    arm = Arm(lengths=(40,), cameras=("observation.images.front",), size=SIZE, **values)
    arm.convention = convention
    return arm


def test_the_units_of_training_are_those_that_were_asked_for(tmp_path):
    arms_of = {name: arm_in(name) for name in ("degrees", "normalized")}
    sources = [
        DatasetSource(f"user/{name}", root=write_v2(tmp_path / name, arm)) for name, arm in arms_of.items()
    ]
    options = {"chunk_size": 2, "image_size": 64, "max_cameras": 1}
    recorded = {name: arm.joints(0)[1] for name, arm in arms_of.items()}
    degrees = [by_hand(row, name) for name in arms_of for row in recorded[name]]
    opened = MultiLeRobotDataset(sources, **options)
    np.testing.assert_allclose(opened.state, degrees, rtol=1e-5)
    opened = MultiLeRobotDataset(sources, joint_convention="normalized", **options)
    shares = np.array(degrees) / [*(HALF_RANGE / 100), 1]
    np.testing.assert_allclose(opened.state, shares, rtol=1e-5)
    np.testing.assert_allclose(opened.stats["observation.state"]["mean"], shares.mean(axis=0), rtol=1e-4)
    with pytest.raises(UserError, match=r"degrees \(user/degrees\), normalized \(user/normalized\)"):
        MultiLeRobotDataset(sources, joint_convention="native", **options)
    opened = MultiLeRobotDataset(sources[1:], joint_convention="native", **options)
    np.testing.assert_array_equal(opened.state, recorded["normalized"])


def test_a_visible_encoder_makes_a_normalised_recording_exact(tmp_path):
    """Action and state become degrees of the follower, whose steps the state shows."""
    steps = np.array([2688, 2345, 2200, 2234, 4095])
    half = steps / 2 * 360 / 4095
    seconds = np.linspace(0, 1, 600)[:, None]
    degrees = half * np.sin(2 * np.pi * seconds * [1, 2, 3, 1, 2]) * [0.5, 0.9, 1.2, 0.8, 0.3]
    count = np.round(degrees * 4095 / 360 + steps / 2)
    state = np.column_stack([np.clip(count / steps, 0, 1) * 200 - 100, 50 + 40 * seconds]).astype(np.float32)
    arm = arm_in("normalized")
    arm.lengths = (600,)
    arm.joints = lambda episode: (state, state)
    source = DatasetSource("user/arm", root=write_v2(tmp_path / "arm", arm))
    opened = MultiLeRobotDataset([source], chunk_size=1, image_size=64, max_cameras=1)
    clamped = np.clip(degrees, -half, half)
    assert np.abs(opened.state[:, :5] - clamped).max() < 360 / 4095 / 2 + 1e-3
    assert np.abs(opened.action[:, :5] - clamped).max() < 360 / 4095 / 2 + 1e-3
    assert "shoulder_pan 2688" in opened.report()["datasets"][0]["evidence"]


@settings(max_examples=3, **FEW)
@given(
    new=arms(version="v3.0"), old=arms(), chunk=st.integers(1, 9), action_freq=st.sampled_from([None, 10, 30])
)
def test_every_v3_sample_beside_older_data_is_that_of_a_slow_reader(new, old, chunk, action_freq):
    check([new, old], chunk, action_freq, 3)
