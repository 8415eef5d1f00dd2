from __future__ import annotations

from orm_harness import action
from orm_models import Child, Customer, Order, OrderLine, Parent, Tag


class TestManyToMany:
    async def test_added_row_shows_on_both_sides(self, capture, store):
        """A row added to an association is one entry that names both entities."""

        def work(session):
            session.add(Order(id=1, tags=[Tag(code="red")]))

        change = (await store.changes(work))[-1]
        assert (change.operation, change.kind) == ("insert", "relation")
        assert (change.entity, change.table) == ("order_tag", "order_tag")
        assert change.key == {"order_id": 1, "tag_code": "red"}
        assert change.values == {"order_id": [None, 1], "tag_code": [None, "red"]}
        assert change.related == ("order:1", "tag:red")

    async def test_removed_row(self, capture, store):
        """A row removed from an association is a delete that names both entities."""

        def work(session):
            session.add(Order(id=1, tags=[Tag(code="red"), Tag(code="blue")]))
            session.flush()
            order = session.get(Order, 1)
            order.tags.remove(session.get(Tag, "red"))

        change = (await store.changes(work))[-1]
        assert (change.operation, change.kind) == ("delete", "relation")
        assert change.values == {"order_id": [1, None], "tag_code": ["red", None]}
        assert set(change.related) == {"order:1", "tag:red"}

    async def test_from_the_other_side(self, capture, store):
        """It does not matter from which side the relation is written."""

        def work(session):
            session.add(Order(id=1))
            session.flush()
            session.add(Tag(code="red", orders=[session.get(Order, 1)]))

        change = (await store.changes(work))[-1]
        assert change.kind == "relation"
        assert set(change.related) == {"order:1", "tag:red"}

    async def test_deleting_one_side(self, capture, store):
        """Deleting an entity records the association's rows that went with it."""

        def work(session):
            session.add(Order(id=1, tags=[Tag(code="red")]))
            session.flush()
            session.delete(session.get(Order, 1))

        relation, order = (await store.changes(work))[-2:]
        if relation.kind == "entity":
            relation, order = order, relation
        assert (relation.kind, relation.operation) == ("relation", "delete")
        assert (order.entity, order.operation) == ("Order", "delete")

    async def test_only_the_relation_changes(self, capture, store):
        """A flush that writes nothing but an association's row records just that row."""

        def work(session):
            session.add_all([Order(id=1), Tag(code="red")])
            session.commit()
            order = session.get(Order, 1)
            order.tags.append(session.get(Tag, "red"))

        changes = await store.changes(work)
        assert [change.kind for change in changes] == ["entity", "entity", "relation"]

    async def test_rolled_back_with_its_savepoint(self, capture, store):
        """An association's row goes with its savepoint."""

        def work(session):
            session.add_all([Order(id=1), Tag(code="red")])
            session.flush()
            savepoint = session.begin_nested()
            order = session.get(Order, 1)
            order.tags.append(session.get(Tag, "red"))
            session.flush()
            savepoint.rollback()
            session.commit()

        with action() as scope:
            await store.run(work)
        assert [change.kind for change in scope.changes] == ["entity", "entity"]
        assert scope.changes_rolled_back == 1


class TestOneToMany:
    async def test_moved_child(self, capture, store):
        """A child that moves to another parent is an update of its foreign key."""

        def work(session):
            session.add_all([Customer(id=1, full_name="a"), Customer(id=2, full_name="b")])
            session.add(Order(id=5, customer_id=1))
            session.flush()
            session.get(Order, 5).customer = session.get(Customer, 2)

        change = (await store.changes(work))[-1]
        assert change.reference == "order:5"
        assert change.values == {"customer_id": [1, 2]}

    async def test_child_moved_through_the_collection(self, capture, store):
        """The same when only the collections were touched."""

        def work(session):
            session.add_all([Customer(id=1, full_name="a"), Customer(id=2, full_name="b")])
            session.add(Order(id=5, customer_id=1))
            session.commit()
            order = session.get(Order, 5)
            assert order.customer_id == 1
            other = session.get(Customer, 2)
            other.orders.append(order)

        assert (await store.changes(work))[-1].values == {"customer_id": [1, 2]}

    async def test_child_released(self, capture, store):
        """A child whose parent is deleted loses its foreign key, and that is recorded."""

        def work(session):
            session.add(Customer(id=1, full_name="a", orders=[Order(id=5)]))
            session.flush()
            session.delete(session.get(Customer, 1))

        changes = (await store.changes(work))[2:]
        released = next(change for change in changes if change.entity == "Order")
        assert released.values == {"customer_id": [1, None]}

    async def test_orphan(self, capture, store):
        """A delete-orphan cascade is recorded as the delete that it is."""

        def work(session):
            session.add(Order(id=1, lines=[OrderLine(number=1, text="x")]))
            session.flush()
            session.get(Order, 1).lines.clear()

        change = (await store.changes(work))[-1]
        assert (change.operation, change.reference) == ("delete", "order_line:1,1")
        assert change.values["text"] == ["x", None]

    async def test_cascaded_deletes(self, capture, store):
        """A cascade that the session carries out is recorded row by row."""

        def work(session):
            session.add(Order(id=1, lines=[OrderLine(number=n) for n in (1, 2)]))
            session.commit()
            session.delete(session.get(Order, 1))

        deleted = [change.reference for change in (await store.changes(work))[3:]]
        assert sorted(deleted) == ["order:1", "order_line:1,1", "order_line:1,2"]

    async def test_cascade_by_the_database(self, capture, store):
        """Rows that the database deletes by itself cannot be seen, and the entry says so."""

        def work(session):
            session.add(Parent(id=1, children=[Child(id=1)]))
            session.commit()
            session.expunge_all()
            session.delete(session.get(Parent, 1))

        change = (await store.changes(work))[-1]
        assert change.reference == "parent:1"
        assert change.note.endswith("rows of: child")

    async def test_post_update(self, capture, store):
        """A foreign key that is set by a second UPDATE is part of the entry."""

        def work(session):
            child = Child(id=1)
            session.add(Parent(id=1, children=[child], favourite=child))

        changes = {change.entity: change for change in await store.changes(work)}
        assert changes["Parent"].values["favourite_id"] == [None, 1]
        assert changes["Child"].values["parent_id"] == [None, 1]
