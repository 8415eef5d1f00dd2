"""Shapes and situations that are rare, and that an auditor asks about all the same."""

from __future__ import annotations

import gc
import sys
from contextlib import contextmanager

import pytest
from orm_harness import action, capturing
from orm_models import Base, Clerk, Counter, Customer, Employee, Manager, Order, OrderLine, Tag
from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    Integer,
    String,
    Table,
    bindparam,
    create_engine,
    event,
    insert,
    join,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError, PendingRollbackError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    WriteOnlyMapped,
    column_property,
    mapped_column,
    registry,
    relationship,
)
from sqlalchemy.orm.exc import StaleDataError

from otel_audit.orm import OrmOptions


class OddBase(DeclarativeBase):
    pass


friendship = Table(
    "friendship",
    OddBase.metadata,
    Column("one_id", ForeignKey("person.id"), primary_key=True),
    Column("other_id", ForeignKey("person.id"), primary_key=True),
)
membership = Table(
    "membership",
    OddBase.metadata,
    Column("person_id", ForeignKey("person.id"), primary_key=True),
    Column("club_id", ForeignKey("club.id"), primary_key=True),
)


class Person(OddBase):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    friends: Mapped[list[Person]] = relationship(
        secondary=friendship,
        primaryjoin="Person.id == friendship.c.one_id",
        secondaryjoin="Person.id == friendship.c.other_id",
    )


class Club(OddBase):
    __tablename__ = "club"
    id: Mapped[int] = mapped_column(primary_key=True)
    members: WriteOnlyMapped[Person] = relationship(secondary=membership)


class Point(MappedAsDataclass, OddBase):
    __tablename__ = "point"
    id: Mapped[int] = mapped_column(init=False, primary_key=True)
    x: Mapped[int]
    y: Mapped[int] = mapped_column(default=0)


person_table = OddBase.metadata.tables["person"]
address = Table(
    "address",
    OddBase.metadata,
    Column("id", Integer, primary_key=True),
    Column("person_id", ForeignKey("person.id")),
    Column("street", String(40)),
)


class Address:
    """Mapped imperatively, with another name for a column."""


class Resident:
    """Mapped onto a join of two tables."""


mappers = registry(metadata=OddBase.metadata)
mappers.map_imperatively(Address, address, properties={"road": address.c.street})
mappers.map_imperatively(
    Resident,
    join(person_table, address),
    properties={
        "id": column_property(person_table.c.id, address.c.person_id),
        "address_id": address.c.id,
    },
)


@pytest.fixture
def odd():
    engine = create_engine("sqlite://")
    OddBase.metadata.create_all(engine)
    yield engine
    engine.dispose()


@contextmanager
def preventing(engine):
    """A listener of the application's that lets no COMMIT pass."""

    def prevent(_):
        raise RuntimeError

    event.listen(engine, "commit", prevent)
    try:
        yield
    finally:
        event.remove(engine, "commit", prevent)


def close(session, engine):
    session.add(Tag(code="a"))
    with preventing(engine), pytest.raises(RuntimeError):
        session.commit()


def roll_back(session, engine):
    close(session, engine)
    session.rollback()


def leave_block(session, engine):
    with preventing(engine), pytest.raises(RuntimeError), session.begin():
        session.add(Tag(code="a"))


def roll_back_connection(session, engine):
    with session.get_bind().connect() as connection:
        connection.execute(insert(Tag).values(code="a"))
        with preventing(engine), pytest.raises(RuntimeError):
            connection.commit()
        connection.rollback()


def told(changes) -> list[tuple[str, str]]:
    return [(change.operation, change.reference) for change in changes]


