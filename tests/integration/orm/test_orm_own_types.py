"""Types that an application has made: what is told is what its table holds."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import enum
import itertools
import json
import uuid
from typing import Any

import asyncpg
import pytest
from orm_harness import action, capturing, postgres_store, sqlite_store
from psycopg.types.json import Jsonb
from sqlalchemy import (
    CHAR,
    JSON,
    Column,
    DateTime,
    Enum,
    ForeignKey,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    bindparam,
    create_engine,
    func,
    insert,
    select,
    text,
    type_coerce,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.types import TypeDecorator, UserDefinedType
from sqlalchemy.util import greenlet_spawn

from otel_audit.config import AuditConfig
from otel_audit.orm import OrmOptions, attach, detach
from otel_audit.redaction import Redactor

NOON = dt.datetime(2024, 1, 2, 12, tzinfo=dt.timezone(dt.timedelta(hours=2)))


LOADED = dict.fromkeys(
    ("never", "colour", "price", "prefs", "made", "coded", "place", "plain", "many", "pin")
)
"""Attributes that are to be known without a query."""


class Cents(TypeDecorator[Any]):
    """Euros, stored as cents."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return None if value is None else round(value * 100)

    def process_result_value(self, value, dialect):
        return None if value is None else value / 100


class AnyCase(String):
    """Texts that are equal in any case."""

    def compare_values(self, x, y):
        return (x and x.lower()) == (y and y.lower())


class Salted(TypeDecorator[Any]):
    """Another text for each value, as of a hash with a salt."""

    impl = String
    cache_ok = True
    numbers = itertools.count()

    def process_bind_param(self, value, dialect):
        return None if value is None else f"{next(self.numbers)}:{value}"

    def process_result_value(self, value, dialect):
        return None if value is None else value.partition(":")[2]


class Never(TypeDecorator[Any]):
    """A text that is never NULL."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return value or "n/a"

    def process_result_value(self, value, dialect):
        return None if value == "n/a" else value


class Document(TypeDecorator[Any]):
    """A document as a text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return json.dumps(value)

    def process_result_value(self, value, dialect):
        return json.loads(value)


class Versioned(TypeDecorator[Any]):
    """A document within a document, which a driver may wrap for its way."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return None if value is None else {"version": 2, "data": value}

    def process_result_value(self, value, dialect):
        return None if value is None else value["data"]


class Colour(enum.Enum):
    RED = "#f00"


class Coloured(TypeDecorator[Any]):
    """Members of an enumeration, stored by value."""

    impl = Enum(Colour, native_enum=False, values_callable=lambda kind: [one.value for one in kind])
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return Colour[value.upper()] if isinstance(value, str) else value


class Naive(TypeDecorator[Any]):
    """A time without its zone."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return None if value is None else value.astimezone(dt.UTC).replace(tzinfo=None)


class Coded(TypeDecorator[Any]):
    """A text that is not seen for what it is in its table."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return None if value is None else base64.b85encode(value.encode()).decode()

    def process_result_value(self, value, dialect):
        return None if value is None else base64.b85decode(value).decode()


class Guid(TypeDecorator[Any]):
    """A UUID as 32 letters."""

    impl = CHAR(32)
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return None if value is None else value.hex

    def process_result_value(self, value, dialect):
        return None if value is None else uuid.UUID(value)


class Point(UserDefinedType[Any]):
    """A pair of numbers as a text of the application's own."""

    cache_ok = True

    def get_col_spec(self, **_options):
        return "VARCHAR(40)"

    def bind_processor(self, dialect):
        return lambda value: None if value is None else f"<{value[0]}|{value[1]}>"

    def result_processor(self, dialect, coltype):
        return lambda value: None if value is None else tuple(map(int, value[1:-1].split("|")))


class Small(TypeDecorator[Any]):
    """A text that the database itself makes small."""

    impl = String
    cache_ok = True

    def bind_expression(self, bindvalue):
        return func.lower(bindvalue)


class Digest(TypeDecorator[Any]):
    """A text of which the database keeps a hash."""

    impl = String
    cache_ok = True

    def bind_expression(self, bindvalue):
        return func.coalesce(func.md5(bindvalue), "none")


class Plain(TypeDecorator[Any]):
    """A type that changes nothing, as SQLModel's for texts."""

    impl = String
    cache_ok = True


class Base(DeclarativeBase):
    pass


tagged = Table(
    "gadget_sticker",
    Base.metadata,
    Column("gadget_id", ForeignKey("gadget.id"), primary_key=True),
    Column("sticker_id", ForeignKey("sticker.id"), primary_key=True),
)


