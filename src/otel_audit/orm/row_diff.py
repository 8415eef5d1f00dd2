"""The change of one mapped object, read from its state without a query."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from decimal import Decimal
from itertools import chain, islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from sqlalchemy import Null
from sqlalchemy.orm import LoaderCallableStatus
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.sql import ClauseElement
from sqlalchemy.types import TypeDecorator

from otel_audit.orm.column_values import SMALL, is_harmless
from otel_audit.orm.json_patch import patch_between
from otel_audit.orm.stored_values import MISSING, SentValues, StoredValues
from otel_audit.record import Change, Operation, key_text
from otel_audit.redaction.json_values import PLAIN_SCALARS, describe_type, is_described_type

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Dialect
    from sqlalchemy.orm import InstanceState

    from otel_audit.orm.column_redaction import ColumnRedaction
    from otel_audit.orm.mapper_info import ColumnInfo, MapperInfo

_PLAIN = frozenset(
    {str, int, float, bool, type(None), bytes, dict, list, Decimal, dt.datetime, dt.date, UUID}
)
"""Types that surely are no SQL expressions; others take longer to judge."""

_FEW = 24
_GROUP = 64
"""Texts that are looked at together: so many that the look is cheap, so few that one of them that
has to be redacted does not make many others be looked at alone."""

_SHORTEST_UUID = 31
"""Characters; a longer text may be a UUID in another spelling."""

LONGEST_TEXT = 256
"""Characters; longer ones are looked at alone, and maybe cut."""

_UNKNOWN: Any = LoaderCallableStatus.NO_VALUE
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class WrittenObject(NamedTuple):
    """An object at the moment its row had been written.

    Attributes:
        loaded: Its values.
        committed: Values from before, of what was set since it was loaded.
    """

    loaded: Mapping[str, Any]
    committed: Mapping[str, Any]


def just_written(state: InstanceState[Any], operation: Operation) -> WrittenObject:
    """Copy what an object holds: a listener may set what no statement writes any more."""
    if operation == "update":
        return WrittenObject(state.dict.copy(), state.committed_state.copy())
    # of an object that is deleted nothing is written, and before an insert there was nothing
    return WrittenObject(state.dict if operation == "delete" else state.dict.copy(), _NOTHING)


def completed(written: WrittenObject, state: InstanceState[Any], plan: MapperInfo) -> WrittenObject:
    """Add what came of the row itself later: by a further statement, or read from the database."""
    loaded = state.dict
    if not plan.post_updated and len(loaded) == len(written.loaded):
        return written
    further = {
        key: value
        for key, value in loaded.items()
        if key in plan.post_updated
        or (key not in written.loaded and key not in state.committed_state)
    }
    earlier = {
        key: value for key, value in state.committed_state.items() if key in plan.post_updated
    }
    return WrittenObject({**written.loaded, **further}, {**earlier, **written.committed})


class ValueReader:
    """Reads values of one database's columns into their redacted form."""

    def __init__(
        self, masking: ColumnRedaction, dialect: Dialect, sent: SentValues | None = None
    ) -> None:
        """Take what reading needs.

        Args:
            masking: Redacts.
            dialect: Needed by a `TypeDecorator`.
            sent: What was sent for values of the application's own types.
        """
        self._stored = masking.stored
        self._sent = sent
        self._redact = masking.redact
        self._form = masking.form
        self._clean_copy = masking.clean_copy
        self._are_clean = masking.are_clean
        self.clean: set[str] = set()
        self._dialect = dialect
        self.unread: list[str] = []

    def look_at(self, texts: Mapping[ColumnInfo, Iterable[str]]) -> None:
        """Look at the texts of many rows at once: most have nothing to redact.

        Args:
            texts: By column, as a column with addresses, say, must not spoil the look at others.
        """
        few = list(chain.from_iterable(texts.values()))
        if len(few) <= _FEW and self._are_clean(few):
            self.clean.update(few)
            return
        for some in texts.values():
            rest = iter(some)
            while group := list(islice(rest, _GROUP)):
                if self._are_clean(group):
                    self.clean.update(group)

    def read(self, column: ColumnInfo, value: Any) -> Any:  # noqa: C901, PLR0911 - quick ways out
        """The redacted form of a value; what could not be read is noted, not raised."""
        if value is None and column.stored is None:
            return None
        try:
            if column.innocent:
                kind = type(value)
                if kind is str and value in self.clean:
                    return value
                if kind is int and -SMALL < value < SMALL:
                    return value
                convert = PLAIN_SCALARS.get(kind)
                if convert is not None:
                    return convert(value)
                if kind is dict or kind is list:
                    copy = self._clean_copy(value)
                    if copy is not None:
                        return copy
            if column.stored is not None:
                return self._read_stored(column, column.stored, value)
            if column.members is not None:
                value = column.members.of(value, self._dialect)
            form = self._form(value)
            if (
                type(form) is dict
                and is_described_type(form)
                and isinstance(column.type, TypeDecorator)
            ):
                # what the application's own type makes of it for the database is known better
                form = self._form(column.type.process_bind_param(value, self._dialect))
            return self._redact(column.name, form, column.mark, column.alias)
        except Exception as error:  # noqa: BLE001 - one value must not lose the entry
            self.unread.append(f"{column.name} ({type(error).__name__})")
            return describe_type(type(value))

    def _read_stored(self, column: ColumnInfo, kind: StoredValues, value: Any) -> Any:
        sent = MISSING if self._sent is None else self._sent.take(*column.place, value)
        stored = kind.of(value, self._dialect, sent)
        if column.plainly_named:
            if is_harmless(stored) and is_harmless(value):
                convert = PLAIN_SCALARS.get(type(stored))
                return stored if convert is None else convert(stored)
            if type(stored) is str and type(value) is str and self._is_clean(value, stored):
                return stored
        return self._stored(column.name, value, stored, column.alias)

    def _is_clean(self, *texts: str) -> bool:
        """Whether short texts, which are no UUIDs, hold nothing to redact."""
        if any(len(one) > _SHORTEST_UUID for one in texts):
            return False
        if self.clean.issuperset(texts):
            return True
        if not self._are_clean(list(texts)):
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
                part = self._stored(column.name, value, column.spelling(stored), column.alias)
            else:
                form = self._form(column.spelling(value))
                part = self._redact(column.name, form, column.mark, column.alias)
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
    before = {key: loaded[key] for key in plan.moving if key in loaded}
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
        or (column.moving and column.key not in committed and column.key not in state.dict)
    ]


