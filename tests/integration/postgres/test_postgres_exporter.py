"""The exporter for spans that somebody else flagged."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExportResult,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util._importlib_metadata import entry_points
from otel_audit_postgres import record_from_payload
from otel_audit_postgres import span_exporter as exporter_module
from otel_audit_postgres.span_exporter import PostgresAuditSpanExporter

from otel_audit._util import ratelimited_log
from otel_audit.errors import ConfigurationError

MANDATORY = {
    "audit.flagged": True,
    "audit.actor.id": "user-1",
    "audit.actor.type": "user",
    "audit.action": "DELETE",
    "audit.outcome": "success",
}


@pytest.fixture
def exporter(audit_store):
    ratelimited_log.forget()
    exporter = PostgresAuditSpanExporter(audit_store)
    yield exporter
    exporter.shutdown(5000)


def spans(*each):
    """Ended spans with these attributes."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "shop"}))
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("someone")
    for attributes in each:
        tracer.start_span("order.deleted", attributes=attributes).end()
    return kept.get_finished_spans()


class TestExport:
    async def test_stores_flagged_spans_and_no_others(self, exporter, admin):
        """A flagged span is a record with the span's own ids; an ordinary one is nothing."""
        given = spans(MANDATORY, {"audit.actor.id": "x"}, {})
        assert await asyncio.to_thread(exporter.export, given) is SpanExportResult.SUCCESS
        (row,) = await admin.fetch("SELECT * FROM audit.audit_logs")
        assert (row["event_name"], row["actor_id"]) == ("order.deleted", "user-1")
        assert row["trace_id"] == f"{given[0].context.trace_id:032x}"
        assert row["service_name"] == "shop"
        assert record_from_payload(row["payload"]).action == "DELETE"

    async def test_stores_once_what_comes_twice(self, exporter, admin):
        """A batch that is exported again makes no second row."""
        given = spans(MANDATORY, MANDATORY)
        for _ in range(2):
            assert await asyncio.to_thread(exporter.export, given) is SpanExportResult.SUCCESS
        assert await admin.fetchval("SELECT count(*) FROM audit.audit_logs") == 2

    async def test_keeps_incomplete_spans_aside(self, exporter, admin):
        """What lacks a mandatory attribute is in quarantine, with all it had."""
        lacking = {key: value for key, value in MANDATORY.items() if key != "audit.action"}
        wrong = MANDATORY | {"audit.actor.type": "martian", "audit.record.id": "r-1"}
        result = await asyncio.to_thread(exporter.export, spans(lacking, MANDATORY, wrong))
        assert result is SpanExportResult.SUCCESS
        rows = await admin.fetch("SELECT * FROM audit.quarantine ORDER BY reason")
        assert [row["reason"] for row in rows] == [
            "an attribute of the audit span has a wrong type or value",
            "the audit span lacks audit.action",
        ]
        assert "martian" in rows[0]["received"]
        assert rows[0]["record_id"] == "r-1"
        assert "user-1" in rows[1]["received"]
        assert await admin.fetchval("SELECT count(*) FROM audit.audit_logs") == 1

    async def test_may_be_called_by_many_threads(self, exporter, admin):
        """Exports from several threads wait for each other, and all are stored."""
        batches = [spans(*[MANDATORY] * 20) for _ in range(8)]
        results = await asyncio.gather(
            *(asyncio.to_thread(exporter.export, batch) for batch in batches)
        )
        assert set(results) == {SpanExportResult.SUCCESS}
        assert await admin.fetchval("SELECT count(*) FROM audit.audit_logs") == 160

    async def test_does_not_wait_for_a_store_that_is_not_set_up(self, database, caplog):
        """What only a person can mend is a failure at once, with the remedy in the log."""
        ratelimited_log.forget()
        exporter = PostgresAuditSpanExporter(database, timeout=30)
        begun = time.monotonic()
        result = await asyncio.to_thread(exporter.export, spans(MANDATORY))
        assert result is SpanExportResult.FAILURE
        assert time.monotonic() - begun < 25
        assert "1 audit spans were not stored" in caplog.text
        assert "otel-audit init" in caplog.text
        exporter.shutdown()

    async def test_fails_in_time_when_nobody_answers(self, caplog):
        """It tries again as long as it may, then says that nothing was stored."""
        ratelimited_log.forget()
        exporter = PostgresAuditSpanExporter("postgresql://u:hunter2@127.0.0.1:1/x", timeout=3)
        begun = time.monotonic()
        result = await asyncio.to_thread(exporter.export, spans(MANDATORY))
        assert result is SpanExportResult.FAILURE
        assert 0.2 < time.monotonic() - begun < 30
        assert "OTEL_AUDIT_DSN" in caplog.text
        assert "hunter2" not in caplog.text
        exporter.shutdown()

    async def test_gets_over_a_lost_connection(self, exporter, admin):
        """A cut connection does not cost a batch."""
        assert await asyncio.to_thread(exporter.export, spans(MANDATORY))
        await admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE application_name = 'otel-audit' AND datname = current_database()"
        )
        result = await asyncio.to_thread(exporter.export, spans(MANDATORY))
        assert result is SpanExportResult.SUCCESS
        assert await admin.fetchval("SELECT count(*) FROM audit.audit_logs") == 2

    async def test_gives_up_in_time_behind_a_lock(self, audit_store, admin):
        """A table that is locked ends in a failure, not in a thread that hangs."""
        exporter = PostgresAuditSpanExporter(audit_store, timeout=4)
        async with admin.transaction():
            await admin.execute("LOCK TABLE audit.audit_logs IN ACCESS EXCLUSIVE MODE")
            begun = time.monotonic()
            result = await asyncio.to_thread(exporter.export, spans(MANDATORY))
            assert result is SpanExportResult.FAILURE
            assert time.monotonic() - begun < 40
        exporter._timeout = 60
        assert (
            await asyncio.to_thread(exporter.export, spans(MANDATORY)) is SpanExportResult.SUCCESS
        )
        exporter.shutdown()


