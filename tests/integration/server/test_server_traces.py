"""Flagged spans over OTLP/HTTP become rows; the answer comes after COMMIT."""

from __future__ import annotations

import gzip
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard
from otel_audit_otlp.encoding import carry, to_request
from otel_audit_postgres.rows import record_from_payload
from sinks import START, request, span, trace_of
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.record import Change, Request, Tenant

TRACE = "0af7651916cd43dd8448eb211c80319c"


class TestTraces:
    async def test_a_flagged_span_is_stored_and_then_answered(self, shared, shared_store, actor):
        """Whoever got a 200 finds the row."""
        flagged = span(1, audit__actor__id=actor, audit__tenant__id="acme")

        answer = shared.traces(request(flagged))

        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-type"] == "application/x-protobuf"
        (row,) = await shared_store.rows(actor)
        assert row["event_name"] == "order.created"
        assert row["tenant_id"] == "acme"
        assert row["trace_id"] == trace_of(actor)
        assert row["span_id"] == "0000000000000001"
        assert row["service_name"] == "orders"
        assert row["received_by"] == "token:test"
        payload = json.loads(row["payload"])
        assert payload["occurred_at"] == START + 1000
        assert payload["duration"] == 5_000_000
        assert payload["received"]["by"] == "token:test"
        assert bytes.fromhex(payload["received"]["hash"]) == row["received_hash"]

    async def test_a_record_of_ours_arrives_as_it_was_sent(self, shared, shared_store):
        """Through the application's own OTLP exporter nothing of it changes but the mark."""
        record = a_record(
            record_id=uuid7(),
            tenant=Tenant(id="acme", slug="acme-inc"),
            request=Request(id="r-1", method="POST", path="/orders", headers={"accept": "*/*"}),
            changes=(
                Change(operation="update", entity="User", table="users", key={"id": 7},
                       values={"name": ["a", "b"], "password": [None, "[REDACTED]"]}),
            ),
            trace_id=TRACE, span_id="b7ad6b7169203331", trace_sampled=False,
            producer_id=uuid7(), sequence_number=7, resource={"service.name": "orders"},
        )  # fmt: skip
        carried, _ = carry([record])

        assert shared.traces(to_request(carried)).status_code == 200

        (row,) = await shared_store.fetch(
            "SELECT payload FROM audit.audit_logs WHERE id = $1", record.record_id
        )
        arrived = record_from_payload(row["payload"])
        assert arrived.received.by == "token:test"
        assert arrived == type(record)(
            **{name: getattr(record, name) for name in record.__struct_fields__
               if name != "received"},
            received=arrived.received,
        )  # fmt: skip

    async def test_spans_that_are_not_flagged_are_ignored_and_counted(
        self, shared, shared_store, actor
    ):
        before = shared.client.get("/health").json()["records"].get("ignored", 0)
        plain = span(2, audit__actor__id=actor, audit__flagged=None)
        said_no = span(3, audit__actor__id=actor, audit__flagged=False)
        as_text = span(4, audit__actor__id=actor, audit__flagged="true")
        flagged = span(5, audit__actor__id=actor)

        assert shared.traces(request(plain, said_no, as_text, flagged)).status_code == 200

        assert len(await shared_store.rows(actor)) == 1
        assert shared.client.get("/health").json()["records"]["ignored"] == before + 3

    def test_an_empty_request_is_fine(self, shared):
        assert shared.traces(b"").status_code == 200
        assert shared.json("/v1/traces", {}).json() == {}

    @pytest.mark.parametrize(
        ("coding", "compress"), [("gzip", gzip.compress), ("zstd", zstandard.compress)]
    )
    async def test_a_compressed_request(self, shared, shared_store, actor, coding, compress):
        body = compress(request(span(6, audit__actor__id=actor)))

        assert shared.traces(body, Content_Encoding=coding).status_code == 200
        assert len(await shared_store.rows(actor)) == 1

    async def test_json_has_hex_ids_and_integers_as_strings(self, shared, shared_store, actor):
        """As OTLP/JSON says, and not as protobuf's own mapping would."""
        message = {
            "resourceSpans": [{
                "resource": {"attributes": [
                    {"key": "service.name", "value": {"stringValue": "orders"}}]},
                "scopeSpans": [{
                    "scope": {"name": "app", "version": "1"},
                    "spans": [{
                        "traceId": TRACE.upper(), "spanId": "00F067AA0BA902B7", "kind": 2,
                        "name": "order.created", "startTimeUnixNano": str(START),
                        "endTimeUnixNano": START + 9, "unknownField": {"a": []},
                        "attributes": [
                            {"key": "audit.flagged", "value": {"boolValue": True}},
                            {"key": "audit.actor.id", "value": {"stringValue": actor}},
                            {"key": "audit.actor.type", "value": {"stringValue": "user"}},
                            {"key": "audit.action", "value": {"stringValue": "CREATE"}},
                            {"key": "audit.outcome", "value": {"stringValue": "success"}},
                            {"key": "audit.sequence.number", "value": {"intValue": "42"}},
                            {"key": "user.roles", "value": {"arrayValue": {"values": [
                                {"stringValue": "a"}, {"stringValue": "b"}]}}},
                        ],
                    }],
                }],
            }],
        }  # fmt: skip

        answer = shared.json("/v1/traces", message)

        assert (answer.status_code, answer.json()) == (200, {})
        (row,) = await shared_store.rows(actor)
        payload = json.loads(row["payload"])
        assert (row["trace_id"], row["span_id"]) == (TRACE, "00f067aa0ba902b7")
        assert (payload["occurred_at"], payload["duration"]) == (START, 9)
        assert payload["sequence_number"] == 42
        assert payload["actor"]["roles"] == ["a", "b"]


