"""The columns that the placeholders and the numbers of a SQL text belong to.

A value belongs to the columns that it is set into or compared with: to all that stand in one
assignment or comparison with it, functions and CASE included. A value in the columns of a subquery
belongs to what that is set into as well. One that may flow anywhere (in the columns of a derived
table, in a list without names) belongs to no known column.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, NamedTuple, TypeAlias

from otel_audit.orm.sql_lexer import (
    BIND,
    COMMENT,
    LITERAL,
    NAME,
    NUMBER,
    WORD,
    Style,
    Token,
    keywords,
    tokens_of,
)
from otel_audit.orm.sql_statements import read_sql
from otel_audit.redaction.names import is_secret_function

_DEEPEST: Final = 60
"""Levels of brackets that are followed, far below Python's own bound; what is deeper is not
shown."""
_QUERY = frozenset({"SELECT", "WITH", "VALUES", "TABLE"})
_STATEMENTS = _QUERY | {"INSERT", "UPDATE", "DELETE", "MERGE"}
_CONDITIONS = keywords("WHERE ON HAVING WHEN QUALIFY")
_WORDS = keywords(
    "SELECT FROM WHERE SET AND OR ON USING VALUES RETURNING HAVING JOIN WHEN THEN ELSE END "
    "CASE LIMIT OFFSET FETCH ORDER GROUP BY UNION EXCEPT INTERSECT WITH CONFLICT DO UPDATE "
    "DELETE INTO NOT IN IS LIKE ILIKE BETWEEN NULL TRUE FALSE DEFAULT AS ANY ALL SOME EXISTS "
    "DISTINCT SIMILAR TO ESCAPE INTERVAL ARRAY ROW COLLATE NOTHING INSERT REPLACE ONLY LEFT "
    "RIGHT INNER OUTER FULL CROSS NATURAL LATERAL ASC DESC NULLS FIRST LAST MERGE MATCHED "
    "OVER PARTITION FILTER DUPLICATE KEY FOR OF NOWAIT SKIP LOCKED RECURSIVE WINDOW "
    "OVERRIDING SYSTEM USER VALUE"
)
"""Words that are not columns."""
_AFTER_SELECT = keywords(
    "FROM INTO WHERE GROUP HAVING ORDER LIMIT OFFSET FETCH WINDOW UNION EXCEPT INTERSECT FOR"
)
"""Words that end the list of a query's results."""
_ENDS_SOURCE = keywords("LEFT RIGHT INNER OUTER FULL CROSS NATURAL JOIN")


class ColumnName(NamedTuple):
    """A column as a text names it.

    Attributes:
        table: The table or alias in front of it, as the database reads it; mostly empty.
        name: Its name.
    """

    table: str
    name: str


FRAGMENT: Final = ColumnName("", "")
"""Stands for what a piece of text as a whole is set into or compared with."""


ANY_COLUMN: Final = ColumnName("", "*")
"""Stands for columns that a text does not name."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The place of a value in a text.

    Attributes:
        columns: What it is set into or compared with.
        known: Whether these are all.
        plain: Whether it is a number of rows, or compared with no column.
        secret: Whether it is an argument of a function whose arguments are secrets.
    """

    columns: tuple[ColumnName, ...] = ()
    known: bool = False
    plain: bool = False
    secret: bool = False


@dataclass(slots=True)
class Placements:
    """The placements in one text.

    Attributes:
        binds: By the placeholder's name or position.
        numbers: By where the number begins.
        tables: Tables by their name and by their alias, as the database reads them.
    """

    binds: dict[str, Placement] = field(default_factory=dict)
    numbers: dict[int, Placement] = field(default_factory=dict)
    tables: dict[str, set[str]] = field(default_factory=dict)


class _Group(NamedTuple):
    """The tokens in parentheses or brackets, or from CASE to END."""

    kind: str
    parts: list[Token | _Group]


_Node: TypeAlias = "Token | _Group"
_Target: TypeAlias = "Sequence[tuple[ColumnName, ...] | None] | tuple[ColumnName, ...] | None"


def placements_in(text: str, style: Style) -> Placements:
    """Return which columns the values of statements belong to."""
    found = Placements()
    for statement in read_sql(text, style).statements:
        _Walker(found, style).statement(_tree(statement))
    return found


