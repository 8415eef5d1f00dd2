"""The query language: parsing text to terms, and writing terms as text."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from otel_audit.errors import InvalidInputError
from otel_audit_postgres.query.fields import FIELDS, Field
from otel_audit_postgres.query.times import parse_span

LONGEST: Final = 2_000
"""Characters of a query."""
MOST_VALUES: Final = 50
"""Values in one query: each costs the database a comparison with each record that it reads."""

Operator = Literal["=", "prefix", "any", ">=", ">", "<=", "<", ".."]

_COMPARISONS: Final[tuple[Operator, ...]] = (">=", "<=", ">", "<")
_NAME: Final = re.compile(r"-?([A-Za-z_]+):")
_SPECIAL: Final = frozenset(',"\\*')
_STATUS: Final = re.compile(r"[1-9]xx|[1-9][0-9]{2}")


class QueryError(InvalidInputError):
    """A query cannot be parsed.

    Attributes:
        column: Where, counted from 1.

    Example::

        try:
            parse("outcome:failure acter:ada")
        except QueryError as error:
            assert error.column == 17
    """

    def __init__(self, column: int, problem: str) -> None:
        """Make the message from column and problem.

        Args:
            column: Where in the query, from 1.
            problem: What is wrong there.
        """
        super().__init__(f"column {column}: {problem}")
        self.column = column


@dataclass(frozen=True, slots=True)
class QueryValue:
    """One value that is looked for.

    Attributes:
        text: As it is written, without quotes.
        operator: How it is compared; ``any``: there is a value at all.
        end: Where a span ends (``..``), included; empty: it has no end.
    """

    text: str
    operator: Operator = "="
    end: str = ""


@dataclass(frozen=True, slots=True)
class Term:
    """One condition: one of the values.

    Attributes:
        field: A name of `FIELDS`; None: free text.
        values: At least one.
        negated: That none of them is.
    """

    field: str | None
    values: tuple[QueryValue, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """A query: all terms must match. ``str`` gives its text.

    Example::

        query = parse("actor:ada outcome:failure")
        assert str(query) == "actor:ada outcome:failure"
    """

    terms: tuple[Term, ...] = ()

    def __str__(self) -> str:
        return " ".join(_written(term) for term in self.terms)

    def with_term(self, term: Term) -> Query:
        """Narrow it by one more term."""
        return self if term in self.terms else Query((*self.terms, term))

    def without(self, term: Term) -> Query:
        """Widen it by a term that it has."""
        return Query(tuple(one for one in self.terms if one != term))


def term(field: str, *values: str, negated: bool = False) -> Term:
    """Make a condition: the field has exactly one of these values."""
    return Term(field, tuple(QueryValue(text) for text in values), negated)


def parse(text: str) -> Query:
    """Read a query.

    Args:
        text: Terms with spaces between: ``field:value``, ``-field:value``, ``field:>=value``,
            ``field:a..b``, ``field:a*``, ``field:a,b`` (or), ``field:*`` (any value at all); other
            words, and what stands in quotes, are looked for in the records' text.

    Returns:
        The query. ``parse(str(query))`` is the query again.

    Raises:
        QueryError: It cannot be understood; the message has the column, and the nearest field.

    Example::

        query = parse('actor:ada event:order.* time:7d "credit note"')
    """
    if len(text) > LONGEST:
        raise QueryError(LONGEST + 1, f"a query has {LONGEST:,} characters at most")
    reader = _Reader(text)
    terms: list[Term] = []
    while reader.skip_spaces():
        terms.append(reader.term())
    if sum(len(one.values) for one in terms) > MOST_VALUES:
        raise QueryError(len(text), f"a query has {MOST_VALUES} values at most")
    return Query(tuple(terms))


@dataclass(frozen=True, slots=True)
class _Atom:
    text: str
    quoted: bool
    starred: bool


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def skip_spaces(self) -> bool:
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1
        return self._at < len(self._text)

    def term(self) -> Term:
        begin = self._at
        named = _NAME.match(self._text, self._at)
        negated = self._text.startswith("-", self._at)
        if named is None:
            self._at += negated
            if self._ends():
                raise QueryError(
                    begin + 1, "- is alone: write the term right after it, -field:value"
                )
            return Term(None, (self._text_value(),), negated)
        field = FIELDS.get(named[1].lower())
        if field is None:
            raise QueryError(named.start(1) + 1, _unknown(named[1], self._text[named.end() :]))
        self._at = named.end()
        values = [self._value(field)]
        while self._peek() == ",":
            self._at += 1
            values.append(self._value(field))
        return Term(field.name, tuple(values), negated)

    def _text_value(self) -> QueryValue:
        begin = self._at
        atom = self._atom(stop=None)
        if not atom.text:
            raise QueryError(begin + 1, 'there is nothing between the quotes: leave "" out')
        return QueryValue(atom.text + "*" * atom.starred)

    def _value(self, field: Field) -> QueryValue:
        begin = self._at
        if self._ends() or self._peek() == ",":
            example = f"{field.name}:{field.example}"
            raise QueryError(
                begin + 1, f'a value is missing: {example}, or {field.name}:"" for none'
            )
        if field.is_ordered:
            return self._ordered(field, begin)
        atom = self._atom(stop=",")
        if atom.starred and not atom.text and not atom.quoted:
            return QueryValue("", "any")
        if "*" in atom.text and not atom.quoted:
            raise QueryError(
                begin + 1, f'* is allowed only at the end; for the character itself: "{atom.text}"'
            )
        if atom.starred and not field.takes_prefix:
            raise QueryError(self._at, f"{field.name} takes no *: write the whole value")
        return QueryValue(atom.text, "prefix" if atom.starred else "=")

    def _ordered(self, field: Field, begin: int) -> QueryValue:
        for operator in _COMPARISONS:
            if self._text.startswith(operator, self._at):
                self._at += len(operator)
                return QueryValue(_checked(field, self._atom(stop=",").text, begin), operator)
        atom = self._atom(stop=",")
        if atom.starred:
            if atom.text:
                raise QueryError(self._at, f"{field.name} takes no *: write {field.example}")
            return QueryValue("", "any")
        first, dots, last = atom.text.partition("..")
        if not dots:
            return QueryValue(_checked(field, atom.text, begin))
        if not first and not last:
            raise QueryError(begin + 1, f"{field.name}: a..b needs one end at least")
        return QueryValue(
            _checked(field, first, begin) if first else "",
            "..",
            _checked(field, last, begin) if last else "",
        )

    def _atom(self, stop: str | None) -> _Atom:
        """Read a word or a quoted text, with the * behind it."""
        if self._peek() == '"':
            return self._quoted(stop)
        begin = self._at
        while not self._ends() and self._peek() != stop:
            self._at += 1
        text = self._text[begin : self._at]
        return _Atom(text.removesuffix("*"), quoted=False, starred=text.endswith("*"))

    def _quoted(self, stop: str | None) -> _Atom:
        begin = self._at
        self._at += 1
        letters: list[str] = []
        while (letter := self._peek()) != '"':
            if letter is None:
                raise QueryError(begin + 1, 'the quote has no end: add "')
            self._at += 1
            if letter == "\\":
                letter = self._peek()
                if letter is None or letter not in {'"', "\\"}:
                    raise QueryError(self._at, r'within quotes \ stands before " or \ only: \\')
                self._at += 1
            letters.append(letter)
        self._at += 1
        starred = self._peek() == "*" and stop is not None
        self._at += starred
        if not self._ends() and self._peek() != stop:
            raise QueryError(self._at + 1, "a space is missing behind the quoted text")
        return _Atom("".join(letters), quoted=True, starred=starred)

    def _peek(self) -> str | None:
        return self._text[self._at] if self._at < len(self._text) else None

    def _ends(self) -> bool:
        letter = self._peek()
        return letter is None or letter.isspace()


def _checked(field: Field, text: str, begin: int) -> str:
    """Refuse a number or time that is none, here, where its column is known."""
    if field.kind == "status" and not _STATUS.fullmatch(text):
        raise QueryError(begin + 1, f"{text[:40]!r} is not a status: 404, 5xx, >=400 or 400..499")
    if field.kind == "time":
        try:
            parse_span(text)
        except ValueError as error:
            raise QueryError(begin + 1, str(error)) from None
    return text


_KEY: Final = re.compile(r"[\w-]{1,40}(?=\s|$)")


def _unknown(name: str, value: str) -> str:
    # 0.8: a letter of five may be wrong, and another field is not suggested for any other word
    near = difflib.get_close_matches(name.lower(), FIELDS, n=1, cutoff=0.8)
    if near:
        meant = f"did you mean {near[0]}:?"
    elif re.fullmatch(r"\w{1,40}", name) and (key := _KEY.match(value)):
        # item:1 is what an entity is called
        meant = f"did you mean entity:{name}:{key[0]}?"
    else:
        meant = f"there are {', '.join(FIELDS)}"
    return f"{name[:40]}: is not a field; {meant} (put text with a colon in quotes)"


def _written(one: Term) -> str:
    sign = "-" if one.negated else ""
    if one.field is None:
        return sign + _word(one.values[0].text, alone=True)
    return f"{sign}{one.field}:{','.join(_spelled(value) for value in one.values)}"


def _spelled(value: QueryValue) -> str:
    match value.operator:
        case "any":
            return "*"
        case "prefix":
            return f"{_word(value.text)}*"
        case "..":
            return _word(f"{value.text}..{value.end}")
        case "=":
            return _word(value.text)
        case operator:
            return f"{operator}{_word(value.text)}"


def _word(text: str, *, alone: bool = False) -> str:
    """Quote a text where it would be read otherwise."""
    is_plain = (
        text
        and not _SPECIAL.intersection(text)
        and not any(letter.isspace() for letter in text)
        and not (alone and (text.startswith("-") or _NAME.match(text)))
    )
    if is_plain:
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def spans(value: QueryValue, now: datetime) -> tuple[datetime | None, datetime | None]:
    """Return between which times a value of the field ``time`` lies.

    Args:
        value: A value of it.
        now: What relative times are counted from.

    Returns:
        From when, and until before when; None: without a bound.
    """
    if value.operator == "..":
        begin = parse_span(value.text, now)[0] if value.text else None
        return begin, (_end(value.end, now) if value.end else None)
    begin, end = parse_span(value.text, now)
    match value.operator:
        case ">=":
            return begin, None
        case ">":
            return (end or begin), None
        case "<":
            return None, begin
        case "<=":
            return None, end or begin
        case _:
            return begin, end


def _end(text: str, now: datetime) -> datetime:
    begin, end = parse_span(text, now)
    return end or begin
