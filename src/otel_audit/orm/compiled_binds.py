"""The columns that the parameters of a compiled statement belong to.

A parameter's name is the application's own and says nothing. What it is set into or compared with
does: the statement that is sent is read, not the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from sqlalchemy import BindParameter, Column, Table, TextClause
from sqlalchemy.sql import operators
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BooleanClauseList,
    ClauseElement,
    ColumnClause,
    Grouping,
    UnaryExpression,
)
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import (
    AliasedReturnsRows,
    CompoundSelect,
    Exists,
    Join,
    ReturnsRows,
    ScalarSelect,
    Select,
    SelectStatementGrouping,
    TableClause,
    TextualSelect,
)

from otel_audit.orm.executed import sent_statement
from otel_audit.orm.sql_lexer import NAME, WORD, Style, tokens_of
from otel_audit.orm.sql_placeholders import (
    FRAGMENT,
    ColumnName,
    placements_in,
    placements_in_fragment,
)
from otel_audit.redaction.names import is_secret_function

Owned: TypeAlias = "Column[Any] | ColumnName"

_COUNTER: Final = re.compile(r"_m\d+$")
_EXPANDED: Final = re.compile(r"_\d+$")
_DEEPEST: Final = 200
"""Levels of a statement that are followed, far below Python's own bound; what is deeper has no
owner."""
_LONGEST_TEXT: Final = 20_000
"""Characters of a text whose parameters are looked for."""


@dataclass(slots=True)
class Ownership:
    """The columns that own a parameter's value.

    Attributes:
        columns: What it is set into or compared with; by name where no table is known.
        unknown: Whether it may flow into further columns.
        plain: Whether it is a number of rows.
        secret: Whether it is an argument of a function whose arguments are secrets.
        paths: Parameters that say under which name of a document it stands.
    """

    columns: dict[Owned, None] = field(default_factory=dict)
    unknown: bool = False
    plain: bool = False
    secret: bool = False
    paths: dict[str, None] = field(default_factory=dict)


@dataclass(slots=True)
class Bindings:
    """The parameters of one compiled statement.

    Attributes:
        owners: By the parameter's name; one without an entry belongs to no known column.
        tables: Names of all tables that the statement speaks of.
        texts: Whether it holds pieces of SQL text, in which literals may stand.
        expanding: Parameters that hold lists.
        types: Of the parameters; that of the elements for a list.
    """

    owners: dict[str, Ownership] = field(default_factory=dict)
    tables: dict[str, set[str]] = field(default_factory=dict)
    texts: bool = False
    expanding: frozenset[str] = frozenset()
    types: dict[str, Any] = field(default_factory=dict)

    def of(self, name: str) -> Ownership | None:
        """The owner of a parameter; an element of a list has the list's owner."""
        return self.owners.get(self._whole(name))

    def type_of(self, name: str) -> Any:
        """The type of a parameter."""
        return self.types.get(self._whole(name))

    def _whole(self, name: str) -> str:
        """The parameter that is a list, for an element of it."""
        whole = name
        for _ in range(2):
            if whole in self.owners or whole in self.types:
                return whole
            whole = _EXPANDED.sub("", whole)
        return whole if whole in self.expanding else name


def bindings_of(compiled: Any) -> Bindings:
    """Read a compiled statement."""
    element = sent_statement(compiled)
    style = Style(compiled.dialect.name, "named")
    if isinstance(element, TextClause):
        return _of_text(element, style)
    reader = _Reader(compiled, style)
    if isinstance(element, ClauseElement):
        reader.visit(element, None)
    for cte in getattr(compiled, "ctes", None) or ():
        reader.visit(cte, None)
    reader.add_sources()
    reader.add_made_by_compiler(element)
    return reader.found


