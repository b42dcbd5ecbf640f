import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recordings import Recording, write_v2, write_v3

from depi import cli
from depi.datasets.union import prepare as preparing
from depi.datasets.union import shards
from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.datasets.union.prepare import Settings, encode_jpeg, prepare
from depi.datasets.union.shards import decode_jpeg
from depi.engine import make_runner
from depi.errors import DatasetError, UserError

ONE = make_runner("local", workers=1)
RECORDING = Recording(lengths=(9, 6, 8))
MEAN_ERROR, MAX_ERROR = 2.5, 40
"""Grey levels between the direct path and the prepared images."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPI_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=["v2.1", "v3.0", "v3.0 images"])
def recorded(request, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("recorded") / "data"
    if request.param == "v2.1":
        return write_v2(root, RECORDING, g="250")
    return write_v3(root, RECORDING, use_videos="images" not in request.param)


@pytest.fixture(scope="module")
def v2(tmp_path_factory) -> Path:
    return write_v2(tmp_path_factory.mktemp("v2") / "data", RECORDING)


def open_(root: Path, prepared: Path | None = None, **options) -> MultiLeRobotDataset:
    source = DatasetSource("someone/something", root=root)
    options = {"max_cameras": 2, "image_size": 96, "chunk_size": 4, **options}
    return MultiLeRobotDataset([source], prepared=prepared, **options)


def settings(root: Path, rows: int = 10) -> Settings:
    return Settings(root, image_size=96, rows_per_shard=rows)


def test_samples_equal_the_direct_path(recorded, tmp_path):
    direct = open_(recorded)
    (result,) = prepare(direct, settings(tmp_path / "out"), run=ONE)
    assert (result.images, result.failed, result.error) == (46, [], None)
    prepared = open_(recorded, tmp_path / "out")
    assert len(prepared) == len(direct) == 23
    for index in (*range(len(direct)), 3):
        ours, theirs = prepared[index], direct[index]
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if key in ("observation.images.0", "observation.images.1"):
                assert ours[key].shape == (3, 96, 96)
                assert ours[key].is_contiguous()
                error = (ours[key].float() - value.float()).abs()
                assert error.mean() <= MEAN_ERROR
                assert error.max() <= MAX_ERROR
            elif isinstance(value, torch.Tensor):
                assert torch.equal(ours[key], value)
            else:
                assert ours[key] == value


def test_the_videos_are_not_read(v2, tmp_path, monkeypatch):
    prepare(open_(v2), settings(tmp_path / "out"), run=ONE)
    prepared = open_(v2, tmp_path / "out")
    monkeypatch.setattr(prepared.reader, "images", None)
    again = pickle.loads(pickle.dumps(prepared))
    assert torch.equal(prepared[7]["observation.images.0"], again[7]["observation.images.0"])


def test_part_of_what_was_prepared_can_be_used(v2, tmp_path):
    prepare(open_(v2), settings(tmp_path / "out"), run=ONE)
    part = open_(v2, tmp_path / "out", episodes=[0, 2], max_cameras=1)
    direct = open_(v2, episodes=[0, 2], max_cameras=1)
    for index in range(17):
        error = part[index]["observation.images.0"].float() - direct[index]["observation.images.0"].float()
        assert error.abs().mean() <= MEAN_ERROR


def test_several_datasets_in_any_order(v2, tmp_path):
    other = write_v2(tmp_path / "other", Recording(lengths=(5, 4), cameras=("observation.images.top",)))
    sources = [DatasetSource("a/one", root=v2), DatasetSource("b/two", root=other)]
    options = {"max_cameras": 2, "image_size": 96, "chunk_size": 4}
    prepare(MultiLeRobotDataset(sources, **options), settings(tmp_path / "out"), run=ONE)
    prepared = MultiLeRobotDataset(sources[::-1], prepared=tmp_path / "out", **options)
    direct = MultiLeRobotDataset(sources[::-1], **options)
    for index in range(len(direct)):
        for key in ("observation.images.0", "observation.images.1"):
            assert prepared[index][f"{key}_is_pad"] == direct[index][f"{key}_is_pad"]
            assert (prepared[index][key].float() - direct[index][key].float()).abs().mean() <= MEAN_ERROR


def test_an_interrupted_run_goes_on(v2, tmp_path, monkeypatch):
    dataset, out = open_(v2), settings(tmp_path / "out")
    encode, count = preparing.encode_jpeg, iter(range(1000))

    def stop_after_25(image, quality):
        if next(count) >= 25:
            raise OSError("No space left on device")
        return encode(image, quality)

    monkeypatch.setattr(preparing, "encode_jpeg", stop_after_25)
    (result,) = prepare(dataset, out, run=ONE)
    assert result.error == "No space left on device"
    with pytest.raises(UserError, match=r"is not in .* run `depi prepare"):
        open_(v2, tmp_path / "out")
    monkeypatch.setattr(preparing, "encode_jpeg", encode)
    (result,) = prepare(dataset, out, run=ONE)
    assert (result.reused, result.error, result.images) == (2, None, 46)
    assert not list((tmp_path / "out").rglob("*.tmp"))
    open_(v2, tmp_path / "out")[20]


def test_damage_is_found_and_mended(v2, tmp_path):
    dataset, out = open_(v2), settings(tmp_path / "out")
    prepare(dataset, out, run=ONE)
    shards = sorted((tmp_path / "out").rglob("*.arrow"))
    content = bytearray(shards[1].read_bytes())
    content[len(content) // 2] ^= 0xFF
    shards[1].write_bytes(content)
    shards[2].write_bytes(shards[2].read_bytes()[:1000])
    with pytest.raises(UserError, match=r"shard-00002\.arrow is missing or cut short"):
        open_(v2, tmp_path / "out")
    assert prepare(dataset, out, run=ONE)[0].reused == 4
    assert prepare(dataset, out, run=ONE, verify=True)[0].reused == 4
    assert prepare(dataset, out, run=ONE, verify=True)[0].reused == 5


def test_frames_that_cannot_be_decoded_are_replaced_as_on_the_direct_path(tmp_path):
    root = write_v2(tmp_path / "data", RECORDING)
    next(root.rglob("*wrist/episode_000001.mp4")).write_bytes(b"no video")
    options = {"max_bad_fraction": 1.0}
    (result,) = prepare(open_(root, **options), settings(tmp_path / "out"), run=ONE)
    assert [(episode, frame, camera) for episode, frame, camera, _ in result.failed] == [
        (1, frame, "observation.images.wrist") for frame in range(6)
    ]
    (again,) = prepare(open_(root, **options), settings(tmp_path / "out"), run=ONE)
    assert (again.reused, len(again.failed)) == (5, 6)
    direct, prepared = open_(root, **options), open_(root, tmp_path / "out", **options)
    batch = open_(root, tmp_path / "out", **options).__getitems__(range(len(direct)))
    for index, together in enumerate(batch):
        sample = prepared[index]
        assert sample["index"] == direct[index]["index"] == together["index"]
        assert torch.equal(sample["observation.images.0"], together["observation.images.0"])
    assert prepared.decode_failures() == direct.decode_failures() == {"someone/something": {1: 6}}


def test_what_does_not_fit_is_refused(v2, tmp_path):
    out = tmp_path / "out"
    prepare(open_(v2, max_cameras=1, episodes=[0, 1]), settings(out), run=ONE)
    chosen = {"max_cameras": 1, "episodes": [0, 1]}
    assert len(open_(v2, out, **chosen)) == 15
    with pytest.raises(UserError, match=r"prepared with image_size=96, quality=95, .*but image_size=64"):
        open_(v2, out, image_size=64, **chosen)
    with pytest.raises(UserError, match=r"with the cameras observation\.images\.wrist, not .*front"):
        open_(v2, out, episodes=[0, 1])
    with pytest.raises(UserError, match="is not the file that was prepared"):
        open_(v2, out, max_cameras=1)
    with pytest.raises(UserError, match=r"something at local is not in .* \(not at all\)"):
        MultiLeRobotDataset([DatasetSource("a/something", root=v2)], prepared=out, image_size=96)
    with pytest.raises(UserError, match=r"at revision-v2 is not in .* \(at local\)"):
        MultiLeRobotDataset([DatasetSource("someone/something", "v2", v2)], prepared=out, image_size=96)
    with pytest.raises(UserError, match="holds no prepared images"):
        open_(v2, v2)
    with pytest.raises(UserError, match="holds other files"):
        prepare(open_(v2), settings(v2), run=ONE)
    with pytest.raises(UserError, match="with other cameras, episodes or files"):
        prepare(open_(v2), settings(out), run=ONE)
    with pytest.raises(UserError, match="image_size=96, quality=95, antialias=False: remove it, or prepare"):
        prepare(open_(v2), Settings(out), run=ONE)


def test_images_that_were_scaled_in_another_way_are_refused(v2, tmp_path):
    smooth = replace(settings(tmp_path / "smooth"), antialias=True)
    prepare(open_(v2), smooth, run=ONE)
    direct, prepared = open_(v2, antialias=True), open_(v2, tmp_path / "smooth", antialias=True)
    for index in (0, 11):
        key = "observation.images.0"
        difference = (direct[index][key].float() - prepared[index][key].float()).abs().mean()
        assert difference < 3
    with pytest.raises(UserError, match=r"antialias=False is wanted.*--antialias=false"):
        open_(v2, tmp_path / "smooth")
    with pytest.raises(UserError, match="antialias=True: remove it, or prepare in another folder"):
        prepare(open_(v2), settings(tmp_path / "smooth"), run=ONE)


def test_images_of_other_code_are_refused_and_not_added_to(v2, tmp_path, monkeypatch):
    from depi.datasets.recording import cameras

    def letterbox(image, size, antialias):
        return cameras.letterbox(image, size, antialias).flip(-1)

    prepare(open_(v2), settings(tmp_path / "out"), run=ONE)
    assert len(open_(v2, tmp_path / "out")) == 23
    monkeypatch.setattr(shards, "letterbox", letterbox)
    with pytest.raises(UserError, match=r"another version of DePi.* run `depi prepare` again"):
        open_(v2, tmp_path / "out")
    with pytest.raises(UserError, match=r"another version of DePi.* remove it, or prepare in another folder"):
        prepare(open_(v2), settings(tmp_path / "out"), run=ONE)


def test_images_of_before_there_was_a_digest_are_refused(v2, tmp_path):
    prepare(open_(v2), settings(tmp_path / "out"), run=ONE)
    (tmp_path / "out/prepared.json").write_text('{"format": 1, "image_size": 96, "quality": 95}')
    with pytest.raises(UserError, match="another version of DePi"):
        open_(v2, tmp_path / "out")


@pytest.mark.parametrize("revision", [None, "main"])
def test_another_recording_under_the_same_name_is_refused(tmp_path, revision):
    root = write_v2(tmp_path / "data", RECORDING)
    source = DatasetSource("someone/something", revision, root)
    prepare(MultiLeRobotDataset([source], image_size=96), settings(tmp_path / "out"), run=ONE)
    shutil.rmtree(root)
    write_v2(root, Recording(lengths=RECORDING.lengths, seed=1), crf="1")
    with pytest.raises(UserError, match="is not the file that was prepared"):
        MultiLeRobotDataset([source], image_size=96, prepared=tmp_path / "out")


def test_jpeg_keeps_colour_and_refuses_what_is_none():
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 48, 64), np.uint8))
    error = (decode_jpeg(encode_jpeg(image, 95)).float() - image.float()).abs()
    assert error.mean() < 4
    for data in (b"", b"\xff\xd8 no image", b"GIF89a"):
        with pytest.raises(DatasetError, match="cannot be decoded"):
            decode_jpeg(data)


def test_other_sizes_than_the_prepared_one_come_from_the_video(v2, tmp_path):
    prepare(open_(v2), settings(tmp_path / "out"), run=ONE)
    prepared = open_(v2, tmp_path / "out")
    for found, expected in zip(prepared.camera_images(1, 2), open_(v2).camera_images(1, 2), strict=True):
        assert torch.equal(found, expected)


def test_the_command(v2, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["prepare", "--dataset.repo_id=someone/something", f"--dataset.root={v2}"]
    arguments += [f"--output_dir={out}", "--image_size=96", "--workers=2"]
    assert cli.main(arguments) == 0
    assert "46" in capsys.readouterr().out
    (dataset,) = json.loads((out / "report.json").read_text())["datasets"]
    assert (dataset["repo_id"], dataset["images"], dataset["reused"]) == ("someone/something", 46, 0)
    assert open_(v2, out)[5]["observation.images.0"].any()
    assert cli.main([*arguments[:-1], "--workers=1"]) == 0
    assert json.loads((out / "report.json").read_text())["datasets"][0]["reused"] == 1
    capsys.readouterr()
    assert cli.main([*arguments, "--engine=abacus"]) == 2
    assert "none of local, ray" in capsys.readouterr().err
    assert cli.main([*arguments, "--quality=90"]) == 2
    assert "was prepared with image_size=96, quality=95" in capsys.readouterr().err
    assert cli.main(["prepare", f"--output_dir={out}"]) == 2
    assert "--num_datasets" in capsys.readouterr().err


@pytest.mark.slow
def test_a_ray_cluster_writes_the_same_images(v2, tmp_path, ray_cluster):
    arguments = ["prepare", "--dataset.repo_id=someone/something", f"--dataset.root={v2}", "--image_size=96"]
    assert cli.main([*arguments, f"--output_dir={tmp_path / 'pool'}", "--workers=1"]) == 0
    cluster = ["--engine=ray", f"--ray.address={ray_cluster}"]
    assert cli.main([*arguments, f"--output_dir={tmp_path / 'ray'}", *cluster]) == 0
    written = [sorted((tmp_path / name).rglob("*.arrow")) for name in ("pool", "ray")]
    assert len(written[0]) == len(written[1]) > 0
    for mine, theirs in zip(*written, strict=True):
        assert mine.read_bytes() == theirs.read_bytes()
