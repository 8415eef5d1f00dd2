"""Records of a host whose clock is wrong: ids that the store refuses, and those in their place."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from otel_audit._util.ids import derived_uuid7, lowest_id
from otel_audit.action.compose import stored_as
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.copy_load import SMALLEST_LOAD
from otel_audit_postgres.rows import Row, to_row

_ID_CHECK: Final = "well_formed_id"
"""The store's check of a record's id. Of an id of ours, it refuses only a time over a day ahead."""
_NOW: Final = "SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
_DAY: Final = 86_400_000
"""Milliseconds of a day."""
_MADE_AT_A_TIME: Final = 64
"""Rows that are made before the event loop has a turn."""


def is_of_future(error: Exception | None) -> bool:
    """Return whether a row is refused because its id's time is too far ahead."""
    return getattr(error, "constraint_name", None) == _ID_CHECK


async def now(connection: Connection[Any], seconds: float) -> int:
    """The database's time, which decides: milliseconds since the Unix epoch.

    Args:
        connection: To the store.
        seconds: Seconds that the answer may take.
    """
    milliseconds: int = await connection.fetchval(_NOW, timeout=seconds)
    return milliseconds


def split_future(rows: Sequence[Row], at: int) -> tuple[list[Row], list[Row]]:
    """Split rows into those whose ids the store refuses at a time, by its clock, and the others."""
    too_late = lowest_id(at + _DAY).bytes
    ahead = [row for row in rows if row.row_id >= too_late]
    return ahead, [row for row in rows if row.row_id < too_late]


async def at_present(rows: Sequence[Row], at: int) -> list[Row]:
    """Make rows again under ids of today.

    A record's id is the same all day by the server's clock, so that a retry stores nothing twice.

    Args:
        rows: What is of the future.
        at: The database's time, as from `now`.
    """
    today = at // _DAY * _DAY * 10**6
    moved: list[Row] = []
    for place, row in enumerate(rows):
        if place and place % _MADE_AT_A_TIME == 0:
            await asyncio.sleep(0)
        content = row.content_hash if row.received_hash is None else row.received_hash
        record_id = derived_uuid7(today, str(row.id), content.hex())
        record = stored_as(row.record, record_id, str(row.id))
        moved.append(to_row(record, to_copy=len(rows) >= SMALLEST_LOAD))
    return moved
