"""Hostile requests to the sink: bombs, broken items, forged tenants, floods.

Whatever a sender sends: it costs a bounded time and memory, holds up nobody, the good records of
its batch are stored, no record is another tenant's, and no secret is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import json
import os
import random
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import asyncpg
import httpx
import psutil
import pytest
from machine_pace import how_slow
from memory_store import MemoryStore
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from sinks import START, request, serving, span
from starlette.applications import Starlette
from strategies import a_record

from hostile.bombs import JSON, PROTOBUF, bombs, compressed
from hostile.generated import CANARIES
from hostile.oracles import STALL_THAT_FAILS
from otel_audit.attributes import to_attributes
from otel_audit.config import AuditConfig
from otel_audit.delivery.sink import Accepted, Refused
from otel_audit.record import (
    AuditRecord,
    Body,
    ErrorInfo,
    Request,
    Response,
    Source,
    Target,
    Tenant,
    to_json,
)
from otel_audit.server.app import create_app
from otel_audit.server.backpressure import MemoryBudget, MemoryLease
from otel_audit.server.credentials import new_token
from otel_audit.server.fair_scheduling import FairTurns
from otel_audit.server.uvicorn_server import _collect_seldom

BATCHES: Final = int(os.environ.get("HOSTILE_BATCHES", "800"))
SEED: Final = os.environ.get("SEED", "1")
MOST_CPU: Final = float(os.environ.get("HOSTILE_CPU_S", "2.5"))
"""Seconds of CPU that a small request may cost; on an idle machine none takes one."""

MOST_CPU_PER_MB: Final = 1.0
MOST_MEMORY: Final = 250_000_000
MOST_USED: Final = float(os.environ.get("HOSTILE_WAIT_S", "5"))
"""Seconds of CPU that the sink may use before it answers somebody else; alone it takes a few ms."""

QUICK: Final = frozenset({
    "roles", "user agents", "changes", "a resource for all", "lists of nothing", "brackets",
    "empty resources", "halves",
})  # fmt: skip

NAMES: Final = sorted(to_attributes(a_record(
    tenant=Tenant(id="acme", slug="a"), target=Target(type="order", id="1"),
    source=Source(address="192.0.2.1", user_agent="x", session_id="s"),
    request=Request(id="r", method="GET", route="/", path="/", query="a=1", headers={"a": "b"},
                    http_version="1.1", host="h", body=Body(content=b"1", size=1, sha256="0")),
    response=Response(status_code=200, headers={"a": "b"}, body=Body(content=b"1", size=1)),
    error=ErrorInfo(type="E", message="m"), metadata={"a": 1}, producer_id="p", sequence_number=1,
    parent_action_id="0198c0de-0000-7000-8000-000000000001", trace_sampled=True,
    changes_total=1, level="changes",
)))  # fmt: skip
SECRETS: Final = [CANARIES["password"], CANARIES["card"]]


class Counting(MemoryStore):
    """Counts what it is given, and keeps none of it."""

    async def accept(
        self, records: list[AuditRecord], refused: tuple[Refused, ...] = ()
    ) -> Accepted:
        await asyncio.sleep(0)
        self.batches.append(len(records) + len(refused))
        return Accepted()


@dataclass
class Sink:
    """The sink in this process, and who may send to it: acme and globex, each for itself."""

    app: Starlette
    client: httpx.AsyncClient
    store: MemoryStore
    tokens: dict[str, str]

    async def post(
        self, body: bytes, who: str = "acme", path: str = "/v1/traces", **headers: str
    ) -> httpx.Response:
        sent = {"Authorization": f"Bearer {self.tokens[who]}", "Content-Type": PROTOBUF}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(path, content=body, headers=sent)


@contextlib.asynccontextmanager
async def sink_with(directory: Path, store: MemoryStore, **settings: Any) -> AsyncIterator[Sink]:
    tokens, lines = {}, []
    for name in ("acme", "globex"):
        tokens[name], line = new_token(name, tenant=name)
        lines.append(line)
    file = directory / "tokens.toml"
    file.write_text("".join(lines))
    file.chmod(0o600)
    config = AuditConfig(
        dsn="postgresql://unused@127.0.0.1:1/unused", serve_tokens_file=file, **settings
    )
    app = create_app(config, make_store=lambda: store)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://sink", timeout=300) as client,
    ):
        yield Sink(app, client, store, tokens)


class Watch:
    """Sees how long the loop was held up, by the CPU that was used meanwhile, and the memory."""

    def __init__(self) -> None:
        self.stall = 0.0
        self.memory = 0
        self.cpu = 0.0
        self._process = psutil.Process()

    async def __aenter__(self) -> Self:
        self._before = self._process.memory_info().rss
        self._began = time.process_time()
        self._task = asyncio.create_task(self._beat())
        await asyncio.sleep(0.005)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cpu = time.process_time() - self._began
        self._task.cancel()

    def was_slow(self, size: int, times: float) -> bool:
        """Whether a request of so many bytes took more than it may, on a machine so much slower."""
        allowed = MOST_CPU + size / 1e6 * MOST_CPU_PER_MB
        return self.cpu > times * allowed or self.stall > times * STALL_THAT_FAILS

    async def _beat(self) -> None:
        seen, used = time.perf_counter(), time.process_time()
        while True:
            await asyncio.sleep(0.001)
            now, spent = time.perf_counter(), time.process_time()
            # what others on this machine took is no fault of ours
            self.stall = max(self.stall, min(now - seen - 0.001, spent - used))
            self.memory = max(self.memory, self._process.memory_info().rss - self._before)
            seen, used = time.perf_counter(), time.process_time()


@pytest.fixture(scope="module", autouse=True)
def _as_the_server_collects() -> Iterator[None]:
    import gc

    before = gc.get_threshold()
    _collect_seldom()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


class TestBombs:
    """Small, and would become large: refused, or read within a budget."""

    async def test_those_that_cost_seconds_once(self, tmp_path):
        """Lists of roles, user agents, changes, resources, lists of nothing, and brackets."""
        await self.drop(tmp_path, ("gzip",), QUICK)

    @pytest.mark.slow
    @pytest.mark.timeout(900)  # as below
    @pytest.mark.parametrize("coding", ["gzip", "zstd", "identity"])
    async def test_none_costs_much(self, tmp_path, coding):
        await self.drop(tmp_path, (coding,), None)

    async def drop(
        self, directory: Path, codings: tuple[str, ...], names: frozenset[str] | None
    ) -> None:
        """See that CPU, stalls of the loop and memory have bounds, and that others are served."""
        faults: list[str] = []
        times = how_slow()
        async with sink_with(directory, Counting()) as sink:
            await sink.post(request(span(1)))
            for name, path, kind, message in bombs(names):
                for coding, body in compressed(message, codings):
                    # what the machine does beside it is slow once, what the sink does each time
                    for attempt in range(3):
                        if attempt:  # a machine that others use changes its pace within minutes
                            times = how_slow()
                        sink.store.batches.clear()
                        async with Watch() as watch:
                            answer = await sink.post(
                                body, path=path, Content_Type=kind, Content_Encoding=coding
                            )
                        told = (
                            f"{name} by {coding}, {len(body):,} bytes of {len(message):,}: "
                            f"{answer.status_code}, {watch.cpu:.2f} s, stall "
                            f"{watch.stall * 1e3:.0f} ms, {watch.memory:,} bytes"
                        )
                        sound = answer.status_code in (200, 400, 413)
                        slow = watch.was_slow(len(body), times)
                        if slow:  # or within the seconds of one request
                            times = max(times, how_slow())
                            slow = watch.was_slow(len(body), times)
                        if not sound or watch.memory > MOST_MEMORY or (slow and attempt == 2):
                            faults.append(told)
                        if not slow:
                            break
                    assert (await sink.post(request(span(1)))).status_code == 200, told
        assert not faults, "\n".join(faults)


async def test_a_refused_request_keeps_nothing_until_the_garbage_collector_runs(
    tmp_path, monkeypatch
):
    """What was decompressed would stay: the server collects seldom."""
    leases: list[weakref.ref[MemoryLease]] = []

    class Noted(MemoryLease):
        def __init__(self, budget: MemoryBudget, sender: str) -> None:
            super().__init__(budget, sender)
            leases.append(weakref.ref(self))

    monkeypatch.setattr("otel_audit.server.backpressure.MemoryLease", Noted)
    async with sink_with(tmp_path, Counting(), serve_max_message_bytes=100_000) as sink:
        gc.disable()
        try:
            answer = await sink.post(gzip.compress(bytes(100_001)), Content_Encoding="gzip")
            assert answer.status_code == 413
            assert leases[0]() is None
        finally:
            gc.enable()


class TestFlood:
    """One sender sends as much as it can; another one's small request is answered soon."""

    async def test_others_do_not_wait_for_it(self, tmp_path, monkeypatch):
        """Sixty large requests of globex at once; acme has every second turn as long as it asks."""
        turns: list[bool] = []
        give_back = FairTurns.give_back

        def note(self: FairTurns, sender: str, seconds: float) -> None:
            turns.append("acme" in sender)
            give_back(self, sender, seconds)

        monkeypatch.setattr(FairTurns, "give_back", note)
        heavy = request(*(span(number) for number in range(1, 2_500)))
        most = 10 * len(heavy)
        async with sink_with(tmp_path, Counting(), serve_max_in_flight_bytes=most) as sink:
            await sink.post(request(span(1)))
            flood = [asyncio.create_task(sink.post(heavy, "globex")) for _ in range(60)]
            await asyncio.sleep(0.05)
            waits = []
            for number in range(1, 4):
                turns.clear()
                assert (await sink.post(request(span(number)))).status_code == 200
                own = sum(turns)
                waits.append((own, len(turns) - turns[::-1].index(True) - own))
            at_work = sum(not task.done() for task in flood)
            answers = await asyncio.gather(*flood)

        assert all(others <= 2 * own + 2 for own, others in waits), waits
        # they were answered before what had come before them was done
        assert at_work > 0
        refused = [answer for answer in answers if answer.status_code == 429]
        assert {answer.status_code for answer in answers} == {200, 429}
        assert int(refused[0].headers["retry-after"]) >= 1
        assert b"from this sender" in refused[0].content

    async def test_what_it_holds_is_no_reason_to_refuse_others(self, tmp_path):
        """Half of what may be under way is for others, some of it for who has nothing there."""
        store = MemoryStore()
        store.gate = gate = asyncio.Event()
        body = request(*(span(number) for number in range(1, 400)))
        async with sink_with(tmp_path, store, serve_max_in_flight_bytes=10 * len(body)) as sink:
            flood = [asyncio.create_task(sink.post(body, "globex")) for _ in range(40)]
            refused = 0
            for task in asyncio.as_completed(flood):
                refused += (await task).status_code == 429
                if refused == 35:
                    break
            other = asyncio.create_task(sink.post(body, "acme"))
            await asyncio.sleep(0.2)
            assert not other.done()
            gate.set()
            assert (await other).status_code == 200
            answers = [answer.status_code for answer in await asyncio.gather(*flood)]
        assert answers.count(200) == 5
        assert answers.count(429) == 35


