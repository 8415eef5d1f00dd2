"""Clients that remember what they saw answered, and the comparison of that with what is stored."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import httpx
import psutil
from acceptance.servers import Server, uvicorn

from otel_audit._util.ids import uuid7

APP = """
import asyncio
import contextlib
import os
import threading
import time
from fastapi import FastAPI, Request

lag = {"longest": 0.0, "turns": 0}
ticks = 0

def tick():
    global ticks
    while True:
        time.sleep(0.05)
        ticks += 1

async def turn():
    while True:
        began, ticked = time.perf_counter(), ticks
        await asyncio.sleep(0.005)
        took = time.perf_counter() - began - 0.005
        # a machine that stands still stops the other thread too; what holds up the loop does not
        lag["longest"] = max(lag["longest"], min(took, (ticks - ticked + 1) * 0.05))
        lag["turns"] += 1

@contextlib.asynccontextmanager
async def watched(app):
    threading.Thread(target=tick, daemon=True).start()
    watching = asyncio.create_task(turn())
    yield
    watching.cancel()

app = FastAPI(lifespan=watched)
journal = os.open("journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

@app.get("/up")
def up():
    return "up"

@app.post("/orders", status_code=201)
async def create(order: dict, request: Request):
    # what really happened, whatever becomes of this process
    name = request.headers["x-request-id"]
    os.write(journal, f"begun {name}\\n".encode())
    await asyncio.sleep(float(os.environ.get("WORK", "0.002")))
    os.write(journal, f"done {name}\\n".encode())
    return order

@app.get("/lag")
async def look():
    return lag
"""
CLIENTS = 6


class Load:
    """Clients that place orders as fast as they are answered, and remember which were."""

    def __init__(self, url: str, clients: int = CLIENTS) -> None:
        self.answered: set[str] = set()
        self.cut_off: set[str] = set()
        self.refused: set[str] = set()
        self.slowest = 0.0
        self._url = url
        self._clients = clients
        self._stopped = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        clients = [asyncio.create_task(self._place_orders(n)) for n in range(self._clients)]
        try:
            yield self
        finally:
            self._stopped = True
            await asyncio.gather(*clients)

    async def until_answered(self, count: int) -> None:
        """Wait until so many were answered: a busy machine takes its time."""
        until = time.monotonic() + 60
        while len(self.answered) < count:
            assert time.monotonic() < until, f"only {len(self.answered)} were answered"
            await asyncio.sleep(0.002)

    async def until_more(self, count: int = 50) -> None:
        """Wait until so many more were answered."""
        await self.until_answered(len(self.answered) + count)

    async def _place_orders(self, client_number: int) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=30) as client:
            for number in range(1_000_000):
                if self._stopped:
                    return
                await self._place_order(client, f"order-{client_number}-{number}-{uuid7()}")

    async def _place_order(self, client: httpx.AsyncClient, name: str) -> None:
        began = time.monotonic()
        try:
            answer = await client.post(
                "/orders", json={"item": "tea"}, headers={"X-Request-ID": name}
            )
        except httpx.TransportError:
            self.cut_off.add(name)
            await asyncio.sleep(0.05)
            return
        self.slowest = max(self.slowest, time.monotonic() - began)
        (self.answered if answer.status_code == 201 else self.refused).add(name)


@dataclass(frozen=True)
class Verdict:
    """What clients and the application's own journal say, against what is stored.

    Attributes:
        answered: Actions that a client saw answered.
        lost: Those of them that are not stored.
        twice: Actions with more than one row.
        cut_down: Actions that the application had begun, and never ended.
        untold: Those of them that are not stored with outcome ``unknown``, and those that ended
            unseen by a client and are not stored at all.
        invented: Rows of actions that nobody asked for.
    """

    answered: frozenset[str]
    lost: frozenset[str]
    twice: frozenset[str]
    cut_down: frozenset[str]
    untold: frozenset[str]
    invented: frozenset[str]

    def assert_sound(self) -> Verdict:
        assert self.answered
        assert not self.lost, f"{len(self.lost)} of {len(self.answered)} answered actions are lost"
        assert not self.twice, f"{len(self.twice)} actions are stored more than once"
        assert not self.untold, f"{len(self.untold)} actions that were cut down have no record"
        assert not self.invented, f"{len(self.invented)} rows are of no action"
        return self


@dataclass
class Site:
    """A directory with the application in it, from which servers are started again and again."""

    path: Path
    loads: list[Load] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.path / "app.py").write_text(APP)

    def load(self, server: Server, clients: int = CLIENTS) -> Load:
        self.loads.append(Load(server.url, clients))
        return self.loads[-1]

    @contextlib.contextmanager
    def serving(
        self, settings: dict[str, str], *options: str, forked: bool = True
    ) -> Iterator[Server]:
        """Serve the application until the block ends.

        Args:
            settings: Its environment.
            options: Of uvicorn.
            forked: False: it starts as users start it, so that auto-instrumentation comes before
                the framework and the mapper. One test of each file does so.
        """
        # the parent of worker processes has to be a program that they can be started from
        forked = forked and not {"--workers", "--reload"} & {*options}
        # a client that was paused for 5 s would find its connection closed
        options = ("--timeout-keep-alive", "60", *options)
        with uvicorn(self.path, settings, *options, forked=forked) as server:
            server.wait_until_up(60)
            yield server

    @property
    def journal(self) -> tuple[set[str], set[str]]:
        """Actions that the application has begun, and those of them that it has ended."""
        begun: set[str] = set()
        done: set[str] = set()
        if (self.path / "journal").exists():
            for line in (self.path / "journal").read_text().splitlines():
                word, _, name = line.partition(" ")
                (begun if word == "begun" else done).add(name)
        return begun, done

    async def kill_at_work(self, server: Server) -> None:
        """SIGKILL while an action is under way: on a busy machine there may be none at the time."""
        process = psutil.Process(server.process.pid)
        while True:
            process.suspend()
            while process.status() != psutil.STATUS_STOPPED:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.001)
            begun, done = self.journal
            if begun - done:
                break
            process.resume()
            await asyncio.sleep(0.01)
        server.stop(signal.SIGKILL)

    async def verdict(
        self, dsn: str, within: float = 0, *, known_lost: frozenset[str] = frozenset()
    ) -> Verdict:
        """Compare, once everything answered and begun is stored, or time is up."""
        until = time.monotonic() + within
        while True:
            found = await self._verdict(dsn)
            if not (found.lost - known_lost or found.untold) or time.monotonic() > until:
                return found
            await asyncio.sleep(0.2)

    async def _verdict(self, dsn: str) -> Verdict:
        rows = [row for row in await rows_of(dsn) if row["phase"] != "intent"]
        count = Counter(row["request_id"] for row in rows)
        unknown = {row["request_id"] for row in rows if row["outcome"] == "unknown"}
        answered = set().union(*(load.answered for load in self.loads))
        asked = answered.union(*(load.cut_off | load.refused for load in self.loads))
        begun, done = self.journal
        cut_down = begun - done
        missing = begun - count.keys() - answered
        return Verdict(
            answered=frozenset(answered),
            lost=frozenset(answered - count.keys()),
            twice=frozenset(name for name, number in count.items() if number > 1),
            cut_down=frozenset(cut_down),
            untold=frozenset((cut_down - unknown) | missing),
            invented=frozenset(count.keys() - asked),
        )


def settings_for(dsn: str, **more: str) -> dict[str, str]:
    return {
        "OTEL_AUDIT_DSN": dsn,
        "OTEL_AUDIT_STREAM_RECORDS": "true",
        # what is not audited at all must not look like a loss
        "OTEL_AUDIT_REQUIRED": "true",
        "OTEL_SERVICE_NAME": "shop",
        **{f"OTEL_AUDIT_{name}": value for name, value in more.items()},
    }


async def rows_of(dsn: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(
            "SELECT request_id, phase, outcome FROM audit.audit_logs WHERE request_id IS NOT NULL"
        )
    finally:
        await connection.close()
