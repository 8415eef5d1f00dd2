"""Statements over many rows, recorded row by row for chosen tables."""

from __future__ import annotations

import pytest
from orm_harness import SqliteStore, action, capturing
from orm_models import Clerk, Customer, Employee, Order, OrderLine, Tag
from sqlalchemy import JSON, bindparam, create_engine, delete, event, insert, select, text, update
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from otel_audit.orm import OrmOptions, before_images

OPTIONS = OrmOptions(before_images=("customer", "orders", "order_line", "tag", "employee"))


@pytest.fixture
async def peopled(store):
    await store.run(
        lambda session: (
            session.add_all(
                [
                    Customer(id=1, full_name="ada", password="hunter2", orders=[Order(id=1)]),
                    Customer(id=2, full_name="bob", note="old"),
                    Customer(id=3, full_name="eve"),
                    Order(id=7, lines=[OrderLine(number=1, text="a"), OrderLine(number=2)]),
                    Tag(code="red"),
                    Employee(id=1, name="e"),
                    Clerk(id=2, name="c"),
                ]
            ),
            session.commit(),
        )
    )
    return store


async def recorded(store, work, options=OPTIONS):
    with capturing(options) as capture:
        changes = await store.changes(work)
    assert capture.errors == 0
    return changes


def rows(changes):
    return [(one.operation, one.reference, one.values) for one in changes if one.kind == "entity"]


class TestEditedInPlace:
    async def test_mutable_document(self, tmp_path):
        """What a document was before it was edited in its place is read for a chosen table."""

        class Own(DeclarativeBase):
            pass

        class Page(Own):
            __tablename__ = "page"
            id: Mapped[int] = mapped_column(primary_key=True)
            body = mapped_column(MutableDict.as_mutable(JSON))

        engine = create_engine(f"sqlite:///{tmp_path / 'pages.db'}")
        Own.metadata.create_all(engine)
        store = SqliteStore(engine)
        await store.run(lambda s: (s.add(Page(id=1, body={"a": 1})), s.commit()))

        def edit(session):
            page = session.get(Page, 1)
            page.body["b"] = page.body.get("b", 1) + 1

        (told,) = await recorded(store, edit, OrmOptions(before_images=("page",)))
        assert told.values == {"body": [{"a": 1}, {"a": 1, "b": 2}]}
        assert told.unknown_before == ()
        assert told.patches == {"body": [{"op": "add", "path": "/b", "value": 2}]}
        (other,) = await recorded(store, edit, OrmOptions(before_images=("another",)))
        assert other.unknown_before == ("body",)
        engine.dispose()

    async def test_deleted_unloaded(self, peopled):
        """A deleted row of a chosen table is told whole, though it was expired."""

        def work(session):
            found = session.get(Customer, 2)
            session.expire(found)
            session.delete(found)

        (gone,) = await recorded(peopled, work)
        assert gone.values["note"] == ["old", None]
        assert gone.unknown_before == ()


async def test_a_statement_that_a_listener_changes(sqlite):
    """What was read before is not told where another statement was sent."""
    await sqlite.run(lambda s: (s.add_all([Tag(code="a"), Tag(code="b")]), s.commit()))

    def narrow(_connection, clause, multiparams, params, _options):
        return clause.where(Tag.code == "a"), multiparams, params

    def work(session):
        event.listen(sqlite.engine, "before_execute", narrow, retval=True)
        try:
            session.execute(delete(Tag).execution_options(synchronize_session=False))
        finally:
            event.remove(sqlite.engine, "before_execute", narrow)

    (told,) = await recorded(sqlite, work)
    assert (told.kind, told.rows) == ("bulk", 1)
    assert told.note == "not recorded row by row: a listener changed the statement"


