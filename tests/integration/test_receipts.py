"""Receipts from a real store."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import asyncpg
import pytest
from fastapi import FastAPI

import otel_audit
from otel_audit import AuditConfig
from otel_audit._util.ids import uuid7


@pytest.fixture(autouse=True)
async def _leave_nothing() -> AsyncIterator[None]:
    yield
    await asyncio.to_thread(otel_audit.uninstrument)


class TestReceipt:
    async def test_it_tells_what_is_stored(self, audit_store):
        """Id, hash of the stored text, and the database's time: the row's own."""
        # a batch that would wait for a minute is not waited for
        config = AuditConfig(dsn=audit_store, batch_interval=60)
        otel_audit.instrument(FastAPI(), config=config)
        record_id = otel_audit.emit("report.made", actor="job-7")
        receipt = await otel_audit.wait_for_receipt(record_id)
        connection = await asyncpg.connect(audit_store)
        row = await connection.fetchrow("SELECT * FROM audit.audit_logs")
        await connection.close()
        assert receipt.record_id == record_id == str(row["id"])
        assert receipt.content_hash == hashlib.sha256(row["payload"].encode()).hexdigest()
        assert receipt.recorded_at == row["recorded_at"]
        assert abs((datetime.now(UTC) - receipt.recorded_at).total_seconds()) < 60

    async def test_a_block_has_one_when_it_has_ended(self, audit_store):
        """The action of a block names its record."""
        otel_audit.instrument(FastAPI(), config=AuditConfig(dsn=audit_store))
        with otel_audit.audit("tenant.provisioned", actor="job-7") as action:
            pass
        assert (await otel_audit.wait_for_receipt(action.record_id)).record_id == action.record_id

    async def test_an_action_gives_its_own(self, audit_store):
        """Asked after its block; inside of it there is no record yet, and the error says so."""
        otel_audit.instrument(FastAPI(), config=AuditConfig(dsn=audit_store))
        async with otel_audit.audit("tenant.provisioned", actor="job-7") as action:
            with pytest.raises(otel_audit.ConfigurationError, match="not over"):
                await action.wait_for_receipt()
        assert (await action.wait_for_receipt()).record_id == action.record_id

    async def test_without_an_id_it_is_that_of_what_was_recorded_last(self, audit_store):
        """An event, a block, a function: the last one of this very task."""
        otel_audit.instrument(FastAPI(), config=AuditConfig(dsn=audit_store))

        @otel_audit.audit("report.built")
        async def build() -> None: ...

        async def other() -> None:
            otel_audit.emit("report.read")

        emitted = otel_audit.emit("report.made")
        assert (await otel_audit.wait_for_receipt()).record_id == emitted
        async with otel_audit.audit("tenant.provisioned") as action:
            pass
        await asyncio.create_task(other())
        assert (await otel_audit.wait_for_receipt()).record_id == action.record_id
        await build()
        assert (await otel_audit.wait_for_receipt()).record_id not in (emitted, action.record_id)

    async def test_without_an_id_and_anything_recorded_it_is_an_error(self, audit_store):
        """There is nothing that it could be of."""
        otel_audit.instrument(FastAPI(), config=AuditConfig(dsn=audit_store))
        loop, nothing_yet = asyncio.get_running_loop(), contextvars.Context()
        with pytest.raises(ValueError, match="nothing was recorded by hand"):
            await loop.create_task(otel_audit.wait_for_receipt(), context=nothing_yet)

    async def test_what_is_not_stored_in_time_has_none(self, audit_store, tmp_path):
        """An id that is not there, or a store that is away: an error that says so, in time."""
        otel_audit.instrument(FastAPI(), config=AuditConfig(dsn=audit_store))
        began = time.monotonic()
        with pytest.raises(otel_audit.StoreUnavailableError, match="does not have record"):
            await otel_audit.wait_for_receipt(uuid7(), timeout=0.3)
        assert time.monotonic() - began < 30
        await asyncio.to_thread(otel_audit.uninstrument)
        away = f"postgresql://nobody@/audit?host={tmp_path}"
        otel_audit.instrument(FastAPI(), config=AuditConfig(dsn=away, shutdown_timeout=0.1))
        record_id = otel_audit.emit("report.made")
        with pytest.raises(otel_audit.StoreUnavailableError, match="is kept until it has"):
            await otel_audit.wait_for_receipt(record_id, timeout=0.3)

    async def test_without_a_store_there_is_none(self):
        """Where nothing is audited, or printed only, asking is an error that says why."""
        with pytest.raises(otel_audit.ConfigurationError, match="nothing is audited"):
            await otel_audit.wait_for_receipt(uuid7())
        otel_audit.instrument(FastAPI(), config=AuditConfig(exporter="console"))
        with pytest.raises(otel_audit.ConfigurationError, match="OTEL_AUDIT_EXPORTER"):
            await otel_audit.wait_for_receipt(uuid7())
