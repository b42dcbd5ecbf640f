import json
import logging
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from recordings import NAMES, Recording, number_in, share_video, write_v2, write_v3, write_video

from depi.datasets.recording.cameras import letterbox, slot_order
from depi.datasets.recording.joints import JOINTS, from_degrees
from depi.datasets.recording.metadata import load_meta
from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.datasets.union.opening import recorded_fps
from depi.datasets.union.rows import FramePlaces, action_chunks
from depi.errors import DatasetError, UserError

FRONT, WRIST = "observation.images.front", "observation.images.wrist"


def opened(*roots, **options) -> MultiLeRobotDataset:
    options = {"chunk_size": 4, "image_size": 64, "max_bad_fraction": 0.5} | options
    return MultiLeRobotDataset([DatasetSource(f"user/{root.name}", root=root) for root in roots], **options)


def shown(sample, slot):
    """The number in a 48x64 image that was letterboxed to 64x64; None for padding."""
    image = sample[f"observation.images.{slot}"]
    if sample[f"observation.images.{slot}_is_pad"]:
        assert not image.any()
        return None
    assert not image[:, :8].any()
    assert not image[:, 56:].any()
    return number_in(image[:, 8:56])


def reference(recording: Recording, chunk: int):
    """A slow reader straight from what was recorded: one sample after another."""
    cameras = slot_order(recording.cameras)
    for episode, length in enumerate(recording.lengths):
        action, state = recording.joints(episode)
        for frame in range(length):
            rows = [min(frame + step, length - 1) for step in range(chunk)]
            yield {
                "state": state[frame],
                "action": action[rows],
                "pad": [frame + step >= length for step in range(chunk)],
                "task": recording.task(episode),
                "images": [recording.cameras.index(key) * 1000 + episode * 100 + frame for key in cameras],
                "where": (episode, frame),
                "time": np.float32(frame / recording.fps),
            }


def check_against_reference(dataset, start, recording, dataset_index):
    for index, expected in enumerate(reference(recording, dataset.chunk_size), start=start):
        sample = dataset[index]
        np.testing.assert_array_equal(sample["observation.state"], expected["state"])
        np.testing.assert_array_equal(sample["action"], expected["action"])
        assert sample["action_is_pad"].tolist() == expected["pad"]
        assert sample["task"] == expected["task"]
        absent = dataset.max_cameras - len(recording.cameras)
        assert [shown(sample, slot) for slot in range(dataset.max_cameras)] == expected["images"] + [
            None
        ] * absent
        assert (int(sample["episode_index"]), int(sample["frame_index"])) == expected["where"]
        assert (int(sample["index"]), int(sample["dataset_index"])) == (index, dataset_index)
        assert sample["timestamp"] == expected["time"]


@pytest.fixture(scope="module")
def images_in_tables(tmp_path_factory):
    return write_v3(tmp_path_factory.mktemp("images") / "tables", RECORDED_AS_IMAGES, use_videos=False)


RECORDED_AS_IMAGES = Recording(seed=5, lengths=(3, 6, 2))


def test_every_sample_of_every_format_equals_the_recording(v21, v30, images_in_tables, tmp_path):
    v20 = Recording(seed=3, lengths=(4, 2, 3), fps=15, cameras=("observation.image",), tasks=("wipe",))
    root = write_v2(tmp_path / "v20", v20, "v2.0")
    dataset = opened(v21, v30, images_in_tables, root)
    start = 0
    for number, recording in enumerate((Recording(), Recording(), RECORDED_AS_IMAGES, v20)):
        check_against_reference(dataset, start, recording, number)
        start += sum(recording.lengths)
    assert len(dataset) == dataset.num_frames == start == 44
    assert dataset.num_episodes == 10
    assert torch.equal(dataset[-1]["action"], dataset[43]["action"])
    with pytest.raises(IndexError):
        dataset[44]