class TestBatches:
    """Two good records, and between them whatever can be sent: the two are stored as they are."""

    @pytest.mark.parametrize("encoding", [PROTOBUF, JSON])
    async def test_the_good_records_of_a_batch_are_stored(self, tmp_path, encoding):
        """No foreign tenant, no mark but the sender's, no secret, and an answer for each."""
        chosen = random.Random(f"{SEED} {encoding}")
        store = MemoryStore()
        async with sink_with(tmp_path, store) as sink:
            for number in range(BATCHES // 2):
                store.records.clear()
                store.quarantine.clear()
                good = [good_span(number, 1), good_span(number, 2)]
                body = (
                    framed(good, bad_spans(chosen))
                    if encoding == PROTOBUF
                    else as_json(good, bad_items(chosen))
                )
                answer = await sink.post(body, Content_Type=encoding)
                assert answer.status_code == 200, (number, body, answer.content)
                judge(store, number, body)

    async def test_mutated_bytes_are_answered(self, tmp_path):
        """Cut, doubled, changed anywhere: OTLP's answer, and nobody else's record."""
        chosen = random.Random(f"{SEED} bytes")
        store = MemoryStore()
        valid = framed([good_span(0, 1), good_span(0, 2)], [])
        text = as_json([good_span(0, 1), good_span(0, 2)], [])
        async with sink_with(tmp_path, store) as sink:
            for _ in range(BATCHES):
                kind, found = chosen.choice([(PROTOBUF, bytearray(valid)), (JSON, bytearray(text))])
                for _ in range(chosen.randint(1, 5)):
                    at = chosen.randrange(len(found))
                    piece = chosen.randbytes(chosen.randint(0, 9))
                    found[at : at + chosen.randint(0, 9)] = piece
                packed = gzip.compress(bytes(found))
                answer = await sink.post(packed, Content_Type=kind, Content_Encoding="gzip")
                assert answer.status_code in (200, 400), (bytes(found), answer.content)
                for record in store.records.values():
                    assert record.tenant is not None
                    assert record.tenant.id == "acme"
                store.records.clear()


def good_span(batch: int, number: int) -> Span:
    return span(
        2 * batch + number, audit__actor__id=f"good-{batch}-{number}", audit__tenant__id="acme",
        audit__record__id=f"0198c0de-{batch:04x}-7000-8000-{number:012x}",
    )  # fmt: skip


def judge(store: MemoryStore, number: int, body: bytes) -> None:
    actors = {record.actor.id for record in store.records.values()}
    assert {f"good-{number}-1", f"good-{number}-2"} <= actors, (number, body)
    for record in store.records.values():
        assert record.tenant is not None
        assert record.tenant.id == "acme", (number, body)
        assert record.received is not None
        assert record.received.by == "token:acme"
        assert record.conflict_of is None
    kept = b"".join(map(to_json, store.records.values()))
    kept += b"".join(item.received + item.reason.encode() for item in store.quarantine)
    for secret in SECRETS:
        at = kept.find(secret.encode())
        assert at < 0, (number, kept[max(at - 80, 0) : at + 40])


def a_value(chosen: random.Random, depth: int = 0) -> AnyValue:
    """A value of any type."""
    several = [a_value(chosen, depth + 1) for _ in range(chosen.randint(0, 3 - depth))]
    pairs = [KeyValue(key=a_text(chosen), value=one) for one in several]
    integer = chosen.choice([0, -1, 2**63 - 1, -(2**63), 4_000_000_000])
    double = chosen.choice([0.0, 1e308, float("nan"), float("-inf")])
    return chosen.choice(
        [
            AnyValue(),
            AnyValue(bool_value=chosen.random() < 0.5),
            AnyValue(int_value=integer),
            AnyValue(double_value=double),
            AnyValue(bytes_value=chosen.randbytes(9)),
            AnyValue(string_value=a_text(chosen)),
            AnyValue(string_value=a_text(chosen)),
            AnyValue(array_value=ArrayValue(values=several)),
            AnyValue(kvlist_value=KeyValueList(values=pairs)),
        ]
    )


def a_text(chosen: random.Random) -> str:
    secret = chosen.choice(SECRETS)
    return chosen.choice([
        "", "globex", "\0", "\x1b[2J", "\u202e", "9" * 400, "x" * 3_000, "null", "[" * 90, "{}", "[]",
        '{"a":1e999999}', '{"a":' * 70 + "1" + "}" * 70, "0198c0de-0000-7000-8000-000000000001",
        f"password={secret}", f'{{"password":"{secret}"}}', f'[{{"password":"{secret}"}}]',
        f"https://u:{secret}@h/", f"Bearer {secret}", '{"a":"\\ud800"}', "é" * 100, "token:acme",
    ])  # fmt: skip


def bad_spans(chosen: random.Random) -> list[bytes]:
    """Spans with attributes of any type under any name, ids and times of any kind, and junk."""
    found = []
    for _ in range(chosen.randint(1, 4)):
        one = span(chosen.randint(1, 99))
        for _ in range(chosen.randint(1, 6)):
            pair = KeyValue(key=chosen.choice([*NAMES, a_text(chosen)]), value=a_value(chosen))
            one.attributes.append(pair)
        if chosen.random() < 0.3:
            one.trace_id, one.span_id = chosen.randbytes(chosen.randint(0, 20)), b""
        if chosen.random() < 0.3:
            one.start_time_unix_nano = chosen.choice([0, 1, 2**63, 2**64 - 1])
            one.end_time_unix_nano = chosen.choice([0, 1, 2**63, 2**64 - 1])
        raw = bytearray(one.SerializeToString())
        # what names a secret stays what it is
        if chosen.random() < 0.4 and not any(secret.encode() in raw for secret in SECRETS):
            at = chosen.randrange(len(raw))
            raw[at : at + chosen.randint(0, 4)] = chosen.randbytes(chosen.randint(0, 6))
        found.append(bytes(raw))
    return found


def framed(good: list[Span], bad: list[bytes]) -> bytes:
    """A request whose framing holds, whatever its spans are."""
    spans = [good[0].SerializeToString(), *bad, good[1].SerializeToString()]
    scoped = b"".join(field(2, one) for one in spans)
    return field(1, field(2, scoped))


def field(number: int, content: bytes) -> bytes:
    length, size = bytearray(), len(content)
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    length.append(size)
    return bytes([number << 3 | 2]) + bytes(length) + content


def bad_items(chosen: random.Random) -> list[Any]:
    """Items of JSON: of other types, with values of other types, with what only JSON can spell."""
    found: list[Any] = []
    for _ in range(chosen.randint(1, 4)):
        one: Any = json_span(good_span(0, 3))
        one["attributes"] += [
            {"key": chosen.choice([*NAMES, a_text(chosen), 7, None]), "value": json_value(chosen)}
            for _ in range(chosen.randint(1, 5))
        ]
        odd = [None, 5, "x", [], {}, True, 1e999, 2**90, "9" * 90, "\ud83d", a_text(chosen), [[{}]]]
        for name in ("traceId", "spanId", "name", "startTimeUnixNano", "attributes", "kind"):
            if chosen.random() < 0.15:
                one[name] = chosen.choice(odd)
        found.append(chosen.choice(odd) if chosen.random() < 0.1 else one)
    return found


def json_value(chosen: random.Random) -> Any:
    text = chosen.choice([a_text(chosen), "half \ud800", "\udfff"])
    odd = [None, 5, text, [], {}, True, float("nan"), 2**90, -(2**70), "9" * 90]
    kinds = ["stringValue", "boolValue", "intValue", "doubleValue", "bytesValue", "arrayValue",
             "kvlistValue", "noValue"]  # fmt: skip
    return chosen.choice(
        [
            {chosen.choice(kinds): chosen.choice(odd)},
            {"stringValue": text},
            {"arrayValue": {"values": [{"stringValue": text}, chosen.choice(odd)]}},
            {"kvlistValue": {"values": [{"key": text, "value": {"stringValue": text}}]}},
            chosen.choice(odd),
        ]
    )


def json_span(found: Span) -> dict[str, Any]:
    pairs = []
    for pair in found.attributes:
        told = pair.value
        value = (
            {"boolValue": told.bool_value}
            if told.WhichOneof("value") == "bool_value"
            else {"stringValue": told.string_value}
        )
        pairs.append({"key": pair.key, "value": value})
    return {
        "traceId": found.trace_id.hex(), "spanId": found.span_id.hex(), "name": found.name,
        "startTimeUnixNano": str(found.start_time_unix_nano or START), "attributes": pairs,
    }  # fmt: skip


def as_json(good: list[Span], bad: list[Any]) -> bytes:
    items = [json_span(good[0]), *bad, json_span(good[1])]
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": items}]}]}).encode()


@pytest.mark.slow
@pytest.mark.timeout(900)  # two minutes of CPU, which a busy machine takes five for
class TestServed:
    """The same to a process, with a real store behind it."""

    def test_it_answers_and_stays_small(self, tmp_path, audit_store):
        """While bombs fall its health is told at once; its memory has a bound, and no secret is kept."""
        used: list[float] = []
        over = threading.Event()
        with serving(tmp_path, audit_store) as sink:
            process = psutil.Process(sink.process.pid)
            before = process.memory_info().rss

            def ask() -> None:
                with httpx.Client(base_url=sink.url, timeout=60) as client:
                    while not over.is_set():
                        began = sum(process.cpu_times()[:2])
                        assert client.get("/health").status_code == 200
                        # what others on this machine took is no fault of the sink
                        used.append(sum(process.cpu_times()[:2]) - began)
                        over.wait(0.01)

            asking = threading.Thread(target=ask)
            asking.start()
            most = 0
            try:
                for name, path, kind, message in bombs():
                    for coding, body in compressed(message, ("gzip",)):
                        answer = sink.client.post(
                            path, content=body, timeout=120,
                            headers={"Content-Type": kind, "Content-Encoding": coding},
                        )  # fmt: skip
                        assert answer.status_code in (200, 400, 413), (name, answer.content)
                    most = max(most, process.memory_info().rss)
                assert sink.traces(request(good_span(1, 1))).status_code == 200
            finally:
                over.set()
                asking.join()

        print(f"{len(used)} looks, the dearest {max(used) * 1e3:.0f} ms; {most - before:,} bytes")
        assert most - before < 2 * MOST_MEMORY
        assert max(used) < MOST_USED
        found = asyncio.run(_about(audit_store, "good-1-1", "hunter2"))
        assert found == (1, 0, 0)


async def _about(dsn: str, actor: str, secret: str) -> tuple[int, int, int]:
    """Count records of an actor, and records and what is in quarantine that hold a secret."""
    connection = await asyncpg.connect(dsn)
    try:
        row = await connection.fetchrow(
            "SELECT (SELECT count(*) FROM audit.audit_logs WHERE actor_id = $1),"
            "(SELECT count(*) FROM audit.audit_logs WHERE position($2 in payload::text) > 0),"
            "(SELECT count(*) FROM audit.quarantine WHERE position($2 in received) > 0)",
            actor, secret,
        )  # fmt: skip
    finally:
        await connection.close()
    return tuple(row)
