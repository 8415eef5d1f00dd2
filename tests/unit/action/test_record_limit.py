"""No record is larger than its bound, and what was left out of it is named."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import a_record, records

from otel_audit.action.record_limit import OTLP_LIMIT, PIECE, RECORD_LIMIT, first_of, fit
from otel_audit.attributes import to_attributes
from otel_audit.record import (
    TRUNCATED,
    Actor,
    AuditRecord,
    Body,
    Change,
    Request,
    Response,
    to_json,
)

LIMIT = 32_768


def row(number: int, value: object) -> Change:
    return Change(
        operation="insert", entity="Item", table="items", key={"id": number},
        values={"note": [None, value]},
    )  # fmt: skip


def told(pieces: list[AuditRecord]) -> list[int]:
    return [change.key["id"] for piece in pieces for change in piece.changes]


class TestFit:
    def test_a_small_record_is_left_as_it_is(self) -> None:
        """The usual record is given back, not copied."""
        record = a_record(changes=(row(1, "tea"),))
        assert fit(record, LIMIT)[0] is record

    def test_changes_go_on_in_further_records(self) -> None:
        """None is lost, each record has the same action and total, and an id of its own."""
        record = a_record(changes=tuple(row(number, "x" * 1_000) for number in range(200)))
        pieces = fit(record, LIMIT)
        assert max(len(to_json(piece)) for piece in pieces) <= LIMIT
        assert told(pieces) == list(range(200))
        assert {piece.changes_total for piece in pieces} == {200}
        assert {piece.action_id for piece in pieces} == {record.action_id}
        assert len({piece.record_id for piece in pieces}) == len(pieces)
        assert {piece.phase for piece in pieces[1:]} == {"continued"}
        assert [piece.metadata[PIECE] for piece in pieces[1:]] == [*range(2, len(pieces) + 1)]

    def test_a_thousand_changes_of_a_megabyte_each(self) -> None:
        """A change that is too large keeps its key, and says what it lacks."""
        record = a_record(changes=tuple(row(number, "x" * 1_000_000) for number in range(100)))
        pieces = fit(record, RECORD_LIMIT)
        assert max(len(to_json(piece)) for piece in pieces) <= RECORD_LIMIT
        assert told(pieces) == list(range(100))
        assert pieces[0].changes[0].values == {"note": [None, "[WITHHELD: size]"]}
        assert "left out" in str(pieces[0].changes[0].note)

    def test_bodies_are_left_out_first(self) -> None:
        """What says least for its size goes first; it stays known that there was a body."""
        body = Body(content=msgspec.Raw(to_json("x" * 40_000)), size=40_000, sha256="00")
        record = a_record(request=Request(body=body), response=Response(body=body))
        (found,) = fit(record, LIMIT)
        assert found.response is not None
        assert found.response.body == Body(size=40_000, absent="truncated")
        assert found.metadata[TRUNCATED] == ["response.body", "request.body"]

    def test_metadata_is_left_out(self) -> None:
        """What the application has added without measure does not cost the record."""
        (found,) = fit(a_record(metadata={"a": "x" * 100_000, "audit.part": 2}), LIMIT)
        assert found.metadata == {"audit.part": 2, TRUNCATED: ["metadata"]}

    def test_anything_else_is_clipped(self) -> None:
        """Whatever makes a record large, it is recorded."""
        actor = Actor(id="x" * 1_000_000, type="user", roles=("r" * 1_000,) * 1_000)
        (found,) = fit(a_record(actor=actor), LIMIT)
        assert len(to_json(found)) <= LIMIT
        assert found.metadata[TRUNCATED] == ["record"]

    def test_one_record_says_that_changes_are_missing(self) -> None:
        """What must be one record tells that it does not tell all."""
        record = a_record(changes=tuple(row(number, "x" * 1_000) for number in range(200)))
        assert first_of(fit(record, LIMIT)).metadata[TRUNCATED] == ["changes"]

    @given(record=records(), size=st.integers(0, 20_000), times=st.integers(0, 80))
    @settings(max_examples=60, deadline=None)
    def test_is_bounded_whatever_stands_in_it(
        self, record: AuditRecord, size: int, times: int
    ) -> None:
        """No piece is larger than the bound, and no change is lost."""
        given = tuple(row(number, '"\\\x01é' * (size // 4)) for number in range(times))
        record = msgspec.structs.replace(
            record, changes=given, metadata={**record.metadata, "big": "\x01" * size}
        )
        pieces = fit(record, LIMIT)
        assert max(len(to_json(piece)) for piece in pieces) <= LIMIT
        assert told(pieces) == list(range(times))

    def test_as_attributes_it_is_below_what_the_sink_takes(self) -> None:
        """A mebibyte is what `otel-audit serve` takes; with room for how OTLP spells it."""
        many = tuple(row(number, '"\\\x01') for number in range(3_000))
        body = Body(content=msgspec.Raw(to_json('"\\' * 40_000)), size=1)
        record = a_record(changes=many, request=Request(body=body))
        for piece in fit(record, OTLP_LIMIT):
            assert sum(len(to_json([n, v])) for n, v in to_attributes(piece).items()) < 1_048_576
