"""Annotation sidecars: better task texts and camera views, kept beside the datasets of strangers.

`FOLDER/<user>/<name>.parquet`, or `FOLDER/s3+/<bucket>/<folder>.parquet`, holds one row per annotated
episode in the columns of SCHEMA, the JSON file beside it where the annotations come from (model, prompt
version, annotated revision, ...).
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from depi.datasets.recording.addresses import as_path
from depi.datasets.recording.border import reading
from depi.datasets.recording.cameras import UNUSABLE, VIEWS
from depi.datasets.recording.checks import check_relative, short
from depi.datasets.recording.formats import MAX_EPISODES
from depi.datasets.recording.pages import column_chunks, read_footer
from depi.errors import DatasetError, UserError
from depi.files import atomic_write, write_json

if TYPE_CHECKING:
    from depi.datasets.union.multi import MultiLeRobotDataset

logger = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        pa.field("episode_index", pa.int64(), nullable=False),  # as recorded
        pa.field("original_task", pa.string()),
        pa.field("task", pa.string()),  # null where the annotator gave no usable text
        pa.field("camera_views", pa.list_(pa.struct([("camera", pa.string()), ("view", pa.string())]))),
        pa.field("flags", pa.list_(pa.string())),
        pa.field("refinements", pa.int32()),
        pa.field("confidence", pa.float32()),  # 0..1, null where unknown
    ]
)
_OPTIONAL = ("confidence",)  # sidecars written before there was such a column are read too

ANNOTATED_VIEWS = (*VIEWS, "other", UNUSABLE)

MAX_TEXT = 1000
_MAX_NAME = 200
_MAX_ITEMS = 64
_MAX_BYTES = 256 * 2**20
# Of one text as it is stored, before white space is put in order.
_MAX_TEXT_BYTES = 4 * MAX_TEXT
_CODED = pa.dictionary(pa.int32(), pa.string())
_BATCH = 1024
_NAMED = 5


@dataclass(frozen=True)
class EpisodeAnnotation:
    """One row of a sidecar.

    camera_views: camera key -> one of ANNOTATED_VIEWS
    flags: remarks of the annotator
    refinements: how often the text was improved
    confidence: of the task, 0..1, as the float32 nearest to it; None where unknown
    """

    episode_index: int
    original_task: str | None = None
    task: str | None = None
    camera_views: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    refinements: int = 0
    confidence: float | None = None


def annotation_path(folder: Path, repo_id: str) -> Path:
    """Where a dataset's sidecar is; its provenance has the suffix `.json` instead.

    Raises:
        DatasetError: the repo id would lead out of the folder.
    """
    return folder / f"{check_relative(as_path(repo_id), 'repo id')}.parquet"


def write_annotations(
    folder: Path, repo_id: str, rows: Iterable[EpisodeAnnotation], provenance: Mapping[str, Any]
) -> Path:
    """Write a dataset's sidecar and its provenance, which should name the annotated `revision`.

    The provenance first: where it is the older of the two, both were written whole.
    """
    path = annotation_path(folder, repo_id)
    columns = [asdict(row) for row in rows]
    for row in columns:
        row["camera_views"] = [{"camera": key, "view": view} for key, view in row["camera_views"].items()]
    table = pa.Table.from_pylist(columns, SCHEMA)
    write_json(path.with_suffix(".json"), dict(provenance))
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return path


def read_annotations(folder: Path, repo_id: str) -> tuple[list[EpisodeAnnotation], dict[str, Any]] | None:
    """Read a dataset's sidecar and its provenance; None where there is no sidecar.

    Task texts come back on one line, None where nothing but white space was given.

    Raises:
        DatasetError: the sidecar is damaged, too large, or holds something else than SCHEMA says.
    """
    path = annotation_path(folder, repo_id)
    if not path.exists():
        return None
    rows, seen = [], dict[Any, Any]()
    with reading(path.name):
        try:
            table = _read_table(path)
            for batch in table.to_batches(max_chunksize=_BATCH):
                rows += [_checked(row, seen) for row in batch.to_pylist()]
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DatasetError(f"{path.name} cannot be read: {short(str(error))}") from None
    if len({row.episode_index for row in rows}) < len(rows):
        raise DatasetError(f"{path.name} annotates an episode more than once")
    return rows, _read_provenance(path.with_suffix(".json"))


def _read_table(path: Path) -> pa.Table:
    """The columns of SCHEMA, texts dictionary-coded: one that many rows share is there once, and is short."""
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise DatasetError(f"{path.name} is no file of at most {_MAX_BYTES} bytes")
    with pq.ParquetFile(path) as file:
        _check_file(path, file)
        leaves = [file.schema.column(number) for number in range(len(file.schema.names))]
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        names = [name for name in SCHEMA.names if name in file.schema_arrow.names]
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        table = file.read(columns=names)
    table.validate(full=True)
    for name, what in (("camera_views", "cameras"), ("flags", "flags")):
        most = pc.max(pc.list_value_length(table[name])).as_py() or 0
        if most > _MAX_ITEMS:
            raise DatasetError(f"{path.name}: an episode has {most} {what}, at most {_MAX_ITEMS} are read")
    for name in ("task", "camera_views", "flags"):
        for dictionary in _dictionaries(table[name]):
            longest = pc.max(pc.binary_length(dictionary)).as_py() or 0
            if longest > _MAX_TEXT_BYTES:
                raise DatasetError(f"{path.name}: a text of {name} has {longest} bytes: too much")
    place = table.schema.get_field_index("original_task")
    return table.set_column(place, "original_task", pa.chunked_array(map(_cut, table[place].chunks), _CODED))


def _check_file(path: Path, file: pq.ParquetFile) -> None:
    name = path.name
    metadata, schema = file.metadata, file.schema_arrow
    chunks = list(column_chunks(path, read_footer(path), SCHEMA.names))
    size, values = sum(chunk.bytes for chunk in chunks), max((chunk.values for chunk in chunks), default=0)
    too_many = values > _MAX_ITEMS * metadata.num_rows + 10_000
    if metadata.num_rows > MAX_EPISODES or size > _MAX_BYTES or too_many:
        raise DatasetError(f"{name} holds {metadata.num_rows} rows of {size} bytes: too much")
    for column in SCHEMA:
        if column.name in _OPTIONAL and column.name not in schema.names:
            continue
        if column.name not in schema.names:
            raise DatasetError(f"{name} has no column {column.name}")
        if schema.field(column.name).type != column.type:
            found = short(str(schema.field(column.name).type))
            raise DatasetError(f"{name}: column {column.name} is {found}, not {column.type}")


def _dictionaries(column: pa.ChunkedArray) -> Iterator[pa.Array]:
    """The different texts in each piece of a column, whatever they are nested in."""
    arrays: list[pa.Array] = list(column.chunks)
    while arrays:
        array = arrays.pop()
        if pa.types.is_list(array.type):
            arrays.append(array.values)
        elif pa.types.is_struct(array.type):
            arrays += [array.field(number) for number in range(array.type.num_fields)]
        else:
            yield array.dictionary


def _cut(array: pa.DictionaryArray) -> pa.DictionaryArray:
    texts = pc.utf8_slice_codeunits(array.dictionary, 0, MAX_TEXT)
    return pa.DictionaryArray.from_arrays(array.indices, texts)


def _checked(row: Mapping[str, Any], seen: dict[Any, Any]) -> EpisodeAnnotation:
    """A row; values that an earlier one had are taken from `seen`: a small file may repeat them often."""
    index, views, flags = row["episode_index"], row["camera_views"] or [], row["flags"] or []
    if index is None or index < 0:
        raise DatasetError(f"episode_index is {index}")
    confidence = row.get("confidence")
    if confidence is not None and not 0 <= confidence <= 1:
        raise DatasetError(f"episode {index}: confidence is {short(confidence)}, expected 0 to 1")
    named: dict[str, str] = {}
    for view in views:
        if view is None or view["view"] not in ANNOTATED_VIEWS:
            found = short(view and view["view"])
            raise DatasetError(f"episode {index}: view {found} is none of {', '.join(ANNOTATED_VIEWS)}")
        named[check_text(view["camera"], f"episode {index}: a camera's name", _MAX_NAME) or ""] = view["view"]
    task = check_text(row["task"], f"episode {index}: the task", MAX_TEXT)
    remarks = tuple(check_text(flag, f"episode {index}: a flag", _MAX_NAME) or "" for flag in flags)
    return EpisodeAnnotation(
        episode_index=index,
        original_task=seen.setdefault(row["original_task"], row["original_task"]),
        task=seen.setdefault(task, task),
        camera_views=seen.setdefault(("views", *named.items()), named),
        flags=seen.setdefault(remarks, remarks),
        refinements=row["refinements"] or 0,
        confidence=confidence,
    )


def check_text(text: str | None, name: str, limit: int = MAX_TEXT) -> str | None:
    """Text on one line, None where there is none; DatasetError for what is too long or not printable."""
    text = " ".join((text or "").split())
    if len(text) > limit:
        raise DatasetError(f"{name} has {len(text)} characters, at most {limit} are read")
    if not text.isprintable():
        raise DatasetError(f"{name} {short(text)} is not printable text")
    return text or None


def _read_provenance(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > 2**20:
        raise DatasetError(f"{path.name} has {path.stat().st_size} bytes")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path.name} cannot be read: {short(str(error))}") from None
    if not isinstance(content, dict):
        raise DatasetError(f"{path.name} is no JSON object")
    return content


class AnnotatedEpisodes:
    """The annotations of all episodes of a training set, by episode number; flat, for many workers.

    A dataset without a sidecar, or with a damaged one, keeps its recorded texts and camera names; both are
    logged and counted in `report`, and so are annotations of another revision, which are used nevertheless.

    Args:
        dataset: the training set, of E episodes.
        folder: of the sidecars.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, dataset: "MultiLeRobotDataset", folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder} of annotations: name it with --dataset.annotations")
        self.folder = folder
        self.missing: list[str] = []
        self.other_revision: list[str] = []
        self.damaged: dict[str, str] = {}
        self._texts: dict[str, int] = {}
        self._views: dict[tuple[tuple[str, str], ...], int] = {}
        episodes, recorded = len(dataset.episode_recorded), np.asarray(dataset.episode_recorded).tolist()
        self._text = np.full(episodes, -1, np.int32)
        self._view = np.full(episodes, -1, np.int32)
        for number, entry in enumerate(dataset.entries):
            first, end = dataset.dataset_start[number : number + 2].tolist()
            numbers = dict(zip(recorded[first:end], range(first, end), strict=True))
            self._add(entry["repo_id"], entry["revision"], numbers)
        self._all_texts, self._all_views = tuple(self._texts), [dict(pairs) for pairs in self._views]
        self._log(len(dataset.entries))

    def _add(self, repo_id: str, revision: str | None, episodes: Mapping[int, int]) -> None:
        try:
            found = read_annotations(self.folder, repo_id)
        except DatasetError as error:
            self.damaged[repo_id] = str(error)
            return
        if found is None:
            self.missing.append(repo_id)
            return
        rows, provenance = found
        if None not in (revision, provenance.get("revision")) and provenance["revision"] != revision:
            self.other_revision.append(repo_id)
        for row in rows:
            episode = episodes.get(row.episode_index)
            if episode is not None and row.task:
                self._text[episode] = self._texts.setdefault(row.task, len(self._texts))
            if episode is not None and row.camera_views:
                views = tuple(sorted(row.camera_views.items()))
                self._view[episode] = self._views.setdefault(views, len(self._views))

    def _log(self, datasets: int) -> None:
        for repo_ids, what in (
            (self.missing, "have no annotations and keep their recorded tasks"),
            (list(self.damaged), "have annotations that cannot be used and keep their recorded tasks"),
            (self.other_revision, "were annotated at another revision than the one in use"),
        ):
            if repo_ids:
                named = ", ".join(repo_ids[:_NAMED]) + (", ..." if len(repo_ids) > _NAMED else "")
                logger.warning("%s of %s datasets %s: %s", len(repo_ids), datasets, what, named)
        for repo_id, reason in list(self.damaged.items())[:_NAMED]:
            logger.warning("annotations of %s: %s", repo_id, reason)

    def task(self, episode: int) -> str | None:
        """The annotated text of an episode, if it has one."""
        number = self._text[episode]
        return None if number < 0 else self._all_texts[number]

    def views(self, episode: int) -> dict[str, str]:
        """The annotated views of an episode's cameras, by camera key; empty where there are none."""
        number = self._view[episode]
        return {} if number < 0 else self._all_views[number]

    def report(self) -> dict[str, Any]:
        """How much is annotated, for `data_report.json`."""
        return {
            "folder": str(self.folder),
            "episodes": len(self._text),
            "episodes_with_task": int((self._text >= 0).sum()),
            "episodes_with_views": int((self._view >= 0).sum()),
            "missing": self.missing,
            "damaged": self.damaged,
            "other_revision": self.other_revision,
        }
