"""PostgreSQL's binary COPY format (PostgreSQL documentation, COPY, Binary Format).

A row is the number of its fields, a field is its length in four bytes and its value in the binary
form of its type; NULL is the length -1. Each function here makes one field.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from typing import Final

PIECE: Final = 65_536
"""Bytes that are sent at a time, or one row: the server reads them while the next ones are made."""

NULL: Final = b"\xff\xff\xff\xff"

_BEGIN: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # no flags, no extension
_END: Final = b"\xff\xff"
_UNIX_TO_POSTGRES: Final = 946_684_800_000_000
"""Microseconds from 1970 to 2000, where PostgreSQL's time begins."""
_TEXT_TYPE: Final = 25
"""The number of ``text`` in ``pg_type``, the same in every database."""

count = Struct("!h").pack
"""The number of fields that a row begins with."""
length = Struct("!i").pack
"""The length of a field whose value follows."""
_SHORT: Final = 1_024
"""Bytes below which all columns but the payload usually are."""
LENGTHS: Final = [length(size) for size in range(_SHORT)]
"""Those of short fields, ready: looking one up takes half the time of packing it."""
_int4 = Struct("!ii").pack
_int8 = Struct("!iq").pack
_float8 = Struct("!id").pack
_array = Struct("!iiiiii").pack
_NO_TEXTS: Final = Struct("!iiii").pack(12, 0, 0, _TEXT_TYPE)
"""An array without elements: 12 bytes of dimensions, flags and type follow the length."""


def in_pieces(rows: Iterable[tuple[bytes, ...]]) -> Iterator[bytes]:
    """Write rows as the data of one COPY.

    Args:
        rows: Each as its bytes, in as many parts as it comes in.

    Yields:
        The data, in pieces of about `PIECE` bytes.
    """
    pieces, size = [_BEGIN], 0
    for row in rows:
        pieces += row
        size += sum(map(len, row))
        if size >= PIECE:
            yield b"".join(pieces)
            pieces, size = [], 0
    pieces.append(_END)
    yield b"".join(pieces)


def text(value: str | None) -> bytes:
    """A ``text``; `TypeError` where it is none."""
    if value is None:
        return NULL
    encoded = str.encode(value)
    size = len(encoded)
    return (LENGTHS[size] if size < _SHORT else length(size)) + encoded


def text_array(values: Sequence[str]) -> bytes:
    """A ``text[]`` of one dimension that begins at 1, without NULL in it."""
    if not values:
        return _NO_TEXTS
    fields = b"".join(map(text, values))
    return _array(20 + len(fields), 1, 0, _TEXT_TYPE, len(values), 1) + fields


def timestamptz(unix_microseconds: int) -> bytes:
    """A ``timestamptz``."""
    return _int8(8, unix_microseconds - _UNIX_TO_POSTGRES)


def float8(value: float) -> bytes:
    """A ``float8``."""
    return _float8(8, value)


def int4(value: int | None) -> bytes:
    """An ``int4``."""
    return NULL if value is None else _int4(4, value)


def int8(value: int | None) -> bytes:
    """An ``int8``."""
    return NULL if value is None else _int8(8, value)


def raw(value: bytes | None) -> bytes:
    """Encode bytes unchanged: ``uuid``, ``bytea``, ``json``."""
    return NULL if value is None else length(len(value)) + value