class TestShapes:
    async def test_both_sides_of_one_class(self, capture, odd):
        """A self-referential association names both rows of the same class."""
        with action() as scope, Session(odd) as session:
            session.add(Person(id=1, name="ada", friends=[Person(id=2, name="bob")]))
            session.commit()
        (relation,) = [change for change in scope.changes if change.kind == "relation"]
        assert relation.related == ("person:1", "person:2")

    async def test_write_only_collection(self, capture, odd):
        """Rows of an association that is never loaded."""
        with action() as scope, Session(odd) as session:
            club = Club(id=3)
            session.add(club)
            session.flush()
            club.members.add(Person(id=1, name="ada"))
            session.commit()
        (relation,) = [change for change in scope.changes if change.kind == "relation"]
        assert set(relation.related) == {"person:1", "club:3"}

    async def test_dataclass(self, capture, odd):
        with action() as scope, Session(odd) as session:
            session.add(Point(x=1))
            session.commit()
        (change,) = scope.changes
        assert change.values == {"id": [None, 1], "x": [None, 1], "y": [None, 0]}

    async def test_imperative_mapping(self, capture, odd):
        """Columns go by their names in the table."""
        with action() as scope, Session(odd) as session:
            home = Address()
            home.road = "high street"
            session.add(home)
            session.flush()
            home.road = "low street"
            session.commit()
        assert told(scope.changes) == [("insert", "address:1"), ("update", "address:1")]
        assert scope.changes[1].values == {"street": ["high street", "low street"]}

    async def test_mapped_onto_a_join(self, capture, odd):
        """One object that is two rows is one entry."""
        with action() as scope, Session(odd) as session:
            resident = Resident()
            resident.name, resident.street = "ada", "high street"
            session.add(resident)
            session.commit()
        (change,) = scope.changes
        assert change.operation == "insert"
        assert change.values["name"] == [None, "ada"]
        assert change.values["street"] == [None, "high street"]

    async def test_changed_part_of_a_composite_key(self, capture, store):
        """The entry names the row by its new key, and the old one beside it."""

        def work(session):
            session.add(Order(id=1, lines=[OrderLine(number=1, text="a")]))
            session.flush()
            session.get(OrderLine, (1, 1)).number = 2

        changes = await store.changes(work)
        assert told(changes)[-1] == ("update", "order_line:1,2")
        assert changes[-1].related == ("order_line:1,1",)
        assert changes[-1].values == {"number": [1, 2]}

    async def test_joined_tables_changed_together(self, capture, store):
        """A row in each table is one entity, and one entry."""

        def work(session):
            manager = Manager(id=5, name="m", grade=1)
            session.add(manager)
            session.flush()
            manager.name, manager.grade = "n", 2
            session.flush()
            session.delete(manager)

        changes = await store.changes(work)
        assert told(changes) == [
            ("insert", "manager:5"),
            ("update", "manager:5"),
            ("delete", "manager:5"),
        ]
        assert changes[1].values == {"name": ["m", "n"], "grade": [1, 2]}
        assert all("employee:5" in change.related for change in changes)

    async def test_only_the_base_table_changes(self, capture, store):
        """A column of the base that changes alone is found, too."""

        def work(session):
            manager = Manager(id=5, name="m", grade=1)
            session.add(manager)
            session.flush()
            manager.name = "n"

        changes = await store.changes(work)
        assert changes[-1].values == {"name": ["m", "n"]}


