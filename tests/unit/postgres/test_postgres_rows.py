"""Records as rows: the payload is the truth, the columns are what it says."""

from __future__ import annotations

import enum
import hashlib
import uuid
from datetime import UTC, datetime
from http import HTTPStatus

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from otel_audit_postgres.rows import (
    COLUMNS,
    LONGEST_KEY,
    UnstorableRecordError,
    bounded_key,
    projections,
    record_from_payload,
    to_row,
)
from strategies import a_record, records

from otel_audit._util.ids import uuid7
from otel_audit.record import Actor, Body, Change, Request, Response, Target, Tenant


class Kind(str, enum.Enum):  # noqa: UP042 - str() of it is its name, as of many in use
    """A kind of text that names itself otherwise than it reads."""

    RED = "red"


any_text = st.text(st.characters(exclude_categories=[]), max_size=30)


def columns_of(row):
    return dict(zip((name for name, _ in COLUMNS), row.values, strict=True))


class TestToRow:
    @settings(max_examples=25)
    @given(records())
    def test_gives_back_the_record(self, record):
        """What is stored as payload is the record, whole."""
        assert record_from_payload(to_row(record).payload) == record

    @settings(max_examples=25)
    @given(records())
    def test_hash_covers_the_payload(self, record):
        """The content hash is the SHA-256 of the text that is stored."""
        row = to_row(record)
        assert row.content_hash == hashlib.sha256(row.payload).digest()
        assert columns_of(row)["content_hash"] == row.content_hash

    @settings(max_examples=25)
    @given(records())
    def test_columns_follow_from_the_payload(self, record):
        """Who has only the payload comes to the same columns."""
        row = to_row(record)
        assert projections(row.payload) == columns_of(row)
        assert projections(row.payload.decode()) == columns_of(row)

    def test_names_every_projection(self):
        """Each column tells the field it is named after."""
        record = a_record(
            tenant=Tenant(id="acme"),
            target=Target(type="Order", id="7"),
            request=Request(id="r-1", method="POST", route="/orders", path="/orders"),
            response=Response(status_code=201),
            changes=(Change(operation="insert", entity="OrderLine", table="l", key={"id": 3}),),
            trace_id="0af7651916cd43dd8448eb211c80319c",
            span_id="b7ad6b7169203331",
            sequence_number=9,
            resource={"service.name": "shop"},
        )
        columns = columns_of(to_row(record))
        assert columns["id"] == uuid.UUID(record.record_id)
        assert columns["tenant_id"] == "acme"
        assert columns["occurred_at"] == datetime(2026, 9, 21, 14, 13, 20, 123456, tzinfo=UTC)
        assert columns["duration_ms"] == pytest.approx(12.345678)
        assert (columns["target_type"], columns["target_id"]) == ("Order", "7")
        assert (columns["http_method"], columns["http_route"]) == ("POST", "/orders")
        assert (columns["status_code"], columns["request_id"]) == (201, "r-1")
        assert columns["entities"] == ["order:7", "order_line:3"]
        assert (columns["service_name"], columns["sequence_number"]) == ("shop", 9)
        assert columns["transaction_outcome"] == "committed"

    def test_tells_no_tenant_by_an_empty_text(self):
        """The tenant is part of the key, so it is never NULL."""
        assert columns_of(to_row(a_record()))["tenant_id"] == ""

    @given(any_text, any_text, any_text)
    def test_takes_any_text(self, actor, header, value):
        """NUL and lone surrogates become U+FFFD, in the payload and in the columns alike."""
        record = a_record(
            actor=Actor(id=actor, type="user"),
            request=Request(headers={"x": header}),
            metadata={value: value},
        )
        row = to_row(record)
        text = row.payload.decode()
        assert "\\u0000" not in text.replace("\\\\", "")
        stored = record_from_payload(row.payload)
        assert stored.actor.id == mended(actor)
        assert stored.request.headers == {"x": mended(header)}
        assert stored.metadata == {mended(value): mended(value)}
        assert columns_of(row)["actor_id"] == mended(actor)

    def test_mends_a_body_and_its_digest(self):
        """A body whose text had to be changed has the digest of the text as it is stored."""
        content = b'{"a":"\\u0000","b":"\\\\u0000","c":"\\ud83d\\ude00","d":"\\ud83d"}'
        body = Body(content=msgspec.Raw(content), sha256=hashlib.sha256(content).hexdigest())
        stored = record_from_payload(to_row(a_record(request=Request(body=body))).payload)
        mended_content = b'{"a":"\\ufffd","b":"\\\\u0000","c":"\\ud83d\\ude00","d":"\\ufffd"}'
        assert bytes(stored.request.body.content) == mended_content
        assert stored.request.body.sha256 == hashlib.sha256(mended_content).hexdigest()

    def test_leaves_a_body_without_need_alone(self):
        """Surrogate pairs and escaped backslashes are no reason to touch a digest."""
        content = b'{"b":"\\\\u0000","c":"\\ud83d\\ude00"}'
        body = Body(content=msgspec.Raw(content), sha256="as it came")
        record = a_record(request=Request(body=body))
        assert record_from_payload(to_row(record).payload) == record

    @pytest.mark.parametrize("number", [2**31, 2**63, 2**64, -(2**63) - 1, 10**400])
    def test_leaves_out_numbers_that_do_not_fit(self, number):
        """The payload has the number, the column has none."""
        record = a_record(sequence_number=number, response=Response(status_code=number))
        row = to_row(record)
        assert record_from_payload(row.payload).response.status_code == number
        assert columns_of(row)["status_code"] is None
        assert columns_of(row)["sequence_number"] == (
            number if number < 2**63 and number > 0 else None
        )

    @pytest.mark.parametrize("moment", [-(10**30), -1, 0, 10**19, 10**30])
    def test_clamps_absurd_times(self, moment):
        """A clock gone mad does not lose the record."""
        columns = columns_of(to_row(a_record(occurred_at=moment, duration=moment)))
        assert datetime.min.replace(tzinfo=UTC) <= columns["occurred_at"]
        assert columns["occurred_at"] <= datetime.max.replace(tzinfo=UTC)
        assert isinstance(columns["duration_ms"], float)

    def test_takes_an_endless_duration(self):
        """A duration beyond any float is infinite."""
        assert columns_of(to_row(a_record(duration=10**400)))["duration_ms"] == float("inf")

    def test_names_the_type_of_what_has_no_json(self):
        """A value that cannot be written down is named, and the rest is kept."""
        record = a_record(metadata={"file": object(), 3: {1, 2}, (1, 2): "pair"})
        stored = record_from_payload(to_row(record).payload)
        assert stored.metadata["file"] == "<object>"
        assert sorted(stored.metadata["3"]) == [1, 2]
        assert "pair" in stored.metadata.values()

    def test_cuts_endless_nesting(self):
        """A structure that contains itself is kept as far as anybody would read."""
        endless: list = []
        endless.append(endless)
        payload = to_row(a_record(metadata={"endless": endless})).payload
        assert b"nested too deeply" in payload

    @pytest.mark.parametrize("record_id", ["", "x", "not-a-uuid", "\x00", "\ud800"])
    def test_refuses_an_id_that_is_none(self, record_id):
        """A record without a usable id is refused, with all that is known of it."""
        with pytest.raises(UnstorableRecordError, match="not a UUID") as refused:
            to_row(a_record(record_id=record_id, action_id="a"))
        assert b"order.created" in refused.value.received

    def test_refuses_a_field_of_a_wrong_type(self):
        """The reason names the kind of error, never the value."""
        with pytest.raises(UnstorableRecordError) as refused:
            to_row(a_record(actor=Actor(id=4711, type="user")))
        assert "4711" not in refused.value.reason
        assert b"4711" in refused.value.received

    @pytest.mark.parametrize(
        "wrong",
        [
            {"action_id": 5},
            {"phase": True},
            {"event_name": None},
            {"action": b"CREATE"},
            {"outcome": ["success"]},
            {"span_id": 1.5},
            {"transaction": {}},
            {"producer_id": 0},
            {"occurred_at": 1.5},
            {"occurred_at": True},
            {"duration": "1"},
            {"sequence_number": 7.0},
            {"sequence_number": False},
            {"response": Response(status_code="201")},
            {"response": Response(status_code=True)},
            {"tenant": Tenant(id=None)},
            {"target": Target(type="order", id=7)},
            {"request": Request(method=5)},
            {"changes": None},
            {"resource": None},
        ],
        ids=str,
    )
    def test_refuses_a_wrong_type_in_any_column(self, wrong):
        """Before anything is sent, so that no other record waits for it."""
        with pytest.raises(UnstorableRecordError, match="wrong type|read back"):
            to_row(a_record(**wrong))

    def test_takes_a_kind_of_integer_for_the_integer_that_it_is(self):
        """The standard library's names of statuses are integers."""
        columns = columns_of(to_row(a_record(response=Response(status_code=HTTPStatus.CREATED))))
        assert columns["status_code"] == 201

    @pytest.mark.parametrize("spelled", ["{%s}", "urn:uuid:%s", "%s"])
    def test_takes_an_id_in_any_spelling_of_a_uuid(self, spelled):
        """As `uuid.UUID` does; braces, a prefix, capitals, no hyphens."""
        for usual in (uuid7(), uuid7().upper(), uuid7().replace("-", "")):
            row = to_row(a_record(record_id=spelled % usual))
            assert row.id == columns_of(row)["id"] == uuid.UUID(usual)

    @given(any_text | st.text("0123456789abcdefABCDEF-{}_ ", min_size=30, max_size=40))
    def test_takes_no_other_text_for_an_id(self, text):
        """What `uuid.UUID` refuses is refused, and what it takes is taken for the same."""
        try:
            expected = uuid.UUID(mended(text))
        except ValueError:
            with pytest.raises(UnstorableRecordError):
                to_row(a_record(record_id=text, action_id="a"))
        else:
            assert to_row(a_record(record_id=text, action_id="a")).id == expected

    @pytest.mark.parametrize("moment", [-(10**30), 10**30])
    def test_makes_no_time_infinite(self, moment):
        """asyncpg sends the first and the last moment of its years as infinities."""
        occurred_at = columns_of(to_row(a_record(occurred_at=moment)))["occurred_at"]
        assert occurred_at not in (
            datetime.min.replace(tzinfo=UTC),
            datetime.max.replace(tzinfo=UTC),
        )

    @pytest.mark.parametrize(
        ("key", "named"),
        [
            (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
            (b"x", "eA=="),
            (Kind.RED, "red"),
        ],
    )
    def test_names_an_entity_as_the_payload_does(self, key, named):
        """Also where a key's value reads otherwise once it is written down."""
        change = Change(operation="insert", entity="Order", table="orders", key={"id": key})
        row = to_row(a_record(target=Target(type="order", id=Kind.RED), changes=(change,)))
        assert columns_of(row)["entities"] == list(dict.fromkeys(["order:red", f"order:{named}"]))
        assert projections(row.payload) == columns_of(row)


class TestKeyText:
    @given(any_text)
    def test_keeps_what_is_short(self, text):
        """A text of ordinary length stays as it is."""
        assert bounded_key(text) == text

    @given(st.text(min_size=LONGEST_KEY + 1), st.text(min_size=LONGEST_KEY + 1))
    def test_tells_long_ones_apart(self, one, other):
        """Long texts are bounded, and different ones stay different."""
        assert len(bounded_key(one)) == LONGEST_KEY
        assert (bounded_key(one) == bounded_key(other)) == (one == other)

    def test_tells_long_ones_with_one_beginning_apart(self):
        """Two tenants whose names begin alike are not one tenant."""
        assert bounded_key("a" * 1000 + "1") != bounded_key("a" * 1000 + "2")


def mended(text):
    return "".join("�" if c == "\x00" or "\ud800" <= c <= "\udfff" else c for c in text)
