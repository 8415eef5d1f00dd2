"""The store's quarantine: told in the trail, so sealed; stored after all, or let rest."""

from __future__ import annotations

import asyncio
import json
import uuid

import asyncpg
import msgspec
import pytest
from click.testing import CliRunner
from otel_audit_postgres import PostgresSink
from otel_audit_postgres.ledger.sealer import Sealer
from otel_audit_postgres.ledger.verify.verify import verify
from otel_audit_postgres.quarantine_review import quarantined
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.cli.quarantine import quarantine
from otel_audit.delivery.sink import Refused


@pytest.fixture
async def aside(audit_store):
    """Two rows: a sound record that an earlier version refused, and what is none."""
    record = a_record(record_id=uuid7())
    sink = PostgresSink(audit_store)
    await sink.quarantine([
        Refused(record.record_id, msgspec.json.encode(record), "CheckViolationError 23514"),
        Refused("no-record", b"what is this", "no record"),
    ])  # fmt: skip
    await sink.close()
    return record


async def seal(dsn: str) -> None:
    sealer = Sealer(dsn)
    await sealer.seal()
    await sealer.close()


async def run(*arguments: str):
    return await asyncio.to_thread(CliRunner().invoke, quarantine, arguments)


async def test_what_is_there_is_sealed(audit_store, admin, aside):
    """A record of the trail names it; once taken away or changed, verify says so."""
    await seal(audit_store)
    payload = await admin.fetchval(
        "SELECT payload FROM audit.audit_logs WHERE event_name = 'audit.records.quarantined'"
    )
    rows = await admin.fetch("SELECT encode(content_hash, 'hex') FROM audit.quarantine ORDER BY 1")
    assert json.loads(payload)["metadata"]["content_hashes"] == [row[0] for row in rows]
    await seal(audit_store)
    assert await admin.fetchval("SELECT count(*) FROM audit.audit_logs") == 1
    assert (await verify(audit_store)).ok
    await admin.execute("ALTER TABLE audit.quarantine DISABLE TRIGGER refuse_change")
    await admin.execute("DELETE FROM audit.quarantine WHERE record_id = 'no-record'")
    await admin.execute("ALTER TABLE audit.quarantine ENABLE ALWAYS TRIGGER refuse_change")
    report = await verify(audit_store)
    assert not report.ok
    assert "1 rows of audit.quarantine are gone or changed" in report.problems[0].detail


async def test_listed_retried_and_released(audit_store, admin, aside, monkeypatch):
    """What is a record is stored after all, what is none is released with a reason."""
    monkeypatch.setenv("OTEL_AUDIT_DSN", audit_store)
    listed = await run()
    assert listed.exit_code == 0, listed.output
    assert aside.record_id in listed.output
    assert "2 refused records in audit.quarantine" in listed.output
    shown = await run("--show", "no-record")
    assert "what is this" in shown.output
    tried = await run("--retry")
    assert "1 records stored, 1 refused again" in tried.output
    assert await admin.fetchval(
        "SELECT count(*) FROM audit.audit_logs WHERE id = $1", aside.record_id
    )
    assert [row.record_id for row in await quarantined(audit_store)] == ["no-record"]
    assert (await run("--release", "no-record")).exit_code != 0
    done = await run("--release", "no-record", "--because", "a test of the network")
    assert done.exit_code == 0, done.output
    assert await quarantined(audit_store) == []
    assert await admin.fetchval("SELECT in_quarantine FROM audit.exceptional_rows()") == 0
    assert await admin.fetchval("SELECT count(*) FROM audit.quarantine") == 2
    told = await admin.fetch(
        "SELECT payload -> 'metadata' ->> 'reason' FROM audit.audit_logs "
        "WHERE event_name = 'audit.record.released' ORDER BY id"
    )
    assert [row[0] for row in told] == ["otel-audit quarantine --retry", "a test of the network"]


async def test_what_cannot_be_seen_is_not_said_to_be_none(
    audit_store, admin, aside, monkeypatch, postgres
):
    """A role without the right is told so, and no number."""
    role = f"nobody_{uuid.uuid4().hex[:8]}"
    await admin.execute(f"CREATE ROLE {role} LOGIN")
    name = audit_store.partition("?")[0].rpartition("/")[2]
    monkeypatch.setenv("OTEL_AUDIT_DSN", postgres.dsn(name, role))
    listed, retried = await run(), await run("--retry")
    await admin.execute(f"DROP ROLE {role}")
    assert retried.exit_code == 1
    assert "nothing was retried" in str(retried.exception)
    assert "may not read audit.quarantine" in listed.output
    assert "refused records in audit.quarantine" not in listed.output


async def test_refusals_of_the_store_are_known_in_any_language(audit_store, admin):
    """By their SQLSTATE: no word of the server's is looked at."""
    for question, state in (
        ("SELECT audit.retire_partition('audit_logs_1999_01')", "OA002"),
        ("SELECT audit.release_quarantined('\\x00', 'stored', '')", "OA002"),
        ("SELECT audit.record_view(repeat('x', 200), '{}', 1)", "OA002"),
        ("SELECT audit.collapse_leaves(0, 0)", "OA002"),
    ):
        with pytest.raises(asyncpg.PostgresError) as raised:
            await admin.fetchval(question)
        assert raised.value.sqlstate == state
