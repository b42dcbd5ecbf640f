"""From flags to the stream of samples."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from recordings import Recording, write_v2

from depi.datasets.samples.annotations import EpisodeAnnotation, write_annotations
from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.errors import UserError
from depi.training.config import DatasetConfig, TrainConfig
from depi.training.data import flow_draws, training_stream
from depi.training.run import check_resumed_data, check_same_data

POLICY = SimpleNamespace(
    type="depi_pi0",
    chunk_size=3,
    max_action_dim=8,
    time_sampling_beta_alpha=1.5,
    time_sampling_beta_beta=1.0,
    time_sampling_scale=0.999,
    time_sampling_offset=0.001,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> MultiLeRobotDataset:
    folder = tmp_path_factory.mktemp("flags")
    write_v2(folder / "long", Recording(lengths=(9, 9, 2), cameras=("observation.images.laptop",)))
    write_v2(folder / "short", Recording(lengths=(5, 5), cameras=("observation.images.top",), seed=1))
    sources = [DatasetSource(f"user/{name}", root=folder / name) for name in ("long", "short")]
    return MultiLeRobotDataset(sources, chunk_size=3, image_size=64)


def stream(dataset, split="train", seed=3, **flags):
    config = TrainConfig(dataset=DatasetConfig(**flags), seed=seed)
    return training_stream(dataset, config, POLICY, split)


def shares(dataset, **flags):
    return [round(share, 2) for share in stream(dataset, **flags).samples.mixture.shares().values()]


def test_a_sample_carries_the_noise_and_time_of_its_position(dataset):
    samples = stream(dataset)
    noise, time = flow_draws(POLICY, 3, 11)
    sample = samples[11]
    np.testing.assert_array_equal(sample["noise"], noise)
    assert sample["time"] == time
    assert noise.shape == (3, 8)
    assert not np.array_equal(noise, samples[12]["noise"])
    # The same draws as ever: a resumed run of an earlier version goes on with them.
    expected = np.random.Generator(np.random.Philox(key=[3, 11])).standard_normal((3, 8), dtype=np.float32)
    np.testing.assert_array_equal(noise, expected)


def test_the_delay_of_a_position_changes_nothing_else(dataset):
    told = SimpleNamespace(**vars(POLICY), rtc_training_max_delay=2)
    config = TrainConfig(dataset=DatasetConfig(), seed=3)
    plain, delayed = stream(dataset), training_stream(dataset, config, told)
    assert "inference_delay" not in plain[11]
    first = delayed[11]
    np.testing.assert_array_equal(first["noise"], plain[11]["noise"])
    assert first["time"] == plain[11]["time"]
    delays = [int(delayed[position]["inference_delay"]) for position in range(60)]
    assert [delays.count(delay) > 10 for delay in range(3)] == [True] * 3
    assert set(delays) == {0, 1, 2}
    assert delays == [int(delayed[position]["inference_delay"]) for position in range(60)]


def test_processes_must_have_opened_the_same_data(dataset):
    def accelerator(difference):
        return SimpleNamespace(
            device="cpu", process_index=1, gather=lambda mine: torch.cat([mine, mine + difference])
        )

    check_same_data(accelerator(0), dataset)
    with pytest.raises(UserError, match=r"different data \(process 1: 2 datasets, 30 frames\)"):
        check_same_data(accelerator(1), dataset)


def test_a_resumed_run_needs_the_data_that_it_began_with(dataset):
    began = json.loads(json.dumps(dataset.report()))["datasets"]
    check_resumed_data(dataset, began)
    for key, before in (("frames", 19), ("episodes", 4), ("convention", "radians"), ("revision", "a" * 40)):
        with pytest.raises(UserError, match=rf"dataset user/short has .*{key}.* began with .*{before}"):
            check_resumed_data(dataset, [began[0], began[1] | {key: before}])
    gone = began[1] | {"repo_id": "user/gone"}
    for before, name in (([began[0], gone], "gone"), ([*began, gone], "gone"), (began[:1], "short")):
        with pytest.raises(UserError, match=f"dataset user/{name}"):
            check_resumed_data(dataset, before)


def test_weights(dataset, tmp_path):
    assert shares(dataset) == [1]
    assert shares(dataset, weights="uniform") == [0.5, 0.5]
    assert shares(dataset, weights="sqrt") == [0.59, 0.41]
    file = tmp_path / "weights.json"
    file.write_text(json.dumps({"user/long": 1, "user/short": 3}))
    assert shares(dataset, weights=str(file)) == [0.25, 0.75]
    columns = {"repo_id": ["user/long", "user/short", "bad/one"], "score": pa.array([0.5, 1.0, None])}
    pq.write_table(pa.table(columns), tmp_path / "catalog.parquet")
    assert shares(dataset, weights="score", data_ids=tmp_path) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('["user/long"]', "each with a number"),
        ('{"user/long": "1", "user/short": 1}', "each with a number"),
        ('{"user/long": true, "user/short": 1}', "each with a number"),
        ('{"user/long": 1}', "user/short has no weight"),
        ('{"user/long": 1, "user/short": -1}', "must be 0 or more"),
        ('{"user/long": 0, "user/short": 0}', "weight 0"),
    ],
)
def test_weights_that_are_none(dataset, tmp_path, content, says):
    (tmp_path / "weights.json").write_text(content)
    with pytest.raises(UserError, match=says):
        stream(dataset, weights=str(tmp_path / "weights.json"))


def test_what_is_missing_is_named(dataset, tmp_path):
    for flags, says in [
        ({"weights": "cubic"}, "--dataset.weights=cubic is none of proportional, sqrt, uniform, score"),
        ({"weights": "score", "data_ids": tmp_path}, "catalog.parquet does not exist"),
        ({"exclude": tmp_path / "none.json"}, "none.json does not exist"),
        ({"use_annotated_tasks": True, "annotations": tmp_path / "none"}, "there is no folder"),
        ({"min_episode_frames": 99}, "no frame is left"),
    ]:
        with pytest.raises(UserError, match=says):
            stream(dataset, **flags)


def test_filters_and_the_held_out_split(dataset, tmp_path):
    (tmp_path / "exclude.json").write_text('{"user/long": [0]}')
    flags = {"exclude": tmp_path / "exclude.json", "min_episode_frames": 3}
    mixture = stream(dataset, **flags).samples.mixture
    assert {mixture[position] for position in range(mixture.num_frames)} == {*range(9, 18), *range(20, 30)}
    sides = [stream(dataset, split, eval_split=0.5).samples.mixture for split in ("train", "eval")]
    seen = [{side[position] for position in range(side.num_frames)} for side in sides]
    assert all(seen)
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(30))


def test_failures_are_left_out_where_successes_are_asked_for(dataset, tmp_path):
    (tmp_path / "ended.json").write_text(
        '{"user/long": {"0": true, "1": false, "2": true}, "user/short": false}'
    )
    (tmp_path / "exclude.json").write_text('{"user/long": [2]}')
    flags = {"only_successes": True, "success": tmp_path / "ended.json"}
    mixture = stream(dataset, **flags).samples.mixture
    assert {mixture[position] for position in range(mixture.num_frames)} == {*range(9), 18, 19}
    mixture = stream(dataset, **flags, exclude=tmp_path / "exclude.json").samples.mixture
    assert {mixture[position] for position in range(mixture.num_frames)} == set(range(9))
    with pytest.raises(UserError, match="2 of 2 datasets do not say whether their episodes succeeded"):
        stream(dataset, only_successes=True)
    assert stream(dataset, only_successes=True, assume_success=True).samples.mixture.num_frames == 30
    (tmp_path / "ended.json").write_text('{"user/long": false, "user/short": false}')
    with pytest.raises(UserError, match="no frame is left"):
        stream(dataset, **flags)


def test_annotations_are_read_for_tasks_and_for_views(dataset, tmp_path):
    view = {"observation.images.laptop": "wrist"}
    rows = [EpisodeAnnotation(index, task="annotated", camera_views=view) for index in range(3)]
    write_annotations(tmp_path, "user/long", rows, {})
    tasks = stream(dataset, use_annotated_tasks=True, annotations=tmp_path)
    assert {tasks[p]["task"] for p in range(30) if tasks[p]["dataset_index"] == 0} == {"annotated"}
    views = stream(dataset, cameras="view", annotations=tmp_path)
    own = [views[position] for position in range(30) if views[position]["dataset_index"] == 0]
    assert all(not sample["observation.images.0_is_pad"] for sample in own)
    assert all(sample["task"] != "annotated" for sample in own)
    by_name = stream(dataset, cameras="view", annotations=tmp_path / "none")
    own = [by_name[position] for position in range(30) if by_name[position]["dataset_index"] == 0]
    assert all(sample["observation.images.0_is_pad"] for sample in own)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("joint_convention", "radians"),
        ("cameras", "pose"),
        ("task_mix", 1.5),
        ("max_bad_fraction", -0.1),
        ("augment_color", 3),
        ("eval_split", 1.0),
        ("min_episode_frames", 0),
        ("action_freq", 0.0),
    ],
)
def test_flags_out_of_range_are_refused(flag, value):
    with pytest.raises(ValueError, match=rf"--dataset\.{flag}"):
        DatasetConfig(**{flag: value})


def test_given_conventions_are_read_from_a_file_and_checked(tmp_path):
    path = tmp_path / "conventions.json"
    path.write_text('{"a/b": "degrees"}')
    assert DatasetConfig(conventions=path).conventions == {"a/b": "degrees"}
    path.write_text('{"a/b": "inches"}')
    with pytest.raises(ValueError, match="'inches' of a/b is none of degrees_v1, degrees"):
        DatasetConfig(conventions=path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object"):
        DatasetConfig(conventions=path)
    with pytest.raises(ValueError, match=r"nowhere\.json does not exist"):
        DatasetConfig(conventions=tmp_path / "nowhere.json")
