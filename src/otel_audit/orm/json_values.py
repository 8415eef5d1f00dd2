"""Values of the application, in a stable JSON form.

| value | JSON |
|---|---|
| None, bool, text | as it is; NUL and lone surrogates become U+FFFD |
| int | a number within 64 bits (signed), else its decimal text |
| float | a number; ``"NaN"``, ``"Infinity"``, ``"-Infinity"`` |
| Decimal | its text, digits kept: ``"12.30"`` |
| UUID, IP address, IP network | its text |
| datetime | ISO 8601; with a zone in UTC (``+00:00``), without one as it is |
| date, time | ISO 8601 |
| timedelta | ISO 8601 duration: ``"P1DT2H"`` |
| Enum member | as its column stores it; else as the text or number that it is, or its name |
| ``JSON.NULL`` | null |
| bytes | ``{"bytes": size}``, from 64 bytes (a short one could be guessed) to 4 MB ``"sha256"`` |
| range | PostgreSQL's text form: ``"[1,10)"``, ``"empty"`` |
| list, tuple, array, vector | a list; a set as a sorted list |
| mapping | an object with text keys |
| anything else | ``{"type": "module.Class"}``: its text might say what it must not |

A value whose JSON text is longer than the bound becomes
``{"cut": "its beginning", "size": bytes, "sha256": "of the redacted text"}``. One that is longer
than four times the bound is cut before it is looked at, so it has no hash, and a list or an object
has no size then. Of a list or an object no more than 5,000 values are read.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import JSON

from otel_audit.redaction.placeholders import TRUNCATED

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_HASHED_FROM = 64
_SHOWN = 256
_LONGEST_HASHED = 4_000_000
_MOST_VALUES = 5_000
_DEEPEST = 32
SMALL = 10**9
"""Numbers below it are too short to be a card's, a bank's, or a person's."""

_encode = msgspec.json.Encoder().encode


def portable(value: Any) -> Any:
    """Bring a value to its JSON form, see the table above.

    Args:
        value: Any value of the application.

    Returns:
        A copy that shares nothing mutable with the value.
    """
    return _portable(value, 0, [_MOST_VALUES])


def counted(value: Any) -> tuple[Any, int]:
    """As `portable`, and how many values it has read."""
    left = [_MOST_VALUES]
    form = _portable(value, 0, left)
    return form, _MOST_VALUES - max(left[0], 0)


def json_text(form: Any) -> bytes:
    """The JSON text of a JSON form."""
    return _encode(form)


def bounded(value: Any, longest: int) -> Any:
    """Cut a JSON value that is too long, and say its size and hash.

    Args:
        value: A JSON value that is redacted already.
        longest: Characters of its JSON text (of the text itself, for text).

    Returns:
        The value, or ``{"cut": …, "size": …, "sha256": …}``.
    """
    if isinstance(value, str):
        return value if len(value) <= longest else _cut(value)
    if isinstance(value, dict | list):
        text = _encode(value)
        return value if len(text) <= longest else _cut(text.decode())
    return value


def clean_text(text: str) -> str:
    """Replace what PostgreSQL cannot store (NUL) and UTF-8 cannot spell (lone surrogates)."""
    if "\x00" not in text:
        try:
            text.encode()
        except UnicodeEncodeError:
            pass
        else:
            return text
    return _UNSTORABLE.sub("\ufffd", text)


