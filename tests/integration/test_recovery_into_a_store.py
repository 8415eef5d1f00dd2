"""What a dead process's spool tells of actions that the store knows already."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import asyncpg
import msgspec
import pytest
from otel_audit_postgres import PostgresSink, init
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.config import AuditConfig
from otel_audit.delivery.delivery import Delivery, DeliveryOptions
from otel_audit.delivery.factory import make_delivery, service_of_spool
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.sink import Written
from otel_audit.delivery.spool import FrameKind, adopt, open_spool
from otel_audit.errors import StoreUnavailableError
from otel_audit.record import AuditRecord, Tenant, to_json
from otel_audit.runtime import sink_maker


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "spools"


def leave(home: Path, *frames: tuple[FrameKind, AuditRecord]) -> None:
    spool = open_spool(home, service="shop", fsync="never")
    for kind, record in frames:
        spool.append(kind, record.record_id, to_json(record))
    spool.close()


async def test_an_action_that_is_stored_is_not_stored_again_as_cut_down(audit_store, home):
    """Its beginning says no tenant; the row has one: there is still one row, and no quarantine."""
    full = a_record(record_id=uuid7(), tenant=Tenant(id="acme"))
    poorer = msgspec.structs.replace(full, tenant=None, outcome="unknown", phase="started")
    same = a_record(record_id=uuid7())
    begun = a_record(record_id=uuid7(), outcome="unknown")
    sink = PostgresSink(audit_store)
    await sink.write([full, same])
    await sink.close()
    leave(
        home,
        (FrameKind.OPENED, poorer),
        (FrameKind.ANSWERED, msgspec.structs.replace(same, outcome="unknown")),
        (FrameKind.OPENED, begun),
    )
    delivery = Delivery(
        lambda: PostgresSink(audit_store),
        Counters(),
        DeliveryOptions(),
        adopt=functools.partial(adopt, home, "shop"),
    )
    delivery.start()
    until = time.monotonic() + 60
    connection = await asyncpg.connect(audit_store)
    rows: list = []
    while len(rows) < 3 or list(home.glob("shop/[0-9a-f]*")):
        assert time.monotonic() < until
        rows = await connection.fetch("SELECT id, tenant_id, outcome FROM audit.audit_logs")
    delivery.close(5)
    assert {(str(row["id"]), row["tenant_id"], row["outcome"]) for row in rows} == {
        (full.record_id, "acme", "success"),
        (same.record_id, "", "success"),
        (begun.record_id, "", "unknown"),
    }
    assert await connection.fetchval("SELECT count(*) FROM audit.quarantine") == 0
    await connection.close()


class Away:
    """A store that is away."""

    async def write(self, _entries: object) -> Written:
        raise StoreUnavailableError("away")

    async def close(self) -> None: ...


@pytest.fixture
async def two_stores(audit_store, database) -> tuple[str, str]:
    await init(database)
    return audit_store, database


class TestTwoDestinations:
    """Applications without a name share a directory, and each has a store of its own."""

    def die_with(self, record: AuditRecord, home: Path, dsn: str) -> None:
        config = AuditConfig(dsn=dsn, spool_dir=home)
        delivery = make_delivery(config, cast("Any", Away), Counters())
        delivery.submit(record)
        assert not delivery.close(0)

    def begin(self, home: Path, dsn: str) -> Delivery:
        config = AuditConfig(dsn=dsn, spool_dir=home)
        delivery = make_delivery(config, sink_maker(config), Counters())
        delivery.start()
        return delivery

    async def stored(self, dsn: str, count: int) -> set[str]:
        until = time.monotonic() + 60
        connection = await asyncpg.connect(dsn)
        asked = "SELECT id FROM audit.audit_logs"
        while len(rows := await connection.fetch(asked)) < count:
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
        await connection.close()
        return {str(row["id"]) for row in rows}

    async def test_nothing_crosses(self, two_stores, home, caplog):
        """What one left goes to its own store, whoever starts first, and with a new password."""
        one, other = two_stores
        ours, theirs, own = (a_record(record_id=uuid7()) for _ in range(3))
        await asyncio.to_thread(self.die_with, ours, home, one)
        await asyncio.to_thread(self.die_with, theirs, home, other)
        second = self.begin(home, other)
        second.submit(own)
        assert await self.stored(other, 2) == {theirs.record_id, own.record_id}
        assert await self.stored(one, 0) == set()
        assert "spools of another destination" in caplog.text
        first = self.begin(home, one.replace("postgresql://", "postgresql+asyncpg://"))
        assert await self.stored(one, 1) == {ours.record_id}
        for delivery in (first, second):
            assert await asyncio.to_thread(delivery.close, 60)
        assert await self.stored(other, 2) == {theirs.record_id, own.record_id}
        assert not list(home.glob("*/*/*.frames"))

    async def test_what_does_not_say_where_it_belongs_is_adopted(self, audit_store, home):
        """As spools were before they said it."""
        record = a_record(record_id=uuid7())
        service = service_of_spool()
        spool = open_spool(home, service=service, fsync="never")
        spool.append(FrameKind.CLOSED, record.record_id, to_json(record))
        spool.close()
        delivery = self.begin(home, audit_store)
        assert await self.stored(audit_store, 1) == {record.record_id}
        await asyncio.to_thread(delivery.close, 60)


async def test_a_script_that_records_nothing_delivers_what_was_left(audit_store, tmp_path):
    """It calls instrument() and ends: what a killed one had recorded is in the store then."""
    killed = (
        "import os, signal, otel_audit; otel_audit.instrument(); "
        "otel_audit.emit('report.made', actor='job-7'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {
        **os.environ, "OTEL_SERVICE_NAME": "job", "OTEL_AUDIT_STREAM_RECORDS": "false",
        "OTEL_AUDIT_BATCH_INTERVAL": "30",
    }  # fmt: skip
    away = {**environment, "OTEL_AUDIT_DSN": f"postgresql://nobody@/x?host={tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-c", killed], env=away, capture_output=True, check=False
    )
    assert done.returncode == -9, done.stderr
    here = {**environment, "OTEL_AUDIT_DSN": audit_store}
    nothing = "import otel_audit; otel_audit.instrument()"
    done = subprocess.run(
        [sys.executable, "-c", nothing], env=here, capture_output=True, check=False
    )
    assert (done.returncode, b"Delivered 1 audit records" in done.stderr) == (0, True), done.stderr
    connection = await asyncpg.connect(audit_store)
    assert await connection.fetchval("SELECT count(*) FROM audit.audit_logs") == 1
    await connection.close()
