"""`depi report`: the catalogue as one web page that needs no network."""

import base64
import dataclasses
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from depi.catalog.catalogue import Row, load_catalog
from depi.catalog.episodes import verdicts
from depi.catalog.thumbnails import THUMBNAILS_FILE, read_thumbnails
from depi.errors import UserError
from depi.flags import check_ranges, parse_flags
from depi.hub.client.api import endpoint
from depi.page import document

logger = logging.getLogger(__name__)

MAX_PICTURE_BYTES = 300_000
# Episodes with faults that are shown of a dataset.
MAX_EPISODES = 100
SCRIPTS = ("base.js", "charts.js", "table.js", "section.js", "main.js")

type Pictures = dict[tuple[str, str | None], list[tuple[str, bytes]]]
"""(repo_id, revision) -> (camera, JPEG) pairs."""


@dataclass
class ReportConfig:
    """Write the catalogue in --data_ids as one web page: charts, a table to sort, search and filter, and
    for each dataset a section with its evidence. The page is a single file and needs no network.
    """

    # The folder that `depi collect-ids` wrote.
    data_ids: Path = Path("data_ids")
    # The page; by default report.html in --data_ids.
    output: Path | None = None
    # The heading of the page.
    title: str = "SO-100 datasets of the Hub"
    # Images are put into the page, best dataset first, up to this many megabytes.
    max_picture_mb: float = 64.0

    def __post_init__(self) -> None:
        check_ranges(self, max_picture_mb=(0, None))


def main(args: list[str]) -> int:
    """Run `depi report`; returns the exit status."""
    config = parse_flags(ReportConfig, args, "depi report")
    rows = load_catalog(config.data_ids)
    pictures = read_pictures(config.data_ids)
    output = config.output or config.data_ids / "report.html"
    page = render(rows, pictures, title=config.title, max_picture_mb=config.max_picture_mb)
    document.write(output, page, f"{len(rows)} datasets")
    return 0


def read_pictures(folder: Path) -> Pictures:
    """Read `thumbnails.parquet` of the catalogue's folder; nothing if there is none.

    Raises:
        UserError: the file holds something that is not a small JPEG.
    """
    pictures: Pictures = {}
    for item in read_thumbnails(folder):
        jpeg = item.jpeg
        if not (jpeg.startswith(b"\xff\xd8") and len(jpeg) <= MAX_PICTURE_BYTES):
            raise UserError(
                f"{folder / THUMBNAILS_FILE} holds something that is not a small JPEG for "
                f"{item.repo_id}; remove it, "
                "or write it again with `depi collect-ids --deep`"
            )
        pictures.setdefault((item.repo_id, item.revision), []).append((item.camera, jpeg))
    return pictures


def render(rows: Sequence[Row], pictures: Pictures, *, title: str, max_picture_mb: float = 64.0) -> str:
    """Return the page.

    Args:
        rows: the catalogue, in its order.
        pictures: those of another revision than the row's are left out.
        title: the heading.
        max_picture_mb: the most megabytes of pictures, taken in the order of `rows`.
    """
    chosen, left_out = _choose(rows, pictures, max_picture_mb * 1e6)
    if left_out:
        logger.warning(
            "pictures of %d datasets are left out of the page, raise --max_picture_mb to have them", left_out
        )
    data = {
        "title": title,
        "hub": endpoint(),
        "written_at": _jsonable(datetime.now(UTC)),
        "pictures_left_out": left_out,
        "rows": [_record(row, chosen.get(row.repo_id, [])) for row in rows],
    }
    return document.render(
        data,
        package="depi.catalog",
        name="report",
        scripts=SCRIPTS,
        title=title,
        about="catalogue",
        skip_to="datasets",
    )


def _choose(
    rows: Iterable[Row], pictures: Pictures, max_bytes: float
) -> tuple[dict[str, list[tuple[str, bytes]]], int]:
    """The pictures of each dataset, in the order of `rows`; and how many datasets have theirs left out."""
    chosen: dict[str, list[tuple[str, bytes]]] = {}
    left_out = 0
    for row in rows:
        found = pictures.get((row.repo_id, row.revision), [])
        size = sum(len(jpeg) for _, jpeg in found)
        if size > max_bytes:
            left_out, max_bytes = left_out + 1, 0.0
        elif found:
            chosen[row.repo_id] = found
            max_bytes -= size
    return chosen, left_out


def _record(row: Row, pictures: Sequence[tuple[str, bytes]]) -> dict[str, Any]:
    """A row as JSON values, without those that are not known."""
    values = {name: _jsonable(value) for name, value in dataclasses.asdict(row).items()}
    faulty = [verdict for verdict in verdicts(row) if verdict.faults][:MAX_EPISODES]
    values["judged"] = [
        [verdict.episode, verdict.frames, [dataclasses.astuple(fault) for fault in verdict.faults]]
        for verdict in faulty
    ]
    values["pictures"] = [[camera, base64.b64encode(jpeg).decode()] for camera, jpeg in pictures]
    return {name: value for name, value in values.items() if value is not None and value != []}


def _jsonable(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, bytes) else value
