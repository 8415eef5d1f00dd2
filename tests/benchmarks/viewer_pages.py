"""How long the viewer's pages take: python -m tests.benchmarks.viewer_pages [ROWS] [--keep DIRECTORY].

A store of so many records, made by the server itself and sealed; the viewer in a process of its
own, asked one page after another over ASGI, as the network is not what is measured. It prints a
line for each figure, with what the figure must be. With ``--keep`` the store stays in that
directory, and the next measurement finds it there.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import asyncpg

sys.path[:0] = [str(Path(__file__).parents[1])]

from otel_audit.viewer import Viewer, create_app  # noqa: E402
from tests.benchmarks.viewer_store_filled import (  # noqa: E402
    TENANTS,
    FilledStore,
    filled_store,
    running_server,
)

QUERIES = (
    "-event:audit.viewed,audit.exported",
    "tenant:acme outcome:failure",
    "actor:user-77@acme.example",
    "event:order.* status:5xx time:7d",
    "target:order -outcome:success",
    "transit",
    '"no such text"',
)
RECORDS = 60
TENANT = Viewer("admin@umbrella.example", "tenant", (TENANTS[3],))


@dataclass
class Answer:
    """How long one answer took, in seconds, and how many bytes it had."""

    first: float
    whole: float
    size: int

    @property
    def rest(self) -> float:
        return self.whole - self.first


async def ask(app: Any, path: str, **asked: str) -> Answer:
    """Ask over ASGI: until the first bytes are there, and until all are."""
    began, first, size = time.perf_counter(), 0.0, 0

    async def send(message: dict[str, Any]) -> None:
        nonlocal first, size
        if message["type"] == "http.response.start":
            assert message["status"] == 200, (path, asked, message)
            return
        first = first or time.perf_counter() - began
        size += len(message["body"])

    async def receive() -> dict[str, Any]:
        # nobody goes away before the end
        return await asyncio.get_running_loop().create_future()

    scope = {
        "type": "http", "method": "GET", "path": path, "root_path": "", "scheme": "http",
        "query_string": urlencode(asked).encode(), "headers": [(b"host", b"v")],
        "http_version": "1.1", "server": ("v", 80), "client": ("127.0.0.1", 1),
    }  # fmt: skip
    await app(scope, receive, send)
    return Answer(first, time.perf_counter() - began, size)


def told(what: str, seconds: Sequence[float], most: int) -> None:
    """Print one figure and its bound."""
    p95 = sorted(seconds)[int(len(seconds) * 0.95)] * 1000
    median = statistics.median(seconds) * 1000
    verdict = "met" if p95 <= most else "MISSED"
    print(f"{what:60} {median:7.1f} ms  p95 {p95:7.1f}  of {most}  {verdict}", flush=True)


async def measure(store: FilledStore, count: int, rounds: int) -> None:
    """Ask the pages, and print how long they took."""
    app = create_app(dsn=store.viewer, authenticate=lambda _: Viewer("bench"), keys=[store.key])
    tenant = create_app(dsn=store.viewer, authenticate=lambda _: TENANT, keys=[store.key])
    connection = await asyncpg.connect(store.dsn)
    ids = await connection.fetch(
        "SELECT id FROM audit.audit_logs TABLESAMPLE SYSTEM (1) "
        "WHERE event_name LIKE 'order.%' ORDER BY random() LIMIT $1", RECORDS,
    )  # fmt: skip
    await connection.close()
    for who, site in (("auditor", app), ("tenant", tenant)):
        for query in QUERIES:
            answers = [await ask(site, "/", q=query) for _ in range(rounds)]
            told(f"{who} {query}: first rows", [one.first for one in answers], 150)
            told(f"{who} {query}: counts", [one.rest for one in answers], 300)
    first = await ask(app, f"/record/{ids[0]['id']}")
    print(f"first proof, for which the tree is read: {first.whole:.2f} s", flush=True)
    pages = [await ask(app, f"/record/{one['id']}") for one in ids]
    told("record page with verification", [one.whole for one in pages], 100)
    pages = [await ask(app, "/actor", id=f"user-{n}@acme.example") for n in range(rounds)]
    told("actor page", [one.whole for one in pages], 1000)
    for form in ("csv", "ndjson"):
        answer = await ask(app, "/export", q=f"tenant:{TENANTS[0]}", format=form)
        rate = count / len(TENANTS) / answer.whole
        verdict = "met" if rate >= 20_000 else "MISSED"
        print(f"export {form}: {rate:,.0f} rows/s of 20,000  {verdict}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"memory at its peak: {peak:.0f} MB of 120  {'met' if peak <= 120 else 'MISSED'}")
    for one in (app, tenant):
        await one.state.site.pool.close()


def measured(store: FilledStore, count: int, rounds: int) -> None:
    """In a process of its own: what filled the store is not the viewer's memory."""
    began = os.getloadavg()[0]
    asyncio.run(measure(store, count, rounds))
    print(f"load of the machine: {began:.1f} before, {os.getloadavg()[0]:.1f} after", flush=True)


def main() -> None:
    """Fill or find the store, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows", type=int, nargs="?", default=100_000)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    directory = given.keep or Path(tempfile.mkdtemp(prefix="otel-audit-viewer-"))
    directory.mkdir(parents=True, exist_ok=True)
    with running_server(directory) as server:
        store = asyncio.run(filled_store(server, directory, given.rows))
        process = multiprocessing.get_context("spawn").Process(
            target=measured, args=(store, given.rows, given.rounds)
        )
        process.start()
        process.join()
    sys.exit(process.exitcode)


if __name__ == "__main__":
    main()