class TestTwice:
    async def test_the_same_request_twice_is_stored_once(self, shared, shared_store, actor):
        body = request(*[span(number, audit__actor__id=actor) for number in range(1, 30)])

        assert [shared.traces(body).status_code for _ in range(3)] == [200] * 3
        assert len(await shared_store.rows(actor)) == 29
        assert await shared_store.quarantine(actor) == []

    async def test_many_at_once_are_stored_once(self, shared, shared_store, actor):
        bodies = [
            request(*[span(number, audit__actor__id=actor) for number in range(first, first + 20)])
            for first in range(1, 101, 10)
        ]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(shared.traces, bodies * 3))

        assert {answer.status_code for answer in answers} == {200}
        assert len(await shared_store.rows(actor)) == 110

    async def test_another_content_under_the_same_id_is_stored_beside_it(
        self, shared, shared_store, actor
    ):
        """Whoever takes an id first takes no record from the trail; the batch around it is stored."""
        record_id = uuid7()
        first = span(1, audit__actor__id=actor, audit__record__id=record_id)
        other = span(1, "order.deleted", audit__actor__id=actor, audit__record__id=record_id)
        beside = span(2, audit__actor__id=actor)

        shared.traces(request(first))
        answers = [shared.traces(request(other, beside)) for _ in range(2)]

        assert [answer.status_code for answer in answers] == [200, 200]
        rows = await shared_store.rows(actor)
        assert sorted(row["event_name"] for row in rows) == [
            "order.created", "order.created", "order.deleted",
        ]  # fmt: skip
        (moved,) = [row for row in rows if row["event_name"] == "order.deleted"]
        assert json.loads(moved["payload"])["conflict_of"] == record_id
        assert await shared_store.quarantine(actor) == []
        assert shared.client.get("/health").json()["records"]["conflicts"] >= 1

    async def test_a_conflict_across_tenants_is_one(self, shared, shared_store, actor):
        """The table's key has the tenant in it; the record's id is unique all the same."""
        record_id = uuid7()
        told = {"audit__actor__id": actor, "audit__record__id": record_id}

        shared.traces(request(span(1, audit__tenant__id="acme", **told)))
        shared.traces(request(span(1, audit__tenant__id="globex", **told)))

        acme, globex = sorted(await shared_store.rows(actor), key=lambda row: row["tenant_id"])
        assert (acme["tenant_id"], globex["tenant_id"]) == ("acme", "globex")
        assert str(acme["id"]) == record_id
        assert json.loads(globex["payload"])["conflict_of"] == record_id
        assert await shared_store.quarantine(actor) == []

    async def test_conflicts_are_judged_on_what_was_received(self, shared, shared_store, actor):
        """Two that differ only in what redaction takes out are different all the same."""
        record_id = uuid7()
        told = {"audit__actor__id": actor, "audit__record__id": record_id}

        shared.traces(request(span(1, audit__metadata='{"password":"hunter-one"}', **told)))
        shared.traces(request(span(1, audit__metadata='{"password":"hunter-one"}', **told)))
        assert await shared_store.quarantine(actor) == []
        shared.traces(request(span(1, audit__metadata='{"password":"hunter-two"}', **told)))

        rows = await shared_store.rows(actor)
        assert len(rows) == 2
        assert not any("hunter" in row["payload"] for row in rows)

    async def test_what_a_collector_adds_to_the_resource_makes_no_conflict(
        self, shared, shared_store, actor
    ):
        record_id = uuid7()
        flagged = span(1, audit__actor__id=actor, audit__record__id=record_id)
        plain = request(flagged)
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        enriched = ExportTraceServiceRequest.FromString(plain)
        added = enriched.resource_spans[0].resource.attributes.add()
        added.key, added.value.string_value = "k8s.pod.name", "gateway-7"

        shared.traces(plain)
        shared.traces(enriched.SerializeToString())

        assert len(await shared_store.rows(actor)) == 1
        assert await shared_store.quarantine(actor) == []

    async def test_a_record_that_the_application_has_written_itself_is_no_conflict(
        self, shared, shared_store
    ):
        """As when the road is changed while something waits in the spool."""
        from otel_audit_postgres import PostgresSink

        record = a_record(record_id=uuid7(), resource={"service.name": "orders"})
        direct = PostgresSink(shared_store.dsn)
        await direct.write([record])
        await direct.close()

        assert shared.traces(to_request(carry([record])[0])).status_code == 200

        found = await shared_store.fetch(
            "SELECT received_by FROM audit.audit_logs WHERE id = $1", record.record_id
        )
        assert [row["received_by"] for row in found] == [None]
        assert await shared_store.quarantine(record.record_id) == []


