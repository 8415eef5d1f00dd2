"""Many small things in one request: refused beyond a bound, else read bit by bit."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace

import pytest
from memory_store import MemoryStore
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from sinks import request, span

from otel_audit.config import AuditConfig
from otel_audit.server import decode_json, decode_protobuf, fair_scheduling
from otel_audit.server.authentication import Authentication
from otel_audit.server.credentials import NOBODY
from otel_audit.server.errors import RequestError
from otel_audit.server.items import AT_ONCE, MOST_ITEMS
from otel_audit.server.metrics import ServerMetrics
from otel_audit.server.service import Service


def json_spans(count: int, item: bytes = b"{}") -> bytes:
    items = b",".join([item] * count)
    return b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + items + b"]}]}]}"


def json_logs(count: int) -> bytes:
    return json_spans(count).replace(b"Spans", b"Logs").replace(b'"spans"', b'"logRecords"')


def protobuf_spans(count: int) -> bytes:
    return request(*[Span()] * count)


def protobuf_logs(count: int) -> bytes:
    scoped = ScopeLogs(log_records=[LogRecord()] * count)
    group = ResourceLogs(scope_logs=[scoped])
    return ExportLogsServiceRequest(resource_logs=[group]).SerializeToString()


WAYS = [
    (decode_json.spans, json_spans),
    (decode_json.logs, json_logs),
    (decode_protobuf.spans, protobuf_spans),
    (decode_protobuf.logs, protobuf_logs),
]


def number_of(batch) -> int:
    return len(batch.items) + len(batch.undecodable) + batch.ignored


@pytest.mark.parametrize(("read", "made"), WAYS)
class TestItems:
    def test_beyond_the_bound_is_413(self, read, made):
        with pytest.raises(RequestError, match=f"more than {MOST_ITEMS}") as refused:
            list(read(made(MOST_ITEMS + 1)))

        assert refused.value.status == 413
        assert "smaller batches" in refused.value.message

    def test_none_is_lost_on_the_way(self, read, made):
        assert sum(map(number_of, read(made(1_000)))) == 1_000

    def test_they_come_in_small_batches(self, read, made):
        assert max(map(number_of, read(made(1_000)))) <= AT_ONCE


def test_as_many_as_the_bound_are_taken():
    assert sum(map(number_of, decode_protobuf.spans(protobuf_spans(MOST_ITEMS)))) == MOST_ITEMS


class TestParts:
    """Of protobuf: whatever becomes an object, or is walked over, though it is no span."""

    @pytest.mark.parametrize(
        "body",
        [b"\x0a\x00" * 1_001, b"\x10\x00" * 1_001, b"\x1b\x1c" + b"\x0a\x00" * 1_000,
         b"\x0a\x82\x10" + b"\x12\x00" * 1_025],
        ids=["resources", "unknown fields", "behind an unknown group", "scopes"],
    )  # fmt: skip
    def test_too_many_are_refused(self, body, monkeypatch):
        monkeypatch.setattr(decode_protobuf, "MOST_PARTS", 1_000)
        with pytest.raises(RequestError, match="more than 1000 parts") as refused:
            list(decode_protobuf.spans(body))
        assert refused.value.status == 413

    def test_others_have_turns_while_they_are_counted(self):
        counting = decode_protobuf.spans(b"\x10\x00" * 5_000)
        assert [number_of(next(counting)) for _ in range(4)] == [0, 0, 0, 0]

    def test_many_resources_are_no_reason_to_refuse(self):
        one = request(span(1))
        assert sum(map(number_of, decode_protobuf.spans(one * 40_000))) == 40_000


def test_too_many_protobuf_items_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(decode_protobuf, "decode_protobuf_lazily", None)

    with pytest.raises(RequestError, match=f"more than {MOST_ITEMS}"):
        list(decode_protobuf.spans(protobuf_spans(MOST_ITEMS + 1)))


class TestObjects:
    """Of JSON: an attribute, too, is one."""

    def test_too_many_are_refused_before_they_are_decoded(self, monkeypatch):
        monkeypatch.setattr(decode_json, "_decode_span", None)
        monkeypatch.setattr(decode_json, "MOST_OBJECTS", 1_000)
        attributes = b'{"attributes":[' + b",".join([b"{}"] * 1_000) + b"]}"

        with pytest.raises(RequestError, match="more than 1000 JSON objects") as refused:
            list(decode_json.spans(json_spans(1, attributes)))
        assert refused.value.status == 413

    def test_a_text_without_end_is_looked_at_once(self):
        """Each quote in it might begin another one; that would take minutes."""
        assert decode_json._TEXTS.sub(b"", b'{"' + b'\\"' * 50_000) == b"{"

    def test_those_in_texts_are_none(self, monkeypatch):
        """The body of a request that was captured may hold any number."""
        monkeypatch.setattr(decode_json, "MOST_OBJECTS", 1_000)
        text = rb'{"name":"' + rb"{\"a\":{}}\\" * 2_000 + rb'"}'

        assert sum(batch.ignored for batch in decode_json.spans(json_spans(1, text))) == 1


class TestTurns:
    async def turns(self, body: bytes, step: float, monkeypatch) -> int:
        """How often others had their turn, if each look at the clock were so much later."""
        ticks = itertools.count()
        clock = SimpleNamespace(perf_counter=lambda: next(ticks) * step)
        taking = Service(AuditConfig(), Authentication(None), MemoryStore, ServerMetrics())
        taking.intake.start()
        had = 0

        async def others() -> None:
            nonlocal had
            while True:
                had += 1
                await asyncio.sleep(0)

        try:
            await taking.take(decode_protobuf.spans(request(span(1))), NOBODY)
            monkeypatch.setattr(fair_scheduling, "time", clock)
            beside = asyncio.create_task(others())
            outcome = await taking.take(decode_protobuf.spans(body), NOBODY)
            beside.cancel()
        finally:
            await taking.intake.stop(1)
        assert outcome.stored + outcome.ignored == 600
        return had

    async def test_others_have_theirs_by_the_time_that_reading_took(self, monkeypatch):
        body = request(*(span(number) for number in range(1, 601)))
        at_once = await self.turns(body, 0, monkeypatch)
        monkeypatch.undo()

        assert await self.turns(body, 0.002, monkeypatch) > at_once + 150

    async def test_also_by_what_is_ignored(self, monkeypatch):
        body = request(*(span(number, audit__flagged=None) for number in range(1, 601)))
        at_once = await self.turns(body, 0, monkeypatch)
        monkeypatch.undo()

        assert await self.turns(body, 0.006, monkeypatch) >= at_once + 600 // AT_ONCE
