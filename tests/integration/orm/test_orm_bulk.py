from __future__ import annotations

import pytest
from orm_harness import action, capturing
from orm_models import Child, Counter, Customer, Order, Parent, Tag, Unwatched, order_tag
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    String,
    Table,
    delete,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.exc import IntegrityError

from otel_audit.orm import OrmOptions

people = [{"full_name": name} for name in ("Ada", "Bea", "Cyd")]


def add_people(session):
    session.execute(insert(Customer), people)


@pytest.fixture
async def peopled(store):
    """A database with three customers, written before capture began."""
    await store.run(lambda s: (add_people(s), s.commit()))
    return store


class TestOrmStatements:
    async def test_update(self, peopled, capture):
        """An ORM-enabled UPDATE is one entry with criteria, parameters and row count."""
        (change,) = await peopled.changes(
            lambda s: s.execute(update(Customer).where(Customer.id > 1).values(note="n"))
        )
        assert (change.operation, change.kind) == ("update", "bulk")
        assert (change.entity, change.table) == ("Customer", "customer")
        assert change.rows == 2
        assert change.parameters == {"note": "n", "id_1": 1}
        assert change.statement.startswith("UPDATE customer SET note=")
        assert "WHERE customer.id >" in change.statement

    @pytest.mark.parametrize("how", ["fetch", "evaluate", "auto", False])
    async def test_rows_are_counted_or_unknown(self, peopled, capture, how):
        """However objects are kept up to date, the count is what the database affected, or none."""

        def work(session):
            statement = update(Customer).where(Customer.id > 1).values(note="n")
            session.execute(statement, execution_options={"synchronize_session": how})

        (change,) = await peopled.changes(work)
        unknown = peopled.name == "sqlite" and how == "fetch"
        assert change.rows == (None if unknown else 2)

    @pytest.mark.parametrize(
        ("statement", "operation"),
        [
            (insert(Customer).values(full_name="Dot"), "insert"),
            (update(Customer).where(Customer.id > 1).values(note="n"), "update"),
            (delete(Customer).where(Customer.id > 1), "delete"),
        ],
    )
    async def test_objects_from_what_is_written(self, peopled, capture, statement, operation):
        """Objects may be read from what a statement returns: it writes all the same."""

        def work(session):
            found = select(Customer).from_statement(statement.returning(Customer))
            assert session.scalars(found).all()

        (change,) = await peopled.changes(work)
        assert (change.operation, change.kind, change.table) == (operation, "bulk", "customer")

    async def test_columns_from_a_text_that_writes(self, peopled, capture):
        """The same for a text whose columns are named."""
        statement = text("UPDATE customer SET note = 'n' WHERE id = 1 RETURNING id")

        def work(session):
            assert session.execute(statement.columns(Customer.id)).scalar_one() == 1

        (change,) = await peopled.changes(work)
        assert (change.operation, change.table) == ("update", "customer")

    @pytest.mark.parametrize(
        "statement", [insert(Tag.__table__), text("INSERT INTO tag (code) VALUES (:code)")]
    )
    async def test_many_sets_that_fail_part_way(self, sqlite, capture, statement):
        """SQLite keeps the rows before the one that it has refused: they are not passed over."""

        def work(session):
            sets = [{"code": code} for code in ("a", "b", "a", "c")]
            with pytest.raises(IntegrityError):
                session.connection().execute(statement, sets)

        (change,) = await sqlite.changes(work)
        assert (change.operation, change.kind, change.table) == ("insert", "untracked", "tag")
        assert "part-way" in change.note

    @pytest.mark.parametrize(
        "statement",
        [insert(Unwatched.__table__), text("INSERT INTO own_table (id) VALUES (:id)")],
    )
    async def test_failure_of_what_is_not_recorded(self, sqlite, statement):
        """What is left out when it works is left out when it fails."""

        def work(session):
            session.execute(text("CREATE TABLE own_table (id integer PRIMARY KEY)"))
            with pytest.raises(IntegrityError):
                session.connection().execute(statement, [{"id": 1}, {"id": 1}])
            session.commit()

        with capturing(OrmOptions(exclude_tables=("own_table",))), action() as scope:
            await sqlite.run(work)
        assert (scope.transaction, scope.changes) == ("none", [])

    async def test_update_with_synchronization(self, peopled, capture):
        """Whatever is done to objects in the session, the statement is recorded once."""

        def work(session):
            customers = session.scalars(select(Customer)).all()
            session.execute(
                update(Customer).values(note="n"),
                execution_options={"synchronize_session": "fetch"},
            )
            assert {customer.note for customer in customers} == {"n"}

        (change,) = await peopled.changes(work)
        assert change.operation == "update"

    async def test_delete(self, peopled, capture):
        """An ORM-enabled DELETE as well."""
        (change,) = await peopled.changes(lambda s: s.execute(delete(Customer)))
        assert (change.operation, change.rows, change.parameters) == ("delete", 3, None)

    async def test_insert_of_many(self, store, capture):
        """An ORM-enabled INSERT of many rows is one entry with their parameters."""
        (change,) = await store.changes(add_people)
        assert (change.operation, change.rows) == ("insert", 3)
        assert [one["name"] for one in change.parameters] == ["Ada", "Bea", "Cyd"]

    async def test_insert_returning(self, store, capture):
        """The same with RETURNING, in however many batches it is sent."""

        def work(session):
            rows = [{"full_name": str(number)} for number in range(2500)]
            made = session.scalars(insert(Customer).returning(Customer), rows).all()
            assert len(made) == 2500

        (change,) = await store.changes(work)
        assert change.rows == 2500
        assert change.parameters[-1] == {"further_parameter_sets": 2480}

    async def test_insert_of_several_value_lists(self, store, capture):
        """The same with all rows in one VALUES."""
        (change,) = await store.changes(
            lambda s: s.execute(insert(Tag).values([{"code": "a"}, {"code": "b"}]))
        )
        assert change.rows == 2
        assert change.parameters == {"code_m0": "a", "code_m1": "b"}

    async def test_insert_from_select(self, peopled, capture):
        """An INSERT from a SELECT has the row count that the database told."""

        def work(session):
            source = select(Customer.id, Customer.id)
            session.execute(insert(Counter).from_select(["value", "version"], source))

        (change,) = await peopled.changes(work)
        assert (change.entity, change.rows) == ("Counter", 3)

    async def test_update_returning(self, peopled, capture):
        """RETURNING rows does not hide the write."""

        def work(session):
            made = session.scalars(update(Customer).values(note="n").returning(Customer.id)).all()
            assert len(made) == 3

        (change,) = await peopled.changes(work)
        assert change.rows == (3 if peopled.name == "postgres" else None)

    async def test_upsert(self, store, capture):
        """An upsert is an insert that says so, with the rows that it touched."""
        dialect = postgresql if store.name == "postgres" else sqlite_dialect

        def work(session):
            session.add(Tag(code="a"))
            session.flush()
            statement = dialect.insert(Tag).values([{"code": "a"}, {"code": "b"}])
            session.execute(statement.on_conflict_do_nothing())

        change = (await store.changes(work))[1]
        assert change.operation == "insert"
        assert change.rows == 1
        assert "ON CONFLICT" in change.note

    async def test_bulk_update_by_key(self, peopled, capture):
        """An UPDATE by primary key, many rows at once."""
        rows = [{"id": 1, "note": "a"}, {"id": 2, "note": "b"}]
        (change,) = await peopled.changes(lambda s: s.execute(update(Customer), rows))
        assert change.operation == "update"
        assert [one["note"] for one in change.parameters] == ["a", "b"]

    async def test_legacy_query(self, peopled, capture):
        """`Query.update` and `Query.delete` are statements like others."""

        def work(session):
            session.query(Customer).filter(Customer.id == 1).update({"note": "n"})
            session.query(Customer).filter(Customer.full_name.in_(["Bea", "Cyd"])).delete()

        first, second = await peopled.changes(work)
        assert (first.operation, first.rows) == ("update", 1)
        assert (second.operation, second.rows) == ("delete", 2)
        assert second.parameters == {"name_1_1": "Bea", "name_1_2": "Cyd"}

    async def test_legacy_bulk_methods(self, store, capture):
        """`bulk_*_mappings` and `bulk_save_objects` give no event; their statements do."""

        def work(session):
            session.bulk_insert_mappings(Customer, [{"id": 1, "full_name": "a"}])
            session.bulk_update_mappings(Customer, [{"id": 1, "full_name": "b"}])
            session.bulk_save_objects([Tag(code="t")])

        changes = await store.changes(work)
        assert [(c.operation, c.kind, c.entity) for c in changes] == [
            ("insert", "bulk", "Customer"),
            ("update", "bulk", "Customer"),
            ("insert", "bulk", "Tag"),
        ]

    async def test_after_a_flush_without_work(self, store, capture):
        """A flush that found nothing to do does not hide what comes after it."""

        def work(session):
            customer = Customer(id=1, full_name="a")
            session.add(customer)
            session.commit()
            customer.full_name = customer.full_name
            session.flush()
            session.bulk_insert_mappings(Tag, [{"code": "x"}])
            session.execute(insert(Tag).values(code="y"))

        changes = await store.changes(work)
        assert [change.kind for change in changes] == ["entity", "bulk", "bulk"]


