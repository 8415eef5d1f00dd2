"""The same application with us and without us: a client and the application see no difference."""

from __future__ import annotations

import asyncio
import datetime as dt
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import websockets.sync.client
from servers import Server, uvicorn
from websockets.exceptions import ConnectionClosed, InvalidStatus

pytestmark = pytest.mark.slow

PAUSE = 0.05
CHANGING = (b"date:", b"x-request-id:")


@dataclass(frozen=True)
class Pair:
    """The application as it is, and audited; and the audit store."""

    plain: Server
    audited: Server
    store: str

    def both(self, act: Any) -> tuple[Any, Any]:
        return act(self.plain), act(self.audited)


@pytest.fixture(scope="module", params=["h11", "httptools"])
def pair(request, postgres, audit_template, tmp_path_factory) -> Iterator[Pair]:
    """Both servers, over each of uvicorn's HTTP implementations."""
    directory = tmp_path_factory.mktemp("transparent")
    shutil.copy(Path(__file__).parent / "transparent_app.py", directory / "app.py")
    (directory / "data.bin").write_bytes(bytes(range(256)) * 1000)
    name = f"transparent_{uuid.uuid4().hex[:8]}"
    with ThreadPoolExecutor(1) as pool:
        create = f"CREATE DATABASE {name} TEMPLATE {audit_template}"
        pool.submit(lambda: asyncio.run(postgres.execute(create))).result()
    settings = {
        "AUDITED": "1",
        "OTEL_AUDIT_DSN": postgres.dsn(name),
        "OTEL_AUDIT_POLICY_RULES": '[{"level": "request_response"}]',
    }
    options = ("--http", request.param)
    with ExitStack() as stack:
        how = {"instrumented": False, "forked": True}
        plain = stack.enter_context(uvicorn(directory, {}, *options, **how))
        audited = stack.enter_context(uvicorn(directory, settings, *options, **how))
        plain.wait_until_up()
        audited.wait_until_up()
        yield Pair(plain, audited, postgres.dsn(name))


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def exchange(
    server: Server, raw: bytes, *more: tuple[bytes | None, bytes], is_read: bool = True
) -> list[tuple[float, bytes]]:
    """Send bytes, and more of them after an answer or a pause; return what comes back, timed.

    Unless all that is sent is read, the connection may end by a reset, behind the answer.
    """
    found = []
    with connect(server) as connection:
        connection.sendall(raw)
        began = time.monotonic()
        for awaited, part in more:
            if awaited is None:
                time.sleep(PAUSE)
            while awaited is not None and awaited not in b"".join(data for _, data in found):
                found.append((time.monotonic() - began, connection.recv(65536)))
                assert found[-1][1], f"it ended before it said {awaited!r}"
            connection.sendall(part)
        try:
            while data := connection.recv(65536):
                found.append((time.monotonic() - began, data))
        except ConnectionResetError:
            if is_read or not found:
                raise
    return found


def said(found: list[tuple[float, bytes]]) -> bytes:
    """The raw answer, chunk sizes included, but for what changes from request to request."""
    raw = b"".join(data for _, data in found)
    head, separator, body = raw.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(CHANGING)]
    return b"\r\n".join(lines) + separator + body


def ask(line: str, body: bytes = b"", **headers: str) -> bytes:
    """Spell a request after which the server closes the connection."""
    given = {"host": "shop", "connection": "close", **headers}
    if body and "transfer-encoding" not in given:
        given["content-length"] = str(len(body))
    fields = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
    return f"{line} HTTP/1.1\r\n{fields}\r\n".encode() + body


def events(server: Server, *, until: str | None = None) -> list[str]:
    """What the application has seen since it was last asked."""
    found: list[str] = []
    deadline = time.monotonic() + 60
    while True:
        found += httpx.get(f"{server.url}/events", timeout=60).json()
        if until is None or until in found or time.monotonic() > deadline:
            return found
        time.sleep(PAUSE)


@pytest.fixture(autouse=True)
def _forget(pair: Pair) -> None:
    """No test sees the events of another one."""
    pair.both(events)