class TestSituations:
    async def test_merge(self, capture, store):
        """A detached copy that is merged is an update of what differs."""
        await store.run(lambda s: (s.add(Customer(id=1, full_name="a", note="n")), s.commit()))
        changes = await store.changes(lambda s: s.merge(Customer(id=1, full_name="b", note="n")))
        assert told(changes) == [("update", "customer:1")]
        assert changes[0].values["name"] == ["a", "b"]

    async def test_stale_version(self, capture, store):
        """An UPDATE that finds another version fails its flush, and has changed nothing."""
        await store.run(lambda s: (s.add(Counter(id=1, value=1)), s.commit()))

        def work(session):
            counter = session.get(Counter, 1)
            session.execute(text("UPDATE counter SET version = 9 WHERE id = 1"))
            counter.value = 2
            with pytest.raises(StaleDataError):
                session.flush()
            session.rollback()

        with action() as scope:
            await store.run(work)
        assert scope.changes == []
        assert (scope.transaction, scope.changes_pending) == ("rolled_back", 0)

    async def test_a_flush_that_fails_by_itself_has_tried_to_write(self, capture, store):
        """What it had written is rolled back, and the action does not pass for one that only read."""
        await store.run(lambda s: (s.add(Counter(id=1, value=1)), s.commit()))

        def overtake(*_):
            raise RuntimeError

        def work(session):
            session.add(Tag(code="undone"))
            event.listen(Tag, "after_insert", overtake)
            try:
                with pytest.raises(RuntimeError):
                    session.flush()
            finally:
                event.remove(Tag, "after_insert", overtake)
            session.rollback()

        with action() as scope:
            await store.run(work)
        assert scope.changes == []
        assert (scope.transaction, scope.changes_pending) == ("rolled_back", 0)

    @pytest.mark.parametrize("work", [close, roll_back, leave_block, roll_back_connection])
    async def test_a_commit_that_a_listener_prevents(self, capture, store, work):
        """A listener of the application's raises: no COMMIT was sent, nobody says that it was."""
        with action() as scope:
            await store.run(lambda session: work(session, store.engine))
            store.engine.dispose() if store.name == "sqlite" else await store.async_engine.dispose()
        assert await store.run(lambda session: session.scalars(select(Tag.code)).all()) == []
        assert scope.transaction == "unknown"
        assert scope.changes_pending == 0

    @pytest.mark.parametrize("then", ["nothing", "rollback"])
    async def test_a_prevented_commit_of_what_nobody_closes(self, capture, sqlite, then):
        """The same, if only the collector finds the connection."""
        with action() as scope:
            connection = sqlite.engine.connect()
            connection.execute(insert(Tag).values(code="a"))
            with preventing(sqlite.engine), pytest.raises(RuntimeError):
                connection.commit()
            if then == "rollback":
                connection.rollback()
            del connection
            gc.collect()
            capture.attachment.report_commits()
        assert scope.transaction == "unknown"

    @pytest.mark.parametrize("outcome", ["committed", "rolled_back"])
    async def test_what_follows_a_prevented_commit(self, capture, pg, outcome):
        """The database knows one transaction: both parts of it come to the same."""

        def work(session):
            connection = session.get_bind().connect()
            with preventing(pg.engine), pytest.raises(RuntimeError):
                connection.execute(insert(Tag).values(code="first"))
                connection.commit()
            connection.rollback()
            with pytest.raises(IntegrityError), connection.begin_nested():
                connection.execute(insert(Tag).values(code=None))
            connection.execute(insert(Tag).values(code="second"))
            connection.commit() if outcome == "committed" else connection.rollback()
            connection.close()

        with action() as scope:
            await pg.run(work)
        stored = await pg.run(lambda session: session.scalars(select(Tag.code)).all())
        written = ["first", "second"] if outcome == "committed" else []
        assert sorted(stored) == written
        assert [change.parameters["code"] for change in scope.changes] == written
        assert scope.transaction == outcome

    async def test_begin_listener_of_the_application(self, sqlite):
        """One that sends BEGIN does not make the commit before it look as if it was not sent."""

        def begin(connection):
            connection.exec_driver_sql("BEGIN")

        event.listen(Engine, "begin", begin)
        engine = create_engine(f"sqlite:///{sqlite.engine.url.database}")
        try:
            with capturing() as capture, action() as scope, engine.connect() as connection:
                connection.execute(insert(Tag).values(code="kept"))
                connection.commit()
                connection.execute(insert(Tag).values(code="undone"))
                connection.rollback()
        finally:
            event.remove(Engine, "begin", begin)
            engine.dispose()
        assert capture.errors == 0
        assert [change.parameters["code"] for change in scope.changes] == ["kept"]

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3 knows no autocommit")
    async def test_driver_that_begins_by_itself(self, capture, tmp_path):
        """sqlite3 with `autocommit=False` always has a transaction open: that shows nothing."""
        engine = create_engine(
            f"sqlite:///{tmp_path / 'app.db'}", connect_args={"autocommit": False}
        )
        Base.metadata.create_all(engine)
        with action() as scope, engine.connect() as connection:
            connection.execute(insert(Tag).values(code="a"))
            connection.commit()
            capture.attachment.report_commits()
            assert scope.transaction == "committed"
        engine.dispose()

    async def test_transactions_without_a_change_are_let_go(self, capture, store):
        """An action that lives long keeps nothing of them."""
        await store.run(lambda s: (s.add(Tag(code="a")), s.commit()))

        def work(session):
            for _ in range(5):
                tag = session.get(Tag, "a")
                tag.code = "b"
                tag.code = "a"
                session.commit()

        with action() as scope:
            await store.run(work)
            assert not scope.open_transactions

    async def test_two_sessions_of_one_action(self, capture, store):
        """One commits and one does not: the action is neither."""
        with action() as scope:
            await store.run(lambda s: (s.add(Tag(code="kept")), s.commit()))
            await store.run(lambda s: (s.add(Tag(code="undone")), s.flush(), s.rollback()))
        assert told(scope.changes) == [("insert", "tag:kept")]
        assert scope.transaction == "mixed"
        assert scope.changes_rolled_back == 1

    async def test_failed_flush_in_a_nested_savepoint(self, capture, store):
        """Only the innermost savepoint is lost."""

        def work(session):
            session.add(Tag(code="a"))
            with session.begin_nested():
                session.add(Tag(code="b"))
                session.flush()
                inner = session.begin_nested()
                session.add(Tag(code="c"))
                session.flush()
                session.expunge_all()
                session.add(Tag(code="a"))
                with pytest.raises(IntegrityError):
                    session.flush()
                inner.rollback()
                session.add(Tag(code="d"))

        changes = await store.changes(work)
        assert [change.key["code"] for change in changes] == ["a", "b", "d"]

    async def test_class_changed_by_its_discriminator(self, capture, store):
        """A row that becomes another class is an update of the column that says so."""
        await store.run(lambda s: (s.add(Clerk(id=1, name="c")), s.commit()))
        changes = await store.changes(
            lambda s: s.execute(
                update(Employee.__table__).where(Employee.id == 1).values(kind="employee")
            )
        )
        assert [(change.kind, change.rows) for change in changes] == [("bulk", 1)]

    async def test_bulk_update_with_parameter_sets(self, capture, store):
        """One statement with many sets of parameters is one entry."""
        await store.run(lambda s: (s.add_all([Tag(code=code) for code in ("a", "b")]), s.commit()))
        table = Tag.__table__
        statement = (
            update(table).where(table.c.code == bindparam("old")).values(code=bindparam("new"))
        )
        changes = await store.changes(
            lambda s: s.connection().execute(
                statement, [{"old": "a", "new": "x"}, {"old": "b", "new": "y"}]
            )
        )
        (change,) = changes
        assert (change.kind, change.operation) == ("bulk", "update")
        assert change.rows in (2, None)

    async def test_session_closed_by_an_exception(self, capture, store):
        """A block that an exception leaves is rolled back, and told so."""

        def work(session):
            with session.begin():
                session.add(Tag(code="a"))
                session.flush()
                raise KeyError

        with action() as scope, pytest.raises(KeyError):
            await store.run(work)
        assert (scope.transaction, scope.changes) == ("rolled_back", [])

    async def test_invalidated_connection(self, store):
        """What a connection that is thrown away had written is not committed."""

        def work(session):
            session.add(Tag(code="a"))
            session.flush()
            session.connection().invalidate()
            session.rollback()

        with capturing(OrmOptions()) as capture, action() as scope:
            await store.run(work)
        assert scope.changes == []
        assert scope.transaction == "rolled_back"
        assert capture.errors == 0

    async def test_commit_of_an_invalidated_connection(self, capture, sqlite, caplog):
        """SQLAlchemy refuses it, and there is nothing left that could have been committed."""
        with action() as scope, sqlite.engine.connect() as connection:
            connection.execute(insert(Tag).values(code="a"))
            connection.invalidate()
            with pytest.raises(PendingRollbackError):
                connection.commit()
            assert (scope.transaction, scope.changes) == ("rolled_back", [])
        assert [line for line in caplog.records if line.name.startswith("otel_audit.orm")] == []
