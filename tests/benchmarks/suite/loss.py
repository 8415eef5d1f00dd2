"""What is lost: what clients saw acknowledged against what is stored, in the same faults for all."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from tests.benchmarks.suite.postgres import Databases
from tests.benchmarks.suite.request_cost import TOKEN
from tests.benchmarks.suite.served.load import Client, request
from tests.benchmarks.suite.shops import VARIANTS, Shop, a_shop

FAULTS = {
    "outage": "the trail's database refuses all for some seconds",
    "SIGTERM": "the application is told to end, under load",
    "SIGKILL": "the application is killed, under load",
}
COMPARED = (
    "audit:request_response",
    "peer:fastapi-audit",
    "peer:fastapi-audit-log",
    "peer:sqlalchemy-audit-trail",
)
TEXTS = {
    "audit:request_response": (
        "SELECT payload::text FROM audit.audit_logs WHERE phase = 'completed'"
    ),
    "peer:fastapi-audit": "SELECT request_snapshot::text FROM audit_logs",
    "peer:fastapi-audit-log": "SELECT request_body FROM fastapi_audit_logs",
    "peer:sqlalchemy-audit-trail": "SELECT data::text FROM audit.audit_activity",
}
CONNECTIONS = 8
_NOTE = re.compile(r"note-[a-p]{32}")
# no digits: a run of them may be a card number, and be redacted
_LETTERS = str.maketrans("0123456789", "ghijklmnop")


@dataclass(frozen=True)
class Plan:
    """Seconds of load before and after the fault, and of the outage."""

    seconds: float = 2.0
    outage: float = 4.0
    patience: float = 20.0


@dataclass
class Clients:
    """Clients that ask without end, each request with a note of its own."""

    port: int
    acknowledged: set[str] = field(default_factory=set)
    refused: Counter[int] = field(default_factory=Counter)
    over: bool = False

    async def run(self) -> None:
        await asyncio.gather(*(self._one() for _ in range(CONNECTIONS)))

    async def _one(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.over:
            try:
                _, client = await loop.create_connection(Client, "127.0.0.1", self.port)
                while not self.over:
                    note = f"note-{uuid.uuid4().hex.translate(_LETTERS)}"
                    status = await client.ask(_order(note))
                    if status == 201:
                        self.acknowledged.add(note)
                    else:
                        self.refused[status] += 1
                client.transport.close()
            except OSError:
                await asyncio.sleep(0.1)


def _order(note: str) -> bytes:
    return request(
        {
            "method": "POST",
            "path": "/orders",
            "body": json.dumps({"note": note, "total": 1, "lines": [{"product": "tea"}]}),
            "headers": {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"},
        }
    )


def measure(databases: Databases, plan: Plan, compared: Sequence[str] = COMPARED) -> dict[str, Any]:
    """Each fault, for each of those compared."""
    found: dict[str, Any] = {fault: {} for fault in FAULTS}
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        for fault in FAULTS:
            for variant in (one for one in VARIANTS if one.key in compared):
                shop = asyncio.run(a_shop(databases, variant, Path(scratch), f"loss_{fault}"))
                try:
                    shop.start()
                    shop.wait_until_up()
                    seen = asyncio.run(_suffer(databases, plan, shop, fault))
                finally:
                    shop.end()
                found[fault][variant.key] = {"title": variant.title, **seen}
                print(f"  {fault}, {variant.title}: {seen}", file=sys.stderr)
    return {"faults": found, "told": FAULTS, "outage_seconds": plan.outage}


async def _suffer(databases: Databases, plan: Plan, shop: Shop, fault: str) -> dict[str, int]:
    clients = Clients(shop.port)
    asking = asyncio.create_task(clients.run())
    await asyncio.sleep(plan.seconds)
    if fault == "outage":
        name = shop.store.partition("?")[0].rpartition("/")[2]
        await databases.execute(
            f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false',
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
        )
        await asyncio.sleep(plan.outage)
        await databases.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await asyncio.sleep(plan.seconds)
        clients.over = True
        await asking
    else:
        how = signal.Signals[fault]
        assert shop.process is not None
        shop.process.send_signal(how)
        # connections that stay open would hold up an orderly end
        clients.over = fault == "SIGTERM"
        await asyncio.to_thread(shop.process.wait, 60)
        clients.over = True
        await asking
        await asyncio.to_thread(shop.start, prepare=False)
        await asyncio.to_thread(shop.wait_until_up)
    stored = await _stored(shop, clients.acknowledged, plan.patience)
    return {
        "acknowledged": len(clients.acknowledged),
        "not_acknowledged": sum(clients.refused.values()),
        "stored": len(clients.acknowledged & stored.keys()),
        "lost": len(clients.acknowledged - stored.keys()),
        "twice": sum(1 for count in stored.values() if count > 1),
    }


async def _stored(shop: Shop, wanted: set[str], patience: float) -> Counter[str]:
    """What is in the trail when nothing more comes in, or all is there."""
    deadline = time.monotonic() + patience
    found: Counter[str] = Counter()
    while True:
        connection = await asyncpg.connect(shop.store)
        try:
            rows = await connection.fetch(TEXTS[shop.variant.key])
        finally:
            await connection.close()
        found = Counter(note for row in rows for note in set(_NOTE.findall(row[0] or "")))
        if wanted <= found.keys() or time.monotonic() > deadline:
            return found
        await asyncio.sleep(1)
