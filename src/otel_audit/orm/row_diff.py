"""The change of one mapped object, read from its state without a query."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import chain, islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
from sqlalchemy import Null
from sqlalchemy.orm import LoaderCallableStatus
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.sql import ClauseElement
from sqlalchemy.types import TypeDecorator

from otel_audit.orm.column_values import SMALL, column_form, is_harmless
from otel_audit.orm.json_patch import patch_between
from otel_audit.orm.stored_values import MISSING, SentValues, StoredValues
from otel_audit.record import Change, Operation, key_text
from otel_audit.redaction.json_values import PLAIN_SCALARS, describe_type, is_described_type
from otel_audit.redaction.prefilter import is_plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Dialect
    from sqlalchemy.orm import InstanceState

    from otel_audit.orm.column_redaction import ColumnRedaction
    from otel_audit.orm.mapper_info import ColumnInfo, MapperInfo

_PLAIN = frozenset(
    {str, int, float, bool, type(None), bytes, dict, list, Decimal, dt.datetime, dt.date, UUID}
)
"""Types that surely are not SQL expressions; others take longer to judge."""

_FEW = 24
"""Texts of some rows that are looked at all at once; more are looked at column by column."""
_GROUP = 64
"""Texts that are looked at together: so many that the look is cheap, so few that one of them that
has to be redacted does not make many others be looked at alone."""

_SHORTEST_UUID = 31
"""Characters; a longer text may be a UUID in another spelling."""

LONGEST_TEXT = 256
"""Characters; longer ones are looked at alone, and maybe cut."""

_UNKNOWN: Any = LoaderCallableStatus.NO_VALUE
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class WrittenRow(msgspec.Struct, eq=False):
    """One row that a flush has written, as its object was at that moment.

    Attributes:
        operation: What was written.
        plan: The plan of the object's mapper.
        state: The object's state.
        before: What an update has overwritten, or what was fetched for it or a delete.
        live: The object's values, which go on to change.
        loaded: Those of the moment.
        committed: Values from before, of what was set since it was loaded.
    """

    operation: Operation
    plan: MapperInfo
    state: InstanceState[Any]
    before: Mapping[str, Any]
    live: Mapping[str, Any]
    loaded: Mapping[str, Any]
    committed: Mapping[str, Any]


def just_written(
    operation: Operation,
    plan: MapperInfo,
    state: InstanceState[Any],
    before: Mapping[InstanceState[Any], Mapping[str, Any]],
) -> WrittenRow:
    """Copy what an object holds: a listener may set what no statement writes any more.

    Args:
        operation: What was written.
        plan: The plan of the object's mapper.
        state: The object's state.
        before: Values that the flush has overwritten, or is about to, by state.
    """
    live = state.dict
    if operation == "insert":
        return WrittenRow(operation, plan, state, _NOTHING, live, live.copy(), _NOTHING)
    if operation == "delete":  # of the object nothing is written
        return WrittenRow(operation, plan, state, before.get(state, _NOTHING), live, live, _NOTHING)
    known = before.get(state)
    return WrittenRow(
        operation, plan, state, taken_over(state) if known is None else known,
        live, live.copy(), state.committed_state.copy(),
    )  # fmt: skip


def _complete(row: WrittenRow) -> None:
    """Add what came of the row itself later: by a further statement, or read from the database."""
    live, committed, again = row.live, row.state.committed_state, row.plan.post_updated
    further = {
        key: value
        for key, value in live.items()
        if key in again or (key not in row.loaded and key not in committed)
    }
    earlier = {key: value for key, value in committed.items() if key in again}
    row.loaded = {**row.loaded, **further}
    row.committed = {**earlier, **row.committed}


class ValueReader:
    """Reads values of one database's columns into their redacted form."""

    def __init__(
        self, column_redaction: ColumnRedaction, dialect: Dialect, sent: SentValues | None = None
    ) -> None:
        """Remember how values are redacted and bounded.

        Args:
            column_redaction: Redacts.
            dialect: Needed by a `TypeDecorator`.
            sent: What was sent for values of the application's own types.
        """
        self._column_redaction = column_redaction
        self._dialect = dialect
        self._sent = sent
        self.copies: dict[int, Any] = {}
        self.clean: set[str] = set()
        self.unread: list[str] = []

    def look_at_all(self, rows: Sequence[WrittenRow]) -> None:
        """Look at the texts and the documents of a few rows in one go.

        Args:
            rows: The rows.
        """
        texts: dict[ColumnInfo, set[str]] = {}
        documents: list[Any] = []
        for row in rows:
            gather_texts(row, texts)
            if row.plan.documents:
                _gather_documents(row, documents)
        if documents:
            few = [*chain.from_iterable(texts.values())]
            found = self._column_redaction.clean_copy([few, documents])
            if found is not None:
                self.clean.update(few)
                for document, copy in zip(documents, found[1], strict=True):
                    self.copies[id(document)] = copy
                return
        if texts:
            self.look_at(texts)

    def look_at(self, texts: Mapping[ColumnInfo, Iterable[str]]) -> None:
        """Look at the texts of many rows at once: most have nothing to redact.

        Args:
            texts: By column, as a column with addresses, say, must not spoil the look at others.
        """
        few = [*chain.from_iterable(texts.values())]
        if len(few) <= _FEW and self._column_redaction.are_clean(few):
            self.clean.update(few)
            return
        for some in texts.values():
            rest = iter(some)
            while group := list(islice(rest, _GROUP)):
                if self._column_redaction.are_clean(group):
                    self.clean.update(group)

    def read(self, column: ColumnInfo, value: Any) -> Any:
        """The redacted form of a value; what could not be read is noted, not raised."""
        if value is None and column.stored is None:
            return None
        try:
            if column.not_sensitive:
                found = self._read_not_sensitive(value)
                if found is not MISSING:
                    return found
            if column.stored is not None:
                return self._read_stored(column, column.stored, value)
            if column.members is not None:
                value = column.members.of(value, self._dialect)
            form = self._column_redaction.form(value)
            if (
                type(form) is dict
                and is_described_type(form)
                and isinstance(column.type, TypeDecorator)
            ):
                # what the application's own type makes of it for the database is known better
                form = self._column_redaction.form(
                    column.type.process_bind_param(value, self._dialect)
                )
            return self._column_redaction.redact(column.name, form, column.mark, column.alias)
        except Exception as error:  # noqa: BLE001 - one value must not lose the entry
            self.unread.append(f"{column.name} ({type(error).__name__})")
            return describe_type(type(value))

    def _read_not_sensitive(self, value: Any) -> Any:
        """The form of a value that surely is not redacted; `MISSING` where that is not sure."""
        kind = type(value)
        if (kind is str and value in self.clean) or (kind is int and -SMALL < value < SMALL):
            return value
        convert = PLAIN_SCALARS.get(kind)
        if convert is not None:
            return convert(value)
        if kind is dict or kind is list:
            # a copy that two rows have would change for both
            copy = self.copies.pop(id(value), None) if self.copies else None
            if copy is None:
                copy = self._column_redaction.clean_copy(value)
            return MISSING if copy is None else copy
        if kind is Decimal:
            amount = column_form(value)
            if is_plain(amount):
                return amount
        return MISSING

    def _read_stored(self, column: ColumnInfo, kind: StoredValues, value: Any) -> Any:
        sent = MISSING if self._sent is None else self._sent.take(*column.place, value)
        stored = kind.of(value, self._dialect, sent)
        if column.plainly_named:
            if is_harmless(stored) and is_harmless(value):
                convert = PLAIN_SCALARS.get(type(stored))
                return stored if convert is None else convert(stored)
            if type(stored) is str and type(value) is str and self._is_clean(value, stored):
                return stored
        return self._column_redaction.stored(column.name, value, stored, column.alias)

    def _is_clean(self, *texts: str) -> bool:
        """Whether short texts, which are not UUIDs, hold nothing to redact."""
        if any(len(one) > _SHORTEST_UUID for one in texts):
            return False
        if self.clean.issuperset(texts):
            return True
        if not self._column_redaction.are_clean(list(texts)):
            return False
        self.clean.update(texts)
        return True

    def read_key(self, column: ColumnInfo, value: Any) -> Any:
        """The redacted form of a value that stands in a key, in its one spelling."""
        if column.spelling is None or value is None:
            return self.read(column, value)
        try:
            if column.stored is not None:
                stored = column.stored.of(value, self._dialect)
                part = self._column_redaction.stored(
                    column.name, value, column.spelling(stored), column.alias
                )
            else:
                form = self._column_redaction.form(column.spelling(value))
                part = self._column_redaction.redact(column.name, form, column.mark, column.alias)
        except Exception:  # noqa: BLE001 - it raises again where it is read, and is noted there
            return self.read(column, value)
        return part

    def knows_before(self, column: ColumnInfo, value: Any) -> bool:
        """Whether it is known what the database held for a value that was read from it.

        A type that makes another value of the same one each time does not say.
        """
        if column.stored is None or value is _UNKNOWN:
            return True
        try:
            return column.stored.is_steady(value, self._dialect)
        except Exception:  # noqa: BLE001 - it raises again where it is read, and is noted there
            return True


