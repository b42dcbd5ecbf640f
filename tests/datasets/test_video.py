import contextlib
import logging
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from recordings import number_in, numbered_image, write_video

from depi.datasets.recording import decoders
from depi.datasets.recording.cameras import letterbox
from depi.datasets.recording.video import FrameRequest, VideoReader
from depi.errors import DatasetError

FRAMES, FPS = 24, 10


def at(reader: VideoReader, *request, **details):
    return reader.frame(FrameRequest(*request, **details))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, [numbered_image(number) for number in range(FRAMES)], FPS, g="250")
    return path


@pytest.fixture(scope="module")
def av1_clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("av1") / "clip.mp4"
    images = [numbered_image(number, (64, 96)) for number in range(FRAMES)]
    write_video(path, images, FPS, "libsvtav1", g="2", preset="12")
    return path


@pytest.fixture(params=["torchcodec", "pyav"])
def reader(request):
    return VideoReader(max_open=2, backend=request.param)


@pytest.mark.parametrize("drift", [-0.049, -1e-6, 0.0, 1e-6, 0.049])
def test_the_nearest_frame_is_read_in_any_order(reader, clip, drift):
    order = np.random.default_rng(0).permutation(FRAMES)
    frames = [at(reader, clip, number / FPS + drift, FPS) for number in order]
    assert [number_in(frame) for frame in frames] == order.tolist()
    assert frames[0].shape == (3, 48, 64)
    assert frames[0].dtype == torch.uint8


def test_both_backends_agree(clip):
    for number in (0, 7, 23):
        first = at(VideoReader(backend="torchcodec"), clip, number / FPS, FPS)
        second = at(VideoReader(backend="pyav"), clip, number / FPS, FPS)
        assert (first.int() - second.int()).abs().max() <= 2


def test_the_end(reader, clip):
    assert number_in(at(reader, clip, FRAMES / FPS + 0.09, FPS)) == FRAMES - 1
    for seconds in (FRAMES / FPS + 0.11, -0.2, float("nan")):
        with pytest.raises(DatasetError, match=r"the video has 2\.400 s"):
            at(reader, clip, seconds, FPS)


def test_a_wrong_rate_is_overruled_by_the_frame_numbers(reader, clip):
    """The table says 30 fps, the video runs at 10: seen only where the file is one whole episode."""
    assert number_in(at(reader, clip, 12 / 30, 30, number_of=(12, FRAMES))) == 12
    assert number_in(at(reader, clip, 12 / 30, 30, number_of=(12, FRAMES + 10))) == 4
    assert number_in(at(reader, clip, 12 / 30, 30)) == 4


def test_variable_frame_rate_follows_the_videos_clock(reader, tmp_path):
    import av

    path = tmp_path / "variable.mp4"
    shown_at = [0, 1, 2, 5, 6, 10, 11, 12, 18, 19]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=10, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number, tenth in enumerate(shown_at):
            frame = av.VideoFrame.from_ndarray(numbered_image(number), format="rgb24")
            frame.pts = tenth
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for number, tenth in enumerate(shown_at):
        assert number_in(at(reader, path, tenth / 10, FPS)) == number


def test_open_decoders_are_bounded(reader, clip, tmp_path):
    copies = [tmp_path / f"{number}.mp4" for number in range(5)]
    for copy in copies:
        copy.write_bytes(clip.read_bytes())
    for number in range(20):
        assert number_in(at(reader, copies[number % 5], number / FPS, FPS)) == number
        assert len(reader._open) <= 2


@pytest.mark.parametrize("content", [b"", b"not a video", None], ids=["empty", "text", "cut in half"])
def test_what_is_no_video_is_a_dataset_error(reader, clip, tmp_path, content):
    path = tmp_path / "bad.mp4"
    path.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2] if content is None else content)
    with pytest.raises(DatasetError):
        at(reader, path, 1.0, FPS)
    with pytest.raises(DatasetError):
        at(reader, tmp_path / "missing.mp4", 1.0, FPS)


