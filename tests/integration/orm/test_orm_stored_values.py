from __future__ import annotations

import datetime as dt

import pytest
from orm_harness import capturing
from orm_models import Colour, Customer, Measurement, Money, OwnRow, Shape, Unwatched
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.orm import attributes

from otel_audit.orm import OrmOptions


async def written(store, thing):
    (change,) = await store.changes(lambda s: s.add(thing))
    return {name: pair[1] for name, pair in change.values.items()}


class TestTypes:
    async def test_types_of_any_database(self, capture, store):
        """Enum, bytes, dates, and the application's own types have a stable JSON form."""
        values = await written(
            store,
            Shape(
                x=1,
                y=2,
                colour=Colour.RED,
                picture=b"\x00" * 64,
                price=Money(5, "EUR"),
                document={"a": [1, {"b": None}]},
                made=dt.datetime(2024, 1, 2, 3, 4, 5, 6),
                day=dt.date(2024, 1, 2),
            ),
        )
        assert values["colour"] == "RED"
        assert values["picture"]["_size"] == 64
        assert len(values["picture"]["_sha256"]) == 64
        assert values["price"] == "5 EUR"
        assert values["document"] == {"a": [1, {"b": None}]}
        assert values["made"] == "2024-01-02T03:04:05.000006"
        assert values["day"] == "2024-01-02"

    async def test_types_of_postgres(self, capture, pg):
        """Zoned times, intervals, addresses, ranges, arrays and documents as well."""
        zone = dt.timezone(dt.timedelta(hours=2))
        values = await written(
            pg,
            Measurement(
                zoned=dt.datetime(2024, 1, 2, 3, tzinfo=zone),
                span=dt.timedelta(days=1, hours=2),
                address="10.0.0.1",
                window=Range(1, 10),
                numbers=[1, 2],
                payload={"b": 1, "a": [True]},
            ),
        )
        assert values == {
            "id": 1,
            "zoned": "2024-01-02T03:00:00+02:00",
            "span": "P1DT2H",
            "address": "10.0.0.1",
            "window": "[1,10)",
            "numbers": [1, 2],
            "payload": {"b": 1, "a": [True]},
        }

    async def test_loaded_values_have_the_same_form(self, capture, pg):
        """What the driver returns for these types reads as what was written."""

        def work(session):
            session.add(
                Measurement(id=1, address="10.0.0.1", window=Range(1, 10), span=dt.timedelta(1))
            )
            session.commit()
            session.expunge_all()
            found = session.get(Measurement, 1)
            found.address, found.window, found.span = "10.0.0.2", Range(2, 3), dt.timedelta(2)

        change = (await pg.changes(work))[1]
        assert change.values["address"] == ["10.0.0.1", "10.0.0.2"]
        assert change.values["window"] == ["[1,10)", "[2,3)"]
        assert change.values["span"] == ["P1D", "P2D"]


class TestRedaction:
    async def test_names_and_marks(self, capture, store):
        """A value is hidden by its column's name, its attribute's, its mark, or its type."""
        values = await written(
            store,
            Customer(
                full_name="Ada",
                password="x",
                api_login="y",
                ssn="123",
                card="4242",
                scratch="s",
                vault="v",
            ),
        )
        assert values == {
            "id": 1,
            "name": "Ada",
            "password": "***",
            "secret_token": "***",
            "ssn": "[REDACTED]",
            "card": "hash:4",
            "vault": "[REDACTED]",
        }

    async def test_update_and_delete(self, capture, store):
        """Both values of an update and the values of a delete are hidden alike."""

        def work(session):
            customer = Customer(full_name="Ada", password="x", ssn="1")
            session.add(customer)
            session.flush()
            customer.password, customer.ssn, customer.scratch = "y", "2", "s"
            session.flush()
            session.delete(customer)

        _, updated, deleted = await store.changes(work)
        assert updated.values == {"password": ["***", "***"], "ssn": ["[REDACTED]", "[REDACTED]"]}
        assert deleted.values["password"] == ["***", None]

    async def test_long_values(self, store):
        """A long value is cut, with its size and the hash of what would have been recorded."""
        with capturing(OrmOptions(max_value=100)):
            values = await written(store, Customer(full_name="a" * 80, note="n" * 101))
        assert values["name"] == "a" * 80
        assert values["note"]["_original_size"] == 101
        assert set(values["note"]) == {"_truncated", "_original_size", "_head", "_sha256"}


