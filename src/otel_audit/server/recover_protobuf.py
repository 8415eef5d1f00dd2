"""A protobuf message, taken apart item by item, and what is kept of an undecodable item.

One span with a text that is not UTF-8 makes the whole request invalid, and a Collector passes such
texts on. If that were answered with 400, the batch's other records would be lost for good; so a
message is taken apart by its framing alone (https://protobuf.dev/programming-guides/encoding/),
each item is decoded by itself, and only the undecodable ones are quarantined. Nothing is decoded as
a whole either way: that would hold up all other requests for as long as it takes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope, KeyValue

from otel_audit.server.decode_attributes import Nodes, as_attributes
from otel_audit.server.items import (
    MOST_ATTRIBUTES,
    ItemPath,
    ReceivedItem,
    Resource,
    SharedResources,
)
from otel_audit.server.scan_json import Range

_VARINT, _FIXED64, _BYTES, _BEGIN, _END, _FIXED32 = range(6)
_LONGEST_VARINT: Final = 10
"""Bytes of 64 bits at seven a byte."""

_MOST_FIELDS: Final = 10_000
"""Fields of one item that are looked at for the quarantine."""

_MOST_DECODED: Final = 20_000
"""Fields of one item that is decoded."""

_LARGEST_ATTRIBUTE: Final = 16_384
"""Bytes of a resource's attribute, or of a scope."""

# the same numbers in requests of traces and of logs
_GROUPS = _RESOURCE = _SCOPE = 1
_SCOPED = _ITEMS = 2

NOT_UTF8: Final = "it cannot be decoded: a text in it is not UTF-8, or it is cut"

WireField = tuple[int, Any]


class FramingError(ValueError):
    """Not even the framing holds."""


def groups(message: bytes) -> Iterator[Range]:
    """Find what each resource of an export request has sent.

    Args:
        message: An ``ExportTraceServiceRequest`` or ``ExportLogsServiceRequest``.

    Yields:
        Where each group begins and ends.

    Raises:
        FramingError: It is neither; while anything of it is read.
    """
    return _all(message, (0, len(message)), _GROUPS)


def scopes(message: bytes, group: Range) -> Iterator[Range]:
    """Find what each scope of a group has sent; as `groups`."""
    return _all(message, group, _SCOPED)


def items(message: bytes, scoped: Range) -> Iterator[Range]:
    """Find the spans or log records of a scope; as `groups`."""
    return _all(message, scoped, _ITEMS)


def resource_of(message: bytes, group: Range, known: SharedResources, nodes: Nodes) -> Resource:
    """Decode the resource of a group: what can be decoded of it, and no more than is kept."""
    ranges = _all(message, group, _RESOURCE)
    first, second = next(ranges, None), next(ranges, None)
    if first is None:
        return Resource({})
    if second is None:
        raw = message[slice(*first)]
        return known.share(raw, lambda raw: _resource(raw, [(0, len(raw))], nodes))
    return _resource(message, chain((first, second), ranges), nodes)


def _resource(message: bytes, ranges: Iterable[Range], nodes: Nodes) -> Resource:
    found: list[bytes] = []
    left_out = 0
    for start, stop in ranges:
        # those that are skipped cost time, too: after 8 times what is kept it is no resource
        for at, end in islice(_within(message, (start, stop), 1), 8 * MOST_ATTRIBUTES):
            if len(found) >= MOST_ATTRIBUTES or end - at > _LARGEST_ATTRIBUTE:
                left_out += 1
            elif _pair(message[at:end]) is not None:
                found.append(message[at:end])
    return Resource(as_attributes(found, nodes), left_out)


def scope_of(message: bytes, scoped: Range) -> str:
    """Decode the name of a scope, empty where it cannot be."""
    raw = b"".join(
        message[start:stop]
        for start, stop in _all(message, scoped, _SCOPE)
        if stop - start <= _LARGEST_ATTRIBUTE
    )
    return scope_name(raw[:_LARGEST_ATTRIBUTE])


def parts(message: bytes) -> Iterator[bool]:
    """Go over all that decoding would make an object of.

    Args:
        message: As for `groups`.

    Yields:
        For each field of the request, its groups and their scopes: whether it is a span or log
        record.

    Raises:
        FramingError: As for `groups`.
    """
    for is_group, at, end in _ranges(message, 0, len(message), _GROUPS):
        yield False
        if not is_group:
            continue
        for is_scoped, start, stop in _ranges(message, at, end, _SCOPED):
            yield False
            if is_scoped:
                for is_item, _, _ in _ranges(message, start, stop, _ITEMS):
                    yield is_item


def has_too_many_fields(raw: bytes) -> bool:
    """Return whether an item has more fields than are looked at; one that is cut has not."""
    try:
        return next(islice(_places(raw, 0, len(raw)), _MOST_DECODED, None), None) is not None
    except FramingError:
        return False