def test_a_reader_survives_pickling_and_forking(reader, clip):
    at(reader, clip, 0, FPS)
    again = pickle.loads(pickle.dumps(reader))
    assert number_in(at(again, clip, 0.5, FPS)) == 5
    assert again.backend == reader.backend
    reader._process += 1  # as if this were a forked child
    before = reader._open
    assert number_in(at(reader, clip, 0.6, FPS)) == 6
    assert reader._open is not before


def test_without_torchcodec_pyav_decodes_and_says_so_once(av1_clip, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    decoders._torchcodec_loads.cache_clear()
    with caplog.at_level(logging.WARNING):
        readers = [VideoReader(), VideoReader()]
        assert [number_in(at(reader, av1_clip, 0.3, FPS)) for reader in readers] == [3, 3]
    decoders._torchcodec_loads.cache_clear()
    assert [record.message for record in caplog.records if "PyAV" in record.message] == [
        "torchcodec cannot load, video is decoded with PyAV, more slowly: "
        "import of torchcodec.decoders halted; None in sys.modules"
    ]
    assert type(readers[0]._open[av1_clip]) is decoders.PyavVideo


def test_each_codec_has_its_faster_decoder(clip, av1_clip):
    reader = VideoReader()
    at(reader, clip, 0, FPS)
    at(reader, av1_clip, 0, FPS)
    assert [type(video) for video in reader._open.values()] == [
        decoders.PyavVideo,
        decoders.TorchcodecVideo,
    ]


def test_a_huge_picture_is_refused(reader, tmp_path):
    path = tmp_path / "huge.mp4"
    write_video(path, [np.zeros((48, 8208, 3), np.uint8)] * 2, FPS)
    with pytest.raises(DatasetError, match="8208 by 48 pixels"):
        at(reader, path, 0, FPS)


def test_import_needs_neither_lerobot_nor_torchcodec():
    heavy = ["lerobot", "torchcodec", "av", "transformers"]
    code = f"import sys, depi.datasets.union.multi; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


ENCODINGS = {
    "h264 short": ("h264", {"g": "2"}),
    "h264 long": ("h264", {"g": "250", "bf": "3", "x264-params": "b-pyramid=normal:b-adapt=0"}),
    "h264 open": ("h264", {"g": "7", "bf": "3", "x264-params": "open-gop=1:b-adapt=0"}),
    "hevc open": ("libx265", {"g": "7", "x265-params": "open-gop=1:bframes=3:b-adapt=0:log-level=none"}),
    "av1 short": ("libsvtav1", {"g": "2", "preset": "12"}),
    "av1 long": ("libsvtav1", {"g": "30", "preset": "12"}),
}


@pytest.fixture(scope="module", params=ENCODINGS)
def encoded(request, tmp_path_factory):
    codec, options = ENCODINGS[request.param]
    path = tmp_path_factory.mktemp(request.param.replace(" ", "-")) / "clip.mp4"
    images = [numbered_image(number, (64, 96)) for number in range(40)]
    write_video(path, images, FPS, codec, **options)
    return path


def frames_of(reader, requests):
    return [reader.frame(request) for request in requests]


@pytest.mark.parametrize("backend", [None, "torchcodec", "pyav"])
def test_every_frame_of_every_encoding(encoded, backend):
    if backend == "torchcodec" and "open" in encoded.parent.name:
        pytest.skip("torchcodec is wrong where frames before a keyframe refer to frames after it")
    reader = VideoReader(backend=backend)
    order = np.random.default_rng(1).permutation(40)
    requests = [FrameRequest(encoded, number / FPS + 1e-4 * (number % 3 - 1), FPS) for number in order]
    assert [number_in(frame) for frame in frames_of(reader, requests)] == order.tolist()
    some = sorted(requests[::3], key=lambda request: request.seconds)
    for together in (some, [some[4], some[4], some[9]]):
        apart = frames_of(VideoReader(backend=backend), together)
        assert all(map(torch.equal, reader.frames(together), apart))
    run = [FrameRequest(encoded, number / FPS, FPS) for number in range(5, 40, 2)]
    frames = list(reader.episode(run))
    assert [number_in(frame) for frame in frames] == list(range(5, 40, 2))
    assert all(torch.equal(*pair) for pair in zip(frames, frames_of(reader, run), strict=True))


def test_all_decoders_give_the_same_pixels(encoded):
    if "open" in encoded.parent.name:
        pytest.skip("torchcodec is wrong where frames before a keyframe refer to frames after it")
    requests = [FrameRequest(encoded, number / FPS, FPS) for number in (0, 13, 22, 39)]
    first = frames_of(VideoReader(backend="torchcodec"), requests)
    for backend in (None, "pyav"):
        assert all(map(torch.equal, first, frames_of(VideoReader(backend=backend), requests)))


def test_letterboxed_frames_are_within_one_level_of_lerobots(tmp_path):
    from lerobot.policies.common.vla_utils import resize_with_pad_torch

    path = tmp_path / "noise.mp4"
    images = np.random.default_rng(0).integers(0, 256, (3, 120, 160, 3), np.uint8)
    write_video(path, list(images), FPS, crf="10")
    recorded = at(VideoReader(), path, 0.1, FPS)
    ours = letterbox(recorded, 224).float()
    theirs = resize_with_pad_torch(recorded[None].float() / 255, 224, 224)[0] * 255
    assert (ours - theirs).abs().max() < 1.001
    for size in (64, 48):
        theirs = resize_with_pad_torch(recorded[None].float() / 255, size, size)[0] * 255
        assert (letterbox(recorded, size) - theirs).abs().max() < 1.001


def test_open_decoders_are_bounded_by_memory(reader, clip, tmp_path):
    one = decoders.open_video(clip).bytes
    reader = VideoReader(max_bytes=3 * one)
    for number in range(6):
        copy = tmp_path / f"{number}.mp4"
        copy.write_bytes(clip.read_bytes())
        assert number_in(at(reader, copy, number / FPS, FPS)) == number
        assert reader._bytes <= 3 * one
    assert len(reader._open) == 3


def test_a_playlist_named_mp4_is_not_followed(reader, clip, tmp_path):
    path = tmp_path / "list.mp4"
    for text in (
        f"ffconcat version 1.0\nfile {clip.name}\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\n{clip.name}\n#EXT-X-ENDLIST\n",
    ):
        path.write_text(text)
        (tmp_path / clip.name).write_bytes(clip.read_bytes())
        with pytest.raises(DatasetError):
            at(reader, path, 0.5, FPS)


@pytest.mark.parametrize("codec", ["h264", "libsvtav1"])
def test_a_broken_stretch_is_an_error_never_another_frame(codec, tmp_path):
    path = tmp_path / "broken.mp4"
    images = [numbered_image(number, (96, 128)) for number in range(40)]
    write_video(path, images, FPS, codec, g="8", preset="medium" if codec == "h264" else "12")
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat")
    begin += (len(data) - begin) // 2
    data[begin : begin + 20] = bytes(20)
    path.write_bytes(data)
    reader = VideoReader(backend="pyav")
    seen: dict[int, int] = {}
    for number in range(40):
        with contextlib.suppress(DatasetError):
            seen[number] = number_in(at(reader, path, number / FPS, FPS))
    assert 30 < len(seen) < 40
    assert all(number == shown for number, shown in seen.items())
    requests = [FrameRequest(path, number / FPS, FPS) for number in range(40)]
    together = enumerate(reader.frames(requests))
    assert seen == {
        number: number_in(frame) for number, frame in together if not isinstance(frame, DatasetError)
    }
