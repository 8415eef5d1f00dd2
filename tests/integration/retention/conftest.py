"""A store with months of long ago, and the same after a run."""

from __future__ import annotations

import pytest
from filled_stores import filled_store
from retention_trail import APRIL, JANUARY, MARCH, Trail


@pytest.fixture(scope="session")
def months_store(audit_server, tmp_path_factory):
    directory = tmp_path_factory.mktemp("months")
    with filled_store(audit_server, directory, Trail, _fill_months) as filled:
        yield filled


@pytest.fixture(scope="session")
def retained_store(audit_server, months_store, tmp_path_factory):
    directory = tmp_path_factory.mktemp("retained")
    with filled_store(audit_server, directory, Trail, _retain, months_store) as filled:
        yield filled


@pytest.fixture
def copied_store(request):
    """The store that the test has a copy of, if it asks for one; None: an empty one."""
    for name in ("retained_store", "months_store"):
        if name in request.fixturenames:
            return request.getfixturevalue(name)
    return None


@pytest.fixture
def trail(audit_store, tmp_path, copied_store):
    return (
        Trail(audit_store, tmp_path)
        if copied_store is None
        else copied_store.log(Trail, audit_store, tmp_path)
    )


@pytest.fixture
def keys_dsn(audit_server):
    """A database for keys, still empty."""
    with audit_server.database("template1") as dsn:
        yield dsn


@pytest.fixture
def months(trail, months_store):
    """January with two classes, March, April, and this month; all sealed, in shared blocks."""
    return trail


@pytest.fixture
def retained(months, retained_store):
    """The same after a run: January to April are in the archive alone."""
    return months


async def _fill_months(trail):
    await trail.write_in(JANUARY, 30)
    await trail.seal()
    await trail.write_in(JANUARY, 12, event="auth.signed_in", actor="bob")
    await trail.write_in(MARCH, 25)
    await trail.seal()
    await trail.write_in(APRIL, 9, tenant="other")
    await trail.write(5)
    await trail.seal()


async def _retain(trail):
    await trail.retain()
    await trail.seal()
