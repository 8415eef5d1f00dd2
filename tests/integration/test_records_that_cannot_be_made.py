"""A record that cannot be made is a loss: it is counted and told as one, and the app goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

import otel_audit
from otel_audit import AuditConfig
from otel_audit.action.manual_action import Action
from otel_audit.http import exchange
from otel_audit.http.exchange_record import ExchangeRecordBuilder

pytestmark = pytest.mark.allow_errors


@pytest.fixture
def app(audit_store: str) -> Iterator[FastAPI]:
    app = FastAPI()

    @app.post("/orders", status_code=201)
    async def create() -> str:
        return "made"

    otel_audit.instrument(app, config=AuditConfig(dsn=audit_store, batch_interval=0.01))
    yield app
    otel_audit.uninstrument()


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("a defect of ours")


async def test_a_request_whose_record_cannot_be_made_is_a_loss(app, monkeypatch, caplog):
    """The client gets its answer; `dropped` says that a record is missing, and the log does."""

    @app.post("/payments", status_code=201)
    async def pay() -> None:
        monkeypatch.setattr(ExchangeRecordBuilder, "record", broken)

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        assert (await client.post("/payments")).status_code == 201
    health = otel_audit.health()
    assert (health["dropped"], health["capture_errors"]) == (1, 2)
    assert "An audit record is lost" in caplog.text
    assert "a defect of ours" not in caplog.text


async def test_the_application_s_own_error_stays_the_one_that_is_raised(app, monkeypatch):
    """A handler that raises is recorded in the end only: that this fails is nobody else's error."""

    @app.post("/refunds")
    async def refund() -> None:
        monkeypatch.setattr(ExchangeRecordBuilder, "record", broken)
        raise LookupError

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        with pytest.raises(LookupError):
            await client.post("/refunds")
    assert otel_audit.health()["dropped"] == 1


async def test_a_request_that_cannot_be_observed_is_refused(app, monkeypatch):
    """A full spool refuses by default, and so does an error of ours before the handler runs."""
    monkeypatch.setattr(exchange, "ExchangeRecordBuilder", broken)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        assert (await client.post("/orders")).status_code == 503
    assert otel_audit.health()["dropped"] == 1


async def test_an_action_by_hand_that_cannot_be_told_is_a_loss(app, monkeypatch, caplog):
    """The block's own result stands; the loss is counted."""
    with otel_audit.audit("tenant.provisioned"):
        monkeypatch.setattr(Action, "_record", broken)
    assert otel_audit.health()["dropped"] == 1
    assert "An audit record is lost" in caplog.text


async def test_what_can_be_made_is_none(app):
    """Nothing is counted where nothing is lost."""
    with otel_audit.audit("tenant.provisioned"):
        pass
    assert await asyncio.to_thread(otel_audit.flush, 60)
    assert otel_audit.health()["dropped"] == 0
