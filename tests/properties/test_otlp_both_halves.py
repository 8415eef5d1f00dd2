"""What our exporter sends the sink stores: their bounds agree, whatever a record holds."""

from __future__ import annotations

import gzip
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from otel_audit_otlp.encoding import carry, parts_of, to_request
from strategies import a_record, records, texts, values

from otel_audit.action.record_limit import OTLP_LIMIT, fit
from otel_audit.attributes import to_attributes
from otel_audit.config import AuditConfig
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
from otel_audit.redaction import Redactor
from otel_audit.redaction.placeholders import WITHHELD_FOR_WORK
from otel_audit.server import decode_protobuf
from otel_audit.server.backpressure import FREE_SIZE
from otel_audit.server.convert import Converter, NotConvertible
from otel_audit.server.credentials import NOBODY
from otel_audit.server.items import Batch
from otel_audit.server.request_budget import RequestBudget

SETTINGS = AuditConfig()
LONG = "Lorem ipsum dolor sit amet, consetetur sadipscing elitr, sed diam nonumy. "


SORTS_OF_TEXTS = [
    "0", "1234567890", "1 2 3 4 ", "1234 5678 9012 3456 ", "1234-5678-", "4111;1111;", "12.5, ",
    "0.0 ", "3.14159265,", "192.168.10.1 ", "1.2.3-4 ", "2026-11-29T13:26:56Z ", "12:34:56 ",
    "+49 170 1234567, ", "0198c0de-0000-7000-8000-00000000abcd ", "00:1a:2b:3c:4d:5e ",
    "1764422816000,", "0.1234567890123456 ", "123-45-6789 ", "DE12 Berlin, ", "deadbeef01", "0xdeadbeef ",
    "Zm9vYmFyYmF6cXV4", "eyJ", ".", ",", ";", "@", "a@b.c ", "=", "a=b ", "a=b&", "a: b\n", "%",
    "%41", "a%41 ", "a%2520b ", "\\u0041", "\\", '"', "'", "'a' ", " ", "\t", "\n", "-", "--a ",
    "<", "<a>b</a>", '<a name="b">', "{", "[", "[1, 2], ", "é", "日", "\u200b", "５", "x", "/a",
    "a,b,c\n", "https://a.example/b?c=d ", "postgres://u:p@h/d ", "token=[REDACTED] ",
    "password=hunter2 ", "Bearer abcdefgh ", "Key (a)=(b) already exists. ", "code is 12345 ",
    "00000000\x80",
]  # fmt: skip


def sent(found: Sequence[AuditRecord]) -> list[AuditRecord]:
    """Send records as the exporter does, and read them as the sink does; all must be stored."""
    reader = Converter(Redactor(), b"k" * 32, SETTINGS.serve_max_record_bytes)
    carried, refused = carry(found)
    assert refused == []
    stored: list[AuditRecord] = []
    for part in parts_of(carried):
        message = to_request(part)
        body = gzip.compress(message, 3)
        assert len(body) <= SETTINGS.serve_max_body_bytes
        assert len(message) <= FREE_SIZE
        allowance = RequestBudget(len(body), len(message))
        for batch in decode_protobuf.spans(message, allowance):
            whole = Batch(batch.items, batch.ignored, batch.undecodable)
            for decode in batch.large:
                decode(whole)
            assert (whole.undecodable, whole.ignored) == ([], 0)
            for item in whole.items:
                read = reader.read(item, NOBODY, allowance)
                assert not isinstance(read, NotConvertible), read.reason
                stored.append(read)
    return stored


def row(number: int, **columns: object) -> Change:
    return Change(
        operation="insert", entity="Article", table="articles", key={"id": number},
        values={name: [None, value] for name, value in columns.items()},
    )  # fmt: skip


def rows_of(found: Sequence[AuditRecord]) -> list[object]:
    return [change.key.get("id") for record in found for change in record.changes]


