"""Records for tests of the viewer: orders of two tenants, and whatever a test adds."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
from ledger_store import Log
from otel_audit_postgres import PostgresSink

from otel_audit._util.ids import uuid7
from otel_audit.record import (
    Actor,
    AuditRecord,
    Body,
    Change,
    ErrorInfo,
    Request,
    Response,
    Source,
)
from otel_audit.testing import make_record
from otel_audit.viewer import Viewer

AUDITOR = Viewer("auditor@example.com")
SUPPORT = Viewer("support@example.com", "support")
ACME = Viewer("admin@acme.example", "tenant", ("acme",))
GLOBEX = Viewer("admin@globex.example", "tenant", ("globex",))


def change(order: str, operation: str = "update", **columns: list) -> Change:
    return Change(
        operation=operation, entity="Order", name="order", table="orders", key={"id": order},
        values=columns,
    )  # fmt: skip


def order_record(event: str, order: str = "1", **fields) -> AuditRecord:
    """A record of one order, of now; fields as for `make_record`."""
    now = time.time_ns()
    plain = {
        "record_id": uuid7(now),
        "occurred_at": now,
        "actor": Actor(
            id="ada@acme.example", type="user", role="clerk", email="ada@acme.example",
            verified=True, source="jwt",
        ),
        "tenant": "acme",
        "target": f"order:{order}",
        "source": Source(address="192.0.2.7", user_agent="Firefox", session_id="s-1"),
        "request": Request(
            id="req-1", method="POST", route="/orders/{id}/refund", path=f"/orders/{order}/refund",
            headers={"accept": "application/json"},
            body=Body(content=msgspec.Raw(b'{"note":"body-note"}'), size=20, content_type="application/json"),
        ),
        "response": Response(status_code=200),
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "trace_sampled": True,
        "resource": {"service.name": "shop"},
    }  # fmt: skip
    return make_record(event, **{**plain, **fields})


class ViewerStore(Log):
    """A store with records that say something."""

    def __init__(self, dsn: str, directory: Path) -> None:
        super().__init__(dsn, directory)
        self.ids: dict[str, str] = {}

    async def add(self, *records: AuditRecord) -> list[str]:
        sink = PostgresSink(self.dsn, connect_timeout=60)
        try:
            assert (await sink.write(records)).stored == len(records)
        finally:
            await sink.close()
        return [record.record_id for record in records]

    async def write_orders(self) -> None:
        """Order 1 of acme is made, paid and refunded, one try fails; globex has two orders."""
        hank = {
            "tenant": "globex",
            "actor": Actor(id="hank@globex.example", type="user", verified=True),
            "source": Source(address="198.51.100.9", session_id="s-globex"),
            "request": Request(id="req-globex", method="POST", path="/orders"),
            "resource": {"service.name": "globex-shop"},
        }
        records = {
            "created": order_record(
                "order.created",
                changes=(change("1", "insert", id=[None, "1"], status=[None, "open"], total=[None, "129.00"]),),
            ),
            "paid": order_record(
                "order.paid",
                changes=(change("1", status=["open", "paid"], card=["[REDACTED]", "[REDACTED] (2)"]),),
            ),
            "refunded": order_record(
                "order.refunded",
                changes=(
                    Change(
                        operation="update", entity="Order", name="order", table="orders",
                        key={"id": "1"}, values={"status": ["paid", "refunded"], "note": [None, "late"]},
                        unknown_before=("note",),
                    ),
                ),
            ),
            "failed": order_record(
                "order.refunded", outcome="failure", transaction="rolled_back",
                response=Response(status_code=500), trace_sampled=False,
                error=ErrorInfo(type="ValueError", message="no"),
            ),
            "globex": order_record(
                "secret.opened", "77", changes=(change("77", secret_column=["a", "b"]),), **hank
            ),
            "globex2": order_record("secret.closed", "1", outcome="failure", **hank),
        }  # fmt: skip
        ids = await self.add(*records.values())
        self.ids = dict(zip(records, ids, strict=True))
