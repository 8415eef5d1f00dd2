"""Questions to archives, in the language of searching the trail; answered by DuckDB."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from otel_audit._util.ids import time_of
from otel_audit._util.months import next_month
from otel_audit.errors import MissingExtraError
from otel_audit_postgres.archive.catalog import ListedObject
from otel_audit_postgres.archive.objects import ArchiveError, ArchiveStore
from otel_audit_postgres.query.conditions import statuses_of
from otel_audit_postgres.query.fields import FIELDS, Field
from otel_audit_postgres.query.grammar import Query, QueryValue, Term, spans
from otel_audit_postgres.query.queries import PAGE, Found
from otel_audit_postgres.rows import ADDED_IN, COLUMNS, bounded_key

SHOWN: Final = (
    "id", "occurred_at", "event_name", "outcome", "actor_id", "tenant_id", "target_type",
    "target_id", "status_code",
)  # fmt: skip
"""Columns of an answer, in their order."""

_READ: Final = (
    "id", "tenant_id", "occurred_at", "recorded_at", "event_name", "outcome", "actor_id",
    "target_type", "target_id", "status_code", "request_id", "trace_id", "action_id", "phase",
    "service_name", "transaction_outcome", "payload",
)  # fmt: skip
_DUCKDB_TYPES: Final = {
    "uuid": "BLOB", "text": "VARCHAR", "timestamptz": "TIMESTAMPTZ", "float8": "DOUBLE",
    "int4": "INTEGER", "int8": "BIGINT", "text[]": "VARCHAR[]", "bytea": "BLOB", "json": "VARCHAR",
}  # fmt: skip
_ADDED: Final = ", ".join(
    f"CAST(NULL AS {_DUCKDB_TYPES[kind]}) AS {name}" for name, kind in COLUMNS if name in ADDED_IN
)
# a file that is older than a column has NULL there, also if all files are
_FILES: Final = (
    "(SELECT * FROM read_parquet(?, filename = true, union_by_name = true) "  # noqa: S608
    f"UNION ALL BY NAME SELECT {_ADDED} WHERE false)"
    if _ADDED
    else "read_parquet(?, filename = true)"
)
_REASON: Final = "json_extract_string(TRY_CAST(payload AS JSON), '$.actor.reason')"
_WHOLE: Final = (
    f"SELECT {', '.join(_READ)}, {_REASON}, filename "  # noqa: S608 - constants
    f"FROM {_FILES} WHERE id IN (SELECT unnest(?)) ORDER BY id DESC"
)
_LONGEST_EXPRESSION: Final = 200
"""Characters of a searched text that become a regular expression."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# nothing is fetched from elsewhere: all data is in the given files
_OFFLINE: Final = (
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET TimeZone = 'UTC'",
)


@dataclass(frozen=True, slots=True)
class ArchivedHit:
    """A record that was found in an archive.

    Attributes:
        found: The record, in short, as the trail itself gives it.
        payload: Its complete text, as it was hashed.
        month: The archived month.
        key: The object that it is in.
    """

    found: Found
    payload: str
    month: date
    key: str

    def as_json(self) -> dict[str, Any]:
        """The values for JSON, with the payload."""
        return {
            **{name: getattr(self.found, name) for name in SHOWN}, "id": str(self.found.id),
            "month": f"{self.month:%Y-%m}", "object": self.key, "payload": self.payload,
        }  # fmt: skip


def query_archives(  # noqa: PLR0913 - each a choice of its own
    archive: ArchiveStore,
    objects: Sequence[ListedObject],
    query: Query,
    *,
    limit: int = PAGE,
    now: datetime | None = None,
    tenants: Collection[str] | None = None,
    before: uuid.UUID | None = None,
    record_id: uuid.UUID | None = None,
) -> list[ArchivedHit]:
    """Look for archived records, the newest first. Blocks: an event loop gives it to a thread.

    Args:
        archive: Where they are.
        objects: Which files there are.
        query: What is looked for.
        limit: Records at most.
        now: What relative times are counted from.
        tenants: Only records of these; None: of all, and those without a tenant.
        before: Only records with lower ids, for the next page.
        record_id: This one alone.

    Raises:
        ArchiveError: A file is gone or cannot be read.
        MissingExtraError: `duckdb` is not installed.
    """
    try:
        import duckdb
    except ImportError as missing:
        raise MissingExtraError("a question to archives", "archive") from missing
    asked = _Conditions(now or datetime.now(UTC))
    for term in query.terms:
        asked.add(term)
    asked.narrow(tenants, before, record_id)
    wanted = [one for one in objects if not one.is_removed and asked.may_be_in(one.month)]
    if not wanted:
        return []
    found: list[ArchivedHit] = []
    with contextlib.ExitStack() as stack:
        stack.callback(archive.tidy)
        connection: Any = stack.enter_context(contextlib.closing(duckdb.connect(":memory:")))
        try:
            for statement in _OFFLINE:
                connection.execute(statement)
            for part in _newest_first(wanted):
                found += _found_in(connection, archive, part, asked, limit - len(found))
                if len(found) >= limit:
                    break
        except duckdb.Error as error:
            raise ArchiveError(f"{archive.name} cannot be asked ({type(error).__name__})") from None
    return found