def test_the_sample_is_the_one_of_the_contract(v21):
    sample = opened(v21, max_cameras=3, image_size=32)[2]
    expected = {
        "observation.state": (torch.float32, (6,)),
        "action": (torch.float32, (4, 6)),
        "action_is_pad": (torch.bool, (4,)),
        "timestamp": (torch.float32, ()),
    }
    expected |= {f"observation.images.{slot}": (torch.uint8, (3, 32, 32)) for slot in range(3)}
    expected |= {f"observation.images.{slot}_is_pad": (torch.bool, ()) for slot in range(3)}
    expected |= {f"{name}_index": (torch.int64, ()) for name in ("dataset", "episode", "frame")}
    expected |= {"index": (torch.int64, ())}
    assert {
        key: (value.dtype, tuple(value.shape)) for key, value in sample.items() if key != "task"
    } == expected
    assert type(sample["task"]) is str


def test_equals_lerobot(v30):
    """State, action, task and frames, bit for bit with the same decoder."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    deltas = {"action": [step / 10 for step in range(4)]}
    theirs = LeRobotDataset("user/v30", root=v30, delta_timestamps=deltas, return_uint8=True)
    ours = opened(v30, image_size=48)
    assert len(theirs) == len(ours) == 12
    for index in range(12):
        their, our = theirs[index], ours[index]
        assert torch.equal(their["observation.state"], our["observation.state"])
        assert torch.equal(their["action"], our["action"])
        assert torch.equal(their["action_is_pad"], our["action_is_pad"])
        assert their["task"] == our["task"]
        episode, frame = int(our["episode_index"]), int(our["frame_index"])
        for slot, key in enumerate((WRIST, FRONT)):
            image = ours.camera_images(episode, frame)[slot]
            assert torch.equal(their[key], image)


def test_with_antialiasing_letterbox_is_openpis():
    """openpi's clients and data loaders scale with Pillow's bilinear filter, which averages what it skips."""
    generator = torch.Generator().manual_seed(0)
    for height, width, inner in ((480, 640, (168, 224)), (720, 1280, (126, 224)), (96, 64, (224, 149))):
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        scaled = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(
            inner[::-1], Image.Resampling.BILINEAR
        )
        top, left = (224 - inner[0]) // 2, (224 - inner[1]) // 2
        ours = letterbox(image, 224, antialias=True)
        found = ours[:, top : top + inner[0], left : left + inner[1]]
        expected = torch.from_numpy(np.array(scaled)).permute(2, 0, 1)
        assert (found.int() - expected.int()).abs().max() <= 1
        assert ours.int().sum() == found.int().sum()


def test_letterbox_is_lerobots():
    from lerobot.policies.common.vla_utils import resize_with_pad_torch

    generator = torch.Generator().manual_seed(0)
    for height, width in ((48, 64), (480, 640), (720, 1280), (64, 48), (100, 100), (32, 32), (1, 300)):
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        ours = letterbox(image, 32)
        if height > 1:
            assert torch.equal(ours, resize_with_pad_torch(image, 32, 32)[0])
        assert ours.shape == (3, 32, 32)
        assert ours.is_contiguous()
    right_size = torch.ones(3, 32, 32, dtype=torch.uint8)
    assert torch.equal(letterbox(right_size, 32, antialias=True), right_size)
    assert torch.equal(letterbox(right_size, 32), right_size)


@pytest.mark.parametrize(
    ("keys", "slots"),
    [
        (["laptop", "phone"], ["laptop", "phone"]),
        (["phone", "laptop"], ["laptop", "phone"]),
        (["front", "laptop", "side"], ["front", "side", "laptop"]),
        (["side", "top", "front", "wrist"], ["wrist", "front", "top", "side"]),
        (
            ["camera2", "wrist_left", "camera1", "Front_cam"],
            ["wrist_left", "Front_cam", "camera1", "camera2"],
        ),
    ],
)
def test_slots_depend_on_names_alone(keys, slots):
    prefix = "observation.images."
    assert slot_order([prefix + key for key in keys]) == tuple(prefix + key for key in slots)


def test_more_cameras_than_slots_are_counted(v21):
    dataset = opened(v21, max_cameras=1)
    assert dataset.camera_slots == ("observation.images.0",)
    assert shown(dataset[3], 0) == 1003
    entry = dataset.report()["datasets"][0]
    assert entry["cameras"] == [WRIST]
    assert entry["cameras_not_used"] == [FRONT]


def as_convention(root, convention, names):
    """Rewrite a v2 dataset's joints into another convention, in place."""
    info = json.loads((root / "meta/info.json").read_text())
    for key in ("action", "observation.state"):
        info["features"][key]["names"] = names
    (root / "meta/info.json").write_text(json.dumps(info))
    for file in sorted(root.glob("data/*/*.parquet")):
        table = pq.read_table(file)
        for key in ("action", "observation.state"):
            values = from_degrees(np.stack(table[key].to_numpy()), convention)
            table = table.set_column(table.column_names.index(key), key, pa.array(list(values)))
        pq.write_table(table, file)
    return root


