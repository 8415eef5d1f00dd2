"""What rows can hold comes into the archive as it is: each column, the exact text, and NULL as NULL."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime

import pytest
from otel_audit_postgres import maintain
from otel_audit_postgres.archive import write_month
from otel_audit_postgres.archive.parquet_files import read_rows
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.rows import COLUMNS
from otel_audit_postgres.sink import PostgresSink
from retention_trail import JANUARY, ids_of
from strategies import a_record

from otel_audit.record import Actor, Request, Source, Target, Tenant

TEXTS = (
    "\x01", "\x02", "a\x01b\x02c", "\x01\x01", '"', '""', "\\.", "\\N", "\n", "\r\n", "a\nb\r", ",",
    " ", "NULL", "\t", "\x7f", "é\u2028\U0001f600", "\ufeff", "x" * 300, "'; --", "{1,2}", "~p1.x",
)  # fmt: skip


@pytest.fixture
async def hostile(trail):
    """A January of records with such texts in every column that takes them."""
    sink = PostgresSink(trail.dsn)
    records = [
        a_record(
            record_id=record_id, occurred_at=int(record_id[:8] + record_id[9:13], 16) * 10**6,
            event_name=f"order.{text}", actor=Actor(id=text, type="user", role=text),
            tenant=Tenant(id=text), target=Target(type=text, id=text),
            source=Source(address=text, user_agent=text, session_id=text),
            request=Request(method="GET", route=text, path=text, id=text),
            metadata={text: [text, None, {}]}, duration=1,
        )
        for text, record_id in zip(TEXTS, ids_of(JANUARY, len(TEXTS)), strict=True)
    ]  # fmt: skip
    # empty texts beside what is not known
    bare = [
        a_record(
            record_id=record_id, occurred_at=moment * 10**9, actor=Actor(id="", type="user"),
            source=Source(address="", user_agent=None, session_id=""), target=None,
            request=Request(method="", route="", path=""), duration=duration,
        )
        for record_id, moment, duration in zip(
            [str(uuid.UUID(int=uuid.UUID(one).int + 5)) for one in ids_of(JANUARY, 4)],
            (1_736_500_000, 1_736_500_001, 1_736_500_002, 1_736_500_003),
            (0, 1, 2**62, 3),
            strict=True,
        )
    ]  # fmt: skip
    written = await sink.write([*records, *bare])
    assert written.stored == len(records) + len(bare)
    await sink.close()
    await maintain(trail.dsn, months=[JANUARY])
    return trail


async def test_every_column_is_what_the_store_has(hostile, connection):
    """By value, after COPY, Arrow and Parquet; and the archive verifies deeply, columns too."""
    names = [name for name, _ in COLUMNS]
    await connection.set_type_codec(
        "json", encoder=str, decoder=str, schema="pg_catalog", format="text"
    )
    stored = {
        row["id"].bytes: {**dict(row), "id": row["id"].bytes}
        for row in await connection.fetch(f"SELECT {', '.join(names)} FROM audit.audit_logs")
    }
    await hostile.seal()
    done = await hostile.retain()
    assert done.dropped == {"2025-01": len(stored)}
    archived = {}
    for key in hostile.archive.list_keys():
        if key.endswith(".parquet"):
            for row in read_rows(hostile.archive._folder / key):
                archived[row["id"]] = {name: row[name] for name in names}
    assert archived == stored
    assert {type(row["entities"]) for row in archived.values()} == {list}
    await hostile.seal()
    report, _ = await hostile.check_all()
    assert report.problems == ()


async def test_rows_that_were_inserted_by_hand_are_archived_as_they_are(hostile, connection):
    """Raw line ends in the text, times that no datetime holds, infinite durations, empty lists."""
    text = '{\n "a" :\r\n\t"b\\u0001" }\n'
    odd = uuid.UUID(int=uuid.UUID(ids_of(JANUARY, 1)[0]).int + 77)
    async with connection.transaction():
        await connection.execute(
            "ALTER TABLE audit.audit_logs DISABLE TRIGGER USER",
        )
        await connection.execute(
            "INSERT INTO audit.audit_logs (id, action_id, phase, tenant_id, occurred_at, "
            "duration_ms, event_name, action, outcome, actor_id, actor_type, transaction_outcome, "
            "entities, schema_version, payload, content_hash, recorded_at) VALUES ($1, 'x', '', '', "
            "'-infinity', 'Infinity', 'odd', '', '', '', '', '', '{}', '', $2::text::json, "
            "sha256(convert_to($2, 'UTF8')), '2025-01-10 00:00:00.000001+00')", odd, text,
        )  # fmt: skip
        for trigger in await connection.fetch(
            "SELECT quote_ident(tgname) FROM pg_trigger "
            "WHERE tgrelid = 'audit.audit_logs'::regclass AND NOT tgisinternal"
        ):
            await connection.execute(
                f"ALTER TABLE audit.audit_logs ENABLE ALWAYS TRIGGER {trigger[0]}"
            )
        await connection.execute(
            "INSERT INTO audit.ledger_queue (id, tenant_id, content_hash, recorded_at) "
            "SELECT id, tenant_id, content_hash, recorded_at FROM audit.audit_logs WHERE id = $1", odd,
        )  # fmt: skip
    await hostile.seal()
    await hostile.retain()
    (row,) = [
        row
        for key in hostile.archive.list_keys()
        if key.endswith(".parquet")
        for row in read_rows(hostile.archive._folder / key)
        if row["id"] == odd.bytes
    ]
    assert (row["payload"], row["occurred_at"], row["entities"]) == (text, None, [])
    assert row["duration_ms"] == float("inf")
    assert row["recorded_at"] == int(datetime(2025, 1, 10, tzinfo=UTC).timestamp()) * 10**6 + 1
    assert row["phase"] == ""
    assert json.loads(row["payload"]) == {"a": "b\x01"}


async def written(dsn, folder):
    """January's file, and how often its partition was read as a whole for it."""
    folder.mkdir()
    async with (
        ledger_queries.opened(dsn, "write a month") as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        month = await write_month.write_month(connection, JANUARY, folder, lambda *_: "default")
        scans = await connection.fetchval(
            "SELECT seq_scan FROM pg_stat_xact_all_tables WHERE relname = 'audit_logs_2025_01'"
        )
    return month.files[0], scans


async def test_rows_that_do_not_fit_into_memory_come_in_parts(hostile, tmp_path, monkeypatch):
    """The same bytes, whether all payloads come at once, some, or one at a time."""
    await hostile.seal()
    whole, _ = await written(hostile.dsn, tmp_path / "whole")
    for most in (3000, 1):
        monkeypatch.setattr(write_month, "BYTES_AT_ONCE", most)
        part, _ = await written(hostile.dsn, tmp_path / f"at-most-{most}")
        assert (part.rows, part.sha256) == (whole.rows, whole.sha256)


async def test_a_month_is_not_read_as_a_whole_for_each_part(hostile, tmp_path, monkeypatch):
    """Also without statistics; to count its rows it may be."""
    await hostile.seal()
    monkeypatch.setattr(write_month, "ROWS_AT_ONCE", 1)
    file, scans = await written(hostile.dsn, tmp_path / "by-index")
    assert file.rows > 10
    assert scans <= 1