def _newest_first(objects: Sequence[ListedObject]) -> Iterator[list[ListedObject]]:
    """The objects of one month, then of the two before it, of the four before those, and so on.

    The id decides the month, so that what is found in a later one comes before all of an earlier
    one, which is then not even fetched.
    """
    by_month = sorted(objects, key=lambda one: one.month, reverse=True)
    months = [[*of] for _, of in itertools.groupby(by_month, key=lambda one: one.month)]
    begin, count = 0, 1
    while begin < len(months):
        yield [one for of in months[begin : begin + count] for one in of]
        begin, count = begin + count, count * 2


def _found_in(
    connection: Any,
    archive: ArchiveStore,
    objects: Sequence[ListedObject],
    asked: _Conditions,
    limit: int,
) -> list[ArchivedHit]:
    with contextlib.ExitStack() as stack:
        files = {
            str(stack.enter_context(archive.copy(one.entry.key, one.entry.sha256))): one
            for one in objects
        }  # fmt: skip
        # which records first: their texts are read for those alone
        rows = connection.execute(asked.statement(limit), [[*files], *asked.values]).fetchall()
        if not rows:
            return []
        chosen = {(bytes(row[0]), row[1]) for row in rows}
        whole = connection.execute(
            _WHOLE, [sorted({row[1] for row in rows}), [row[0] for row in rows]]
        ).fetchall()
        return [_hit(row, files[row[-1]]) for row in whole if (bytes(row[0]), row[-1]) in chosen][
            :limit
        ]


def _hit(row: Sequence[Any], listed: ListedObject) -> ArchivedHit:
    values = dict(zip(_READ, row, strict=False))
    payload = values.pop("payload")
    moment = values["occurred_at"]
    return ArchivedHit(
        Found(
            **{
                **values,
                "id": uuid.UUID(bytes=bytes(values["id"])),
                # one that no datetime can hold was archived as unknown
                "occurred_at": _EPOCH if moment is None else moment.astimezone(UTC),
                "recorded_at": values["recorded_at"].astimezone(UTC),
            },
            actor_reason=row[len(_READ)],
        ),
        payload,
        listed.month,
        listed.entry.key,
    )


