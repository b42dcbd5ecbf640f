"""Structs in Thrift's compact protocol, in which Parquet writes what it says about its pages and columns.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

import mmap
from typing import Any

type Struct = dict[tuple[int, int], Any]
"""(number, kind) of a field -> its value. Arrow passes over a field of another kind than it expects."""

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
_MAX_DEPTH = 8


def read_struct(
    data: bytes | mmap.mmap, position: int, *, lists: bool = False, depth: int = 0
) -> tuple[Struct, int]:
    """The fields of a struct that are whole numbers, structs or lists, and where it ends.

    Args:
        data: in which it is.
        position: where it begins.
        lists: whether it may have lists; without, a struct of some bytes takes no longer than these.
        depth: of structs around it.

    Raises:
        ValueError, IndexError: it is broken, or has something that Parquet has not, such as a field twice,
            which others might understand in another way.
    """
    fields: Struct = {}
    field = 0
    while byte := data[position]:
        position += 1
        delta, kind = byte >> 4, byte & 15
        field += delta
        if delta == 0:
            raise ValueError("its fields are not in order")
        if kind in (TRUE, FALSE):
            continue
        fields[field, kind], position = _read_value(data, position, kind, lists, depth)
    return fields, position + 1


def _read_value(
    data: bytes | mmap.mmap, position: int, kind: int, lists: bool, depth: int
) -> tuple[Any, int]:
    if kind in (I16, I32, I64):
        number, position = _read_varint(data, position)
        return (number >> 1) ^ -(number & 1), position
    if kind == BINARY:
        length, position = _read_varint(data, position)
        return None, position + length
    if kind == STRUCT and depth < _MAX_DEPTH:
        return read_struct(data, position, lists=lists, depth=depth + 1)
    if kind == LIST and lists and depth < _MAX_DEPTH:
        count, of = data[position] >> 4, data[position] & 15
        position += 1
        if count == 15:
            count, position = _read_varint(data, position)
        found = []
        for _ in range(count):
            if of in (TRUE, FALSE, BYTE):
                value, position = data[position], position + 1
            else:
                value, position = _read_value(data, position, of, lists, depth + 1)
            found.append(value)
        return found, position
    raise ValueError("it has a field of a kind that none should have")


def _read_varint(data: bytes | mmap.mmap, position: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the least first, and where it ends."""
    number = shift = 0
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
        shift += 7
        if shift > 63:
            raise ValueError("a number has no end")
