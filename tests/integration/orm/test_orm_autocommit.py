"""Whether a write is committed is asked of the driver's connection, not of an option."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
from orm_harness import PostgresStore, SqliteStore, Store, action
from orm_models import Base, Customer, Tag
from sqlalchemy import Engine, create_engine, event, insert, select, text
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

Connect = Callable[..., Engine]

POSTGRES = ("psycopg", "psycopg2")


@pytest.fixture
def connect(orm_dsn: str, pg: PostgresStore) -> Iterator[Connect]:
    """Make an engine over the shared database, which is emptied after the test."""
    engines: list[Engine] = []

    def made(driver: str, **arguments: object) -> Engine:
        url = orm_dsn.replace("+asyncpg", f"+{driver}")
        engines.append(create_engine(url, **arguments))
        return engines[-1]

    assert pg.name == "postgres"
    yield made
    for engine in engines:
        engine.dispose()


def set_autocommit(connection, _record) -> None:
    connection.autocommit = True


@pytest.fixture(params=["sqlite", *POSTGRES, "psycopg_async"])
def by_the_driver(request, tmp_path) -> Iterator[Store]:
    """A store whose driver commits each statement, which SQLAlchemy was not told."""
    if request.param == "sqlite":
        engine = create_engine(
            f"sqlite:///{tmp_path / 'auto.db'}", connect_args={"isolation_level": None}
        )
        Base.metadata.create_all(engine)
        yield SqliteStore(engine)
        engine.dispose()
        return
    connect = request.getfixturevalue("connect")
    engine = connect(request.param.removesuffix("_async"), poolclass=NullPool)
    if request.param == "psycopg_async":
        opened = create_async_engine(engine.url, poolclass=NullPool)
        event.listen(opened.sync_engine, "connect", set_autocommit)
        yield PostgresStore(opened)
        return
    event.listen(engine, "connect", set_autocommit)
    yield SqliteStore(engine)


class TestAutocommitOfTheDriver:
    async def test_a_flush_that_is_rolled_back_stays(self, capture, by_the_driver):
        """What the driver has committed is told so, whatever the session does afterwards."""
        with action() as scope:
            await by_the_driver.run(lambda s: (s.add(Tag(code="a")), s.flush(), s.rollback()))
        assert await by_the_driver.run(lambda s: s.scalars(select(Tag.code)).all()) == ["a"]
        assert (scope.transaction, len(scope.changes)) == ("committed", 1)
        assert scope.changes_rolled_back == 0

    async def test_a_statement_that_is_rolled_back_stays(self, capture, by_the_driver):
        """The same for a statement of Core, and for a text."""
        with action() as scope:
            await by_the_driver.run(
                lambda s: (
                    s.execute(insert(Tag).values(code="a")),
                    s.execute(text("insert into tag values ('b')")),
                    s.rollback(),
                )
            )
        assert await by_the_driver.run(lambda s: len(s.scalars(select(Tag)).all())) == 2
        assert scope.transaction == "committed"
        assert [change.table for change in scope.changes] == ["tag", "tag"]

    async def test_a_transaction_that_the_application_begins(self, capture, by_the_driver):
        """A BEGIN of the application's own makes one transaction, which it may roll back."""

        def work(session: Session) -> None:
            session.execute(text("BEGIN"))
            session.execute(insert(Tag).values(code="undone"))
            session.execute(text("ROLLBACK"))
            session.execute(insert(Tag).values(code="kept"))

        with action() as scope:
            await by_the_driver.run(work)
        assert await by_the_driver.run(lambda s: s.scalars(select(Tag.code)).all()) == ["kept"]
        assert [change.parameters["code"] for change in scope.changes] == ["kept"]
        assert scope.transaction == "mixed"

    async def test_a_flush_that_fails(self, capture, by_the_driver):
        """What a failing flush has left behind is told."""

        def work(session: Session) -> None:
            session.add(Customer(full_name="kept"))
            session.flush()
            session.add_all([Customer(full_name="left"), Tag(code="a")])
            with pytest.raises(IntegrityError):
                session.flush()

        await by_the_driver.run(lambda s: (s.add(Tag(code="a")), s.flush()))
        with action() as scope:
            await by_the_driver.run(work)
        stored = await by_the_driver.run(lambda s: len(s.scalars(select(Customer.id)).all()))
        assert stored == 2
        told = [change for change in scope.changes if change.table == "customer"]
        assert [(change.kind, change.transaction) for change in told] == [
            ("entity", "committed"),
            ("untracked", "committed"),
        ]

    async def test_a_flush_that_fails_in_a_transaction(self, capture, sqlite):
        """sqlite3 without a BEGIN of its own is no autocommit where a listener sends one."""

        def work(session: Session) -> None:
            session.add_all([Customer(full_name="undone"), Tag(code="a")])
            with pytest.raises(IntegrityError):
                session.flush()

        await sqlite.run(lambda s: (s.add(Tag(code="a")), s.commit()))
        with action() as scope:
            await sqlite.run(work)
        assert (scope.transaction, scope.changes) == ("rolled_back", [])

    @pytest.mark.parametrize("driver", POSTGRES)
    async def test_a_connection_that_is_switched_over(self, capture, connect, driver):
        """The mode counts that the connection is in when it writes."""
        engine = connect(driver)
        with action() as scope, engine.connect() as connection:
            connection.execute(insert(Tag).values(code="undone"))
            connection.rollback()
            connection.connection.dbapi_connection.autocommit = True
            connection.execute(insert(Tag).values(code="kept"))
            connection.rollback()
            connection.connection.dbapi_connection.autocommit = False
        assert [change.parameters["code"] for change in scope.changes] == ["kept"]


