"""JSON in which one item is not as it should be: the others are stored, and it says what and where."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sinks import START, attributes


def item(number: int, actor: str, **fields: Any) -> dict[str, Any]:
    """A flagged span in OTLP/JSON."""
    told = {**attributes(audit__actor__id=actor), "audit.flagged": None}
    pairs = [{"key": key, "value": {"stringValue": value}} for key, value in told.items() if value]
    return {
        "traceId": f"{number:032x}", "spanId": f"{number:016x}", "name": "order.created",
        "startTimeUnixNano": str(START + number), "endTimeUnixNano": str(START + number),
        "attributes": [*pairs, {"key": "audit.flagged", "value": {"boolValue": True}}], **fields,
    }  # fmt: skip


def with_attribute(actor: str, key: str, value: Any) -> dict[str, Any]:
    found = item(2, actor)
    found["attributes"] = [*found["attributes"], {"key": key, "value": value}]
    return found


def post(sink, *items: Any, path: str = "/v1/traces"):
    groups, scopes, name = ("resourceSpans", "scopeSpans", "spans")
    if path == "/v1/audit":
        groups, scopes, name = ("resourceLogs", "scopeLogs", "logRecords")
    message = {groups: [{scopes: [{name: list(items)}]}]}
    headers = {"Content-Type": "application/json"}
    return sink.client.post(path, content=json.dumps(message), headers=headers)


class TestMended:
    """Stored, without the value or with a text in its place; the answer warns of it."""

    @pytest.mark.parametrize(
        ("fields", "told"),
        [
            ({"traceId": "AAECAwQFBgcICQoLDA0ODw=="}, "traceId is not in hex"),
            ({"spanId": 17}, "spanId is not in hex"),
            ({"name": "caf\ud83d"}, "name holds half of a character"),
            ({"endTimeUnixNano": 2**70}, "endTimeUnixNano is not a time"),
            ({"endTimeUnixNano": "-5"}, "endTimeUnixNano is not a time"),
            ({"name": 5}, "name is not a text"),
        ],
    )
    async def test_a_field(self, shared, shared_store, actor, fields, told):
        answer = post(shared, item(1, actor), item(2, actor, **fields), item(3, actor))

        assert answer.status_code == 200
        partial = answer.json()["partialSuccess"]
        assert "rejectedSpans" not in partial
        assert f"resourceSpans[0].scopeSpans[0].spans[1]: {told}" in partial["errorMessage"]
        rows = await shared_store.rows(actor)
        assert len(rows) == 3
        named = [json.loads(row["payload"]).get("metadata", {}) for row in rows]
        assert sum(told in str(metadata.get("audit.incomplete")) for metadata in named) == 1

    @pytest.mark.parametrize(
        ("value", "told"),
        [
            ({"intValue": 2**70}, "intValue is not an integer of 64 bits"),
            ({"intValue": "9" * 400}, "intValue is not an integer of 64 bits"),
            ({"intValue": "x"}, "intValue is not an integer of 64 bits"),
            ({"doubleValue": "x"}, "doubleValue is not a number"),
            ({"stringValue": 7}, "stringValue is not a text"),
            ({"stringValue": "\ud800\udbff"}, "stringValue holds half of a character"),
            ({"arrayValue": 7}, "arrayValue has no list of values"),
            ("bare", "value is not a value such as"),
        ],
    )
    async def test_an_attribute(self, shared, shared_store, actor, value, told):
        answer = post(shared, item(1, actor), with_attribute(actor, "app.x", value))

        assert answer.status_code == 200
        number = len(item(1, actor)["attributes"])
        assert f"attributes[{number}].value" in answer.json()["partialSuccess"]["errorMessage"]
        assert told in answer.json()["partialSuccess"]["errorMessage"]
        assert len(await shared_store.rows(actor)) == 2

    async def test_bytes_that_are_no_utf_8(self, shared, shared_store, actor):
        message = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [
            item(1, actor), item(2, actor, name="MMM")]}]}]}).encode()  # fmt: skip
        headers = {"Content-Type": "application/json"}
        answer = shared.client.post(
            "/v1/traces", content=message.replace(b"MMM", b"\xff\xfe"), headers=headers
        )

        assert "spans[1]: the item is not UTF-8" in answer.json()["partialSuccess"]["errorMessage"]
        assert len(await shared_store.rows(actor)) == 2

    async def test_a_log_record(self, shared, shared_store, actor):
        bad = item(2, actor, body={"stringValue": "half \ud83d"}, eventName="order.created")
        bad["timeUnixNano"] = bad.pop("startTimeUnixNano")
        answer = post(shared, bad, path="/v1/audit")

        told = answer.json()
        assert "logRecords[0]: body.stringValue" in told["partialSuccess"]["errorMessage"]
        assert len(told["auditReceipts"]) == len(await shared_store.rows(actor)) == 1


class TestRejected:
    """In quarantine alone, with the reason; the answer counts it and says where it was."""

    @pytest.mark.parametrize(
        ("bad", "told"),
        [
            ({"startTimeUnixNano": "soon"}, "its time is missing"),
            ({"startTimeUnixNano": -5}, "its time is missing"),
            ({"name": 1}, None),
            (5, "it is not an object"),
            ([], "it is not an object"),
            ({"attributes": []}, None),
        ],
    )
    async def test_one(self, shared, shared_store, actor, bad, told):
        wrong = item(2, actor, **bad) if isinstance(bad, dict) else bad
        answer = post(shared, item(1, actor), wrong, item(3, actor))

        assert answer.status_code == 200
        partial = answer.json().get("partialSuccess", {})
        if told is None:
            assert "rejectedSpans" not in partial
        else:
            assert partial["rejectedSpans"] == "1"
            assert f"spans[1]: {told}" in partial["errorMessage"]
            assert "audit.quarantine" in partial["errorMessage"]
        assert len(await shared_store.rows(actor)) >= 2

    async def test_one_that_is_nested_without_end(self, shared, shared_store, actor):
        deep = '{"arrayValue":{"values":[' * 2_000 + '{"intValue":1}' + "]}}" * 2_000
        good = json.dumps(item(1, actor))
        bad = good.replace(
            '"attributes": [', '"attributes": [{"key":"user.roles","value":' + deep + "},"
        )
        message = '{"resourceSpans":[{"scopeSpans":[{"spans":[' + good + "," + bad + "]}]}]}"
        headers = {"Content-Type": "application/json"}
        answer = shared.client.post("/v1/traces", content=message, headers=headers)

        assert answer.json()["partialSuccess"]["rejectedSpans"] == "1"
        assert "spans[1]: it cannot be decoded" in answer.json()["partialSuccess"]["errorMessage"]
        assert len(await shared_store.rows(actor)) == 1

    async def test_in_protobuf_the_same_is_said(self, shared, shared_store, actor):
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceResponse,
        )
        from sinks import request, span

        good, bad = span(1, audit__actor__id=actor), span(2, audit__actor__id="")
        answer = shared.traces(request(good, bad))

        partial = ExportTraceServiceResponse.FromString(answer.content).partial_success
        assert partial.rejected_spans == 1
        assert "spans[1]: the audit span lacks audit.actor.id" in partial.error_message
        assert len(await shared_store.rows(actor)) == 1


class TestOrder:
    async def test_fields_in_any_order_and_names_with_escapes(self, shared, shared_store, actor):
        """The resource behind its spans, and a letter of a name escaped: the same JSON."""
        span = json.dumps(item(1, actor))
        resource = json.dumps({"attributes": [
            {"key": "service.name", "value": {"stringValue": "late"}}]})  # fmt: skip
        message = (
            '{"resourceSpan\\u0073" : [ {"scopeSpans":[{"spans": [' + span + '],"scope":{"name":'
            '"otel_audit"}}], "schemaUrl":"{[\\"", "resource":' + resource + "} ]}"
        )
        headers = {"Content-Type": "application/json"}
        answer = shared.client.post("/v1/traces", content=message, headers=headers)

        assert (answer.status_code, answer.json()) == (200, {})
        (row,) = await shared_store.rows(actor)
        assert row["service_name"] == "late"
