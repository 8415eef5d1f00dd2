"""What is told is what was sent and what the database answered, not what the objects hold."""

from __future__ import annotations

import enum

import pytest
from orm_harness import SqliteStore, action, capturing
from sqlalchemy import (
    ARRAY,
    JSON,
    Enum,
    ForeignKey,
    Integer,
    String,
    create_engine,
    delete,
    event,
    insert,
    null,
    select,
    text,
    update,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Mapper,
    Session,
    mapped_column,
    relationship,
    with_loader_criteria,
)
from sqlalchemy.types import TypeDecorator

from otel_audit.orm import OrmOptions


class State(str, enum.Enum):  # noqa: UP042 - this very kind is meant
    PAID = "paid-out"
    LOST = "lost-it"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 7


class Modern(enum.StrEnum):
    ON = "is-on"


class Colour(enum.Enum):
    RED = "#f00"


class ByValue(TypeDecorator[Colour]):
    impl = String
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return None if value is None else value.value

    def process_result_value(self, value, dialect):
        return None if value is None else Colour(value)


def values_of(kind):
    return [one.value for one in kind]


class Base(DeclarativeBase):
    pass


class Sample(Base):
    __tablename__ = "sample"
    id: Mapped[int] = mapped_column(primary_key=True)
    state = mapped_column(String)
    level = mapped_column(Integer)
    modern = mapped_column(String)
    named = mapped_column(Enum(State, native_enum=False))
    valued = mapped_column(Enum(State, native_enum=False, values_callable=values_of))
    pure = mapped_column(Enum(Colour, native_enum=False, values_callable=values_of))
    own = mapped_column(ByValue)
    body = mapped_column(JSON)
    slug: Mapped[str | None]
    made: Mapped[str | None] = mapped_column(server_default="here")


class Plain(Base):
    __tablename__ = "plain"
    id: Mapped[int] = mapped_column(primary_key=True)
    slug: Mapped[str | None]


class PgBase(DeclarativeBase):
    pass


class PgSample(PgBase):
    __tablename__ = "pg_sample"
    id: Mapped[int] = mapped_column(primary_key=True)
    native = mapped_column(Enum(State, name="native_state", values_callable=values_of))
    by_name = mapped_column(Enum(Level, name="native_level"))
    several = mapped_column(ARRAY(Enum(Level, name="native_level")))


ENUMS = {
    "state": State.PAID,
    "level": Level.HIGH,
    "modern": Modern.ON,
    "named": State.PAID,
    "valued": State.PAID,
    "pure": Colour.RED,
    "own": Colour.RED,
}


@pytest.fixture
def store(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path / 'sent.db'}")
    Base.metadata.create_all(engine)
    yield SqliteStore(engine)
    engine.dispose()


@pytest.fixture
def pg_engine(orm_dsn):
    engine = create_engine(orm_dsn.replace("+asyncpg", "+psycopg"))
    PgBase.metadata.create_all(engine)
    yield engine
    PgBase.metadata.drop_all(engine)
    engine.dispose()


def stored(session, columns):
    row = session.execute(text(f"SELECT {', '.join(columns)} FROM sample")).one()
    return dict(zip(columns, row, strict=True))


class TestEnumerations:
    async def test_as_stored(self, store, capture):
        """Members are told as their column stores them, at both ends of a row's history."""
        found = {}

        def work(session):
            session.add(Sample(**ENUMS))
            session.commit()
            found.update(stored(session, ENUMS))
            session.expunge_all()
            session.delete(session.scalars(select(Sample)).one())

        inserted, deleted = await store.changes(work)
        assert {name: inserted.values[name][1] for name in ENUMS} == found
        assert {name: deleted.values[name][0] for name in ENUMS} == found

    async def test_parameters(self, store, capture):
        """The same in statements."""
        found = {}

        def work(session):
            session.execute(insert(Sample).values(**ENUMS))
            found.update(stored(session, ENUMS))

        (change,) = await store.changes(work)
        assert {name: change.parameters[name] for name in ENUMS} == found
        (change,) = await store.changes(
            lambda s: s.execute(delete(Sample).where(Sample.valued.in_([State.PAID])))
        )
        assert change.parameters == {"valued_1_1": "paid-out"}

    async def test_images(self, store):
        """The same row by row."""
        with capturing(OrmOptions(before_images=("sample",))) as capture:
            await store.changes(lambda s: s.add(Sample(**ENUMS)))
            changes = await store.changes(
                lambda s: s.execute(update(Sample).values(named=State.LOST, valued=State.LOST))
            )
        assert changes[1].values == {"named": ["PAID", "LOST"], "valued": ["paid-out", "lost-it"]}
        assert capture.errors == 0

    def test_types_of_postgres(self, pg_engine, capture):
        """The database's own enumerations, and arrays of them."""
        with action() as scope, Session(pg_engine) as session:
            session.add(PgSample(native=State.PAID, by_name=Level.HIGH, several=[Level.LOW]))
            session.commit()
            row = session.execute(text("SELECT native, by_name, several::text FROM pg_sample"))
            assert row.one() == ("paid-out", "HIGH", "{LOW}")
        (change,) = scope.changes
        assert {name: pair[1] for name, pair in change.values.items()} == {
            "id": 1, "native": "paid-out", "by_name": "HIGH", "several": ["LOW"],
        }  # fmt: skip