class TestSettings:
    async def test_come_from_the_environment(self, audit_store, admin, monkeypatch):
        """Made without arguments, under a batch processor, as OTEL_TRACES_EXPORTER does."""
        monkeypatch.setenv("OTEL_AUDIT_DSN", audit_store)
        (entry,) = entry_points(group="opentelemetry_traces_exporter", name="audit_postgres")
        exporter = entry.load()()
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(exporter))
        provider.get_tracer("t").start_span("x", attributes=MANDATORY).end()
        assert await asyncio.to_thread(provider.force_flush)
        assert await admin.fetchval("SELECT count(*) FROM audit.audit_logs") == 1
        await asyncio.to_thread(provider.shutdown)

    def test_name_the_missing_dsn(self):
        """Without a DSN the error names the setting."""
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_DSN"):
            PostgresAuditSpanExporter()

    def test_say_once_that_it_is_best_effort(self, caplog):
        """One warning a process."""
        exporter_module._best_effort_logged.clear()
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                PostgresAuditSpanExporter("postgresql://127.0.0.1:1/x").shutdown()
        assert caplog.text.count("best effort") == 1


async def waiting_for_the_lock(admin):
    """An export has come to the table that the admin has locked."""
    async with asyncio.timeout(60):
        while not await admin.fetchval(  # noqa: ASYNC110 - another session is watched
            "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
            "WHERE NOT l.granted AND d.datname = current_database()"
        ):
            await asyncio.sleep(0.01)


class TestEnd:
    async def test_flush_waits_for_what_is_under_way(self, exporter, admin):
        """It tells whether all is stored within the time it was given."""
        assert exporter.force_flush(10)
        async with admin.transaction():
            await admin.execute("LOCK TABLE audit.audit_logs IN ACCESS EXCLUSIVE MODE")
            thread = threading.Thread(target=exporter.export, args=(spans(MANDATORY),))
            thread.start()
            await waiting_for_the_lock(admin)
            assert not await asyncio.to_thread(exporter.force_flush, 100)
        assert await asyncio.to_thread(exporter.force_flush, 60_000)
        thread.join()
        assert await admin.fetchval("SELECT count(*) FROM audit.audit_logs") == 1

    async def test_shutdown_keeps_its_time(self, exporter, admin):
        """Even behind a lock it ends in time, and what follows is a failure."""
        async with admin.transaction():
            await admin.execute("LOCK TABLE audit.audit_logs IN ACCESS EXCLUSIVE MODE")
            results = []
            thread = threading.Thread(
                target=lambda: results.append(exporter.export(spans(MANDATORY)))
            )
            thread.start()
            await waiting_for_the_lock(admin)
            begun = time.monotonic()
            await asyncio.to_thread(exporter.shutdown, 500)
            assert time.monotonic() - begun < 30
            await asyncio.to_thread(thread.join, 60)
            assert results == [SpanExportResult.FAILURE]
        assert (
            await asyncio.to_thread(exporter.export, spans(MANDATORY)) is SpanExportResult.FAILURE
        )

    async def test_shutdown_gives_back_the_connection(self, exporter, admin):
        """No session of ours is left on the server, and no thread here."""
        await asyncio.to_thread(exporter.export, spans(MANDATORY))
        await asyncio.to_thread(exporter.shutdown)
        await asyncio.to_thread(exporter.shutdown)
        for _ in range(600):
            left = await admin.fetchval(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE application_name = 'otel-audit' AND datname = current_database()"
            )
            if not left:
                break
            await asyncio.sleep(0.05)
        assert left == 0
        assert "otel-audit-exporter" not in {thread.name for thread in threading.enumerate()}


class TestFork:
    @pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
    async def test_works_in_parent_and_child(self, exporter, admin):
        """A child opens a connection of its own; its parent's goes on."""
        assert await asyncio.to_thread(exporter.export, spans(MANDATORY))
        child = os.fork()
        if child == 0:
            result = exporter.export(spans(MANDATORY))
            exporter.shutdown(2000)
            os._exit(0 if result is SpanExportResult.SUCCESS else 1)
        status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status[1]) == 0
        result = await asyncio.to_thread(exporter.export, spans(MANDATORY))
        assert result is SpanExportResult.SUCCESS
        assert await admin.fetchval("SELECT count(*) FROM audit.audit_logs") == 3
