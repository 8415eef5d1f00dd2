"""What references call rows: by the noun that routes use, told apart by where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import (
    Column,
    ForeignKey,
    String,
    Table,
    create_engine,
    delete,
    insert,
    text,
    update,
)
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.pool import StaticPool

import otel_audit
from otel_audit import AuditConfig
from otel_audit.testing import recorded

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

    from otel_audit.record import AuditRecord, Change


def memory() -> Engine:
    return create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )


def config(**settings: Any) -> AuditConfig:
    return AuditConfig(exporter="none", **settings)


def a_class(base: Any, name: str, table: str, **more: Any) -> Any:
    columns = {
        "__module__": table,
        "__tablename__": table,
        "id": mapped_column(String, primary_key=True),
        **more,
    }
    columns["name"] = mapped_column(String, nullable=True)
    return type(name, (base,), columns)


def written(*things: Any, engine: Engine | None = None, **settings: Any) -> tuple[Change, ...]:
    engine = engine or memory()
    type(things[0]).metadata.create_all(engine)
    with (
        recorded(config=config(**settings)) as records,
        otel_audit.audit("t.done"),
        Session(engine) as session,
    ):
        session.add_all(things)
        session.commit()
    return records.one("t.done").changes


@pytest.fixture
def base() -> Any:
    class Base(DeclarativeBase): ...

    return Base


class TestNouns:
    @pytest.mark.parametrize(("name", "table", "reference", "related"), [
        ("Order", "orders", "order:1", ()),
        ("OrderLine", "order_line", "order_line:1", ()),
        ("UserModel", "users", "user:1", ()),
        ("UserORM", "app_users", "user:1", ()),
        ("UserRow", "tbl_users", "user:1", ()),
        ("UserTable", "usertable", "user:1", ()),
        ("UserEntity", "user", "user:1", ()),
        ("UserInDB", "users", "user:1", ()),
        ("DBUser", "users", "user:1", ()),
        ("Users", "users", "user:1", ()),
        ("CarModel", "car_models", "car_model:1", ()),
        ("MedicalRecord", "records", "medical_record:1", ("record:1",)),
        ("UserRecord", "users", "user:1", ()),
        ("CustomerOrder", "orders", "customer_order:1", ("order:1",)),
        ("Entity", "entities", "entity:1", ()),
        ("Заказ", "orders", "order:1", ()),
    ])  # fmt: skip
    def test_a_row_is_called_as_a_route_would_call_it(
        self, base: Any, name: str, table: str, reference: str, related: tuple[str, ...]
    ) -> None:
        """Class and table together say it; where the table has a name of its own, by that too."""
        (change,) = written(a_class(base, name, table)(id="1"))
        assert (change.reference, change.related, change.entity) == (reference, related, name)

    def test_statements_call_them_so_too(self, base: Any) -> None:
        """What a statement or a text writes is called as the rows are."""
        item = a_class(base, "ItemModel", "items")
        engine = memory()
        base.metadata.create_all(engine)
        with (
            recorded(config=config()) as records,
            otel_audit.audit("t.done"),
            Session(engine) as session,
        ):
            session.add(item(id="1"))
            session.flush()
            session.execute(update(item).values(name="a"))
            session.execute(text("update items set name = 'b'"))
            session.commit()
        changes = records.one("t.done").changes
        assert {one.reference.partition(":")[0] for one in changes} == {"item"}
        assert {one.entity for one in changes} == {"ItemModel"}

    def test_the_settings_have_the_last_word(self, base: Any) -> None:
        """By class, by table, or by the noun that would be derived."""
        named = {"Account": "customer", "crm_things": "lead", "item": "article"}
        things = [
            a_class(base, "Account", "accounts")(id="1"),
            a_class(base, "Thing", "crm_things")(id="2"),
            a_class(base, "ItemModel", "items")(id="3"),
        ]
        found = written(*things, entity_names=named)
        assert {one.reference for one in found} == {"customer:1", "lead:2", "article:3"}
        assert not [one.related for one in found if one.related]

    @pytest.mark.parametrize("bases", [1, 2])
    def test_two_classes_of_one_name_are_told_apart(self, bases: int) -> None:
        """By their tables; the noun alone finds both."""
        roots = [type("Base", (DeclarativeBase,), {}) for _ in range(bases)]
        shop = a_class(roots[0], "Item", "shop_items")
        blog = a_class(roots[-1], "Item", "blog_items")
        engine = memory()
        for one in roots:
            one.metadata.create_all(engine)
        with (
            recorded(config=config()) as records,
            otel_audit.audit("t.done"),
            Session(engine) as session,
        ):
            for number, kind in enumerate((shop, blog, shop, blog)):
                session.add(kind(id=str(number // 2)))
                session.flush()
            session.commit()
        last = records.one("t.done").changes[2:]
        assert [one.reference for one in last] == ["shop_items.item:1", "blog_items.item:1"]
        assert all("item:1" in one.related for one in last)

    def test_a_class_whose_mapping_has_failed_does_no_harm(self, base: Any) -> None:
        """It stays in SQLAlchemy's registry, half made."""
        broken = {"__tablename__": "broken", "id": Column(String)}
        with pytest.raises(Exception, match="primary key"):
            type("Broken", (base,), broken)
        (change,) = written(a_class(base, "Order", "orders")(id="1"))
        assert change.reference == "order:1"


