"""The format of a segment: frames one after another, each found and checked on its own.

A frame is a header of 44 bytes, little-endian, and the payload::

    0   4   marker f5 ff 4f 41     f5 and ff never occur in UTF-8, so no JSON text holds it
    4   1   version                1
    5   1   kind                   1 opened, 2 answered, 3 closed, 4 discarded, 5 ended
    6   1   flags                  bit 0: the payload is encrypted
    7   1   0
    8   4   length of the payload
    12  8   when it was appended, Unix nanoseconds
    20  16  record id
    36  4   CRC-32 of the payload
    40  4   CRC-32 of the 40 bytes before

The header has a checksum of its own: its length can be trusted although the payload is damaged, so
that one flipped bit costs one frame; after a damaged header the reader looks for the next marker.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import BinaryIO, Final, Literal, NamedTuple
from zlib import crc32

MARKER: Final = b"\xf5\xffOA"
VERSION: Final = 1
ENCRYPTED: Final = 1
HEADER_BYTES: Final = 44
"""The size of `_FIELDS` and `_CHECKSUM`."""
MAX_PAYLOAD_BYTES: Final = 16 * 1024 * 1024
"""A longer payload is refused; a header that claims one is damaged."""

_FIELDS: Final = struct.Struct("<4s4BIQ16sI")
_CHECKSUM: Final = struct.Struct("<I")
BUFFER_BYTES: Final = 256 * 1024
"""Bytes of a file that are read at once."""


class FrameKind(IntEnum):
    """The stage of an action in a frame; a later kind wins.

    ``ANSWERED`` and ``CLOSED`` say all that is known; the others add to what stands before them.
    """

    OPENED = 1
    """What a crash would leave of the action: no whole record, as a rule."""
    ANSWERED = 2
    CLOSED = 3
    DISCARDED = 4
    """The action shall not be recorded after all; it has no payload."""
    ENDED = 5
    """Closed by what has changed since the answered frame, which stands before it in the same
    segment: the two come and go together."""


_KINDS: Final = {int(kind): kind for kind in FrameKind}
ALL_KINDS: Final = frozenset(_KINDS)


class Frame(NamedTuple):
    """A frame as read.

    Attributes:
        kind: What it says.
        record_id: 16 bytes.
        payload: As appended, or encrypted.
        encrypted: Whether the payload is encrypted.
        appended_at: Unix nanoseconds.
        start: Offset of its first byte in the file.
        end: Offset after its last byte.
    """

    kind: FrameKind
    record_id: bytes
    payload: bytes
    encrypted: bool
    appended_at: int
    start: int
    end: int


Reason = Literal["torn", "header", "checksum", "version", "encryption", "missing"]


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that are not a frame.

    Attributes:
        start: Offset of the first such byte in the file.
        end: Offset after the last one.
        reason: ``torn`` (the file ends within a frame: its append never returned), ``header`` or
            ``checksum`` (altered bytes), ``version`` (of another version of this format),
            ``encryption`` (cannot be decrypted with this key), ``missing`` (frames were there, and
            are no more: the file was emptied, cut short, filled with zeros or removed).
        kind: Of a single frame, as its header says, which may be damaged itself.
        record_id: Of such a frame, 16 bytes.
    """

    start: int
    end: int
    reason: Reason
    kind: FrameKind | None = field(default=None, compare=False)
    record_id: bytes = field(default=b"", compare=False)


# version, kind, flags, 0, length, appended at, record id, checksum: a plain tuple, for speed
_Header = tuple[int, int, int, int, int, int, bytes, int]


def encode(
    kind: int, record_id: bytes, payload: bytes, appended_at: int, *, encrypted: bool = False
) -> bytes:
    """Make the bytes of one frame.

    Args:
        kind: A `FrameKind`.
        record_id: 16 bytes.
        payload: At most `MAX_PAYLOAD_BYTES`.
        appended_at: Unix nanoseconds.
        encrypted: Whether the payload is encrypted.

    Returns:
        `HEADER_BYTES` and the payload.
    """
    head = _FIELDS.pack(
        MARKER, VERSION, kind, ENCRYPTED if encrypted else 0, 0,
        len(payload), appended_at, record_id, crc32(payload),
    )  # fmt: skip
    return head + _CHECKSUM.pack(crc32(head)) + payload