class Reaching(Recording):
    """Motions with lift, elbow and roll beyond 100 degrees, as only one convention allows."""

    def joints(self, episode):
        action, state = super().joints(episode)
        action[0, 1:3] = 90, -95
        action[1:4, 1:3], state[1:4, 1:3] = (-99, 95), (-96, 92)
        return action, state


def test_conventions_come_out_as_canonical_degrees(tmp_path):
    recording = Reaching(cameras=("observation.images.top",), lengths=(6,))
    old = [f"main_{joint}" for joint in JOINTS]
    roots = [
        as_convention(write_v2(tmp_path / name, recording), name, names)
        for name, names in (("degrees", NAMES), ("degrees_v1", {"motors": old}), ("radians", NAMES))
    ]
    dataset = opened(*roots, use_bad_episodes=True)  # the arm jumps
    assert [entry["convention"] for entry in dataset.report()["datasets"]] == [
        "degrees",
        "degrees_v1",
        "radians",
    ]
    expected = recording.joints(0)
    for start in (0, 6, 12):
        np.testing.assert_allclose(dataset.action[start : start + 6], expected[0], atol=2e-5)
        np.testing.assert_allclose(dataset.state[start : start + 6], expected[1], atol=2e-5)
    assert dataset.action_names == tuple(NAMES)
    pooled = dataset.action.astype(np.float64)
    np.testing.assert_array_equal(dataset.stats["action"]["mean"], pooled.mean(0).astype(np.float32))


def test_what_does_not_show_its_units_is_left_out_until_they_are_given(tmp_path):
    class Rounded(Recording):
        def joints(self, episode):
            values = np.round(np.random.default_rng(0).uniform(-50, 50, (30, 6)), 1).astype(np.float32)
            values[:, 5] = np.abs(values[:, 5])
            return values, values

    recording = Rounded(lengths=(30,), cameras=(FRONT,))
    source = DatasetSource("a/b", root=write_v2(tmp_path / "data", recording))
    options = {"chunk_size": 2, "image_size": 64, "max_cameras": 1, "use_bad_episodes": True}
    with pytest.raises(UserError, match=r"nothing decides .* give it with --dataset\.conventions"):
        MultiLeRobotDataset([source], **options)
    for unit, factor in (("degrees", 1), ("normalized", 1.108)):
        dataset = MultiLeRobotDataset([source], conventions={"a/b": unit}, **options)
        (entry,) = dataset.report()["datasets"]
        assert (entry["convention"], entry["evidence"][:30]) == (unit, "given with --dataset.conventio")
        np.testing.assert_allclose(dataset.action[:, 0], recording.joints(0)[0][:, 0] * factor, rtol=1e-5)
    with pytest.raises(UserError, match=r"given with .* but in the action .* out of reach"):
        MultiLeRobotDataset([source], conventions={"a/b": "degrees_v1"}, **options)


class LateReach(Recording):
    """Only the second episode passes 100 degrees, which tells the convention of both."""

    def joints(self, episode):
        action, state = super().joints(episode)
        action[0, 4] = 130 if episode == 1 else 20
        return action, state


@pytest.mark.parametrize("write", [write_v2, write_v3])
def test_the_convention_does_not_depend_on_the_episodes_that_are_chosen(tmp_path, write):
    recording = LateReach(cameras=(FRONT,))
    root = write(tmp_path / "data", recording)
    for chosen in (None, [0], [1]):
        dataset = opened(root, episodes=chosen)
        (entry,) = dataset.report()["datasets"]
        assert entry["convention"] == "degrees"
        assert entry["episodes"] == len(chosen or (0, 1))
        np.testing.assert_array_equal(dataset.action[0], recording.joints((chosen or [0])[0])[0][0])