class TestABadSpan:
    @pytest.mark.parametrize(
        ("told", "reason"),
        [
            ({"audit__action": None}, "the audit span lacks audit.action"),
            ({"audit__outcome": "maybe"}, "an attribute of the audit span has a wrong type"),
            ({"audit__actor__type": 7}, "an attribute of the audit span has a wrong type"),
            ({"audit__changes": "[{]"}, "an attribute of the audit span has a wrong type"),
            ({"audit__record__id": "not-a-uuid"}, "the record's id is not a UUID"),
            ({"audit__schema__version": "99"}, "its schema version is not 1 or 2"),
            ({"audit__request__body": '"' + "x" * 1_100_000 + '"'}, "it is larger than"),
        ],
    )
    async def test_goes_to_quarantine_and_its_batch_is_stored(
        self, shared, shared_store, actor, told, reason
    ):
        bad = span(7, audit__session=actor, **{"audit__actor__id": actor, **told})
        good = [span(number, audit__actor__id=f"{actor}-good") for number in (8, 9)]

        answer = shared.traces(request(good[0], bad, good[1]))

        assert answer.status_code == 200
        assert len(await shared_store.rows(f"{actor}-good")) == 2
        assert await shared_store.rows(actor) == []
        (kept,) = await shared_store.quarantine(actor)
        assert reason in kept["reason"]

    @pytest.mark.parametrize("time", [0, 2**63, 2**64 - 1])
    async def test_without_a_time_that_can_be(self, shared, shared_store, actor, time):
        bad = span(1, audit__actor__id=actor)
        bad.start_time_unix_nano = time

        assert shared.traces(request(bad)).status_code == 200
        (kept,) = await shared_store.quarantine(actor)
        assert "its time is missing" in kept["reason"]

    @pytest.mark.parametrize("time", [1, 2**62, 9_223_372_036_854_775_806])
    async def test_a_strange_time_is_evidence(self, shared, shared_store, actor, time):
        """A clock that is wrong costs no record."""
        strange = span(1, audit__actor__id=actor)
        strange.start_time_unix_nano = time
        strange.end_time_unix_nano = 5

        assert shared.traces(request(strange)).status_code == 200
        (row,) = await shared_store.rows(actor)
        payload = json.loads(row["payload"])
        assert payload["occurred_at"] == time
        assert payload.get("duration", 0) == max(5 - time, 0)

    async def test_a_text_that_is_not_utf8(self, shared, shared_store, actor):
        """One such span would make the whole request invalid; only it is put aside."""
        bad = span(1, "order.deleted", audit__actor__id=actor)
        plain = span(3, "order.deleted", audit__flagged=None)
        body = request(bad, plain, span(2, audit__actor__id=actor))

        answer = shared.traces(body.replace(b"order.deleted", b"order.\xff\xfe\x80eted"))

        assert answer.status_code == 200
        (row,) = await shared_store.rows(actor)
        assert row["event_name"] == "order.created"
        (kept,) = await shared_store.quarantine(actor)
        assert "not UTF-8" in kept["reason"]
        assert "order.���eted" in kept["received"]

    async def test_nul_and_surrogates_cost_no_record(self, shared, shared_store, actor):
        flagged = span(1, audit__actor__id=actor, audit__metadata='{"a":"\\u0000 \\ud800"}',
                       user_agent__original="nul \x00 in it")  # fmt: skip

        assert shared.traces(request(flagged)).status_code == 200
        (row,) = await shared_store.rows(actor)
        assert row["user_agent"] == "nul � in it"

    async def test_ten_thousand_attributes(self, shared, shared_store, actor):
        flagged = span(1, audit__actor__id=actor, **{f"app__{n}": "x" for n in range(10_000)})

        assert shared.traces(request(flagged)).status_code == 200
        assert len(await shared_store.rows(actor)) == 1
