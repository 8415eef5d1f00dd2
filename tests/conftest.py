"""Fixtures that many tests share: a real PostgreSQL server, and databases on it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import child_errors
import pytest
from filled_stores import FilledStore
from hypothesis import HealthCheck, settings
from payload_schema import faults_of
from postgres_servers import OwnStore, Postgres, Standby, own_server, synchronous_standby

from otel_audit._util import ratelimited_log
from otel_audit.errors import OtelAuditError
from otel_audit.testing.store import PostgresServer, embedded_server, running_server

# the same examples each time, so that the same code has the same result; `make explore` looks
# for others, and what it finds stays as an `@example`
# how long it takes to make an example says more about the machine's load than about the example
_LOADED = [HealthCheck.too_slow]
settings.register_profile(
    "usual", deadline=None, max_examples=60, derandomize=True, suppress_health_check=_LOADED
)
settings.register_profile("explore", deadline=None, max_examples=300, suppress_health_check=_LOADED)
settings.load_profile("usual")


_MEMORY = Path("/dev/shm")
_IN_MEMORY = "otel-audit-tests-"
_ROOM = 6 << 30
"""Bytes of free memory without which temporary files stay on the disk; a run needs about two."""
_FOR_EVER = {f"otel-audit-{work}" for work in ("delivery", "sync", "relay", "intents")}
"""Names of threads that go on until they are ended."""


def pytest_configure(config: pytest.Config) -> None:
    """Keep temporary files in memory: on a disk, making and removing them is a third of the time.

    Who sets TMPDIR has them there, and pytest's last ones kept.
    """
    if hasattr(config, "workerinput") or "TMPDIR" in os.environ or not _is_roomy():
        return
    for left in _MEMORY.glob(f"{_IN_MEMORY}*"):
        if not Path("/proc", left.name.removeprefix(_IN_MEMORY)).exists():
            shutil.rmtree(left, ignore_errors=True)
    place = _MEMORY / f"{_IN_MEMORY}{os.getpid()}"
    shutil.rmtree(place, ignore_errors=True)  # of an earlier process of this number
    place.mkdir(mode=0o755)  # PostgreSQL runs as another user than root
    os.environ["TMPDIR"] = tempfile.tempdir = str(place)
    config.add_cleanup(lambda: shutil.rmtree(place, ignore_errors=True))


def _is_roomy() -> bool:
    with contextlib.suppress(OSError):
        memory = Path("/proc/meminfo").read_text()
        available = int(memory.partition("MemAvailable:")[2].split()[0]) << 10
        return min(available, shutil.disk_usage(_MEMORY).free) > _ROOM
    return False


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record-losses", action="store_true", help="write what fault tests measure; loss_table.py"
    )


@pytest.hookimpl(wrapper=True)
def pytest_collect_directory(path: Path, parent: pytest.Collector) -> Generator[None, Any, Any]:
    """Have each worker read the files in another order: what one has compiled, the others load."""
    collector = yield
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    if type(collector) is pytest.Dir and worker != "0":
        collector = _TurnedDirectory.from_parent(parent, path=path)
        collector.turns = int(worker)
    return collector


class _TurnedDirectory(pytest.Dir):
    turns = 0

    def collect(self) -> list[pytest.Item | pytest.Collector]:
        entries = list(super().collect())
        if self.turns % 2:
            entries.reverse()
        middle = len(entries) // 2 if self.turns > 1 else 0
        return [*entries[middle:], *entries[:middle]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of slow tests: a worker that begins one last is waited for."""
    slow: Counter[Path] = Counter()
    for item in items:
        slow[item.path] += bool(item.get_closest_marker("slow"))
    items.sort(key=lambda item: (not slow[item.path], item.path))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """What is collected stays: looking for garbage meanwhile is a tenth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """What is loaded by now stays: `_what_is_left_open_is_found_in_its_file` need not look at it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _what_is_left_open_is_found_in_its_file() -> Iterator[None]:
    """What a test has not closed is listed at the end of its file, not in another one's test."""
    yield
    gc.collect()