def test_what_is_wrong_with_other_episodes_is_no_matter(v21, tmp_path):
    root = shutil.copytree(v21, tmp_path / "data")
    put(root / "data/chunk-000/episode_000001.parquet", "action", 3, [float("nan")] * 6)
    assert opened(root, episodes=[0]).report()["num_episodes_left_out"] == 0
    with pytest.raises(
        UserError, match="no episode can be used: numbers_finite: the action is not a finite number"
    ):
        opened(root, episodes=[1])
    (root / "data/chunk-000/episode_000001.parquet").unlink()
    assert len(opened(root, episodes=[0])) == 7
    with pytest.raises(UserError, match=r"episode_000001\.parquet is missing"):
        opened(root, episodes=[1])


def test_a_single_dataset_of_another_robot_is_native(tmp_path):
    recording = Recording(dim=2, names=None, cameras=("observation.image",), fps=10)
    dataset = opened(write_v2(tmp_path / "pusht", recording, "v2.0"))
    assert (dataset.state_dim, dataset.action_dim, dataset.action_names) == (2, 2, None)
    assert dataset.report()["datasets"][0]["convention"] == "native"
    check_against_reference(dataset, 0, recording, 0)


def test_the_minority_of_another_robot_is_quarantined(v21, v30, tmp_path):
    other = write_v2(tmp_path / "aloha", Recording(dim=14, names=None))
    dataset = opened(v21, other, v30, max_bad_datasets=0.5)
    assert dataset.num_datasets == 2
    assert dataset.quarantined == {
        "user/aloha": "a state of 14 and an action of 14 in numbers of its own robot, "
        "the other datasets have a state of 6 and an action of 6 in SO-100 joints"
    }


@settings(max_examples=40, deadline=None)
@given(
    fps=st.sampled_from([10, 15, 25, 30, 50, 60]),
    freq=st.sampled_from([10, 15, 30, 50, 7.5]),
    frame=st.integers(0, 6),
)
def test_chunks_are_resampled_by_interpolation(v21, fps, freq, frame):
    dataset = opened(v21)
    action, _ = Recording().joints(0)
    place = FramePlaces(*(np.array([number]) for number in (frame, 0, 7)), np.array([float(fps)]))
    (chunk,), (is_pad,) = action_chunks(dataset.action, place, 5, freq, 0)
    for step in range(5):
        position = frame + step * fps / freq
        lower = min(int(position), 6)
        upper = min(lower + 1, 6)
        expected = action[lower] + (action[upper] - action[lower]) * np.float32(position - int(position))
        np.testing.assert_allclose(chunk[step], expected, atol=1e-4)
        if position == int(position):
            np.testing.assert_array_equal(chunk[step], action[lower])
        assert bool(is_pad[step]) == (position > 6)


@pytest.mark.parametrize(("freq", "rows"), [(10, [0, 1, 2, 3]), (5, [0, 2, 4, 6]), (None, [0, 1, 2, 3])])
def test_where_timestamps_contradict_the_declared_rate_actions_follow_them(v21, tmp_path, freq, rows):
    root = shutil.copytree(v21, tmp_path / "data")
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"fps": 30}))  # recorded ten times a second
    dataset = opened(root, action_freq=freq)
    np.testing.assert_array_equal(dataset[0]["action"], Recording().joints(0)[0][rows])
    assert dataset.report()["datasets"][0]["recorded_fps"] == 10


@pytest.mark.parametrize("fps", [15, 29.97, 30, 60])
def test_rounded_timestamps_do_not_contradict_the_declared_rate(fps):
    time = (np.arange(50_000) / fps).astype(np.float32)
    assert recorded_fps(np.concatenate([time, time[:9]]), np.array([50_000, 9]), fps) == fps
    assert recorded_fps(np.zeros(3, np.float32), np.ones(3, np.int64), fps) == fps


def test_the_same_rate_changes_nothing(v21):
    plain, resampled = opened(v21), opened(v21, action_freq=10)
    for index in range(12):
        assert torch.equal(plain[index]["action"], resampled[index]["action"])
        assert torch.equal(plain[index]["action_is_pad"], resampled[index]["action_is_pad"])


