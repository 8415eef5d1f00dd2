"""A store that is the same to the byte each time: fixed ids, times and hashes, and so a fixed root."""

from __future__ import annotations

import base64
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
from ledger_store import Administrator, Log
from otel_audit_postgres import PostgresSink, maintain
from otel_audit_postgres.ledger.keys import read_signing_key

from otel_audit._util.ids import derived_uuid7
from otel_audit.record import (
    Actor,
    AuditRecord,
    Body,
    Change,
    Request,
    Response,
    Source,
    Target,
    Tenant,
)
from otel_audit.testing import make_record

BEGIN = datetime(2026, 10, 1, tzinfo=UTC)
END = datetime(2026, 11, 1, tzinfo=UTC)
SEALED = datetime(2026, 11, 2, tzinfo=UTC)
KEY_ID = "6deeee70"
HOSTILE = '=HYPERLINK("http://evil")\x1b[31m<script>alert(1)</script>\u202e'


def fixed(number: int, event: str, **fields: Any) -> AuditRecord:
    """A record of October 2026: an hour apart, with an id of its own that never changes."""
    at = int(BEGIN.timestamp()) * 10**9 + number * 3_600 * 10**9
    record_id = derived_uuid7(at, event, str(number))
    plain = {
        "record_id": record_id,
        "action_id": record_id,
        "occurred_at": at,
        "duration": 12_000_000,
        "actor": Actor(id="ada", type="user", role="clerk", verified=True, source="jwt"),
        "tenant": Tenant(id="acme"),
        "source": Source(address="192.0.2.7"),
        "level": "changes",
        "producer_id": "p-1",
        "sequence_number": number + 1,
    }
    return make_record(event, **{**plain, **fields})


def order(operation: str, key: int, **columns: list[Any]) -> Change:
    return Change(
        operation=operation, entity="Order", name="order", table="orders", key={"id": key},
        values=columns,
    )  # fmt: skip