JSON = {"content_type": "application/json"}
REQUESTS = {
    "echo": ask("POST /echo", b"\x00\xff tea \r\n"),
    "echo of much": ask("POST /echo", b"tea " * 100_000),
    "json": ask("POST /model?token=a&page=1", b'{"item": "tea", "password": "x"}', **JSON),
    "invalid json": ask("POST /model", b'{"item": ', **JSON),
    "body that nobody reads": ask("POST /unread", b"x" * 50_000),
    "body that is read twice": ask("POST /twice", b"x" * 50_000),
    "empty body": ask("POST /echo"),
    "stream": ask("POST /stream"),
    "server-sent events": ask("POST /sse"),
    "stream that breaks": ask("POST /breaks"),
    "HTTP/1.0 stream": b"POST /stream HTTP/1.0\r\nhost: shop\r\n\r\n",
    "file": ask("GET /file"),
    "head of a file": ask("HEAD /file"),
    "range": ask("GET /file", range="bytes=10-29"),
    "ranges that cannot be": ask("GET /file", range="bytes=999999999-"),
    "204": ask("POST /nothing"),
    "304": ask("POST /unchanged"),
    "repeated headers": ask("POST /twins"),
    "gzip": ask("POST /big", accept_encoding="gzip"),
    "not gzip": ask("POST /big"),
    "exception": ask("POST /raises"),
    "404": ask("POST /no/such/thing"),
    "405": ask("PUT /echo", b"x"),
    "mounted": ask("POST /inner/echo/tea", b"{}", **JSON),
    "background task": ask("POST /later"),
    "bad request": b"POST /echo HTTP/1.1\r\nbroken\r\n\r\n",
}


class TestBytes:
    @pytest.mark.parametrize("name", REQUESTS)
    def test_each_byte_and_each_chunk_is_the_same(self, pair, name):
        """Status line, headers, chunk sizes, body and the end of the connection are the same."""
        plain, audited = pair.both(lambda server: exchange(server, REQUESTS[name]))
        assert said(audited) == said(plain)
        assert said(plain)

    def test_a_request_in_pieces(self, pair):
        """The handler gets each piece of a chunked upload when it comes, and may answer it."""
        head = ask("POST /pieces", transfer_encoding="chunked")
        pieces = [(None, part) for part in (b"3\r\nabc\r\n", b"4\r\nDEFg\r\n", b"0\r\n\r\n")]
        # on a busy machine two of them may come together to one of the servers, but not each time
        for _ in range(10):
            plain, audited = pair.both(lambda server: exchange(server, head, *pieces))
            if said(audited) == said(plain):
                break
        assert said(audited) == said(plain)

    @pytest.mark.parametrize(("path", "invited"), [("/echo", True), ("/unread", False)])
    def test_expect_100_continue(self, pair, path, invited):
        """The server invites the body only if the handler asks for it: we ask for nothing."""
        head = ask(f"POST {path}", expect="100-continue", content_length="3")
        awaited = b"100 Continue\r\n\r\n" if invited else None
        plain, audited = pair.both(
            lambda server: exchange(server, head, (awaited, b"tea"), is_read=invited)
        )
        raw = [b"".join(data for _, data in found) for found in (plain, audited)]
        assert [answer.startswith(b"HTTP/1.1 100") for answer in raw] == [invited, invited]

    def test_the_request_id_is_the_one_header_we_add(self, pair):
        """It is there, once, and it is the one thing that is."""
        plain, audited = pair.both(lambda server: exchange(server, REQUESTS["echo"]))
        heads = [
            b"".join(d for _, d in found).partition(b"\r\n\r\n")[0] for found in (plain, audited)
        ]
        fields = [
            {line.partition(b":")[0].lower() for line in head.split(b"\r\n")} for head in heads
        ]
        assert fields[1] - fields[0] == {b"x-request-id"}

    def test_the_connection_stays_usable(self, pair):
        """Keep-alive: many requests over one connection, each answered in turn."""

        def several(server: Server) -> list[bytes]:
            with httpx.Client(base_url=server.url, timeout=60) as client:
                return [client.post("/echo", content=b"%d" % n).content for n in range(20)]

        plain, audited = pair.both(several)
        assert audited == plain == [b"%d" % n for n in range(20)]


class TestTime:
    @pytest.mark.parametrize("path", ["/stream", "/sse"])
    def test_chunks_arrive_when_they_are_made(self, pair, path):
        """The first line is there long before the last one: nothing waits for the end."""

        def arrivals(server: Server) -> list[float]:
            times, seen = [], 0
            for moment, data in exchange(server, ask(f"POST {path}")):
                lines = data.count(b"line ")
                times += [moment] * lines
                seen += lines
            return times

        def apart(server: Server) -> list[list[float]]:
            """A busy machine may let them arrive together, but not time and again."""
            tries = []
            for _ in range(10):
                tries.append(times := arrivals(server))
                assert len(times) >= 3
                if times[-1] - times[0] > PAUSE * (len(times) - 1) * 0.5:
                    return []
            return tries

        assert pair.both(apart) == ([], [])


