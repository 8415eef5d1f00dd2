"""What users' own tests use."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import otel_audit
from otel_audit.testing import recorded


def make_app() -> FastAPI:
    app = FastAPI()

    @app.post("/orders/{order_id}/refund")
    async def refund(order_id: int, body: dict[str, str]) -> None:
        otel_audit.set_actor("clerk-1")

    return app


async def refund(app: FastAPI) -> None:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        await client.post("/orders/1/refund", json={"password": "hunter2", "why": "late"})


class TestRecorded:
    async def test_an_application_is_audited_into_memory(self):
        """As in production: named, judged and redacted; no database anywhere."""
        app = make_app()
        with recorded(app) as records:
            await refund(app)
        record = records.one("order.refunded")
        assert (record.actor.id, record.target.id) == ("clerk-1", "1")
        assert record.request.body.text == '{"password":"[REDACTED]","why":"late"}'
        assert records.unfinished == 0

    async def test_one_application_serves_many_tests(self):
        """Each block sees its own records, though the application has long handled requests."""
        app = make_app()
        await refund(app)
        for _ in range(2):
            with recorded(app) as records:
                await refund(app)
            assert len(records) == 1
        await refund(app)
        assert len(records) == 1

    def test_changes_of_the_database_are_there(self):
        """With SQLAlchemy the changes belong to the action that made them."""

        class Base(DeclarativeBase): ...

        class Order(Base):
            __tablename__ = "orders"
            id: Mapped[int] = mapped_column(primary_key=True)

        engine = create_engine("sqlite://")
        Base.metadata.create_all(engine)
        with (
            recorded(app_engine=engine) as records,
            otel_audit.audit("order.created"),
            Session(engine) as session,
        ):
            session.add(Order())
            session.commit()
        engine.dispose()
        assert records.one().entities == ("order:1",)

    def test_records_are_found_by_any_field(self):
        """Two underscores lead into a part; a part that is missing matches nothing."""
        with recorded() as records:
            otel_audit.emit("a.done", actor="x", target="order:1")
            otel_audit.emit("a.done", actor="y", outcome="failure")
        assert records.one(actor__id="x") is records[0]
        assert records.one(target__type="order") is records[0]
        assert records.find("a.done", outcome="failure") == [records[1]]
        assert [record.actor.id for record in records] == ["x", "y"]
        with pytest.raises(AttributeError, match="nonsense"):
            records.find(nonsense=1)

    def test_a_miss_says_what_there_is(self):
        """The message of a failed look-up names the records that were made."""
        with recorded() as records:
            otel_audit.emit("a.done", actor="x")
            otel_audit.emit("a.done", actor="y")
        with pytest.raises(
            AssertionError, match=r"0 audit .* b\.done.*: a\.done by x; a\.done by y"
        ):
            records.one("b.done")
        with pytest.raises(AssertionError, match="2 audit records match a.done"):
            records.one("a.done")
        records.clear()
        with pytest.raises(AssertionError, match="there are: none"):
            records.one()

    def test_it_is_not_mixed_with_a_real_one(self):
        """Where auditing is at work already, the error says what to do."""
        with (
            recorded(),
            pytest.raises(otel_audit.InstrumentationError, match="OTEL_AUDIT_ENABLED=false"),
            recorded(),
        ):
            pass
        assert otel_audit.health() == {"auditing": False}

    def test_it_works_where_auditing_is_switched_off(self, monkeypatch):
        """Tests that run with OTEL_AUDIT_ENABLED=false may still look."""
        monkeypatch.setenv("OTEL_AUDIT_ENABLED", "false")
        with recorded() as records:
            otel_audit.emit("a.done")
        assert len(records) == 1

    def test_an_exception_ends_it_too(self):
        """Nothing stays audited when the block fails."""
        with pytest.raises(KeyError), recorded():
            raise KeyError
        assert otel_audit.health() == {"auditing": False}
