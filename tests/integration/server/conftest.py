"""A sink process with an empty store behind it: one for a whole module, or one for a test."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import pytest
from sinks import Sink, serving


class Stored:
    """What is in the store."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    async def fetch(self, query: str, *parameters: object) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.dsn)
        try:
            return await connection.fetch(query, *parameters)
        finally:
            await connection.close()

    async def rows(self, actor: str | None = None) -> list[asyncpg.Record]:
        return await self.fetch(
            "SELECT * FROM audit.audit_logs WHERE $1::text IS NULL OR actor_id = $1 "
            "ORDER BY occurred_at, id",
            actor,
        )

    async def quarantine(self, holding: str = "") -> list[asyncpg.Record]:
        return await self.fetch(
            "SELECT * FROM audit.quarantine WHERE position($1 in received) > 0 OR $1 = '' "
            "ORDER BY recorded_at",
            holding,
        )

    async def count(self) -> int:
        return (await self.fetch("SELECT count(*) FROM audit.audit_logs"))[0][0]


@pytest.fixture
def sink(tmp_path: Path, audit_store: str) -> Iterator[Sink]:
    """A sink process with one unbound token, and its client."""
    with serving(tmp_path, audit_store) as found:
        yield found


@pytest.fixture
def stored(audit_store: str) -> Stored:
    return Stored(audit_store)


@pytest.fixture
def actor() -> str:
    """An actor whom no other test has."""
    return f"user-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="module")
def shared_store(postgres, audit_template: str) -> Iterator[Stored]:
    """A store for a whole module; its tests tell their rows by the actor."""
    name = f"audit_{uuid.uuid4().hex[:12]}"
    with ThreadPoolExecutor(1) as pool:
        create = f"CREATE DATABASE {name} TEMPLATE {audit_template}"
        pool.submit(asyncio.run, postgres.execute(create)).result()
        yield Stored(postgres.dsn(name))
        drop = f"DROP DATABASE {name} WITH (FORCE)"
        pool.submit(asyncio.run, postgres.execute(drop)).result()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, shared_store: Stored) -> Iterator[Sink]:
    """A sink process for a whole module."""
    with serving(tmp_path_factory.mktemp("sink"), shared_store.dsn) as found:
        yield found
