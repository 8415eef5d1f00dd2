"""A store in which October is, the same to the byte each time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from filled_stores import FilledStore, filled_store
from report_store import ReportStore

from otel_audit.testing.store import PostgresServer


@pytest.fixture(scope="session")
def october_store(
    audit_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FilledStore]:
    directory = tmp_path_factory.mktemp("october")
    with filled_store(audit_server, directory, ReportStore, ReportStore.fill) as filled:
        yield filled


@pytest.fixture
def copied_store(request: pytest.FixtureRequest) -> FilledStore | None:
    """The store that the test has a copy of, if it asks for one; None: an empty one."""
    if "october_store" not in request.fixturenames:
        return None
    found: FilledStore = request.getfixturevalue("october_store")
    return found


@pytest.fixture
def store(audit_store: str, tmp_path: Path, october_store: FilledStore) -> ReportStore:
    """October, sealed."""
    found: ReportStore = october_store.log(ReportStore, audit_store, tmp_path)
    return found
