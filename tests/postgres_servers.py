"""Servers of the versions that must hold: the embedded one, and those that the machine has."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest


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