class TestPlaces:
    @pytest.mark.parametrize("declared", [None, "per_tenant"])
    def test_a_schema_for_each_tenant(self, base: Any, declared: str | None) -> None:
        """ORM and statements alike: the schema that the connection translates to is named."""
        item = a_class(base, "Item", "items", __table_args__={"schema": declared})
        engine = memory()
        tenants = ("tenant_a", "tenant_b")
        with engine.begin() as connection:
            for tenant in tenants:
                connection.execute(text(f"attach ':memory:' as {tenant}"))
                connection.execute(
                    text(f"create table {tenant}.items (id text primary key, name text)")
                )
        with recorded(config=config(orm_before_images=("items", "per_tenant.items"))) as records:
            for tenant in tenants:
                own = engine.execution_options(schema_translate_map={declared: tenant})
                with otel_audit.audit("t.done"), Session(own) as session:
                    session.add(item(id="1"))
                    session.flush()
                    session.execute(insert(item).values(id="2"))
                    session.execute(delete(item).where(item.id == "1"))
                    session.commit()
        for record, tenant in zip(records.find("t.done"), tenants, strict=True):
            assert {one.table for one in record.changes} == {f"{tenant}.items"}
            rows = [one for one in record.changes if one.kind == "entity"]
            assert [one.reference for one in rows] == [f"{tenant}.item:1"] * 2
            assert all("item:1" in one.related for one in rows)

    def test_a_schema_for_one_statement(self, base: Any) -> None:
        """Rows that a statement is told by are where the statement itself writes."""
        item = a_class(base, "Item", "items")
        engine = memory()
        with engine.begin() as connection:
            connection.execute(text("attach ':memory:' as tenant_a"))
            connection.execute(text("create table tenant_a.items (id text primary key, name text)"))
            connection.execute(text("insert into tenant_a.items values ('1', 'x')"))
        with (
            recorded(config=config(orm_before_images=("items",))) as records,
            otel_audit.audit("t.done"),
            Session(engine) as session,
        ):
            options = {"schema_translate_map": {None: "tenant_a"}}
            session.execute(update(item).values(name="y"), execution_options=options)
            session.commit()
        bulk, row = records.one("t.done").changes
        assert bulk.table == row.table == "tenant_a.items"
        assert row.reference == "tenant_a.item:1"

    def test_tables_of_one_name(self, base: Any) -> None:
        """What two tables are called stands for the rows of neither."""
        engine = memory()
        for schema in ("one", "two"):
            with engine.begin() as connection:
                connection.execute(text(f"attach ':memory:' as {schema}"))
        first = a_class(base, "FirstThing", "same", __table_args__={"schema": "one"})
        second = a_class(base, "SecondThing", "same", __table_args__={"schema": "two"})
        changes = written(first(id="1"), second(id="1"), engine=engine)
        told = [reference for one in changes for reference in (one.reference, *one.related)]
        assert len(set(told)) == len(told)

    def test_shards(self, base: Any, tmp_path: Path) -> None:
        """Rows of one class in two databases are two rows, once both were seen."""
        item = a_class(base, "Item", "items")
        other = a_class(base, "Other", "others")
        first, second = (create_engine(f"sqlite:///{tmp_path}/{name}.db") for name in ("eu", "us"))
        for engine in (first, second):
            base.metadata.create_all(engine)
        with recorded(config=config()) as records:
            for number, engine in enumerate((first, second, first)):
                with otel_audit.audit("t.done"), Session(engine) as session:
                    session.add(item(id=str(number // 2)))
                    session.commit()
            with otel_audit.audit("o.done"), Session(second) as session:
                session.add(other(id="1"))
                session.commit()
        found = [record.changes[0].reference for record in records.find("t.done")]
        assert found == ["item:0", "us\\.db.item:0", "eu\\.db.item:1"]
        assert records.one("o.done").changes[0].reference == "other:1"

    def test_an_engine_may_say_what_its_database_is_called(self, base: Any) -> None:
        """Then it is called so from the first row on."""
        engine = memory().execution_options(otel_audit_database="eu")
        (change,) = written(a_class(base, "Item", "items")(id="1"), engine=engine)
        assert (change.reference, change.related) == ("eu.item:1", ("item:1",))

    def test_a_sharded_session_says_what_its_databases_are_called(self, base: Any) -> None:
        """From the first row on, as it knows all of them."""
        item = a_class(base, "Item", "items")
        shards = {"eu": memory(), "us": memory()}
        for engine in shards.values():
            base.metadata.create_all(engine)
        with (
            recorded(config=config()) as records,
            otel_audit.audit("t.done"),
            ShardedSession(
                shards=shards,
                shard_chooser=lambda _mapper, one, _clause=None: one.name,
                identity_chooser=lambda *_args, **_more: list(shards),
                execute_chooser=lambda _context: list(shards),
            ) as session,
        ):
            session.add_all([item(id="1", name="eu"), item(id="1", name="us")])
            session.commit()
        found = {one.reference for one in records.one("t.done").changes}
        assert found == {"eu.item:1", "us.item:1"}

    def test_databases_in_memory_are_as_many_as_there_are_pools(self, base: Any) -> None:
        """They have no names of their own."""
        item = a_class(base, "Item", "items")
        engines = (memory(), memory())
        with recorded(config=config()) as records:
            for engine in engines:
                base.metadata.create_all(engine)
                with otel_audit.audit("t.done"), Session(engine) as session:
                    session.add(item(id="1"))
                    session.commit()
        found = {record.changes[0].reference for record in records.find("t.done")}
        assert len(found) == 2


class TestKeys:
    @pytest.mark.parametrize(("keys", "references"), [
        ([("a,b", "c"), ("a", "b,c")], ["pair:a\\,b,c", "pair:a,b\\,c"]),
        ([("a\\", "b"), ("a", "b")], ["pair:a\\\\,b", "pair:a,b"]),
    ])  # fmt: skip
    def test_no_two_composite_keys_have_one_reference(
        self, base: Any, keys: list[tuple[str, str]], references: list[str]
    ) -> None:
        """What separates their values is escaped within one; other keys stay as they were."""

        class Pair(base):
            __tablename__ = "pairs"
            one: Mapped[str] = mapped_column(primary_key=True)
            two: Mapped[str] = mapped_column(primary_key=True)

        found = written(*(Pair(one=one, two=two) for one, two in keys))
        assert [change.reference for change in found] == references

    def test_rows_of_associations_are_told_by_what_they_join(self, base: Any) -> None:
        """Also where the table has a key of its own, and further columns."""

        class Tag(base):
            __tablename__ = "tags"
            id: Mapped[int] = mapped_column(primary_key=True)

        class PostModel(base):
            __tablename__ = "posts"
            id: Mapped[int] = mapped_column(primary_key=True)
            tags: Mapped[list[Tag]] = relationship(secondary="post_tag")

        Table(
            "post_tag", base.metadata,
            Column("id", String, primary_key=True, default="x"),
            Column("post_id", ForeignKey("posts.id")),
            Column("tag_id", ForeignKey("tags.id")),
            Column("role", String, default="member"),
        )  # fmt: skip
        engine = memory()
        base.metadata.create_all(engine)
        with (
            recorded(config=config()) as records,
            otel_audit.audit("t.done"),
            Session(engine) as session,
        ):
            post = PostModel(id=1, tags=[Tag(id=2)])
            session.add(post)
            session.commit()
            post.tags.clear()
            session.commit()
        added, removed = (one for one in records.one("t.done").changes if one.kind == "relation")
        assert added.reference == removed.reference == "post_tag:1,2"
        assert added.related == removed.related == ("post:1", "tag:2")
        assert added.values["role"] == [None, "member"]


async def answered(app: FastAPI, path: str, body: Any = None, **settings: Any) -> AuditRecord:
    with recorded(app, config=config(**settings)) as records:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            await client.post(path, json=body)
    (record,) = records
    return record


class TestTargets:
    @pytest.mark.parametrize(("name", "table", "path", "entities"), [
        ("UserModel", "users", "/users", ("user:7",)),
        ("MealPlan", "group_meal_plans", "/mealplans", ("mealplan:7", "meal_plan:7")),
        ("ShoppingListItem", "shopping_list_items", "/shopping/items", ("item:7", "shopping_list_item:7")),
        ("CustomerOrder", "orders", "/orders", ("order:7", "customer_order:7")),
        ("Invoice", "invoices", "/orders", ("invoice:7",)),
    ])  # fmt: skip
    async def test_the_target_of_a_creation_is_the_created_row(
        self, base: Any, name: str, table: str, path: str, entities: tuple[str, ...]
    ) -> None:
        """Whatever class it is of, if that is what the route speaks of; then their histories join."""
        kind, engine, app = a_class(base, name, table), memory(), FastAPI()
        base.metadata.create_all(engine)

        @app.post(path)
        def create() -> None:
            with Session(engine) as session:
                session.add(kind(id="7"))
                session.commit()

        assert (await answered(app, path)).entities == entities

    async def test_a_name_of_the_settings_is_used_for_routes_too(self, base: Any) -> None:
        """One map for both, or they would not join."""
        kind, engine, app = (
            a_class(base, "ShoppingListItem", "shopping_list_items"),
            memory(),
            FastAPI(),
        )
        base.metadata.create_all(engine)

        @app.post("/shopping/items")
        def create() -> None:
            with Session(engine) as session:
                session.add(kind(id="7"))
                session.commit()

        record = await answered(app, "/shopping/items", entity_names={"item": "shopping_list_item"})
        assert (record.event_name, record.entities) == ("shopping_list_item.created", ("shopping_list_item:7",))  # fmt: skip

    async def test_a_reset_password_is_that_of_the_changed_user(self, base: Any) -> None:
        """The request holds only a one-time token."""
        kind, engine, app = a_class(base, "User", "users"), memory(), FastAPI()
        base.metadata.create_all(engine)
        with Session(engine) as session:
            session.add(kind(id="7"))
            session.commit()

        @app.post("/reset-password")
        def reset() -> None:
            with Session(engine) as session:
                session.get_one(kind, "7").name = "new"
                session.commit()

        record = await answered(app, "/reset-password", {"token": "x", "new_password": "y"})
        assert record.target is not None
        assert (record.event_name, record.target.id) == ("user.password_reset", "7")

    async def test_a_mapped_object_given_as_target_has_its_rows_name(self, base: Any) -> None:
        """Whoever names it by hand names the same thing."""
        kind = a_class(base, "UserModel", "users")
        engine = memory()
        base.metadata.create_all(engine)
        with recorded(config=config()) as records, Session(engine) as session:
            session.add(kind(id="7"))
            session.commit()
            with otel_audit.audit("user.seen", target=session.get_one(kind, "7")):
                pass
        assert records.one("user.seen").entities == ("user:7",)
