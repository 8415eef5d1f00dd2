"""What a dead process's spool tells of actions that the store knows already."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import asyncpg
import msgspec
import pytest
from otel_audit_postgres import PostgresSink
from strategies import a_record

from otel_audit.ids import uuid7
from otel_audit.pipeline.counters import Counters
from otel_audit.pipeline.delivery import Delivery, DeliveryOptions
from otel_audit.pipeline.spool import Kind, adopt, open_spool
from otel_audit.record import AuditRecord, Tenant, to_json


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "spools"


def leave(home: Path, *frames: tuple[Kind, AuditRecord]) -> None:
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
        (Kind.OPENED, poorer),
        (Kind.ANSWERED, msgspec.structs.replace(same, outcome="unknown")),
        (Kind.OPENED, begun),
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
