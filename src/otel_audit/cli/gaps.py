"""`otel-audit gaps`: what is missing from the trail, by the numbers of its records."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from otel_audit._util.loop_thread import run_coroutine
from otel_audit.cli.options import chosen_dsn, dsn_option, json_option, read_time, seconds
from otel_audit.cli.terminal import echo, echo_json

if TYPE_CHECKING:
    from otel_audit_postgres.query.gaps import ProducerStream

_RANGES_SHOWN = 20
"""Ranges on a screen; what is left out is counted."""


@click.command()
@dsn_option
@click.option(
    "--since",
    metavar="TIME",
    help="Look at records since then: 12h, 7d, yesterday, ISO 8601.",
)
@click.option(
    "--quiet-after",
    callback=seconds,
    default="15m",
    show_default=True,
    metavar="DURATION",
    help="A process is cut off if it was silent for so long and has not ended its stream. Give "
    "more than twice OTEL_AUDIT_HEARTBEAT_INTERVAL.",
)
@json_option
def gaps(dsn: str | None, since: str | None, quiet_after: float, as_json: bool) -> None:
    """Report missing records and processes that were cut off.

    Each process numbers its records from 1. Exit status 1 if anything is missing. A producer id
    belongs to the credential that used it first; records under it by others are a warning.
    """
    from otel_audit_postgres.query.gaps import find_gaps

    streams = run_coroutine(find_gaps(chosen_dsn(dsn), since=read_time(since)))
    first = [stream for stream in streams if stream.is_first]
    faulty = [stream for stream in first if stream.missing or _is_cut_off(stream, quiet_after)]
    if as_json:
        echo_json({
            "producers": len(first),
            "faulty": [_as_json(stream, quiet_after) for stream in faulty],
            "warnings": list(_warnings(streams)),
        })  # fmt: skip
        sys.exit(1 if faulty else 0)
    for stream in faulty:
        for line in _lines(stream, quiet_after):
            echo(line)
    for line in _warnings(streams):
        echo(line)
    streams = first
    missing = sum(stream.missing_count for stream in streams)
    at_least = sum(stream.lost_at_least for stream in streams)
    cut_off = sum(_is_cut_off(stream, quiet_after) for stream in streams)
    echo(
        f"{_number(len(streams), 'producer')}: {_number(missing, 'number')} missing, at least "
        f"{_number(at_least, 'record')} lost, {_number(cut_off, 'process', 'processes')} cut off"
    )
    sys.exit(1 if faulty else 0)


def _number(number: int, one: str, more: str | None = None) -> str:
    return f"{number} {one if number == 1 else more or one + 's'}"


def _as_json(stream: ProducerStream, quiet_after: float) -> dict[str, object]:
    return {
        "producer": stream.producer_id, "service": stream.service, "by": stream.received_by,
        "highest": stream.highest, "missing": stream.missing, "unnumbered": stream.unnumbered,
        "lost_at_least": stream.lost_at_least, "heard": stream.heard,
        "is_cut_off": _is_cut_off(stream, quiet_after),
    }  # fmt: skip


def _is_cut_off(stream: ProducerStream, quiet_after: float) -> bool:
    return not stream.ended and stream.silent_for >= quiet_after


def _warnings(streams: Sequence[ProducerStream]) -> Iterator[str]:
    for stream in streams:
        if not stream.is_first:
            yield (
                f"warning: {_named(stream)} uses the id of a producer that came by another "
                "credential before; its numbers are not counted. Is it the same producer, on two "
                "ways, then give the tokens of both one name; else see who sent it"
            )
        if stream.conflicts:
            yield (
                f"warning: {_named(stream)}: {stream.conflicts} of its records came under ids that "
                "were not theirs, and are stored under others: otel-audit verify names them"
            )


def _named(stream: ProducerStream) -> str:
    by = "" if stream.received_by is None else f", by {stream.received_by}"
    return f"producer {stream.producer_id} ({stream.service or 'unknown service'}{by})"


def _lines(stream: ProducerStream, quiet_after: float) -> Iterator[str]:
    yield f"{_named(stream)}, numbers up to {stream.highest}:"
    if stream.missing:
        shown = ", ".join(
            str(first) if first == last else f"{first}-{last}"
            for first, last in stream.missing[:_RANGES_SHOWN]
        )
        more = len(stream.missing) - _RANGES_SHOWN
        yield f"  missing: {shown}" + (f", and {more} more ranges" if more > 0 else "")
    if stream.unnumbered:
        yield (
            f"  {stream.unnumbered} records of actions that were cut off before they had a number"
        )
    if _is_cut_off(stream, quiet_after):
        yield (
            f"  cut off, last record {stream.heard:%Y-%m-%d %H:%M:%S %Z}: "
            f"what came after number {stream.highest} is not known"
        )
    yield f"  at least {stream.lost_at_least} records lost"