def test_episodes_can_be_chosen(v21, v30):
    for root in (v21, v30):
        dataset = opened(root, episodes=[1])
        assert (len(dataset), dataset.num_episodes) == (5, 1)
        assert shown(dataset[2], 0) == 1102
        assert int(dataset[2]["episode_index"]) == 1
    with pytest.raises(UserError, match="no episode 7"):
        opened(v21, episodes=[0, 7])
    with pytest.raises(UserError, match="name one dataset"):
        opened(v21, v30, episodes=[0])


def test_recorded_indices_with_gaps_are_kept(tmp_path):
    dataset = opened(write_v2(tmp_path / "gaps", Recording(), indices=(3, 1000)))
    assert [int(dataset[index]["episode_index"]) for index in (0, 6, 7, 11)] == [3, 3, 1000, 1000]
    assert shown(dataset[11], 1) == 104


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_give_the_same_samples(v21, v30, images_in_tables, start_method):
    dataset = opened(v21, v30, images_in_tables)
    alone = [dataset[index] for index in range(len(dataset))]  # decoders are open before the fork
    workers = 2 if start_method == "fork" else 1  # a spawned one takes seconds to start
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=5, num_workers=workers, multiprocessing_context=start_method
    )
    together = []
    for batch in loader:
        rows = range(len(batch["task"]))
        together += [{key: value[row] for key, value in batch.items()} for row in rows]
    assert len(alone) == len(together) == 35
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one if key != "task")
        assert one["task"] == other["task"]


def broken(v21, tmp_path, name, how):
    root = shutil.copytree(v21, tmp_path / name)
    how(root)
    return root


def test_images_of_an_episode_whose_rows_are_scattered_are_refused(images_in_tables, tmp_path):
    root = shutil.copytree(images_in_tables, tmp_path / "data")
    (file,) = root.glob("data/*/*.parquet")
    table = pq.read_table(file)
    pq.write_table(table.take(pa.array([0, 1, 3, 2, *range(4, len(table))])), file)
    with pytest.raises(UserError, match=r"rows of an episode in .* are not side by side"):
        opened(root)


def no_video(root):
    shutil.rmtree(root / f"videos/chunk-000/{FRONT}")


def nan_everywhere(root):
    for file in root.glob("data/*/*.parquet"):
        put(file, "action", 2, [float("nan")] * 6)


def put(file, column, row, value):
    table = pq.read_table(file)
    values = table[column].to_pylist()
    values[row] = value
    kind = table.schema.field(column).type
    pq.write_table(table.set_column(table.column_names.index(column), column, pa.array(values, kind)), file)


def old_names(root):
    as_convention(root, "degrees", [f"main_{joint}" for joint in JOINTS])
    put(root / "data/chunk-000/episode_000000.parquet", "action", 0, [0.0, -99.0, -90.0, 0.0, 0.0, 0.0])


def no_cameras(root):
    info = json.loads((root / "meta/info.json").read_text())
    info["features"] = {key: value for key, value in info["features"].items() if "images" not in key}
    (root / "meta/info.json").write_text(json.dumps(info))


def unknown_task(root):
    for file in root.glob("data/*/*.parquet"):
        put(file, "task_index", 0, 9)


def no_metadata(root):
    shutil.rmtree(root / "meta")


BAD = [
    (no_video, f"videos/chunk-000/{FRONT}/episode_000000.mp4 is missing"),
    (nan_everywhere, "no episode can be used: numbers_finite: the action is not a finite number"),
    (old_names, "the joint convention is unknown: .*shoulder_lift would be at 189"),
    (no_cameras, "there is no camera"),
    (no_metadata, "meta/info.json is missing"),
    (shutil.rmtree, "there is no folder"),
    (unknown_task, "no episode can be used: task_listed: task_index 9 has no task"),
]


