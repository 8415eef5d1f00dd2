"""One level of any Python value as what JSON has: nothing here asks a value to describe itself.

Reading never calls code of the application: no ``str()`` or ``repr()`` of unknown objects, no
property, no lazy attribute, so no hidden query.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import hashlib
import ipaddress
import math
import pathlib
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from pydantic import BaseModel, Secret, SecretBytes, SecretStr

from otel_audit.redaction.annotations import Marked, Sensitive, as_mark

SHORTEST_HASHED: Final = 64
"""Bytes below which a plain hash could be undone by guessing."""

_LARGEST_BITS: Final = 4_096
_LONGEST_HASHED: Final = 4_000_000
"""Bytes above which hashing would hold up the event loop."""

_SEQUENCES: Final = (tuple, set, frozenset, deque)
_SPELLED: Final = (
    uuid.UUID, decimal.Decimal, pathlib.PurePath, ipaddress.IPv4Address, ipaddress.IPv6Address,
    ipaddress.IPv4Network, ipaddress.IPv6Network, ipaddress.IPv4Interface, ipaddress.IPv6Interface,
)  # fmt: skip


class NotUnderstoodError(Exception):
    """A value has no JSON form that is safe to take; it is to be withheld."""


def as_json_shape(value: Any) -> Any:
    """Spell one level of a value in JSON's types.

    Args:
        value: Anything that is not exactly a str, bool, None, list or dict already.

    Returns:
        A str, number, list, or dict whose members are still to be spelled, or a `Marked` value.

    Raises:
        NotUnderstoodError: The value's type is not known.
    """
    if isinstance(value, SecretStr | SecretBytes | Secret):
        return Marked("redact", value.get_secret_value())
    if isinstance(value, enum.Enum):
        return value.value
    for spell in (_scalar, _container, _model):
        found = spell(value)
        if found is not _NOTHING:
            return found
    raise NotUnderstoodError(type(value).__name__)


_NOTHING: Final = object()


def _scalar(value: Any) -> Any:  # noqa: PLR0911 - a table
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return as_json_int(int(value))
    if isinstance(value, float):
        return as_json_float(float(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return describe_bytes(bytes(value))
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    return (
        str(value) if type(value) in _SPELLED or isinstance(value, pathlib.PurePath) else _NOTHING
    )


def as_json_int(value: int) -> int:
    """Give back a number; refuse one that would take long to spell."""
    if value.bit_length() > _LARGEST_BITS:
        raise NotUnderstoodError("int")
    return value


def as_json_float(value: float) -> float | str:
    """Give back a number, or the name of one that JSON does not have."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def describe_bytes(raw: bytes) -> dict[str, Any]:
    """Say how long binary data is, and which; never the data."""
    found: dict[str, Any] = {"_binary": True, "_size": len(raw)}
    if SHORTEST_HASHED <= len(raw) <= _LONGEST_HASHED:
        found["_sha256"] = hashlib.sha256(raw).hexdigest()
    return found


def _container(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=False))
    if isinstance(value, list):
        return list(value)
    if isinstance(value, _SEQUENCES):
        return list(value)
    return _NOTHING


def _model(value: Any) -> Any:
    if isinstance(value, type | Iterator):
        return _NOTHING
    if isinstance(value, BaseModel):
        return dict(_pydantic_fields(value))
    if isinstance(value, msgspec.Struct):
        return {name: getattr(value, name) for name in value.__struct_fields__}
    if dataclasses.is_dataclass(value):
        return dict(_dataclass_fields(value))
    if type(value).__name__.startswith("Secret"):
        return Marked("redact", None)
    return _NOTHING


def _pydantic_fields(model: BaseModel) -> Iterator[tuple[str, Any]]:
    declared = type(model).model_fields
    for name, value in (*model.__dict__.items(), *(model.__pydantic_extra__ or {}).items()):
        info = declared.get(name)
        if info is None:
            yield name, value
            continue
        extra = info.json_schema_extra
        word = extra.get("audit") if isinstance(extra, dict) else None
        mark = next((item.mark for item in info.metadata if isinstance(item, Sensitive)), word)
        yield name, value if mark is None else Marked(as_mark(mark), value)


def _dataclass_fields(value: Any) -> Iterator[tuple[str, Any]]:
    for item in dataclasses.fields(value):
        content = getattr(value, item.name, None)
        mark = item.metadata.get("audit")
        yield item.name, content if mark is None else Marked(as_mark(mark), content)
