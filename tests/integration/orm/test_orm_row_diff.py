from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal

import pytest
from orm_harness import action, capturing
from orm_models import (
    Clerk,
    Counter,
    Customer,
    Lazy,
    Manager,
    Order,
    OrderLine,
    Point,
    Shape,
    Tag,
    Truck,
)
from sqlalchemy import event, select
from sqlalchemy.orm import raiseload

from otel_audit.orm import OrmOptions


def one(changes):
    (change,) = changes
    return change


class TestInsert:
    async def test_inserted_row(self, capture, store):
        """An inserted row is one entry with its generated key, its columns, and its outcome."""
        change = one(await store.changes(lambda s: s.add(Customer(full_name="Ada"))))
        assert (change.operation, change.kind) == ("insert", "entity")
        assert (change.entity, change.table) == ("Customer", "customer")
        assert change.key == {"id": 1}
        assert change.reference == "customer:1"
        assert change.transaction == "committed"
        assert change.values == {"id": [None, 1], "name": [None, "Ada"]}
        assert change.unknown_before == ()

    async def test_composite_key(self, capture, store):
        """A composite primary key is recorded column by column."""

        def work(session):
            session.add(Order(lines=[OrderLine(number=1, text="a"), OrderLine(number=2)]))

        order, first, second = await store.changes(work)
        assert order.key == {"id": 1}
        assert first.key == {"order_id": 1, "number": 1}
        assert second.reference == "order_line:1,2"

    async def test_natural_key(self, capture, store):
        """A natural primary key is recorded as it is."""
        assert one(await store.changes(lambda s: s.add(Tag(code="red")))).key == {"code": "red"}

    async def test_key_made_by_python(self, capture, store):
        """A primary key that a default of the application made is there, as text."""
        made = uuid.uuid4()
        change = one(await store.changes(lambda s: s.add(Shape(id=made, x=1, y=2))))
        assert change.key == {"id": str(made)}

    async def test_server_default_that_was_returned(self, capture, store):
        """A server default that the INSERT returned is recorded with its value."""
        change = one(await store.changes(lambda s: s.add(Order(total=Decimal("1.50")))))
        assert change.values["state"] == [None, "new"]
        assert change.unknown_after == ()

    async def test_server_default_that_was_not_returned(self, capture, store):
        """A server default that nobody has asked for is unknown, not invented."""
        change = one(await store.changes(lambda s: s.add(Lazy(name="a"))))
        assert "state" not in change.values
        assert change.unknown_after == ("state",)

    async def test_computed_column(self, capture, store):
        """A computed column is recorded with what the database made of it."""
        change = one(await store.changes(lambda s: s.add(Counter(value=4))))
        assert change.values["doubled"] == [None, 8]
        assert change.values["version"] == [None, 1]

    async def test_values_are_copied(self, capture, store):
        """What the application does to a value afterwards does not change history."""
        settings = {"a": [1]}

        def work(session):
            session.add(Customer(full_name="Ada", settings=settings))
            session.flush()
            settings["a"].append(2)

        assert one(await store.changes(work)).values["settings"] == [None, {"a": [1]}]

    async def test_core_default_on_python_side(self, capture, store):
        """A default of the application's side is recorded as what was written."""
        assert one(await store.changes(lambda s: s.add(Counter(value=1)))).values["touched"] == [
            None,
            0,
        ]


