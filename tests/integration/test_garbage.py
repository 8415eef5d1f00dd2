"""An action that is over is freed at once: nothing of it waits for the garbage collector."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import uvicorn
from fastapi import BackgroundTasks, FastAPI, HTTPException, WebSocket
from fastapi.responses import StreamingResponse
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from ports import free_port
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from websockets.sync.client import connect

import otel_audit
from otel_audit import AuditConfig, Rule

TIMES = 20
"""Requests that are looked at together: what is left of each is there as often."""


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str]


def make_shop(database: str, file: Path) -> tuple[FastAPI, list[Any]]:
    """An application that does each thing in a way of its own, and its engines."""
    engine = create_async_engine(database.replace("postgresql://", "postgresql+asyncpg://"))
    blocking = create_engine(f"sqlite:///{file}")
    Base.metadata.create_all(blocking)
    sessions = async_sessionmaker(engine)
    app = FastAPI()
    app.state.later = []

    add_answers(app)
    add_writes(app, sessions, blocking)
    FastAPIInstrumentor.instrument_app(app, tracer_provider=TracerProvider())
    return app, [engine, blocking]


def add_answers(app: FastAPI) -> None:
    @app.get("/json")
    async def plain() -> dict[str, list[int]]:
        return {"items": [1, 2, 3]}

    @app.get("/quiet/{number}")
    async def quiet(number: int) -> int:
        return number

    @app.get("/missing")
    async def missing() -> None:
        raise HTTPException(404)

    @app.get("/failing")
    async def failing() -> None:
        raise RuntimeError("a fault of the application's own")

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(50):
                yield b"x" * 65_536

        return StreamingResponse(chunks())

    @app.websocket("/socket")
    async def talk(opened: WebSocket) -> None:
        await opened.accept()
        await opened.send_text(await opened.receive_text())
        await opened.close()


def add_writes(app: FastAPI, sessions: Any, blocking: Any) -> None:
    async def write(note: str) -> None:
        async with sessions() as session:
            session.add(Order(note=note))
            await session.commit()

    @app.post("/async")
    async def write_async(order: dict[str, str]) -> dict[str, str]:
        await write(order["note"])
        return order

    @app.post("/sync")
    def write_sync(order: dict[str, str]) -> dict[str, str]:
        with Session(blocking) as session:
            session.add(Order(note=order["note"]))
            session.commit()
        return order

    @app.post("/undone")
    async def undone() -> None:
        async with sessions() as session:
            session.add(Order(note="undone"))
            await session.flush()
            await session.rollback()

    @app.post("/background")
    async def background(tasks: BackgroundTasks) -> None:
        tasks.add_task(write, "thank you")

    @app.post("/outlived")
    async def outlived() -> None:
        """Its transaction ends after it."""
        session = sessions()
        session.add(Order(note="late"))
        await session.flush()

        async def commit() -> None:
            await session.commit()
            await session.close()

        app.state.later.append(asyncio.create_task(commit()))

    @app.post("/by-hand")
    async def by_hand() -> None:
        async with otel_audit.audit("order.checked", target=("order", "7")) as action:
            await write("checked")
        otel_audit.emit("order.seen", metadata={"during": action.action_id})


class Served:
    """The application under uvicorn, in a thread of this process."""

    def __init__(self, app: FastAPI, engines: list[Any]) -> None:
        self.app = app
        self.port = free_port()
        self._engines = engines
        config = uvicorn.Config(app, port=self.port, log_level="critical", access_log=False)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        async def serve() -> None:
            async with self._engines[0].begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
            await self._server.serve()
            await self._engines[0].dispose()

        asyncio.run(serve())

    def __enter__(self) -> Self:
        self._thread.start()
        _wait_until(lambda: self._server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._engines[1].dispose()

    def settle(self) -> None:
        """Wait until all that was asked is over, and stored."""
        state = self._server.server_state
        _wait_until(lambda: not state.connections and not state.tasks)
        later = self.app.state.later
        _wait_until(lambda: all(task.done() for task in later))
        later.clear()
        assert otel_audit.flush(60)

    def left_by(self, ask: Callable[[int], None]) -> Counter[str]:
        """What `TIMES` requests leave to the garbage collector, by type."""
        for _ in range(3):
            ask(self.port)
        self.settle()
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(TIMES):
                ask(self.port)
            self.settle()
            gc.collect()
            return Counter(_name(type(one)) for one in gc.garbage)
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def asking(method: str, path: str, body: Any = None) -> Callable[[int], None]:
    def ask(port: int) -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            sent = None if body is None else json.dumps(body)
            connection.request(method, path, sent, {"Content-Type": "application/json"})
            connection.getresponse().read()

    return ask


def hang_up(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /stream HTTP/1.1\r\nHost: shop\r\n\r\n")
        connection.recv(1)


def talk(port: int) -> None:
    with connect(f"ws://127.0.0.1:{port}/socket") as opened:
        opened.send("hello")
        opened.recv()


WAYS = {
    "a row by an async session": asking("POST", "/async", {"note": "one"}),
    "a row by a blocking session": asking("POST", "/sync", {"note": "one"}),
    "a rollback": asking("POST", "/undone"),
    "an answer": asking("GET", "/json"),
    "an answer at level none": asking("GET", "/quiet/1"),
    "no such path": asking("GET", "/nowhere"),
    "an HTTP error": asking("GET", "/missing"),
    "an exception": asking("GET", "/failing"),
    "a stream": asking("GET", "/stream"),
    "a client that hangs up": hang_up,
    "a background task": asking("POST", "/background"),
    "a transaction that outlives it": asking("POST", "/outlived"),
    "actions by hand": asking("POST", "/by-hand"),
    "a WebSocket": talk,
}


@pytest.fixture(scope="module")
def unaudited(audit_server, tmp_path_factory) -> Iterator[dict[str, Counter[str]]]:
    """What the application leaves by itself."""
    with audit_server.database("template1") as dsn:
        made = make_shop(dsn, tmp_path_factory.mktemp("own") / "shop.db")
        with Served(*made) as served:
            yield {way: served.left_by(ask) for way, ask in WAYS.items()}


@pytest.fixture
def audited(database, audit_store, tmp_path) -> Iterator[Served]:
    """The application, recorded in full but for one path."""
    app, engines = make_shop(database, tmp_path / "shop.db")
    rules = (Rule("none", paths=("/quiet/**",)), Rule("request_response", paths=("/**",)))
    config = AuditConfig(dsn=audit_store, batch_interval=0.01, policy_rules=rules)
    otel_audit.instrument(app, app_engine=engines, config=config)
    try:
        with Served(app, engines) as served:
            yield served
    finally:
        otel_audit.uninstrument()


@pytest.mark.slow
def test_what_is_over_is_freed_at_once(unaudited, audited):
    """Each request leaves to the garbage collector what it leaves without us, and nothing of ours."""
    more = {way: _always_left(audited, ask, unaudited[way]) for way, ask in WAYS.items()}
    assert {way: found for way, found in more.items() if found} == {}


def _always_left(
    audited: Served, ask: Callable[[int], None], by_itself: Counter[str]
) -> Counter[str]:
    """What is left each time, and once a request.

    asyncio leaves the transport of a socket or not, as it happens to be closed, and with each all
    that it holds. So where more is left, it is looked at again.
    """
    always = audited.left_by(ask) - by_itself
    for _ in range(3):
        if not _once_a_request(always):
            break
        always &= audited.left_by(ask) - by_itself
    return _once_a_request(always)


def _once_a_request(left: Counter[str]) -> Counter[str]:
    return Counter({name: n for name, n in left.items() if n >= TIMES})
