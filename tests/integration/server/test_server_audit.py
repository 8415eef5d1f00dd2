"""Audit log records over ``/v1/audit``: stored, with receipts."""

from __future__ import annotations

import hashlib
import json
import struct

import pytest
import rfc8785
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from sinks import START, attributes, pairs

from otel_audit._util.ids import uuid7


def log(actor, number=1, event="invoice.approved", body=None, **told) -> LogRecord:
    record = LogRecord(
        time_unix_nano=START + number,
        observed_time_unix_nano=START + number + 1000,
        event_name=event,
        attributes=pairs(attributes(audit__actor__id=actor, audit__flagged=None, **told)),
    )
    if body is not None:
        record.body.CopyFrom(body)
    return record


def logs_request(*records: LogRecord) -> bytes:
    return ExportLogsServiceRequest(
        resource_logs=[
            ResourceLogs(
                resource=Resource(attributes=pairs({"service.name": "billing"})),
                scope_logs=[ScopeLogs(log_records=records)],
            )
        ]
    ).SerializeToString()


def send(sink, *records: LogRecord):
    headers = {"Content-Type": "application/x-protobuf"}
    return sink.client.post("/v1/audit", content=logs_request(*records), headers=headers)


def json_log(actor, **more) -> dict:
    told = attributes(audit__actor__id=actor)
    return {
        "resourceLogs": [{"scopeLogs": [{"logRecords": [{
            "timeUnixNano": str(START), "eventName": "invoice.approved",
            "attributes": [
                {"key": key, "value": {"boolValue": value} if value is True
                 else {"stringValue": value}} for key, value in {**told, **more}.items()
            ],
            "body": {"kvlistValue": {"values": [
                {"key": "amount", "value": {"doubleValue": 12.5}},
                {"key": "card", "value": {"stringValue": "4111 1111 1111 1111"}},
            ]}},
        }]}]}]
    }  # fmt: skip


class TestAudit:
    async def test_a_record_needs_no_flag(self, shared, shared_store, actor):
        assert send(shared, log(actor)).status_code == 200

        (row,) = await shared_store.rows(actor)
        assert (row["event_name"], row["service_name"]) == ("invoice.approved", "billing")
        assert json.loads(row["payload"])["occurred_at"] == START + 1
        assert row["trace_id"] is None

    async def test_its_body_is_the_events_details_and_is_redacted(
        self, shared, shared_store, actor
    ):
        assert shared.json("/v1/audit", json_log(actor)).status_code == 200

        (row,) = await shared_store.rows(actor)
        details = json.loads(row["payload"])["metadata"]["details"]
        assert details["amount"] == 12.5
        assert "4111" not in details["card"]

    async def test_a_trace_is_linked(self, shared, shared_store, actor):
        record = log(actor, body=AnyValue(kvlist_value=KeyValueList(values=pairs({"a": 1}))))
        record.trace_id, record.span_id = b"\x01" * 16, b"\x02" * 8

        assert send(shared, record).status_code == 200
        (row,) = await shared_store.rows(actor)
        assert (row["trace_id"], row["span_id"]) == ("01" * 16, "02" * 8)


class TestReceipts:
    async def test_in_json(self, shared, shared_store, actor):
        record_id = uuid7()

        answer = shared.json("/v1/audit", json_log(actor, **{"audit.record.id": record_id}))

        (row,) = await shared_store.rows(actor)
        (receipt,) = answer.json()["auditReceipts"]
        assert receipt["recordId"] == record_id == str(row["id"])
        assert receipt["contentHash"] == row["content_hash"].hex()
        assert int(receipt["sinkTimeUnixNano"]) // 1000 == _microseconds(row["recorded_at"])

    async def test_in_protobuf_as_fields_that_others_skip(self, shared, shared_store, actor):
        answer = send(shared, log(actor, 1), log(actor, 2))

        response = ExportLogsServiceResponse.FromString(answer.content)
        assert not response.HasField("partial_success")
        rows = await shared_store.rows(actor)
        receipts = _receipts(answer.content)
        assert {receipt[0] for receipt in receipts} == {str(row["id"]) for row in rows}
        assert {receipt[1] for receipt in receipts} == {row["content_hash"].hex() for row in rows}
        assert {receipt[2] // 1000 for receipt in receipts} == {
            _microseconds(row["recorded_at"]) for row in rows
        }

    async def test_the_same_again_has_the_same_receipt(self, shared, actor):
        first, again = send(shared, log(actor)), send(shared, log(actor))

        assert first.status_code == again.status_code == 200
        assert first.content == again.content


