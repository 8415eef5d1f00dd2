"""Values of a database's own kinds, in the JSON form of `otel_audit.redaction.json_values`.

The table in docs/payload.md, "Values", says which form each has. Here is added what only a database
has: ranges, members of enumerations, arrays and vectors, ``JSON.NULL``, and what the classes of
drivers hold.

Of a list or an object no more than 5,000 values are read.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Final

from sqlalchemy import JSON

from otel_audit.redaction.json_values import (
    NOT_CONVERTED,
    PLAIN_SCALARS,
    SCALARS,
    json_form,
    json_text,
)

_MOST_VALUES: Final = 5_000
"""Values of one column, in lists and objects, that are brought to JSON; the rest is withheld."""


def _path(value: Any) -> Any:
    # an open and a closed one of the same points are two values
    return {"points": list(value.points), "is_closed": value.is_closed}


_DRIVER_FORMS: Final[dict[str, tuple[tuple[str, Callable[[Any], Any]], ...]]] = {
    "BitString": (("asyncpg.pgproto.types", lambda value: value.as_string().replace(" ", "")),),
    "Polygon": (("asyncpg.pgproto.types", lambda value: list(value.points)),),
    "Path": (("asyncpg.pgproto.types", _path),),
    "Multirange": (("psycopg.types.multirange", list),),
    "_JsonWrapper": (("psycopg.types.json", lambda value: value.obj),),
    "Json": (("psycopg2._json", lambda value: value.adapted),),
    "Binary": (
        ("psycopg.dbapi20", lambda value: value.obj),
        ("psycopg2.extensions", lambda value: value.adapted),
    ),
}
"""What the classes of drivers hold, by the name of the class and its module: none is imported."""

SMALL: Final = 10**9
"""Numbers below it are too short to be a card's, a bank's, or a person's."""


def column_form(value: Any) -> Any:
    """Bring a value of a column or a parameter to its JSON form.

    Args:
        value: Any value of the application.

    Returns:
        A copy that shares nothing mutable with the value.
    """
    return json_form(value, [_MOST_VALUES], _convert)


def counted_form(value: Any) -> tuple[Any, int]:
    """As `column_form`, and how many values it has read."""
    budget = [_MOST_VALUES]
    form = json_form(value, budget, _convert)
    return form, _MOST_VALUES - max(budget[0], 0)


def is_harmless(value: Any) -> bool:
    """Return whether a value can be no secret by itself, nor a number that is one."""
    kind = type(value)
    return kind in PLAIN_SCALARS or (kind is int and -SMALL < value < SMALL)


def _convert(value: Any) -> Any:
    if value is JSON.NULL:
        return None
    if isinstance(value, Enum):
        return _stored_member(value)
    if isinstance(value, str | int | float | bytes | list | tuple | dict | set | frozenset):
        return NOT_CONVERTED
    return _convert_driver_kind(value)


def _convert_driver_kind(value: Any) -> Any:
    for kind in type(value).__mro__:
        for module, read in _DRIVER_FORMS.get(kind.__name__, ()):
            if kind.__module__ == module:
                return read(value)
    if hasattr(value, "lower") and hasattr(value, "upper"):
        return _range_text(value)
    as_list = getattr(value, "tolist", None) or getattr(value, "to_list", None)
    if callable(as_list) and not isinstance(value, memoryview):
        return as_list()
    return NOT_CONVERTED


def _stored_member(value: Enum) -> Any:
    """A member that is a text or a number is stored as that; others by their names, mostly."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if value.name is None or isinstance(value, SCALARS):
        return value.value
    return value.name


def _range_text(value: Any) -> str:
    empty = getattr(value, "isempty", getattr(value, "is_empty", False))
    if empty is True:
        return "empty"
    bounds = getattr(value, "bounds", None)
    if not isinstance(bounds, str):
        lower_inc = getattr(value, "lower_inc", True)
        upper_inc = getattr(value, "upper_inc", False)
        bounds = f"{'[' if lower_inc else '('}{']' if upper_inc else ')'}"
    low, high = ("" if end is None else _plain_text(end) for end in (value.lower, value.upper))
    return f"{bounds[0]}{low},{high}{bounds[1]}"


def _plain_text(end: Any) -> str:
    form = column_form(end)
    return form if isinstance(form, str) else json_text(form).decode()