def records() -> list[AuditRecord]:
    """What happened in October."""
    bob = Actor(id="bob", type="user", role="manager", verified=True)
    eve = Actor(id="eve", type="user", verified=False)
    post = Request(id="req-1", method="POST", route="/orders", path="/orders")
    sign_in = {
        "action": "LOGIN", "actor": eve, "source": Source(address="203.0.113.9"), "level": "metadata",
        "request": Request(id="req-2", method="POST", route="/login", path="/login"),
    }  # fmt: skip
    told = {
        "producer_id": None,
        "sequence_number": None,
        "source": None,
        "tenant": None,
        "level": None,
    }
    return [
        fixed(0, "order.created", target=Target(type="order", id="1"), request=post,
              changes=(order("insert", 1, status=[None, "open"], total=[None, "129.00"]),)),
        fixed(1, "order.approved", target=Target(type="order", id="1"), transaction="committed",
              changes=(order("update", 1, status=["open", "approved"]),)),
        fixed(2, "order.created", actor=bob, target=Target(type="order", id="2"),
              changes=(order("insert", 2, status=[None, "open"]),)),
        fixed(3, "order.approved", target=Target(type="order", id="2"),
              changes=(order("update", 2, status=["open", "approved"]),)),
        fixed(4, "user.role_changed", actor=bob, target=Target(type="user", id="7"),
              changes=(Change(operation="update", entity="User", name="user", table="users",
                              key={"id": 7}, values={"role": ["clerk", "admin"]}),)),
        fixed(5, "membership.created", actor=bob, target=Target(type="membership", id="3"),
              changes=(Change(operation="insert", entity="GroupMembership", table="memberships",
                              key={"user_id": 7, "group_id": 2}, values={"group": [None, "payroll"]}),)),
        *(fixed(6 + n, "session.login_failed", outcome="failure", response=Response(status_code=401), **sign_in)
          for n in range(3)),
        fixed(9, "session.login", response=Response(status_code=200), **sign_in),
        fixed(10, "order.read", outcome="failure", response=Response(status_code=403), decision="denied"),
        fixed(11, "patient.read", action="READ", tenant=Tenant(id="clinic"),
              actor=Actor(id="nurse-1", type="user", role="nurse"),
              target=Target(type="patient", id="p-77"), metadata={"subject": "p-77"},
              response=Response(status_code=200, body=Body(
                  content=msgspec.Raw(b'{"name":"[REDACTED]","diagnosis":"[REDACTED]"}'), size=48,
                  content_type="application/json"))),
        fixed(12, "patient.exported", action="EXPORT", tenant=Tenant(id="clinic"),
              actor=Actor(id="nurse-1", type="user", role="nurse", on_behalf_of="doctor-2"),
              target=Target(type="patient", id="p-77"), metadata={"records": 12}),
        fixed(13, "order.updated", outcome="unknown", transaction="unknown"),
        fixed(14, "note.added", actor=Actor(id=HOSTILE, type="user"),
              target=Target(type="note", id=HOSTILE), changes=(Change(
                  operation="update", entity="Note", table="notes", key={"id": HOSTILE},
                  values={HOSTILE: [HOSTILE, "@SUM(1)"], "role": ["-1", "+1"]}),)),
        # number 17 is missing: a gap
        fixed(17, "order.paid", target=Target(type="order", id="1"),
              changes=(order("update", 1, status=["approved", "paid"]),)),
        fixed(18, "audit.viewed", action="READ", actor=Actor(id="viewer", type="user", on_behalf_of="carol"),
              metadata={"question": "search", "records": 7, "asked": {"query": "actor:ada"}}, **told),
        fixed(19, "audit.exported", action="EXPORT", actor=Actor(id="auditor", type="user"),
              metadata={"asked": {"query": "tenant:acme", "format": "csv"}}, **told),
        fixed(20, "audit.hold.placed", target=Target(type="audit_hold", id="h-1"),
              actor=Actor(id="keeper", type="user"), metadata={"matter": "case 4"}, **told),
        fixed(21, "audit.retention.changed", actor=Actor(id="keeper", type="user"),
              metadata={"policy": {"floor": 30, "rules": [{"hot": 10, "archive": 5}]}}, **told),
        fixed(22, "audit.month.archived", target=Target(type="audit_archive", id="2026-09"),
              actor=Actor(id="keeper", type="user"), metadata={"rows": 40}, **told),
        fixed(23, "audit.subject.erased", actor=Actor(id="keeper", type="user"),
              metadata={"keys": ["k-1"], "basis": "GDPR 17"}, **told),
        fixed(24, "audit.records.quarantined", actor=Actor(id="sealer", type="user"),
              metadata={"content_hashes": ["00" * 32, "11" * 32]}, **told),
    ]  # fmt: skip


class ReportStore(Log):
    """A store whose every byte that a report shows is fixed."""

    def __init__(self, dsn: str, folder: Path, _key: object = None) -> None:
        """Make a store whose key is the same each time: a checkpoint has its signature.

        Args:
            dsn: The store's database.
            folder: Where its anchor lies.
        """
        super().__init__(dsn, folder)
        # ASCII as a seed: nobody takes it for a secret
        seed = base64.b64encode(b"\x01" + b"the seed of the tests, no secret").decode()
        name = self.key.name
        self.key = read_signing_key(f"PRIVATE+KEY+{name}+{KEY_ID}+{seed}", "the key of the tests")

    async def fill(self) -> ReportStore:
        """Write October, seal it, and set the database's own times."""
        await maintain(self.dsn, months=[date(2026, 10, 1)])
        await self.add(records())
        return self

    async def add(self, found: list[AuditRecord], at: datetime = END, seals: bool = True) -> None:
        """Write records, and let the database say that it took them at a time; seal them."""
        sink = PostgresSink(self.dsn, connect_timeout=60)
        assert (await sink.write(found)).stored == len(found)
        await sink.close()
        connection = await asyncpg.connect(self.dsn)
        try:
            does = Administrator(connection).does
            ids = [one.record_id for one in found]
            for table in ("audit_logs", "ledger_queue"):
                await does(
                    f"UPDATE audit.{table} SET recorded_at = $1 WHERE id = ANY($2::uuid[])", at, ids
                )
            if seals:
                await self.seal()
                for table in ("ledger_blocks", "ledger_checkpoints"):
                    await does(
                        f"UPDATE audit.{table} SET recorded_at = $1 WHERE recorded_at > $1 "
                        "AND recorded_at > now() - interval '1 hour'", SEALED,
                    )  # fmt: skip
        finally:
            await connection.close()
