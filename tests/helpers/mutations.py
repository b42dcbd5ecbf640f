"""Files of a checkpoint, changed a little: JSON, the headers of safetensors files, and bytes of both."""

import copy
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

DEEP: Any = None
for _ in range(800):
    DEEP = [DEEP]
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3, 1000, 10**6, 2**31, 2**63, 10**30, 0.5, -0.0, 1e-320, 1e39, 1e308),
    *(
        math.nan,
        math.inf,
        -math.inf,
        "",
        "x",
        "é\0\n",
        "../x",
        "/etc/passwd",
        "~",
        "stranger/helpful",
        "cuda",
    ),
    *("9" * 5000, "NaN", [], {}, [1], [[]], [None], {"a": 1}, ["STATE"], [0] * 3000, {"type": "x"}, DEEP),
)
# Names of kinds and numbers of safetensors headers, which the pool above does not have.
HEADER_VALUES = (*VALUES, "F32", "I64", "BOOL", "F8_E4M3", [0, 0], [2**62, 2], [4, 0], [0, 2**62])


def places(node: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all values in JSON content."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(found for key, value in inner for found in places(value, (*path, key)))]


def _changed_number(draw: st.DrawFn, old: Any) -> Any:
    if isinstance(old, bool) or not isinstance(old, int | float):
        return [old]
    change: Callable[[Any], Any] = draw(
        st.sampled_from([lambda x: -x, lambda x: x + 1, lambda x: x * 1000, lambda x: x / 2, str])
    )
    return change(old)


def mutate_json(draw: st.DrawFn, content: Any, values: tuple = VALUES) -> Any:
    """One value somewhere in the content replaced, removed, wrapped, renamed, or one more beside it."""
    content = copy.deepcopy(content)
    path = draw(st.sampled_from(places(content)))
    if not path:
        return draw(st.sampled_from(values))
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    key = path[-1]
    how = draw(st.sampled_from(["replace", "replace", "number", "wrap", "remove", "rename", "add"]))
    if how == "replace":
        parent[key] = draw(st.sampled_from(values))
    elif how == "number":
        parent[key] = _changed_number(draw, parent[key])
    elif how == "wrap":
        parent[key] = {"x": parent[key]}
    elif how == "remove":
        del parent[key]
    elif isinstance(parent, list):
        parent.insert(key, draw(st.sampled_from(values)))
    else:
        name = draw(st.sampled_from(["x", "type", "config", "class", "tokenizer", "state_file", "device"]))
        parent[name] = parent.pop(key) if how == "rename" else draw(st.sampled_from(values))
    return content


def mutate_bytes(draw: st.DrawFn, data: bytes, first: int = 0) -> bytes:
    """Bytes flipped, cut off, put in or put behind, from the byte `first` on."""
    how = draw(st.sampled_from(["flip", "flip", "cut", "insert", "append"]))
    place = draw(st.integers(first, max(first, len(data) - 1)))
    if how == "flip":
        return data[:place] + bytes([draw(st.integers(0, 255))]) + data[place + 1 :]
    if how == "cut":
        return data[:place]
    more = draw(st.sampled_from([b"\xff", b"\0" * 9, b"[" * 100_000, b'{"a":', b"\xef\xbb\xbf", b" "]))
    return data[:place] + more + data[place:] if how == "insert" else data + more


def mutate_tensors(draw: st.DrawFn, data: bytes) -> bytes:
    """A safetensors file with another header, another number somewhere, or other bytes."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    how = draw(st.sampled_from(["header", "header", "number", "bytes", "length"]))
    if how == "header":
        header = json.dumps(mutate_json(draw, json.loads(header), HEADER_VALUES)).encode()
        return struct.pack("<Q", len(header)) + header + body
    if how == "number" and len(body) >= 4:
        place = 4 * draw(st.integers(0, len(body) // 4 - 1))
        value = draw(st.sampled_from([math.nan, math.inf, -math.inf, 3e38, -1.0, 0.0, 1e-40]))
        return data[: 8 + length] + body[:place] + struct.pack("<f", value) + body[place + 4 :]
    if how == "length":
        return (
            struct.pack("<Q", draw(st.sampled_from([0, 1, length - 1, length + 1, 2**31, 2**64 - 1])))
            + data[8:]
        )
    return mutate_bytes(draw, data, draw(st.sampled_from([0, 8 + length])))


def mutate_file(draw: st.DrawFn, path: Path) -> None:
    """Change one file, as its kind suggests, and write it again (a link becomes a file of its own)."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        changed = mutate_tensors(draw, data)
    elif draw(st.integers(0, 4)):
        changed = json.dumps(mutate_json(draw, json.loads(data))).encode()
    else:
        changed = mutate_bytes(draw, data)
    path.unlink()
    path.write_bytes(changed)
