"""How long the viewer's pages take, for an auditor and for a tenant's administrator.

The viewer runs in a process of its own for each, and is asked one page after another over ASGI, as
the network is not what is measured. The store is made by the server itself and sealed.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import asyncpg
from otel_audit_postgres.ledger.keys import read_public_key

from otel_audit.viewer import Viewer, create_app
from tests.benchmarks.suite.postgres import Databases
from tests.benchmarks.suite.shops import clean_environment
from tests.benchmarks.viewer_store_filled import TENANTS, FilledStore, filled_store, running_server

QUERIES = (
    "",
    "tenant:acme outcome:failure",
    "actor:user-77@acme.example",
    "event:order.* status:5xx time:7d",
    "target:order -outcome:success",
    "transit",
    '"no such text"',
)
RECORDS = 60
VIEWERS = {
    "auditor": Viewer("auditor@example.com"),
    "tenant": Viewer("admin@umbrella.example", "tenant", (TENANTS[3],)),
}
_IDS = (
    "SELECT id, actor_id FROM audit.audit_logs TABLESAMPLE SYSTEM (2) REPEATABLE (1) "
    "WHERE event_name LIKE 'order.%' AND tenant_id = $1 LIMIT $2"
)


@dataclass(frozen=True)
class Plan:
    """How much is asked, of how many records; a directory keeps the store for the next time."""

    rows: int
    rounds: int
    keep: Path | None = None


def measure(databases: Databases, plan: Plan) -> dict[str, Any]:
    """Make the store, or find it, and ask as each kind of person."""
    if plan.keep is not None:
        plan.keep.mkdir(parents=True, exist_ok=True)
        with running_server(plan.keep) as server:
            return _measured(server, plan.keep, plan)
    with tempfile.TemporaryDirectory() as scratch:
        return _measured(databases.server_dsn, Path(scratch), plan)


def _measured(server: str, directory: Path, plan: Plan) -> dict[str, Any]:
    began = time.monotonic()
    store = asyncio.run(filled_store(server, directory, plan.rows))
    made = time.monotonic() - began
    found: dict[str, Any] = {"rows": plan.rows, "rounds": plan.rounds, "made_s": made}
    for who in VIEWERS:
        settings = {"dsn": store.dsn, "viewer": store.viewer, "key": store.key.text()}
        asked = json.dumps({**settings, **asdict(plan), "keep": None, "who": who})
        # what filled the store, or looked as somebody else, is not this viewer's memory
        command = [sys.executable, "-m", __name__, asked]
        done = subprocess.run(
            command, check=True, env=clean_environment(), stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[3],
        )  # fmt: skip
        found[who] = json.loads(done.stdout)
    return found


@dataclass(frozen=True)
class Answer:
    """How long one answer took, in seconds: until its first bytes, and until all of them."""

    first: float
    whole: float

    @property
    def rest(self) -> float:
        return self.whole - self.first


async def ask(app: Any, path: str, **asked: str) -> Answer:
    """Ask over ASGI."""
    began, first = time.perf_counter(), 0.0

    async def send(message: dict[str, Any]) -> None:
        nonlocal first
        if message["type"] == "http.response.start":
            assert message["status"] == 200, (path, asked, message)
            return
        first = first or time.perf_counter() - began

    async def receive() -> dict[str, Any]:
        # nobody goes away before the end
        return await asyncio.get_running_loop().create_future()

    scope = {
        "type": "http", "method": "GET", "path": path, "root_path": "", "scheme": "http",
        "query_string": urlencode(asked).encode(), "headers": [(b"host", b"v")],
        "http_version": "1.1", "server": ("v", 80), "client": ("127.0.0.1", 1),
    }  # fmt: skip
    await app(scope, receive, send)
    return Answer(first, time.perf_counter() - began)


async def _asked(store: FilledStore, who: str, rows: int, rounds: int) -> dict[str, Any]:
    viewer = VIEWERS[who]
    app = create_app(dsn=store.viewer, authenticate=lambda _: viewer, keys=[store.key])
    connection = await asyncpg.connect(store.dsn)
    own = viewer.tenants[0] if viewer.tenants else TENANTS[0]
    seen = await connection.fetch(_IDS, own, RECORDS)
    await connection.close()
    # as `otel-audit web` does when it starts; and the server reads its catalogue
    began = time.perf_counter()
    await app.state.site.read_tree()
    tree = time.perf_counter() - began
    await ask(app, "/")
    pages = {}
    for query in QUERIES:
        answers = [await ask(app, "/", q=query) for _ in range(rounds)]
        pages[query or "(everything)"] = {
            "first_ms": _percentiles([one.first for one in answers]),
            "counts_ms": _percentiles([one.rest for one in answers]),
        }
    records = [await ask(app, f"/record/{row['id']}") for row in seen]
    actors = [await ask(app, "/actor", id=row["actor_id"]) for row in seen[:rounds]]
    rates = {}
    for form in ("csv", "ndjson"):
        answer = await ask(app, "/export", q=f"tenant:{own}", format=form)
        rates[form] = rows / len(TENANTS) / answer.whole
    await app.state.site.pool.close()
    return {
        "tree_s": tree, "pages": pages, "record_ms": _percentiles([one.whole for one in records]),
        "actor_ms": _percentiles([one.whole for one in actors]), "export_rows_per_s": rates,
        "memory_mb": _peak_mb(),
    }  # fmt: skip


def _peak_mb() -> float:
    """The most that this process had in memory; rusage would tell its parent's, if that is more."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(one * 1000 for one in seconds)
    return {
        "median": ordered[len(ordered) // 2],
        "p95": ordered[min(int(len(ordered) * 0.95), len(ordered) - 1)],
    }


def _main(settings: str) -> None:
    asked = json.loads(settings)
    key = read_public_key(asked["key"], "the store's key")
    store = FilledStore(asked["dsn"], asked["viewer"], key)
    print(json.dumps(asyncio.run(_asked(store, asked["who"], asked["rows"], asked["rounds"]))))


if __name__ == "__main__":
    _main(sys.argv[1])