def placements_in_fragment(text: str, style: Style) -> Placements:
    """The placements in a part of a statement: a criterion, an expression."""
    found = Placements()
    tokens = [one for one in tokens_of(text, style) if one.kind != COMMENT]
    nodes = _tree(tokens)
    words = {one.upper for one in nodes if isinstance(one, Token)}
    walker = _Walker(found, style)
    if words.isdisjoint(("SELECT", "SET", "VALUES", "FROM", "WITH")):
        walker.conditions(nodes, 0, (FRAGMENT,))
    else:
        walker.statement(nodes)
    return found


def _tree(tokens: Iterable[Token]) -> list[_Node]:
    root: list[_Node] = []
    open_: list[_Group] = []
    for token in tokens:
        word = token.upper
        parts = open_[-1].parts if open_ else root
        if word in ("(", "[", "CASE"):
            group = _Group(word, [])
            parts.append(group)
            open_.append(group)
        elif open_ and word in (")", "]", "END"):
            while open_ and word == ")" and open_[-1].kind != "(":
                open_.pop()
            if open_ and (word != "END" or open_[-1].kind == "CASE"):
                open_.pop()
        else:
            parts.append(token)
    return root


class _Walker:
    def __init__(self, found: Placements, style: Style) -> None:
        self._found = found
        self._style = style

    def statement(self, nodes: Sequence[_Node], target: _Target = (), depth: int = 0) -> None:
        """Read a statement, or a query within one.

        Args:
            nodes: Its parts.
            target: What the columns of a query are set into or compared with: one for all, one for
                each; None: not known.
            depth: How deep it lies.
        """
        if depth > _DEEPEST:
            self._each(nodes, Placement())
            return
        state, inserted, columns = "", False, target
        part: list[_Node] = []
        for place, node in enumerate(nodes):
            word = _word(node)
            following = _word(nodes[place + 1]) if place + 1 < len(nodes) else ""
            then = self._state(word, state, following, part)
            if then is None:
                part.append(node)
                if state == "into" and isinstance(node, _Group):
                    columns, inserted = self._insert_columns(part[:-1], node), True
                    part, state = [], "inserted"
                continue
            self._clause(state, part, columns if state in ("select", "values") else (), depth)
            if then == "into" and not inserted:
                columns = None  # unless it names them
            part, state = [], then
        self._clause(state, part, columns if state in ("select", "values") else (), depth)

    @staticmethod
    def _state(word: str, state: str, following: str, part: Sequence[_Node]) -> str | None:  # noqa: C901, PLR0911, PLR0912
        """The clause that begins with a word; None if none does."""
        if word == "SELECT":
            return "select"
        if word == "VALUES":
            return "values"
        if word == "SET":
            return "set"
        if word == "INTO" or (word in ("INSERT", "REPLACE") and following != "INTO"):
            # of a function, of a MERGE, of MySQL
            return None if word == "INSERT" and part and state not in ("on", "") else "into"
        if word in ("FROM", "USING", "JOIN", "DELETE", "TRUNCATE", "MERGE"):
            return None if word == "FROM" and _is_distinct(part) else "from"
        if word == "UPDATE" and part and _word(part[-1]) == "KEY":  # ON DUPLICATE KEY UPDATE
            return "set"
        if word == "UPDATE":
            return "from" if following not in ("SET", "") or state == "" else "set"
        if word in _CONDITIONS:
            return "into" if word == "ON" and following in ("CONFLICT", "DUPLICATE") else "on"
        if word in ("LIMIT", "OFFSET", "FETCH"):
            return "limit"
        if word in ("UNION", "EXCEPT", "INTERSECT"):
            return "set operation"
        if word == "RETURNING":
            return "returning"
        if word == "WITH" and following not in ("TIES", "ORDINALITY", "TIME"):
            return "with"
        if word in ("ORDER", "GROUP", "WINDOW", "THEN") and state != "with":
            return "on"
        return None

    def _clause(self, state: str, part: list[_Node], target: _Target, depth: int) -> None:
        if not part:
            return
        if state == "select":
            self._select(part, target, depth)
        elif state == "values":
            self._values(part, target, depth)
        elif state in ("from", "with", "into"):
            self._sources(part, depth, with_=state == "with")
        elif state == "set":
            for unit in _split(part, {","}):
                self._unit(unit, depth)
        elif state == "on":
            self.conditions(part, depth)
        elif state == "limit":
            self._each(part, Placement(plain=True))
        else:
            self._each(part, Placement())

    def _select(self, part: list[_Node], target: _Target, depth: int) -> None:
        listed = isinstance(target, list)
        for place, item in enumerate(_split(part, {","})):
            if listed and any(_word(one) == "*" or _text(one) == "*" for one in item):
                target, listed = None, False
            own = target
            if listed:
                own = target[place] if target is not None and place < len(target) else None  # type: ignore[assignment]
            if own is None:
                self._each(item, Placement())
            else:
                self._unit(item, depth, own)  # type: ignore[arg-type]

    def _values(self, part: list[_Node], target: _Target, depth: int) -> None:
        for row in part:
            if not isinstance(row, _Group):
                continue
            for place, item in enumerate(_split(row.parts, {","})):
                known = isinstance(target, list) and place < len(target)
                own = target[place] if known and target is not None else None
                if own is None:
                    self._each(item, Placement())
                else:
                    self._unit(item, depth, own)  # type: ignore[arg-type]

    def _insert_columns(self, before: list[_Node], group: _Group) -> _Target:
        self._sources(before, 0)
        if any(_word(one) in _QUERY for one in group.parts[:1]):
            self.statement(group.parts, None, 1)
            return None
        columns: list[tuple[ColumnName, ...] | None] = []
        for item in _split(group.parts, {","}):
            names = tuple(self._names(item))
            columns.append(names or None)
        return columns

    def _sources(self, part: list[_Node], depth: int, *, with_: bool = False) -> None:
        """Note tables and their aliases; what flows from a subquery here may flow anywhere."""
        for unit in _split(part, {",", *_ENDS_SOURCE}):
            words: list[str] = []
            for node in unit:
                if isinstance(node, _Group):
                    self._source_group(node, depth, nested=not with_ and not words)
                elif node.kind in (BIND, NUMBER):
                    self._note(node, Placement())
                elif (node.kind == WORD and node.upper not in _WORDS) or node.kind == NAME:
                    words.append(self._read(node))
                elif node.text == "." and words:
                    words[-1] += "."
            names = _joined(words)
            for alias in names[:2]:
                self._found.tables.setdefault(alias, set()).add(names[0])
                self._found.tables.setdefault(alias.rpartition(".")[2], set()).add(names[0])

    def _source_group(self, group: _Group, depth: int, *, nested: bool) -> None:
        if group.parts and _word(group.parts[0]) in _STATEMENTS:
            self.statement(group.parts, None, depth + 1)
        elif nested and depth < _DEEPEST:
            self._sources(group.parts, depth + 1)
        else:
            self._each([group], Placement())

    def conditions(
        self, part: Sequence[_Node], depth: int, target: tuple[ColumnName, ...] = ()
    ) -> None:
        """Read what is joined by AND, OR and commas."""
        if depth > _DEEPEST:
            self._each(part, Placement())
            return
        for unit in _split(part, {"AND", "OR", ",", "BY", "MATCHED", "THEN"}):
            rest = [one for one in unit if _word(one) not in ("NOT", "EXISTS")]
            only = rest[0] if len(rest) == 1 else None
            if isinstance(only, _Group) and only.kind == "(":
                if only.parts and _word(only.parts[0]) in _QUERY:
                    self.statement(only.parts, (), depth + 1)
                else:
                    self.conditions(only.parts, depth + 1, target)
            else:
                self._unit(unit, depth, target)

    def _unit(self, unit: Sequence[_Node], depth: int, target: tuple[ColumnName, ...] = ()) -> None:
        """One comparison or assignment: all values in it belong to all columns in it."""
        names = tuple(dict.fromkeys((*target, *self._names(unit))))
        self._bind_unit(unit, names, depth)

    def _bind_unit(
        self,
        unit: Sequence[_Node],
        names: tuple[ColumnName, ...],
        depth: int,
        *,
        secret: bool = False,
        called: bool = False,
    ) -> None:
        known = bool(names) and ANY_COLUMN not in names
        placement = Placement(names, known=known, secret=secret)
        asks = any(
            isinstance(one, _Group) and one.parts and _word(one.parts[0]) in _QUERY for one in unit
        )
        literal = placement if names or called or asks else Placement(plain=True)
        previous = ""
        for node in unit:
            if isinstance(node, _Group):
                hides = secret or is_secret_function(previous)
                if depth > _DEEPEST:
                    self._each([node], Placement())
                elif node.parts and _word(node.parts[0]) in _QUERY:
                    self.statement(node.parts, names or None, depth + 1)
                else:
                    self._bind_unit(
                        node.parts, names, depth + 1, secret=hides, called=called or bool(previous)
                    )
            else:
                self._note(node, literal if node.kind == NUMBER else placement)
            previous = node.text if isinstance(node, Token) and node.kind == WORD else ""

    def _names(self, unit: Sequence[_Node], depth: int = 0) -> Iterator[ColumnName]:
        """The columns in a unit; of its subqueries those that they return."""
        previous: list[str] = []
        for place, node in enumerate(unit):
            following = unit[place + 1] if place + 1 < len(unit) else None
            if isinstance(node, _Group):
                if depth <= _DEEPEST:
                    before = _word(unit[place - 1]) if place else ""
                    yield from self._names_in_group(node, before, depth + 1)
                continue
            if node.kind == LITERAL and place and _text(unit[place - 1]).startswith(("->", "#>")):
                # a path in a document
                for name in re.findall(r"\w+", node.text):
                    yield ColumnName("", name)
            if node.kind == NAME or (node.kind == WORD and node.upper not in _WORDS):
                name = self._read(node)
                if _text(following) == ".":
                    previous.append(name)
                    continue
                called = isinstance(following, _Group) and following.kind == "("
                typed = place and _text(unit[place - 1]) in ("::", "AS", "as")
                if not called and not typed:
                    yield ColumnName(".".join(previous), name)
                previous = []

    def _names_in_group(self, group: _Group, before: str, depth: int) -> Iterator[ColumnName]:
        if not group.parts or _word(group.parts[0]) not in _QUERY:
            yield from self._names(group.parts, depth)
        elif before != "EXISTS":
            yield from self._returned(group.parts, depth)

    def _returned(self, query: Sequence[_Node], depth: int) -> Iterator[ColumnName]:
        """The columns that a query returns."""
        selects = False
        part: list[_Node] = []
        for place, node in enumerate(query):
            word = _word(node)
            if word == "SELECT":
                selects, part = True, []
            elif (
                selects
                and word in _AFTER_SELECT
                and not (word == "FROM" and _is_distinct(query[:place]))
            ):
                selects = False
                yield from self._returned_by(part, depth)
            elif word in ("VALUES", "TABLE"):
                yield ANY_COLUMN
            elif selects:
                part.append(node)
        if selects:
            yield from self._returned_by(part, depth)

    def _returned_by(self, part: Sequence[_Node], depth: int) -> Iterator[ColumnName]:
        for item in _split(part, {","}):
            if _text(item[-1]) == "*":
                yield ANY_COLUMN
            yield from self._names(item, depth)

    def _each(self, nodes: Sequence[_Node], placement: Placement) -> None:
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if isinstance(node, _Group):
                waiting += node.parts
            else:
                self._note(node, placement)

    def _note(self, token: Token, placement: Placement) -> None:
        if token.kind == BIND:
            known = self._found.binds.get(token.text)
            self._found.binds[token.text] = placement if known is None else _both(known, placement)
        elif token.kind == NUMBER:
            self._found.numbers[token.start] = placement

    def _read(self, token: Token) -> str:
        folds = self._style.folds and token.kind == WORD
        return token.text.lower() if folds else token.text


