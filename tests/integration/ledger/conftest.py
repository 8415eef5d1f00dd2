"""A store with rows, its sealer, its anchor, and an administrator who tampers with it."""

from __future__ import annotations

import pytest
from filled_stores import filled_store
from ledger_store import Administrator, Log

from otel_audit._util import ratelimited_log

PATIENCE = "otel_audit_postgres.ledger.publish_anchors.PATIENCE"


@pytest.fixture(autouse=True)
def _anchors_are_waited_for(monkeypatch):
    """A round of sealing waits only so long for an anchor, which a busy machine may take."""
    monkeypatch.setattr(PATIENCE, 30)


@pytest.fixture
def hanging_anchors(_anchors_are_waited_for, monkeypatch):
    """The test has an anchor that does not answer: it is waited for as in production."""
    monkeypatch.setattr(PATIENCE, 2.0)


@pytest.fixture(scope="session")
def sealed_store(audit_server, tmp_path_factory):
    directory = tmp_path_factory.mktemp("sealed")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PATIENCE, 30)
        with filled_store(audit_server, directory, Log, _fill) as filled:
            patched.undo()
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