class TestNull:
    async def test_json_null(self, store, capture):
        """The JSON value null is null."""

        def work(session):
            sample = Sample(body={"a": 1})
            session.add(sample)
            session.flush()
            sample.body = JSON.NULL

        assert (await store.changes(work))[1].values == {"body": [{"a": 1}, None]}

    async def test_sql_null(self, store, capture):
        """An expression that says NULL is known."""

        def work(session):
            session.add(Sample(slug=null(), body=null()))

        (change,) = await store.changes(work)
        assert set(change.values) <= {"id", "made"}
        assert "slug" not in change.unknown_after


class TestListeners:
    @pytest.mark.parametrize("target", [Sample, Mapper])
    async def test_what_is_set_after_the_insert(self, store, capture, target):
        """It was not written, and is not told."""

        def late(_mapper, _connection, sample):
            sample.slug = f"late-{sample.id}"
            sample.state = "changed"

        event.listen(target, "after_insert", late)
        try:
            (change,) = await store.changes(lambda s: s.add(Sample(state="sent")))
        finally:
            event.remove(target, "after_insert", late)
        assert change.values["state"] == [None, "sent"]
        assert "slug" not in change.values

    async def test_what_is_set_before_the_update(self, store, capture):
        """What a listener sets in time is told, what it sets too late is not."""

        def early(_mapper, _connection, sample):
            sample.slug = "early"

        def late(_mapper, _connection, sample):
            sample.slug, sample.modern = "late", "late"

        def work(session):
            sample = Sample(state="a")
            session.add(sample)
            session.flush()
            sample.state = "b"

        event.listen(Sample, "before_update", early)
        event.listen(Sample, "after_update", late)
        try:
            changes = await store.changes(work)
        finally:
            event.remove(Sample, "before_update", early)
            event.remove(Sample, "after_update", late)
        assert changes[1].values == {"state": ["a", "b"], "slug": [None, "early"]}

    async def test_what_a_listener_reads(self, store, capture):
        """A value that it loads from the database is as good as one that was returned."""

        def look(_mapper, _connection, sample):
            assert sample.made == "here"

        event.listen(Sample, "after_insert", look)
        try:
            (change,) = await store.changes(lambda s: s.add(Sample()))
        finally:
            event.remove(Sample, "after_insert", look)
        assert change.values["made"] == [None, "here"]


IMAGES = OrmOptions(before_images=("sample",))


@pytest.fixture
async def three(store):
    await store.run(
        lambda s: (s.add_all([Sample(id=n, slug="ab"[n % 2]) for n in (1, 2, 3)]), s.commit())
    )
    return store


def keys(changes):
    return [one.key["id"] for one in changes if one.kind == "entity"]


