"""A real audit store for a test: an embedded PostgreSQL, and a database of its own in it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from otel_audit._util.embedded_server import start_server
from otel_audit.config import AuditConfig
from otel_audit.errors import MissingExtraError, StoreError, StoreUnavailableError
from otel_audit.record import AuditRecord

if TYPE_CHECKING:
    import asyncpg
    from otel_audit_postgres.ledger.verify.findings import VerificationReport

T = TypeVar("T")

# what a test stores need not outlive the machine; waiting for the disk is most of its time, and
# the log takes no more room than a small disk, or one in memory, has
_NOT_DURABLE = (
    "ALTER SYSTEM SET fsync = off",
    "ALTER SYSTEM SET full_page_writes = off",
    "ALTER SYSTEM SET max_wal_size = '128MB'",
    "ALTER SYSTEM SET min_wal_size = '32MB'",
)
_FILE_COPY = 150_000
"""From this version on, a database can be copied without writing all of it to the log, too."""


@dataclass(frozen=True)
class AuditStore:
    """An empty audit store, ready to take records.

    Attributes:
        dsn: As its owner.
    """

    dsn: str

    @property
    def config(self) -> AuditConfig:
        """The settings that deliver to it: ``otel_audit.instrument(app, config=…)``."""
        return AuditConfig(dsn=self.dsn, stream_records=False)

    def write(self, records: Iterable[AuditRecord]) -> int:
        """Store records, such as those of the fixture ``audit``; return how many are new."""
        return _run(self._write(list(records)))

    def records(self) -> list[AuditRecord]:
        """Read all records, in the order of their ids."""
        return _run(self._records())

    def verify(self) -> VerificationReport:
        """Seal the unsealed rows, and verify everything.

        Raises:
            AssertionError: Something was tampered with; the message says what.
        """
        __tracebackhide__ = True
        report = _run(self._verify())
        if not report.ok:
            found = "\n".join(
                f"  {p.kind}: {p.record_id or ''} {p.detail}" for p in report.problems
            )
            raise AssertionError(f"the audit store does not verify:\n{found}")
        return report

    async def _write(self, records: list[AuditRecord]) -> int:
        from otel_audit_postgres import PostgresSink

        sink = PostgresSink(self.dsn)
        try:
            written = await sink.write(records)
            if written.postponed:
                raise StoreError(written.why_postponed)
            return written.stored
        finally:
            await sink.close()

    async def _records(self) -> list[AuditRecord]:
        import asyncpg
        from otel_audit_postgres import record_from_payload

        connection = await asyncpg.connect(self.dsn)
        try:
            rows = await connection.fetch("SELECT payload FROM audit.audit_logs ORDER BY id")
        finally:
            await connection.close()
        return [record_from_payload(row["payload"]) for row in rows]

    async def _verify(self) -> VerificationReport:
        from otel_audit_postgres.ledger.keys import generate
        from otel_audit_postgres.ledger.sealer import Sealer
        from otel_audit_postgres.ledger.verify.verify import verify

        sealer = Sealer(self.dsn, signer=generate("otel-audit.test/log"))
        try:
            await sealer.seal()
        finally:
            await sealer.close()
        return await verify(self.dsn)


class PostgresServer:
    """A running PostgreSQL, with a database that has the audit schema and is only copied.

    Attributes:
        server_dsn: As a role that may make databases.
        template: The database that is copied.
    """

    def __init__(self, dsn: str) -> None:
        """Install the schema in a template database.

        Args:
            dsn: A role of this server that may create databases.
        """
        import otel_audit_postgres

        self.server_dsn = dsn
        version = int(_run(_value(dsn, "SHOW server_version_num")))
        self._how = " STRATEGY FILE_COPY" if version >= _FILE_COPY else ""
        # several test runs may share one server
        self.template = f"otel_audit_template_{uuid.uuid4().hex[:12]}"
        self._administrator = _Administrator(dsn)
        try:
            self._administrator.execute(f"CREATE DATABASE {self.template}")
            _run(otel_audit_postgres.init(self.dsn(self.template)))
        except BaseException:
            self._administrator.close()
            raise

    def dsn(self, database: str) -> str:
        """Name a database of this server."""
        base, mark, query = self.server_dsn.partition("?")
        return f"{base.rsplit('/', 1)[0]}/{database}{mark}{query}"

    @contextmanager
    def database(self, template: str | None = None) -> Iterator[str]:
        """Make a database for as long as the block lasts; its DSN.

        Args:
            template: The database that is copied; None: the one with the audit schema.
        """
        name = f"audit_{uuid.uuid4().hex[:12]}"
        execute = self._administrator.execute
        execute(f"CREATE DATABASE {name} TEMPLATE {template or self.template}{self._how}")
        try:
            yield self.dsn(name)
        finally:
            execute(f"DROP DATABASE {name} WITH (FORCE)")

    def close(self) -> None:
        """Drop the template database, and close the connection to the server."""
        try:
            self._administrator.execute(f"DROP DATABASE {self.template} WITH (FORCE)")
        finally:
            self._administrator.close()


class _Administrator:
    """The one connection that makes and drops databases: a new one costs half as much as they do.

    No thread is left between two statements: a test may fork.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._connection: asyncpg.Connection[Any] | None = None

    def execute(self, statement: str) -> None:
        with self._lock:
            _in_thread(lambda: self._loop.run_until_complete(self._execute(statement)))

    def close(self) -> None:
        with self._lock:
            if not self._loop.is_closed():
                _in_thread(self._close)

    def _close(self) -> None:
        try:
            if self._connection is not None:
                self._loop.run_until_complete(self._connection.close())
        finally:
            self._loop.close()

    async def _execute(self, statement: str) -> None:
        import asyncpg

        if self._connection is not None:
            try:
                await self._connection.fetchval("SELECT 1")
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                self._connection.terminate()  # a test has ended it, or its server
                self._connection = None
        if self._connection is None:
            self._connection = await asyncpg.connect(self._dsn)
        await self._connection.execute(statement)