def _both(one: Placement, other: Placement) -> Placement:
    """A placeholder that stands in two places belongs to the columns of both."""
    return Placement(
        tuple(dict.fromkeys(chain(one.columns, other.columns))),
        known=(one.known or one.plain) and (other.known or other.plain),
        plain=one.plain and other.plain,
        secret=one.secret or other.secret,
    )


def _split(nodes: Sequence[_Node], at: set[str]) -> Iterator[list[_Node]]:
    part: list[_Node] = []
    between = False
    for node in nodes:
        word = _word(node)
        if word == "BETWEEN":
            between = True
        elif word == "AND" and between:
            between = False
            continue
        if word in at:
            if part:
                yield part
            part = []
        else:
            part.append(node)
    if part:
        yield part


def _joined(words: list[str]) -> list[str]:
    names: list[str] = []
    for word in words:
        if names and names[-1].endswith("."):
            names[-1] += word
        else:
            names.append(word)
    return names


def _is_distinct(part: Sequence[_Node]) -> bool:
    """Whether FROM belongs to IS [NOT] DISTINCT FROM."""
    return bool(part) and _word(part[-1]) == "DISTINCT"


def _word(node: _Node | None) -> str:
    return node.upper if isinstance(node, Token) else ""


def _text(node: _Node | None) -> str:
    return node.text if isinstance(node, Token) else ""