@pytest.mark.parametrize(("how", "reason"), BAD, ids=[how.__name__ for how, _ in BAD])
def test_a_bad_dataset_is_quarantined_with_the_reason(v21, v30, tmp_path, caplog, how, reason):
    bad = broken(v21, tmp_path, "bad", how)
    dataset = opened(v21, bad, v30, max_bad_datasets=0.4)
    assert dataset.num_datasets == 2
    assert dataset.repo_ids == ("user/data", "user/data")
    with pytest.raises(UserError, match=f"1 of 1 datasets cannot be used.*user/bad: {reason}"):
        opened(bad)
    with pytest.raises(UserError, match="1 of 3 datasets"):
        opened(v21, bad, v30, max_bad_datasets=0.3)
    assert list(dataset.quarantined) == list(dataset.report()["quarantined"]) == ["user/bad"]
    assert "dataset user/bad is not used" in caplog.text


def test_no_source_is_a_user_error():
    with pytest.raises(UserError, match="name at least one"):
        MultiLeRobotDataset([])


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        (
            "action",
            [0.0, 0, 0, 0, 0, float("inf")],
            "numbers_finite: the action is not a finite number in 1 of 7 frames",
        ),
        (
            "observation.state",
            [float("nan")] * 6,
            "numbers_finite: the state is not a finite number in 1 of 7 frames",
        ),
        ("timestamp", 0.2, "time_increases: time stands still or runs back in 1 of 7 frames"),
        ("timestamp", float("nan"), "time_increases: the timestamp is not a finite number in 1 of 7 frames"),
        ("timestamp", 0.299, None),
        ("task_index", 9, "task_listed: task_index 9 has no task"),
        ("observation.state", [2e6] * 6, "numbers_bounded: the state is beyond 1e6 in 1 of 7 frames"),
    ],
)
def test_a_bad_episode_is_left_out(v21, tmp_path, column, value, reason):
    root = shutil.copytree(v21, tmp_path / "data")
    put(root / "data/chunk-000/episode_000000.parquet", column, 3, value)
    dataset = opened(root)
    if reason is None:
        assert len(dataset) == 12
        return
    assert len(dataset) == 5
    assert {shown(dataset[index], 1) for index in range(5)} == {100, 101, 102, 103, 104}
    assert dataset.report()["datasets"][0]["episodes_left_out"] == {"0": reason}


@pytest.mark.parametrize(
    ("steps", "jumps"),
    [
        ([0.1] * 6, False),
        ([0.1, 0.1, 0.45, 0.1, 0.1, 0.1], False),  # four frames lost
        ([0.1, 0.1, 0.55, 0.1, 0.1, 0.1], True),
        ([0.1, 0.1, 600, 0.1, 0.1, 0.1], True),
        ([0.6] * 6, False),  # recorded more slowly than declared
        ([0.6, 0.6, 3.1, 0.6, 0.6, 0.6], True),
        ([0.02] * 6, False),
    ],
)
def test_a_jump_is_what_no_frame_rate_explains(v21, tmp_path, steps, jumps):
    root = shutil.copytree(v21, tmp_path / "data")
    file = root / "data/chunk-000/episode_000000.parquet"
    for row, time in enumerate(np.cumsum(steps), start=1):
        put(file, "timestamp", row, float(time))
    left_out = opened(root).report()["datasets"][0]["episodes_left_out"]
    assert bool(left_out) == jumps
    assert all(reason.startswith("time_without_gaps: frames are missing") for reason in left_out.values())


def test_too_many_episodes_left_out_stop_the_opening_with_the_list(v21, v30, tmp_path):
    root = shutil.copytree(v21, tmp_path / "data")
    put(root / "data/chunk-000/episode_000000.parquet", "action", 3, [float("nan")] * 6)
    with pytest.raises(
        UserError,
        match=r"1 of 4 episodes are bad.*raise max_bad_fraction \(now 0.02\): "
        r"episode 0 of user/data: numbers_finite: the action is not a finite number in 1 of 7 frames",
    ):
        opened(root, v30, max_bad_fraction=0.02)
    report = opened(root, v30, max_bad_fraction=0.25).report()
    assert (report["num_episodes"], report["num_episodes_left_out"]) == (3, 1)


def test_too_many_broken_videos_stop_the_run_with_the_list(v21, v30, tmp_path):
    root = shutil.copytree(v21, tmp_path / "data")
    (root / f"videos/chunk-000/{WRIST}/episode_000001.mp4").write_bytes(b"broken")
    dataset = opened(root, v30, max_bad_fraction=0.02)
    assert shown(dataset[0], 0) == 1000
    with pytest.raises(UserError, match=r"1 of 4 episodes are bad.*episode 1 of user/data: episode_000001"):
        dataset[7]


