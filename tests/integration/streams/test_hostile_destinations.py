"""Destinations that answer with whatever does harm: a stream waits, and loses nothing."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from integration.streams.conftest import running, until
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from otel_audit_postgres import stream_positions
from otlp_receiver import Answer
from ports import free_port
from stream_receiver import receiving

from otel_audit.streams import webhook as webhook_module
from otel_audit.streams.destination import DestinationError
from otel_audit.streams.file import FileDestination

PROTOBUF = {"content-type": "application/x-protobuf"}
REST = b"x" * 65_536


async def _for_ever(writer, text: bytes, pause: float = 0.0) -> None:
    while True:
        writer.write(text)
        await writer.drain()
        await asyncio.sleep(pause)


async def endless_head(writer):
    writer.write(b"HTTP/1.1 200 OK\r\n")
    await _for_ever(writer, b"X-More: " + b"y" * 1000 + b"\r\n")


async def endless_body(writer):
    writer.write(b"HTTP/1.1 503 Come again\r\nContent-Type: text/html\r\n\r\n")
    await _for_ever(writer, REST)


async def endless_chunks(writer):
    writer.write(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n")
    await _for_ever(writer, b"10000\r\n" + REST + b"\r\n")


async def a_byte_now_and_then(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    await _for_ever(writer, b"x", 0.05)


async def one_line_at_a_time(writer):
    await _for_ever(writer, b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.01)


async def what_is_no_http(writer):
    writer.write(b"220 mail.example.com ESMTP\r\n\x00\xff\xfe")


async def nothing_at_all(writer):
    writer.close()


async def less_than_promised(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort")
    writer.close()


async def another_protocol(writer):
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n")


async def two_lengths(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx")


async def a_bomb(writer):
    writer.write(
        b"HTTP/1.1 429 No\r\nContent-Encoding: gzip\r\nRetry-After: 0\r\nContent-Length: 3\r\n\r\nxyz"
    )


async def to_the_machine_itself(writer):
    where = b"http://169.254.169.254/latest/meta-data/"
    writer.write(b"HTTP/1.1 307 Here\r\nLocation: " + where + b"\r\nContent-Length: 0\r\n\r\n")


HOSTILE = [
    endless_head, endless_body, endless_chunks, a_byte_now_and_then, one_line_at_a_time,
    what_is_no_http, nothing_at_all, less_than_promised, another_protocol, two_lengths, a_bomb,
    to_the_machine_itself,
]  # fmt: skip


@asynccontextmanager
async def misbehaving(how: Callable, port: int) -> AsyncIterator[None]:
    async def serve(reader, writer):
        try:
            await reader.readuntil(b"\r\n\r\n")
            await how(writer)
            await writer.drain()
            await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()


@pytest.mark.parametrize("kind", ["otlp", "webhook"])
@pytest.mark.parametrize("how", HOSTILE)
async def test_no_answer_ends_a_stream_or_moves_it(log, stream_to, connection, how, kind):
    """It fails, says so, and sends the same events to whoever behaves afterwards."""
    port = free_port()
    await log.write(3)
    await log.seal()
    lines = (
        ('kind = "otlp"', f'endpoint = "http://127.0.0.1:{port}"')
        if kind == "otlp"
        else (
            'kind = "webhook"', f'url = "http://127.0.0.1:{port}/"',
            'secret_env = ["HOOK_SECRET"]', "allow_private = true",
        )
    )  # fmt: skip
    stream = stream_to(*lines, "timeout = 0.3")
    async with running(stream) as task:
        async with misbehaving(how, port):
            await until(lambda: stream.progress.failures >= 1)
            assert (await stream_positions.position(connection, "siem")).next_leaf == 0
        with receiving(port) as receiver:
            await until(lambda: {0, 1, 2} <= set(receiver.leaves))
        assert not task.done()
    assert stream.progress.parked == 0
    assert not await stream_positions.parked(connection, "siem")


@pytest.mark.parametrize(
    "message", ["a\x00b", "\x1b[2J\u202e", "x" * 100_000, "\\u0000", "\"}]'; DROP TABLE x; --"]
)
async def test_the_words_of_a_refusal_end_no_stream(log, stream_to, receiver, connection, message):
    """They are kept as visible text, in short, whatever they are."""
    await log.write(2)
    await log.seal()

    def decide(asked):
        said = ExportLogsServiceResponse()
        said.partial_success.rejected_log_records = 1
        said.partial_success.error_message = message
        # an answer has 64 KiB at the most, and what is cut there is no answer
        body = said.SerializeToString()
        return Answer(body=body, headers=PROTOBUF) if len(body) < 60_000 else Answer(
            status=422, body=message.encode()
        )  # fmt: skip

    receiver.decide = decide
    await stream_to('kind = "otlp"', f'endpoint = "{receiver.url}"').run_once()
    parked = await stream_positions.parked(connection, "siem")
    assert [one.leaf for one in parked] == [0, 1]
    assert all(one.reason.isprintable() and len(one.reason) <= 2000 for one in parked)


async def test_a_name_that_changes_what_it_means(log, stream_to, receiver, monkeypatch):
    """Public when it is looked up first, private later: nothing is sent there then."""
    asked = iter(["203.0.113.9", "127.0.0.1"])  # the first is public in this test alone
    monkeypatch.setattr(webhook_module, "is_public", lambda one: str(one) == "203.0.113.9")

    async def resolved(host, port):
        return [ipaddress.ip_address(next(asked))]

    monkeypatch.setattr(webhook_module, "resolved", resolved)
    await log.write(1)
    await log.seal()
    stream = stream_to(
        'kind = "webhook"', f'url = "https://hooks.example.com:{receiver.url.rpartition(":")[2]}/"',
        'secret_env = ["HOOK_SECRET"]', "timeout = 0.2",
    )  # fmt: skip
    with pytest.raises(DestinationError, match="no answer|no connection"):
        await stream.run_once()
    with pytest.raises(DestinationError, match=r"is 127\.0\.0\.1, which is not a public address"):
        await stream.run_once()
    assert receiver.asked == []


async def test_a_name_that_is_looked_up_for_ever(log, stream_to, monkeypatch):
    """A resolver that hangs is given up like a destination that does."""

    async def resolved(host, port):
        await asyncio.Event().wait()

    monkeypatch.setattr(webhook_module, "resolved", resolved)
    await log.write(1)
    await log.seal()
    stream = stream_to(
        'kind = "webhook"', 'url = "https://hooks.example.com/"', 'secret_env = ["HOOK_SECRET"]',
        "timeout = 0.2",
    )  # fmt: skip
    with pytest.raises(DestinationError, match="is not looked up within 0.2 s"):
        await stream.run_once()


async def test_a_name_beyond_ascii_is_looked_up_as_it_is_registered(log, stream_to, monkeypatch):
    """And so it stands in the certificate that is asked for."""
    names = []

    async def resolved(host, port):
        names.append(host)
        raise DestinationError("that is enough")

    monkeypatch.setattr(webhook_module, "resolved", resolved)
    await log.write(1)
    await log.seal()
    stream = stream_to(
        'kind = "webhook"', 'url = "https://b\u00fccher.example/"', 'secret_env = ["HOOK_SECRET"]'
    )
    with pytest.raises(DestinationError, match="enough"):
        await stream.run_once()
    assert names == ["xn--bcher-kva.example"]


@pytest.mark.allow_errors
async def test_a_fault_of_ours_holds_up_no_other_stream(
    log, stream_to, tmp_path, monkeypatch, caplog
):
    """It is said to be ours, counted, and tried again; nothing moves meanwhile."""
    path = tmp_path / "out.ndjson"
    await log.write(2)
    await log.seal()
    send = FileDestination.send
    faults = [KeyError("what nobody foresaw")]

    async def faulty(self, events):
        if faults:
            raise faults.pop()
        return await send(self, events)

    monkeypatch.setattr(FileDestination, "send", faulty)
    stream = stream_to('kind = "file"', f'path = "{path}"')
    async with running(stream) as task:
        await until(lambda: stream.progress.sent >= 2)
        assert not task.done()
    assert stream.progress.failures == 1
    assert "a fault of otel-audit (KeyError)" in caplog.text