def overwritten(state: InstanceState[Any], plan: MapperInfo) -> dict[str, Any]:
    """Copy, before a flush writes a row, the values that it is going to overwrite.

    Args:
        state: The object's state.
        plan: Its mapper's plan.

    Returns:
        Attribute names to the earlier values, as far as they are loaded.
    """
    loaded = state.dict
    before = {key: loaded[key] for key in plan.auto_updated if key in loaded}
    before.update(state.committed_state)
    return before


def taken_over(state: InstanceState[Any]) -> dict[str, Any]:
    """The values of a row that a new object takes over from a deleted one.

    SQLAlchemy makes an UPDATE of both.
    """
    thing, session = state.obj(), state.session
    if thing is None or session is None:
        return {}
    earlier = session.identity_map.get(state.mapper.identity_key_from_instance(thing))
    if earlier is None or earlier is thing:
        return {}
    known = instance_state(earlier)
    found = {key: _before(known, key) for key in state.committed_state}
    return {key: value for key, value in found.items() if value is not _UNKNOWN}


def missing_before(
    state: InstanceState[Any], plan: MapperInfo, operation: Operation
) -> list[ColumnInfo]:
    """Return which before-values are needed and not loaded."""
    committed = state.committed_state
    if operation == "delete":
        return [column for column in plan.columns if _before(state, column.key) is _UNKNOWN]
    return [
        column
        for column in plan.columns
        if (column.key in committed and committed[column.key] is _UNKNOWN)
        or (column.auto_updated and column.key not in committed and column.key not in state.dict)
    ]


