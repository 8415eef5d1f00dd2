"""Calls over gRPC: who calls is known before anything of the message is read or decompressed."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import grpc
import pytest
from memory_store import MemoryStore
from ports import free_port
from sinks import request, span

from otel_audit.config import AuditConfig
from otel_audit.server import grpc_message, grpc_server
from otel_audit.server import service as service_module
from otel_audit.server.authentication import Authentication
from otel_audit.server.backpressure import MemoryBudget, MemoryLease
from otel_audit.server.credentials import CredentialsFile, new_token
from otel_audit.server.grpc_server import GrpcListening, GrpcServer
from otel_audit.server.metrics import ServerMetrics
from otel_audit.server.service import Service

METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
LIMIT = 1 << 20


class Calls:
    """A sink with gRPC, and one channel to it."""

    def __init__(self, service: Service, channel: grpc.aio.Channel, token: str) -> None:
        self.service = service
        self.own = (("authorization", f"Bearer {token}"),)
        self.unary = channel.unary_unary(METHOD)
        self.stream = channel.stream_unary(METHOD)

    async def status(self, call: grpc.aio.Call) -> str:
        try:
            await asyncio.wait_for(call, 20)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"


@asynccontextmanager
async def calls_to(tmp_path, store: MemoryStore, **settings: object) -> AsyncIterator[Calls]:
    token, lines = new_token("one")
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(lines)
    tokens.chmod(0o600)
    config = AuditConfig(serve_tokens_file=tokens, **settings)
    access = Authentication(CredentialsFile(tokens), False, "no")
    service = Service(config, access, lambda: store, ServerMetrics())
    service.intake.start()
    port = free_port()
    server = GrpcServer(service, GrpcListening("127.0.0.1", port))
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Calls(service, channel, token)
    finally:
        await server.stop(0)
        await service.intake.stop(1)


async def nothing() -> AsyncIterator[bytes]:
    return
    yield b""


async def until(holds) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.01)


async def test_who_has_no_token_takes_no_call_from_others(tmp_path):
    """Calls that send their headers only: each is answered at once."""
    async with calls_to(tmp_path, MemoryStore()) as calls:
        strangers = [calls.stream() for _ in range(300)]
        statuses = [await calls.status(one) for one in strangers]
        assert set(statuses) == {"UNAUTHENTICATED"}
        assert await calls.status(calls.unary(b"", metadata=calls.own)) == "OK"


async def test_a_message_that_does_not_come_ends_its_call(tmp_path):
    async with calls_to(tmp_path, MemoryStore(), serve_body_timeout=0.3) as calls:
        silent = calls.stream(metadata=calls.own)
        assert await calls.status(silent) == "UNAVAILABLE"
        assert await calls.status(calls.unary(b"", metadata=calls.own)) == "OK"
        assert not calls.service.budget._requests


async def test_one_sender_has_so_many_calls_and_others_have_theirs(tmp_path, monkeypatch):
    monkeypatch.setattr("otel_audit.server.backpressure.MOST_REQUESTS", 5)
    async with calls_to(tmp_path, MemoryStore()) as calls:
        silent = [calls.stream(metadata=calls.own) for _ in range(5)]
        await until(lambda: calls.service.budget._requests["token:one"] == 5)
        assert await calls.status(calls.unary(b"", metadata=calls.own)) == "RESOURCE_EXHAUSTED"
        for one in silent:
            one.cancel()
        await until(lambda: not calls.service.budget._requests)
        assert await calls.status(calls.unary(b"", metadata=calls.own)) == "OK"


async def test_so_many_messages_of_a_sender_are_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(grpc_server, "_READ_AT_ONCE", 2)
    async with calls_to(tmp_path, MemoryStore()) as calls:
        silent = [calls.stream(metadata=calls.own) for _ in range(2)]
        await until(lambda: calls.service.budget._requests["token:one"] == 2)
        waits = asyncio.ensure_future(calls.status(calls.unary(b"", metadata=calls.own)))
        await until(lambda: calls.service.budget._requests["token:one"] == 3)
        await asyncio.sleep(0.1)
        assert not waits.done()
        silent[0].cancel()
        assert await waits == "OK"
        silent[1].cancel()


async def test_a_call_without_a_message_is_answered(tmp_path):
    """gRPC's own unary handler never answered it."""
    async with calls_to(tmp_path, MemoryStore()) as calls:
        call = calls.stream(nothing(), metadata=calls.own)
        assert await calls.status(call) == "INVALID_ARGUMENT"


async def test_only_the_first_message_is_read(tmp_path):
    """As gRPC does for a unary call."""

    async def two() -> AsyncIterator[bytes]:
        yield request(span(1))
        yield request(span(2))

    store = MemoryStore()
    async with calls_to(tmp_path, store) as calls:
        assert await calls.status(calls.stream(two(), metadata=calls.own)) == "OK"
    assert len(store.records) == 1


@pytest.mark.parametrize("coding", list(grpc.Compression))
async def test_each_compression_of_grpc_is_read(tmp_path, coding):
    store = MemoryStore()
    body = request(*(span(number) for number in range(1, 50)))
    async with calls_to(tmp_path, store) as calls:
        call = calls.unary(body, metadata=calls.own, compression=coding)
        assert await calls.status(call) == "OK"
        assert await calls.status(calls.unary(b"", metadata=calls.own, compression=coding)) == "OK"
    assert len(store.records) == 49


