"""The deep tier over real mp4 files behind a real Hub: what videos are, not what their dataset says."""

import dataclasses
import io
import json
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import av
import filmed_arm
import numpy as np
import pytest
from filmed_arm import Film
from lerobot.datasets.video_utils import concatenate_video_files
from PIL import Image

from depi.catalog import videos
from depi.catalog.catalogue import Row, read_rows
from depi.catalog.collect import CollectConfig, collect, main
from depi.catalog.deep import inspect_videos, optional_rules
from depi.catalog.facts import Thresholds
from depi.catalog.pace import MAX_CLOSE_SHIFT, MAX_SHIFT, Follows, Still
from depi.catalog.pictures import Sample, describe
from depi.catalog.thumbnails import HEIGHT, read_thumbnails, to_jpeg
from depi.catalog.video_rules import episode_faults
from depi.catalog.videos import Item, VideoFacts, look_at_videos
from depi.errors import UserError
from depi.hub.client import api as client
from depi.hub.client import ranges

FRAMES, FPS = 40, 30


def film(shade=lambda number, image: image, frames=FRAMES, fps=FPS, size=(64, 48)) -> bytes:
    """An H.264 mp4 with one keyframe; `shade` makes each picture out of a moving gradient."""
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=fps, options={"g": "250", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            image = np.stack([rows * 5 + 3 * number, columns * 4, rows + columns], axis=2) % 256
            image = shade(number, image.astype(np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def put(folder: Path, content: bytes) -> Path:
    """Every video of a dataset becomes this one."""
    for path in folder.rglob("*.mp4"):
        path.write_bytes(content)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPI_CACHE", str(tmp_path / "depi"))


BROKEN = {
    "black": lambda: film(lambda number, image: image // 64),
    "grey": lambda: film(lambda number, image: np.full_like(image, 130)),
    "frozen": lambda: film(lambda number, image: np.roll(image, 0, 0) * 0 + _still()),
    "short": lambda: film(frames=20),
    "slow": lambda: film(fps=15),
    "large": lambda: film(size=(96, 64)),
    "noise": lambda: b"\0\0\0\x18ftypisom" + bytes(range(256)) * 40,
    "cut": lambda: film()[:-3000],
    "playlist": lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
}
REASONS = {
    "black": ("videos_not_black", "the sampled frames are black"),
    "grey": ("videos_not_black", "the sampled frames are of one colour"),
    "frozen": ("videos_not_frozen", "the picture stands still from frame 0 to 40 of 40"),
    "short": ("videos_have_declared_frames", "20 frames, the episode has 40"),
    "slow": ("videos_have_declared_fps", "15 fps, declared 30"),
    "large": ("videos_have_declared_size", "96x64 pixels, declared 64x48"),
    "noise": ("videos_decodable", "cannot be decoded: "),
    "cut": ("videos_decodable", "cannot be decoded: "),
    "playlist": ("videos_decodable", "cannot be decoded: "),
}


def _still() -> np.ndarray:
    rows, columns = np.mgrid[:48, :64]
    return np.stack([rows * 5, columns * 4, rows + columns], axis=2).astype(np.uint8)


def test_sound_videos_pass_and_each_defect_has_its_reason(hub, cache, tmp_path, make_dataset, publish):
    publish(put(make_dataset(tmp_path / "v2", seed=1, cameras=("front", "top")), film()), "ann/so101_v2")
    v3 = make_dataset(tmp_path / "v3", seed=2, version="v3.0")
    publish(put(v3, film(frames=2 * FRAMES)), "ann/so101_v3")
    for seed, (name, content) in enumerate(BROKEN.items(), start=3):
        publish(put(make_dataset(tmp_path / name, seed=seed), content()), f"bob/so101_{name}")
    out = tmp_path / "out"
    assert collect(CollectConfig(data_ids=out)).accepted == 2 + len(BROKEN)
    assert not (out / "thumbnails.parquet").exists()
    summary = collect(CollectConfig(data_ids=out, deep=True, deep_workers=1))
    assert json.loads((out / "dataset_list_valid.json").read_text()) == ["ann/so101_v2", "ann/so101_v3"]
    bad = json.loads((out / "bad_dataset_ids.json").read_text())
    for name, (rule, text) in REASONS.items():
        (found,) = bad[f"bob/so101_{name}"]
        assert found.startswith(f"{rule}: observation.images.front: {text}")
        assert found.endswith("(in 2 of 2 episodes looked at)")
    assert summary.failed == 0

    pictures = {(picture.repo_id, picture.camera): picture for picture in read_thumbnails(out)}
    assert ("ann/so101_v2", "observation.images.top") in pictures
    assert "bob/so101_noise" not in {repo_id for repo_id, _ in pictures}
    picture = pictures["ann/so101_v3", "observation.images.front"]
    assert picture.revision == {row.repo_id: row.revision for row in read_rows(out)}["ann/so101_v3"]
    assert Image.open(io.BytesIO(picture.jpeg)).size == (128, HEIGHT)
    assert len(picture.jpeg) < 6_000

    before = (out / "thumbnails.parquet").read_bytes()
    again = collect(CollectConfig(data_ids=out, deep=True, deep_workers=1))
    assert (again.accepted, again.rejected) == (2, len(BROKEN))
    assert (out / "thumbnails.parquet").read_bytes() == before


def test_a_rule_of_videos_can_be_switched_off(hub, cache, tmp_path, make_dataset, publish):
    publish(put(make_dataset(tmp_path / "slow", seed=1), film(fps=15)), "bob/so101_slow")
    out = tmp_path / "out"
    flags = [f"--data_ids={out}", "--deep", "--deep_workers=1"]
    assert main([*flags, "--disable_rules=[videos_have_declared_fps]"]) == 0
    assert len(json.loads((out / "dataset_list_valid.json").read_text())) == 1
    assert main(flags) == 0
    assert len(json.loads((out / "dataset_list_valid.json").read_text())) == 0
    with pytest.raises(UserError, match="no rule videos_decodable"):
        main([*flags, "--disable_rules=[videos_decodable]"])


def test_a_copy_takes_the_place_of_a_refused_original(hub, cache, tmp_path, make_dataset, publish):
    publish(put(make_dataset(tmp_path / "a", seed=1), film(frames=10)), "ann/so101_original")
    publish(put(make_dataset(tmp_path / "b", seed=1), film()), "bob/so101_copy")
    out = tmp_path / "out"
    collect(CollectConfig(data_ids=out, deep=True, deep_workers=1))
    assert json.loads((out / "dataset_list_valid.json").read_text()) == ["bob/so101_copy"]


def test_only_parts_of_a_large_video_are_fetched_and_none_is_kept(hub, cache, tmp_path, monkeypatch):
    noise = np.random.default_rng(0)
    content = film(lambda number, image: noise.integers(0, 255, image.shape, np.uint8), frames=300)
    folder = tmp_path / "in/a"
    folder.mkdir(parents=True)
    (folder / "film.mp4").write_bytes(content)
    sha = client.upload_folder(tmp_path / "in", "ann/box", repo_type="dataset", commit_message="Add")
    monkeypatch.setattr(ranges, "BLOCK", 16 * 1024)
    fetched = []
    ask = ranges.get_range
    monkeypatch.setattr(
        ranges, "get_range", lambda target, start, end: fetched.append(start) or ask(target, start, end)
    )
    with ranges.RemoteFile("ann/box", "a/film.mp4", revision=sha, max_bytes=10**9) as file:
        assert file.size == len(content)
        file.seek(-100, io.SEEK_END)
        assert file.read(1000) == content[-100:]
        file.seek(20_000)
        assert file.read(30_000) == content[20_000:50_000]
        assert file.read(0) == b""
    assert len(fetched) == len(set(fetched)) < len(content) / ranges.BLOCK
    with (
        ranges.RemoteFile("ann/box", "a/film.mp4", revision=sha, max_bytes=40_000) as file,
        pytest.raises(client.TooLarge, match="needs more bytes than"),
    ):
        file.read(200_000)


def test_a_video_that_kills_the_decoder_costs_no_other_dataset(cache, tmp_path):
    rows = [Row(f"ann/{name}", "accepted", revision="1" * 40) for name in ("a", "crash", "b")]
    alone = []

    def run(look, items):
        items = list(items)
        alone.extend(items if len(items) == 1 else [])
        for item in items:
            dies = len(items) > 1 or item.repo_id == "ann/crash"
            yield item, BrokenProcessPool("terminated abruptly") if dies else look(item)

    found = {
        row.repo_id: row
        for row, _ in inspect_videos(rows, run, lambda _: [facts()], Thresholds(), frozenset())
    }
    assert [found[f"ann/{name}"].verdict for name in ("a", "crash", "b")] == [
        "accepted",
        "failed",
        "accepted",
    ]
    assert found["ann/crash"].reasons == ["videos not inspected: the process that looked at them died"]
    assert len(alone) == 3


def test_facts_are_kept_per_commit(hub, cache, tmp_path, make_dataset, publish, monkeypatch):
    sha = publish(put(make_dataset(tmp_path / "a", seed=1), film()), "ann/so101_a")
    first = look_at_videos(Item("ann/so101_a", sha))
    (one, two) = first
    assert (one.codec, one.frames, one.fps, one.width, one.height) == ("h264", FRAMES, 30.0, 64, 48)
    assert one.path != two.path
    monkeypatch.setattr(videos.HubFiles, "list_files", lambda *_, **__: pytest.fail("asked again"))
    assert look_at_videos(Item("ann/so101_a", sha)) == first
    monkeypatch.setattr(videos, "FACTS_VERSION", 99)
    with pytest.raises(pytest.fail.Exception):
        look_at_videos(Item("ann/so101_a", sha))


CAMERA = "observation.images.front"


def sample(seed=0, frame=50, **changes) -> Sample:
    """A sharp frame of a picture of its own."""
    picture = np.random.default_rng(seed).integers(0, 255, (240, 320)).astype(np.uint8)
    return dataclasses.replace(describe(frame, picture), **changes)


def facts(episode=0, **changes) -> VideoFacts:
    """A sound video of 100 frames of 640x480."""
    sound = {"codec": "h264", "frames": 100, "fps": 30.0, "width": 640, "height": 480, "moved": 1.0}
    sound["samples"] = (sample(contrast=40.0, brightness=90.0, sharpness=0.4),)
    return VideoFacts(CAMERA, "a.mp4", episode, 100, 30.0, 640, 480, **{**sound, **changes})


def flat(brightness: float, contrast: float) -> Sample:
    return sample(brightness=brightness, contrast=contrast)


def peak(shift: int, height: float = 0.7) -> Follows:
    """The correlations of a video that follows the joints so many frames late."""

    def curve(most: int) -> tuple[float, ...]:
        return tuple((height * np.exp(-(((np.arange(-most, most + 1) - shift) / 6) ** 2))).tolist())

    return Follows(curve(MAX_SHIFT), curve(MAX_CLOSE_SHIFT))


@pytest.mark.parametrize(
    ("changes", "rule", "certain"),
    [
        ({}, None, None),
        ({"frames": 99}, None, None),
        ({"frames": 98}, "videos_have_declared_frames", True),
        ({"frames": 101}, None, None),
        ({"frames": 105}, "videos_have_declared_frames", False),
        ({"frames": 130}, "videos_have_declared_frames", True),
        ({"fps": 29.97}, None, None),
        ({"fps": None}, None, None),
        ({"fps": 25.0}, "videos_have_declared_fps", True),
        ({"width": 480, "height": 640}, "videos_have_declared_size", True),
        ({"samples": (flat(7.0, 2.9),)}, "videos_not_black", True),
        ({"samples": (flat(7.0, 3.1),)}, None, None),
        ({"samples": (flat(14.0, 2.9),)}, None, None),
        ({"samples": (flat(200.0, 1.9),)}, "videos_not_black", True),
        ({"least": flat(1.0, 0.5), "least_frames": (20, 60, 0.4)}, "videos_not_black", True),
        ({"least": flat(1.0, 0.5), "least_frames": (20, 24, 0.04)}, "videos_not_black", False),
        ({"least": flat(30.0, 9.0), "least_frames": (20, 60, 0.4)}, None, None),
        ({"still": (Still(0, 95, 0.16),)}, "videos_not_frozen", True),
        ({"still": (Still(30, 80, 0.5, jump=0.03, step=0.01),)}, "videos_not_frozen", True),
        ({"still": (Still(30, 80, 0.5, jump=0.03, step=0.025),)}, None, None),
        ({"still": (Still(30, 80, 0.5, jump=0.003, step=0.0),)}, None, None),
        ({"still": (Still(30, 80, 0.15, jump=0.03, step=0.01),)}, None, None),
        ({"still": (Still(60, 100, 0.5),)}, "videos_not_frozen", True),
        ({"still": (Still(80, 100, 0.5),)}, None, None),
        ({"samples": (sample(sharpness=0.2),)}, "videos_not_blurred", True),
        ({"samples": (sample(sharpness=0.27),)}, "videos_not_blurred", False),
        ({"samples": (sample(sharpness=0.35),)}, None, None),
        ({"samples": (sample(1), sample())}, None, None),
        ({"samples": (sample(1),)}, "cameras_keep_their_view", True),
        ({"follows": peak(3)}, None, None),
        ({"follows": peak(9)}, "videos_in_step_with_joints", True),
        ({"follows": peak(-9)}, "videos_in_step_with_joints", True),
        ({"follows": peak(9, 0.4)}, "videos_in_step_with_joints", False),
        ({"error": "cannot be decoded"}, "videos_decodable", True),
    ],
)
def test_each_rule_on_both_sides(changes, rule, certain):
    others = [facts(episode, follows=peak(episode % 2)) for episode in range(5)]
    found = episode_faults([*others, facts(5, **{"follows": peak(0), **changes})])
    assert [(fault.rule, fault.episode, fault.leaves_out) for fault in found] == (
        [(rule, 5, certain)] if rule else []
    )
    assert all(fault.text.startswith(CAMERA) for fault in found)
    assert json.dumps([dataclasses.astuple(fault) for fault in found])
    if rule in optional_rules():
        assert episode_faults([*others, facts(5, **changes)], frozenset({rule})) == []


def test_a_quarter_of_the_episodes_may_show_another_view():
    other = [facts(episode, samples=(sample(1),)) for episode in (2, 5, 8)]
    usual = [facts(episode) for episode in range(12) if episode not in (2, 5, 8)]
    found = episode_faults([*usual, *other])
    assert {(fault.rule, fault.episode) for fault in found} == {
        ("cameras_keep_their_view", episode) for episode in (2, 5, 8)
    }


def test_a_camera_that_does_not_see_the_arm_is_not_called_frozen():
    still = (Still(10, 70, 0.6, jump=0.03, step=0.01),)
    blind = [facts(episode, still=still, follows=peak(episode, height=0.2)) for episode in range(6)]
    assert not episode_faults(blind)
    seeing = [facts(episode, still=still, follows=peak(0)) for episode in range(6)]
    assert len(episode_faults(seeing)) == 6


@pytest.mark.parametrize("shape", [(480, 640, 3), (640, 480, 3), (8, 8000, 3), (1, 1, 3)])
def test_thumbnails_are_small_whatever_the_picture(shape):
    picture = Image.open(io.BytesIO(to_jpeg(np.zeros(shape, np.uint8))))
    assert picture.size[1] == HEIGHT
    assert 1 <= picture.size[0] <= 256


EPISODES, LENGTH = 12, 80
SHORT_ROLLS: dict[str, tuple[tuple[str, int], Callable[[Film], Film]]] = {
    "videos_have_declared_frames": (("front", 11), lambda film: film[:70]),
    "videos_not_black": (("front", 1), lambda film: filmed_arm.black(film, 30, 50)),
    "videos_not_frozen": (("wrist", 3), lambda film: filmed_arm.frozen(film, 30, 60)),
    "videos_not_blurred": (("front", 5), lambda film: filmed_arm.blurred(film, 2)),
}
OTHER_ROLLS: dict[str, tuple[tuple[str, int], Callable[[Film], Film]]] = {
    "cameras_keep_their_view": (("front", 4), filmed_arm.turned),
    "videos_in_step_with_joints": (("wrist", 6), lambda film: filmed_arm.late(film, 12)),
}


@pytest.fixture(scope="module")
def films() -> dict[tuple[str, int], Film]:
    return {
        (camera, episode): shoot(filmed_arm.joints(LENGTH, episode), episode)
        for camera, shoot in filmed_arm.CAMERAS.items()
        for episode in range(EPISODES)
    }


@pytest.fixture(scope="module")
def encoded(films, tmp_path_factory) -> dict[tuple[str, int], Path]:
    folder = tmp_path_factory.mktemp("films")
    paths = {key: folder / f"{key[0]}-{key[1]}.mp4" for key in films}
    for key, film in films.items():
        filmed_arm.encode(film, paths[key])
    return paths


def filmed_set(folder: Path, make_dataset, encoded, version: str = "v2.1") -> Path:
    """A dataset of the films; in v3.0 the episodes of a camera share a file."""
    numbers = iter(range(EPISODES))

    def move(columns) -> None:
        path = filmed_arm.joints(LENGTH, next(numbers))
        columns["action"], columns["observation.state"] = path, path + np.float32(0.25) * (np.abs(path) < 99)

    shape = {"episodes": EPISODES, "length": LENGTH, "cameras": tuple(filmed_arm.CAMERAS), "poison": move}
    make_dataset(folder, version=version, **shape)
    info = json.loads((folder / "meta/info.json").read_text())
    for feature in info["features"].values():
        if feature["dtype"] == "video":
            feature["shape"] = [filmed_arm.HEIGHT, filmed_arm.WIDTH, 3]
    (folder / "meta/info.json").write_text(json.dumps(info))
    for path in sorted((folder / "videos").rglob("*.mp4")):
        camera = "front" if "front" in str(path) else "wrist"
        if version == "v3.0":
            path.unlink()
            concatenate_video_files([encoded[camera, episode] for episode in range(EPISODES)], path)
        else:
            path.write_bytes(encoded[camera, int(path.stem[-6:])].read_bytes())
    return folder


def faults_of(folder: Path, name: str, publish) -> set[tuple[str, str, int, bool]]:
    """(rule, camera, episode, certain) of all that is found."""
    found = episode_faults(look_at_videos(Item(name, publish(folder, name))))
    return {
        (
            fault.rule,
            fault.text.partition(":")[0].removeprefix("observation.images."),
            fault.episode,
            fault.leaves_out,
        )
        for fault in found
    }


def planted(rolls, films, encoded, folder: Path) -> dict[tuple[str, int], Path]:
    """The same films, some of them spoilt."""
    spoilt = {}
    for rule, (key, spoil) in rolls.items():
        spoilt[key] = folder / f"{rule}.mp4"
        filmed_arm.encode(spoil(films[key]), spoilt[key])
    return {**encoded, **spoilt}


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_sound_videos_of_an_arm_have_no_fault(hub, cache, tmp_path, make_dataset, publish, encoded, version):
    assert (
        faults_of(filmed_set(tmp_path / "a", make_dataset, encoded, version), "ann/so101_a", publish) == set()
    )


def test_each_fault_is_found_in_its_episode(hub, cache, tmp_path, make_dataset, publish, films, encoded):
    """Of a dataset with a file per episode, and of one with shared files, cut in the last episode."""
    spoilt = planted(SHORT_ROLLS, films, encoded, tmp_path)
    shared = filmed_set(tmp_path / "a", make_dataset, spoilt, "v3.0")
    expected = {(rule, *key, True) for rule, (key, _) in SHORT_ROLLS.items()}
    assert faults_of(shared, "ann/so101_shared", publish) == expected

    spoilt = planted(OTHER_ROLLS, films, encoded, tmp_path)
    spoilt["front", 2], spoilt["wrist", 2] = encoded["wrist", 2], encoded["front", 2]
    single = filmed_set(tmp_path / "b", make_dataset, spoilt)
    next(single.rglob("*wrist/episode_000008.mp4")).unlink()
    next(single.rglob("*wrist/episode_000009.mp4")).write_bytes(encoded["wrist", 9].read_bytes()[:-2000])
    expected = {(rule, *key, True) for rule, (key, _) in OTHER_ROLLS.items()}
    expected |= {("cameras_not_swapped", camera, 2, True) for camera in filmed_arm.CAMERAS}
    expected |= {("videos_decodable", "wrist", episode, True) for episode in (8, 9)}
    assert faults_of(single, "ann/so101_single", publish) == expected


def test_a_few_bad_episodes_do_not_refuse_a_dataset(
    hub, cache, tmp_path, make_dataset, publish, films, encoded
):
    spoilt = planted(SHORT_ROLLS, films, encoded, tmp_path)
    publish(filmed_set(tmp_path / "few", make_dataset, spoilt), "ann/so101_few")
    most = {
        key: spoilt["front", 1] if key[0] == "front" and key[1] < 7 else path for key, path in encoded.items()
    }
    publish(filmed_set(tmp_path / "most", make_dataset, most), "bob/so101_most")
    out = tmp_path / "out"
    flags = CollectConfig(data_ids=out, deep=True, deep_workers=1, disable_rules=["not_duplicate"])
    collect(flags)
    assert json.loads((out / "dataset_list_valid.json").read_text()) == ["ann/so101_few"]
    (reason,) = json.loads((out / "bad_dataset_ids.json").read_text())["bob/so101_most"]
    assert reason.startswith("videos_not_black: observation.images.front: 25% of the frames are black")
    assert reason.endswith("(in 7 of 12 episodes looked at)")


def test_of_many_episodes_some_are_looked_at(hub, cache, tmp_path, make_dataset, publish, monkeypatch):
    monkeypatch.setattr(videos, "MAX_EPISODES", 3)
    folder = put(make_dataset(tmp_path / "a", seed=1, episodes=9), film())
    looked = look_at_videos(Item("ann/so101_a", publish(folder, "ann/so101_a")))
    assert [video.episode for video in looked] == [0, 4, 8]


@pytest.mark.slow
def test_on_a_cluster_the_results_are_the_same(
    hub, ray_cluster, cache, tmp_path, make_dataset, publish, monkeypatch
):
    for seed, name in enumerate(("one", "two", "three")):
        content = film(frames=10) if name == "two" else film()
        publish(put(make_dataset(tmp_path / name, seed=seed), content), f"ann/so101_{name}")
    out, same = tmp_path / "out", tmp_path / "same"
    collect(CollectConfig(data_ids=out, deep=True))
    monkeypatch.setenv("DEPI_CACHE", str(tmp_path / "other"))
    assert main([f"--data_ids={same}", "--deep", "--engine=ray", f"--ray.address={ray_cluster}"]) == 0
    for name in ("dataset_list_valid.json", "bad_dataset_ids.json", "thumbnails.parquet"):
        assert (same / name).read_bytes() == (out / name).read_bytes()
    assert len(list((tmp_path / "other/videos").rglob("videos.json"))) == 3
