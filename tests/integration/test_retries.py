"""A transaction that is rolled back, and one after it that is committed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException
from sqlalchemy import Engine, create_engine, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool

import otel_audit
from otel_audit import AuditConfig
from otel_audit.testing import recorded


def call(app: FastAPI, path: str) -> None:
    async def post() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            await client.post(path)

    asyncio.run(post())


class Base(DeclarativeBase):
    pass


class Seat(Base):
    __tablename__ = "seat"
    id: Mapped[int] = mapped_column(primary_key=True)
    by: Mapped[str | None]


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Seat(id=1))
        session.commit()
    yield engine
    engine.dispose()


def refused(session: Session) -> None:
    """A seat that is there already."""
    session.add(Seat(id=1, by="ann"))
    with pytest.raises(IntegrityError):
        session.commit()
    session.rollback()


def undone(session: Session) -> None:
    session.add(Seat(by="undone"))
    session.flush()
    session.rollback()


def kept(session: Session) -> None:
    session.get_one(Seat, 1).by = "ann"
    session.commit()


class TestRetries:
    @pytest.mark.parametrize(
        ("steps", "outcome", "retried"),
        [
            ((refused, kept), "success", 1),
            ((undone, kept), "success", 1),
            ((refused, undone, kept), "success", 2),
            ((kept, undone), "failure", None),
            ((kept, refused), "failure", None),
            ((undone, kept, undone), "failure", None),
            ((undone,), "failure", None),
            ((kept,), "success", None),
        ],
    )
    def test_the_last_transaction_counts(self, engine, steps, outcome, retried):
        """The outcome follows it; what was rolled back before stands beside it."""
        with (
            recorded(config=AuditConfig(exporter="none")) as records,
            otel_audit.audit("seat.taken"),
            Session(engine) as session,
        ):
            for step in steps:
                step(session)
        record = records.one("seat.taken")
        assert record.outcome == outcome
        assert record.metadata.get("audit.retried") == retried
        assert record.transaction == (
            "mixed"
            if kept in steps and len(steps) > 1
            else "committed"
            if kept in steps
            else "rolled_back"
        )

    def test_what_was_rolled_back(self, engine):
        """It is told by operation and table, with what the database has refused."""
        with (
            recorded(config=AuditConfig(exporter="none")) as records,
            otel_audit.audit("seat.taken"),
            Session(engine) as session,
        ):
            refused(session)
            undone(session)
            undone(session)
            with pytest.raises(IntegrityError):
                session.execute(insert(Seat).values(id=1))
            session.rollback()
            kept(session)
        record = records.one("seat.taken")
        assert record.metadata["audit.rolled_back"] == {"insert seat": 4}
        assert record.metadata["audit.retried"] == 4
        assert record.changes_rolled_back == 2

    @pytest.mark.parametrize(
        ("answer", "outcome"), [(None, "success"), (409, "failure"), (500, "failure")]
    )
    def test_the_answer_has_to_say_success(self, engine, answer, outcome):
        """A request that fails has failed, whatever it has committed last."""
        app = FastAPI()

        @app.post("/seats")
        def take() -> None:
            with Session(engine) as session:
                refused(session)
                kept(session)
            if answer is not None:
                raise HTTPException(answer)

        with recorded(app, config=AuditConfig(exporter="none")) as records:
            call(app, "/seats")
        record = records.one()
        assert (record.outcome, record.transaction) == (outcome, "mixed")
        assert record.metadata["audit.retried"] == 1

    def test_an_exception_that_leaves_the_block(self, engine):
        """It has failed too."""

        def fail() -> Any:
            raise ValueError("no seat")

        with (
            recorded(config=AuditConfig(exporter="none")) as records,
            pytest.raises(ValueError, match="no seat"),
            otel_audit.audit("seat.taken"),
            Session(engine) as session,
        ):
            undone(session)
            kept(session)
            fail()
        assert records.one("seat.taken").outcome == "failure"

    def test_a_transaction_that_only_read(self, engine):
        """What did not write changes nothing."""
        with (
            recorded(config=AuditConfig(exporter="none")) as records,
            otel_audit.audit("seat.taken"),
            Session(engine) as session,
        ):
            undone(session)
            session.get_one(Seat, 1)
            session.commit()
        assert records.one("seat.taken").outcome == "failure"