def test_a_frame_that_cannot_be_decoded_is_replaced_and_counted(v21, v30, tmp_path, caplog):
    root = shutil.copytree(v21, tmp_path / "data")
    (root / f"videos/chunk-000/{WRIST}/episode_000000.mp4").write_bytes(b"broken")
    dataset = opened(v30, root)
    with caplog.at_level(logging.WARNING):
        samples = [dataset[12 + frame] for frame in range(7)]
    places = [(int(sample["episode_index"]), int(sample["frame_index"])) for sample in samples]
    assert places == [(1, frame % 5) for frame in range(7)]
    assert {int(sample["dataset_index"]) for sample in samples} == {1}
    assert [shown(sample, 0) for sample in samples] == [1100 + frame % 5 for frame in range(7)]
    assert dataset.decode_failures() == {"user/data": {0: 7}}
    assert dataset.report()["decode_failures"] == {"user/data": {"0": 7}}
    assert caplog.text.count("is replaced by another") == 1
    loader = torch.utils.data.DataLoader(dataset, batch_size=19, num_workers=1)
    again = next(iter(loader))
    assert again["index"][12:].tolist() == [int(sample["index"]) for sample in samples]
    assert dataset.decode_failures() == {"user/data": {0: 14}}


def test_nothing_to_decode_is_a_user_error(v21, tmp_path):
    root = shutil.copytree(v21, tmp_path / "data")
    for file in root.glob("videos/*/*/*.mp4"):
        file.write_bytes(b"broken")
    with pytest.raises(UserError, match="no images of dataset user/data can be decoded"):
        opened(root, max_bad_fraction=1.0)[0]


def test_a_wrong_declared_rate_still_finds_the_frames(v21, tmp_path):
    """Videos run at 5 fps where the table says 10: in v2 the frame's number decides."""
    root = shutil.copytree(v21, tmp_path / "data")
    recording = Recording()
    for episode, length in enumerate(recording.lengths):
        images = [recording.image(FRONT, episode, frame) for frame in range(length)]
        write_video(root / f"videos/chunk-000/{FRONT}/episode_{episode:06d}.mp4", images, 5)
    check_against_reference(opened(root), 0, recording, 0)


@pytest.mark.parametrize("change", [str, lambda index: [index, index], float])
def test_episode_indices_that_are_no_whole_numbers_are_refused(v30, tmp_path, change):
    root = shutil.copytree(v30, tmp_path / "data")
    (file,) = root.glob("data/*/*.parquet")
    table = pq.read_table(file)
    indices = pa.array([change(index) for index in table["episode_index"].to_pylist()])
    pq.write_table(
        table.set_column(table.column_names.index("episode_index"), "episode_index", indices), file
    )
    with pytest.raises(UserError, match=r"the column episode_index of .* holds no whole numbers"):
        opened(root)


def test_a_frame_past_an_episode_is_none_of_the_next_one(v30, tmp_path):
    root = shutil.copytree(v30, tmp_path / "data")
    share_video(root, Recording(), (5, 5), 10, ([0, 0.5], [0.5, 1.0]))
    dataset = opened(root)
    images = [number_in(dataset.camera_images(0, frame)[1]) for frame in range(6)]
    assert images == [0, 1, 2, 3, 4, 4]
    with pytest.raises(DatasetError, match=r"the episode's video ends at 0\.500 s"):
        dataset.camera_images(0, 6)
    assert [number_in(dataset.camera_images(1, frame)[1]) for frame in range(5)] == [*range(100, 105)]


def test_a_wrong_declared_rate_still_finds_the_frames_in_a_shared_video(v30, tmp_path):
    """The video runs at 20 fps where the table says 10, and the metadata says where its episodes lie."""
    root = shutil.copytree(v30, tmp_path / "data")
    share_video(root, Recording(), (7, 5), 20, ([0, 0.35], [0.35, 0.6]))
    check_against_reference(opened(root), 0, Recording(), 0)