class TestCriteriaThatWrite:
    @pytest.mark.parametrize(
        "write",
        [
            insert(Tag).values(code="once").returning(Tag.code),
            text("INSERT INTO tag (code) VALUES ('once') RETURNING code").columns(Tag.code),
        ],
    )
    async def test_they_are_not_carried_out_twice(self, pg, write, caplog):
        """An UPDATE that refers to what a CTE inserts: rows are not read beforehand."""
        added = write.cte("added")
        statement = update(Customer).where(Customer.full_name == added.c.code).values(note="n")
        changes = await recorded(pg, lambda s: s.execute(statement))
        assert [one.table for one in changes] == ["customer", "tag"]
        assert await pg.run(lambda s: s.scalars(select(Tag.code)).all()) == ["once"]
        assert "write, too" in caplog.text


class TestUpdate:
    async def test_orm_update(self, peopled):
        """The statement, and after it what it did to each row."""
        changes = await recorded(
            peopled,
            lambda s: s.execute(update(Customer).where(Customer.id < 3).values(note="new")),
        )
        assert [(one.kind, one.rows) for one in changes] == [
            ("bulk", 2), ("entity", None), ("entity", None),
        ]  # fmt: skip
        assert rows(changes) == [
            ("update", "customer:1", {"note": [None, "new"]}),
            ("update", "customer:2", {"note": ["old", "new"]}),
        ]
        assert {one.transaction for one in changes} == {"committed"}

    async def test_core_update_with_parameters(self, peopled):
        """Parameters of the criteria go into the reading, those of the values do not."""
        table = Customer.__table__
        statement = (
            update(table).where(table.c.id == bindparam("wanted")).values(note=bindparam("new"))
        )
        changes = await recorded(
            peopled, lambda s: s.connection().execute(statement, {"wanted": 2, "new": "n"})
        )
        assert rows(changes) == [("update", "customer:2", {"note": ["old", "n"]})]

    async def test_redaction(self, peopled):
        """By name, as everywhere."""
        changes = await recorded(
            peopled, lambda s: s.execute(update(Customer).values(password="hunter3"))
        )
        assert rows(changes)[0][2] == {"password": ["***", "***"]}
        assert "hunter" not in str(changes)

    async def test_rows_that_do_not_change(self, peopled):
        """A row that is written as it was is no change."""
        changes = await recorded(peopled, lambda s: s.execute(update(Customer).values(note="old")))
        assert [reference for _, reference, _ in rows(changes)] == ["customer:1", "customer:3"]

    async def test_changed_key(self, peopled):
        """A row whose key is changed is not found again, and that is said."""
        changes = await recorded(peopled, lambda s: s.execute(update(Tag).values(code="blue")))
        (entity,) = [one for one in changes if one.kind == "entity"]
        assert entity.reference == "tag:red"
        assert entity.unknown_after == ("code",)
        assert "not found again" in entity.note

    async def test_composite_keys(self, peopled):
        changes = await recorded(peopled, lambda s: s.execute(update(OrderLine).values(text="b")))
        assert rows(changes) == [
            ("update", "order_line:7,1", {"text": ["a", "b"]}),
            ("update", "order_line:7,2", {"text": [None, "b"]}),
        ]

    async def test_single_table_inheritance(self, peopled):
        """A statement on a subclass touches its own rows only."""
        changes = await recorded(peopled, lambda s: s.execute(update(Clerk).values(desk="d")))
        assert rows(changes) == [("update", "employee:2", {"desk": [None, "d"]})]

    async def test_returning(self, peopled):
        """What the statement returns is the application's as before."""
        found = []
        statement = update(Customer).where(Customer.id == 2).values(note="n").returning(Customer.id)
        changes = await recorded(peopled, lambda s: found.extend(s.scalars(statement)))
        assert found == [2]
        assert rows(changes) == [("update", "customer:2", {"note": ["old", "n"]})]

    async def test_objects_from_what_it_returns(self, peopled):
        """The same where objects are read from it."""
        statement = update(Customer).where(Customer.id == 2).values(note="n").returning(Customer)
        objects = select(Customer).from_statement(statement)
        changes = await recorded(peopled, lambda s: s.scalars(objects).all())
        assert rows(changes) == [("update", "customer:2", {"note": ["old", "n"]})]

    async def test_rolled_back(self, peopled):
        """They belong to their transaction like any change."""
        with capturing(OPTIONS), action() as scope:
            await peopled.run(
                lambda s: (s.execute(update(Customer).values(note="n")), s.rollback())
            )
        assert scope.changes == []
        assert scope.changes_rolled_back == 4


