"""Receipts: what the store says of a record once it has it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

from otel_audit._util.backoff import Backoff
from otel_audit._util.cache import BoundedCache
from otel_audit.delivery.sink import Receipt, ReceivingSink
from otel_audit.errors import StoreUnavailableError

_BACKOFF: Final = Backoff(first=0.02, longest=0.5)
"""Seconds between two questions: the first ones come soon, because the record is on its way."""
_MOST_REMEMBERED: Final = 10_000
"""Records of this process of which it is known how they were written, about."""


class WrittenAs(NamedTuple):
    """As what a record of this process is stored: under which id, with which hash."""

    record_id: str
    content_hash: str


WRITTEN_HERE: Final[BoundedCache[str, WrittenAs]] = BoundedCache(_MOST_REMEMBERED)
"""Receipts of recently stored records of this process, by record id.

Everybody who knows an id beforehand can store another record under it; a receipt must be for ours.
"""


async def await_receipt(
    make_sink: Callable[[], ReceivingSink],
    hurry: Callable[[], None],
    record_id: str,
    timeout: float,  # noqa: ASYNC109 - the caller's bound, said in the error
    pending: Callable[[], int] = lambda: 0,
) -> Receipt:
    """Wait until the store has a record.

    Args:
        make_sink: Makes a sink for the event loop that waits.
        hurry: Asks delivery not to wait for a larger batch.
        record_id: The record's id.
        timeout: Seconds to wait.
        pending: Returns how many records of this process the store does not have yet.

    Returns:
        The store's receipt. If another record has the id, it has the id under which ours
        is stored, and ``conflict_of``.

    Raises:
        ValueError: The id is not a UUID.
        StoreUnavailableError: The store does not have it in time.
    """
    record_id = str(uuid.UUID(record_id))
    sink = make_sink()
    try:
        async with asyncio.timeout(timeout):
            return await _ask(sink, hurry, record_id, pending)
    except TimeoutError:
        raise StoreUnavailableError(
            f"the audit store does not have record {record_id} after {timeout:g} seconds; what was "
            "recorded is kept until it has, unless it is in audit.quarantine"
        ) from None
    finally:
        await sink.close()


async def _ask(
    sink: ReceivingSink, hurry: Callable[[], None], record_id: str, pending: Callable[[], int]
) -> Receipt:
    pauses = _BACKOFF.pauses()
    while True:
        hurry()
        try:
            found = await _look(sink, record_id, pending)
        except StoreUnavailableError:
            found = None
        if found is not None:
            return found
        await asyncio.sleep(next(pauses))


async def _look(sink: ReceivingSink, record_id: str, pending: Callable[[], int]) -> Receipt | None:
    # read before: a record stored meanwhile is remembered first, and then no longer pending
    is_under_way = pending() > 0
    ours = WRITTEN_HERE.get(record_id)
    if ours is not None:
        found = await sink.receipt(ours.record_id, ours.content_hash)
        if found is None or ours.record_id == record_id:
            return found
        return replace(found, conflict_of=record_id)
    # it may be ours and not stored yet: what is there under its id would be another's
    return None if is_under_way else await sink.receipt(record_id)
