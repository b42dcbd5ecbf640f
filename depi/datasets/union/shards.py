"""Prepared images: JPEG in Arrow files, memory-mapped, beside which video need not be decoded.

    prepared.json                               what all images have in common: see `made_by`, size, quality
    <repo id>/<revision>/manifest.json          episodes, cameras, shards with their checksums; written last
    <repo id>/<revision>/shard-00000.arrow      one column `image` of JPEG bytes, in one record batch

The rows of a dataset are in the order of its frames, the cameras of a frame side by side, in the order of
the camera slots; every shard but the last has the same number of rows. A row without bytes is a frame that
could not be decoded.
"""

import json
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from depi.datasets.recording.border import reading
from depi.datasets.recording.cameras import letterbox
from depi.datasets.recording.checks import short
from depi.errors import DatasetError, UserError
from depi.files import atomic_write, read_json, write_json
from depi.fingerprint import code, fingerprint

LAYOUT = 1
"""Of the files; raise it where other ones are written."""
MAX_OPEN = 512

_SETTINGS = "prepared.json"
_MANIFEST = "manifest.json"


class Wanted(NamedTuple):
    """What a training set asks of the prepared images, for one dataset.

    cameras: camera keys, the one of slot 0 first
    episodes, lengths: int64 [E], recorded episode indices and their frames
    files: sizes in bytes of its camera files, where it is a local folder: what that holds, no revision says
    """

    repo_id: str
    revision: str | None
    cameras: Sequence[str]
    episodes: np.ndarray
    lengths: np.ndarray
    files: dict[str, int]


def dataset_folder(root: Path, wanted: Wanted) -> Path:
    """Where one dataset's shards lie."""
    revision = "local" if wanted.revision is None else f"revision-{quote(wanted.revision, safe='')}"
    return root / f"dataset-{quote(wanted.repo_id, safe='')}" / revision


def made_by() -> str:
    """A digest of the code that decides what prepared images hold, and of the layout of their files."""
    return fingerprint(LAYOUT, code("depi.datasets.recording.place_reader", letterbox))


def write_settings(root: Path, image_size: int, quality: int, antialias: bool) -> None:
    """Begin a folder of prepared images, or go on with one of the same settings; else a UserError."""
    settings = {
        "made_by": made_by(),
        "image_size": image_size,
        "quality": quality,
        "antialias": antialias,
    }
    path = root / _SETTINGS
    if not path.exists():
        if root.exists() and any(root.iterdir()):
            raise UserError(f"{root} holds other files, name an empty --output_dir")
        write_json(path, settings)
    elif (found := read_json(path)) != settings:
        raise UserError(
            f"{root} was prepared with {_describe(found)}: remove it, or prepare in another folder"
        )


def _describe(settings: Any) -> str:
    if not isinstance(settings, dict) or settings.get("made_by") != made_by():
        return "another version of DePi, whose images may differ"
    return ", ".join(f"{name}={short(settings.get(name))}" for name in ("image_size", "quality", "antialias"))


def shard_path(folder: Path, number: int) -> Path:
    """The file of one shard."""
    return folder / f"shard-{number:05d}.arrow"