def test_where_a_shared_video_has_no_ends_the_file_has_one(v30, tmp_path):
    root = shutil.copytree(v30, tmp_path / "data")
    (table,) = (root / "meta/episodes").rglob("*.parquet")
    rows = pq.read_table(table)
    pq.write_table(rows.drop_columns([f"videos/{key}/to_timestamp" for key in (FRONT, WRIST)]), table)
    check_against_reference(opened(root), 0, Recording(), 0)
    share_video(root, Recording(), (7, 5), 10, ([0, 0.7],))
    assert np.isinf(opened(root).camera_end[:, :2]).all()


def test_an_episode_that_ends_before_it_begins_is_refused(v30, tmp_path):
    root = shutil.copytree(v30, tmp_path / "data")
    share_video(root, Recording(), (7, 5), 10, ([0, 0.7], [0.7, 0.7]))
    with pytest.raises(UserError, match=r"to_timestamp of .* does not come after its from_timestamp"):
        opened(root)


def test_the_report_is_json_and_complete(v21, v30):
    report = json.loads(json.dumps(opened(v21, v30).report(), allow_nan=False))
    assert (report["num_datasets"], report["num_episodes"], report["num_frames"]) == (2, 4, 24)
    first = report["datasets"][0]
    assert first["repo_id"] == "user/data"
    assert (first["version"], first["fps"], first["episodes"], first["frames"]) == ("v2.1", 10, 2, 12)
    assert first["convention"] == "degrees"
    assert "with the other zero shoulder_lift" in first["evidence"]


def test_from_the_hub_at_a_pinned_revision(hub, v21, v30):
    from depi.hub.client import api as client

    revisions = [
        client.upload_folder(root, f"user/{name}", repo_type="dataset", commit_message="Record")
        for root, name in ((v21, "old"), (v30, "new"))
    ]
    no_info = v21.parent / "later"
    no_info.mkdir(exist_ok=True)
    (no_info / "meta").mkdir(exist_ok=True)
    (no_info / "meta/info.json").write_text("{}")
    client.upload_folder(no_info, "user/old", repo_type="dataset", commit_message="Spoil")
    sources = [DatasetSource("user/old", revisions[0]), DatasetSource("user/new"), DatasetSource("user/none")]
    dataset = MultiLeRobotDataset(sources, chunk_size=4, image_size=64, max_bad_datasets=0.5)
    check_against_reference(dataset, 0, Recording(), 0)
    check_against_reference(dataset, 12, Recording(), 1)
    assert [entry["revision"] for entry in dataset.report()["datasets"]] == revisions
    assert list(dataset.quarantined) == ["user/none"]
    spoilt = MultiLeRobotDataset([*sources[:2], DatasetSource("user/old")], max_bad_datasets=0.5)
    assert "codebase_version is None" in spoilt.quarantined["user/old"]


def test_files_that_the_hub_leaves_out_of_a_long_list_are_found(hub, v21, monkeypatch):
    from depi.hub.client import api as client

    client.upload_folder(v21, "user/long", repo_type="dataset", commit_message="Record")
    get_json = client.get_json

    def cut(*args):
        value = get_json(*args)
        return {**value, "siblings": value["siblings"][:3]} if "siblings" in value else value

    monkeypatch.setattr(client, "get_json", cut)
    monkeypatch.setattr(client, "LISTED_WHOLE", 2)
    dataset = MultiLeRobotDataset([DatasetSource("user/long")], chunk_size=4, image_size=64)
    check_against_reference(dataset, 0, Recording(), 0)


def test_only_the_wanted_videos_are_downloaded(hub, v21):
    from depi.hub.client import api as client

    client.upload_folder(v21, "user/cams", repo_type="dataset", commit_message="Record")
    source = DatasetSource("user/cams")
    dataset = MultiLeRobotDataset([source], chunk_size=4, image_size=64, max_cameras=1, episodes=[1])
    assert shown(dataset[0], 0) == 1100
    snapshot = dataset.roots[0]
    videos = sorted(str(file.relative_to(snapshot)) for file in snapshot.rglob("*.mp4"))
    assert videos == [f"videos/chunk-000/{WRIST}/episode_000001.mp4"]
    assert load_meta(snapshot, "user/cams").num_frames == 12