class Gadget(Base):
    __tablename__ = "gadget"
    id: Mapped[uuid.UUID] = mapped_column(Guid, primary_key=True, default=uuid.uuid4)
    price = mapped_column(Cents)
    salted = mapped_column(Salted)
    never = mapped_column(Never)
    prefs = mapped_column(Document, default=None)
    made = mapped_column(Naive)
    coded = mapped_column(Coded)
    place = mapped_column(Point)
    plain = mapped_column(Plain)
    colour = mapped_column(Coloured)
    many = mapped_column(ARRAY(Cents).with_variant(Document(), "sqlite"))
    pin = mapped_column(Cents, info={"audit": "redact"})
    stickers: Mapped[list[Sticker]] = relationship(secondary=tagged)


class Versions(Base):
    __tablename__ = "versions"
    id: Mapped[int] = mapped_column(primary_key=True)
    document = mapped_column(Versioned)


class Alike(Base):
    __tablename__ = "alike"
    id: Mapped[int] = mapped_column(primary_key=True)
    name = mapped_column(AnyCase)
    note: Mapped[str]


class Wrapped(Base):
    __tablename__ = "wrapped"
    id: Mapped[int] = mapped_column(primary_key=True)
    small = mapped_column(Small)
    digest = mapped_column(Digest)


class Sticker(Base):
    __tablename__ = "sticker"
    id: Mapped[uuid.UUID] = mapped_column(Guid, primary_key=True, default=uuid.uuid4)


@pytest.fixture
def sqlite(tmp_path):
    with sqlite_store(tmp_path / "own.db", Base.metadata) as found:
        yield found


@pytest.fixture
async def pg(orm_dsn):
    async with postgres_store(orm_dsn, Base.metadata) as found:
        yield found


async def added(store, **values):
    """What is told of a new row."""
    (change,) = await store.changes(lambda s: s.add(Gadget(**values)))
    return {name: pair[1] for name, pair in change.values.items() if name != "id"}


def stored(session, column):
    """What a column of the only row holds, as its database shows it."""
    return session.scalar(select(type_coerce(column, String)))


