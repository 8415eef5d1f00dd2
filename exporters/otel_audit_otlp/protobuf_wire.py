"""Protobuf's wire format, as much as spans and logs need: a fifth of what message objects take.

Field numbers are those of opentelemetry-proto 1.x (``trace.proto``, ``logs.proto``,
``common.proto``, ``resource.proto`` and the services'); the tests read what is written with its
own classes.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

from otel_audit._util.varint import varint


def _parts(field: int) -> bytes:
    # wire type 2: a length, and so many bytes
    return bytes((field << 3 | 2,))


def _fixed64(field: int) -> bytes:
    # wire type 1: eight bytes
    return bytes((field << 3 | 1,))


REQUEST_RESOURCE_SPANS: Final = _parts(1)
RESOURCE_SPANS_RESOURCE: Final = _parts(1)
RESOURCE_SPANS_SCOPE_SPANS: Final = _parts(2)
RESOURCE_ATTRIBUTE: Final = _parts(1)
SCOPE_SPANS_SCOPE: Final = _parts(1)
SCOPE_SPANS_SPAN: Final = _parts(2)
SCOPE_NAME: Final = _parts(1)
SPAN_TRACE_ID: Final = _parts(1)
SPAN_ID: Final = _parts(2)
SPAN_PARENT_ID: Final = _parts(4)
SPAN_NAME: Final = _parts(5)
SPAN_KIND_INTERNAL: Final = bytes((6 << 3, 1))
SPAN_START: Final = _fixed64(7)
SPAN_END: Final = _fixed64(8)
SPAN_ATTRIBUTE: Final = _parts(9)
REQUEST_RESOURCE_LOGS: Final = _parts(1)
RESOURCE_LOGS_SCOPE_LOGS: Final = _parts(2)
SCOPE_LOGS_RECORD: Final = _parts(2)
LOG_TIME: Final = _fixed64(1)
# SeverityNumber: 9 is INFO, 13 is WARN
LOG_SEVERITY_INFO: Final = bytes((2 << 3, 9))
LOG_SEVERITY_WARN: Final = bytes((2 << 3, 13))
LOG_BODY: Final = _parts(5)
LOG_ATTRIBUTE: Final = _parts(6)
LOG_OBSERVED: Final = _fixed64(11)
LOG_EVENT_NAME: Final = _parts(12)

_KEY: Final = _parts(1)
_VALUE: Final = _parts(2)
_STRING: Final = _parts(1)
_BOOLS: Final = (bytes((2 << 3, 0)), bytes((2 << 3, 1)))
_INT: Final = bytes((3 << 3,))
_DOUBLE: Final = _fixed64(4)
_ARRAY: Final = _parts(5)
_MAP: Final = _parts(6)
_ELEMENT: Final = _parts(1)
_SHORT: Final = 126
"""Bytes of a text from which on the value around it has a length of two bytes."""
_TEXTS: Final = [bytes((*_VALUE, size + 2, *_STRING, size)) for size in range(_SHORT)]
"""What stands before a short text that is an attribute's value."""
_TRUTHS: Final = [_VALUE + bytes((len(one),)) + one for one in _BOOLS]
_INT64: Final = range(-(1 << 63), 1 << 63)
"""What `int_value` holds; other numbers go as text."""
_TIMES: Final = range(1, 1 << 63)
"""Nanoseconds of ``fixed64`` that a signed column holds, too; 0 is "not known"."""


def part(tag: bytes, content: bytes) -> bytes:
    """Write a field of bytes, text or a message."""
    return tag + varint(len(content)) + content


def time(tag: bytes, nanoseconds: int) -> bytes:
    """Write a time.

    Raises:
        ValueError: It is not after 1970, or after 2262: no record has such a time, and no store
            takes it.
    """
    if nanoseconds not in _TIMES:
        raise ValueError("a time that OTLP cannot say")
    return tag + struct.pack("<Q", nanoseconds)


def pairs(tag: bytes, attributes: Mapping[str, Any]) -> bytes:
    """Write attributes, a field each.

    Raises:
        ValueError: A text is not Unicode, or an integer has more than 64 bits.
        TypeError: A value is of a type that OTLP does not know.
    """
    written: list[bytes] = []
    heads = _heads(tag)
    # what is frequent is written here, without a call: two of three attributes are short texts
    for key, value in attributes.items():
        kind = type(value)
        if kind is str:
            text = value.encode()
            size = len(text)
            pair = _key(key) + (_TEXTS[size] if size < _SHORT else _before_text(size)) + text
        elif kind is dict:
            inner = pairs(_ELEMENT, value)
            inner = _MAP + varint(len(inner)) + inner
            pair = _key(key) + _VALUE + varint(len(inner)) + inner
        elif kind is bool:
            pair = _key(key) + _TRUTHS[value]
        else:
            encoded = _any(value)
            pair = _key(key) + _VALUE + varint(len(encoded)) + encoded
        size = len(pair)
        written.append((heads[size] if size < 128 else tag + varint(size)) + pair)  # noqa: PLR2004 - seven bits to a byte
    return b"".join(written)


# the names of attributes are few
@functools.lru_cache(maxsize=1024)
def _key(key: str) -> bytes:
    return part(_KEY, key.encode())


@functools.cache
def _heads(tag: bytes) -> list[bytes]:
    """A field's tag and length, for each length of one byte."""
    return [tag + varint(size) for size in range(128)]


def _before_text(size: int) -> bytes:
    """The prefix of a long text as an attribute's value."""
    length = varint(size)
    return _VALUE + varint(len(_STRING) + len(length) + size) + _STRING + length


def _any(value: Any) -> bytes:
    write = _WRITERS.get(type(value))
    if write is None:
        write = next((one for kind, one in _KINDS if isinstance(value, kind)), None)
    if write is None:
        raise TypeError(f"an attribute cannot be a {type(value).__name__}")
    return write(value)


def _int(value: int) -> bytes:
    if value not in _INT64:
        raise ValueError("an integer of more than 64 bits")
    return _INT + varint(value & 0xFFFF_FFFF_FFFF_FFFF)


_KINDS: Final[tuple[tuple[Any, Callable[[Any], bytes]], ...]] = (
    (str, lambda value: part(_STRING, value.encode())),
    (bool, lambda value: _BOOLS[value]),  # before int, which it is, too
    (int, _int),
    (float, lambda value: _DOUBLE + struct.pack("<d", value)),
    (type(None), lambda _: b""),
    (list, lambda value: part(_ARRAY, b"".join([part(_ELEMENT, _any(one)) for one in value]))),
    (dict, lambda value: part(_MAP, pairs(_ELEMENT, value))),
    (tuple, lambda value: _any(list(value))),
    (Mapping, lambda value: part(_MAP, pairs(_ELEMENT, value))),
)
_WRITERS: Final = dict(_KINDS)
"""By the very type, which is quicker than to ask for one kind after the other."""


def any_value(value: Any) -> bytes:
    """Write a value of any kind as an ``AnyValue``; raises as `pairs` does."""
    return _any(value)