class TestImports:
    """Many rows in one request, which is a record of a megabyte and more."""

    @pytest.mark.parametrize(
        "columns",
        [
            {"text": LONG * 16},
            {"text": "x" * 1_200},
            {"text": "é" * 600},
            {"text": '"\\\n' * 300},
            {"token": "[REDACTED]", "email": "ada@example.com", "text": LONG * 14},
            {f"column_{number}": number for number in range(60)},
            {"url": "https://shop.example/items/%41?q=token%3D[REDACTED]", "text": LONG * 14},
        ],
        ids=["prose", "the same letter", "beyond ASCII", "escapes", "redacted", "numbers", "URLs"],
    )
    def test_every_row_is_stored_as_it_was(self, columns):
        """Nine hundred rows: none is set aside, none loses a value to a budget of the sink."""
        record = a_record(
            changes=tuple(row(number, **columns) for number in range(900)),
            actor=Actor(id="importer", type="service"),
            producer_id="0198c0de-0000-7000-8000-00000000abcd", sequence_number=1,
            resource={"service.name": "shop"},
        )  # fmt: skip

        stored = sent(fit(record, OTLP_LIMIT))

        assert rows_of(stored) == list(range(900))
        assert {to_json(change.values) for one in stored for change in one.changes} == {
            to_json({name: [None, value] for name, value in columns.items()})
        }
        assert WITHHELD_FOR_WORK.encode() not in b"".join(map(to_json, stored))
        assert not any(TRUNCATED in one.metadata for one in stored)

    @pytest.mark.parametrize("text", SORTS_OF_TEXTS)
    def test_no_sort_of_text_costs_a_small_record_its_rows(self, text):
        """Twenty-five cells of a kilobyte of the same: not one of them is withheld."""
        cell = (text * 1_053)[:1_053]
        record = a_record(changes=tuple(row(number, cell=cell) for number in range(25)))

        (stored,) = sent([record])

        assert rows_of([stored]) == list(range(25))
        assert WITHHELD_FOR_WORK.encode() not in to_json(stored)
        assert TRUNCATED not in stored.metadata

    def test_a_record_that_nobody_has_split(self):
        """Another program's span, or a row of an outbox: the exporter splits it itself."""
        record = a_record(changes=tuple(row(number, text=LONG * 16) for number in range(3_000)))

        once, again = sent([record]), sent([record])

        assert rows_of(once) == list(range(3_000))
        assert [one.record_id for one in once] == [one.record_id for one in again]
        assert once[0].record_id == record.record_id
        assert len({one.record_id for one in once}) == len(once) > 3

    @pytest.mark.parametrize(
        "fields",
        [
            {"metadata": {"a": "x" * 3_000_000}},
            {"actor": Actor(id="x" * 2_000_000, type="user", roles=("r" * 1_000,) * 3_000)},
            {"request": Request(headers={f"x-{number}": "v" * 900 for number in range(3_000)})},
            {"request": Request(path="/a" * 1_000_000, query="q=" + "1" * 1_000_000)},
            {"response": Response(body=Body(content=msgspec.Raw(to_json(LONG * 40_000)), size=1))},
            {"resource": {f"r.{number}": LONG * 10 for number in range(2_000)}},
        ],
        ids=["metadata", "actor", "headers", "path", "body", "resource"],
    )
    def test_anything_else_that_is_large_costs_no_record(self, fields):
        (stored,) = sent([a_record(**fields)])
        assert stored.event_name == "order.created"


large_texts = st.builds(lambda text, times: text * times, texts, st.integers(1, 2_000))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@example(
    found=[a_record(action="CREATE", actor=Actor(id="0", type="user"), metadata={})],
    number=25, cell="0" * 1_053, other="",
)  # fmt: skip
@example(found=[a_record(metadata={})], number=100, cell="192.168.10.1 " * 900, other="0.0 " * 900)
@example(found=[a_record(metadata={})], number=72, cell="00000000\x80" * 1_056, other="0")
@example(found=[a_record(metadata={})], number=72, cell="?/?;" * 1_056, other="0")
@given(
    found=st.lists(records(), min_size=1, max_size=4),
    number=st.integers(0, 100),
    cell=values | large_texts,
    other=large_texts,
)
def test_whatever_the_exporter_sends_the_sink_stores(found, number, cell, other):
    """Records of every shape with changes and metadata of any size, in one batch.

    Rows are there in full, or the record says that they are not: a text may be made to cost more
    than its request may.
    """
    large = msgspec.structs.replace(
        found[0],
        changes=tuple(row(count, cell=cell) for count in range(number)),
        metadata={**found[0].metadata, "other": other},
    )

    stored = sent([*fit(large, OTLP_LIMIT), *found[1:]])

    ids = [record.record_id for record in stored]
    assert {record.record_id for record in found} <= set(ids)
    parts = stored[: len(stored) - len(found) + 1]
    rows = [(part, change) for part in parts for change in part.changes]
    assert len(rows) == number
    for count, (part, change) in enumerate(rows):
        if change.table == WITHHELD_FOR_WORK:
            assert "changes" in part.metadata[TRUNCATED]
        else:
            assert change.key == {"id": count}
    for record, came in zip(found[1:], stored[-len(found) + 1 :], strict=False):
        told = dict(to_attributes(record))
        assert came.occurred_at == record.occurred_at
        assert came.producer_id == told["audit.producer.id"]
