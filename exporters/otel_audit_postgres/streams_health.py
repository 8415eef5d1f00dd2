"""Whether each stream brings on what is sealed."""

from __future__ import annotations

from typing import Any, Final

from otel_audit._util.check_result import CheckResult
from otel_audit_postgres import stream_positions
from otel_audit_postgres.connection import Connection, InsufficientPrivilegeError
from otel_audit_postgres.ledger.sealed_rows import horizon
from otel_audit_postgres.query.queries import opened

LATE: Final = 300.0
"""Seconds that a sealed record may wait for its stream before the health check reports it."""


async def inspect_streams(dsn: str) -> list[CheckResult]:
    """Look at each stream's position, and at what its destination refused.

    Args:
        dsn: The audit store, as a role that may read it, or send streams.

    Returns:
        A finding for each stream; none where there are no streams.

    Raises:
        StoreError: The store cannot be asked.
    """
    async with opened(dsn) as connection:
        try:
            found = await stream_positions.positions(connection)
        except InsufficientPrivilegeError:
            return [
                CheckResult(
                    "streams", ok=True, detail="not seen: this role may not read (--reader-dsn)"
                )
            ]
        return [await _inspect(connection, one) for one in found]


async def _inspect(connection: Connection[Any], at: stream_positions.StreamPosition) -> CheckResult:
    name = f"stream {at.name}"
    try:
        await stream_positions.check_position(connection, at)
    except stream_positions.PositionError as error:
        reason = str(error).removeprefix(f"{name}: ")
        return CheckResult(
            name,
            ok=False,
            detail=reason,
            remedy=f"find out why; then otel-audit stream rewind {at.name}",
        )
    sealed = await horizon(connection)
    behind = sealed.size - at.next_leaf
    lag = await stream_positions.waiting_for(connection, at.next_leaf, sealed)
    if at.is_paused:
        return CheckResult(
            name, ok=None, detail=f"is paused, {behind:,} leaves behind",
            remedy=f"otel-audit stream resume {at.name}",
        )  # fmt: skip
    if lag > LATE:
        return CheckResult(
            name, ok=None,
            detail=f"is {behind:,} leaves behind; the oldest was sealed {_in_words(lag)} ago, and "
            f"the stream moved last at {at.moved_at.isoformat(timespec='seconds')}",
            remedy="see that `otel-audit stream run` runs; its log says what the destination does",
        )  # fmt: skip
    parked = await stream_positions.count_parked(connection, at)
    if parked:
        return CheckResult(
            name, ok=None, detail=f"its destination refused {parked:,} records, which are parked",
            remedy=f"see why: otel-audit stream parked {at.name}; correct it, and rewind to the "
            "first of them",
        )  # fmt: skip
    return CheckResult(name, ok=True, detail=f"at leaf {at.next_leaf:,} of {sealed.size:,}")


def _in_words(seconds: float) -> str:
    minutes = int(seconds // 60)
    return f"{minutes} minutes" if minutes < 120 else f"{minutes // 60} hours"  # noqa: PLR2004 - two hours