def gather_texts(row: WrittenRow, found: dict[ColumnInfo, set[str]]) -> None:
    """Collect the texts of a row that will have to be looked at.

    Args:
        row: The row.
        found: Where to; by column.
    """
    plan, loaded = row.plan, row.loaded
    if row.operation != "update":
        for column in plan.texts:
            value = loaded.get(column.key)
            if type(value) is str and len(value) <= LONGEST_TEXT:
                texts = found.get(column)
                if texts is None:
                    found[column] = {value}
                else:
                    texts.add(value)
        return
    before = row.before
    for column in plan.texts:
        name = column.key
        if name not in before:
            continue
        for value in (before[name], loaded.get(name)):
            if type(value) is str and len(value) <= LONGEST_TEXT:
                texts = found.get(column)
                if texts is None:
                    found[column] = {value}
                else:
                    texts.add(value)


def _gather_documents(row: WrittenRow, found: list[Any]) -> None:
    """Collect the lists and objects of a row that a look at all of them may find clean."""
    loaded, before = row.loaded, row.before
    for column in row.plan.documents:
        name = column.key
        if before:
            old = before.get(name)
            if type(old) is list or type(old) is dict:
                found.append(old)
        if row.operation != "update" or name in before:
            value = loaded.get(name)
            if type(value) is list or type(value) is dict:
                found.append(value)