class TestImages:
    @pytest.mark.parametrize(
        "statement", [delete(Sample), update(Sample).values(state="x"), delete(Sample.__table__)]
    )
    async def test_criteria_of_the_session(self, three, statement):
        """Criteria that the ORM adds hold for what is read, too."""

        def work(session):
            @event.listens_for(session, "do_orm_execute")
            def only(state):
                state.statement = state.statement.options(
                    with_loader_criteria(Sample, Sample.slug == "a")
                )

            session.execute(statement)

        with capturing(IMAGES) as capture:
            changes = await three.changes(work)
        left = await three.run(
            lambda s: s.scalars(select(Sample.id).where(Sample.state.is_(None))).all()
        )
        assert sorted(keys(changes)) == [one for one in (1, 2, 3) if one not in left]
        assert changes[0].rows == len(keys(changes))
        assert capture.errors == 0

    @pytest.mark.parametrize("operation", ["DELETE", "UPDATE"])
    async def test_a_trigger_that_keeps_a_row(self, three, operation):
        """Fewer rows than were read: which they are is not known, so none is told."""
        statement = delete(Sample) if operation == "DELETE" else update(Sample).values(state="x")
        with three.engine.begin() as connection:
            connection.exec_driver_sql(
                f"CREATE TRIGGER keep BEFORE {operation} ON sample WHEN OLD.id = 2 "
                "BEGIN SELECT RAISE(IGNORE); END"
            )
        with capturing(IMAGES) as capture:
            (change,) = await three.changes(lambda s: s.execute(statement))
        assert (change.kind, change.rows) == ("bulk", 2)
        assert change.note == "not recorded row by row: 3 rows were read before it, 2 were affected"
        assert capture.errors == 0

    async def test_a_trigger_that_puts_a_row_back(self, three):
        """A row that is there again is not told as deleted."""
        with three.engine.begin() as connection:
            connection.exec_driver_sql(
                "CREATE TRIGGER again AFTER DELETE ON sample WHEN OLD.id = 2 "
                "BEGIN INSERT INTO sample (id) VALUES (2); END"
            )
        with capturing(IMAGES):
            changes = await three.changes(lambda s: s.execute(delete(Sample)))
        assert keys(changes) == [1, 3]
        (kept,) = [one for one in changes if one.kind == "untracked"]
        assert (kept.key, kept.values) == ({"id": 2}, {})
        assert "still" in kept.note

    def test_row_level_security(self, pg_engine):
        """A policy for DELETE that another for SELECT does not share."""
        with pg_engine.begin() as connection:
            for statement in (
                "INSERT INTO pg_sample (id, native) VALUES (1, 'paid-out'), (2, 'lost-it')",
                "ALTER TABLE pg_sample ENABLE ROW LEVEL SECURITY",
                "CREATE POLICY reading ON pg_sample FOR SELECT USING (true)",
                "CREATE POLICY locking ON pg_sample FOR UPDATE USING (true)",
                "CREATE POLICY deleting ON pg_sample FOR DELETE USING (native = 'paid-out')",
                "DROP ROLE IF EXISTS limited_remover",
                "CREATE ROLE limited_remover",
                "GRANT ALL ON pg_sample TO limited_remover",
            ):
                connection.exec_driver_sql(statement)
        options = OrmOptions(before_images=("pg_sample",))
        try:
            with capturing(options), action() as scope, Session(pg_engine) as session:
                session.execute(text("SET LOCAL ROLE limited_remover"))
                session.execute(delete(PgSample))
                session.commit()
        finally:
            with pg_engine.begin() as connection:
                connection.exec_driver_sql("DROP OWNED BY limited_remover")
                connection.exec_driver_sql("DROP ROLE limited_remover")
        (change,) = scope.changes
        assert (change.kind, change.rows) == ("bulk", 1)
        assert "2 rows were read before it, 1 were affected" in change.note


class TestDeletesThatDoNot:
    async def test_a_flush(self, three, capture):
        """Rows that a trigger keeps are not told as deleted."""
        with three.engine.begin() as connection:
            connection.exec_driver_sql(
                "CREATE TRIGGER keep BEFORE DELETE ON sample WHEN OLD.id = 2 "
                "BEGIN SELECT RAISE(IGNORE); END"
            )

        def work(session):
            for one in session.scalars(select(Sample)).all():
                session.delete(one)

        with pytest.warns(match="expected to delete 3 row"):
            changes = await three.changes(work)
        assert {(one.kind, one.operation) for one in changes} == {("untracked", "delete")}
        assert sorted(one.key["id"] for one in changes) == [1, 2, 3]
        assert "fewer rows" in changes[0].note


