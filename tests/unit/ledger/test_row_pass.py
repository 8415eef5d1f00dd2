from __future__ import annotations

import asyncio

import pytest
from otel_audit_postgres.ledger.verify import row_pass

from otel_audit.errors import StoreUnavailableError


async def test_a_cancellation_is_not_taken_for_that_of_the_snapshot():
    """Who ends the verification meanwhile ends it; that its helper is cancelled is its usual end."""

    async def keep_open():
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(600)

    kept = asyncio.create_task(keep_open())
    await asyncio.sleep(0)
    kept.cancel()
    verifying = asyncio.create_task(row_pass._ended(kept))
    await asyncio.sleep(0)
    verifying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await verifying
    kept.cancel()
    await row_pass._ended(kept)


async def test_what_cut_off_the_snapshot_is_an_error():
    """The rows were not all read at one moment then."""

    async def cut_off():
        raise OSError

    with pytest.raises(StoreUnavailableError):
        await row_pass._ended(asyncio.create_task(cut_off()))