@contextmanager
def running_server(dsn: str) -> Iterator[PostgresServer]:
    """Use a PostgreSQL that runs already, for as long as the block lasts.

    Args:
        dsn: As a role that may make databases.

    Raises:
        MissingExtraError: asyncpg is not installed.
        StoreUnavailableError: The server cannot be reached.
    """
    try:
        import asyncpg
    except ImportError as error:
        raise MissingExtraError("The fixture audit_store", "testing") from error
    try:
        server = PostgresServer(dsn)
    except (OSError, asyncpg.PostgresError, ValueError) as error:
        raise StoreUnavailableError(f"audit_server_dsn: {error}") from error
    try:
        yield server
    finally:
        server.close()


@contextmanager
def embedded_server() -> Iterator[PostgresServer]:
    """Run PostgreSQL for as long as the block lasts; it listens on no network.

    It does not wait for the disk: a crash of the machine loses what a test has stored.

    Raises:
        MissingExtraError: The package that brings PostgreSQL, or asyncpg, is not installed.
    """
    directory = Path(tempfile.mkdtemp(prefix="otel-audit-test-"))
    try:
        server = start_server(directory / "data", "The fixture audit_store", "testing")
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    try:
        _run(_execute(server.get_uri(), *_NOT_DURABLE, "SELECT pg_reload_conf()"))
        store = PostgresServer(server.get_uri())
        try:
            yield store
        finally:
            store.close()
    finally:
        server.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


async def _value(dsn: str, query: str) -> Any:
    import asyncpg

    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def _execute(dsn: str, *statements: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run it on a loop of its own, in a thread of its own: the test may have a loop, too."""
    return _in_thread(lambda: asyncio.run(work))


def _in_thread(work: Callable[[], T]) -> T:
    answer: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            answer.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again by who waits
            failure.append(error)

    thread = threading.Thread(target=run, name="otel-audit-test-store")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return answer[0]
