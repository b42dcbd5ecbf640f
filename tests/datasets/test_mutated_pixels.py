"""Real videos, images and image tables with changed bytes: each gives pixels or a DatasetError, soon."""

import io
import time
from pathlib import Path

import av
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from recordings import numbered_image, write_video

from depi.datasets.recording.images import decode_image
from depi.datasets.recording.place_reader import PlaceReader
from depi.datasets.recording.places import ImagePlace
from depi.errors import DatasetError

FRAMES, FPS, SIZE = 12, 10, (48, 64)
MAX_SECONDS, MAX_MEGABYTES = 2.0, 1000
FEW = settings(
    max_examples=500, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
MANY = settings(FEW, max_examples=20_000, derandomize=False, print_blob=True)


def encoded(format: str, number: int, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(numbered_image(number, SIZE)).save(file, format, **options)
    return file.getvalue()


def image_table(path: Path, images: list[bytes], **options) -> bytes:
    values = [{"bytes": image, "path": f"{number}.png"} for number, image in enumerate(images)]
    pq.write_table(pa.table({"camera": values, "index": range(len(values))}), path, **options)
    return path.read_bytes()


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, bytes]:
    """Name of a file -> its bytes."""
    folder = tmp_path_factory.mktemp("originals")
    images = [numbered_image(number, SIZE) for number in range(FRAMES)]
    videos = {
        "h264.mp4": ("h264", {"g": "4", "bf": "2"}),
        "hevc.mp4": ("libx265", {"g": "4", "x265-params": "log-level=none"}),
        "av1.mp4": ("libsvtav1", {"g": "2", "preset": "12"}),
        "mpeg4.mp4": ("mpeg4", {"g": "4"}),
    }
    for name, (codec, options) in videos.items():
        write_video(folder / name, images, FPS, codec, **options)
    found = {name: (folder / name).read_bytes() for name in videos}
    pngs = [encoded("PNG", number) for number in range(FRAMES)]
    repeated = [encoded("JPEG", number % 2) for number in range(FRAMES)]
    return found | {
        "one.jpeg": encoded("JPEG", 5),
        "progressive.jpeg": encoded("JPEG", 5, progressive=True),
        "one.png": encoded("PNG", 5),
        "lerobot.parquet": image_table(folder / "a.parquet", pngs),
        "groups.parquet": image_table(folder / "b.parquet", repeated, row_group_size=5, compression="zstd"),
        "plain.parquet": image_table(
            folder / "c.parquet", pngs, use_dictionary=False, data_page_version="2.0", data_page_size=300
        ),
    }


EDGES = [0, 1, 127, 128, 255]
NUMBERS = [0, 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1]


@st.composite
def changes(draw) -> tuple[str, list[tuple[str, float, int, int]]]:
    """The kind of file, and what to change in it: how, where as a share of the file, and two numbers."""
    kinds = ["flip", "byte", "number", "cut", "remove", "repeat", "move"]
    change = st.tuples(
        st.sampled_from(kinds),
        # What describes a file stands at one of its ends.
        st.one_of(st.floats(0, 1), st.floats(0, 0.05), st.floats(0.7, 1)),
        st.one_of(st.sampled_from(EDGES), st.integers(0, 255)),
        st.sampled_from(NUMBERS),
    )
    return draw(st.lists(change, min_size=1, max_size=6))


def changed(data: bytes, edits: list[tuple[str, float, int, int]]) -> bytes:
    for kind, share, byte, number in edits:
        at = min(int(share * len(data)), max(0, len(data) - 1))
        before, here, rest = data[:at], data[at : at + 1], data[at + 1 :]
        match kind:
            case "flip":
                data = before + bytes(value ^ (1 << byte % 8) for value in here) + rest
            case "byte":
                data = before + bytes([byte]) + rest
            case "number":
                data = before + number.to_bytes(4) + rest[3:]
            case "cut":
                data = before if byte % 8 == 0 else data
            case "remove":
                data = before + rest[byte:]
            case "repeat":
                data = before + data[at : at + byte] * 2 + rest
            case "move":
                data = (
                    rest[byte:] + before + here if byte % 8 == 0 else before + rest[:byte][::-1] + rest[byte:]
                )
    return data


def outcomes(path: Path, data: bytes) -> list[torch.Tensor | DatasetError]:
    """What every way of reading the file gives."""
    kind = path.suffix
    reader = PlaceReader()
    place = ImagePlace(path.name, "camera", kind == ".parquet", 0.0, float("inf"), True, FPS, FRAMES, SIZE)
    ways = [
        lambda frame=frame: [reader.image(path, place, frame, frame / FPS)] for frame in (7, 0, FRAMES - 1)
    ]
    ways.append(lambda: reader.run(path, place, range(FRAMES), [frame / FPS for frame in range(FRAMES)]))
    if kind in (".jpeg", ".png"):
        ways = [lambda: [decode_image(data, SIZE)]]
    found: list[torch.Tensor | DatasetError] = []
    for way in ways:
        try:
            found += way()
        except DatasetError as error:
            found.append(error)
    return found


def check(name: str, data: bytes, folder: Path) -> None:
    path = folder / f"changed{Path(name).suffix}"
    path.write_bytes(data)
    begin = time.process_time()
    found = outcomes(path, data)
    assert time.process_time() - begin < MAX_SECONDS
    for each in found:
        if isinstance(each, DatasetError):
            assert len(str(each)) < 500
            assert str(each).isprintable()
        else:
            assert each.dtype == torch.uint8
            assert each.ndim == 3
            assert each.shape[0] == 3


def peak_megabytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000


@pytest.fixture
def bounded_memory():
    """Fail where the memory of this process grows by more than MAX_MEGABYTES."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest until now
    before = peak_megabytes()
    yield
    assert peak_megabytes() - before < MAX_MEGABYTES


def run_mutations(originals, folder, how):
    av.logging.set_level(av.logging.PANIC)
    names = sorted(originals)
    for name, data in originals.items():  # what is imported on the way takes seconds
        (folder / name).write_bytes(data)
        assert all(isinstance(each, torch.Tensor) for each in outcomes(folder / name, data)), name

    @how
    @given(st.sampled_from(names), changes())
    def each(name, edits):
        check(name, changed(originals[name], edits), folder)

    each()


def test_changed_files_give_pixels_or_a_dataset_error(originals, tmp_path, bounded_memory):
    run_mutations(originals, tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_many_changed_files_give_pixels_or_a_dataset_error(originals, tmp_path, bounded_memory):
    run_mutations(originals, tmp_path, MANY)
