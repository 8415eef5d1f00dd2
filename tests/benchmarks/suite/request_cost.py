"""What auditing costs a request: real uvicorn processes under load, each variant in turn."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
from jose import jwt

from tests.benchmarks.suite.measures import (
    cpu_seconds,
    forget_peak,
    memory_mb,
    peak_memory_mb,
    ratio,
    summary,
    tree_cpu_seconds,
)
from tests.benchmarks.suite.postgres import Databases
from tests.benchmarks.suite.served.attach import ACTOR, KEY
from tests.benchmarks.suite.shops import VARIANTS, Load, Shop, Variant, a_load, a_shop

BODY = json.dumps(
    {
        "note": "please ring twice",
        "total": 12,
        "lines": [{"product": f"tea {number}", "quantity": number} for number in range(24)],
    }
)


@dataclass(frozen=True)
class Scenario:
    """What is asked of the shop."""

    key: str
    title: str
    method: str
    path: str
    status: int
    connections: tuple[int, ...]
    body: str = ""
    body_size: int = 0
    content_type: str = "application/json"
    seconds: float = 1.0


SCENARIOS = (
    Scenario("write", "POST 1 KB of JSON, one row written", "POST", "/orders", 201, (1, 32), BODY),
    Scenario("read", "GET of that row", "GET", "/orders/1000000000", 200, (1, 32)),
    Scenario("json", "plain JSON, no database", "GET", "/json", 200, (1, 32)),
    Scenario("stream", "10 MB streamed", "GET", "/stream", 200, (1,)),
    Scenario(
        "upload", "5 MB uploaded", "POST", "/upload", 200, (1,),
        body_size=5 * 1024 * 1024, content_type="application/octet-stream",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        rounds: Turns in which each variant is measured once.
        seconds: Length of one measurement, before `Scenario.seconds` and `speed`.
        variants: Which; all if empty.
        cases: Which scenarios, with how many connections, such as ``write/1``; all if empty.
    """

    rounds: int = 7
    seconds: float = 0.9
    variants: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bench:
    """What every measurement needs."""

    databases: Databases
    plan: Plan
    load: Load


@dataclass
class Seen:
    """What one variant has shown in one scenario, a value a round."""

    values: dict[str, list[float]] = field(default_factory=dict)
    requests: int = 0

    def note(self, **measured: float) -> None:
        for name, value in measured.items():
            self.values.setdefault(name, []).append(value)


def measure(databases: Databases, plan: Plan) -> dict[str, Any]:
    """Run every variant at the same time, and ask one after the other, round after round."""
    chosen = [one for one in VARIANTS if not plan.variants or one.key in plan.variants]
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        shops = asyncio.run(_make(databases, chosen, Path(scratch)))
        try:
            for shop in shops:
                shop.start()
            for shop in shops:
                shop.wait_until_up()
                shop.meter()
            with a_load() as load:
                found = _measure(databases, plan, shops, load)
            found["trails"] = {
                shop.variant.key: {"asked": shop.asked, "rows": asyncio.run(stored(shop))}
                for shop in shops
            }
            return found
        finally:
            for shop in shops:
                shop.end()


async def _make(databases: Databases, chosen: Sequence[Variant], directory: Path) -> list[Shop]:
    return [await a_shop(databases, one, directory, "cost") for one in chosen]


def _measure(databases: Databases, plan: Plan, shops: Sequence[Shop], load: Load) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for scenario in SCENARIOS:
        for connections in scenario.connections:
            if plan.cases and f"{scenario.key}/{connections}" not in plan.cases:
                continue
            began = time.monotonic()
            seen = {shop.variant.key: Seen() for shop in shops}
            for number in range(plan.rounds + 1):
                # each round begins with another variant, so that none always follows the same
                turn = number % len(shops)
                for shop in (*shops[turn:], *shops[:turn]):
                    kept = seen[shop.variant.key] if number else Seen()
                    _once(Bench(databases, plan, load), shop, scenario, connections, kept)
            found[f"{scenario.key}/{connections}"] = {
                "title": scenario.title,
                "connections": connections,
                "variants": _as_json(seen, shops),
            }
            print(
                f"  {scenario.title}, {connections} connections: {time.monotonic() - began:.0f} s",
                file=sys.stderr,
            )
    return {
        "scenarios": found,
        "seconds_each": plan.seconds,
        "rounds": plan.rounds,
        "body_bytes": len(BODY),
    }


