"""A store with rows, its sealer, its anchor, and an administrator who tampers with it."""

from __future__ import annotations

import pytest
from filled_stores import filled_store
from ledger_store import Administrator, Log

from otel_audit._util import ratelimited_log


@pytest.fixture(scope="session")
def sealed_store(audit_server, tmp_path_factory):
    with filled_store(audit_server, tmp_path_factory.mktemp("sealed"), Log, _fill) as filled:
        yield filled


@pytest.fixture
def copied_store(request):
    """The store that the test has a copy of, if it asks for one; None: an empty one."""
    wanted = "sealed_store" in request.fixturenames
    return request.getfixturevalue("sealed_store") if wanted else None


@pytest.fixture
def log(audit_store, tmp_path, copied_store):
    ratelimited_log.forget()
    if copied_store is None:
        return Log(audit_store, tmp_path)
    return copied_store.log(Log, audit_store, tmp_path)


@pytest.fixture
def administrator(connection):
    return Administrator(connection)


@pytest.fixture
def sealed(log, sealed_store):
    """Twenty-three rows, sealed in three blocks."""
    return log


async def _fill(log):
    for count in (10, 1, 12):
        await log.write(count)
        await log.seal()