class TestDocuments:
    async def test_assigned_document(self, capture, store):
        """A JSON column that was assigned has a minimal patch beside its values."""
        pytest.importorskip("jsonpatch")

        def work(session):
            customer = Customer(full_name="a", settings={"a": 1, "password": "x"})
            session.add(customer)
            session.flush()
            customer.settings = {"a": 2, "password": "x"}

        change = (await store.changes(work))[1]
        assert change.values == {"settings": [{"a": 1, "password": "x"}, {"a": 2, "password": "x"}]}
        assert change.patches == {"settings": [{"op": "replace", "path": "/a", "value": 2}]}

    async def test_edited_mutable(self, capture, store):
        """A `MutableDict` that was edited in place: what it was before is unknown."""

        def work(session):
            shape = Shape(x=1, y=2, document={"a": 1})
            session.add(shape)
            session.flush()
            shape.document["a"] = 2

        change = (await store.changes(work))[1]
        assert change.values == {"document": [None, {"a": 2}]}
        assert change.unknown_before == ("document",)

    async def test_edited_mutable_fetched(self, store):
        """With `fetch_unknown` it is read before it is overwritten."""

        def work(session):
            shape = Shape(x=1, y=2, document={"a": 1})
            session.add(shape)
            session.flush()
            shape.document["a"] = 2

        with capturing(OrmOptions(fetch_unknown=True)):
            change = (await store.changes(work))[1]
        assert change.values == {"document": [{"a": 1}, {"a": 2}]}

    async def test_unnoticed_edit(self, capture, store):
        """An edit that SQLAlchemy does not notice is not written, and not reported."""

        def work(session):
            customer = Customer(full_name="a", settings={"a": 1})
            session.add(customer)
            session.flush()
            customer.settings["a"] = 2
            customer.full_name = "b"

        assert (await store.changes(work))[1].values == {"name": ["a", "b"]}

    async def test_flagged_edit(self, capture, store):
        """An edit that was flagged by hand: what it was before is unknown."""

        def work(session):
            customer = Customer(full_name="a", settings={"a": 1})
            session.add(customer)
            session.flush()
            customer.settings["a"] = 2
            attributes.flag_modified(customer, "settings")

        change = (await store.changes(work))[1]
        assert change.values == {"settings": [None, {"a": 2}]}
        assert change.unknown_before == ("settings",)


class TestSelection:
    async def test_unwatched_model(self, capture, store):
        """A model that says `__audit__ = False` is left out."""
        assert await store.changes(lambda s: s.add(Unwatched(id=1))) == []

    async def test_own_tables(self, capture, pg):
        """This plugin's own tables are left out."""
        assert await pg.changes(lambda s: s.add(OwnRow(id=1))) == []

    @pytest.mark.parametrize(
        ("options", "entities"),
        [
            ({"exclude_tables": ("shape",)}, {"Customer"}),
            ({"include_tables": ("shape",)}, {"Shape"}),
            ({"exclude_models": (Shape,)}, {"Customer"}),
            ({"include_models": ("Shape",)}, {"Shape"}),
            ({"bases": (Shape,)}, {"Shape"}),
        ],
    )
    async def test_tables_and_models(self, sqlite, options, entities):
        """Tables and models are included and excluded by name, class, or base."""
        with capturing(OrmOptions(**options)):
            changes = await sqlite.changes(
                lambda s: s.add_all([Customer(full_name="a"), Shape(x=1, y=2)])
            )
        assert {change.entity for change in changes} == entities

    async def test_excluded_columns(self, sqlite):
        """A change of nothing but excluded columns is no change."""

        def work(session):
            customer = Customer(full_name="a", note="n")
            session.add(customer)
            session.flush()
            customer.note = "m"

        with capturing(OrmOptions(exclude_columns=("customer.note",))):
            (change,) = await sqlite.changes(work)
        assert change.values == {"id": [None, 1], "name": [None, "a"]}

    async def test_included_columns(self, sqlite):
        """Only included columns are recorded; the key always is."""
        with capturing(OrmOptions(include_columns=("note",))):
            (change,) = await sqlite.changes(lambda s: s.add(Customer(full_name="a", note="n")))
        assert change.values == {"note": [None, "n"]}
        assert change.key == {"id": 1}