def _ranges(message: bytes, at: int, end: int, wanted: int) -> Iterator[tuple[bool, int, int]]:
    depth = 0
    for number, kind, start, stop in _places(message, at, end):
        depth += (kind == _BEGIN) - (kind == _END)
        yield number == wanted and kind == _BYTES and depth == 0, start, stop


def _all(message: bytes, within: Range, wanted: int) -> Iterator[Range]:
    for is_wanted, start, stop in _ranges(message, *within, wanted):
        if is_wanted:
            yield start, stop


def _within(message: bytes, within: Range, wanted: int) -> Iterator[Range]:
    """As `_all`, up to the first broken frame, and among the first fields only."""
    try:
        yield from islice(_all(message, within, wanted), _MOST_FIELDS)
    except FramingError:
        return


def scope_name(scope: bytes) -> str:
    """Decode a scope's name, empty where it cannot be."""
    try:
        name: str = InstrumentationScope.FromString(scope).name
    except DecodeError:
        return ""
    return name


def recovered(
    raw: bytes, scope: str, whence: Resource, *, is_log: bool, place: ItemPath | None = None
) -> ReceivedItem:
    """Read what can be read of an undecodable item, for the quarantine.

    Texts that are not UTF-8 have U+FFFD in them; of what cannot be read only size and hash are
    kept, because its secrets cannot be found.
    """
    attributes: dict[str, Any] = {
        "undecodable.bytes": len(raw),
        "undecodable.sha256": hashlib.sha256(raw).hexdigest(),
    }
    pairs, name, start, end, trace_id, span_id = (
        (6, 12, 1, 1, 9, 10) if is_log else (9, 5, 7, 8, 1, 2)
    )
    for pair in _found(raw, pairs):
        text = _text_of(pair)
        if text is not None:
            attributes[text[0]] = text[1]
    return ReceivedItem(
        _first_text(raw, name),
        _first(raw, trace_id, b"").hex(),
        _first(raw, span_id, b"").hex(),
        "",
        _first(raw, start, 0),
        _first(raw, end, 0),
        attributes,
        scope,
        whence,
        is_log=is_log,
        place=place,
    )


def _pair(raw: Any) -> KeyValue | None:
    if not isinstance(raw, bytes):
        return None
    try:
        found: KeyValue = KeyValue.FromString(raw)
    except DecodeError:
        return None
    return found


def _text_of(pair: Any) -> tuple[str, Any] | None:
    decoded = _pair(pair)
    if decoded is not None:
        value = decoded.value
        kind = value.WhichOneof("value")
        plain = kind in ("string_value", "bool_value", "int_value", "double_value")
        return decoded.key, getattr(value, kind) if plain and kind is not None else "[UNREAD]"
    if not isinstance(pair, bytes):
        return None
    key = _first_text(pair, 1)
    value_bytes = _first(pair, 2, b"")
    return key, _first_text(value_bytes, 1) if isinstance(value_bytes, bytes) else "[UNREAD]"


def _first_text(message: bytes, number: int) -> str:
    found = _first(message, number, b"")
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else ""


def _first(message: bytes, number: int, default: Any) -> Any:
    found = next(_found(message, number), default)
    return found if type(found) is type(default) else default


def _found(message: bytes, wanted: int) -> Iterator[Any]:
    """The fields with a number, up to the first broken frame, among the first ones only."""
    try:
        for number, value in islice(_fields(message), _MOST_FIELDS):
            if number == wanted:
                yield value
    except FramingError:
        return


def _fields(message: bytes) -> Iterator[WireField]:
    for number, kind, start, stop in _places(message, 0, len(message)):
        if kind == _VARINT:
            yield number, _varint(message, start)[0]
        elif kind == _BYTES:
            yield number, message[start:stop]
        elif kind in (_FIXED64, _FIXED32):
            code = "<Q" if kind == _FIXED64 else "<I"
            yield number, struct.unpack_from(code, message, start)[0]
        else:
            raise FramingError(f"wire type {kind}")


def _places(message: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, start and end of each field's value."""
    while at < end:
        tag, at = _varint(message, at)
        kind = tag & 7
        if not tag >> 3:
            raise FramingError("field number 0")
        start = at
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _BYTES:
            length, start = _varint(message, at)
            at = start + length
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        elif kind not in (_BEGIN, _END):
            raise FramingError(f"wire type {kind}")
        if at > end:
            raise FramingError("it is cut")
        yield tag >> 3, kind, start, at


def _varint(message: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(_LONGEST_VARINT):
        if at >= len(message):
            raise FramingError("it is cut")
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:  # noqa: PLR2004 - the last byte
            return number, at
    raise FramingError("a varint is too long")
