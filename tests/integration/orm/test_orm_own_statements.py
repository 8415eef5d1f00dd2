"""Whose statement it is: a flush's own, or one of the application's in its middle."""

from __future__ import annotations

from typing import Any

import pytest
from orm_harness import action, capturing
from orm_models import Counter, Customer, Order, OrderLine, Tag
from sqlalchemy import delete, event, insert, update
from sqlalchemy.orm import Session

from otel_audit.orm import OrmOptions


@pytest.fixture
def listening():
    """Listen to a mapped class for as long as the test lasts."""
    heard: list[tuple[Any, str, Any]] = []

    def listen(model: Any, name: str, listener: Any) -> None:
        event.listen(model, name, listener)
        heard.append((model, name, listener))

    yield listen
    for one in heard:
        event.remove(*one)


def tables(scope) -> list[tuple[str, str, str]]:
    return [(change.kind, change.operation, change.table) for change in scope.changes]


class TestCacheOfTheApplication:
    """An application's own `compiled_cache` says nothing of whose statement it is."""

    def test_a_listener_that_writes(self, capture, sqlite, listening):
        """Its write is told beside the flush's."""
        listening(
            Tag,
            "after_insert",
            lambda _m, connection, tag: connection.execute(
                insert(Customer.__table__).values(name=tag.code)
            ),
        )
        engine = sqlite.engine.execution_options(compiled_cache={})
        with action() as scope, Session(engine) as session:
            session.add(Tag(code="a"))
            session.commit()
        assert sorted(tables(scope)) == [
            ("bulk", "insert", "customer"),
            ("entity", "insert", "tag"),
        ]

    @pytest.mark.parametrize("model", [Customer, Tag])
    def test_a_listener_that_writes_by_the_orm(self, capture, sqlite, listening, model):
        """An ORM-enabled statement of many rows is none of the flush, though of its class."""
        rows = {Customer: [{"full_name": "a"}, {"full_name": "b"}], Tag: [{"code": "x"}]}[model]

        def write(_mapper, connection, tag) -> None:
            if tag.code == "a":
                Session(bind=connection).execute(insert(model), rows)

        listening(Tag, "after_insert", write)
        with action() as scope, Session(sqlite.engine) as session:
            session.add(Tag(code="a"))
            session.commit()
        assert ("bulk", "insert", model.__tablename__) in tables(scope)
        assert ("entity", "insert", "tag") in tables(scope)

    def test_a_listener_that_updates_by_the_orm(self, capture, sqlite, listening):
        """A bulk UPDATE of the ORM is compiled into the mapper's cache, as a flush's is."""

        def write(_mapper, connection, customer) -> None:
            if customer.full_name == "b":
                statement = update(Customer)
                Session(bind=connection).execute(statement, [{"id": 1, "card": "c"}])

        listening(Customer, "after_insert", write)
        with Session(sqlite.engine) as session:
            session.add(Customer(id=1, full_name="a"))
            session.commit()
        with action() as scope, Session(sqlite.engine) as session:
            session.add(Customer(full_name="b"))
            session.commit()
        assert sorted(tables(scope)) == [
            ("bulk", "update", "customer"),
            ("entity", "insert", "customer"),
        ]

    def test_before_images(self, sqlite):
        """Rows are read as they are without it."""
        engine = sqlite.engine.execution_options(compiled_cache={})
        with Session(engine) as session:
            session.add_all([Tag(code="a"), Tag(code="b")])
            session.commit()
        options = OrmOptions(before_images=("tag",))
        with capturing(options) as capture, action() as scope, Session(engine) as session:
            session.execute(delete(Tag).where(Tag.code == "a"))
            session.commit()
        assert capture.errors == 0
        assert ("entity", "delete", "tag") in tables(scope)

    @pytest.mark.parametrize("cached", [False, True])
    def test_a_flush_is_told_once(self, sqlite, cached):
        """Everything that a flush sends is its own: updates, post-updates, versions, orphans."""
        engine = sqlite.engine.execution_options(compiled_cache={}) if cached else sqlite.engine
        options = OrmOptions(before_images=("orders", "order_line", "counter", "order_tag"))
        with capturing(options) as capture, action() as scope, Session(engine) as session:
            order = Order(lines=[OrderLine(number=1), OrderLine(number=2)], tags=[Tag(code="a")])
            counter = Counter(value=1)
            session.add_all([order, counter])
            session.commit()
            order.lines.pop()
            order.tags.clear()
            order.state = "paid"
            counter.value = 2
            session.commit()
            session.delete(order)
            session.delete(counter)
            session.commit()
        assert capture.errors == 0
        assert {change.kind for change in scope.changes} == {"entity", "relation"}
        assert len(scope.changes) == 13