def _of_text(element: TextClause, style: Style) -> Bindings:
    placements = placements_in(element.text[:_LONGEST_TEXT], style)
    if len(element.text) > _LONGEST_TEXT:
        placements.binds.clear()  # what follows may put them elsewhere
    found = Bindings(tables=placements.tables, texts=True)
    for name, placement in placements.binds.items():
        found.owners[name] = Ownership(
            dict.fromkeys(placement.columns),
            unknown=not placement.known and not placement.plain,
            plain=placement.plain,
            secret=placement.secret,
        )
    binds = element._bindparams  # noqa: SLF001 - no public way
    found.types = {name: bind.type for name, bind in binds.items()}
    found.expanding = frozenset(name for name, bind in binds.items() if bind.expanding)
    return found


_Context: TypeAlias = "tuple[Owned, ...] | None"
"""The columns that a value is for; none: it is only compared; None: not known."""


class _Reader:
    """Walks through a statement and notes each parameter where it finds it."""

    def __init__(self, compiled: Any, style: Style) -> None:
        self.found = Bindings()
        self._style = style
        self._names: dict[Any, str] = dict(getattr(compiled, "bind_names", {}))
        self._by_key = {bind.key: name for bind, name in self._names.items()}
        self.found.types = {name: bind.type for bind, name in self._names.items()}
        self.found.expanding = frozenset(
            name for bind, name in self._names.items() if bind.expanding
        )
        self.found.texts = bool(getattr(compiled, "literal_execute_params", ()))
        self._literals: list[tuple[Any, Any]] = []
        self._sources: dict[int, Any] = {}
        self._depth = 0
        self._secret = False
        self._paths: tuple[str, ...] = ()

    def visit(self, element: Any, context: _Context) -> None:
        """Read an element.

        Args:
            element: Any part of a statement.
            context: What its value is for.
        """
        if not isinstance(element, ClauseElement) or self._depth > _DEEPEST:
            return
        self._depth += 1
        try:
            self._visit(element, context)
        finally:
            self._depth -= 1

    def _visit(self, element: ClauseElement, context: _Context) -> None:  # noqa: C901, PLR0912 - one branch a kind
        if isinstance(element, BindParameter):
            self._note(element, context)
        elif isinstance(element, TextClause):
            self._text(element, context)
        elif isinstance(element, UpdateBase):
            self._dml(element)
        elif isinstance(element, Select):
            self._select(element, context)
        elif isinstance(element, CompoundSelect):
            self._all(element.selects, context)
            self._ends_of(element)
        elif isinstance(element, TextualSelect | ScalarSelect | SelectStatementGrouping):
            self.visit(element.element, context)
        elif isinstance(element, Exists):
            self.visit(element.element, ())
        elif isinstance(element, Join):
            self.visit(element.left, None)
            self.visit(element.right, None)
            self.visit(element.onclause, ())
        elif isinstance(element, TableClause):
            self._table(element)
        elif isinstance(element, AliasedReturnsRows):
            self._table(element)
            self.visit(element.element, None)
        elif isinstance(element, BooleanClauseList):
            self._all(element.clauses, ())
        elif isinstance(element, BinaryExpression):
            self._binary(element, context)
        elif isinstance(element, FunctionElement):
            self._function(element, context)
        elif isinstance(element, ColumnClause):
            self.found.texts |= element.is_literal
        else:
            inner = context
            if not isinstance(element, Grouping | UnaryExpression):
                inner = _joined(context, self._columns(element))
            self._all(element.get_children(), inner)

    def _all(self, elements: Iterable[Any], context: _Context) -> None:
        for one in elements:
            self.visit(one, context)

    def _note(self, bind: BindParameter[Any], context: _Context) -> None:
        name = self._names.get(bind) or self._by_key.get(bind.key)
        if name is None:
            return
        owner = self.found.owners.setdefault(name, Ownership())
        if context:
            owner.columns.update(dict.fromkeys(context))
        else:
            owner.unknown = True
        owner.secret |= self._secret
        owner.paths.update(dict.fromkeys(one for one in self._paths if one != name))

    def _plain(self, element: Any) -> None:
        """A number of rows."""
        for bind in _binds(element):
            name = self._names.get(bind) or self._by_key.get(bind.key)
            if name is not None:
                owner = self.found.owners.setdefault(name, Ownership())
                owner.plain = not owner.columns and not owner.unknown

    def _binary(self, element: BinaryExpression[Any], context: _Context) -> None:
        columns = self._columns(element)
        compares = operators.is_comparison(element.operator)
        inner = columns or None if compares else _joined(context, columns)
        outer = self._paths
        self._paths = (*outer, *self._path_names(element))
        for side in (element.left, element.right):
            self.visit(side, inner)
        self._paths = outer

    def _function(self, element: FunctionElement[Any], context: _Context) -> None:
        inner = _joined(context, self._columns(element))
        name = str(getattr(element, "name", ""))
        outer = self._secret, self._paths
        self._secret |= is_secret_function(name)
        if "json" in name.lower():
            self._paths += tuple(self._bind_names(element))
        for one in element.get_children():
            self.visit(one, inner)
        self._secret, self._paths = outer

    def _select(self, element: Select[Any], context: _Context, *, rest: bool = False) -> None:
        for column in () if rest else element._raw_columns:  # noqa: SLF001 - no public way
            own = None if _is_rows(column) else context
            if own is not None:
                own = _joined(own, self._columns(column)) or None
            self.visit(column, own)
        self._all(element._where_criteria, ())  # noqa: SLF001
        self._all(element._having_criteria, ())  # noqa: SLF001
        self._all(element._distinct_on or (), ())  # noqa: SLF001
        self._all(element._from_obj, None)  # noqa: SLF001
        for target, onclause, left, _ in element._setup_joins:  # noqa: SLF001
            self._all((target, left), None)
            self.visit(onclause, ())
        self._ends_of(element)

    def _ends_of(self, element: Any) -> None:
        for name in ("_order_by_clauses", "_group_by_clauses"):
            for one in getattr(element, name, None) or ():
                self.visit(one, ())
        for name in ("_limit_clause", "_offset_clause", "_fetch_clause"):
            self._plain(getattr(element, name, None))

    def _dml(self, element: Any) -> None:
        self._table(element.table)
        for column, value in set_columns(element):
            if isinstance(value, ClauseElement):
                self.visit(value, (column, *self._columns(value)))
            else:
                self._literals.append((column, value))
        query = getattr(element, "select", None)
        if query is not None:
            self._insert_from(element, query)
        conflict = getattr(element, "_post_values_clause", None)
        for one in (
            *(getattr(element, "_where_criteria", None) or ()),
            getattr(conflict, "update_whereclause", None),
            getattr(conflict, "inferred_target_whereclause", None),
        ):
            self.visit(one, ())
        for one in (
            *(getattr(element, "_extra_froms", None) or ()),
            *(getattr(element, "_returning", None) or ()),
            *(getattr(element, "_independent_ctes", None) or ()),
        ):
            self.visit(one, None)

    def _insert_from(self, element: Any, query: Any) -> None:
        table = columns_of(element.table)
        names = [table.get(str(name)) for name in element._select_names or ()]  # noqa: SLF001
        for one in _selects(query):
            columns = getattr(one, "_raw_columns", None)
            listed = columns is not None and not any(map(_is_rows, columns))
            if columns is None or not listed:
                self.visit(one, None)
                continue
            # each column of the query is for the one in its place; then all the rest of it
            for place, column in enumerate(columns):
                own = names[place] if place < len(names) else None
                inner = None if own is None else (own, *self._columns(column))
                self.visit(column, inner)
            self._select(one, None, rest=True)

    def _text(self, element: TextClause, context: _Context) -> None:
        """Read a piece of text: what stands in it alone is for what the piece is for."""
        self.found.texts = True
        placements = placements_in_fragment(element.text, self._style)
        self.found.tables.update(placements.tables)
        outer = self._secret
        for key, bind in element._bindparams.items():  # noqa: SLF001 - no public way
            placement = placements.binds.get(key)
            if placement is None or not placement.known or context is None:
                self._note(bind, None)
                continue
            named = tuple(one for one in placement.columns if one is not FRAGMENT)
            self._secret = outer or placement.secret
            self._note(bind, (*context, *named) if FRAGMENT in placement.columns else named)
            self._secret = outer

    def _table(self, element: Any) -> None:
        name = getattr(element, "fullname", None) or getattr(element, "name", None)
        inner = getattr(element, "element", element)
        of = getattr(inner, "fullname", None) or getattr(inner, "name", None)
        if isinstance(name, str) and isinstance(of, str):
            self.found.tables.setdefault(str(name), set()).add(str(of))

    def _columns(self, element: Any) -> tuple[Owned, ...]:
        """The columns in an expression; of its subqueries those that they return."""
        found: dict[Owned, None] = {}
        waiting = [element]
        seen: set[int] = set()
        while waiting:
            one = waiting.pop()
            if id(one) in seen:
                continue
            seen.add(id(one))
            if isinstance(one, ColumnClause):
                if one.table is not None:
                    self._sources[id(one.table)] = one.table
                found.update(dict.fromkeys(self._owned(one, waiting)))
            elif isinstance(one, TextClause):
                found.update(dict.fromkeys(_words(one.text, self._style)))
            elif isinstance(one, ClauseElement) and not _is_query(one):
                waiting += one.get_children()
            elif not isinstance(one, Exists):
                waiting += _returned(one)
        return tuple(found)

    def _owned(self, column: ColumnClause[Any], waiting: list[Any]) -> Iterator[Owned]:
        """The table's own column: statements have annotated copies, aliases have proxies of it."""
        table = column.table
        if isinstance(column, Column) and (table is None or isinstance(table, Table)):
            yield columns_of(table).get(str(column.name), column)
            return
        bases = [one for one in column.base_columns if one is not column]
        if bases:
            waiting += bases
        elif column.is_literal:
            self.found.texts = True
            yield from _words(str(column.name), self._style)
        else:
            yield ColumnName(str(getattr(table, "name", "")), str(column.name))

    def _path_names(self, element: BinaryExpression[Any]) -> Iterator[str]:
        """The parameters in a comparison that say which part of a document is meant."""
        waiting: list[Any] = [element]
        while waiting:
            one = waiting.pop()
            if not isinstance(one, ClauseElement) or _is_query(one):
                continue
            waiting += one.get_children()
            sign = (
                getattr(one.operator, "opstring", "") if isinstance(one, BinaryExpression) else ""
            )
            if isinstance(one, BinaryExpression) and (
                one.operator
                in (operators.getitem, operators.json_getitem_op, operators.json_path_getitem_op)
                or sign.startswith(("->", "#>"))
            ):
                yield from self._bind_names(one.right)

    def _bind_names(self, element: Any) -> Iterator[str]:
        for bind in _binds(element):
            name = self._names.get(bind) or self._by_key.get(bind.key)
            if name is not None:
                yield name

    def add_sources(self) -> None:
        """Visit the derived tables whose columns the statement uses."""
        visited: set[int] = set()
        while new := [one for key, one in self._sources.items() if key not in visited]:
            visited.update(map(id, new))
            for one in new:
                self.visit(one, None)

    def add_made_by_compiler(self, element: Any) -> None:
        """Note the parameters that the compiler has made itself: one for each column it writes."""
        table = columns_of(getattr(element, "table", None))
        several = bool(getattr(element, "_multi_values", ()))
        for column in table.values():
            for name in ("default", "onupdate"):
                self.visit(getattr(getattr(column, name, None), "arg", None), (column,))
        for bind, name in self._names.items():
            if name in self.found.owners:
                continue
            key = str(bind.key)
            if bind._is_crud:  # noqa: SLF001 - no public way
                columns = [table.get(key)]
                if several:
                    columns.append(table.get(_COUNTER.sub("", key)))
            else:
                # an upsert's: it has the column's type and the very value
                columns = [
                    column
                    for column, value in self._literals
                    if bind.type is getattr(column, "type", None) and bind.value is value
                ]
            known = {one: None for one in columns if one is not None}
            if known:
                self.found.owners[name] = Ownership(known)


