"""The JSON form of a value: one for bodies, metadata, parameters and changes.

The table in docs/payload.md, "Values", says which form a value has. ``{"_type": "module.Class"}``
replaces what has none: its text might say what it must not. What only a database has, such as a
range, the caller brings to a form (`Convert`), for columns and parameters of SQL alike.

A value that is cut is ``{"_truncated": true, "_original_size": bytes, "_head": beginning}``, see
`otel_audit.redaction.truncate`. ``"[WITHHELD]"`` replaces everything over a bound.

Reading a value calls no code of the application: no ``str()`` or ``repr()`` of unknown objects, no
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
import types
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

import msgspec
from pydantic import BaseModel, Secret, SecretBytes, SecretStr

from otel_audit._util.text import storable
from otel_audit.redaction.annotations import Marked, Sensitive, as_mark
from otel_audit.redaction.placeholders import REDACTED, WITHHELD

SHORTEST_HASHED: Final = 64
"""Bytes below which a plain hash could be undone by guessing."""

_LARGEST_BITS: Final = 4_096
"""Bits of a whole number: spelling it out takes time by the square of its length."""
_LONGEST_HASHED: Final = 4_000_000
"""Bytes above which hashing would hold up the event loop."""

_DEEPEST: Final = 32
"""Levels of lists and objects, far below Python's own bound; what is deeper is withheld."""
_BINARY: Final = "_binary"
_TYPE: Final = "_type"

NOT_CONVERTED: Final[Any] = object()
"""Result of a `Convert` for a value that it leaves to this module."""

Convert = Callable[[Any], Any]

_encode: Final = msgspec.json.Encoder().encode


class NotUnderstoodError(Exception):
    """A value has no JSON form that is safe to take."""


def json_form(value: Any, budget: list[int], convert: Convert | None = None) -> Any:
    """Bring a value to its JSON form at every depth.

    Args:
        value: Any value.
        budget: How many more members of lists and objects may be read; counted down in place.
        convert: Gives another value for one of a type that is not JSON's or a usual scalar, or
            `NOT_CONVERTED`: for types that only the caller knows.

    Returns:
        A copy that shares nothing mutable with the value. A field that its model marks as
        sensitive is redacted or left out.
    """
    return _form(value, 0, budget, convert)


def json_shape(value: Any) -> Any:
    """Spell one level of a value in JSON's types.

    Args:
        value: Anything that is not exactly a str, bool, None, list or dict already.

    Returns:
        A str, number, list, or dict whose members are still to be spelled, or a `Marked` value.

    Raises:
        NotUnderstoodError: The value's type is not known, or it is a number too long to spell.
    """
    spell = _SPELLINGS.get(type(value))
    if spell is not None:
        return spell(value)
    if isinstance(value, SecretStr | SecretBytes | Secret):
        return Marked("redact", value.get_secret_value())
    if isinstance(value, enum.Enum):
        return value.value
    for kind, spell in _SPELLINGS.items():
        if isinstance(value, kind):
            return spell(value)
    for read in (_container, _model):
        found = read(value)
        if found is not _NOTHING:
            return found
    raise NotUnderstoodError(type(value).__name__)


def json_key(key: Any) -> str:
    """Spell the key of a mapping; one that has no obvious text is withheld."""
    if type(key) is str:
        return key
    if isinstance(key, bytes):
        return key.decode("utf-8", "replace")
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    try:
        shape = json_shape(key)
    except NotUnderstoodError:
        return WITHHELD
    return str(shape) if isinstance(shape, str | int | float) else WITHHELD


def json_text(form: Any) -> bytes:
    """Write a JSON form down as JSON text."""
    return _encode(form)


def describe_bytes(raw: bytes | bytearray | memoryview) -> dict[str, Any]:
    """Describe binary data by its size and hash; the data itself is never kept."""
    size = raw.nbytes if isinstance(raw, memoryview) else len(raw)
    found: dict[str, Any] = {_BINARY: True, "_size": size}
    if SHORTEST_HASHED <= size <= _LONGEST_HASHED:
        found["_sha256"] = hashlib.sha256(bytes(raw)).hexdigest()
    return found


def describe_type(kind: type) -> dict[str, Any]:
    """Name the type of a value that has no JSON form."""
    return {_TYPE: storable(f"{kind.__module__}.{kind.__qualname__}")}


def is_described_type(form: Any) -> bool:
    """Return whether a JSON form only names the type of a value that has none."""
    return isinstance(form, dict) and form.keys() == {_TYPE}


def json_int(value: int) -> int:
    """Give back a number.

    Raises:
        NotUnderstoodError: The number would take long to spell.
    """
    if int.bit_length(value) > _LARGEST_BITS:
        raise NotUnderstoodError("int")
    return int.__int__(value)


def json_float(value: float) -> float | str:
    """Give back a number, or the name of one that JSON does not have."""
    plain = float.__float__(value)
    if math.isfinite(plain):
        return plain
    return "NaN" if math.isnan(plain) else ("Infinity" if plain > 0 else "-Infinity")