class TestCoreStatements:
    async def test_association_table(self, store, capture):
        """A statement on a table without a class is known by the table."""

        def work(session):
            session.add_all([Order(id=1), Tag(code="t")])
            session.flush()
            session.execute(order_tag.insert().values(order_id=1, tag_code="t"))

        change = (await store.changes(work))[2]
        assert (change.kind, change.entity) == ("bulk", "order_tag")
        assert change.parameters == {"order_id": 1, "tag_code": "t"}

    async def test_inside_a_flush(self, capture, store):
        """What a listener of the application writes during a flush is no part of the flush."""

        def slip_in(mapper, connection, target):
            connection.execute(insert(Tag.__table__).values(code="slipped"))

        event.listen(Customer, "after_insert", slip_in)
        try:
            changes = await store.changes(lambda s: s.add(Customer(full_name="a")))
        finally:
            event.remove(Customer, "after_insert", slip_in)
        assert sorted((c.kind, c.entity) for c in changes) == [
            ("bulk", "Tag"),
            ("entity", "Customer"),
        ]

    @pytest.mark.parametrize(
        "write",
        [
            delete(Customer).where(Customer.id == 1).returning(Customer.id),
            text("DELETE FROM customer WHERE id = 1 RETURNING id, 'hunter2'").columns(Customer.id),
        ],
    )
    async def test_in_a_with_clause(self, pg, write):
        """A write inside a WITH clause of a SELECT is found, a text as well."""
        await pg.run(lambda s: (add_people(s), s.commit()))
        gone = write.cte("gone")

        def work(session):
            assert session.scalars(select(gone.c.id)).all() == [1]

        with capturing() as capture:
            (change,) = await pg.changes(work)
        assert capture.errors == 0
        assert (change.operation, change.entity, change.rows) == ("delete", "Customer", None)
        assert "hunter2" not in change.statement

    async def test_unmapped_table(self, capture, sqlite):
        """A table that no class knows is recorded by its name."""
        metadata = MetaData()
        loose = Table(
            "loose", metadata, Column("id", Integer, primary_key=True), Column("a", String)
        )
        metadata.create_all(sqlite.engine)
        (change,) = await sqlite.changes(
            lambda s: s.execute(loose.insert(), [{"a": "1"}, {"a": "2"}])
        )
        assert (change.entity, change.table, change.rows) == ("loose", "loose", 2)

    async def test_definitions_are_no_changes(self, capture, sqlite):
        """Statements that define tables are not recorded."""
        with action() as scope:
            metadata = MetaData()
            Table("more", metadata, Column("id", Integer, primary_key=True))
            metadata.create_all(sqlite.engine)
            metadata.drop_all(sqlite.engine)
        assert scope.changes == []
        assert scope.transaction == "none"


