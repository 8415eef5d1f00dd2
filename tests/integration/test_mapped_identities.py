"""Actors and tenants that are mapped objects, which a commit or a rollback expires."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Request
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool

import otel_audit
from otel_audit import AuditConfig
from otel_audit.record import AuditRecord
from otel_audit.testing import recorded


async def call_async(app: FastAPI, path: str) -> None:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        await client.post(path)


def call(app: FastAPI, path: str) -> None:
    asyncio.run(call_async(app, path))


class Base(DeclarativeBase):
    pass


class Tenant(Base):
    __tablename__ = "tenant"
    number: Mapped[int] = mapped_column(primary_key=True)
    slug: Mapped[str]


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    role: Mapped[str]
    email: Mapped[str]


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)


def fill(session: Session) -> None:
    session.add(Tenant(number=7, slug="acme"))
    session.add(User(id=3, role="clerk", email="ann@example.com"))
    session.commit()


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        fill(session)
    yield engine
    engine.dispose()


def log_in(request: Request, session: Session) -> User:
    request.state.tenant = session.get_one(Tenant, 7)
    request.state.user = user = session.get_one(User, 3)
    return user


def recorded_of(engine: Engine, handle: Any) -> tuple[AuditRecord, list[str]]:
    """Have one request handled; its record, and the statements after the handler's end."""
    app, statements = FastAPI(), []
    over = False

    @app.post("/notes")
    def make(request: Request) -> None:
        nonlocal over
        with Session(engine) as session:
            try:
                handle(request, session)
            finally:
                over = True

    @event.listens_for(engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if over:
            statements.append(statement)

    with recorded(app, config=AuditConfig(exporter="none")) as records:
        call(app, "/notes")
    return records.one(), statements


def who(record: AuditRecord) -> tuple[Any, ...]:
    actor, tenant = record.actor, record.tenant
    assert tenant is not None
    return actor.id, actor.role, actor.email, tenant.id, tenant.slug


class TestMappedIdentities:
    def test_a_commit(self, engine):
        """Who and for whom is known after the commit, to the last attribute, without a query."""

        def handle(request: Request, session: Session) -> None:
            log_in(request, session)
            session.add(Note())
            session.commit()

        record, statements = recorded_of(engine, handle)
        assert who(record) == ("3", "clerk", "ann@example.com", "7", "acme")
        assert statements == []
        assert record.outcome == "success"

    def test_a_rollback(self, engine):
        """The same after a rollback."""

        def handle(request: Request, session: Session) -> None:
            log_in(request, session)
            session.add(Note())
            session.flush()
            session.rollback()

        record, statements = recorded_of(engine, handle)
        assert who(record) == ("3", "clerk", "ann@example.com", "7", "acme")
        assert statements == []

    @pytest.mark.parametrize("flushed", [False, True])
    def test_what_was_rolled_back_is_not_told(self, engine, flushed):
        """A role that was never committed is nobody's."""

        def handle(request: Request, session: Session) -> None:
            user = log_in(request, session)
            user.role = "admin"
            session.add(Note())
            if flushed:
                session.flush()
            session.rollback()
            raise HTTPException(409)

        record, _ = recorded_of(engine, handle)
        assert who(record)[1] == "clerk"

    def test_what_was_committed_is(self, engine):
        """What the action itself has changed, it has."""

        def handle(request: Request, session: Session) -> None:
            log_in(request, session).email = "ann@example.org"
            session.commit()

        record, _ = recorded_of(engine, handle)
        assert who(record)[2] == "ann@example.org"

    def test_several_commits(self, engine):
        """What was loaded again counts, as it is then."""

        def handle(request: Request, session: Session) -> None:
            user = log_in(request, session)
            session.commit()
            user.role = "chief"
            session.commit()
            session.rollback()

        record, _ = recorded_of(engine, handle)
        assert who(record) == ("3", "chief", "ann@example.com", "7", "acme")

    def test_a_commit_of_another_session(self, engine):
        """It expires nothing, and the attributes are read as they are."""

        def handle(request: Request, session: Session) -> None:
            log_in(request, session)
            with Session(engine) as other:
                other.add(Note())
                other.commit()

        record, _ = recorded_of(engine, handle)
        assert who(record) == ("3", "clerk", "ann@example.com", "7", "acme")

    def test_a_resolver_of_the_applications_own(self, engine):
        """Whatever the name in the state: a resolver finds the object as it was."""
        app = FastAPI()

        @app.post("/notes")
        def make(request: Request) -> None:
            with Session(engine) as session:
                request.state.account = session.get_one(User, 3)
                session.add(Note())
                session.commit()

        config = AuditConfig(
            exporter="none", actor_resolver=lambda scope: scope["state"].get("account")
        )
        with recorded(app, config=config) as records:
            call(app, "/notes")
        actor = records.one().actor
        assert (actor.id, actor.role, actor.email) == ("3", "clerk", "ann@example.com")

    def test_a_block_inside_of_the_request(self, engine):
        """A record by hand after the commit has them too."""

        def handle(request: Request, session: Session) -> None:
            log_in(request, session)
            session.add(Note())
            session.commit()
            otel_audit.emit("note.sent")

        app = FastAPI()

        @app.post("/notes")
        def make(request: Request) -> None:
            with Session(engine) as session:
                handle(request, session)

        with recorded(app, config=AuditConfig(exporter="none")) as records:
            call(app, "/notes")
        assert who(records.one("note.sent")) == ("3", "clerk", "ann@example.com", "7", "acme")

    async def test_an_asynchronous_session(self, engine_with):
        """Reading an expired attribute there would not even be possible."""
        engine = await engine_with(Base.metadata)
        async with AsyncSession(engine) as session:
            await session.run_sync(fill)
        app = FastAPI()

        @app.post("/notes")
        async def make(request: Request) -> None:
            async with AsyncSession(engine) as session:
                await session.run_sync(lambda one: log_in(request, one))
                session.add(Note())
                await session.commit()

        with recorded(app, config=AuditConfig(exporter="none")) as records:
            await call_async(app, "/notes")
        assert who(records.one()) == ("3", "clerk", "ann@example.com", "7", "acme")
        assert records.one().error is None