def columns_of(table: Any) -> Mapping[str, Owned]:
    """The columns of a table, by key and by name."""
    found: dict[str, Owned] = {}
    original = table
    if getattr(table, "_annotations", None):
        metadata = getattr(table, "metadata", None)
        original = table if metadata is None else metadata.tables.get(table.key, table)
    for column in getattr(original, "columns", ()):
        owned = column
        if not isinstance(column, Column):  # of a table that has a name only
            owned = ColumnName(str(getattr(original, "name", "")), str(column.name))
        found.setdefault(str(column.key), owned)
        found.setdefault(str(column.name), owned)
    return found


def _is_rows(element: Any) -> bool:
    """Whether an element is a table or a query, not a value."""
    return isinstance(element, ReturnsRows) and not isinstance(element, FunctionElement)


def _is_query(element: Any) -> bool:
    return _is_rows(element) or isinstance(element, ScalarSelect | Exists)


def _returned(query: Any) -> Iterator[Any]:
    """The columns that a query returns, as far as it is a query for values."""
    while isinstance(query, ScalarSelect | SelectStatementGrouping):
        query = query.element
    if isinstance(query, CompoundSelect):
        for one in query.selects:
            yield from _returned(one)
    elif isinstance(query, Select):
        for column in query._raw_columns:  # noqa: SLF001 - no public way
            if _is_rows(column):
                yield from getattr(column, "columns", ())
            else:
                yield column
    elif isinstance(query, TextualSelect):
        yield query.element