def write_shard(path: Path, images: Sequence[bytes], plan: str) -> dict[str, int]:
    """Write one shard atomically, and read it back.

    Args:
        path: the file.
        images: JPEG files, or no bytes.
        plan: a digest of what it was made from, by which `read_shard` knows it again.

    Returns:
        Its entry for the manifest: rows, bytes (of the file) and crc32 (of the images).

    Raises:
        OSError: it cannot be written, or does not read back.
    """
    column = pa.array(images, pa.large_binary())
    crc = zlib.crc32(column.buffers()[2] or b"")
    mark = json.dumps({"plan": plan, "rows": len(images), "crc32": crc})
    schema = pa.schema([pa.field("image", pa.large_binary(), nullable=False)], {"depi": mark})
    with atomic_write(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        writer.write_batch(pa.record_batch([column], schema=schema))
    entry = read_shard(path, plan, verify=True)
    if entry is None:
        raise OSError(f"{path} does not read back as it was written")
    return entry


def read_shard(path: Path, plan: str, verify: bool = False) -> dict[str, int] | None:
    """The manifest entry of a shard that is there, made by this plan, and with `verify` unharmed; or None."""
    try:
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            mark = json.loads((reader.schema.metadata or {}).get(b"depi", b"{}"))
            column = reader.get_batch(0).column(0)
            if mark.get("plan") != plan or mark.get("rows") != len(column):
                return None
            if verify and zlib.crc32(column.buffers()[2] or b"") != mark["crc32"]:
                return None
    except (OSError, pa.ArrowException, ValueError, KeyError):
        return None
    return {"rows": mark["rows"], "bytes": path.stat().st_size, "crc32": mark["crc32"]}


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Declare a dataset complete."""
    write_json(folder / _MANIFEST, manifest)


def refuse_others(root: Path, wanted: Wanted) -> None:
    """UserError if the dataset is prepared in `root` with other cameras or episodes, which would be lost."""
    path = dataset_folder(root, wanted) / _MANIFEST
    if not path.is_file():
        return
    found = read_json(path)
    if any(found.get(key) != value for key, value in describe(wanted).items()):
        raise UserError(
            f"dataset {wanted.repo_id} is prepared in {root} with other cameras, episodes or files: "
            "name another --output_dir"
        )


def describe(wanted: Wanted) -> dict[str, Any]:
    """What a manifest says of the dataset."""
    return {
        "repo_id": wanted.repo_id,
        "revision": wanted.revision,
        "cameras": list(wanted.cameras),
        "episodes": wanted.episodes.tolist(),
        "lengths": wanted.lengths.tolist(),
        "files": wanted.files,
    }


def decode_jpeg(data: Any) -> Tensor:
    """A JPEG, bytes or a buffer, as uint8 [3, H, W], contiguous; DatasetError if it is none."""
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_jpeg as decode

    try:
        # Of the decoders at hand (Pillow, OpenCV, torchcodec) this one is the fastest.
        return decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB).contiguous()
    except (RuntimeError, ValueError) as error:
        raise DatasetError(f"a prepared image cannot be decoded: {short(str(error))}") from None


class PreparedImages:
    """The images of a folder that `depi prepare` wrote, for the datasets that were located.

    It may be pickled and forked.

    Raises:
        UserError: the folder is none of these, of another size, or scaled in another way.
    """

    def __init__(self, root: Path, image_size: int, antialias: bool = False) -> None:
        self.root, self.image_size = Path(root).absolute(), image_size
        if not (self.root / _SETTINGS).is_file():
            raise UserError(
                f"{root} holds no prepared images, make them with `depi prepare --output_dir={root}`"
            )
        settings = read_json(self.root / _SETTINGS)
        wanted = {"made_by": made_by(), "image_size": image_size, "antialias": antialias}
        if not isinstance(settings, dict) or not wanted.items() <= settings.items():
            raise UserError(
                f"{root} was prepared with {_describe(settings)}, but image_size={image_size}, "
                f"antialias={antialias} is wanted: run `depi prepare` again, with --image_size={image_size} "
                f"--antialias={str(antialias).lower()} and another --output_dir"
            )
        self._paths: list[Path] = []
        self._first_row: np.ndarray = np.zeros(1, np.int64)
        self._open: OrderedDict[int, tuple[np.ndarray, pa.Buffer]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": OrderedDict()}

    def locate(self, wanted: Wanted) -> tuple[np.ndarray, int]:
        """Make one dataset's images available.

        Returns:
            The row of each episode's first frame in camera slot 0, int64 [E]; and the rows per frame, so
            that frame f of episode e in slot s is row `first[e] + f * rows_per_frame + s`.

        Raises:
            UserError: they were not prepared, or not these: other revision, cameras or episodes.
        """
        folder = dataset_folder(self.root, wanted)
        manifest = self._manifest(folder, wanted)
        cameras = manifest["cameras"]
        if cameras[: len(wanted.cameras)] != list(wanted.cameras):
            raise UserError(
                f"dataset {wanted.repo_id} was prepared in {self.root} with the cameras "
                f"{', '.join(cameras)}, not {', '.join(wanted.cameras)}: run `depi prepare` again"
            )
        if changed := [name for name, size in wanted.files.items() if manifest["files"].get(name) != size]:
            raise UserError(
                f"{short(changed[0])} of dataset {wanted.repo_id} is not the file that was prepared in "
                f"{self.root}: run `depi prepare` with another --output_dir"
            )
        start = np.cumsum([0, *manifest["lengths"]])
        place = {episode: number for number, episode in enumerate(manifest["episodes"])}
        position = [place.get(episode, -1) for episode in wanted.episodes.tolist()]
        lengths = np.array([*manifest["lengths"], -1], np.int64)[position]
        if (lengths != wanted.lengths).any():
            episode = wanted.episodes[lengths != wanted.lengths][0]
            raise UserError(
                f"episode {episode} of dataset {wanted.repo_id} is not in {self.root}, or of another length "
                "there: run `depi prepare` again"
            )
        base = self._add_shards(folder, manifest)
        return base + start[position] * len(cameras), len(cameras)

    def _manifest(self, folder: Path, wanted: Wanted) -> dict[str, Any]:
        if not (folder / _MANIFEST).is_file():
            others = sorted(path.parent.name for path in folder.parent.glob(f"*/{_MANIFEST}"))
            known = f"at {others[0]}" if others else "not at all"
            raise UserError(
                f"dataset {wanted.repo_id} at {folder.name} is not in {self.root} ({known}): "
                f"run `depi prepare --output_dir={self.root}` again"
            )
        return read_json(folder / _MANIFEST)

    def _add_shards(self, folder: Path, manifest: dict[str, Any]) -> int:
        base = int(self._first_row[-1])
        counts = []
        for number, shard in enumerate(manifest["shards"]):
            path = shard_path(folder, number)
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise UserError(f"{path} is missing or cut short: run `depi prepare` again")
            self._paths.append(path)
            counts.append(shard["rows"])
        self._first_row = np.append(self._first_row, base + np.cumsum(counts, dtype=np.int64))
        return base

    def frames(self, rows: Sequence[int]) -> list[Tensor | DatasetError]:
        """The images in these rows; see `locate`.

        Returns:
            uint8 [3, image_size, image_size] each, or why there is none: it is missing or broken.
        """
        found: list[Tensor | DatasetError] = []
        for row in rows:
            try:
                with reading():
                    found.append(self._frame(row))
            except DatasetError as error:
                found.append(error)
        return found

    def _frame(self, row: int) -> Tensor:
        number = int(np.searchsorted(self._first_row, row, side="right")) - 1
        offsets, data = self._shard(number)
        begin, end = offsets[row - self._first_row[number] :][:2].tolist()
        if begin == end:
            raise DatasetError("the frame could not be decoded when it was prepared")
        image = decode_jpeg(data[begin:end])
        if image.shape != (3, self.image_size, self.image_size):
            raise DatasetError(f"a prepared image has the shape {tuple(image.shape)}")
        return image

    def _shard(self, number: int) -> tuple[np.ndarray, pa.Buffer]:
        """Offsets int64 [rows + 1] and the images' bytes, mapped."""
        if number not in self._open:
            while len(self._open) >= MAX_OPEN:
                self._open.popitem(last=False)
            try:
                with pa.memory_map(str(self._paths[number])) as file:
                    column = pa.ipc.open_file(file).get_batch(0).column(0)
            except (OSError, pa.ArrowException) as error:
                raise DatasetError(f"{self._paths[number]} cannot be read: {short(str(error))}") from None
            _, offsets, data = column.buffers()
            self._open[number] = np.frombuffer(offsets, np.int64, len(column) + 1), data
        self._open.move_to_end(number)
        return self._open[number]
