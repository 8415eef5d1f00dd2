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
from otel_audit.serve import otlpjson, protobuf, turns
from otel_audit.serve.access import Access
from otel_audit.serve.incoming import AT_ONCE, MOST_ITEMS
from otel_audit.serve.problems import Problem
from otel_audit.serve.senders import NOBODY
from otel_audit.serve.service import Service


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
    (otlpjson.spans, json_spans),
    (otlpjson.logs, json_logs),
    (protobuf.spans, protobuf_spans),
    (protobuf.logs, protobuf_logs),
]


def number_of(batch) -> int:
    return len(batch.items) + len(batch.broken) + batch.ignored


@pytest.mark.parametrize(("read", "made"), WAYS)
class TestItems:
    def test_beyond_the_bound_is_413(self, read, made):
        with pytest.raises(Problem, match=f"more than {MOST_ITEMS}") as refused:
            list(read(made(MOST_ITEMS + 1)))

        assert refused.value.status == 413
        assert "smaller batches" in refused.value.message

    def test_none_is_lost_on_the_way(self, read, made):
        assert sum(map(number_of, read(made(1_000)))) == 1_000

    def test_they_come_in_small_batches(self, read, made):
        assert max(map(number_of, read(made(1_000)))) <= AT_ONCE


def test_as_many_as_the_bound_are_taken():
    assert sum(map(number_of, protobuf.spans(protobuf_spans(MOST_ITEMS)))) == MOST_ITEMS


class TestParts:
    """Of protobuf: whatever becomes an object, or is walked over, though it is no span."""

    @pytest.mark.parametrize(
        "body",
        [b"\x0a\x00" * 1_001, b"\x10\x00" * 1_001, b"\x1b\x1c" + b"\x0a\x00" * 1_000,
         b"\x0a\x82\x10" + b"\x12\x00" * 1_025],
        ids=["resources", "unknown fields", "behind an unknown group", "scopes"],
    )  # fmt: skip
    def test_too_many_are_refused(self, body, monkeypatch):
        monkeypatch.setattr(protobuf, "MOST_PARTS", 1_000)
        with pytest.raises(Problem, match="more than 1000 parts") as refused:
            list(protobuf.spans(body))
        assert refused.value.status == 413

    def test_others_have_turns_while_they_are_counted(self):
        counting = protobuf.spans(b"\x10\x00" * 5_000)
        assert [number_of(next(counting)) for _ in range(4)] == [0, 0, 0, 0]

    def test_many_resources_are_no_reason_to_refuse(self):
        one = request(span(1))
        assert sum(map(number_of, protobuf.spans(one * 40_000))) == 40_000


def test_too_many_protobuf_items_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(protobuf, "shallow", None)

    with pytest.raises(Problem, match=f"more than {MOST_ITEMS}"):
        list(protobuf.spans(protobuf_spans(MOST_ITEMS + 1)))


class TestObjects:
    """Of JSON: an attribute, too, is one."""

    def test_too_many_are_refused_before_they_are_decoded(self, monkeypatch):
        monkeypatch.setattr(otlpjson, "_decode_span", None)
        monkeypatch.setattr(otlpjson, "MOST_OBJECTS", 1_000)
        attributes = b'{"attributes":[' + b",".join([b"{}"] * 1_000) + b"]}"

        with pytest.raises(Problem, match="more than 1000 JSON objects") as refused:
            list(otlpjson.spans(json_spans(1, attributes)))
        assert refused.value.status == 413

    def test_a_text_without_end_is_looked_at_once(self):
        """Each quote in it might begin another one; that would take minutes."""
        assert otlpjson._TEXTS.sub(b"", b'{"' + b'\\"' * 50_000) == b"{"

    def test_those_in_texts_are_none(self, monkeypatch):
        """The body of a request that was captured may hold any number."""
        monkeypatch.setattr(otlpjson, "MOST_OBJECTS", 1_000)
        text = rb'{"name":"' + rb"{\"a\":{}}\\" * 2_000 + rb'"}'

        assert sum(batch.ignored for batch in otlpjson.spans(json_spans(1, text))) == 1


class TestTurns:
    async def turns(self, body: bytes, step: float, monkeypatch) -> int:
        """How often others had their turn, if each look at the clock were so much later."""
        ticks = itertools.count()
        clock = SimpleNamespace(perf_counter=lambda: next(ticks) * step)
        taking = Service(AuditConfig(), Access(None), MemoryStore)
        taking.intake.start()
        had = 0

        async def others() -> None:
            nonlocal had
            while True:
                had += 1
                await asyncio.sleep(0)

        try:
            await taking.take(protobuf.spans(request(span(1))), NOBODY)
            monkeypatch.setattr(turns, "time", clock)
            beside = asyncio.create_task(others())
            outcome = await taking.take(protobuf.spans(body), NOBODY)
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
