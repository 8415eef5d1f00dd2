from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import a_record, records

from otel_audit.record import (
    AuditRecord,
    Change,
    Target,
    entity_reference,
    is_plain_key,
    named_reference,
)


class TestEntityReference:
    @pytest.mark.parametrize(
        ("entity", "key", "expected"),
        [
            ("Order", (123,), "order:123"),
            ("OrderLine", (1, 2), "order_line:1,2"),
            ("HTTPRequest", ("a",), "http_request:a"),
            ("order_lines", (7,), "order_lines:7"),
            ("shop.orders", (7,), "shop_orders:7"),
        ],
    )
    def test_names_are_in_snake_case(self, entity, key, expected):
        """Any style of name gives the one style that is searched for."""
        assert entity_reference(entity, *key) == expected


class TestNamedReference:
    @pytest.mark.parametrize(
        ("key", "expected"),
        [
            ((7,), "pair:7"),
            (("a,b",), "pair:a,b"),
            (("a", "b"), "pair:a,b"),
            (("a,b", "c"), "pair:a\\,b,c"),
            (("a\\", "b"), "pair:a\\\\,b"),
        ],
    )
    def test_values_of_a_key_are_told_apart(self, key, expected):
        """What separates them is escaped; a key of one value needs no escape."""
        assert named_reference("pair", *key) == expected

    @given(st.tuples(st.text("a,\\"), st.text("a,\\")), st.tuples(st.text("a,\\"), st.text("a,\\")))
    def test_no_two_keys_have_one_reference(self, one, other):
        """Whatever their values are."""
        assert (named_reference("p", *one) == named_reference("p", *other)) == (one == other)

    @given(st.lists(st.one_of(st.integers(), st.text()), min_size=2, max_size=3))
    def test_a_plain_key_is_spelled_as_it_always_was(self, key):
        """So only keys that were ambiguous have another spelling than in earlier records."""
        if is_plain_key(key):
            assert named_reference("pair", *key) == entity_reference("Pair", *key)


class TestEntities:
    def test_what_is_stored_keeps_its_references(self):
        """A record without names for its rows is told by its classes, commas and all."""
        stored = b'{"operation":"insert","entity":"PairModel","table":"t","key":{"a":"x,y","b":1}}'
        assert msgspec.json.decode(stored, type=Change).reference == "pair_model:x,y,1"
        named = msgspec.structs.replace(msgspec.json.decode(stored, type=Change), name="db.pair")
        assert named.reference == "db.pair:x\\,y,1"

    def test_target_and_changes_are_named_once(self):
        """Every entity a record is about is named, the target first, none twice."""
        changes = (
            Change(operation="update", entity="Order", table="orders", key={"id": 123}),
            Change(operation="insert", entity="OrderLine", table="lines", key={"id": 4}),
            Change(operation="update", kind="bulk", entity="orders", table="orders"),
        )
        record = a_record(target=Target(type="order", id="123"), changes=changes)
        assert record.entities == ("order:123", "order_line:4")


class TestJson:
    @given(records())
    def test_the_json_text_is_the_record(self, record):
        """A record written as JSON and read back is the same record."""
        assert msgspec.json.decode(msgspec.json.encode(record), type=AuditRecord) == record

    def test_what_is_unknown_is_left_out(self):
        """The text does not spell out what is not known."""
        assert b"null" not in msgspec.json.encode(a_record())

    def test_a_record_cannot_be_changed(self):
        """Records are immutable."""
        with pytest.raises(AttributeError):
            a_record().outcome = "failure"