class TestRows:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ({"price": 1.5}, 150),
            ({"never": None}, "n/a"),
            ({"prefs": {"a": [1], "b": "x"}}, {"a": [1], "b": "x"}),
            ({"prefs": "text"}, '"text"'),
            ({"made": NOON}, "2024-01-02T10:00:00"),
            ({"place": (1, 2)}, "<1|2>"),
            ({"colour": "red"}, "#f00"),
            ({"colour": Colour.RED}, "#f00"),
            ({"plain": "as it is"}, "as it is"),
            ({"many": [1.5, 2]}, [150, 200]),
            ({"pin": 12.34}, "[REDACTED]"),
        ],
    )
    async def test_inserted(self, capture, pg, value, expected):
        """An insert tells what the type has made of a value."""
        (name,) = value
        assert (await added(pg, **value))[name] == expected

    async def test_nothing_is_something(self, capture, store):
        """A type may store something for nothing, also where no value was given."""
        assert (await added(store))["never"] == "n/a"
        assert "price" not in await added(store)

    async def test_all_ends_of_a_history_agree(self, capture, store):
        """Insert, update, delete and statements tell of a value alike."""

        def work(session):
            gadget = Gadget(price=1.5)
            session.add(gadget)
            session.flush()
            assert stored(session, Gadget.price) == 150
            gadget.price = 2.5
            session.flush()
            session.execute(update(Gadget).values(price=3.5).where(Gadget.price == bindparam("old")),
                            {"old": 2.5})  # fmt: skip
            session.refresh(gadget)
            session.delete(gadget)

        made, changed, many, gone = await store.changes(work, expire_on_commit=False)
        assert made.values["price"] == [None, 150]
        assert changed.values == {"price": [150, 250]}
        assert many.parameters == {"price": 350, "old": 250}
        assert gone.values["price"] == [350, None]
        assert made.reference == changed.reference == gone.reference

    async def test_what_was_sent_is_told(self, capture, store):
        """A type that makes another value each time is not asked again."""

        def work(session):
            gadgets = [Gadget(salted="x", **LOADED), Gadget(salted="x", **LOADED)]
            session.add_all(gadgets)
            session.flush()
            found = session.execute(text("SELECT id, salted FROM gadget")).all()
            told.update({str(uuid.UUID(number)): salted for number, salted in found})
            gadgets[0].salted = "y"
            session.flush()
            session.delete(gadgets[1])

        told: dict[str, str] = {}
        one, other, changed, gone = await store.changes(work)
        assert {c.key["id"]: c.values["salted"][1] for c in (one, other)} == told
        # nobody knows what was there before
        assert changed.values["salted"][0] is None
        assert changed.unknown_before == ("salted",)
        assert gone.unknown_before == ("salted",)

    async def test_many_rows(self, store):
        """The rows of one statement keep their own values, however many statements it takes."""

        def work(session):
            session.add_all([Gadget(price=n, salted=f"{n}") for n in range(2_300)])

        with capturing(OrmOptions(max_entries=5_000)) as capture:
            changes = await store.changes(work)
        assert [one.values["price"][1] for one in changes] == [n * 100 for n in range(2_300)]
        assert all(one.values["salted"][1].endswith(f":{n}") for n, one in enumerate(changes))
        assert capture.errors == 0

    async def test_sensitive_in_either(self, store):
        """What is hidden for what the application says is hidden for what the table holds."""

        attachment = attach(Redactor.from_config(AuditConfig()))
        try:
            with action() as scope:
                await store.run(
                    lambda s: (
                        s.add(Gadget(coded="4111 1111 1111 1111", salted="4111 1111 1111 1111")),
                        s.execute(insert(Gadget).values(coded="4111 1111 1111 1111")),
                        s.commit(),
                    )
                )
        finally:
            detach(attachment)
        entity = next(one for one in scope.changes if one.kind == "entity")
        bulk = next(one for one in scope.changes if one.kind == "bulk")
        assert entity.values["coded"][1] == bulk.parameters["coded"] == "[REDACTED]"
        assert "4111" not in str(entity.values["salted"])

    async def test_equal_to_their_type(self, sqlite):
        """What a type takes for equal is not written, and so no change, beside one that is."""

        def work(session):
            session.add(Alike(id=1, name="ann", note="one"))
            session.commit()
            person = session.get(Alike, 1)
            person.name, person.note = "ANN", "two"
            session.commit()
            assert session.scalar(text("SELECT name FROM alike")) == "ann"

        attachment = attach(Redactor.from_config(AuditConfig()))
        try:
            with action() as scope:
                await sqlite.run(work)
        finally:
            detach(attachment)
        assert scope.changes[-1].values == {"note": ["one", "two"]}

    @pytest.mark.parametrize(
        ("repeated", "hidden"), [("a word ", False), ("api_key=S3CR3TS3CR3T ", True)]
    )
    async def test_a_long_text(self, sqlite, repeated, hidden):
        """One that is cut is not shown either, if what it stands for is to be hidden."""
        attachment = attach(Redactor.from_config(AuditConfig()))
        try:
            with action() as scope:
                await sqlite.run(lambda s: (s.add(Gadget(coded=repeated * 700)), s.commit()))
        finally:
            detach(attachment)
        told = scope.changes[0].values["coded"][1]
        assert (told == "[REDACTED]") is hidden


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg"])
def test_documents_that_drivers_wrap(capture, orm_dsn, driver):
    """What a driver is given for a document is told as the document."""
    url = orm_dsn.replace("asyncpg", driver)
    engine = create_async_engine(url).sync_engine if driver == "asyncpg" else create_engine(url)

    def work():
        with Session(engine) as session:
            Base.metadata.create_all(session.connection(), tables=[Versions.__table__])
            session.add(Versions(id=1, document={"a": 1}))
            session.flush()
            session.get(Versions, 1).document = {"a": 2}
            session.flush()
            session.execute(update(Versions).values(document={"a": 3}))
            Base.metadata.drop_all(session.connection(), tables=[Versions.__table__])
            session.commit()
        engine.dispose()

    with action() as scope:
        asyncio.run(greenlet_spawn(work))
    made, changed, many = scope.changes
    assert made.values["document"] == [None, {"version": 2, "data": {"a": 1}}]
    assert changed.values["document"][0] == {"version": 2, "data": {"a": 1}}
    assert changed.patches == {"document": [{"op": "replace", "path": "/data/a", "value": 2}]}
    assert many.parameters == {"document": {"version": 2, "data": {"a": 3}}}


class Outline(UserDefinedType[Any]):
    cache_ok = True

    def get_col_spec(self, **_):
        return "path"


async def test_a_path_that_is_closed(capture, orm_dsn):
    """Two paths of the same points are not equal if one is closed; asyncpg gives a class."""
    plots = Table("plots", Base.metadata, Column("id", Integer, primary_key=True))
    plots.append_column(Column("outline", Outline))

    class Plot:
        pass

    Base.registry.map_imperatively(Plot, plots)
    engine = create_async_engine(orm_dsn)

    def work(connection):
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            plots.create(connection)
            session.add(Plot(id=1, outline=asyncpg.Path((0, 0), (1, 0))))
            session.commit()
            plot = session.get(Plot, 1)
            plot.outline = asyncpg.Path((0, 0), (1, 0), is_closed=True)
            session.commit()
            plots.drop(connection)

    with action() as scope:
        async with engine.begin() as connection:
            await connection.run_sync(work)
    await engine.dispose()
    Base.metadata.remove(plots)
    changed = scope.changes[-1].values["outline"]
    points = [[0.0, 0.0], [1.0, 0.0]]
    assert changed == [{"points": points, "is_closed": end} for end in (False, True)]