class TestAlone:
    async def test_a_conflict_gets_409(self, shared, shared_store, actor):
        """And is stored all the same: the answer says where."""
        told = {"audit__record__id": uuid7()}
        send(shared, log(actor, **told))

        answer = send(shared, log(actor, event="invoice.rejected", **told))

        assert answer.status_code == 409
        assert b"another record with this id" in answer.content
        rows = await shared_store.rows(actor)
        assert {row["event_name"] for row in rows} >= {"invoice.rejected"}
        assert any(str(row["id"]).encode() in answer.content for row in rows)
        assert await shared_store.quarantine(actor) == []

    async def test_in_company_it_is_named_beside_the_receipts(self, shared, actor):
        told = {"audit.record.id": uuid7()}
        shared.json("/v1/audit", json_log(actor, **told))
        message = json_log(actor, **told, **{"audit.target.id": "x", "audit.target.type": "y"})
        more = json_log(actor, **{"audit.tenant.id": "other"})
        message["resourceLogs"] += more["resourceLogs"]

        answer = shared.json("/v1/audit", message)

        assert answer.status_code == 200
        receipts = answer.json()["auditReceipts"]
        assert len(receipts) == 2
        (moved,) = [one for one in receipts if "conflictOf" in one]
        assert moved["conflictOf"] == told["audit.record.id"] != moved["recordId"]
        assert told["audit.record.id"] not in {one["recordId"] for one in receipts}
        assert "auditQuarantined" not in answer.json()

    async def test_the_hash_that_the_draft_asks_for_is_over_what_is_stored(
        self, shared, shared_store, actor
    ):
        """Anybody can make it again from the stored text, by RFC 8785."""
        answer = shared.json("/v1/audit", json_log(actor))
        (receipt,) = answer.json()["auditReceipts"]
        (row,) = await shared_store.rows(actor)

        def exact(value):
            if isinstance(value, dict):
                return {name: exact(one) for name, one in value.items()}
            return str(value) if type(value) is int and value > 1 << 53 else value

        text = rfc8785.dumps(exact(json.loads(row["payload"])))
        assert receipt["integrityHash"] == hashlib.sha256(text).hexdigest()

    async def test_a_broken_chain_refuses_nothing_and_is_a_record(
        self, shared, shared_store, actor
    ):
        """The record that does not follow is stored, and so is that it does not."""
        stream = f"stream-{actor}"
        for number, more in ((1, {}), (2, {"audit__sequence__previous_hash": "0" * 64})):
            record = log(actor, number, audit__sequence__stream_id=stream, **more)
            record.attributes.extend(pairs({"audit.sequence.number": number}))
            assert send(shared, record).status_code == 200

        # in no certain order: both may have happened in the same millisecond
        rows = {row["sequence_number"]: row for row in await shared_store.rows(actor)}
        links = {
            number: json.loads(row["payload"])["received"].get("link")
            for number, row in rows.items()
        }
        assert links == {1: None, 2: "broken"}
        (found,) = await shared_store.fetch(
            "SELECT * FROM audit.audit_logs WHERE event_name = 'audit.chain.broken' "
            "AND target_id = $1", stream,
        )  # fmt: skip
        assert json.loads(found["payload"])["metadata"]["record"] == str(rows[2]["id"])

    @pytest.mark.parametrize("lacking", ["audit__action", "audit__actor__type"])
    async def test_one_that_lacks_something_is_kept_and_named(
        self, shared, shared_store, actor, lacking
    ):
        """It is not lost, so there is no error; it has no receipt."""
        answer = send(shared, log(actor, **{lacking: None}))

        assert answer.status_code == 200
        assert _receipts(answer.content) == []
        (kept,) = await shared_store.quarantine(actor)
        assert lacking.replace("__", ".") in kept["reason"]


def _microseconds(moment) -> int:
    from datetime import UTC, datetime, timedelta

    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _receipts(content: bytes) -> list[tuple[str, str, int]]:
    """Read field 1000 as the documentation describes it, with no code of the sink's."""
    found, at = [], 0
    while at < len(content):
        tag, at = _varint(content, at)
        length, at = _varint(content, at)
        piece, at = content[at : at + length], at + length
        if tag >> 3 == 1000:
            assert (piece[0], piece[1], piece[38], piece[39], piece[104]) == (10, 36, 18, 64, 25)
            time = struct.unpack("<Q", piece[105:113])[0]
            assert (piece[113], piece[114], len(piece)) == (42, 64, 179)
            found.append((piece[2:38].decode(), piece[40:104].decode(), time))
    return found


def _varint(content: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = content[at]
        number, at, shift = number | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return number, at
