"""`otel-audit dev`: a store, the application and its records, with one command."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from otel_audit._util.loop_thread import run_in_thread
from otel_audit.cli.dev_store import (
    FOLDER,
    WRITER,
    DevStore,
    made_folder,
    opened_for_reading,
    running_store,
)
from otel_audit.cli.follow import Tail
from otel_audit.cli.listing import Line, Table
from otel_audit.cli.record_panel import change_lines, rolled_back_line
from otel_audit.cli.terminal import echo
from otel_audit.cli.web import VIEWER_PORT, viewer_app, viewer_server
from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError
from otel_audit_bootstrap.run import NO_COMMAND, find_command, prepare

if TYPE_CHECKING:
    from otel_audit_postgres.connection import Connection

_LOOK_EVERY: Final = 0.3
"""Seconds between two looks for new records: a person sees no delay, and the store is not kept
busy."""
_HOST: Final = "127.0.0.1"
_BY_SIGNAL: Final = 128
"""What a shell adds to the number of the signal that ended a command."""
_ENDS_WELL: Final = frozenset({0, _BY_SIGNAL + signal.SIGINT, _BY_SIGNAL + signal.SIGTERM})
_NOTHING_SEEN: Final = (
    "no record: by default requests that only read are not recorded; see otel-audit policy routes"
)


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--service", metavar="NAME", help="The service's name; by default the directory's.")
@click.option("--viewer/--no-viewer", "shows_viewer", default=True, help="Run the viewer, too.")
@click.argument("command", nargs=-1, required=True, metavar="CMD...", type=click.UNPROCESSED)
def dev(service: str | None, shows_viewer: bool, command: tuple[str, ...]) -> None:
    """Run an application with an audit store of its own.

    For example: otel-audit dev uvicorn app:app. Its records are printed as they arrive. The store
    is an embedded PostgreSQL in .otel-audit/, kept between runs. Needs the extra dev.
    """
    executable = find_command(command[0])
    if executable is None:
        echo(f"there is no command {command[0]}", err=True)
        sys.exit(NO_COMMAND)
    _check_settings()
    folder = made_folder(Path.cwd())
    echo(f"starting PostgreSQL in {FOLDER}/ ...", err=True)
    began = time.monotonic()
    with running_store(folder) as store:
        _print_place(store, time.monotonic() - began)
        environment = _environment(store, service or Path.cwd().name)
        # what is printed here is no look of anybody's at a trail of others
        os.environ.update(OTEL_AUDIT_DSN=store.reader, OTEL_AUDIT_RECORD_VIEWS="off")
        seen: list[int] = []
        with _viewer(store) if shows_viewer else contextlib.nullcontext(), _printing(store, seen):
            status = _run([executable, *command[1:]], environment)
        if status in _ENDS_WELL and not any(seen):
            echo(_NOTHING_SEEN, err=True)
    sys.exit(status)


def _check_settings() -> None:
    """Read the application's settings before a server is started for it.

    Raises:
        ConfigurationError: One is wrong, or leaves auditing off.
    """
    config = AuditConfig(dsn=f"postgresql://{WRITER}@localhost/audit", exporter="postgres")
    if not config.active:
        raise ConfigurationError("OTEL_AUDIT_ENABLED=false leaves auditing off: unset it")


def _print_place(store: DevStore, seconds: float) -> None:
    for directory in opened_for_reading(store):
        echo(
            f"as root the embedded PostgreSQL has a user of its own, and opens {directory} for "
            "reading to it: run this as another user if that must not be",
            colour="yellow", err=True,
        )  # fmt: skip
    echo(
        f"audit store: {store.data}, ready in {seconds:.1f} s; kept between runs, remove it to "
        "begin anew"
    )
    echo(f"to ask it: export OTEL_AUDIT_DSN='{store.reader}'; otel-audit search")


def _environment(store: DevStore, service: str) -> dict[str, str]:
    environment = {
        **os.environ,
        "OTEL_AUDIT_DSN": store.writer,
        "OTEL_AUDIT_EXPORTER": "postgres",
        "OTEL_AUDIT_SPOOL_DIR": str(store.folder.resolve() / "spool"),
    }
    environment.setdefault("OTEL_SERVICE_NAME", service)
    # who tries auditing wants to hear at once of a setting that leaves it off
    environment.setdefault("OTEL_AUDIT_REQUIRED", "true")
    # and to see what was tried where it came to nothing
    environment.setdefault("OTEL_AUDIT_ORM_KEEP_ROLLED_BACK", "true")
    line = prepare(environment)
    if line:
        echo(line, err=True)
    return environment


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a program to its end; who ends this, ends that."""
    process = subprocess.Popen(command, env=environment)  # noqa: S603 - the user's own command
    interrupts = 0

    def interrupt(*_: object) -> None:
        nonlocal interrupts
        interrupts += 1
        # a first Ctrl-C has reached both, and to many a program a second one means: at once
        if interrupts > 1 or not _is_in_foreground():
            process.send_signal(signal.SIGINT)

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, interrupt),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process.terminate()),
    }
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else _BY_SIGNAL - status


