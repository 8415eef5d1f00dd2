"""The parameters of the statement for small batches."""

from __future__ import annotations

import json

import msgspec
import pytest
from otel_audit_postgres.batch_insert import parameters
from otel_audit_postgres.rows import COLUMNS, to_row
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.record import Actor, Source


def a_row(**fields):
    return to_row(a_record(record_id=uuid7(), **fields), to_copy=False)


class TestParameters:
    def test_each_row_is_an_object_and_a_payload(self):
        """In the order of the rows; what is unknown is left out."""
        rows = [a_row(event_name=f"order.{number}") for number in range(3)]
        columns, payloads = parameters(rows)
        told = json.loads(columns)
        assert [one["event_name"] for one in told] == ["order.0", "order.1", "order.2"]
        assert [one["id"] for one in told] == [row.row_id.hex() for row in rows]
        assert all(set(one) <= {name for name, _ in COLUMNS} - {"payload"} for one in told)
        assert None not in [value for one in told for value in one.values()]
        assert payloads == [row.payload.decode() for row in rows]

    def test_a_payload_that_is_no_json_changes_no_column(self):
        """It is the server's to refuse, and no other row's matter."""
        forged = msgspec.Raw(b'1}},{"event_name":"forged","id":"' + b"0" * 32 + b'"')
        columns, payloads = parameters([a_row(metadata={"x": forged}), a_row()])
        assert len(json.loads(columns)) == len(payloads) == 2
        assert b"forged" not in columns

    def test_a_time_beyond_all_bounds_is_no_number_that_json_has_not(self):
        """An infinite duration is a text, which the server reads as that."""
        columns, _ = parameters([a_row(duration=2**2000), a_row(duration=-(2**2000))])
        assert [one["duration_ms"] for one in json.loads(columns)] == ["inf", "-inf"]

    @pytest.mark.parametrize(
        "wrong", [{"span_id": 5}, {"action_id": ["x"]}, {"source": Source(address=b"x")}], ids=str
    )
    def test_a_text_of_another_type_is_refused(self, wrong):
        """As the server would make a text of it."""
        with pytest.raises(TypeError):
            parameters([a_row(), a_row(**wrong)])

    def test_a_kind_of_text_is_its_text(self):
        """Such as SQLAlchemy's names."""

        class Name(str):
            __slots__ = ()

        columns, _ = parameters([a_row(actor=Actor(id=Name("ann"), type="user"))])
        assert json.loads(columns)[0]["actor_id"] == "ann"
