"""What the application's own span of a request is told of its changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool

import otel_audit
from otel_audit import AuditConfig


class Base(DeclarativeBase):
    pass


class Ticket(Base):
    __tablename__ = "ticket"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    password: Mapped[str | None]


@pytest.fixture
def tickets() -> Iterator[Engine]:
    engine = create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


async def span_of(engine: Engine, *, commits_first: bool, count: int = 1, **settings):
    """Post a ticket; the session commits before the answer, or when it has been sent."""
    app = FastAPI()

    @app.post("/tickets")
    async def create():
        session = Session(engine)
        session.add_all([Ticket(title=str(n), password="hunter2") for n in range(count)])
        session.flush()
        if commits_first:
            session.commit()
        app.state.session = session

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    otel_audit.instrument(app, config=AuditConfig(exporter="none", enabled=True, **settings))
    try:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            with provider.get_tracer("app").start_as_current_span("POST /tickets"):
                await client.post("/tickets")
        app.state.session.close()
    finally:
        await asyncio.to_thread(otel_audit.uninstrument)
    (span,) = exporter.get_finished_spans()
    return span.attributes


class TestServerSpan:
    async def test_pending_changes(self, tickets):
        """What is flushed and not committed yet is told, and marked provisional."""
        attributes = await span_of(tickets, commits_first=False)
        assert attributes["audit.changes.count"] == 1
        assert attributes["audit.changes.provisional"] is True
        assert attributes["audit.entities"] == ("ticket:1",)
        assert "audit.changes" not in attributes

    async def test_committed_changes(self, tickets):
        """What is committed by then is not provisional."""
        attributes = await span_of(tickets, commits_first=True)
        assert attributes["audit.changes.count"] == 1
        assert "audit.changes.provisional" not in attributes
        assert attributes["audit.entities"] == ("ticket:1",)

    @pytest.mark.parametrize("commits_first", [True, False])
    async def test_diff(self, tickets, commits_first):
        """The diff itself, if that is asked for; redacted."""
        attributes = await span_of(tickets, commits_first=commits_first, span_payload="full")
        (change,) = json.loads(attributes["audit.changes"])
        assert change["values"]["title"] == [None, "0"]
        assert change["values"]["password"] == [None, "[REDACTED]"]
        assert change.get("transaction") == ("committed" if commits_first else None)

    async def test_many(self, tickets):
        """A span is told of some; it has the count of all."""
        attributes = await span_of(tickets, commits_first=False, count=500, span_payload="full")
        assert attributes["audit.changes.count"] == 500
        assert len(attributes["audit.entities"]) == 100
        assert len(json.loads(attributes["audit.changes"])) == 200
