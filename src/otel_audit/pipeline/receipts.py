"""Receipts: what the store says of a record once it has it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Final, Protocol

from otel_audit.errors import StoreUnavailableError
from otel_audit.pipeline.sink import Receipt

_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.5


class GivesReceipts(Protocol):
    """A sink that can say what it has."""

    async def receipt(self, record_id: str) -> Receipt | None:
        """Say what is stored under an id; None where nothing is."""

    async def close(self) -> None:
        """Give back connections."""


async def await_receipt(
    make_sink: Callable[[], GivesReceipts],
    hurry: Callable[[], None],
    record_id: str,
    timeout: float,  # noqa: ASYNC109 - the caller's bound, said in the error
) -> Receipt:
    """Wait until the store has a record.

    Args:
        make_sink: Makes a sink for the event loop that waits.
        hurry: Asks delivery not to wait for company.
        record_id: The record's id.
        timeout: Seconds to wait.

    Returns:
        What the store says.

    Raises:
        ValueError: The id is no UUID.
        StoreUnavailableError: The store does not have it in time.
    """
    record_id = str(uuid.UUID(record_id))
    sink = make_sink()
    try:
        async with asyncio.timeout(timeout):
            return await _ask(sink, hurry, record_id)
    except TimeoutError:
        raise StoreUnavailableError(
            f"the audit store does not have record {record_id} after {timeout:g} seconds; what was "
            "recorded is kept until it has, unless it is in audit.quarantine"
        ) from None
    finally:
        await sink.close()


async def _ask(sink: GivesReceipts, hurry: Callable[[], None], record_id: str) -> Receipt:
    pause = _FIRST_PAUSE
    while True:
        hurry()
        try:
            found = await sink.receipt(record_id)
        except StoreUnavailableError:
            found = None
        if found is not None:
            return found
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)
