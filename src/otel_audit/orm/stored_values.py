"""What a column's type stores in place of the application's value, where the two differ."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import ARRAY, Enum
from sqlalchemy.types import TypeDecorator, TypeEngine

if TYPE_CHECKING:
    from sqlalchemy import Dialect

Storing: TypeAlias = "Callable[[Any, Dialect], Any]"
"""Makes what is stored of a value."""


def storing(kind: TypeEngine[Any] | None) -> Storing | None:
    """How to find what a type stores of members of enumerations, which only the type can tell.

    Args:
        kind: The column's type.

    Returns:
        None where what is stored does not depend on the type.
    """
    if isinstance(kind, Enum | TypeDecorator):
        return lambda value, dialect: _bound(kind, value, dialect)
    item = storing(kind.item_type) if isinstance(kind, ARRAY) else None
    return None if item is None else lambda value, dialect: _each(item, value, dialect)


def _bound(kind: TypeEngine[Any], value: Any, dialect: Dialect) -> Any:
    if not isinstance(value, enum.Enum):
        return value
    process = kind.dialect_impl(dialect).bind_processor(dialect)
    return value if process is None else process(value)


def _each(item: Storing, value: Any, dialect: Dialect) -> Any:
    if isinstance(value, list | tuple | set | frozenset):
        return [_each(item, one, dialect) for one in value]
    return item(value, dialect)