class TestTexts:
    async def test_text(self, peopled, capture):
        """A textual statement is known by the table that it names."""
        (change,) = await peopled.changes(
            lambda s: s.execute(
                text("UPDATE customer SET note = :note WHERE id = 1"), {"note": "n"}
            )
        )
        assert (change.operation, change.kind, change.table) == ("update", "bulk", "customer")
        assert (change.rows, change.parameters) == (1, {"note": "n"})

    async def test_literals_are_not_shown(self, peopled, capture):
        """A literal in a text may be a secret: it is not recorded."""
        (change,) = await peopled.changes(
            lambda s: s.execute(text("UPDATE customer SET note = 'top secret' /* hush */"))
        )
        assert "secret" not in change.statement
        assert "hush" not in change.statement

    async def test_driver_statement(self, peopled, capture):
        """Parameters without a name are judged by the columns that the text compares them with."""
        mark = "$1" if peopled.name == "postgres" else "?"
        (change,) = await peopled.changes(
            lambda s: s.connection().exec_driver_sql(
                f"DELETE FROM customer WHERE name = {mark}", ("Ada",)
            )
        )
        assert (change.operation, change.rows) == ("delete", 1)
        assert change.parameters == ["Ada"]

    async def test_reading_text(self, peopled, capture):
        """A text that reads is no change, even if it speaks of one."""
        assert (
            await peopled.changes(
                lambda s: s.execute(text("SELECT 'DELETE FROM customer' AS update_of")).all()
            )
            == []
        )

    async def test_procedure(self, capture, pg):
        """A text whose writes cannot be seen is flagged, not missing."""
        (change,) = await pg.changes(
            lambda s: s.execute(text("DO $$ BEGIN DELETE FROM customer; END $$"))
        )
        assert change.kind == "untracked"

    async def test_locking_read(self, capture, pg):
        """SELECT … FOR UPDATE writes nothing."""
        assert (
            await pg.changes(lambda s: s.execute(text("SELECT * FROM customer FOR UPDATE")).all())
            == []
        )


