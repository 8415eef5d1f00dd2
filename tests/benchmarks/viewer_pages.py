"""How long the viewer's pages take: python -m tests.benchmarks.viewer_pages [ROWS].

A store of its own, filled by the sink and sealed; the viewer in this process, asked one page after
another over ASGI. It prints a line for each figure of the specification.
"""

from __future__ import annotations

import asyncio
import random
import resource
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx

sys.path[:0] = [str(Path(__file__).parents[1])]

from otel_audit_postgres import PostgresSink, init  # noqa: E402
from viewer_store import ViewerStore, order_record  # noqa: E402

from otel_audit._util.ids import uuid7  # noqa: E402
from otel_audit.record import AuditRecord, Response  # noqa: E402
from otel_audit.testing.store import embedded_server  # noqa: E402
from otel_audit.viewer import Viewer, create_app  # noqa: E402

DAYS = 90
BATCH = 5_000
ROUNDS = 40
QUERIES = (
    "-event:audit.viewed,audit.exported",
    "tenant:acme outcome:failure",
    "actor:user-77@acme.example",
    "event:order.* status:5xx time:7d",
    "target:order -outcome:success",
    '"no such text"',
)


def records(count: int, rng: random.Random) -> Iterator[AuditRecord]:
    now = time.time_ns()
    for number in range(count):
        at = now - (count - number) * DAYS * 86_400 * 10**9 // count
        outcome = rng.choices(("success", "failure", "unknown"), (85, 13, 2))[0]
        yield order_record(
            rng.choice(("order.created", "order.paid", "product.updated", "user.login", "user.read")),
            str(rng.randrange(200_000)), record_id=uuid7(at), occurred_at=at, outcome=outcome,
            tenant=rng.choice(("acme", "globex", "initech", "umbrella")),
            actor=f"user-{rng.randrange(2_000)}@acme.example",
            response=Response(status_code=rng.choice((200, 201, 204, 403, 404, 500))),
        )  # fmt: skip


async def fill(dsn: str, count: int) -> ViewerStore:
    store = ViewerStore(dsn, Path(tempfile.mkdtemp()))
    sink = PostgresSink(dsn)
    made = records(count, random.Random(1))
    began = time.perf_counter()
    for _ in range(0, count, BATCH):
        await sink.write([record for record, _ in zip(made, range(BATCH), strict=False)])
    await sink.close()
    print(f"filled with {count:,} rows in {time.perf_counter() - began:.0f} s", flush=True)
    began = time.perf_counter()
    await store.seal()
    print(f"sealed in {time.perf_counter() - began:.0f} s", flush=True)
    connection = await asyncpg.connect(dsn)
    await connection.execute("ANALYZE")
    await connection.close()
    return store


async def first_bytes(
    client: httpx.AsyncClient, app: Any, path: str, **asked: str
) -> tuple[float, float]:
    """Seconds until the rows are there, and until all is; ASGI itself, as httpx waits for the end."""
    request = client.build_request("GET", path, params=asked)
    began, first = time.perf_counter(), 0.0

    async def send(message: dict[str, Any]) -> None:
        nonlocal first
        if message["type"] == "http.response.start":
            assert message["status"] == 200, (path, asked, message)
        elif not first:
            first = time.perf_counter() - began

    async def receive() -> dict[str, Any]:
        # nobody goes away before the end
        return await asyncio.get_running_loop().create_future()

    scope = {
        "type": "http", "method": "GET", "path": path, "root_path": "", "scheme": "http",
        "query_string": request.url.query, "headers": [(b"host", b"v")], "http_version": "1.1",
        "server": ("v", 80), "client": ("127.0.0.1", 1),
    }  # fmt: skip
    await app(scope, receive, send)
    return first, time.perf_counter() - began


def told(what: str, seconds: list[float], limit: str) -> None:
    ordered = sorted(seconds)
    p95 = ordered[int(len(ordered) * 0.95)] * 1000
    print(
        f"{what:44} median {statistics.median(seconds) * 1000:7.1f} ms  p95 {p95:7.1f} ms  ({limit})",
        flush=True,
    )


async def measure(count: int, make_dsn: Callable[[str], str], dsn: str) -> None:
    role = f"viewer_{uuid.uuid4().hex[:8]}"
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"CREATE ROLE {role} LOGIN")
    await connection.close()
    await init(dsn, roles=True, viewer=role)
    store = await fill(dsn, count)
    app = create_app(
        dsn=make_dsn(role), authenticate=lambda _: Viewer("bench"), keys=[store.key.public]
    )
    tenant = create_app(
        dsn=make_dsn(role), authenticate=lambda _: Viewer("t", "tenant", ("umbrella",))
    )
    connection = await asyncpg.connect(dsn)
    ids = [
        r[0]
        for r in await connection.fetch(
            "SELECT id FROM audit.audit_logs ORDER BY random() LIMIT 60"
        )
    ]
    await connection.close()
    async with httpx.AsyncClient(base_url="http://v") as client:
        for who, site in (("auditor", app), ("tenant", tenant)):
            for query in QUERIES:
                times = [await first_bytes(client, site, "/", q=query) for _ in range(ROUNDS)]
                told(f"{who} {query[:32]}: rows", [first for first, _ in times], "150")
                told(f"{who} {query[:32]}: whole page", [whole for _, whole in times], "+300")
        began = time.perf_counter()
        await first_bytes(client, app, f"/record/{ids[0]}")
        print(f"first proof, which reads all leaves: {time.perf_counter() - began:.2f} s")
        times = [await first_bytes(client, app, f"/record/{one}") for one in ids]
        told("record page with verification", [whole for _, whole in times], "100")
        for form in ("csv", "ndjson"):
            began = time.perf_counter()
            await first_bytes(client, app, "/export", q="tenant:acme", format=form)
            rate = count / 4 / (time.perf_counter() - began)
            print(f"export {form}: {rate:,.0f} rows/s (20,000)", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this process, the filling included: {peak:.0f} MB")
    for one in (app, tenant):
        await one.state.site.pool.close()


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with embedded_server() as server, server.database() as dsn:

        def make_dsn(role: str) -> str:
            head, _, rest = dsn.partition("@")
            return f"{head.partition('://')[0]}://{role}@{rest}"

        asyncio.run(measure(count, make_dsn, dsn))


if __name__ == "__main__":
    main()
