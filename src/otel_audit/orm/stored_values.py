"""The value that a column's type stores, if it differs from the application's.

The types of SQLAlchemy itself say the same in another spelling (a time as a text, a document as
JSON): their values are recorded as they are. Types of an application or a library may store
something else, cents for euros, say: of these the value is recorded that the type passed on.
"""

from __future__ import annotations

import enum
import json
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from sqlalchemy import ARRAY, Enum, bindparam
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import iterate
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Column, Dialect, Table

_Process: TypeAlias = "Callable[[Any], Any]"

MISSING: Final[Any] = object()
"""Stands for a value that was not seen on its way to the database."""

_UUID_TEXTS: Final = (32, 36)
"""Characters of a UUID without hyphens and with them."""
_LONGEST_DOCUMENT: Final = 100_000
"""Characters of a text that is read as the document that it may be."""


def members_of(kind: TypeEngine[Any] | None) -> StoredMembers | None:
    """The function that gives the stored form of enumeration members, which only the type knows.

    Args:
        kind: The column's type.

    Returns:
        None if what is stored of a member does not depend on the type.
    """
    if isinstance(kind, Enum | TypeDecorator):
        return StoredMembers(kind, is_array=False)
    if isinstance(kind, ARRAY) and members_of(kind.item_type) is not None:
        return StoredMembers(kind.item_type, is_array=True)
    return None


class StoredMembers(NamedTuple):
    """Finds what a type stores of members of enumerations."""

    kind: TypeEngine[Any]
    is_array: bool

    def of(self, value: Any, dialect: Dialect) -> Any:
        """The stored form of a value: for a member the type's, otherwise the value."""
        if self.is_array and isinstance(value, list | tuple | set | frozenset):
            return [self._of_one(one, dialect) for one in value]
        return self._of_one(value, dialect)

    def _of_one(self, value: Any, dialect: Dialect) -> Any:
        if not isinstance(value, enum.Enum):
            return value
        process = self.kind.dialect_impl(dialect).bind_processor(dialect)
        return value if process is None else process(value)


class _Steps(NamedTuple):
    """The steps by which a value gets to the driver.

    Attributes:
        own: What the application's type makes of it.
        rest: What SQLAlchemy's type below makes of that for the driver; None: nothing.
    """

    own: _Process
    rest: _Process | None


class StoredValues:
    """Finds what an application's own type stores of its values."""

    def __init__(self, kind: TypeEngine[Any]) -> None:
        """Start with no dialect known.

        Args:
            kind: The application's own type.
        """
        self._kind = kind
        self._steps: weakref.WeakKeyDictionary[Dialect, _Steps | None] = weakref.WeakKeyDictionary()
        self._steady: bool | None = None
        self._last: tuple[Dialect, _Steps | None] | None = None

    def applies(self, dialect: Dialect) -> bool:
        """Whether the type stores something of its own on a database."""
        return self._of(dialect) is not None

    def of(self, value: Any, dialect: Dialect, sent: Any = MISSING) -> Any:
        """The stored form of a value.

        Args:
            value: The application's value.
            dialect: The database's.
            sent: What the driver was given for it, where that was seen.
        """
        steps = self._of(dialect)
        if steps is None:
            return value
        if sent is MISSING:
            return _without_members(steps.own(value), steps.rest)
        if steps.rest is None:
            if self._steady is None:
                self._steady = _is_equal(steps.own(value), sent)
            return sent
        # the same without the spelling of the driver, unless the type made another value of it
        again = steps.own(value)
        self._steady = _is_equal(steps.rest(again), sent)
        return _without_members(again, steps.rest) if self._steady else _unwrapped(sent)

    def is_steady(self, value: Any, dialect: Dialect) -> bool:
        """Whether the type stores equal values equally each time; one that salts does not.

        Only then is it known what is stored for a value that was read from the database.
        """
        steps = self._of(dialect)
        if steps is not None and self._steady is None:
            self._steady = _is_equal(steps.own(value), steps.own(value))
        return steps is None or self._steady is True

    def below(self, dialect: Dialect) -> TypeEngine[Any] | None:
        """The type to read a column with to get its raw stored value; None if its own does."""
        return _below(self._kind.dialect_impl(dialect)) if self.applies(dialect) else None

    def _of(self, dialect: Dialect) -> _Steps | None:
        last = self._last
        if last is not None and last[0] is dialect:
            return last[1]
        try:
            found = self._steps[dialect]
        except KeyError:
            found = self._steps[dialect] = _steps(self._kind.dialect_impl(dialect), dialect)
        self._last = dialect, found
        return found