class TestUpdate:
    async def test_changed_columns_only(self, capture, store):
        """Only columns whose value really differs are recorded, under the column's own name."""

        def work(session):
            customer = Customer(full_name="Ada", password="x")
            session.add(customer)
            session.flush()
            customer.full_name = "Bea"
            customer.password = "x"

        change = (await store.changes(work))[1]
        assert change.operation == "update"
        assert change.values == {"name": ["Ada", "Bea"]}

    async def test_no_net_change(self, capture, store):
        """An object that was touched and is as before leaves no entry."""

        def work(session):
            customer = Customer(full_name="Ada")
            session.add(customer)
            session.flush()
            customer.full_name = "Bea"
            customer.full_name = "Ada"

        assert len(await store.changes(work)) == 1

    async def test_through_a_synonym(self, capture, store):
        """A change through a synonym is a change of its column, once."""

        def work(session):
            session.add(Customer(id=1, full_name="Ada"))
            session.flush()
            session.get(Customer, 1).label = "Bea"

        assert (await store.changes(work))[1].values == {"name": ["Ada", "Bea"]}

    async def test_expired_attribute(self, capture, store):
        """The earlier value of an attribute that is not loaded is unknown, not invented."""

        def work(session):
            session.add(Customer(id=1, full_name="Ada"))
            session.commit()
            session.get_one(Customer, 1)
            customer = session.get(Customer, 1)
            session.expire(customer)
            customer.full_name = "Bea"

        change = (await store.changes(work))[1]
        assert change.values == {"name": [None, "Bea"]}
        assert change.unknown_before == ("name",)

    async def test_deferred_attribute(self, capture, store):
        """The same for a deferred attribute."""

        def work(session):
            session.add(Customer(id=1, full_name="Ada", note="long"))
            session.commit()
            session.expunge_all()
            session.get(Customer, 1).note = "longer"

        change = (await store.changes(work))[1]
        assert change.values == {"note": [None, "longer"]}
        assert change.unknown_before == ("note",)

    async def test_fetching_what_is_unknown(self, store):
        """With `fetch_unknown` the earlier value is read before it is overwritten."""

        def work(session):
            session.add(Customer(id=1, full_name="Ada", note="long"))
            session.commit()
            session.expunge_all()
            session.get(Customer, 1).note = "longer"

        with capturing(OrmOptions(fetch_unknown=True)) as capture:
            change = (await store.changes(work))[1]
        assert change.values == {"note": ["long", "longer"]}
        assert change.unknown_before == ()
        assert capture.errors == 0

    async def test_changed_key(self, capture, store):
        """A changed primary key is recorded under the new key, and found under the old one."""

        def work(session):
            session.add(Tag(code="red"))
            session.flush()
            session.get(Tag, "red").code = "blue"

        with action() as scope:
            await store.run(lambda s: (work(s), s.commit()))
        change = scope.changes[1]
        assert change.key == {"code": "blue"}
        assert change.values == {"code": ["red", "blue"]}
        assert change.related == ("tag:red",)

    async def test_version_and_onupdate(self, capture, store):
        """What a flush changes unasked is recorded with both values."""

        def work(session):
            session.add(Counter(id=1, value=1))
            session.flush()
            session.get(Counter, 1).value = 2

        change = (await store.changes(work))[1]
        assert change.values == {
            "value": [1, 2],
            "doubled": [2, 4],
            "touched": [0, 7],
            "version": [1, 2],
        }

    async def test_onupdate_that_was_not_returned(self, capture, store):
        """A value that only the database knows is unknown afterwards, its earlier value is kept."""

        def work(session):
            session.add(Lazy(id=1, name="a"))
            session.commit()
            lazy = session.get(Lazy, 1)
            assert lazy.state == "new"
            lazy.name = "b"

        change = (await store.changes(work))[1]
        assert change.values["name"] == ["a", "b"]
        assert change.values["state"] == ["new", None]
        assert change.unknown_after == ("state",)

    async def test_sql_expression(self, capture, store):
        """An attribute set to a SQL expression keeps its earlier value; the new one is unknown."""

        def work(session):
            order = Order(id=1, total=Decimal("5.00"))
            session.add(order)
            session.flush()
            order.total = Order.total + 1

        change = (await store.changes(work))[1]
        assert change.values["total"][0] == "5.00"
        assert change.values["total"][1] is None
        assert change.unknown_after == ("total",)

    async def test_soft_delete(self, capture, store):
        """A soft delete is the update that it is."""

        def work(session):
            session.add(Order(id=1))
            session.flush()
            session.get(Order, 1).deleted_at = dt.datetime(2024, 5, 1, 12)

        change = (await store.changes(work))[1]
        assert change.operation == "update"
        assert change.values == {"deleted_at": [None, "2024-05-01T12:00:00"]}

    async def test_composite_attribute(self, capture, store):
        """A composite is recorded as the columns it stands for."""

        def work(session):
            shape = Shape(x=1, y=2)
            session.add(shape)
            session.flush()
            shape.position = Point(1, 9)

        assert (await store.changes(work))[1].values == {"y": [2, 9]}

    async def test_several_flushes(self, capture, store):
        """Each flush has its own entry, in order."""

        def work(session):
            session.add(Customer(id=1, full_name="a"))
            for name in "bcd":
                session.flush()
                session.get(Customer, 1).full_name = name

        changes = await store.changes(work)
        assert [change.values["name"] for change in changes[1:]] == [
            ["a", "b"],
            ["b", "c"],
            ["c", "d"],
        ]

    async def test_row_switch(self, capture, store):
        """An object that takes a deleted one's place is the UPDATE that is sent for it."""

        def work(session):
            session.add(Tag(code="red"))
            session.add(Customer(id=1, full_name="Ada"))
            session.commit()
            session.delete(session.get(Customer, 1))
            session.add(Customer(id=1, full_name="Bea"))

        change = (await store.changes(work))[2]
        assert change.operation == "update"
        assert change.values == {"name": ["Ada", "Bea"]}
        assert change.unknown_before == ()


