from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from strategies import a_record, records

from otel_audit.record import AuditRecord, Change, Target, entity_reference


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


class TestEntities:
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