def _is_in_foreground() -> bool:
    """Whether a Ctrl-C of the terminal reaches this process, and so the program, too."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


@contextlib.contextmanager
def _printing(store: DevStore, seen: list[int]) -> Iterator[None]:
    """Print records as they arrive, and the last ones at the end; count them."""
    ready, stop = threading.Event(), threading.Event()
    show_rows = Table(is_local=True).print

    def show(lines: Sequence[Line]) -> None:
        seen.append(len(lines))
        show_rows(lines)

    watching = run_in_thread("otel-audit-dev", lambda: _watch(store.reader, ready, stop, show))
    # what the application does first is to be printed; a store that is slow must not keep it back
    ready.wait(timeout=60)
    try:
        yield
    finally:
        stop.set()
        watching.result()


async def _watch(
    dsn: str,
    ready: threading.Event,
    stop: threading.Event,
    show: Callable[[Sequence[Line]], None],
) -> None:
    from otel_audit_postgres.query.grammar import Query
    from otel_audit_postgres.query.own_events import without_own
    from otel_audit_postgres.query.queries import opened

    tail = Tail(without_own(Query(())))
    try:
        async with opened(dsn) as connection:
            await tail.begin(connection)
            ready.set()
            is_last = False
            while not is_last or tail.is_behind:
                is_last = stop.is_set()
                show(await _with_changes(connection, await tail.read(connection)))
                await asyncio.sleep(0 if is_last else _LOOK_EVERY)
    finally:
        ready.set()


async def _with_changes(connection: Connection[Any], lines: Sequence[Line]) -> list[Line]:
    from otel_audit_postgres.query.display import entity_changes, read_record
    from otel_audit_postgres.query.payloads import payload_texts

    known = await payload_texts(connection, [line.found for line in lines]) if lines else {}
    return [
        replace(
            line,
            found=replace(line.found, actor_reason=record.actor.reason),
            details=[*change_lines(entity_changes(record)), *rolled_back_line(record)],
        )
        if (text := known.get((line.found.id, line.found.tenant_id)))
        and (record := read_record(text, bodies=False))
        else line
        for line in lines
    ]


@contextlib.contextmanager
def _viewer(store: DevStore) -> Iterator[None]:
    """Run the viewer, if its extra is installed, and print its link."""
    try:
        import uvicorn

        from otel_audit.viewer.authentication import OneTimeLink
        from otel_audit.viewer.identity import Viewer
    except ImportError:
        echo("for a viewer: pip install 'otel-audit[viewer]'", err=True)
        yield
        return
    authenticate = OneTimeLink(Viewer("developer", "auditor", None))
    app = viewer_app(store.reader, (), authenticate, _HOST)

    def announce(url: str) -> None:
        echo(f"viewer: {url}/sign-in?link={authenticate.new_link()} (the link works once)")

    server = viewer_server(uvicorn, app, _HOST, _free_port(), announce)
    thread = threading.Thread(target=server.run, name="otel-audit-viewer", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        # an open page may hold its connection; the thread ends with the process anyway
        thread.join(timeout=5)


def _free_port() -> int:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((_HOST, VIEWER_PORT))
        except OSError:
            return 0
    return VIEWER_PORT