def stored_values(kind: TypeEngine[Any] | None) -> StoredValues | None:
    """The function that gives a type's stored form of a value; None if that is the value itself."""
    return StoredValues(kind) if kind is not None and _may_store_others(kind) else None


def wrapping_functions(kind: TypeEngine[Any]) -> tuple[str, ...] | None:
    """The names of the SQL functions that a type puts around its values on their way.

    Args:
        kind: The column's type.

    Returns:
        None if it puts nothing around them.
    """
    try:
        found = kind.bind_expression(bindparam("value", type_=kind))
    except Exception:  # noqa: BLE001 - a type of the application's
        return None
    if found is None:
        return None
    functions = (one for one in iterate(found) if isinstance(one, FunctionElement))
    return tuple(str(getattr(one, "name", "")) for one in functions)


def is_same_document(value: Any, stored: Any) -> bool:
    """Return whether a text is nothing but a JSON value written down.

    Args:
        value: The JSON form of the application's value.
        stored: What is stored of it.
    """
    if not isinstance(value, list | dict) or not isinstance(stored, str):
        return False
    if len(stored) > _LONGEST_DOCUMENT:
        return False
    try:
        return bool(json.loads(stored) == value)
    except (ValueError, RecursionError):
        return False


def same_uuid(value: Any, stored: Any) -> str | None:
    """The text of a UUID that is stored in whatever spelling; None if it is none."""
    if not isinstance(value, UUID):
        if not isinstance(value, str) or len(value) not in _UUID_TEXTS or value == stored:
            return None
        try:
            value = UUID(value)
        except ValueError:
            return None
    if isinstance(stored, bytes | memoryview):
        return str(value) if bytes(stored) in (value.bytes, value.bytes_le) else None
    if isinstance(stored, UUID | int):
        return str(value) if int(stored) == value.int else None
    if not isinstance(stored, str) or len(stored) not in _UUID_TEXTS:
        return None
    return str(value) if stored.replace("-", "").lower() == value.hex else None


class SentValues:
    """The driver's parameters for values of the application's own types, by column and value."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        """Start with no statement's parameters."""
        self._found: dict[tuple[str, str, int], tuple[Any, list[Any]]] = {}

    def gather(self, table: Table, columns: Sequence[Column[Any]], context: Any) -> None:
        """Remember what a statement of a flush sends.

        Args:
            table: What it writes.
            columns: Those of the table whose types are the application's.
            context: SQLAlchemy's execution context.
        """
        name = str(table.key)
        for given, sent in zip(context.compiled_parameters, sent_parameters(context), strict=False):
            for column in columns:
                key = column.key
                if key in given and key in sent:
                    value = given[key]
                    # the value is kept, so that no other one gets its number
                    found = self._found.setdefault((name, key, id(value)), (value, []))
                    found[1].append(sent[key])

    def take(self, table: str, key: str, value: Any) -> Any:
        """The sent form of a value; for a value in several rows, each in turn."""
        found = self._found.get((table, key, id(value)))
        if found is None:
            return MISSING
        sent = found[1]
        return sent.pop(0) if len(sent) > 1 else sent[0]