@functools.lru_cache(maxsize=1024)  # an action's frames come one after the other
def record_key(record_id: str) -> bytes:
    """Turn a record id (UUID in hex, with or without hyphens) into its 16 bytes.

    Raises:
        ValueError: It is not a UUID.
    """
    key = bytes.fromhex(record_id.replace("-", ""))
    if len(key) != 16:  # noqa: PLR2004 - bytes of a UUID
        raise ValueError("a record id must be a UUID")
    return key


def record_name(key: bytes) -> str:
    """Turn 16 bytes into a record id: 36 characters, lower case."""
    text = key.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def scan(
    file: BinaryIO, *, start: int = 0, end: int, kinds: Container[int] = ALL_KINDS
) -> Iterator[Frame | Damage]:
    """Read frames in order, and say what is none.

    Args:
        file: A segment, seekable. Its position is moved.
        start: Offset of a frame's first byte.
        end: Where to stop; not beyond the file's end.
        kinds: Frames of other kinds are passed over, and their payloads are not checked.

    Yields:
        Every byte between ``start`` and ``end`` belongs to exactly one frame or damage.

    Raises:
        OSError: The file cannot be read.
        EOFError: It ends before ``end``.
    """
    at = start
    while at < end:
        header = _header(_read_at(file, at, min(HEADER_BYTES, end - at)))
        if header is None:
            stop = _find_header(file, at + 1, end)
            yield Damage(at, stop, _reason(file, at, stop, end), *_claimed(file, at, stop))
            at = stop
            continue
        stop = at + HEADER_BYTES + header[4]
        if stop > end:
            yield Damage(at, end, "torn")
            return
        if header[1] in kinds or header[1] not in _KINDS:
            yield _frame(file, header, at, stop)
        at = stop


def _frame(file: BinaryIO, header: _Header, at: int, stop: int) -> Frame | Damage:
    version, number, flags, _, length, appended_at, record_id, checksum = header
    kind = _KINDS.get(number)
    if version != VERSION or kind is None:
        return Damage(at, stop, "version")
    payload = _read_at(file, at + HEADER_BYTES, length)
    if crc32(payload) != checksum:
        return Damage(at, stop, "checksum", kind, record_id)
    return Frame(kind, record_id, payload, bool(flags & ENCRYPTED), appended_at, at, stop)


def _header(data: bytes) -> _Header | None:
    if len(data) < HEADER_BYTES or not data.startswith(MARKER):
        return None
    if crc32(data[:-4]) != _CHECKSUM.unpack_from(data, HEADER_BYTES - 4)[0]:
        return None
    header: _Header = _FIELDS.unpack_from(data)[1:]
    return header if header[4] <= MAX_PAYLOAD_BYTES else None


def _find_header(file: BinaryIO, start: int, end: int) -> int:
    at = start
    while at < end:
        chunk = _read_at(file, at, min(BUFFER_BYTES, end - at))
        found = chunk.find(MARKER)
        if found < 0:
            if at + len(chunk) >= end:
                return end
            # a marker may begin in this chunk's last bytes
            at += len(chunk) - len(MARKER) + 1
            continue
        if _header(_read_at(file, at + found, min(HEADER_BYTES, end - at - found))) is not None:
            return at + found
        at += found + 1
    return end


def _reason(file: BinaryIO, start: int, stop: int, end: int) -> Reason:
    """Distinguish a frame that was never finished from one that was altered."""
    if stop < end:
        return "header"
    head = _read_at(file, start, min(len(MARKER), end - start))
    if end - start < HEADER_BYTES and MARKER.startswith(head):
        return "torn"
    # after a power loss a file may have its length and not its last blocks
    return "torn" if _is_zero(file, start, end) else "header"


def _claimed(file: BinaryIO, start: int, stop: int) -> tuple[FrameKind | None, bytes]:
    """Read a damaged header, if its length is that of the damage: then it is of one frame."""
    if stop - start < HEADER_BYTES:
        return None, b""
    fields = _FIELDS.unpack_from(_read_at(file, start, HEADER_BYTES))
    if start + HEADER_BYTES + fields[5] != stop:
        return None, b""
    return _KINDS.get(fields[2]), fields[7]


def _is_zero(file: BinaryIO, start: int, end: int) -> bool:
    for at in range(start, end, BUFFER_BYTES):
        if any(_read_at(file, at, min(BUFFER_BYTES, end - at))):
            return False
    return True


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise EOFError(f"the file ends at {offset + len(data)}, not at {offset + size} or later")
    return data
