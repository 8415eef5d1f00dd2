"""Whichever way a row travels, by COPY or as a statement's parameters, it is the same row."""

from __future__ import annotations

import datetime as dt
import enum
import uuid

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from otel_audit_postgres import PostgresSink, copy_format
from otel_audit_postgres import sink as sink_module
from otel_audit_postgres.rows import COLUMNS, LONGEST_KEY, projections
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.record import Actor, Change, ErrorInfo, Received, Request, Response, Source, Target
from otel_audit.record import Tenant as TenantOf

NAMES = ", ".join(name for name, _ in COLUMNS)
WHOLE = f"SELECT id, ROW({NAMES})::text AS whole FROM audit.audit_logs WHERE id = ANY($1::uuid[])"


class Color(str, enum.Enum):  # noqa: UP042 - str() of it is its name, as of many in use
    """A kind of text whose name is not what it says."""

    RED = "red"


texts = (
    st.text(st.characters(exclude_categories=[]), max_size=8)
    | st.sampled_from(
        ['"', "\\", "{", ",", "NULL", " ", "", "\x00", "\ud800", "\U0010ffff", "'; --", "\t\n\r"]
    )
    | st.sampled_from(["ä", "x", "\U0001f600"]).flatmap(
        lambda letter: st.sampled_from([1, LONGEST_KEY, LONGEST_KEY + 1, 3000]).map(
            lambda size: letter * size
        )
    )
    | st.just(Color.RED)
)
maybe_texts = st.none() | texts
numbers = st.sampled_from(
    [0, -1, 1, 999, -(2**31), 2**31 - 1, 2**31, 2**63 - 1, -(2**63), 2**63, -(10**18), 10**30]
) | st.integers(-(2**70), 2**70)
keys = st.dictionaries(
    texts,
    texts
    | st.none()
    | numbers
    | st.booleans()
    | st.floats()
    | st.uuids()
    | st.binary(max_size=3)
    | st.just(dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC))
    | st.just(dt.date(2026, 1, 2)),
    max_size=3,
)
odd_changes = st.builds(
    Change,
    operation=st.sampled_from(["insert", "update", "delete"]),
    entity=texts,
    table=texts,
    key=keys,
    related=st.lists(texts, max_size=3).map(tuple),
)


@st.composite
def odd_records(draw):
    """A record of the usual shape with the oddest things in every column's field."""
    return a_record(
        record_id=uuid7(),
        action_id=draw(texts),
        event_name=draw(texts),
        action=draw(texts),
        occurred_at=draw(numbers),
        duration=draw(numbers),
        actor=Actor(id=draw(texts), type="user", role=draw(maybe_texts)),
        tenant=draw(st.none() | st.builds(TenantOf, id=texts)),
        target=draw(st.none() | st.builds(Target, type=texts, id=maybe_texts)),
        source=draw(
            st.none()
            | st.builds(Source, address=maybe_texts, user_agent=maybe_texts, session_id=maybe_texts)
        ),
        request=draw(
            st.none()
            | st.builds(
                Request, id=maybe_texts, method=maybe_texts, route=maybe_texts, path=maybe_texts
            )
        ),
        response=draw(st.none() | st.builds(Response, status_code=st.none() | numbers)),
        error=draw(st.none() | st.builds(ErrorInfo, type=texts)),
        changes=draw(st.lists(odd_changes, max_size=3).map(tuple)),
        trace_id=draw(maybe_texts),
        span_id=draw(maybe_texts),
        producer_id=draw(st.none() | st.text("äx", max_size=9)),
        sequence_number=draw(st.none() | st.integers(0, 2**53)),
        schema_version=draw(texts),
        resource=draw(st.sampled_from([{}, {"service.name": 5}, {"service.name": Color.RED}])),
        received=draw(
            st.none()
            | st.builds(
                Received,
                by=texts,
                hash=st.none() | st.binary(min_size=32, max_size=32).map(bytes.hex),
            )
        ),
    )


@pytest.fixture
async def other_store(postgres, audit_template):
    """A second store, as empty as the first."""
    name = f"audit_{uuid.uuid4().hex[:12]}"
    await postgres.execute(f"CREATE DATABASE {name} TEMPLATE {audit_template}")
    yield postgres.dsn(name)
    await postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def written(dsn, batch, smallest_load, monkeypatch):
    """Write a batch one way; the rows as the server spells them, and what follows from each."""
    monkeypatch.setattr(sink_module, "SMALLEST_LOAD", smallest_load)
    sink, connection = PostgresSink(dsn), await asyncpg.connect(dsn)
    try:
        outcome = await sink.write(batch)
        loaded = await sink._connection.fetchval("SELECT to_regclass('pg_temp.otel_audit_batch')")
        assert bool(loaded) == (smallest_load == 1)
        ids = [record.record_id for record in batch]
        whole = {row["id"]: row["whole"] for row in await connection.fetch(WHOLE, ids)}
        rows = await connection.fetch(
            "SELECT * FROM audit.audit_logs WHERE id = ANY($1::uuid[])", ids
        )
    finally:
        await sink.close()
        await connection.close()
    return outcome, whole, rows


class TestBothWays:
    @settings(
        suppress_health_check=list(HealthCheck),
        max_examples=25,
        phases=[Phase.explicit, Phase.generate],
    )
    @given(batch=st.lists(odd_records(), min_size=1, max_size=6))
    async def test_store_the_same_row(self, audit_store, other_store, monkeypatch, batch):
        """Every column, as the server itself spells it; and all of it follows from the payload."""
        outcome, whole, rows = await written(audit_store, batch, 1, monkeypatch)
        other_outcome, other_whole, _ = await written(other_store, batch, 10**6, monkeypatch)
        assert outcome == other_outcome
        assert outcome.stored == len(batch) == len(whole)
        assert whole == other_whole
        for row in rows:
            expected = projections(row["payload"])
            expected["payload"] = expected["payload"].decode()
            assert {name: row[name] for name in expected} == expected

    async def test_send_a_batch_of_several_pieces_whole(
        self, audit_store, other_store, monkeypatch
    ):
        """Rows smaller and larger than a piece, and one on the border."""

        monkeypatch.setattr(copy_format, "PIECE", 5_000)
        sizes = (1, 6_000, 20_000, *range(3_000, 5_000, 50))
        batch = [a_record(record_id=uuid7(), metadata={"x": "x" * size}) for size in sizes]
        _, whole, _ = await written(audit_store, batch, 1, monkeypatch)
        _, other_whole, _ = await written(other_store, batch, 10**6, monkeypatch)
        assert whole == other_whole
        assert len(whole) == len(batch)
