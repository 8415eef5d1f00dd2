"""`otel-audit stream`: send what is sealed to a SIEM, a file, a webhook."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from opentelemetry import metrics

from otel_audit._util.loop_thread import run_coroutine
from otel_audit._util.printable import log_to_stderr
from otel_audit.cli.options import chosen_dsn, dsn_option, json_option
from otel_audit.cli.terminal import echo, echo_columns, echo_json
from otel_audit.errors import OtelAuditError

if TYPE_CHECKING:
    from otel_audit_postgres.connection import Connection

    from otel_audit.streams.stream import Stream

T = TypeVar("T")


def _named(_context: click.Context, _parameter: click.Parameter, name: str) -> str:
    """Refuse what can be no stream's name."""
    from otel_audit.streams.settings import NAME

    if not NAME.fullmatch(name):
        raise click.BadParameter(f"{name!r} is not a stream's name: a-z, 0-9, . _ -")
    return name


_COLUMNS = ("stream", "to", "leaf", "of", "behind", "lag", "sent", "parked", "paused", "moved")


@click.group()
def stream() -> None:
    """Send sealed records to a SIEM, a file or a webhook."""


@stream.command()
@dsn_option
@click.option(
    "--config", "file", required=True, type=click.Path(path_type=Path, dir_okay=False),
    help="The streams, in TOML.",
)  # fmt: skip
@click.option("--only", multiple=True, metavar="NAME", help="This stream only; may be repeated.")
@click.option("--once", is_flag=True, help="Send the records sealed now, then exit.")
@click.option(
    "--from", "begin", metavar="LEAF",
    help="A new stream begins at this leaf, or at 'start'. Default: with the next sealed record.",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask before history is sent.")
@click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False),
    help="Directory of the position files. Default: this user's.",
)  # fmt: skip
@click.option("--interval", default=1.0, show_default=True, help="Seconds between polls.")
@json_option
def run(  # noqa: PLR0913, PLR0917 - one for each option
    dsn: str | None,
    file: Path,
    only: tuple[str, ...],
    once: bool,
    begin: str | None,
    yes: bool,
    state: Path | None,
    interval: float,
    as_json: bool,
) -> None:
    """Send streams until SIGTERM or SIGINT.

    Any number may run: one process sends each stream, the others stand by. Refused events are
    parked, and the stream continues. Other errors are retried without end.
    """
    from otel_audit.streams.factory import make_streams
    from otel_audit.streams.metrics import publish
    from otel_audit.streams.settings import read_settings

    log_to_stderr(logging.INFO, "%(asctime)s %(levelname)s %(message)s")
    found = read_settings(file)
    for name in only:
        if name not in found:
            raise click.BadParameter(f"{file} has no stream {name!r}", param_hint="--only")
    store = chosen_dsn(dsn)
    start = None
    if begin is not None:
        start = _confirmed_start(store, begin, yes=yes, as_json=as_json)
    wanted = {name: one for name, one in found.items() if not only or name in only}
    streams = make_streams(store, wanted, state_directory=state, start=start, interval=interval)
    publish(metrics.get_meter("otel_audit"), streams)
    failed = run_coroutine(_once(streams) if once else _for_ever(streams))
    for one in streams:
        progress = one.progress
        if as_json:
            echo_json({
                "stream": one.name, "sent": progress.sent, "parked": progress.parked,
                "next_leaf": progress.next_leaf, "leaves": progress.size,
                "error": failed.get(one.name),
            })  # fmt: skip
        else:
            echo(f"{one.name}: sent {progress.sent}, parked {progress.parked}, "
                 f"at leaf {progress.next_leaf} of {progress.size}")  # fmt: skip
    if failed:
        raise click.ClickException("; ".join(failed.values()))
    if once and any(one.progress.parked for one in streams):
        raise click.ClickException("some events were refused and are parked: see stream parked")


@stream.command()
@dsn_option
@json_option
def status(dsn: str | None, as_json: bool) -> None:
    """Show how far each stream is.

    Lag is the time since the seal of the oldest unsent record.
    """
    from otel_audit_postgres import stream_positions
    from otel_audit_postgres.ledger.sealed_rows import horizon

    async def answer(connection: Connection[Any]) -> list[dict[str, Any]]:
        sealed = await horizon(connection)
        return [
            {
                "stream": one.name,
                "to": one.settings.get("kind"),
                "leaf": one.next_leaf,
                "of": sealed.size,
                "behind": sealed.size - one.next_leaf,
                "lag": round(
                    await stream_positions.waiting_for(connection, one.next_leaf, sealed), 1
                ),
                "sent": one.sent,
                "parked": one.parked,
                "paused": one.is_paused,
                "moved": one.moved_at.isoformat(timespec="seconds"),
            }
            for one in await stream_positions.positions(connection)
        ]

    found = _ask(dsn, answer)
    if as_json:
        for row in found:
            echo_json(row)
    elif not found:
        echo("no streams: run `otel-audit stream run`")
    else:
        echo_columns(_COLUMNS, [tuple(row.values()) for row in found])


@stream.command()
@dsn_option
@click.argument("name", callback=_named)
@json_option
def pause(dsn: str | None, name: str, as_json: bool) -> None:
    """Pause a stream; its position stays, so nothing is lost."""
    _set_paused(dsn, name, paused=True, as_json=as_json)