class TestDelete:
    async def test_deleted_rows(self, peopled):
        changes = await recorded(
            peopled, lambda s: s.execute(delete(OrderLine).where(OrderLine.number == 1))
        )
        assert rows(changes) == [
            ("delete", "order_line:7,1",
             {"order_id": [7, None], "number": [1, None], "text": ["a", None]}),
        ]  # fmt: skip

    async def test_legacy_query(self, peopled):
        changes = await recorded(peopled, lambda s: s.query(OrderLine).delete())
        assert [reference for _, reference, _ in rows(changes)] == [
            "order_line:7,1",
            "order_line:7,2",
        ]


class TestBounds:
    async def test_too_many_rows(self, peopled, caplog):
        """Beyond the bound none is read, and that is said."""
        options = OrmOptions(before_images=("customer",), max_before_images=2)
        changes = await recorded(
            peopled, lambda s: s.execute(update(Customer).values(note="n")), options
        )
        assert [(one.kind, one.rows) for one in changes] == [("bulk", 3)]
        assert "more than 2 rows" in caplog.text

    @pytest.mark.parametrize(
        "write",
        [
            lambda s: s.execute(text("UPDATE customer SET note = 'n'")),
            lambda s: s.connection().exec_driver_sql("DELETE FROM customer WHERE id = 3"),
        ],
    )
    async def test_a_plain_text(self, peopled, caplog, write):
        """Which rows it will affect is not known before, and that is said."""
        (told,) = await recorded(peopled, write, OrmOptions(before_images=("customer",)))
        assert told.kind == "bulk"
        line = "customer is recorded as one change, not row by row: it is a plain text"
        assert line in caplog.text

    async def test_a_plain_text_on_another_table(self, peopled, caplog):
        """And one that inserts: nothing is missing there."""

        def work(session):
            session.execute(text("UPDATE customer SET note = 'n'"))
            session.execute(text("INSERT INTO orders (id) VALUES (8)"))

        await recorded(peopled, work, OrmOptions(before_images=("orders",)))
        assert "row by row" not in caplog.text

    async def test_other_tables(self, peopled):
        """Only chosen tables cost a query."""
        options = OrmOptions(before_images=("orders",))
        changes = await recorded(
            peopled, lambda s: s.execute(update(Customer).values(note="n")), options
        )
        assert rows(changes) == []

    async def test_the_unit_of_work_is_left_alone(self, peopled):
        """What a flush writes is described once."""

        def work(session):
            session.get(Customer, 1).note = "n"

        changes = await recorded(peopled, work)
        assert rows(changes) == [("update", "customer:1", {"note": [None, "n"]})] or [
            one.unknown_before for one in changes
        ] == [("note",)]
        assert len(changes) == 1

    @pytest.mark.allow_errors
    async def test_reading_that_fails(self, peopled, monkeypatch):
        """The application's statement goes on as without, and is recorded as one change."""

        def broken(statement, columns):
            return select(*columns).where(text("no_such_column = 1"))

        monkeypatch.setattr(before_images, "_rows_of", broken)
        with capturing(OPTIONS) as capture:
            changes = await peopled.changes(lambda s: s.execute(update(Customer).values(note="n")))
        assert [(one.kind, one.rows, one.transaction) for one in changes] == [
            ("bulk", 3, "committed")
        ]
        assert capture.errors == 1

    async def test_plain_text(self, peopled):
        """What a text writes is not to be known beforehand."""
        changes = await recorded(
            peopled, lambda s: s.execute(text("UPDATE customer SET note = 'n'"))
        )
        assert [one.kind for one in changes] == ["bulk"]