def describe_insert(row: WrittenRow, plan: MapperInfo, reader: ValueReader) -> Change:
    """Describe a row that was inserted; a column that is not named was NULL."""
    if plan.post_updated or len(row.live) != len(row.loaded):
        _complete(row)
    values: dict[str, list[Any]] = {}
    unknown: list[str] = []
    get, read, clean, copies = row.loaded.get, reader.read, reader.clean, reader.copies
    for attribute, name, not_sensitive, column in plan.readings:
        value = get(attribute, _UNKNOWN)
        kind = type(value)
        if not_sensitive and (
            (kind is str and value in clean) or (kind is int and -SMALL < value < SMALL)
        ):
            # what `read` would find, without the call
            values[name] = [None, value]
        elif not_sensitive and copies and (kind is list or kind is dict) and id(value) in copies:
            values[name] = [None, copies.pop(id(value))]
        elif value is None or (value is _UNKNOWN and not column.filled):
            # a TypeDecorator may store a value that is not NULL for None
            stored = None if column.stored is None else read(column, None)
            if stored is not None:
                values[name] = [None, stored]
        elif kind not in _PLAIN and (value is _UNKNOWN or _is_expression(value)):
            if not isinstance(value, Null):
                unknown.append(name)
        else:
            values[name] = [None, read(column, value)]
    key = _key(plan, get, reader, values)
    naming = plan.naming
    if plan.wrapped:
        unknown += filter(values.__contains__, plan.wrapped)
    return Change(
        operation="insert",
        entity=plan.entity,
        name=naming.noun if len(key) == 1 else naming.name_for(key),
        table=plan.table,
        key=key,
        values=values,
        unknown_after=tuple(unknown),
        related=naming.references(key) if naming.also else (),
        note=_note(reader) if reader.unread else None,
    )


def describe_update(row: WrittenRow, plan: MapperInfo, reader: ValueReader) -> Change | None:
    """Describe a row that was updated.

    Args:
        row: The row.
        plan: Its mapper's plan, by the names where the row is.
        reader: Reads the values.

    Returns:
        The change, None if nothing of what is captured has changed.
    """
    if plan.post_updated or len(row.live) != len(row.loaded):
        _complete(row)
    loaded, committed, before = row.loaded, row.committed, row.before
    found, clean = _Differences(reader), reader.clean
    for name in {**committed, **before}:
        column = plan.by_key.get(name)
        if column is None:
            continue
        old = before.get(name, _UNKNOWN)
        old = committed.get(name, _UNKNOWN) if old is _UNKNOWN else old
        new = loaded.get(name, _UNKNOWN)
        kind = type(new)
        if (
            column.not_sensitive
            and type(old) is kind
            and (
                (kind is str and new in clean and old in clean)
                or (kind is int and -SMALL < new < SMALL and -SMALL < old < SMALL)
            )
        ):
            # what `read` would find, without the calls; what the type takes for equal, such as
            # texts in another case, SQLAlchemy does not write
            if old != new and column.same(new, old) is not True:
                found.values[column.name] = [old, new]
        elif old is _UNKNOWN or new is _UNKNOWN or column.same(new, old) is not True:
            found.add(column, old, new)
    if not found.values:
        return None
    for name in plan.auto_updated:
        # what the flush has set unasked though it was not loaded before
        if name not in before and name not in committed:
            found.add(plan.by_key[name], _UNKNOWN, loaded.get(name, _UNKNOWN))
    key = _key(plan, loaded.get, reader)
    naming = plan.naming
    return Change(
        operation="update",
        entity=plan.entity,
        name=naming.noun if len(key) == 1 else naming.name_for(key),
        table=plan.table,
        key=key,
        values=found.values,
        unknown_before=tuple(found.unknown_before),
        unknown_after=tuple(found.unknown_after),
        patches=found.patches,
        related=(*naming.references(key), *_earlier_key(plan, key, before, reader)),
        note=_note(reader, _update_cascades(plan, found.values) if plan.update_cascades else None),
    )


