import itertools
import multiprocessing

import numpy as np
import pytest
import torch
from recordings import Recording, number_in, write_v2
from torch.utils.data import DataLoader

from depi.datasets.samples.annotations import AnnotatedEpisodes, EpisodeAnnotation, write_annotations
from depi.datasets.samples.augment import Augmentation
from depi.datasets.samples.filters import FrameFilter
from depi.datasets.samples.mixture import make_mixture
from depi.datasets.samples.order import StreamBatchSampler, shuffled_index
from depi.datasets.samples.stream import TrainingStream
from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset

FRONT, WRIST, TOP = (f"observation.images.{name}" for name in ("front", "wrist", "top"))
SLOTS = [f"observation.images.{slot}" for slot in range(3)]
FRAMES = 7 + 5 + 6 + 4


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> MultiLeRobotDataset:
    """Two datasets: front and wrist cameras; only a top camera."""
    folder = tmp_path_factory.mktemp("stream")
    write_v2(folder / "two", Recording())
    write_v2(folder / "one", Recording(lengths=(6, 4), cameras=(TOP,), seed=3, tasks=("stack",)))
    sources = [DatasetSource(f"user/{name}", root=folder / name) for name in ("two", "one")]
    return MultiLeRobotDataset(sources, chunk_size=3, image_size=64)


def stream(dataset, weights="proportional", seed=0, **options) -> TrainingStream:
    return TrainingStream(dataset, make_mixture(dataset, weights=weights, seed=seed), seed=seed, **options)


def shown(sample):
    """The camera that each slot shows, as its number in the recording; None for an absent one."""
    masks = [bool(sample[f"{slot}_is_pad"]) for slot in SLOTS]
    assert all(not sample[slot].any() for slot, absent in zip(SLOTS, masks, strict=True) if absent)
    return [
        None if absent else number_in(sample[slot][:, 8:56]) // 1000
        for slot, absent in zip(SLOTS, masks, strict=True)
    ]


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[key], b[key]) if torch.is_tensor(a[key]) else a[key] == b[key] for key in a)


def test_by_default_a_sample_is_the_datasets_own_in_shuffled_order(dataset):
    samples = stream(dataset, seed=4)
    for position in range(2 * FRAMES):
        assert same(samples[position], dataset[shuffled_index(position, FRAMES, 4)])