@pytest.mark.parametrize("coding", list(grpc.Compression))
async def test_what_is_too_large_has_the_status_that_grpc_gives(tmp_path, coding):
    async with calls_to(tmp_path, MemoryStore(), serve_max_message_bytes=LIMIT) as calls:
        call = calls.unary(bytes(LIMIT + 1), metadata=calls.own, compression=coding)
        assert await calls.status(call) == "RESOURCE_EXHAUSTED"


@pytest.fixture
def inflations(monkeypatch) -> Iterator[list[int]]:
    """What was given to be decompressed."""
    found: list[int] = []
    gunzipped = grpc_message.gunzipped

    def noted(sent: bytes) -> Iterator[bytes]:
        for part in gunzipped(sent):
            found.append(len(part))
            yield part

    monkeypatch.setattr(grpc_message, "gunzipped", noted)
    return found


async def test_nothing_is_decompressed_for_who_has_no_token(tmp_path, inflations):
    async with calls_to(tmp_path, MemoryStore()) as calls:
        call = calls.unary(bytes(8 << 20), compression=grpc.Compression.Gzip)
        assert await calls.status(call) == "UNAUTHENTICATED"
    assert not inflations


async def test_what_a_message_becomes_is_accounted_for_step_by_step(tmp_path, inflations):
    """A bomb ends where the memory of the requests under way ends, not at its own end."""
    async with calls_to(tmp_path, MemoryStore(), serve_max_in_flight_bytes=4 << 20) as calls:
        lease = calls.service.budget.lease("token:one")
        with lease:
            lease.grow_to(1 << 20)
            bomb = bytes(16 << 20)
            call = calls.unary(bomb, metadata=calls.own, compression=grpc.Compression.Gzip)
            assert await calls.status(call) == "RESOURCE_EXHAUSTED"
    assert sum(inflations) < 4 << 20


async def test_a_refused_call_keeps_nothing_until_the_garbage_collector_runs(tmp_path, monkeypatch):
    """What was decompressed would stay: the server collects seldom."""
    leases: list[weakref.ref[MemoryLease]] = []

    class Noted(MemoryLease):
        def __init__(self, budget: MemoryBudget, sender: str) -> None:
            super().__init__(budget, sender)
            leases.append(weakref.ref(self))

    monkeypatch.setattr("otel_audit.server.backpressure.MemoryLease", Noted)
    async with calls_to(tmp_path, MemoryStore(), serve_max_message_bytes=LIMIT) as calls:
        gc.disable()
        try:
            body = bytes(LIMIT + 1)
            call = calls.unary(body, metadata=calls.own, compression=grpc.Compression.Gzip)
            assert await calls.status(call) == "RESOURCE_EXHAUSTED"
            await until(lambda: leases[0]() is None)
        finally:
            gc.enable()


async def test_a_senders_credit_of_inflation_is_for_grpc_too(tmp_path):
    many = {"serve_max_in_flight_bytes": 1 << 30}
    async with calls_to(tmp_path, MemoryStore(), **many) as calls:
        bomb = bytes(30 << 20)
        statuses = []
        for _ in range(4):
            call = calls.unary(bomb, metadata=calls.own, compression=grpc.Compression.Gzip)
            statuses.append(await calls.status(call))
    assert statuses[0] == "INVALID_ARGUMENT"  # zeros are no request
    assert statuses[-1] == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("damage", [lambda sent: sent[:-6], lambda sent: sent[:2] + b"\xff" * 9])
@pytest.mark.parametrize("wbits", [zlib.MAX_WBITS, zlib.MAX_WBITS | 16])
async def test_what_is_compressed_wrongly_is_refused_for_good(tmp_path, damage, wbits):
    made = zlib.compressobj(wbits=wbits)
    sent = made.compress(request(span(1))) + made.flush()
    async with calls_to(tmp_path, MemoryStore()) as calls:
        call = calls.unary(damage(sent), metadata=calls.own)
        assert await calls.status(call) == "INVALID_ARGUMENT"


async def test_a_cancelled_calls_thread_is_the_only_one_that_reads(tmp_path, monkeypatch):
    """Its turn and its memory are given back after the thread has ended, not before."""
    go_on, reading = threading.Event(), []

    def slow(self: service_module._Taking, decode) -> None:
        reading.append(threading.get_ident())
        go_on.wait(20)
        reading.pop()

    monkeypatch.setattr(service_module._Taking, "_read_large", slow)
    large = request(span(1, **{f"x{n}": "k=v " * 20_000 for n in range(20)}))
    async with calls_to(tmp_path, MemoryStore()) as calls:
        late = calls.unary(large, metadata=calls.own)
        await until(lambda: reading)
        late.cancel()
        small = asyncio.ensure_future(
            calls.status(calls.unary(request(span(2)), metadata=calls.own))
        )
        await asyncio.sleep(0.2)
        assert calls.service.budget.taken >= len(large)
        assert not small.done()
        go_on.set()
        assert await small == "OK"
        await until(lambda: not calls.service.budget.taken)
    assert not reading