@stream.command()
@dsn_option
@click.argument("name", callback=_named)
@json_option
def resume(dsn: str | None, name: str, as_json: bool) -> None:
    """Resume a stream at its position."""
    _set_paused(dsn, name, paused=False, as_json=as_json)


@stream.command()
@dsn_option
@click.argument("name", callback=_named)
@click.option("--to-leaf", required=True, type=click.IntRange(min=0), help="Send again from here.")
@click.option("--reason", required=True, help="Why; it is recorded.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def rewind(  # noqa: PLR0913, PLR0917 - one for each option
    dsn: str | None, name: str, to_leaf: int, reason: str, yes: bool, as_json: bool
) -> None:
    """Send a stream again from a leaf on.

    The destination sees the same ids again.
    """
    from otel_audit_postgres import stream_positions

    at = _ask(dsn, lambda connection: stream_positions.position(connection, name))
    if not yes:
        _refuse_to_ask(as_json=as_json)
        click.confirm(f"send leaves {to_leaf} to {at.next_leaf} again?", abort=True)
    _ask(dsn, lambda connection: stream_positions.rewind(connection, name, to_leaf, reason))
    if as_json:
        echo_json({"stream": name, "leaf": to_leaf})
    else:
        echo(f"{name}: at leaf {to_leaf}")


@stream.command()
@dsn_option
@click.argument("name", callback=_named)
@json_option
def parked(dsn: str | None, name: str, as_json: bool) -> None:
    """List the events that a stream's destination refused."""
    from otel_audit_postgres import stream_positions

    async def answer(connection: Connection[Any]) -> list[stream_positions.Parked]:
        await stream_positions.position(connection, name)
        return await stream_positions.parked(connection, name)

    found = _ask(dsn, answer)
    if as_json:
        for one in found:
            echo_json(one._asdict())
    elif not found:
        echo("nothing is parked")
    else:
        echo_columns(("leaf", "record", "parked", "reason"), [
            (one.leaf, one.record_id, one.parked_at.isoformat(timespec="seconds"), one.reason)
            for one in found
        ])  # fmt: skip


@stream.command()
@dsn_option
@click.argument("name", callback=_named)
@json_option
def test(dsn: str | None, name: str, as_json: bool) -> None:
    """Record a test event for a stream.

    It is sent as any other record once it is sealed.
    """
    from otel_audit_postgres import stream_positions

    found = _ask(dsn, lambda connection: stream_positions.record_test(connection, name))
    if as_json:
        echo_json({"stream": name, "record_id": found})
    else:
        echo(f"recorded audit.destination.tested, record {found}")


def _ask(dsn: str | None, question: Callable[[Connection[Any]], Awaitable[T]]) -> T:
    from otel_audit_postgres.query.queries import opened
    from otel_audit_postgres.stream_positions import refuse_others

    async def answer() -> T:
        async with opened(chosen_dsn(dsn)) as connection:
            await refuse_others(connection)
            return await question(connection)

    return run_coroutine(answer())


def _refuse_to_ask(*, as_json: bool) -> None:
    if as_json:
        raise click.UsageError("with --json nothing is asked: give --yes, too")


def _set_paused(dsn: str | None, name: str, *, paused: bool, as_json: bool) -> None:
    from otel_audit_postgres import stream_positions

    changed = _ask(dsn, lambda connection: stream_positions.pause(connection, name, paused=paused))
    word = "paused" if paused else "goes on"
    if as_json:
        echo_json({"stream": name, "paused": paused, "changed": changed})
        return
    echo(f"{name}: {word}" if changed else f"{name}: was so already")


def _confirmed_start(dsn: str, begin: str, *, yes: bool, as_json: bool) -> int:
    """Read --from, and ask: history may be long, and what was sent cannot be taken back."""
    from otel_audit_postgres.ledger.sealed_rows import horizon

    if begin != "start" and not (begin.isascii() and begin.isdigit()):
        raise click.BadParameter(
            f"{begin!r} is not a leaf's number, nor 'start'", param_hint="--from"
        )
    start = 0 if begin == "start" else int(begin)
    size = _ask(dsn, horizon).size
    if start > size:
        raise click.BadParameter(f"the log has {size} leaves", param_hint="--from")
    if not yes:
        _refuse_to_ask(as_json=as_json)
        click.confirm(f"send {size - start} leaves of history to each new stream?", abort=True)
    return start


async def _once(streams: Sequence[Stream]) -> dict[str, str]:
    failed: dict[str, str] = {}
    for one in streams:
        try:
            await one.run_once()
        except OtelAuditError as error:
            failed[one.name] = _error_line(one.name, error)
        finally:
            await one.close()
    return failed


async def _for_ever(streams: Sequence[Stream]) -> dict[str, str]:
    """Run all streams until stopped. A refused stream does not stop the others."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    failed: dict[str, str] = {}

    async def go(one: Stream) -> None:
        try:
            await one.run(stop)
        except OtelAuditError as error:
            failed[one.name] = _error_line(one.name, error)
            logging.getLogger(__name__).critical("%s", failed[one.name])
        finally:
            await one.close()

    async with asyncio.TaskGroup() as group:
        for one in streams:
            group.create_task(go(one))
    return failed


def _error_line(name: str, error: OtelAuditError) -> str:
    text = str(error)
    return text if name in text else f"stream {name}: {text}"
