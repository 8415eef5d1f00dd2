"""A store with months of long ago, and the same after a run."""

from __future__ import annotations

import asyncpg
import pytest
from retention_trail import APRIL, JANUARY, MARCH, Trail


@pytest.fixture
def trail(audit_store, tmp_path):
    return Trail(audit_store, tmp_path)


@pytest.fixture
async def connection(audit_store):
    connection = await asyncpg.connect(audit_store)
    yield connection
    await connection.close()


@pytest.fixture
async def months(trail):
    """January with two classes, March, April, and this month; all sealed, in shared blocks."""
    await trail.write_in(JANUARY, 30)
    await trail.seal()
    await trail.write_in(JANUARY, 12, event="auth.signed_in", actor="bob")
    await trail.write_in(MARCH, 25)
    await trail.seal()
    await trail.write_in(APRIL, 9, tenant="other")
    await trail.write(5)
    await trail.seal()
    return trail


@pytest.fixture
async def retained(months):
    """The same after a run: January to April are in the archive alone."""
    await months.retain()
    await months.seal()
    return months