def _joined(context: _Context, columns: Sequence[Owned]) -> _Context:
    if context is None:
        return None
    return (*context, *columns)


def _binds(element: Any) -> list[BindParameter[Any]]:
    found: list[BindParameter[Any]] = []
    waiting = [element]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BindParameter):
            found.append(one)
        elif isinstance(one, ClauseElement):
            waiting += one.get_children()
    return found


def _selects(query: Any) -> Iterator[Any]:
    if isinstance(query, CompoundSelect):
        for one in query.selects:
            yield from _selects(one)
    elif isinstance(query, SelectStatementGrouping):
        yield from _selects(query.element)
    else:
        yield query


def _words(text: str, style: Style) -> Iterator[ColumnName]:
    for token in tokens_of(text, style):
        if token.kind in (WORD, NAME):
            yield ColumnName("", token.text.lower() if style.folds else token.text)


def set_columns(element: Any) -> Iterator[tuple[Any, Any]]:
    """The columns that a statement names, and what they are set to."""
    for name in ("_values", "_ordered_values", "_multi_values"):
        yield from _pairs(getattr(element, name, None), element)
    conflict = getattr(element, "_post_values_clause", None)
    for name in ("update_values_to_set", "update"):
        yield from _pairs(getattr(conflict, name, None), element)


def _pairs(given: Any, element: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(given, Mapping):
        yield from _named(given.items(), element)
    elif isinstance(given, Iterable):
        for one in given:
            if isinstance(one, tuple) and len(one) == 2 and not isinstance(one[0], Mapping | tuple):  # noqa: PLR2004 - a pair
                yield from _named([one], element)
            else:
                yield from _pairs(one, element)


def _named(items: Iterable[tuple[Any, Any]], element: Any) -> Iterator[tuple[Any, Any]]:
    table = columns_of(getattr(element, "table", None))
    for key, value in items:
        name = str(key) if isinstance(key, str) else str(getattr(key, "name", key))
        yield table.get(name, ColumnName("", name)), value