def _cut(text: str) -> dict[str, Any]:
    data = text.encode()
    return {
        "cut": text[:_SHOWN],
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _portable(value: Any, depth: int, left: list[int]) -> Any:
    kind = type(value)
    convert = _EXACT.get(kind)
    if convert is not None:
        return convert(value)
    if depth >= _DEEPEST:
        return {"type": _type_name(kind), "note": "nested too deeply"}
    if kind is dict:
        return _object(value, depth, left)
    if kind is list or kind is tuple:
        return _array(value, depth, left)
    return _rare(value, depth, left)


def _object(value: Mapping[Any, Any], depth: int, left: list[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, part in value.items():
        left[0] -= 1
        if left[0] < 0:
            found[TRUNCATED] = len(value) - len(found)
            break
        found[_key(key)] = _portable(part, depth + 1, left)
    return found


def _array(value: Iterable[Any], depth: int, left: list[int]) -> list[Any]:
    found: list[Any] = []
    for part in value:
        left[0] -= 1
        if left[0] < 0:
            found.append(TRUNCATED)
            break
        found.append(_portable(part, depth + 1, left))
    return found


def _rare(value: Any, depth: int, left: list[int]) -> Any:  # noqa: PLR0911 - one return a kind of value
    if value is JSON.NULL:
        return None
    if isinstance(value, Enum):
        return _member(value)
    for kind, convert in _EXACT.items():
        if isinstance(value, kind):
            return convert(value)
    if isinstance(value, Mapping):
        return _object(value, depth, left)
    if _is_range(value):
        return _range(value, depth, left)
    if isinstance(value, AbstractSet):
        return sorted(_array(value, depth, left), key=_encode)
    if isinstance(value, list | tuple):
        return _array(value, depth, left)
    as_list = getattr(value, "tolist", None) or getattr(value, "to_list", None)
    if callable(as_list):
        return _portable(as_list(), depth + 1, left)
    return {"type": _type_name(type(value))}


def _member(value: Enum) -> Any:
    """A member that is a text or a number is stored as that; others by their names, mostly."""
    if isinstance(value, str):
        return clean_text(str.__str__(value))
    if isinstance(value, int):
        return _integer(value)
    if value.name is None or isinstance(value, _PLAIN):
        return portable(value.value)
    return clean_text(value.name)


def is_described(value: Any) -> bool:
    """Tell whether a JSON form only names the type of a value that has none."""
    return isinstance(value, dict) and value.keys() == {"type"}


def _key(key: Any) -> str:
    if type(key) is str:
        return clean_text(key)
    form = portable(key)
    return form if isinstance(form, str) else _encode(form).decode()


def _type_name(kind: type) -> str:
    return clean_text(f"{kind.__module__}.{kind.__qualname__}")


def _same(value: Any) -> Any:
    return value


def _integer(value: int) -> int | str:
    return int(value) if -(2**63) <= value < 2**63 else _decimal_text(value)


def _decimal_text(value: int) -> str:
    try:
        return str(int(value))
    except ValueError:  # more digits than the interpreter turns into text
        return hex(value)


def _float(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _datetime(value: dt.datetime) -> str:
    if value.tzinfo is None:
        return value.isoformat()
    try:
        return value.astimezone(dt.UTC).isoformat()
    except OverflowError:  # next to year 1 or 9999
        return value.isoformat()


def _bytes(value: bytes | bytearray | memoryview) -> dict[str, Any]:
    data = bytes(value)
    if not _HASHED_FROM <= len(data) <= _LONGEST_HASHED:
        return {"bytes": len(data)}
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _is_range(value: Any) -> bool:
    return hasattr(value, "lower") and hasattr(value, "upper") and not isinstance(value, str)


def _range(value: Any, depth: int, left: list[int]) -> str:
    empty = getattr(value, "isempty", getattr(value, "is_empty", False))
    if empty is True:
        return "empty"
    bounds = getattr(value, "bounds", None)
    if not isinstance(bounds, str):
        lower_inc = getattr(value, "lower_inc", True)
        upper_inc = getattr(value, "upper_inc", False)
        bounds = f"{'[' if lower_inc else '('}{']' if upper_inc else ')'}"
    low, high = (
        "" if end is None else _plain(_portable(end, depth + 1, left))
        for end in (value.lower, value.upper)
    )
    return f"{bounds[0]}{low},{high}{bounds[1]}"


def _plain(form: Any) -> str:
    return form if isinstance(form, str) else _encode(form).decode()


_EXACT: dict[type, Callable[[Any], Any]] = {
    str: clean_text,
    bool: bool,
    int: _integer,
    type(None): _same,
    float: _float,
    Decimal: str,
    UUID: str,
    dt.datetime: _datetime,
    dt.date: dt.date.isoformat,
    dt.time: dt.time.isoformat,
    dt.timedelta: msgspec.to_builtins,
    bytes: _bytes,
    bytearray: _bytes,
    memoryview: _bytes,
    IPv4Address: str,
    IPv6Address: str,
    IPv4Network: str,
    IPv6Network: str,
}
"""Converters by type. Order matters to subclasses: bool before int, datetime before date."""

_PLAIN = tuple(kind for kind in _EXACT if kind is not type(None))

HARMLESS: dict[type, Callable[[Any], Any]] = {
    bool: bool,
    float: _float,
    dt.datetime: _datetime,
    dt.date: dt.date.isoformat,
    dt.time: dt.time.isoformat,
    dt.timedelta: msgspec.to_builtins,
    UUID: str,
}
"""Converters of values that can be no secret by themselves, only by their name."""


def is_harmless(value: Any) -> bool:
    """Tell whether a value can be no secret by itself, nor a number that is one."""
    kind = type(value)
    return kind in HARMLESS or (kind is int and -SMALL < value < SMALL)