def sent_parameters(context: Any) -> Sequence[Mapping[str, Any]]:
    """The driver's parameters by name; empty if the names are not known.

    Lists are expanded into parameters that only the statement in the end knows of.
    """
    compiled = context.compiled
    if compiled.positional:
        names = compiled.positiontup
        sets = context.parameters
        if names is None or any(len(one) != len(names) for one in sets):
            return ()
        return [dict(zip(names, one, strict=True)) for one in sets]
    escaped = compiled.escaped_bind_names
    if not escaped:
        return context.parameters  # type: ignore[no-any-return]
    return [
        {**one, **{name: one[other] for name, other in escaped.items() if other in one}}
        for one in context.parameters
    ]


def _may_store_others(kind: TypeEngine[Any]) -> bool:
    """Whether a type, or what it stands for on some database, is made by an application."""
    if isinstance(kind, ARRAY):
        return _may_store_others(kind.item_type)
    variants = getattr(kind, "_variant_mapping", {})
    if any(map(_may_store_others, variants.values())):
        return True
    if isinstance(kind, TypeDecorator):
        if _is_foreign(type(kind), "process_bind_param"):
            return True
        if isinstance(kind.impl, TypeEngine) and _may_store_others(kind.impl):
            return True
    return _is_foreign(type(kind), "bind_processor")


def _is_foreign(kind: type, method: str) -> bool:
    """Whether a method of a type is not SQLAlchemy's own."""
    owner = next((one for one in kind.__mro__ if method in one.__dict__), None)
    return owner is not None and owner.__module__.partition(".")[0] != "sqlalchemy"


def _steps(impl: TypeEngine[Any], dialect: Dialect) -> _Steps | None:
    if isinstance(impl, ARRAY):
        item = _steps(impl.item_type.dialect_impl(dialect), dialect)
        return None if item is None else _Steps(_each(item.own), item.rest and _each(item.rest))
    if _is_foreign(type(impl), "bind_processor"):
        process = impl.bind_processor(dialect)
        return None if process is None else _Steps(process, None)
    if not isinstance(impl, TypeDecorator):
        return None
    below: TypeEngine[Any] = impl.impl_instance
    inner = _steps(below, dialect)
    if not _is_foreign(type(impl), "process_bind_param"):
        return inner
    bind = impl.process_bind_param
    if inner is not None:
        return _Steps(lambda value: inner.own(bind(value, dialect)), inner.rest)
    return _Steps(lambda value: bind(value, dialect), below.bind_processor(dialect))


def _below(impl: TypeEngine[Any]) -> TypeEngine[Any]:
    if isinstance(impl, ARRAY):
        return ARRAY(_below(impl.item_type))
    if isinstance(impl, TypeDecorator):
        return _below(impl.impl_instance)
    return NullType() if _is_foreign(type(impl), "bind_processor") else impl


def _each(process: _Process) -> _Process:
    def all_of(value: Any) -> Any:
        if isinstance(value, list | tuple | set | frozenset):
            return [all_of(one) for one in value]
        return process(value)

    return all_of


def _without_members(value: Any, rest: _Process | None) -> Any:
    """The value with the stored form of enumeration members, which only the type below knows."""
    parts = value if isinstance(value, list) else (value,)
    if rest is not None and any(isinstance(one, enum.Enum) for one in parts):
        return rest(value)
    return value


def _is_equal(one: Any, other: Any) -> bool:
    """Whether two values are equal; those that cannot be compared are not."""
    try:
        # a driver's wrapper, as for JSON, is what it holds
        return bool(_unwrapped(one) == _unwrapped(other))
    except Exception:  # noqa: BLE001 - a type of the application's
        return False


def _unwrapped(sent: Any) -> Any:
    """The content of psycopg's or psycopg2's wrappers; any other value as it is."""
    if type(sent).__module__.partition(".")[0] not in ("psycopg", "psycopg2"):
        return sent
    return getattr(sent, "obj", getattr(sent, "adapted", sent))