class TestEvents:
    @pytest.mark.parametrize("name", ["stream", "server-sent events", "stream that breaks"])
    def test_a_streams_events_come_in_the_same_order(self, pair, name):
        """What the generator sees of its own run is the same."""
        plain, audited = pair.both(
            lambda server: (exchange(server, REQUESTS[name]), events(server))[1]
        )
        assert audited == plain

    def test_a_background_task_runs_after_the_answer(self, pair):
        """The client does not wait for it, and it runs to its end."""
        plain, audited = pair.both(
            lambda server: (exchange(server, REQUESTS["background task"]),
                            events(server, until="worked"))[1]
        )  # fmt: skip
        assert audited == plain == ["answered", "worked"]

    def test_a_reader_that_goes_ends_the_stream(self, pair):
        """The generator is cut off, as it is without us."""

        def leave(server: Server) -> list[str]:
            with connect(server) as connection:
                connection.sendall(ask("POST /endless"))
                seen = b""
                while b"line 1" not in seen:
                    seen += connection.recv(1024)
            found = events(server, until="cut off")
            return list(dict.fromkeys(found))

        plain, audited = pair.both(leave)
        assert audited == plain
        assert plain[-1] == "cut off"

    def test_a_handler_learns_that_the_client_has_gone(self, pair):
        """The disconnect reaches whoever asks for it."""

        def leave(server: Server) -> list[str]:
            with connect(server) as connection:
                connection.sendall(ask("POST /waits"))
                time.sleep(PAUSE * 2)
            return events(server, until="the client has gone")

        plain, audited = pair.both(leave)
        assert audited == plain == ["waits", "the client has gone"]


class TestSockets:
    def test_messages_and_the_close_are_the_same(self, pair):
        """Subprotocol, headers, texts, bytes, code and reason."""

        def talk(server: Server) -> tuple[Any, ...]:
            url = server.url.replace("http", "ws") + "/socket"
            with websockets.sync.client.connect(url, subprotocols=["tea"]) as client:
                client.send("one")
                got = [client.recv(), client.recv()]
                client.send("bye")
                with pytest.raises(ConnectionClosed) as closed:
                    client.recv()
            headers = {name.lower() for name in client.response.headers}
            return got, client.subprotocol, headers - {"x-request-id"}, closed.value.rcvd

        plain, audited = pair.both(talk)
        assert audited == plain
        assert plain[0] == ["ONE", b"one"]

    def test_the_application_learns_how_the_client_left(self, pair):
        """The close code reaches the handler."""

        def leave(server: Server) -> list[str]:
            url = server.url.replace("http", "ws") + "/socket"
            with websockets.sync.client.connect(url, subprotocols=["tea"]) as client:
                client.close(4002)
            return events(server, until="disconnect 4002")

        plain, audited = pair.both(leave)
        assert audited == plain == ["disconnect 4002"]

    def test_a_refusal_is_the_same(self, pair):
        """A socket that is not accepted is answered with 403."""

        def refused(server: Server) -> int:
            url = server.url.replace("http", "ws") + "/refused"
            with pytest.raises(InvalidStatus) as refusal, websockets.sync.client.connect(url):
                pass
            return refusal.value.response.status_code

        assert pair.both(refused) == (403, 403)


STORED = {
    "gzip": "/big",
    "stream": "/stream",
    "mounted": "/inner/echo/tea",
    "body that nobody reads": "/unread",
    "file": "/file",
    "stream that breaks": "/breaks",
}


class TestRecords:
    async def test_what_was_observed_is_in_the_store(self, pair):
        """Each of these exchanges is a row, with the bodies as the handlers had them."""
        began = dt.datetime.now(dt.UTC)
        for name in STORED:
            await asyncio.to_thread(exchange, pair.audited, REQUESTS[name])
        rows = await self.rows(pair.store, began)
        assert '"_original_size":80011' in rows["/big"]["payload"]
        assert '"content_encoding"' not in rows["/big"]["payload"]
        assert rows["/stream"]["outcome"] == "success"
        assert "line 4" in rows["/stream"]["payload"]
        assert rows["/inner/echo/tea"]["http_route"] == "/inner/echo/{name}"
        assert '"absent":"not_read"' in rows["/unread"]["payload"]
        assert '"_binary":true' in rows["/file"]["payload"]
        assert (rows["/breaks"]["outcome"], rows["/breaks"]["status_code"]) == ("failure", 200)
        assert "not recorded in full" not in pair.audited.output

    async def rows(self, store: str, since: dt.datetime) -> dict[str, asyncpg.Record]:
        connection = await asyncpg.connect(store)
        found: dict[str, asyncpg.Record] = {}
        try:
            for _ in range(600):
                rows = await connection.fetch(
                    "SELECT * FROM audit.audit_logs WHERE occurred_at >= $1", since
                )
                found = {row["url_path"]: row for row in rows}
                if set(STORED.values()) <= found.keys():
                    return found
                await asyncio.sleep(0.1)
        finally:
            await connection.close()
        raise AssertionError(sorted(found))