def gather_texts(
    loaded: Mapping[str, Any],
    plan: MapperInfo,
    before: Mapping[str, Any] | None,
    found: dict[ColumnInfo, set[str]],
) -> None:
    """Collect the texts of a row that will have to be looked at.

    Args:
        loaded: The object's values.
        plan: Its mapper's plan.
        before: For an update, the earlier values; None if all columns are read.
        found: Where to; by column.
    """
    if before is None:
        for column in plan.texts:
            value = loaded.get(column.key)
            if type(value) is str and len(value) <= LONGEST_TEXT:
                found.setdefault(column, set()).add(value)
        return
    for name, old in before.items():
        changed = plan.by_key.get(name)
        if changed is None or not (changed.innocent and changed.is_text):
            continue
        for value in (old, loaded.get(name)):
            if type(value) is str and len(value) <= LONGEST_TEXT:
                found.setdefault(changed, set()).add(value)


def describe_insert(written: Mapping[str, Any], plan: MapperInfo, reader: ValueReader) -> Change:
    """Describe a row that was inserted; a column that is not named was NULL."""
    values: dict[str, list[Any]] = {}
    unknown: list[str] = []
    get, read, clean = written.get, reader.read, reader.clean
    for column in plan.columns:
        value = get(column.key, _UNKNOWN)
        if value is None and column.stored is None:
            continue
        kind = type(value)
        if column.innocent and (
            (kind is str and value in clean) or (kind is int and -SMALL < value < SMALL)
        ):
            # what `read` would find, without the call
            values[column.name] = [None, value]
        elif value is _UNKNOWN or value is None:
            # a type of the application's may store something for nothing
            if value is _UNKNOWN and column.filled:
                unknown.append(column.name)
            elif column.stored is not None:
                stored = read(column, None)
                if stored is not None:
                    values[column.name] = [None, stored]
        elif kind not in _PLAIN and _is_expression(value):
            if not isinstance(value, Null):
                unknown.append(column.name)
        else:
            values[column.name] = [None, read(column, value)]
    key = _key(plan, get, reader, values)
    return Change(
        operation="insert",
        entity=plan.entity,
        name=plan.naming.noun if len(key) == 1 else plan.naming.name_for(key),
        table=plan.table,
        key=key,
        values=values,
        unknown_after=(*unknown, *filter(values.__contains__, plan.wrapped)),
        related=plan.naming.references(key) if plan.naming.also else (),
        note=_note(reader) if reader.unread else None,
    )


