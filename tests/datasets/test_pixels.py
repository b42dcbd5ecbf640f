"""Images and videos that nobody should read: refused by name, before they cost time or memory."""

import io
import struct
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from recordings import Recording, number_in, numbered_image, write_v3, write_video

from depi.catalog.packets import Video
from depi.datasets.recording import images
from depi.datasets.recording.allowed import check_size
from depi.datasets.recording.images import ImageReader, decode_image
from depi.datasets.recording.mp4 import Mp4Index
from depi.datasets.recording.video import FrameRequest, VideoReader
from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.errors import DatasetError, UserError

SIZE = (48, 64)
FPS = 10
FRONT = "observation.images.front"


def encoded(format: str, image: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "MPO"])
def test_png_and_jpeg_are_read(format):
    pixels = decode_image(encoded(format, numbered_image(37, SIZE)), SIZE)
    assert pixels.shape == (3, *SIZE)
    assert number_in(pixels) == 37


@pytest.mark.parametrize(
    "format", ["AVIF", "BMP", "BLP", "DDS", "EPS", "GIF", "IM", "JPEG2000", "PCX", "PPM", "QOI", "SPIDER",
               "TGA", "TIFF", "WEBP"]
)  # fmt: skip
def test_no_other_format_is(format):
    image = Image.fromarray(numbered_image(37, SIZE))
    file = io.BytesIO()
    image.convert({"BLP": "P", "SPIDER": "F"}.get(format, "RGB")).save(file, format)
    with pytest.raises(DatasetError, match="an image is no JPEG or PNG file, or broken"):
        decode_image(file.getvalue())


def test_a_jpeg_of_many_scans_is_refused():
    data = encoded("JPEG", numbered_image(37, SIZE), progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(DatasetError, match="more than 100 scans"):
        decode_image(data[:-2] + scan * 1000 + data[-2:])


@pytest.mark.parametrize(
    ("width", "height", "declared"),
    [
        (1200, 1920, (1200, 1920)),  # exchanged
        (640, 488, (480, 640)),  # a side rounded
        (1920, 1080, (48, 64)),  # made larger later
        (64, 48, (2160, 3840)),
        (3840, 2160, (2160, 3840)),
        (4096, 2160, (1728, 2592)),
        (4096, 4096, None),
    ],
)
def test_sizes_of_honest_recordings_are_read(width, height, declared):
    check_size(width, height, declared)


@pytest.mark.parametrize(
    ("width", "height", "declared"),
    [
        (0, 48, None),
        (8208, 48, (48, 8208)),
        (8192, 8192, (8192, 8192)),
        (3840, 2160, (480, 640)),
        (1921, 1080, (48, 64)),
    ],
)
def test_other_sizes_are_not(width, height, declared):
    with pytest.raises(DatasetError, match=f"a picture is {width} by {height} pixels, "):
        check_size(width, height, declared)


def test_an_image_far_larger_than_declared_is_not_decoded():
    for format in ("PNG", "JPEG"):
        data = encoded(format, np.zeros((4000, 4000, 3), np.uint8))
        assert decode_image(data, (4000, 4000)).shape == (3, 4000, 4000)
        begin = time.process_time()
        with pytest.raises(DatasetError, match="4000 by 4000 pixels, far more than the declared 64 by 48"):
            decode_image(data, SIZE)
        assert time.process_time() - begin < 0.05


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, [numbered_image(number, SIZE) for number in range(12)], FPS)
    return path


def from_catalogue(path: Path) -> None:
    """Read a video as `collect-ids --deep` does, from a file instead of the Hub."""
    with Video(Whole(path), SIZE) as video:
        video.frame(0)


