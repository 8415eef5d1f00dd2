"""What the tests of the store share."""

from __future__ import annotations

import asyncpg
import pytest


@pytest.fixture
async def admin(audit_store):
    """A connection of the store's owner."""
    connection = await asyncpg.connect(audit_store)
    yield connection
    await connection.close()