def describe_update(
    written: WrittenObject,
    plan: MapperInfo,
    before: Mapping[str, Any],
    reader: ValueReader,
) -> Change | None:
    """Describe a row that was updated.

    Args:
        written: The object's values when the row had been written.
        plan: Its mapper's plan.
        before: What `overwritten` returned, and what was fetched.
        reader: Reads the values.

    Returns:
        The change, None if nothing of what is captured has changed.
    """
    loaded, committed = written
    found = _Differences(reader)
    for name in {**committed, **before}:
        column = plan.by_key.get(name)
        if column is None:
            continue
        old = before.get(name, _UNKNOWN)
        old = committed.get(name, _UNKNOWN) if old is _UNKNOWN else old
        new = loaded.get(name, _UNKNOWN)
        if old is _UNKNOWN or new is _UNKNOWN or column.same(new, old) is not True:
            found.add(column, old, new)
    if not found.values:
        return None
    for name in plan.moving:
        # what the flush has set unasked though it was not loaded before
        if name not in before and name not in committed:
            found.add(plan.by_key[name], _UNKNOWN, loaded.get(name, _UNKNOWN))
    key = _key(plan, loaded.get, reader)
    return Change(
        operation="update",
        entity=plan.entity,
        name=plan.naming.noun if len(key) == 1 else plan.naming.name_for(key),
        table=plan.table,
        key=key,
        values=found.values,
        unknown_before=tuple(found.unknown_before),
        unknown_after=tuple(found.unknown_after),
        patches=found.patches,
        related=(*plan.naming.references(key), *_earlier_key(plan, key, before, reader)),
        note=_note(reader, _moving_others(plan, found.values) if plan.moving_others else None),
    )


def describe_delete(
    state: InstanceState[Any], plan: MapperInfo, fetched: Mapping[str, Any], reader: ValueReader
) -> Change:
    """Describe a row that was deleted; a column that is not named was NULL."""
    values: dict[str, list[Any]] = {}
    unknown: list[str] = []
    current = {**state.dict, **state.committed_state, **fetched}
    for column in plan.columns:
        value = current.get(column.key, _UNKNOWN)
        if value is None and column.stored is None:
            continue
        if value is _UNKNOWN or _is_expression(value):
            unknown.append(column.name)
        elif column.stored is None:
            values[column.name] = [reader.read(column, value), None]
        elif not reader.knows_before(column, value):
            unknown.append(column.name)
        else:
            stored = reader.read(column, value)
            if stored is not None:
                values[column.name] = [stored, None]
    key = _key(plan, current.get, reader)
    return Change(
        operation="delete",
        entity=plan.entity,
        name=plan.naming.noun if len(key) == 1 else plan.naming.name_for(key),
        table=plan.table,
        key=key,
        values=values,
        unknown_before=tuple(unknown),
        related=plan.naming.references(key) if plan.naming.also else (),
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


def _moving_others(plan: MapperInfo, changed: Mapping[str, Any]) -> str | None:
    notes = {
        note: None
        for key, note in plan.moving_others.items()
        if key in plan.by_key and plan.by_key[key].name in changed
    }
    return "; ".join(notes) or None


def _note(reader: ValueReader, note: str | None = None) -> str | None:
    if not reader.unread:
        return note
    unread = f"not readable: {', '.join(reader.unread)}"
    reader.unread = []
    return unread if note is None else f"{note}; {unread}"
