"""Stores that are filled once: a test that needs one has a copy of it, which is much quicker."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
from ledger_store import Log

from otel_audit.testing.store import PostgresServer


@dataclass(frozen=True)
class FilledStore:
    """A database that is only copied, with the files that belong to it.

    Attributes:
        database: Its name.
        directory: Where its anchor is, and its archive if it has one.
        key: The sealer's.
    """

    database: str
    directory: Path
    key: Any

    def log(self, kind: type[Log], dsn: str, directory: Path) -> Any:
        """Take over a copy of the database, with copies of the files in another directory."""
        shutil.copytree(self.directory, directory, dirs_exist_ok=True)
        _run_apart(_move_ledger(dsn))
        return kind(dsn, directory, self.key)


@contextmanager
def filled_store(
    server: PostgresServer,
    directory: Path,
    kind: type[Log],
    fill: Callable[[Any], Coroutine[Any, Any, object]],
    base: FilledStore | None = None,
) -> Iterator[FilledStore]:
    """Fill a store; it is there for as long as the block lasts.

    Args:
        server: Where.
        directory: An empty one, for its files.
        kind: Makes what fills it.
        fill: Fills it; no connection may be open afterwards.
        base: The store that it is a copy of at first; None: an empty one.
    """
    with server.database(base and base.database) as dsn:
        log = kind(dsn, directory) if base is None else base.log(kind, dsn, directory)

        _run_apart(fill(log))
        name = dsn.partition("?")[0].rpartition("/")[2]
        yield FilledStore(name, directory, log.key)


async def _move_ledger(dsn: str) -> None:
    """Nobody seals a copy of a log unless it is said to have moved there."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("SELECT audit.move_ledger_here()")
    finally:
        await connection.close()


def _run_apart(work: Coroutine[Any, Any, object]) -> None:
    with ThreadPoolExecutor(1) as apart:  # the test may have a loop
        apart.submit(asyncio.run, work).result()
