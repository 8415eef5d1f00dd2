"""A query as SQL: conditions on columns, and conditions that have to read the payload."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from otel_audit_postgres.query.fields import FIELDS, Field
from otel_audit_postgres.query.grammar import Query, QueryValue, Term, spans
from otel_audit_postgres.rows import bounded_key

# json may hold escapes that stand for no text, and to read any part of such a payload is an error;
# few texts have any escape, and to look for the start of one is quicker than the pattern
READABLE: Final = (
    r"(strpos(payload::text, '\u') = 0 OR payload::text !~ '\\u(0000|[dD][89a-fA-F])')"
)

EITHER: Final = "actor or email"
"""A field that nobody can write: actors of whom some are named by id and others by e-mail."""
_EITHER: Final = Field(EITHER, "either", "email", "", "")


@dataclass
class Conditions:
    """A query's conditions for the database.

    Attributes:
        columns: Conditions on columns, which indexes may serve.
        payload: Conditions on the payload: the caller must bound how many records are read.
        values: What stands for ``$1``, ``$2`` …
        since: From when on, if the query says so.
        until: Before when.
        entity: Whether ids come from the index on entities.
    """

    columns: list[str] = field(default_factory=list)
    payload: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    since: datetime | None = None
    until: datetime | None = None
    entity: bool = False

    def bind(self, value: Any) -> str:
        """Add a value; its placeholder."""
        self.values.append(value)
        return f"${len(self.values)}"


def conditions_of(query: Query, now: datetime) -> Conditions:
    """Translate a query.

    Args:
        query: What is looked for.
        now: What relative times are counted from, aware.

    Returns:
        Its conditions; nothing of the query's text is in them but as a value.
    """
    found = Conditions()
    for term in query.terms:
        if term.field is None:
            _add(found.payload, _text(found, term.values[0]), term)
            continue
        known = _EITHER if term.field == EITHER else FIELDS[term.field]
        if known.kind == "time" and not term.negated and len(term.values) == 1:
            _narrow(found, term.values[0], now)
        parts = [_condition(found, known, value, now) for value in term.values]
        place = found.payload if known.reads_payload else found.columns
        _add(place, f"({' OR '.join(parts)})", term)
        found.entity = found.entity or (known.kind == "entity" and not term.negated)
    return found


def _add(place: list[str], condition: str, term: Term) -> None:
    # what is unknown is not it
    place.append(f"NOT coalesce({condition}, false)" if term.negated else condition)


def _narrow(found: Conditions, value: QueryValue, now: datetime) -> None:
    """Remember the bounds of time: the ids of that time are walked."""
    if value.operator == "any":
        return
    since, until = spans(value, now)
    if since is not None:
        found.since = since if found.since is None else max(found.since, since)
    if until is not None:
        found.until = until if found.until is None else min(found.until, until)


def _condition(found: Conditions, known: Field, value: QueryValue, now: datetime) -> str:
    return _KINDS[known.kind](found, known, value, now)


def _column(found: Conditions, known: Field, value: QueryValue, _: datetime) -> str:
    return _compared(found, known.column, value)


def _compared(found: Conditions, column: str, value: QueryValue) -> str:
    if value.operator == "any":
        # the store writes '' for the tenant that is none
        return f"({column} IS NOT NULL AND {column} <> '')"
    if value.operator == "prefix":
        return f"starts_with({column}, {found.bind(value.text)}::text)"
    return f"{column} = {found.bind(bounded_key(value.text))}::text"


def _path(found: Conditions, known: Field, value: QueryValue, _: datetime) -> str:
    parts = (_compared(found, column, value) for column in (known.column, "http_route"))
    return f"({' OR '.join(parts)})"


def _payload(found: Conditions, known: Field, value: QueryValue, _: datetime) -> str:
    return _compared(found, _place(known.column), value)


def _either(found: Conditions, known: Field, value: QueryValue, now: datetime) -> str:
    by_id, by_email = FIELDS["actor"], FIELDS[known.column]
    return f"({_column(found, by_id, value, now)} OR {_payload(found, by_email, value, now)})"


def _place(dotted: str) -> str:
    """A text in the payload; null where it cannot be read."""
    *way, last = (f"'{name}'" for name in dotted.split("."))
    steps = "".join(f" -> {name}" for name in way)
    return f"CASE WHEN {READABLE} THEN payload{steps} ->> {last} END"


def _status(found: Conditions, known: Field, value: QueryValue, _: datetime) -> str:
    column = known.column
    if value.operator == "any":
        return f"{column} IS NOT NULL"
    low, high = statuses_of(value.text)
    if value.operator == "..":
        high = statuses_of(value.end)[1]
        return f"{column} BETWEEN {found.bind(low)}::int AND {found.bind(high)}::int"
    if value.operator == "=":
        return f"{column} BETWEEN {found.bind(low)}::int AND {found.bind(high)}::int"
    bound = high if value.operator in {">", "<="} else low
    return f"{column} {value.operator} {found.bind(bound)}::int"


def statuses_of(text: str) -> tuple[int, int]:
    """The lowest and highest status of ``404`` or ``4xx``; all where there is no bound."""
    if not text:
        return 0, 999
    if text.endswith("xx"):
        return int(text[0]) * 100, int(text[0]) * 100 + 99
    return int(text), int(text)


def _time(found: Conditions, known: Field, value: QueryValue, now: datetime) -> str:
    if value.operator == "any":
        return "true"
    since, until = spans(value, now)
    parts = []
    if since is not None:
        parts.append(f"{known.column} >= {found.bind(since)}::timestamptz")
    if until is not None:
        parts.append(f"{known.column} < {found.bind(until)}::timestamptz")
    return f"({' AND '.join(parts)})"


def _target(found: Conditions, known: Field, value: QueryValue, _: datetime) -> str:
    if value.operator == "any":
        return f"{known.column} IS NOT NULL"
    kind, colon, key = value.text.partition(":")
    by_type = f"target_type = {found.bind(bounded_key(kind))}::text"
    if not colon:
        return by_type
    return f"({by_type} AND {known.column} = {found.bind(bounded_key(key))}::text)"


def _entity(found: Conditions, known: Field, value: QueryValue, _: datetime) -> str:
    if value.operator == "any":
        return f"cardinality({known.column}) > 0"
    about = found.bind(bounded_key(value.text))
    return f"(id, tenant_id) IN (SELECT id, tenant_id FROM audit.about({about}::text))"  # noqa: S608


def _changed(found: Conditions, known: Field, value: QueryValue, _: datetime) -> str:
    changes = (
        f"CASE WHEN {READABLE} AND json_typeof(payload -> '{known.column}') = 'array' "
        f"THEN payload -> '{known.column}' END"
    )
    if value.operator == "any":
        return f"json_array_length({changes}) > 0"
    values = "change -> 'values'"
    return (
        f"EXISTS (SELECT FROM json_array_elements({changes}) AS change "
        f"WHERE json_typeof({values}) = 'object' "
        f"AND {values} -> {found.bind(value.text)}::text IS NOT NULL)"
    )


def _text(found: Conditions, value: QueryValue) -> str:
    """A condition for free text, without case, in the stored JSON text."""
    escaped = json.dumps(value.text, ensure_ascii=False)[1:-1]
    # by bytes, where that is enough: it takes half the time
    collation = ' COLLATE "C"' if escaped.isascii() else ""
    needle = f"lower({found.bind(escaped)}::text{collation})"
    return f"strpos(lower(payload::text{collation}), {needle}) > 0"


_KINDS: Final[dict[str, Callable[[Conditions, Field, QueryValue, datetime], str]]] = {
    "text": _column,
    "path": _path,
    "payload": _payload,
    "either": _either,
    "status": _status,
    "time": _time,
    "target": _target,
    "entity": _entity,
    "changed": _changed,
}