class TestParameters:
    async def test_redaction_by_name(self, store, capture):
        """Parameters are redacted under their column's name, and their attribute's."""

        def work(session):
            session.execute(
                insert(Customer).values(
                    full_name="a",
                    password="x",
                    api_login="y",
                    ssn="1",
                    card="22",
                    scratch="s",
                    vault="v",
                )
            )
            session.execute(update(Customer).where(Customer.ssn == "1").values(note="n"))

        first, second = await store.changes(work)
        assert first.parameters == {
            "name": "a",
            "password": "***",
            "secret_token": "***",
            "ssn": "[REDACTED]",
            "card": "hash:2",
            "vault": "[REDACTED]",
        }
        assert second.parameters == {"note": "n", "ssn_1": "[REDACTED]"}

    async def test_parameter_of_an_expression(self, peopled, capture):
        """A parameter belongs to the columns of the expression that it is compared with."""
        from sqlalchemy import func

        (change,) = await peopled.changes(
            lambda s: s.execute(
                update(Customer)
                .where(func.lower(Customer.ssn) == "123-45", func.length(Customer.full_name) > 2)
                .values(note="n")
            )
        )
        assert change.parameters == {"note": "n", "lower_1": "[REDACTED]", "length_1": 2}

    async def test_unwatched_model(self, store, capture):
        """A model that is not to be audited is left out of statements too."""

        def work(session):
            session.add(Unwatched(id=1))
            session.flush()
            session.execute(insert(Unwatched.__table__).values(id=2))
            session.execute(delete(Unwatched))

        assert await store.changes(work) == []

    async def test_rows_deleted_by_the_database(self, store, capture):
        """A bulk DELETE says what it did itself."""

        def work(session):
            session.add(Parent(id=1, children=[Child(id=1)]))
            session.flush()
            session.execute(delete(Parent))

        assert (await store.changes(work))[-1].rows == 1
