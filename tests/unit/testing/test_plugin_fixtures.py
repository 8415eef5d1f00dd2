from __future__ import annotations

import json

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given

import otel_audit
from otel_audit.record import AuditRecord
from otel_audit.testing import snapshot
from otel_audit.testing.strategies import records


async def refund(app, *orders):
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        for order in orders:
            await client.post(f"/orders/{order}/refund")


@pytest.fixture(scope="session")
def audit_app():
    app = FastAPI()

    @app.post("/orders/{order_id}/refund")
    async def refunded(order_id: int) -> None:
        otel_audit.add_metadata(reason="broken", at=order_id)

    return app


class TestAudit:
    async def test_a_request_is_recorded(self, audit, audit_app):
        """The fixture audits the application of ``audit_app``, as it stands."""
        await refund(audit_app, 1)
        audit.only("order.refunded", target="order:1", outcome="success")

    @pytest.mark.not_audited
    def test_nothing_is_left_to_the_next(self, audit):
        """Each test has its own records."""
        audit.nothing()


class TestSnapshot:
    async def test_two_runs_are_the_same(self, audit, audit_app):
        """Ids, times, hosts and versions do not differ, so that the text can be kept."""

        async def run():
            audit.clear()
            await refund(audit_app, 1, 2)
            return json.dumps(audit.snapshot())

        first = await run()
        assert "order.refunded" in first
        assert await run() == first

    @given(records())
    def test_it_is_plain_and_sorted(self, record):
        """Any record becomes values that JSON can tell, under names in order."""
        (told,) = snapshot([record])
        assert list(told) == sorted(told)
        assert json.loads(json.dumps(told)) == told


class TestStrategies:
    @given(records(level="metadata"))
    def test_given_fields_are_as_given(self, record):
        """The others are any."""
        assert isinstance(record, AuditRecord)
        assert record.level == "metadata"
