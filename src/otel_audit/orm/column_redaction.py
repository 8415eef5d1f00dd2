"""Redaction of the values of columns and parameters: by mark, then by name, then by length."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from sqlalchemy import Column, Table
from sqlalchemy.orm import Mapper

from otel_audit.orm.column_values import column_form, counted_form
from otel_audit.orm.marked_columns import PERSONAL
from otel_audit.orm.stored_values import is_same_document, same_uuid
from otel_audit.record import Change
from otel_audit.redaction import REDACTED, Redactor
from otel_audit.redaction.budget import PER_VALUE, WorkBudget
from otel_audit.redaction.json_values import (
    NotUnderstoodError,
    is_described_type,
    json_text,
)
from otel_audit.redaction.placeholders import WITHHELD, WITHHELD_FOR_WORK
from otel_audit.redaction.truncate import (
    cut_text,
    describe_cut,
    head_of_text,
    is_cut,
    shorten,
    whole_head,
    whole_json,
    withhold_undecided,
)
from otel_audit.redaction.walker import parse_json
from otel_audit.scope import open_scope

_PROBES = ("x", "a1b2c3d4", 1, True)

_READ = 4
"""Factor over the kept length up to which a value is read to its end."""

_OUTSIDE = 2_000
"""Units of work that a value may cost that changes outside of any action."""

_CHARACTERS = 32
"""Characters of a value that are worth a unit of work: twice what it takes to search them."""

_PER_NODE = 0.5
"""Units of work that it costs to bring one value in a list or an object to JSON."""

_SHOWN = 1_024
"""Characters of a long value that are looked at: four times what is shown of it."""


class ValueRedactor(Protocol):
    """The methods of redaction that capture needs."""

    def field(self, name: str, value: Any) -> Any:
        """Redact a JSON value that stands under a name."""

    def text(self, text: str) -> str:
        """Redact free text."""


@dataclass(frozen=True, slots=True)
class ColumnRedaction:
    """Redacts the values of columns.

    Attributes:
        redactor: Decides by name and content. One with a method ``hashed(value)`` can serve
            columns marked ``hash``.
        longest: Characters of one value's JSON text.
    """

    redactor: ValueRedactor
    longest: int

    def value(self, name: str, value: Any, *, mark: str | None = None, alias: str = "") -> Any:
        """Bring a value to JSON and redact it.

        Args:
            name: Its column.
            value: The application's value, or its JSON form.
            mark: ``redact`` or ``hash``, as the column's ``info`` says.
            alias: The attribute's name, where it differs: sensitive in either is sensitive.

        Returns:
            A JSON value that may leave the listener. None stays None.
        """
        return None if value is None else self.redact(name, self.form(value), mark, alias)

    def stored(self, name: str, value: Any, stored: Any, alias: str) -> Any:
        """Redact what is stored in place of a value: what is sensitive in either is sensitive.

        Args:
            name: As for `value`.
            value: The application's value.
            stored: What its type has made of it.
            alias: As for `value`.
        """
        if stored is None:
            return None
        form, own = self.form(stored), self.form(value)
        if own == form or is_described_type(own):
            return self.redact(name, form, None, alias)
        form = own if is_same_document(own, stored) else same_uuid(value, stored) or form
        shown = self.redact(name, form, None, alias)
        # of bytes nothing is shown
        if own is None or isinstance(stored, bytes | bytearray | memoryview):
            return shown
        if shown != form and not is_cut(shown):
            return shown
        return REDACTED if self._hides(name, own, alias) else shown

    def _hides(self, name: str, form: Any, alias: str) -> bool:
        """Whether something in a JSON form is to be redacted, however long it is."""
        size = len(json_text(form)) if isinstance(form, str | dict | list) else 0
        work = _work()
        work.left += PER_VALUE + min(size, _READ * self.longest) / _CHARACTERS
        return size > _READ * self.longest or bool(self._redacted(name, form, alias, work) != form)

    def form(self, value: Any) -> Any:
        """Bring a value to its JSON form, at the cost of the action that changes it."""
        if isinstance(value, str | int | float | bytes):
            return column_form(value)
        work = _work()
        if work.left < 0:
            work.withheld = True
            return WITHHELD_FOR_WORK
        found, nodes = counted_form(value)
        work.left -= nodes * _PER_NODE
        return found

    def redact(self, name: str, form: Any, mark: str | None, alias: str) -> Any:
        """Redact a value that is in its JSON form already; as `value`."""
        if mark is not None:
            return self._marked(form, mark)
        kind = type(form)
        if kind is str:
            size = len(form)
        elif kind is dict or kind is list:
            size = len(json_text(form))
        else:
            size = 0
        work = _work()
        work.left += PER_VALUE + min(size, _READ * self.longest) / _CHARACTERS
        if size > _READ * self.longest:
            return self._head(name, form, alias, work)
        return shorten(self._redacted(name, form, alias, work), self.longest)

    def _redacted(self, name: str, form: Any, alias: str, work: WorkBudget) -> Any:
        redacted = self._field(name, form, work)
        if alias and alias != name and redacted == form:
            redacted = self._field(alias, form, work)
        return redacted

    def _field(self, name: str, form: Any, work: WorkBudget) -> Any:
        redactor = self.redactor
        if isinstance(redactor, Redactor):
            return redactor.field(name, form, work=work)
        return redactor.field(name, form)

    def _head(self, name: str, form: Any, alias: str, work: WorkBudget) -> Any:
        """Show the beginning of a value that is too long to be read; it is cut first."""
        if isinstance(form, str):
            shown = self._redacted(name, cut_text(form, _SHOWN), alias, work)
            size = len(form.encode("utf-8", "replace"))
            return describe_cut(size, head_of_text(shown)) if _is_text(shown) else shown
        whole = whole_json(json_text(form)[:_SHOWN])
        try:
            head = WITHHELD if whole is None else withhold_undecided(parse_json(whole))
        except NotUnderstoodError:  # the cut went through a letter
            head = WITHHELD
        shown = self._redacted(name, head, alias, work)
        if type(shown) is not type(form):
            return shown
        return describe_cut(None, whole_head(json_text(shown)))

    def clean_copy(self, value: Any) -> Any:
        """Copy a list or an object that holds nothing to redact or to cut; None: look closer."""
        copy = getattr(self.redactor, "clean_copy", None)
        if copy is None:
            return None
        found = copy(value, self.longest) if isinstance(self.redactor, Redactor) else copy(value)
        return None if found is None or found[1] > self.longest else found[0]

    def are_clean(self, texts: list[str]) -> bool:
        """Return whether one look shows that none of some short texts holds anything to redact."""
        copy = getattr(self.redactor, "clean_copy", None)
        return copy is not None and copy(texts) is not None

    def is_not_sensitive(self, name: str) -> bool:
        """Return whether nothing is redacted for this name alone."""
        try:
            return all(self.redactor.field(name, probe) == probe for probe in _PROBES)
        except Exception:  # noqa: BLE001 - it will raise on the value too, and be noted there
            return False

    def text(self, text: str, longest: int) -> str:
        """Redact free text and cut it; first of all, where it is very long."""
        if len(text) > _READ * longest:
            return f"{self.redactor.text(cut_text(text, longest))} [{len(text)} characters]"
        redacted = self.redactor.text(text)
        if len(redacted) <= longest:
            return redacted
        cut = shorten(redacted, longest)
        return f"{redacted[:longest]}… [{cut['_original_size']} bytes, sha256 {cut['_sha256']}]"

    def _marked(self, form: Any, mark: str) -> Any:
        hashed = getattr(self.redactor, "hashed", None)
        if mark == "hash" and callable(hashed):
            return hashed(form)
        return REDACTED


def _work() -> WorkBudget:
    """The share of the action under way; outside of any, one that is made for the value."""
    scope = open_scope()
    return WorkBudget.of(_OUTSIDE) if scope is None else scope.budget.changes


def _is_text(shown: Any) -> bool:
    return isinstance(shown, str) and shown not in (REDACTED, WITHHELD, WITHHELD_FOR_WORK)


class PersonalColumns:
    """The marked columns of the tables and classes met so far."""

    def __init__(self, referred: Callable[[Column[Any]], Iterable[Column[Any] | str]]) -> None:
        """Start with no class known.

        Args:
            referred: Finds the columns that a foreign key refers to: it holds the same values.
        """
        self._referred = referred
        # by the table's own name: where a schema is translated, the one in a change is another
        self._by_table: dict[str, frozenset[str]] = {}
        self._by_class: dict[str, frozenset[str]] = {}

    def meet_table(self, table: Table) -> None:
        """Note the marks of a table."""
        self._add(self._by_table, str(table.name).lower(), self._marked([table]))

    def meet_mapper(self, mapper: Mapper[Any]) -> None:
        """Note the marks of a class: of all its tables, as an inheriting class has several."""
        tables = [table for table in mapper.tables if isinstance(table, Table)]
        self._add(self._by_class, mapper.class_.__name__, self._marked(tables))
        for table in tables:
            self.meet_table(table)

    def mark(self, change: Change) -> None:
        """Name the personal columns of a change, in place: who made it may look for it again."""
        if not self._by_table:
            return
        table = change.table.rpartition(".")[2].lower()
        names = self._by_table.get(table, _NONE) | self._by_class.get(change.entity, _NONE)
        if change.parameters is None:
            names = frozenset(
                name for name in change.values if name.rpartition(".")[2] in names
            )  # fmt: skip
        if names:
            msgspec.structs.force_setattr(change, "personal", tuple(sorted(names)))

    def _marked(self, tables: Iterable[Table]) -> frozenset[str]:
        return frozenset(
            str(column.name)
            for table in tables
            for column in table.columns
            if self._is_personal(column)
        )

    def _is_personal(self, column: Column[Any]) -> bool:
        if column.info.get("audit") is not None or not column.foreign_keys:
            return column.info.get("audit") == PERSONAL
        return any(
            isinstance(one, Column) and one.info.get("audit") == PERSONAL
            for one in self._referred(column)
        )

    @staticmethod
    def _add(place: dict[str, frozenset[str]], name: str, found: frozenset[str]) -> None:
        if found:
            place[name] = place.get(name, _NONE) | found


_NONE: frozenset[str] = frozenset()
