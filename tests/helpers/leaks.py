"""Finding secrets in all that was written, however they are spelled there."""

import base64
import html
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pyarrow.parquet as pq


def spellings(secret: str) -> set[bytes]:
    """What a secret looks like as text, in an address, in JSON, in HTML, and inside something in base64."""
    plain = {
        *(secret, quote(secret), quote(secret, safe=""), quote_plus(secret)),
        *(json.dumps(secret)[1:-1], html.escape(secret), repr(secret)[1:-1]),
    }
    found = {text.encode() for text in plain}
    for text in {secret.encode(), quote(secret, safe="").encode()}:
        for before in range(3):
            # The first and the last four letters depend on what stands around the secret.
            encoded = base64.b64encode(b"\0" * before + text)[4 if before else 0 : -4]
            found |= {encoded, encoded.replace(b"+", b"-").replace(b"/", b"_")}
    assert all(len(text) >= 12 for text in found), "too short to be found only where it is"
    return found


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """All files below a folder, names included; of tables also their values, which are compressed."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path, path.name.encode() + b"\n" + path.read_bytes()
            if path.read_bytes()[:4] == b"PAR1":
                table = pq.read_table(path, partitioning=None)
                yield path, f"{table.schema.metadata}{table.to_pydict()}".encode()


def leaks(secrets: Iterable[str], folder: Path, *outputs: str) -> list[str]:
    """Where which secret stands: below `folder`, or in what programs printed."""
    printed = [(Path(f"output {number}"), text.encode()) for number, text in enumerate(outputs)]
    written = [*contents(folder), *printed]
    return [
        f"{secret} in {path}"
        for secret in secrets
        for path, content in written
        if any(text in content for text in spellings(secret))
    ]