class Whole(io.FileIO):
    """A local file with the methods of a `RemoteFile`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self.size = path.stat().st_size

    def fetch(self, start: int, count: int) -> bytes:
        self.seek(start)
        return self.read(count)


def from_reader(path: Path) -> None:
    VideoReader().frame(FrameRequest(path, 0.0, FPS, declared=SIZE))


READERS = pytest.mark.parametrize("read", [from_reader, from_catalogue])


def replaced(clip: Path, folder: Path, box: bytes, change) -> Path:
    """A copy of the video with the bytes that follow the name of a box changed."""
    data = bytearray(clip.read_bytes())
    at = data.index(box) + 4
    change(memoryview(data)[at:])
    path = folder / "changed.mp4"
    path.write_bytes(data)
    return path


@READERS
@pytest.mark.parametrize(
    ("codec", "message"),
    [
        (b"xvc1", "its codec is 'xvc1', for which there is no decoder here"),
        (b"\xff\n\x00a", r"its codec is '\\xff\\n\\x00a', for which"),
        (b"apcn", "its codec is 'prores', only h264, hevc, av1, "),
        (b"tscc", "its codec is 'tscc', only h264"),
    ],
)
def test_other_codecs_are_refused_by_name(clip, tmp_path, read, codec, message):
    def change(box):
        box[12:16] = codec

    with pytest.raises(DatasetError, match=message):
        read(replaced(clip, tmp_path, b"stsd", change))


@READERS
def test_a_small_video_that_claims_millions_of_frames_is_not_opened(clip, tmp_path, read):
    def change(box):
        box[4:12] = struct.pack(">II", 1, 50_000_000)

    begin = time.process_time()
    with pytest.raises(DatasetError, match="it claims 50000000 frames in 1 edits"):
        read(replaced(clip, tmp_path, b"stsz", change))
    assert time.process_time() - begin < 1


def test_edits_multiply_frames(clip, tmp_path):
    def change(box):
        box[4:8] = struct.pack(">I", 1_000_000)

    path = replaced(clip, tmp_path, b"elst", change)
    with path.open("rb") as file, pytest.raises(DatasetError, match="12 frames in 1000000 edits"):
        Mp4Index(file)


@READERS
def test_a_video_far_larger_than_declared_is_not_decoded(tmp_path, read):
    path = tmp_path / "large.mp4"
    write_video(path, [np.zeros((1024, 2048, 3), np.uint8)] * 2, FPS, preset="ultrafast")
    VideoReader().frame(FrameRequest(path, 0.0, FPS, declared=(1024, 2048)))
    with pytest.raises(DatasetError, match="2048 by 1024 pixels, far more than the declared 64 by 48"):
        read(path)


@pytest.mark.parametrize("codec", ["h264", "libsvtav1"])
def test_a_stream_larger_than_its_header_says_is_refused(tmp_path, codec):
    path = tmp_path / "large.mp4"
    write_video(
        path,
        [np.zeros((1024, 2048, 3), np.uint8)] * 2,
        FPS,
        codec,
        preset="ultrafast" if codec == "h264" else "12",
    )

    def change(box):
        # After the name of the codec: 24 bytes, then width and height.
        box[12 + 4 + 24 : 12 + 4 + 28] = struct.pack(">HH", 64, 48)

    with pytest.raises(DatasetError, match="pixels"):
        from_reader(replaced(path, tmp_path, b"stsd", change))


def test_an_image_table_is_read_from_any_place(tmp_path):
    """Windows, row groups, dictionaries: every row is its own image, in any order, in bounded memory."""
    count = 120
    values = [encoded("PNG", numbered_image(number, SIZE)) for number in range(count)]
    for options in ({}, {"use_dictionary": False}, {"row_group_size": 17}):
        path = tmp_path / f"{len(options)}{options.get('row_group_size', 0)}.parquet"
        table = pa.table({"camera": [{"bytes": value, "path": "\u00e9.png"} for value in values]})
        pq.write_table(table, path, **options)
        reader = ImageReader(max_bytes=40 * len(values[0]))
        order = [*np.random.default_rng(0).permutation(count)[:40].tolist(), *range(count)]
        for row in order:
            assert number_in(reader.image(path, "camera", row, SIZE)) == row
            kept = [window.values.nbytes for window in reader._windows.values()]
            assert sum(kept) <= reader.max_bytes
        with pytest.raises(DatasetError, match="ends before row 120"):
            reader.image(path, "camera", count)


def test_a_table_is_opened_once_for_images_in_a_row(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    values = [encoded("PNG", numbered_image(number, SIZE)) for number in range(40)]
    pq.write_table(pa.table({"camera": values}), path, row_group_size=20)
    opened = []
    open_table = images._open_table
    monkeypatch.setattr(images, "_open_table", lambda path: opened.append(path) or open_table(path))
    reader = ImageReader()
    assert [number_in(reader.image(path, "camera", row)) for row in range(40)] == list(range(40))
    assert opened == [path]


def unfolding_dictionary(path):
    """144 kB, or less, that are 18 GB of images."""
    value = encoded("PNG", numbered_image(1, SIZE)) + bytes(1_200_000)
    values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(15_000, np.int32)), [value])
    table = pa.table({"camera": pa.StructArray.from_arrays([values], ["bytes"])})
    pq.write_table(table, path, compression="zstd", store_schema=False)


def large_dictionary(path):
    pq.write_table(pa.table({"camera": [bytes(50_000_000)]}), path, compression="zstd")


def large_pages(path):
    values = [bytes(5_000_000)] * 10
    pq.write_table(pa.table({"camera": values}), path, compression="zstd", use_dictionary=False)


def many_empty_values(path):
    values = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), [b""])
    pq.write_table(pa.table({"camera": values}), path, compression="zstd", store_schema=False)
    data = bytearray(path.read_bytes())
    # The dictionary's header, {kind 2, 4 bytes, stored, {1 value ...: it claims 63 of them.
    at = data.index(b"\x15\x04\x15\x08")
    at = data.index(b"\x4c\x15\x02", at)
    data[at + 2] = 126
    path.write_bytes(data)


def lists_of_images(path):
    pq.write_table(pa.table({"camera": [[b"x"] * 1000]}), path)


def numbers(path):
    pq.write_table(pa.table({"camera": [1, 2]}), path)


def nothing_in_the_footer(path):
    pq.write_table(pa.table({"other": [b"x"]}), path)


def large_footer(path):
    path.write_bytes(b"PAR1" + bytes(100) + struct.pack("<I", 1_000_000_000) + b"PAR1")


BAD_TABLES = {
    unfolding_dictionary: (14_000, "the images of bad.parquet unfold to more than 40000000 bytes"),
    large_dictionary: (0, "images of bad.parquet unfold to 5[0-9]{7} bytes, at most 40000000 are read"),
    large_pages: (9, "images of bad.parquet unfold to 5[0-9]{7} bytes, at most 40000000 are read"),
    many_empty_values: (0, "a dictionary of column 'camera' has 63 values of no bytes"),
    lists_of_images: (0, "there is no column 'camera' of images"),
    numbers: (0, "there is no column 'camera' of images"),
    nothing_in_the_footer: (0, "there is no column 'camera' of images"),
    large_footer: (0, "the footer of bad.parquet has 1000000000 bytes"),
}


@pytest.mark.parametrize("make", BAD_TABLES, ids=lambda make: make.__name__)
def test_tables_that_unfold_are_refused(tmp_path, make, monkeypatch):
    """A tenth of the real bound, so that the test itself is quick."""
    monkeypatch.setattr(images, "FREE_BYTES", images.FREE_BYTES // 10)
    row, message = BAD_TABLES[make]
    make(tmp_path / "bad.parquet")
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest until now
    before, begin = peak_megabytes(), time.process_time()
    with pytest.raises(DatasetError, match=message):
        ImageReader().image(tmp_path / "bad.parquet", "camera", row)
    assert time.process_time() - begin < 2
    assert peak_megabytes() - before < 250  # 75 MB are kept, and Arrow holds on to some of what it had


def peak_megabytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000


def test_training_leaves_out_what_is_far_larger_than_declared(tmp_path):
    """The declared size comes along from the metadata to each image, of tables and of videos."""
    recording = Recording(cameras=(FRONT,), lengths=(5,))
    for use_videos in (False, True):
        root = write_v3(tmp_path / str(use_videos), recording, use_videos=use_videos)
        source = DatasetSource("user/data", root=root)
        assert MultiLeRobotDataset([source], image_size=64)[0]["observation.images.0"].shape == (3, 64, 64)
        large = np.zeros((1024, 2048, 3), np.uint8)
        if use_videos:
            (video,) = root.rglob("*.mp4")
            write_video(video, [large] * 5, recording.fps, preset="ultrafast")
        else:
            (file,) = (root / "data").rglob("*.parquet")
            table = pq.read_table(file)
            column = table.column_names.index(FRONT)
            values = pa.array([{"bytes": encoded("PNG", large), "path": "a.png"}] * 5)
            pq.write_table(table.set_column(column, FRONT, values), file)
        dataset = MultiLeRobotDataset([source], image_size=64, max_bad_fraction=0.5)
        with pytest.raises(UserError, match="2048 by 1024 pixels, far more than the declared 64 by 48"):
            dataset[0]
