"""Redaction of a statement's parameters, by the rules of their columns."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import Column, Table

from otel_audit._util.cache import BoundedCache
from otel_audit.orm.column_values import SMALL
from otel_audit.orm.compiled_binds import Bindings, Ownership, bindings_of
from otel_audit.orm.mapper_info import mark_of, referred_names
from otel_audit.orm.sql_placeholders import ColumnName, Placement, placements_in
from otel_audit.orm.sql_statements import mask_literals
from otel_audit.orm.stored_values import (
    MISSING,
    StoredMembers,
    StoredValues,
    members_of,
    sent_parameters,
    stored_values,
)
from otel_audit.redaction import WITHHELD
from otel_audit.redaction.json_values import PLAIN_SCALARS

if TYPE_CHECKING:
    from sqlalchemy import Dialect

    from otel_audit.orm.column_redaction import ColumnRedaction
    from otel_audit.orm.guard import ErrorGuard
    from otel_audit.orm.mapper_info import MapperInfoCache
    from otel_audit.orm.options import OrmOptions
    from otel_audit.orm.selection import Selection
    from otel_audit.orm.sql_lexer import Style

_COUNTER: Final = re.compile(r"(?:_m?\d+)+$")
_MOST: Final = 200
"""Parameters of one set that are shown."""
_REMEMBERED: Final = 256
"""Statements that are remembered as they were read, about."""
_LONGEST_PATH: Final = 200
"""Characters of a JSON path whose words are looked at."""
LONGEST_PLACED: Final = 20_000
"""Characters of a text whose values are looked for; of a longer one none is shown."""
_SHOWN: Final = 8_000
"""Characters of such a text that are looked at to be shown."""


class ParameterRule(NamedTuple):
    """The redaction rule of one parameter.

    Attributes:
        name: Its column's name; None: the column is not known, and so the value is withheld.
        taken: Whether the column is captured at all.
        mark: ``redact`` or ``hash``.
        sensitive: Further names of the value that are redacted for themselves: those of the other
            columns that it belongs to, of attributes, its own.
        members: Finds what the parameter's type stores of members of enumerations; None: what
            they are.
        stored: Finds what an application's own type stores; None if that is the value.
        paths: Parameters that say under which name of a document it stands.
        open: Whether nothing is hidden for where the value stands, only for what it says.
    """

    name: str | None
    taken: bool = True
    mark: str | None = None
    sensitive: tuple[str, ...] = ()
    members: StoredMembers | None = None
    stored: StoredValues | None = None
    paths: tuple[str, ...] = ()
    open: bool = False


_UNKNOWN: Final = ParameterRule(None)
_NUMBER_OF_ROWS: Final = ParameterRule("", open=True)
_SECRET: Final = ParameterRule("", mark="redact")


class _Text(NamedTuple):
    version: int
    rules: dict[str, ParameterRule]
    numbers: frozenset[int]
    columns: frozenset[str]


class Parameters:
    """Shows parameters and texts of statements."""

    def __init__(
        self,
        mapper_infos: MapperInfoCache,
        selection: Selection,
        column_redaction: ColumnRedaction,
        options: OrmOptions,
        guard: ErrorGuard,
    ) -> None:
        """Start with no statement remembered.

        Args:
            mapper_infos: What is known of the mapped classes.
            selection: What is recorded of which tables and columns.
            column_redaction: Redacts the values of columns.
            options: The options of ORM capture.
            guard: Keeps errors of capture away from the application.
        """
        self._guard = guard
        self._mapper_infos = mapper_infos
        self._selection = selection
        self._column_redaction = column_redaction
        self._options = options
        self._compiled: weakref.WeakKeyDictionary[
            Any, tuple[int, Bindings, dict[str, ParameterRule]]
        ] = weakref.WeakKeyDictionary()
        self._texts: BoundedCache[tuple[str, Style], _Text] = BoundedCache(_REMEMBERED)
        self._shown_texts: BoundedCache[tuple[str, Style], tuple[_Text, str]] = BoundedCache(
            _REMEMBERED
        )

    def of_compiled(self, context: Any) -> Any:
        """The parameters of a compiled statement, redacted.

        Args:
            context: SQLAlchemy's execution context.

        Returns:
            One object for one set; a list for several.
        """
        compiled = context.compiled
        sets: Sequence[Mapping[str, Any]] = getattr(context, "compiled_parameters", None) or ()
        bindings, rules = self._read(compiled)

        def rule(name: str) -> ParameterRule:
            found = rules.get(name)
            if found is None:
                found = self._rule(bindings.of(name), bindings.tables, name)
                kind = bindings.type_of(name)
                stored = stored_values(kind)
                members = members_of(kind) if stored is None else None
                found = rules[name] = found._replace(members=members, stored=stored)
            return found

        some = sets[: self._options.max_parameter_sets]
        sent = _Sent(context)
        shown = [self._set(one, rule, sent, place) for place, one in enumerate(some)]
        return _together(shown, len(sets))

    def of_driver(self, text: str, style: Style, parameters: Any) -> Any:
        """The parameters of a text that was given to the driver, redacted."""
        sets = _driver_sets(parameters)
        rules = self._read_text(text, style).rules if len(text) <= LONGEST_PLACED else {}
        shown: list[Any] = []
        for one in sets[: self._options.max_parameter_sets]:
            if isinstance(one, Mapping):
                shown.append(self._set(one, lambda name: rules.get(name, _UNKNOWN)))
                continue
            named = {str(place): value for place, value in enumerate(one)}
            found = self._set(named, lambda name: rules.get(name, _UNKNOWN))
            shown.append([found.get(name, WITHHELD) for name in list(named)[:_MOST]])
        return _together(shown, len(sets))

    def text(self, text: str, style: Style) -> str:
        """A SQL text without its literals, and without numbers that may not be shown."""
        longest = self._options.max_statement
        if len(text) > LONGEST_PLACED:
            masked = mask_literals(text[:_SHOWN], style, None)
            return f"{self._column_redaction.text(masked, longest)} [{len(text)} characters in all]"
        read = self._read_text(text, style)
        found = self._shown_texts.get((text, style))
        if found is None or found[0] is not read:
            masked = mask_literals(text, style, read.numbers, read.columns)
            found = read, self._column_redaction.text(masked, longest)
            self._shown_texts.put((text, style), found)
        return found[1]

    def compiled_text(self, compiled: Any, text: str, style: Style) -> str:
        """The text of a compiled statement, in which literals stand only where it holds texts."""
        # a hint or a prefix is text, too
        if self._read(compiled)[0].texts or "'" in text or "/*" in text or "--" in text:
            return self.text(text, style)
        return self._column_redaction.text(text, self._options.max_statement)

    def _read(self, compiled: Any) -> tuple[Bindings, dict[str, ParameterRule]]:
        found = self._compiled.get(compiled)
        if found is None:
            try:
                bindings = bindings_of(compiled)
            except Exception as error:  # noqa: BLE001 - must not lose the entry: all is withheld
                self._guard.note("parameters", error)
                bindings = Bindings(texts=True)
            self._compiled[compiled] = found = self._mapper_infos.version, bindings, {}
        elif found[0] != self._mapper_infos.version:
            self._compiled[compiled] = found = self._mapper_infos.version, found[1], {}
        return found[1], found[2]

    def _read_text(self, text: str, style: Style) -> _Text:
        found = self._texts.get((text, style))
        if found is not None and found.version == self._mapper_infos.version:
            return found
        placements = placements_in(text, style)
        rules = {
            name: self._rule(_ownership(one), placements.tables, name)
            for name, one in placements.binds.items()
        }
        numbers = frozenset(
            place
            for place, one in placements.numbers.items()
            if not self._is_open(self._rule(_ownership(one), placements.tables, ""))
        )
        quoted = style.dialect == "sqlite" and '"' in text
        columns = self._columns_of(placements.tables) if quoted else frozenset[str]()
        found = _Text(self._mapper_infos.version, rules, numbers, columns)
        self._texts.put((text, style), found)
        return found

    @staticmethod
    def _is_open(rule: ParameterRule) -> bool:
        return rule.name is not None and rule.taken and rule.mark is None and not rule.sensitive

    def _rule(
        self, owner: Ownership | None, tables: Mapping[str, Iterable[str]], parameter: str
    ) -> ParameterRule:
        if owner is None or owner.unknown:
            return _UNKNOWN
        if owner.plain and not owner.columns:
            return _NUMBER_OF_ROWS
        if owner.secret:
            return _SECRET
        columns: dict[Column[Any], None] = {}
        names: dict[str, None] = {}
        marks: set[str | None] = set()
        for one in owner.columns:
            found = self._columns_named(one, tables) if isinstance(one, ColumnName) else [one]
            columns.update(dict.fromkeys(found))
            if isinstance(one, ColumnName) and not found:
                names[one.name] = None
                if not self._takes_name(one.table, one.name, tables):
                    return ParameterRule(one.name, taken=False)
        for column in columns:
            if not self._takes(column):
                return ParameterRule(str(column.name), taken=False)
            marks.add(mark_of(column))
            plan = (
                self._mapper_infos.of_table(column.table)
                if isinstance(column.table, Table)
                else None
            )
            names[str(column.name)] = None
            if plan is not None:
                names[plan.attribute_of(str(column.name)) or str(column.name)] = None
            names.update(dict.fromkeys(referred_names(column)))
        marks.discard(None)
        name = next(iter(names))
        own = _COUNTER.sub("", parameter)
        further = [one for one in (*names, own) if one and not one.isdecimal()]
        sensitive = tuple(
            one
            for one in dict.fromkeys(further)
            if not self._column_redaction.is_not_sensitive(one)
        )
        is_open = not marks and not sensitive and not owner.paths
        return ParameterRule(
            name,
            mark=None
            if not marks
            else marks.pop()
            if len(marks) == len(columns) == 1
            else "redact",
            sensitive=sensitive,
            paths=tuple(owner.paths),
            open=is_open,
        )

    def _columns_named(
        self, wanted: ColumnName, tables: Mapping[str, Iterable[str]]
    ) -> list[Column[Any]]:
        """The columns that a name in a text may mean."""
        candidates = _possible(wanted.table, tables)
        found = []
        for table in dict.fromkeys(
            chain.from_iterable(map(self._mapper_infos.tables_named, candidates))
        ):
            found += [one for one in table.columns if one.name.lower() == wanted.name.lower()]
        return found

    def _columns_of(self, tables: Mapping[str, Iterable[str]]) -> frozenset[str]:
        named = dict.fromkeys(chain.from_iterable(tables.values()))
        found = chain.from_iterable(map(self._mapper_infos.tables_named, named))
        return frozenset(str(column.name).lower() for table in found for column in table.columns)

    def _takes_name(self, table: str, name: str, tables: Mapping[str, Iterable[str]]) -> bool:
        candidates = _possible(table, tables)
        return self._selection.takes_column_name(name, candidates)

    def _takes(self, column: Column[Any]) -> bool:
        table: Any = column.table
        if not self._selection.takes_column(column) or not isinstance(table, Table):
            return self._selection.takes_column(column)
        plan = self._mapper_infos.of_table(table)
        return self._selection.takes_table(table) and (plan is None or plan.captured)

    def _set(
        self,
        parameters: Mapping[str, Any],
        rule_of: Callable[[str], ParameterRule],
        sent: _Sent | None = None,
        place: int = 0,
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, given in parameters.items():
            value = given
            if len(found) >= _MOST:
                found["further_parameters"] = len(parameters) - len(found)
                break
            rule = rule_of(name)
            if rule.taken:
                stored = MISSING
                if sent is not None and rule.stored is not None:
                    stored = rule.stored.of(value, sent.dialect, sent.of(place, name))
                elif sent is not None and rule.members is not None:
                    value = rule.members.of(value, sent.dialect)
                if stored is not MISSING:
                    found[name] = self._shown(rule, value, stored, parameters)
                elif value is None or (rule.open and type(value) is int and -SMALL < value < SMALL):
                    found[name] = value
                elif rule.open and type(value) in PLAIN_SCALARS:
                    found[name] = PLAIN_SCALARS[type(value)](value)
                else:
                    found[name] = self._shown(rule, value, MISSING, parameters)
        return found

    def _shown(
        self, rule: ParameterRule, value: Any, stored: Any, parameters: Mapping[str, Any]
    ) -> Any:
        if rule.name is None:
            return WITHHELD
        if rule.mark is not None:
            return self._column_redaction.redact(
                rule.name, self._column_redaction.form(value), rule.mark, ""
            )
        if stored is not MISSING:
            shown = [
                self._column_redaction.stored(name, value, stored, "")
                for name in (*rule.sensitive, *self._path_names(rule, parameters), rule.name)
            ]
            return next((one for one in shown if one != shown[-1]), shown[-1])
        form = self._column_redaction.form(value)
        for name in (*rule.sensitive, *self._path_names(rule, parameters)):
            shown = self._column_redaction.redact(name, form, None, "")
            if shown != form:
                return shown
        return self._column_redaction.redact(rule.name, form, None, "")

    def _path_names(self, rule: ParameterRule, parameters: Mapping[str, Any]) -> list[str]:
        found: list[str] = []
        for path in rule.paths:
            parts = parameters.get(path)
            for one in parts if isinstance(parts, list | tuple) else (parts,):
                if isinstance(one, str) and len(one) <= _LONGEST_PATH:
                    found += re.findall(r"\w+", one)
        return [one for one in found if not self._column_redaction.is_not_sensitive(one)]


class _Sent:
    """The parameters that the driver got, read only if they matter."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.dialect: Dialect = context.dialect
        self._sets: Sequence[Mapping[str, Any]] | None = None

    def of(self, place: int, name: str) -> Any:
        if self._sets is None:
            self._sets = sent_parameters(self._context)
        return self._sets[place].get(name, MISSING) if place < len(self._sets) else MISSING


def _possible(table: str, tables: Mapping[str, Iterable[str]]) -> list[str]:
    """The tables that a column may be of: of those that the statement speaks of."""
    named = tables.get(table) or tables.get(table.lower()) if table else None
    return list(dict.fromkeys(named or chain.from_iterable(tables.values())))


def _ownership(placement: Placement) -> Ownership:
    return Ownership(
        dict.fromkeys(placement.columns),
        unknown=not placement.known and not placement.plain,
        plain=placement.plain,
        secret=placement.secret,
    )


def _driver_sets(parameters: Any) -> list[Any]:
    if isinstance(parameters, Mapping):
        return [parameters]
    if not parameters:
        return []
    if isinstance(parameters[0], Mapping | list | tuple):
        return list(parameters)
    return [parameters]


def _together(shown: list[Any], total: int) -> Any:
    if total <= 1:
        return (shown[0] or None) if shown else None
    rest = total - len(shown)
    return [*shown, {"further_parameter_sets": rest}] if rest else shown
