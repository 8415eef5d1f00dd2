"""ORM capture at work, on SQLite and on PostgreSQL through asyncpg."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from orm_models import Base, PostgresBase
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from otel_audit.capture.orm import Attachment, OrmOptions, attach, detach
from otel_audit.record import Change, TransactionOutcome
from otel_audit.scope import AuditScope, enter, leave


class NameRedactor:
    """Redacts what is called a password or a token."""

    def field(self, name: str, value: Any) -> Any:
        return "***" if "password" in name or "token" in name else value

    def text(self, text: str) -> str:
        return text.replace("hunter2", "***")

    def hashed(self, value: Any) -> str:
        return f"hash:{len(str(value))}"


@dataclass
class Capture:
    """An attachment, and what came of transactions outside any action."""

    attachment: Attachment
    orphans: list[tuple[TransactionOutcome, list[Change]]] = field(default_factory=list)

    @property
    def errors(self) -> int:
        return self.attachment.capture_errors


@contextmanager
def capturing(options: OrmOptions | None = None) -> Iterator[Capture]:
    """Capture while the block runs."""
    orphans: list[tuple[TransactionOutcome, list[Change]]] = []
    attachment = attach(
        NameRedactor(),
        options=options,
        on_orphan=lambda outcome, changes: orphans.append((outcome, changes)),
    )
    try:
        yield Capture(attachment, orphans)
    finally:
        detach(attachment)


@contextmanager
def action() -> Iterator[AuditScope]:
    """An action under way while the block runs."""
    scope = AuditScope()
    token = enter(scope)
    try:
        yield scope
    finally:
        leave(token)


@pytest.fixture
def capture() -> Iterator[Capture]:
    """Capture with default options; a test that makes it fail says so itself."""
    with capturing() as found:
        yield found
    assert found.errors == 0


class Store:
    """A database that runs an application's synchronous session code."""

    name: str

    async def run(self, work: Callable[[Session], Any], **session: Any) -> Any:
        """Run code in a session that is closed afterwards, and committed only by the code."""
        raise NotImplementedError

    async def changes(self, work: Callable[[Session], Any], **session: Any) -> list[Change]:
        """Run code in a session, commit, and return what was recorded."""

        def committing(found: Session) -> None:
            work(found)
            found.commit()

        with action() as scope:
            await self.run(committing, **session)
        assert scope.changes_pending == 0
        return scope.changes


class SqliteStore(Store):
    name = "sqlite"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def run(self, work, **session):
        with Session(self.engine, **session) as found:
            return work(found)


class PostgresStore(Store):
    name = "postgres"

    def __init__(self, engine: AsyncEngine) -> None:
        self.async_engine = engine
        self.engine = engine.sync_engine

    async def run(self, work, **session):
        async with AsyncSession(self.async_engine, **session) as found:
            return await found.run_sync(work)


@pytest.fixture(scope="session")
def orm_dsn(postgres) -> str:
    """A database with the models' tables, shared by all tests."""
    name = "orm_capture"

    async def prepare() -> None:
        await postgres.execute(f"CREATE DATABASE {name}")
        engine = create_async_engine(_url(postgres.dsn(name)), poolclass=NullPool)
        async with engine.begin() as connection:
            await connection.execute(text("CREATE SCHEMA audit"))
            await connection.run_sync(Base.metadata.create_all)
            await connection.run_sync(PostgresBase.metadata.create_all)
        await engine.dispose()

    asyncio.run(prepare())
    return _url(postgres.dsn(name))


def _url(dsn: str) -> str:
    return dsn.replace("postgresql://", "postgresql+asyncpg://").replace(
        "postgres://", "postgresql+asyncpg://"
    )


@pytest.fixture
async def pg(orm_dsn):
    """PostgreSQL, emptied after the test."""
    engine = create_async_engine(orm_dsn)
    yield PostgresStore(engine)
    tables = [*Base.metadata.sorted_tables, *PostgresBase.metadata.sorted_tables]
    names = ", ".join(table.fullname for table in tables)
    async with engine.begin() as connection:
        await connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
    await engine.dispose()


@pytest.fixture
def sqlite(tmp_path):
    """SQLite in a file, with foreign keys and real savepoints."""
    engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}")

    @event.listens_for(engine, "connect")
    def _connect(connection, _record):
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = OFF")

    @event.listens_for(engine, "begin")
    def _begin(connection):
        connection.exec_driver_sql("BEGIN")

    Base.metadata.create_all(engine)
    yield SqliteStore(engine)
    engine.dispose()


@pytest.fixture(params=["sqlite", "pg"])
def store(request):
    """Either database."""
    return request.getfixturevalue(request.param)