class TestManyBatches:
    @pytest.mark.parametrize("driver", [*POSTGRES, "asyncpg"])
    async def test_all_batches_count(self, capture, connect, pg, driver):
        """A statement that is sent in several batches is one entry with all its rows."""
        store: Store = (
            PostgresStore(pg.async_engine.execution_options(isolation_level="AUTOCOMMIT"))
            if driver == "asyncpg"
            else SqliteStore(connect(driver, isolation_level="AUTOCOMMIT"))
        )
        rows = [{"code": f"c{number}"} for number in range(2_500)]
        upsert = postgres_insert(Tag).on_conflict_do_nothing().returning(Tag.code)
        with action() as scope:
            await store.run(lambda s: s.execute(upsert, rows))
        assert [change.rows for change in scope.changes] == [2_500]
        assert scope.transaction == "committed"

    async def test_what_follows_is_another_transaction(self, capture, connect):
        """The next statement ends what the batches have written."""
        engine = connect("psycopg", isolation_level="AUTOCOMMIT")
        rows = [{"code": f"c{number}"} for number in range(1_500)]
        statement = insert(Tag).returning(Tag.code)
        with action() as scope, engine.connect() as connection:
            connection.execute(statement, rows)
            assert scope.changes == []
            connection.execute(insert(Tag).values(code="later"))
            assert [change.rows for change in scope.changes] == [1_500, 1]

    async def test_a_later_batch_fails(self, capture, connect):
        """The batches before it are committed."""
        engine = connect("psycopg", isolation_level="AUTOCOMMIT")
        rows = [*({"code": f"c{number}"} for number in range(1_500)), {"code": "c0"}]
        with action() as scope, engine.connect() as connection, pytest.raises(IntegrityError):
            connection.execute(insert(Tag).returning(Tag.code), rows)
        with engine.connect() as connection:
            assert connection.scalar(text("select count(*) from tag")) == 1_000
        assert [change.rows for change in scope.changes] == [1_000]

    async def test_they_are_told_when_the_action_ends(self, capture, connect):
        """A connection that stays open does not keep them back."""
        engine = connect("psycopg", isolation_level="AUTOCOMMIT")
        rows = [{"code": f"c{number}"} for number in range(3)]
        with action() as scope, engine.connect() as connection:
            connection.execute(insert(Tag).returning(Tag.code), rows)
            capture.attachment.report_commits()
            assert [change.rows for change in scope.changes] == [3]


