"""ORM capture at work, on SQLite and on PostgreSQL through asyncpg."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import orm_items
import pytest
from orm_harness import Capture, PostgresStore, SqliteStore, capturing
from orm_models import Base, PostgresBase
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool


@pytest.fixture
def capture() -> Iterator[Capture]:
    """Capture with default options; a test that makes it fail says so itself."""
    with capturing() as found:
        yield found
    assert found.errors == 0


@pytest.fixture
def items(tmp_path: Path) -> Iterator[Engine]:
    """A database with the table of `orm_items`."""
    engine = create_engine(f"sqlite:///{tmp_path / 'items.db'}")
    orm_items.Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


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
