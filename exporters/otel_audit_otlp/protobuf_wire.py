"""Protobuf's wire format, as much as spans and logs need: a fifth of what message objects take.

Field numbers are those of opentelemetry-proto 1.x (``trace.proto``, ``logs.proto``,
``common.proto``, ``resource.proto`` and the services'); the tests read what is written with its
own classes.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from typing import Any, Final


def _parts(field: int) -> bytes:
    return bytes((field << 3 | 2,))


def _fixed64(field: int) -> bytes:
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
_BYTES_OF_VARINT: Final = [bytes((number,)) for number in range(128)]
_INT64: Final = range(-(1 << 63), 1 << 63)
_TIMES: Final = range(1, 1 << 63)


def part(tag: bytes, content: bytes) -> bytes:
    """Write a field of bytes, text or a message."""
    return tag + _varint(len(content)) + content


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
        ValueError: A text is no Unicode, or an integer has more than 64 bits.
        TypeError: A value is of a type that OTLP does not know.
    """
    written: list[bytes] = []
    for key, value in attributes.items():
        encoded = part(_STRING, value.encode()) if type(value) is str else _any(value)
        pair = _key(key) + _VALUE + _varint(len(encoded)) + encoded
        written += (tag, _varint(len(pair)), pair)
    return b"".join(written)


# the names of attributes are few
@functools.lru_cache(maxsize=1024)
def _key(key: str) -> bytes:
    return part(_KEY, key.encode())


def _any(value: Any) -> bytes:  # noqa: PLR0911 - one for each kind
    if isinstance(value, str):
        return part(_STRING, value.encode())
    if isinstance(value, bool):
        return _BOOLS[value]
    if isinstance(value, int):
        if value not in _INT64:
            raise ValueError("an integer of more than 64 bits")
        return _INT + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)
    if isinstance(value, float):
        return _DOUBLE + struct.pack("<d", value)
    if value is None:
        return b""
    if isinstance(value, list | tuple):
        return part(_ARRAY, b"".join(part(_ELEMENT, _any(one)) for one in value))
    if isinstance(value, Mapping):
        return part(_MAP, pairs(_ELEMENT, value))
    raise TypeError(f"an attribute cannot be a {type(value).__name__}")


def any_value(value: Any) -> bytes:
    """Write a value of any kind as an ``AnyValue``; raises as `pairs` does."""
    return _any(value)


def _varint(number: int) -> bytes:
    if number < 128:  # noqa: PLR2004 - seven bits to a byte
        return _BYTES_OF_VARINT[number]
    written = bytearray()
    while number > 127:  # noqa: PLR2004 - as above
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)
