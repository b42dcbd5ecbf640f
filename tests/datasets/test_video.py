import logging
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from recordings import number_in, numbered_image, write_video

from depi.datasets import video
from depi.datasets.video import VideoReader
from depi.errors import DatasetError

FRAMES, FPS = 24, 10


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, [numbered_image(number) for number in range(FRAMES)], FPS, g="250")
    return path


@pytest.fixture(params=["torchcodec", "pyav"])
def reader(request):
    return VideoReader(max_open=2, backend=request.param)


@pytest.mark.parametrize("drift", [-0.049, -1e-6, 0.0, 1e-6, 0.049])
def test_the_nearest_frame_is_read_in_any_order(reader, clip, drift):
    order = np.random.default_rng(0).permutation(FRAMES)
    frames = [reader.frame(clip, number / FPS + drift, FPS) for number in order]
    assert [number_in(frame) for frame in frames] == order.tolist()
    assert frames[0].shape == (3, 48, 64)
    assert frames[0].dtype == torch.uint8


def test_both_backends_agree(clip):
    for number in (0, 7, 23):
        first = VideoReader(backend="torchcodec").frame(clip, number / FPS, FPS)
        second = VideoReader(backend="pyav").frame(clip, number / FPS, FPS)
        assert (first.int() - second.int()).abs().max() <= 2


def test_the_end(reader, clip):
    assert number_in(reader.frame(clip, FRAMES / FPS + 0.09, FPS)) == FRAMES - 1
    for seconds in (FRAMES / FPS + 0.11, -0.2, float("nan")):
        with pytest.raises(DatasetError, match=r"the video has 2\.400 s"):
            reader.frame(clip, seconds, FPS)


def test_a_wrong_rate_is_overruled_by_the_frame_numbers(reader, clip):
    """The table says 30 fps, the video runs at 10: seen only where the file is one whole episode."""
    assert number_in(reader.frame(clip, 12 / 30, 30, number_of=(12, FRAMES))) == 12
    assert number_in(reader.frame(clip, 12 / 30, 30, number_of=(12, FRAMES + 10))) == 4
    assert number_in(reader.frame(clip, 12 / 30, 30)) == 4


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
        assert number_in(reader.frame(path, tenth / 10, FPS)) == number


def test_open_decoders_are_bounded(reader, clip, tmp_path):
    copies = [tmp_path / f"{number}.mp4" for number in range(5)]
    for copy in copies:
        copy.write_bytes(clip.read_bytes())
    for number in range(20):
        assert number_in(reader.frame(copies[number % 5], number / FPS, FPS)) == number
        assert len(reader._open) <= 2


@pytest.mark.parametrize("content", [b"", b"not a video", None], ids=["empty", "text", "cut in half"])
def test_what_is_no_video_is_a_dataset_error(reader, clip, tmp_path, content):
    path = tmp_path / "bad.mp4"
    path.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2] if content is None else content)
    with pytest.raises(DatasetError):
        reader.frame(path, 1.0, FPS)
    with pytest.raises(DatasetError):
        reader.frame(tmp_path / "missing.mp4", 1.0, FPS)


def test_a_reader_survives_pickling_and_forking(reader, clip):
    reader.frame(clip, 0, FPS)
    again = pickle.loads(pickle.dumps(reader))
    assert number_in(again.frame(clip, 0.5, FPS)) == 5
    assert again.backend == reader.backend
    reader._process += 1  # as if this were a forked child
    before = reader._open
    assert number_in(reader.frame(clip, 0.6, FPS)) == 6
    assert reader._open is not before


def test_without_torchcodec_pyav_decodes_and_says_so_once(clip, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    video._opener.cache_clear()
    with caplog.at_level(logging.WARNING):
        readers = [VideoReader(), VideoReader()]
        assert [number_in(reader.frame(clip, 0.3, FPS)) for reader in readers] == [3, 3]
    video._opener.cache_clear()
    assert [record.message for record in caplog.records if "PyAV" in record.message] == [
        "torchcodec cannot load, video is decoded with PyAV, more slowly: "
        "import of torchcodec.decoders halted; None in sys.modules"
    ]
    assert type(readers[0]._open[clip]) is video._PyavVideo


def test_a_huge_picture_is_refused(reader, tmp_path):
    path = tmp_path / "huge.mp4"
    write_video(path, [np.zeros((48, 8208, 3), np.uint8)] * 2, FPS)
    with pytest.raises(DatasetError, match="8208 by 48 pixels"):
        reader.frame(path, 0, FPS)


def test_import_needs_neither_lerobot_nor_torchcodec():
    heavy = ["lerobot", "torchcodec", "av", "transformers"]
    code = f"import sys, depi.datasets.multi; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
