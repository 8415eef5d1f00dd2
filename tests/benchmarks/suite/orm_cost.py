"""What recording costs a flushed row: in the thread that flushes, and in all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import asyncpg

from tests.benchmarks.suite import environments
from tests.benchmarks.suite.environments import Peer, python_of
from tests.benchmarks.suite.measures import ratio, summary, tree_cpu_seconds
from tests.benchmarks.suite.postgres import Databases
from tests.benchmarks.suite.shops import SERVED, clean_environment


@dataclass(frozen=True)
class Way:
    """One way of recording changed rows.

    Attributes:
        key: What `served.rows` knows it by.
        title: What it is called in tables.
        peer: Whose environment it needs; None: the project's.
        recorded: Counts the changes that it has stored.
    """

    key: str
    title: str
    peer: Peer | None = None
    recorded: str | None = None


OURS = "SELECT coalesce(sum(json_array_length(payload->'changes')), 0) FROM audit.audit_logs"
WAYS = (
    Way("plain", "plain SQLAlchemy"),
    Way("observed", "otel-audit, observed", recorded=OURS),
    Way("transactional", "otel-audit, transactional", recorded=OURS),
    Way(
        "sqlalchemy-audit-trail", "sqlalchemy-audit-trail 0.2.0", environments.AUDIT_TRAIL,
        "SELECT count(*) FROM audit.audit_activity",
    ),
    Way(
        "postgresql-audit", "postgresql-audit 0.18.0 (triggers)", environments.POSTGRESQL_AUDIT,
        "SELECT count(*) FROM activity",
    ),
    Way(
        "continuum", "SQLAlchemy-Continuum 2.0.0", environments.CONTINUUM,
        "SELECT count(*) FROM items_version",
    ),
    Way(
        "continuum-native", "SQLAlchemy-Continuum 2.0.0, native (triggers)",
        environments.CONTINUUM, "SELECT count(*) FROM items_version",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How much: rows of a large transaction, small transactions, turns."""

    rows: int = 1000
    singles: int = 50
    rounds: int = 7


class Worker:
    """A process that flushes rows in one way."""

    def __init__(self, way: Way, app: str, store: str, directory: Path) -> None:
        self.way = way
        self.places = app, store
        self.flushed = 3000
        self.log = directory / f"{way.key}.log"
        environment = clean_environment(variant=way.key, app=app, store=store)
        environment["OTEL_AUDIT_SPOOL_DIR"] = str(directory / way.key)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [python_of(way.peer), str(SERVED / "rows.py")],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def pipes(self) -> tuple[IO[str], IO[str]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        return self.process.stdin, self.process.stdout

    def answer(self) -> Any:
        line = self.pipes()[1].readline()
        if not line:
            raise RuntimeError(f"{self.way.title} ended:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def do(self, **asked: Any) -> dict[str, float]:
        sent = self.pipes()[0]
        sent.write(json.dumps(asked) + "\n")
        sent.flush()
        figures: dict[str, float] = self.answer()
        self.flushed += asked["rows"] * asked["transactions"]
        return figures

    async def recorded(self) -> int | None:
        """How many changes are stored; None where nothing is."""
        if self.way.recorded is None:
            return None
        app, store = self.places
        connection = await asyncpg.connect(store if self.way.peer is None else app)
        try:
            count: int = await connection.fetchval(self.way.recorded)
        finally:
            await connection.close()
        return count

    def end(self) -> None:
        for pipe in self.pipes():
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def measure(databases: Databases, plan: Plan, ways: Sequence[Way] = WAYS) -> dict[str, Any]:
    """Each way in turn, round after round; a way that does not work here is said to."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        workers: list[Worker] = []
        failed: dict[str, str] = {}
        try:
            for way in ways:
                place = asyncio.run(_databases(databases, way))
                worker = Worker(way, *place, Path(scratch))
                try:
                    worker.answer()
                except RuntimeError as error:
                    failed[way.title] = str(error).strip().splitlines()[-1]
                    print(f"  does not work here: {error}", file=sys.stderr)
                    worker.end()
                else:
                    workers.append(worker)
            found = {}
            cases = [(what, plan.rows, 1) for what in ("insert", "update", "delete")]
            cases += [(what, 1, plan.singles) for what in ("insert", "update", "delete")]
            for what, rows, transactions in cases:
                found[f"{what}/{rows}"] = _measure(
                    databases, workers, plan.rounds, what, rows, transactions
                )
            recorded = {worker.way.key: asyncio.run(worker.recorded()) for worker in workers}
            return {
                "cases": found,
                "failed": failed,
                "rounds": plan.rounds,
                "flushed": workers[0].flushed,
                "recorded": recorded,
            }
        finally:
            for worker in workers:
                worker.end()


async def _databases(databases: Databases, way: Way) -> tuple[str, str]:
    name = f"orm_{way.key.replace('-', '_')}"
    return await databases.make(name), await databases.make(f"{name}_t")


def _measure(  # noqa: PLR0917
    databases: Databases,
    workers: Sequence[Worker],
    rounds: int,
    what: str,
    rows: int,
    transactions: int,
) -> dict[str, Any]:
    values: dict[str, dict[str, list[float]]] = {worker.way.key: {} for worker in workers}
    for number in range(rounds + 1):
        turn = number % len(workers)
        for worker in (*workers[turn:], *workers[:turn]):
            before = tree_cpu_seconds(databases.pid)
            figures = worker.do(what=what, rows=rows, transactions=transactions)
            figures["postgres"] = tree_cpu_seconds(databases.pid) - before
            if number:
                for name, seconds in figures.items():
                    per_row = seconds / rows / transactions * 1e6
                    values[worker.way.key].setdefault(name, []).append(per_row)
            if what == "delete":
                # so that there is always enough to delete
                worker.do(what="insert", rows=rows * transactions, transactions=1)
    plain = values.get("plain")
    told_of: dict[str, Any] = {}
    for worker in workers:
        mine = values[worker.way.key]
        told_of[worker.way.key] = {
            "title": worker.way.title,
            **{f"{name}_us": summary(measured) for name, measured in mine.items()},
        }
        if plain is not None and worker.way.key != "plain":
            added = [
                one - other for one, other in zip(mine["thread"], plain["thread"], strict=True)
            ]
            told_of[worker.way.key]["added_us"] = summary(added)
            told_of[worker.way.key]["to_plain"] = ratio(mine["thread"], plain["thread"])
    return {"rows": rows, "transactions": transactions, "ways": told_of}