class TestInsertsThatDoNot:
    @pytest.fixture
    def refusing(self, store):
        """A trigger that leaves out one row without a word."""
        with store.engine.begin() as connection:
            connection.exec_driver_sql(
                "CREATE TRIGGER refuse BEFORE INSERT ON plain WHEN NEW.id = 2 "
                "BEGIN SELECT RAISE(IGNORE); END"
            )
        return store

    async def test_a_flush(self, refusing, capture):
        """A row that was not inserted is not told as if it were."""
        first, second = Plain(id=1), Plain(id=2)
        (change,) = await refusing.changes(lambda s: s.add(first))
        assert change.kind == "entity"
        (change,) = await refusing.changes(lambda s: s.add(second))
        assert (change.kind, change.key, change.values) == ("untracked", {"id": 2}, {})

    async def test_a_statement(self, refusing, capture):
        """The database's count is told, not that of the parameters."""
        rows = [{"id": n, "slug": "a"} for n in (1, 2, 3)]
        (change,) = await refusing.changes(lambda s: s.execute(insert(Plain), rows))
        assert change.rows == 2


class CascadeBase(DeclarativeBase):
    pass


class Owner(CascadeBase):
    __tablename__ = "owner"
    id: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str | None]
    pets: Mapped[list[Pet]] = relationship(back_populates="owner")


class House(CascadeBase):
    __tablename__ = "house"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id = mapped_column(ForeignKey("owner.id", ondelete="cascade", onupdate="CASCADE"))


class Room(CascadeBase):
    __tablename__ = "room"
    id: Mapped[int] = mapped_column(primary_key=True)
    house_id = mapped_column(ForeignKey("house.id", ondelete="CASCADE"))


class Letter(CascadeBase):
    __tablename__ = "letter"
    id: Mapped[int] = mapped_column(primary_key=True)
    house_id = mapped_column(ForeignKey("house.id", ondelete="SET NULL"))


class Stamp(CascadeBase):
    """Only refers to what is changed, not deleted."""

    __tablename__ = "stamp"
    id: Mapped[int] = mapped_column(primary_key=True)
    letter_id = mapped_column(ForeignKey("letter.id", ondelete="CASCADE"))


class Pet(CascadeBase):
    """Looked after by the session."""

    __tablename__ = "pet"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id = mapped_column(ForeignKey("owner.id", ondelete="SET NULL"))
    owner: Mapped[Owner | None] = relationship(back_populates="pets")


ALL = {"house", "room", "letter", "pet"}


def said_of(change):
    prefix, _, tables = (change.note or "").rpartition(": ")
    return prefix, set(tables.split(", ")) if tables else set()


class TestCascades:
    @pytest.fixture
    def owned(self, tmp_path):
        engine = create_engine(f"sqlite:///{tmp_path / 'owned.db'}")
        CascadeBase.metadata.create_all(engine)
        with Session(engine) as session:
            session.add(Owner(id="a"))
            session.commit()
        yield SqliteStore(engine)
        engine.dispose()

    async def test_a_deleted_row(self, owned, capture):
        """Tables that follow by foreign keys alone are named, and those that follow them."""
        (change,) = await owned.changes(lambda s: s.delete(s.get(Owner, "a")))
        assert said_of(change) == (
            "the database may have changed or deleted rows of", {"house", "room", "letter"},
        )  # fmt: skip

    async def test_a_changed_key(self, owned, capture):
        """A key that others refer to takes them along."""

        def work(session):
            owner = session.get(Owner, "a")
            owner.label = "n"
            session.flush()
            owner.id = "b"

        label, key = await owned.changes(work)
        assert label.note is None
        assert said_of(key)[1] == {"house"}

    @pytest.mark.parametrize(
        ("statement", "tables"),
        [
            (delete(Owner), ALL),
            (text("DELETE FROM owner"), ALL),
            (delete(House.__table__), {"room", "letter"}),
            (update(Owner).values(id="c"), {"house"}),
            (update(Owner).values(label="c"), set()),
            (text("UPDATE owner SET id = 'c'"), {"house"}),
            (text("UPDATE owner SET label = 'c'"), set()),
            (insert(Owner).values(id="d"), set()),
        ],
    )
    async def test_statements(self, owned, capture, statement, tables):
        """For a statement the session looks after nothing."""
        (change,) = await owned.changes(lambda s: s.execute(statement))
        assert said_of(change)[1] == tables