class TestPipelines:
    @pytest.mark.parametrize(
        ("autocommit", "end", "outcome", "stored"),
        [
            (False, "rollback", "rolled_back", 0),
            (False, "commit", "committed", 1),
            (True, "rollback", "unknown", 1),
            (True, "commit", "committed", 1),
        ],
    )
    def test_what_is_not_answered_yet(self, capture, connect, autocommit, end, outcome, stored):  # noqa: PLR0917 - one fact each
        """In autocommit mode a ROLLBACK undoes nothing, and nothing is certain before the answer."""
        engine = connect("psycopg", poolclass=NullPool)
        with action() as scope, engine.connect() as connection:
            driver_connection = connection.connection.driver_connection
            driver_connection.autocommit = autocommit
            with driver_connection.pipeline():
                connection.execute(insert(Tag).values(code="a"))
                getattr(connection, end)()
            connection.rollback()
        with engine.connect() as connection:
            assert connection.scalar(text("select count(*) from tag")) == stored
        assert scope.transaction == outcome


class TestPools:
    @pytest.mark.parametrize("driver", POSTGRES)
    @pytest.mark.parametrize(
        ("reset", "ended"), [("commit", ("committed", 1)), ("rollback", ("rolled_back", 0))]
    )
    async def test_a_connection_that_nobody_closes(self, capture, connect, driver, reset, ended):
        """Its pool ends its transaction as it was told to."""
        engine = connect(driver, pool_reset_on_return=reset)
        with action() as scope:
            session = Session(engine)
            session.add(Tag(code="a"))
            session.flush()
            del session
            gc.collect()
            capture.attachment.report_commits()
        with engine.connect() as connection:
            assert connection.scalar(text("select count(*) from tag")) == ended[1]
        assert (scope.transaction, len(scope.changes)) == ended

    async def test_a_pool_that_leaves_it_open(self, capture, connect):
        """Who uses the connection next decides: that is not known."""
        engine = connect("psycopg", pool_reset_on_return=None)
        with action() as scope:
            session = Session(engine)
            session.add(Tag(code="a"))
            session.flush()
            del session
            gc.collect()
            capture.attachment.report_commits()
        assert scope.transaction == "unknown"

    async def test_a_commit_that_a_listener_has_kept_back(self, capture, connect):
        """A pool that commits sends it all the same."""
        engine = connect("psycopg", pool_reset_on_return="commit")

        def refuse(_connection: object) -> None:
            raise ValueError("kept back")

        with action() as scope:
            with engine.connect() as connection:
                connection.execute(insert(Tag).values(code="a"))
                event.listen(engine, "commit", refuse)
                with pytest.raises(ValueError, match="kept back"):
                    connection.commit()
                event.remove(engine, "commit", refuse)
            capture.attachment.report_commits()
        with engine.connect() as connection:
            assert connection.scalar(text("select count(*) from tag")) == 1
        assert (scope.transaction, len(scope.changes)) == ("committed", 1)


class TestTexts:
    async def test_a_text_that_undoes_what_it_writes(self, capture, connect):
        """Several commands in one text, the last of which undoes what the first has written."""
        engine = connect("psycopg2")
        with action() as scope, engine.connect() as connection:
            connection.exec_driver_sql("insert into tag values ('a'); rollback")
        with engine.connect() as connection:
            assert connection.scalar(text("select count(*) from tag")) == 0
        assert scope.transaction == "rolled_back"

    async def test_a_text_that_commits(self, capture, connect):
        """One that ends with COMMIT has committed."""
        engine = connect("psycopg2")
        with action() as scope, engine.connect() as connection:
            connection.exec_driver_sql("insert into tag values ('a'); commit")
        assert scope.transaction == "committed"

    async def test_a_doomed_transaction(self, capture, connect):
        """A driver that shows a failed transaction shows an open one."""
        engine = connect("psycopg")
        with action() as scope, engine.connect() as connection:
            connection.execute(insert(Tag).values(code="a"))
            with pytest.raises(DBAPIError):
                connection.execute(text("select 1/0"))
            connection.commit()
        assert (scope.transaction, scope.changes) == ("rolled_back", [])
