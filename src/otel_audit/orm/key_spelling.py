"""One spelling for each value of a key, so that all changes of a row name it alike.

A database gives back what it was given in its own spelling: a number with all of its decimals, a
text of a fixed length with spaces behind it, a UUID in lower case, a time in another zone.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import CHAR, NCHAR, DateTime, Float, LargeBinary, Numeric, Uuid
from sqlalchemy.types import BINARY, VARBINARY, TypeDecorator, TypeEngine

Spelling: TypeAlias = "Callable[[Any], Any]"


def key_spelling(kind: TypeEngine[Any]) -> Spelling | None:
    """The key spelling of values of a type; None if they have one spelling.

    Args:
        kind: The column's type.
    """
    while isinstance(kind, TypeDecorator):
        kind = kind.impl_instance
    if isinstance(kind, LargeBinary | BINARY | VARBINARY):
        return _hexadecimal
    if isinstance(kind, CHAR | NCHAR):
        return _unpadded
    if isinstance(kind, Uuid):
        return _uuid
    if isinstance(kind, DateTime):
        return _in_utc
    if isinstance(kind, Numeric) and not isinstance(kind, Float):
        return _shortest
    return None


def _hexadecimal(value: Any) -> Any:
    return bytes(value).hex() if isinstance(value, bytes | bytearray | memoryview) else value


def _unpadded(value: Any) -> Any:
    return value.rstrip(" ") if isinstance(value, str) else value


def _uuid(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return str(UUID(value))
    except ValueError:
        return value


def _in_utc(value: Any) -> Any:
    if not isinstance(value, dt.datetime) or value.tzinfo is None:
        return value
    try:
        return value.astimezone(dt.UTC)
    except OverflowError:  # next to year 1 or 9999
        return value


def _shortest(value: Any) -> Any:
    if not isinstance(value, Decimal) or not value.is_finite():
        return value
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