def describe_delete(row: WrittenRow, plan: MapperInfo, reader: ValueReader) -> Change:
    """Describe a row that was deleted; a column that is not named was NULL."""
    values: dict[str, list[Any]] = {}
    unknown: list[str] = []
    current = {**row.live, **row.state.committed_state, **row.before}
    get, read, clean = current.get, reader.read, reader.clean
    for attribute, name, not_sensitive, column in plan.readings:
        value = get(attribute, _UNKNOWN)
        kind = type(value)
        if not_sensitive and (
            (kind is str and value in clean) or (kind is int and -SMALL < value < SMALL)
        ):
            # what `read` would find, without the call
            values[name] = [value, None]
        elif value is None and column.stored is None:
            continue
        elif value is _UNKNOWN or (kind not in _PLAIN and _is_expression(value)):
            unknown.append(name)
        elif column.stored is None:
            values[name] = [read(column, value), None]
        elif not reader.knows_before(column, value):
            unknown.append(name)
        else:
            stored = read(column, value)
            if stored is not None:
                values[name] = [stored, None]
    key = _key(plan, get, reader)
    naming = plan.naming
    return Change(
        operation="delete",
        entity=plan.entity,
        name=naming.noun if len(key) == 1 else naming.name_for(key),
        table=plan.table,
        key=key,
        values=values,
        unknown_before=tuple(unknown),
        related=naming.references(key) if naming.also else (),
        note=_note(reader, plan.deleting) if reader.unread else plan.deleting,
    )


class _Differences:
    """The changed columns of one row."""

    __slots__ = ("_reader", "patches", "unknown_after", "unknown_before", "values")

    def __init__(self, reader: ValueReader) -> None:
        self._reader = reader
        self.values: dict[str, list[Any]] = {}
        self.unknown_before: list[str] = []
        self.unknown_after: list[str] = []
        self.patches: dict[str, list[dict[str, Any]]] = {}

    def add(self, column: ColumnInfo, old: Any, new: Any) -> None:
        if column.stored is not None and not self._reader.knows_before(column, old):
            old = _UNKNOWN
        before = self._read(column, old, self.unknown_before)
        after = self._read(column, new, self.unknown_after)
        if column.wrapped and after is not None:
            self.unknown_after.append(column.name)
        self.values[column.name] = [before, after]
        if column.is_json and column.mark is None:
            patch = patch_between(before, after)
            if patch:
                self.patches[column.name] = patch

    def _read(self, column: ColumnInfo, value: Any, unknown: list[str]) -> Any:
        if value is _UNKNOWN or _is_expression(value):
            if not isinstance(value, Null):
                unknown.append(column.name)
            return None
        return self._reader.read(column, value)


def _before(state: InstanceState[Any], name: str) -> Any:
    return state.committed_state.get(name, state.dict.get(name, _UNKNOWN))


def _is_expression(value: Any) -> bool:
    if type(value) in _PLAIN:
        return False
    return isinstance(value, ClauseElement) or hasattr(value, "__clause_element__")


def _key(
    plan: MapperInfo,
    get: Callable[..., Any],
    reader: ValueReader,
    values: Mapping[str, list[Any]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Read the primary key; what stands among an insert's values already is not read twice."""
    found = {}
    for column in plan.key:
        if column.name in values and column.spelling is None:
            found[column.name] = values[column.name][1]
            continue
        value = get(column.key, None)
        unknown = value is _UNKNOWN or _is_expression(value)
        found[column.name] = None if unknown else reader.read_key(column, value)
    return found


def _earlier_key(
    plan: MapperInfo, key: dict[str, Any], before: Mapping[str, Any], reader: ValueReader
) -> tuple[str, ...]:
    if not any(column.key in before for column in plan.key):
        return ()
    earlier = dict(key)
    for column in plan.key:
        old = before.get(column.key, _UNKNOWN)
        if old is not _UNKNOWN and not _is_expression(old):
            earlier[column.name] = reader.read_key(column, old)
    if earlier == key:
        return ()
    text = key_text(*earlier.values())
    return tuple(f"{name}:{text}" for name in (plan.naming.own, *plan.naming.also))


def _update_cascades(plan: MapperInfo, changed: Mapping[str, Any]) -> str | None:
    notes = {
        note: None
        for key, note in plan.update_cascades.items()
        if key in plan.by_key and plan.by_key[key].name in changed
    }
    return "; ".join(notes) or None


def _note(reader: ValueReader, note: str | None = None) -> str | None:
    if not reader.unread:
        return note
    unread = f"not readable: {', '.join(reader.unread)}"
    reader.unread = []
    return unread if note is None else f"{note}; {unread}"