class _Conditions:
    """A query as SQL for DuckDB; nothing of its text is in it but as a value."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self.parts: list[str] = []
        self.values: list[Any] = []
        self._since: datetime | None = None
        self._until: datetime | None = None

    def add(self, term: Term) -> None:
        """Add a condition."""
        if term.field is None:
            escaped = json.dumps(term.values[0].text, ensure_ascii=False)[1:-1]
            # an expression that ignores case is matched three times as fast as a text is lowered;
            # AND would do both for every row
            likely = f"regexp_matches(payload, {self._bind(_any_case(escaped))}, 'i')"
            exact = f"contains(lower(payload), lower({self._bind(escaped)}))"
            parts = [f"CASE WHEN {likely} THEN {exact} ELSE false END"]
        else:
            known = FIELDS[term.field]
            if known.kind == "time" and not term.negated and len(term.values) == 1:
                self._narrow(term.values[0])
            parts = [_KINDS[known.kind](self, known, value) for value in term.values]
        condition = f"({' OR '.join(parts)})"
        self.parts.append(
            f"NOT coalesce({condition}, false)" if term.negated else f"coalesce({condition}, false)"
        )

    def statement(self, limit: int) -> str:
        """The matching records, newest first: ids and files."""
        return (
            f"SELECT id, filename FROM {_FILES} "  # noqa: S608 - bound
            f"WHERE {' AND '.join(self.parts) or 'true'} ORDER BY id DESC LIMIT {limit:d}"
        )

    def narrow(
        self,
        tenants: Collection[str] | None,
        before: uuid.UUID | None,
        record_id: uuid.UUID | None,
    ) -> None:
        """Add conditions of the caller."""
        if tenants is not None:
            self.parts.append(f"list_contains({self._bind([*tenants])}, tenant_id)")
        if before is not None:
            self.parts.append(f"id < {self._bind(before.bytes)}")
            last = _time_of(before)
            self._until = last if self._until is None else min(last, self._until)
        if record_id is not None:
            self.parts.append(f"id = {self._bind(record_id.bytes)}")
            # one that tells no time is nowhere
            self._since = self._until = _time_of(record_id)

    def may_be_in(self, month: date) -> bool:
        """Whether a month can have records of the requested time.

        The id decides the month; it is made when an action begins: a long action is of the
        month before, so that one day is added.
        """
        begin = datetime(month.year, month.month, 1, tzinfo=UTC)
        end = next_month(begin) + timedelta(days=1)
        return (self._until is None or begin <= self._until) and (
            self._since is None or end > self._since
        )

    def _narrow(self, value: QueryValue) -> None:
        if value.operator != "any":
            self._since, self._until = spans(value, self._now)

    def _bind(self, value: Any) -> str:
        self.values.append(value)
        return "?"

    def compared(self, column: str, value: QueryValue) -> str:
        """A text, by its value, its beginning, or that it is there at all."""
        if value.operator == "any":
            return f"({column} IS NOT NULL AND {column} <> '')"
        if value.operator == "prefix":
            return f"starts_with({column}, {self._bind(value.text)})"
        return f"{column} = {self._bind(bounded_key(value.text))}"

    def path(self, known: Field, value: QueryValue) -> str:
        """The path or its route."""
        return f"({self.compared(known.column, value)} OR {self.compared('http_route', value)})"

    def text(self, known: Field, value: QueryValue) -> str:
        """A column."""
        return self.compared(known.column, value)

    def payload(self, known: Field, value: QueryValue) -> str:
        """A text in the payload."""
        way = f"'$.{known.column}'"
        return self.compared(f"json_extract_string(TRY_CAST(payload AS JSON), {way})", value)

    def status(self, known: Field, value: QueryValue) -> str:
        """A status or a span of them."""
        if value.operator == "any":
            return f"{known.column} IS NOT NULL"
        low, high = statuses_of(value.text)
        if value.operator == "..":
            high = statuses_of(value.end)[1]
        if value.operator in {"=", ".."}:
            return f"{known.column} BETWEEN {self._bind(low)} AND {self._bind(high)}"
        bound = high if value.operator in {">", "<="} else low
        return f"{known.column} {value.operator} {self._bind(bound)}"

    def time(self, known: Field, value: QueryValue) -> str:
        """A time or a span."""
        if value.operator == "any":
            return "true"
        since, until = spans(value, self._now)
        parts = []
        if since is not None:
            parts.append(f"{known.column} >= {self._bind(since)}")
        if until is not None:
            parts.append(f"{known.column} < {self._bind(until)}")
        return f"({' AND '.join(parts) or 'true'})"

    def target(self, known: Field, value: QueryValue) -> str:
        """A type, or a type and an id."""
        if value.operator == "any":
            return f"{known.column} IS NOT NULL"
        kind, colon, key = value.text.partition(":")
        by_type = f"target_type = {self._bind(bounded_key(kind))}"
        if not colon:
            return by_type
        return f"({by_type} AND {known.column} = {self._bind(bounded_key(key))})"

    def entity(self, known: Field, value: QueryValue) -> str:
        """The condition on the entity."""
        if value.operator == "any":
            return f"len({known.column}) > 0"
        return f"list_contains({known.column}, {self._bind(bounded_key(value.text))})"

    def changed(self, known: Field, value: QueryValue) -> str:
        """A column that changed."""
        document = "TRY_CAST(payload AS JSON)"
        if value.operator == "any":
            return f"json_array_length({document}, '$.{known.column}') > 0"
        if '"' in value.text:
            return "false"  # no path can name it
        way = self._bind(f'$.{known.column}[*].values."{value.text}"')
        return f"len(json_extract({document}, {way})) > 0"


def _time_of(record_id: uuid.UUID) -> datetime:
    """A record's time by its id; the end of the calendar if the id has none."""
    try:
        return time_of(record_id)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def _any_case(text: str) -> str:
    """A regular expression for at least what is the same text in lower case."""
    # its own lower case is "i", and no expression knows that
    return re.escape(text[:_LONGEST_EXPRESSION]).replace("i", "[iİ]")


_KINDS: Final[dict[str, Callable[[_Conditions, Field, QueryValue], str]]] = {
    "text": _Conditions.text,
    "path": _Conditions.path,
    "payload": _Conditions.payload,
    "status": _Conditions.status,
    "time": _Conditions.time,
    "target": _Conditions.target,
    "entity": _Conditions.entity,
    "changed": _Conditions.changed,
}
