"""What the tests of ORM capture share: a capture, an action, and the two kinds of stores."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, MetaData, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from otel_audit.orm import Attachment, OrmOptions, Transactional, attach, detach
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

    faults: list[None] = field(default_factory=list)

    @property
    def errors(self) -> int:
        return len(self.faults)


@contextmanager
def capturing(
    options: OrmOptions | None = None, transactional: Transactional | None = None
) -> Iterator[Capture]:
    """Capture while the block runs."""
    orphans: list[tuple[TransactionOutcome, list[Change]]] = []
    faults: list[None] = []
    attachment = attach(
        NameRedactor(),
        options=options,
        on_orphan=lambda outcome, changes: orphans.append((outcome, list(changes))),
        transactional=transactional,
        on_error=lambda: faults.append(None),
    )
    try:
        yield Capture(attachment, orphans, faults)
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


@contextmanager
def sqlite_store(file: Path, tables: MetaData) -> Iterator[SqliteStore]:
    """A store in a file, with these tables."""
    engine = create_engine(f"sqlite:///{file}")
    tables.create_all(engine)
    yield SqliteStore(engine)
    engine.dispose()


@asynccontextmanager
async def postgres_store(url: str, tables: MetaData) -> AsyncIterator[PostgresStore]:
    """A store in a database that others use as well, with these tables until the block ends."""
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(tables.create_all)
    yield PostgresStore(engine)
    async with engine.begin() as connection:
        await connection.run_sync(tables.drop_all)
    await engine.dispose()