def _once(bench: Bench, shop: Shop, scenario: Scenario, connections: int, seen: Seen) -> None:
    shop.meter()
    forget_peak(shop.pid)
    at_rest = memory_mb(shop.pid)
    began, database = cpu_seconds(shop.pid), tree_cpu_seconds(bench.databases.pid)
    answer = bench.load.make(
        port=shop.port,
        method=scenario.method,
        path=scenario.path,
        status=scenario.status,
        connections=connections,
        body=scenario.body,
        body_size=scenario.body_size,
        seconds=bench.plan.seconds * scenario.seconds,
        headers={"Content-Type": scenario.content_type, "Authorization": f"Bearer {TOKEN}"},
    )
    if answer["wrong"]:
        raise SystemExit(f"{shop.variant.title}: answered {answer['wrong']}\n{shop.output()}")
    told = shop.meter()
    spent = cpu_seconds(shop.pid) - began
    requests = answer["requests"]
    seen.requests += requests
    shop.asked += requests
    seen.note(
        cpu_us=spent / requests * 1e6,
        postgres_cpu_us=(tree_cpu_seconds(bench.databases.pid) - database) / requests * 1e6,
        rps=requests / answer["seconds"],
        p50_ms=answer["p50_ms"],
        p99_ms=answer["p99_ms"],
        first_byte_ms=answer["first_byte_p50_ms"],
        rss_mb=memory_mb(shop.pid),
        rss_grown_mb=peak_memory_mb(shop.pid) - at_rest,
        gc_us=told.pop("gc_ms") * 1e3 / requests,
        gc_runs=told.pop("gc_runs") / requests,
        gc_full=told.pop("gc_full") / requests,
        gc_collected=told.pop("gc_collected") / requests,
        **told,
    )


def _as_json(seen: dict[str, Seen], shops: Sequence[Shop]) -> dict[str, Any]:
    variants: dict[str, Any] = {}
    for shop in shops:
        key, base = shop.variant.key, shop.variant.base
        values = seen[key].values
        variants[key] = {
            "title": shop.variant.title,
            "requests": seen[key].requests,
            **{name: summary(measured) for name, measured in values.items()},
        }
        for other in dict.fromkeys(("plain", "contrib", base)):
            if other in seen and other != key:
                variants[key][f"to_{other}"] = {
                    name: ratio(values[name], seen[other].values[name])
                    for name in ("cpu_us", "rps", "p50_ms", "p99_ms", "first_byte_ms")
                }
    return variants


TOKEN = jwt.encode({**ACTOR, "exp": int(time.time()) + 36_000}, KEY, algorithm="HS256")

STORED = {
    "audit": "SELECT count(*) FROM audit.audit_logs WHERE http_method IS NOT NULL",
    "alone": "SELECT count(*) FROM audit.audit_logs WHERE http_method IS NOT NULL",
    "peer:fastapi-audit": "SELECT count(*) FROM audit_logs",
    "peer:fastapi-audit-log": "SELECT count(*) FROM fastapi_audit_logs",
    "peer:sqlalchemy-audit-trail": "SELECT count(*) FROM audit.audit_activity",
}


async def stored(shop: Shop) -> int | None:
    """How many rows a variant has written; None for those that write none."""
    key = shop.variant.key
    query = STORED.get(key) or STORED.get(key.partition(":")[0])
    if query is None:
        return None
    connection = await asyncpg.connect(shop.store)
    try:
        count: int = await connection.fetchval(query)
    finally:
        await connection.close()
    return count