def test_every_option_is_a_pure_function_of_seed_and_position(dataset, tmp_path):
    write_annotations(tmp_path, "user/two", [EpisodeAnnotation(0, task="annotated")], {})
    options = {
        "weights": "uniform",
        "cameras": "shuffle",
        "augmentation": Augmentation(1, 1, 1),
        "annotations": AnnotatedEpisodes(dataset, tmp_path),
        "task_mix": 0.5,
    }
    first, again, other = (stream(dataset, seed=seed, **options) for seed in (7, 7, 8))
    positions = [5, 900, 0, 10**12]
    kept = {position: first[position] for position in positions}
    assert all(same(again[position], kept[position]) for position in reversed(positions))
    assert not all(same(other[position], kept[position]) for position in positions)


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (4, 0), (1, 2), (2, 2)])
def test_processes_and_workers_do_not_change_the_samples(dataset, world, workers):
    samples = stream(dataset, "sqrt", cameras="shuffle", augmentation=Augmentation(color=1))
    ranks = [
        DataLoader(
            samples,
            batch_sampler=StreamBatchSampler(8 // world, rank, world, start_batch=2, num_batches=2),
            num_workers=workers,
            collate_fn=list,
        )
        for rank in range(world)
    ]
    together = [
        sample for parts in zip(*ranks, strict=True) for sample in itertools.chain.from_iterable(parts)
    ]
    assert len(together) == 16
    assert all(same(sample, samples[16 + place]) for place, sample in enumerate(together))


def test_a_spawned_worker_gives_the_same_samples(dataset):
    samples = stream(dataset, "sqrt", cameras="view")
    loader = DataLoader(
        samples,
        batch_sampler=StreamBatchSampler(4, num_batches=1),
        num_workers=1,
        collate_fn=list,
        multiprocessing_context=multiprocessing.get_context("spawn"),
    )
    (batch,) = list(loader)
    assert all(same(sample, samples[place]) for place, sample in enumerate(batch))


def test_slots_by_name_are_filled_from_the_first(dataset):
    samples = stream(dataset)
    expected = {0: [1, 0, None], 1: [0, None, None]}  # wrist before front; top alone
    for position in range(FRAMES):
        sample = samples[position]
        assert shown(sample) == expected[int(sample["dataset_index"])]


def test_slots_by_view_mean_the_view(dataset):
    samples = stream(dataset, cameras="view")
    expected = {0: [1, 0, None], 1: [None, None, 0]}
    for position in range(FRAMES):
        sample = samples[position]
        assert shown(sample) == expected[int(sample["dataset_index"])]


def test_annotated_views_overrule_names_episode_by_episode(dataset, tmp_path):
    views = {FRONT: "wrist", WRIST: "top"}
    write_annotations(tmp_path, "user/two", [EpisodeAnnotation(1, camera_views=views)], {})
    samples = stream(dataset, cameras="view", annotations=AnnotatedEpisodes(dataset, tmp_path))
    expected = {(0, 0): [1, 0, None], (0, 1): [0, None, 1], (1, 0): [None, None, 0], (1, 1): [None, None, 0]}
    seen = set()
    for position in range(FRAMES):
        sample = samples[position]
        key = int(sample["dataset_index"]), int(sample["episode_index"])
        assert shown(sample) == expected[key]
        assert sample["task"] != ""
        seen.add(key)
    assert seen == set(expected)


def test_shuffled_cameras_keep_their_masks_and_take_every_order(dataset):
    samples = stream(dataset, cameras="shuffle")
    seen = [set(), set()]
    for position in range(200):
        sample = samples[position]
        order = shown(sample)
        present = [camera for camera in order if camera is not None]
        assert sorted(present) == ([0, 1], [0])[int(sample["dataset_index"])]
        seen[int(sample["dataset_index"])].add(tuple(order))
    assert [len(orders) for orders in seen] == [6, 3]


def test_augmentation_changes_present_images_alone_and_each_camera_by_itself(dataset):
    plain = stream(dataset)
    changed = stream(dataset, augmentation=Augmentation(color=1))
    gains = []
    for position in range(FRAMES):
        before, after = plain[position], changed[position]
        for slot in SLOTS:
            absent = bool(before[f"{slot}_is_pad"])
            assert torch.equal(before[slot], after[slot]) == absent
        assert torch.equal(before["action"], after["action"])
        if int(before["dataset_index"]) == 0:
            gains.append([float(after[slot].max()) for slot in SLOTS[:2]])
    assert np.mean([first == second for first, second in gains]) < 0.5


def test_the_wrist_is_not_moved_whatever_slot_it_is_in(dataset, tmp_path):
    """By name the wrist is slot 0; annotated, the camera that is called front is the wrist's."""
    plain = stream(dataset)
    views = {FRONT: "wrist", WRIST: "side"}
    write_annotations(
        tmp_path, "user/two", [EpisodeAnnotation(index, camera_views=views) for index in (0, 1)], {}
    )
    by_name = stream(dataset, augmentation=Augmentation(geometry=1))
    by_view = stream(
        dataset, augmentation=Augmentation(geometry=1), annotations=AnnotatedEpisodes(dataset, tmp_path)
    )
    checked = 0
    for position in range(FRAMES):
        before = plain[position]
        if int(before["dataset_index"]) == 0:
            for samples, still in ((by_name, 0), (by_view, 1)):
                after = samples[position]
                kept = [torch.equal(before[slot], after[slot]) for slot in SLOTS[:2]]
                assert kept == [still == 0, still == 1]
                checked += 1
    assert checked == 24


def test_shuffling_does_not_change_how_a_camera_is_augmented(dataset):
    options = {"augmentation": Augmentation(1, 1, 1)}
    ordered, shuffled = stream(dataset, **options), stream(dataset, cameras="shuffle", **options)
    for position in range(FRAMES):
        images = [
            {image.numpy().tobytes() for image in (s[position][slot] for slot in SLOTS)}
            for s in (ordered, shuffled)
        ]
        assert images[0] == images[1]


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_the_share_of_annotated_text(dataset, tmp_path, mix):
    rows = [EpisodeAnnotation(0, task="annotated"), EpisodeAnnotation(1)]
    write_annotations(tmp_path, "user/two", rows, {})
    samples = stream(dataset, annotations=AnnotatedEpisodes(dataset, tmp_path), task_mix=mix)
    texts = {}
    for position in range(600):
        sample = samples[position]
        key = int(sample["dataset_index"]), int(sample["episode_index"])
        texts.setdefault(key, []).append(sample["task"])
    share = np.mean([text == "annotated" for text in texts[0, 0]])
    assert share == pytest.approx(mix, abs=0.08)
    assert set(texts[0, 0]) <= {"annotated", "pick the cube"}
    assert set(texts[0, 1]) == {"drop the cube"}
    assert set(texts[1, 0]) == {"stack"}
    report = samples.report()
    assert report["annotations"]["missing"] == ["user/one"]
    heard = {text for of_episode in texts.values() for text in of_episode}
    assert report["instructions"]["count"] == len(heard)
    assert set(report["instructions"]["of_most_frames"]) == heard


def test_what_stands_in_for_a_broken_episode_is_drawn_too(tmp_path):
    """Episode 1 cannot be decoded, 2 is held back; a sample of 1 is replaced by one of 3 or 0."""
    write_v2(tmp_path / "data", Recording(lengths=(4, 5, 4, 4), cameras=(TOP,)))
    video = tmp_path / f"data/videos/chunk-000/{TOP}/episode_000001.mp4"
    video.write_bytes(video.read_bytes()[:200])
    opened = MultiLeRobotDataset(
        [DatasetSource("a/b", root=tmp_path / "data")], chunk_size=2, image_size=64, max_bad_fraction=0.5
    )
    filters = FrameFilter(exclude={"a/b": [2]})
    samples = TrainingStream(opened, make_mixture(opened, filters=filters, seed=0), seed=0)
    drawn = [samples.mixture[position] for position in range(13)]
    shown = [int(samples[position]["episode_index"]) for position in range(13)]
    assert any(4 <= frame < 9 for frame in drawn)
    assert set(shown) == {0, 3}
    assert shown == [int(sample["episode_index"]) for sample in samples.__getitems__(range(13))]


def test_another_revision_of_the_annotations_is_noticed(dataset, tmp_path):
    sources = [DatasetSource("user/two", "abc", dataset.roots[0])]
    opened = MultiLeRobotDataset(sources, chunk_size=3, image_size=64)
    write_annotations(tmp_path, "user/two", [EpisodeAnnotation(0, task="annotated")], {"revision": "def"})
    annotations = AnnotatedEpisodes(opened, tmp_path)
    assert annotations.report()["other_revision"] == ["user/two"]
    assert annotations.task(0) == "annotated"


def test_statistics_are_those_of_the_episodes_that_are_drawn_from(dataset):
    def mean(key, **options):
        samples = TrainingStream(dataset, make_mixture(dataset, seed=0, **options), seed=0)
        return samples.stats()[key]["mean"]

    for key, values in (("action", dataset.action), ("observation.state", dataset.state)):
        np.testing.assert_array_equal(mean(key), dataset.stats[key]["mean"])
        np.testing.assert_allclose(
            mean(key, weights={"user/two": 0, "user/one": 1}), values[12:].mean(0), rtol=1e-5
        )
        kept = mean(key, filters=FrameFilter(exclude={"user/two": [1], "user/one": [0]}))
        np.testing.assert_allclose(kept, values[[*range(7), *range(18, 22)]].mean(0), rtol=1e-5)


def test_impossible_options(dataset):
    with pytest.raises(ValueError, match="cameras=pose is none of"):
        stream(dataset, cameras="pose")
    with pytest.raises(ValueError, match="needs annotations"):
        stream(dataset, task_mix=0.5)


def test_the_report_names_the_shares(dataset):
    report = stream(dataset, "uniform").report()
    assert report["shares"] == {"user/two": 0.5, "user/one": 0.5}
    assert report["frames_drawn_from"] == FRAMES