def test_a_document_that_the_application_wraps(orm_dsn):
    """Of a parameter that holds a document each member is redacted by its name."""
    engine = create_engine(orm_dsn.replace("asyncpg", "psycopg"))
    attachment = attach(Redactor(), options=OrmOptions())
    try:
        with action() as scope, engine.begin() as connection:
            connection.execute(text("CREATE TABLE wraps (settings jsonb)"))
            connection.execute(
                text("INSERT INTO wraps (settings) VALUES (:settings)"),
                {"settings": Jsonb({"theme": "dark", "password": "hunter2"})},
            )
            connection.execute(text("DROP TABLE wraps"))
    finally:
        detach(attachment)
        engine.dispose()
    (made,) = (one for one in scope.changes if one.operation == "insert")
    assert made.parameters == {"settings": {"theme": "dark", "password": "[REDACTED]"}}


class TestExpressions:
    async def test_a_function_around_the_value(self, capture, pg):
        """What the database makes of a value is not known; what was sent is told beside that."""

        def work(session):
            session.add(Wrapped(id=1, small="ABC"))
            session.flush()
            session.get(Wrapped, 1).small = "XYZ"

        made, changed = await pg.changes(work)
        assert made.values["small"] == [None, "ABC"]
        assert made.unknown_after == ("small",)
        assert changed.unknown_after == ("small",)

    async def test_a_function_that_hashes(self, capture, pg):
        """What a table keeps only the hash of is nowhere told in clear."""

        def work(session):
            session.add(Wrapped(id=1, digest="S3CR3T"))
            session.flush()
            session.execute(
                update(Wrapped).where(Wrapped.digest == "S3CR3T").values(digest="S3CR3T")
            )
            session.execute(insert(Wrapped), [{"id": 2, "digest": "S3CR3T"}])

        changes = await pg.changes(work)
        assert [one.operation for one in changes] == ["insert", "update", "insert"]
        assert "S3CR3T" not in str(changes)
        assert changes[0].values["digest"] == [None, "[REDACTED]"]


class TestKeys:
    async def test_a_uuid_in_any_spelling(self, capture, store):
        """A key is told as the UUID that it is: so routes name it, too."""
        number = uuid.uuid4()
        (change,) = await store.changes(lambda s: s.add(Gadget(id=number)))
        assert change.reference == f"gadget:{number}"

    async def test_association(self, capture, store):
        """Rows of an association name their sides as these name themselves."""
        one, other = uuid.uuid4(), uuid.uuid4()
        changes = await store.changes(lambda s: s.add(Gadget(id=one, stickers=[Sticker(id=other)])))
        relation = next(c for c in changes if c.kind == "relation")
        assert {f"gadget:{one}", f"sticker:{other}"} <= set(relation.related)


class TestRowsOfStatements:
    async def test_before_images(self, store):
        """Rows that are read around a statement are told as the table holds them."""
        with capturing(OrmOptions(before_images=("gadget",))) as capture:

            def work(session):
                session.add(Gadget(price=1.5, salted="x"))
                session.commit()
                session.execute(update(Gadget).values(price=2.5, salted="y"))
                told.append(session.scalar(select(func.max(type_coerce(Gadget.salted, String)))))

            told: list[str] = []
            _, _, row = await store.changes(work)
        assert row.values["price"] == [150, 250]
        assert row.values["salted"][0].endswith(":x")
        assert row.values["salted"][1] == told[0]
        assert capture.errors == 0


def test_a_type_that_raises(sqlite):
    """An error of a type that is asked again costs its value, not the entry."""

    class Once(TypeDecorator[Any]):
        impl = LargeBinary
        cache_ok = True
        calls = 0

        def process_bind_param(self, value, dialect):
            Once.calls += 1
            if Once.calls > 1:
                raise RuntimeError("once only")
            return b"x"

    class Own(DeclarativeBase):
        pass

    class Row(Own):
        __tablename__ = "row"
        id: Mapped[int] = mapped_column(primary_key=True)
        value = mapped_column(Once)

    Own.metadata.create_all(sqlite.engine)

    with capturing(), action() as scope, Session(sqlite.engine) as session:
        session.add(Row(id=1, value="v"))
        session.commit()
    (change,) = scope.changes
    assert change.key == {"id": 1}
    assert change.values["value"][1] == {"_type": "builtins.str"}
    assert change.note == "not readable: value (RuntimeError)"