def duration(value: dt.timedelta) -> str:
    """Spell a duration by ISO 8601, in days, hours, minutes and seconds."""
    if type(value) is not dt.timedelta:
        # a class of its own may count its days and seconds in another way
        value = dt.timedelta(*(part.__get__(value) for part in _DURATION_PARTS))
    if value.days < 0:
        return f"-{duration(-value)}" if value.days > dt.timedelta.min.days else _DAYS_AT_MOST
    minutes, seconds = divmod(value.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    day = f"{value.days}D" if value.days else ""
    time = (f"{hours}H" if hours else "") + (f"{minutes}M" if minutes else "")
    if value.microseconds:
        time += f"{seconds}.{value.microseconds:06d}".rstrip("0") + "S"
    elif seconds or not (day or time):
        time += f"{seconds}S"
    return f"P{day}T{time}" if time else f"P{day}"


_DURATION_PARTS: Final[tuple[Any, ...]] = (
    dt.timedelta.days,
    dt.timedelta.seconds,
    dt.timedelta.microseconds,
)

_DAYS_AT_MOST: Final = "-P999999999D"
"""The least timedelta, whose opposite there is not."""

_SPELLINGS: Final[dict[type, Convert]] = {
    str: str.__str__,
    bool: bool,
    int: json_int,
    float: json_float,
    bytes: describe_bytes,
    bytearray: describe_bytes,
    memoryview: describe_bytes,
    dt.datetime: dt.datetime.isoformat,
    dt.date: dt.date.isoformat,
    dt.time: dt.time.isoformat,
    dt.timedelta: duration,
    decimal.Decimal: decimal.Decimal.__str__,
    uuid.UUID: uuid.UUID.__str__,
    pathlib.PurePath: pathlib.PurePath.__str__,
    ipaddress.IPv4Interface: ipaddress.IPv4Interface.__str__,
    ipaddress.IPv6Interface: ipaddress.IPv6Interface.__str__,
    ipaddress.IPv4Address: ipaddress.IPv4Address.__str__,
    ipaddress.IPv6Address: ipaddress.IPv6Address.__str__,
    ipaddress.IPv4Network: ipaddress.IPv4Network.__str__,
    ipaddress.IPv6Network: ipaddress.IPv6Network.__str__,
}
"""Spellings of scalars. A class stands before those that it derives from: bool before int."""

PLAIN_SCALARS: Final[dict[type, Convert]] = {
    kind: _SPELLINGS[kind]
    for kind in (bool, float, dt.datetime, dt.date, dt.time, dt.timedelta, uuid.UUID)
}
"""The spellings of scalars that can be no secret by themselves, only by their name."""

SCALARS: Final = tuple(_SPELLINGS)
"""The types that have a spelling of their own."""

_NOTHING: Final = object()


def _form(  # noqa: PLR0911 - one way out for each kind of value
    value: Any, depth: int, budget: list[int], convert: Convert | None
) -> Any:
    kind = type(value)
    spell = _FORMS.get(kind)
    if spell is not None:
        return spell(value)
    if depth >= _DEEPEST:
        return WITHHELD
    if kind is dict:
        return _object(value, depth, budget, convert)
    if kind is list or kind is tuple:
        return _array(value, depth, budget, convert)
    if convert is not None:
        other = convert(value)
        if other is not NOT_CONVERTED:
            return _form(other, depth + 1, budget, convert)
    try:
        shape = json_shape(value)
    except NotUnderstoodError:
        return WITHHELD if isinstance(value, int) else describe_type(kind)
    if type(shape) is Marked:
        return REDACTED
    return _form(shape, depth + 1, budget, convert)


def _object(
    value: Mapping[Any, Any], depth: int, budget: list[int], convert: Convert | None
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, part in value.items():
        budget[0] -= 1
        if budget[0] < 0:
            found[WITHHELD] = len(value) - len(found)
            break
        if type(part) is Marked:
            if part.mark == "omit" or (part.mark == "hash" and part.value is None):
                continue
            form: Any = REDACTED
        else:
            form = _form(part, depth + 1, budget, convert)
        found[storable(json_key(key))] = form
    return found


def _array(
    value: Iterable[Any], depth: int, budget: list[int], convert: Convert | None
) -> list[Any]:
    found: list[Any] = []
    for part in value:
        budget[0] -= 1
        if budget[0] < 0:
            found.append(WITHHELD)
            break
        found.append(_form(part, depth + 1, budget, convert))
    return found


def _int_form(value: int) -> int | str:
    return value if value.bit_length() <= _LARGEST_BITS else WITHHELD


_FORMS: Final[dict[type, Convert]] = {
    **_SPELLINGS,
    str: storable,
    int: _int_form,
    type(None): lambda _: None,
}


def _container(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=False))
    if isinstance(value, AbstractSet):
        return list(value) if len(value) > _MOST_SORTED else sorted(value, key=_sorting_text)
    if isinstance(value, list | tuple | deque):
        return list(value)
    return _NOTHING


def _sorting_text(member: Any) -> bytes:
    """Order the members of a set by their JSON text, so that equal sets have one form."""
    return _encode(_form(member, 0, [_MOST_COMPARED], None))


_MOST_SORTED: Final = 5_000
"""Members of a set that are brought into order; those of a larger set come as they are."""
_MOST_COMPARED: Final = 100
"""Values within one member of a set by which it is ordered."""


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
        content = _held(value, item.name)
        mark = item.metadata.get("audit")
        yield item.name, content if mark is None else Marked(as_mark(mark), content)


def _held(value: Any, name: str) -> Any:
    """Read an attribute that an object holds; a property or a lazy attribute is not evaluated."""
    held = getattr(value, "__dict__", None)
    if held is not None and name in held:
        return held[name]
    for kind in type(value).__mro__:
        found = kind.__dict__.get(name, _NOTHING)
        if isinstance(found, types.MemberDescriptorType):
            return getattr(value, name, None)
        if found is not _NOTHING:
            # a default that no instance has set; any other descriptor would run code
            return None if hasattr(type(found), "__get__") else found
    return None