class TestDelete:
    async def test_deleted_row(self, capture, store):
        """A deleted row is recorded with what it held."""

        def work(session):
            customer = Customer(id=1, full_name="Ada", note="n")
            session.add(customer)
            session.flush()
            session.delete(customer)

        change = (await store.changes(work))[1]
        assert change.operation == "delete"
        assert change.key == {"id": 1}
        assert change.values == {"id": [1, None], "name": ["Ada", None], "note": ["n", None]}

    async def test_unloaded_columns(self, capture, store):
        """What was not loaded of a deleted row is unknown."""

        def work(session):
            session.add(Customer(id=1, full_name="Ada", note="n"))
            session.commit()
            session.expunge_all()
            session.delete(session.get(Customer, 1))

        assert (await store.changes(work))[1].unknown_before == ("note",)

    async def test_fetching_unloaded_columns(self, store):
        """With `fetch_unknown` a deleted row is recorded whole."""

        def work(session):
            session.add(Customer(id=1, full_name="Ada", note="n"))
            session.commit()
            session.expunge_all()
            session.delete(session.get(Customer, 1))

        with capturing(OrmOptions(fetch_unknown=True)):
            change = (await store.changes(work))[1]
        assert change.values["note"] == ["n", None]

    async def test_changed_before_it_was_deleted(self, capture, store):
        """A change that never reached the database is no part of what was deleted."""

        def work(session):
            session.add(Customer(id=1, full_name="Ada"))
            session.commit()
            customer = session.get(Customer, 1)
            assert customer.full_name == "Ada"
            with session.no_autoflush:
                customer.full_name = "Bea"
                session.delete(customer)

        assert (await store.changes(work))[1].values["name"] == ["Ada", None]

    @pytest.mark.filterwarnings("ignore:DELETE statement on table")
    async def test_row_that_was_not_there(self, capture, sqlite):
        """A delete that met no row says so."""

        def work(session):
            session.add(Customer(id=1, full_name="Ada"))
            session.commit()
            customer = session.get(Customer, 1)
            assert customer.full_name
            session.connection().exec_driver_sql("DELETE FROM customer")
            session.delete(customer)

        assert "fewer rows" in (await sqlite.changes(work))[2].note


class TestInheritance:
    async def test_single_table(self, capture, store):
        """A single-table subclass is its own entity, found under its base's name too."""

        def work(session):
            session.add(Clerk(id=3, name="Bob", desk="A"))
            session.flush()
            session.get(Clerk, 3).desk = "B"

        inserted, updated = await store.changes(work)
        assert (inserted.entity, inserted.table) == ("Clerk", "employee")
        assert inserted.related == ("employee:3",)
        assert inserted.values["kind"] == [None, "clerk"]
        assert updated.values == {"desk": ["A", "B"]}

    async def test_joined_tables(self, capture, store):
        """A joined-table subclass is one entry with the columns of all its tables."""

        def work(session):
            session.add(Manager(id=4, name="Eve", grade=1))
            session.flush()
            manager = session.get(Manager, 4)
            manager.name, manager.grade = "Eva", 2
            session.flush()
            session.delete(manager)

        inserted, updated, deleted = await store.changes(work)
        assert (inserted.entity, inserted.table) == ("Manager", "manager")
        assert inserted.key == {"id": 4}
        assert updated.values == {"name": ["Eve", "Eva"], "grade": [1, 2]}
        assert deleted.values["grade"] == [2, None]
        assert deleted.related == ("employee:4",)

    async def test_concrete_table(self, capture, store):
        """A concrete subclass has an identity of its own."""
        change = one(await store.changes(lambda s: s.add(Truck(id=5, wheels=6, load=9))))
        assert (change.entity, change.table, change.related) == ("Truck", "truck", ())
        assert change.values == {"id": [None, 5], "wheels": [None, 6], "load": [None, 9]}


class TestNoInterference:
    async def test_no_hidden_queries(self, store):
        """Capture adds not one statement to what the application sends."""
        statements = []
        event.listen(store.engine, "before_cursor_execute", lambda *a: statements.append(a[2]))

        def work(session):
            statements.clear()
            session.add(Order(id=1, lines=[OrderLine(number=1)], tags=[Tag(code="a")]))
            session.add(Manager(id=1, name="m", grade=1))
            session.commit()
            order = session.get(Order, 1)
            session.expire_all()
            order.state = "paid"
            session.commit()
            session.delete(order)
            session.commit()
            session.delete(session.get(Manager, 1))
            session.delete(session.get(Tag, "a"))
            session.commit()
            return list(statements)

        bare = await store.run(work)
        with capturing() as capture:
            watched = await store.run(work)
        assert len(bare) > 10
        assert watched == bare
        assert capture.orphans

    async def test_lazy_loading_is_forbidden(self, capture, store):
        """Objects whose every load would raise are captured without a load."""

        def work(session):
            session.add(Order(id=1, customer=Customer(full_name="Ada", note="n")))
            session.commit()
            session.expunge_all()
            order = session.scalars(select(Order).options(raiseload("*"))).one()
            order.state = "paid"

        assert (await store.changes(work))[2].values == {"state": ["new", "paid"]}