@pytest.fixture(scope="module", autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    """A thread that delivers goes on for ever, and says its own in the tests of other files."""
    yield
    until = time.monotonic() + 30
    while left := {one.name for one in threading.enumerate()} & _FOR_EVER:
        assert time.monotonic() < until, f"a test of this file has not ended {left}"
        time.sleep(0.01)


@pytest.fixture(scope="module", autouse=True)
def _errors_of_shared_processes_fail(
    request: pytest.FixtureRequest, _processes_are_watched: None
) -> Iterator[None]:
    """So does what a file's server prints when it is stopped, after the last test."""
    yield
    found = child_errors.taken()
    if not request.node.get_closest_marker("allow_errors"):
        assert found == [], "an error in a process that this file's tests have started"


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
    ratelimited_log.forget()


@pytest.fixture
def only_the_test_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits may be logged by any thread of ours; one of another test's does not do so here."""
    of_the_test, really = threading.get_ident(), ratelimited_log.holds_any
    monkeypatch.setattr(
        ratelimited_log, "holds_any", lambda: threading.get_ident() != of_the_test or really()
    )


@pytest.fixture(autouse=True)
def _caught_errors_fail(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A mistake of ours does not hide behind a guard; ``allow_errors`` marks who wants a failure."""
    if request.node.get_closest_marker("allow_errors"):
        yield
        child_errors.taken()
        return
    caught: list[BaseException] = []

    def note(error: BaseException) -> None:
        # what the system or the store refuses is no mistake of ours
        if not isinstance(error, OSError | OtelAuditError):
            caught.append(error)

    monkeypatch.setattr(ratelimited_log, "on_caught", note)
    yield
    if caught:
        # an error that is no `Exception`, such as CancelledError, would leave all other fixtures of
        # the test in use, `monkeypatch` among them, and so fail each later test of this process
        raise AssertionError(
            "a guard has caught what this test does not ask for"
        ) from BaseExceptionGroup("caught", caught)
    assert child_errors.taken() == [], "an error in a process that was started"


@pytest.fixture(scope="session", autouse=True)
def _processes_are_watched() -> Iterator[None]:
    """What the processes print that tests start is searched for our errors."""
    with child_errors.watched():
        yield
    assert child_errors.taken() == [], "an error in a process that many files' tests share"


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
def audit_server() -> Iterator[PostgresServer]:
    """One server for the whole run: embedded, or the one that TEST_POSTGRES_DSN names."""
    given = os.environ.get("TEST_POSTGRES_DSN")
    with running_server(given) if given else embedded_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres(audit_server: PostgresServer) -> Postgres:
    """That server, as its superuser."""
    return Postgres(audit_server.server_dsn)


_LONGEST_TEST = timedelta(seconds=45)
"""Time that a test of the calendar may take, with its fixtures, on a machine that is busy."""


@pytest.fixture
def one_day() -> None:
    """The test begins and ends on one day of UTC, and so in one month: near midnight it waits.

    Without it a test that asks what today is, or this month, and compares, fails at midnight.
    """
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    if midnight - now < _LONGEST_TEST:
        time.sleep((midnight - now).total_seconds())


@pytest.fixture
def database(audit_server: PostgresServer) -> Iterator[str]:
    """An empty database of its own; its DSN."""
    with audit_server.database("template1") as dsn:
        yield dsn


@pytest.fixture
async def durable_server(postgres: Postgres) -> AsyncIterator[None]:
    """The server waits for the disk, as one in production does; the doctor asks it."""
    if await postgres.fetchval("SHOW fsync") == "on":
        yield
        return
    await postgres.execute("ALTER SYSTEM SET fsync = on", "SELECT pg_reload_conf()")
    while await postgres.fetchval("SHOW fsync") != "on":  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.01)
    yield
    await postgres.execute("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")


@pytest.fixture
async def own_store() -> AsyncIterator[OwnStore]:
    """A server with the audit schema that is this test's alone."""
    async with own_server() as store:
        yield store


@pytest.fixture
async def standby(own_store: OwnStore) -> AsyncIterator[Standby]:
    """A second server, without which no COMMIT of that one ends."""
    async with synchronous_standby(own_store) as standby:
        yield standby


@pytest.fixture(scope="session")
def audit_template(audit_server: PostgresServer) -> str:
    """Name of a database in which the audit schema is installed; only for copying."""
    return audit_server.template


@pytest.fixture
def copied_store() -> FilledStore | None:
    """The filled store that the test has a copy of; None: an empty one. A directory may have some."""
    return None


@pytest.fixture
def store_template(copied_store: FilledStore | None, audit_template: str) -> str:
    """Name of the database that `audit_store` is a copy of."""
    return audit_template if copied_store is None else copied_store.database


@pytest.fixture
def audit_store(audit_server: PostgresServer, store_template: str) -> Iterator[str]:
    """A database of its own with the audit schema in it; its DSN.

    Whatever a test stores there is valid by the payload's schema.
    """
    with audit_server.database(store_template) as dsn:
        yield dsn
        with ThreadPoolExecutor(1) as apart:  # the test may have a loop
            assert apart.submit(asyncio.run, _faults_in(dsn)).result() == []


_SOME_OF_EACH_KIND = """
(SELECT payload FROM audit.audit_logs LIMIT 200)
UNION ALL
(SELECT DISTINCT ON (event_name, phase, outcome, transaction_outcome, schema_version) payload
 FROM audit.audit_logs LIMIT 200)
"""


async def _faults_in(dsn: str) -> list[str]:
    """What the schema has against the payloads of a store, as far as that can be read."""
    connection = None
    try:
        connection = await asyncpg.connect(dsn)
        rows = await connection.fetch(_SOME_OF_EACH_KIND)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return []  # a test that has broken its store on purpose
    finally:
        if connection is not None:
            await connection.close()
    return [fault for row in rows for fault in faults_of(row["payload"])]
