"""How fast rows get into the real table, against the quickest ways that PostgreSQL offers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
from otel_audit_postgres import PostgresSink, init
from otel_audit_postgres.copy_format import in_pieces
from otel_audit_postgres.ledger.keys import generate, write_key_files
from otel_audit_postgres.rows import COLUMNS, to_row

from otel_audit.record import AuditRecord, to_json
from tests.benchmarks.suite.measures import ratio, summary
from tests.benchmarks.suite.postgres import Databases
from tests.benchmarks.suite.shops import clean_environment

WAYS = ("otel-audit", "COPY", "COPY, encoding counted", "executemany", "unnest")
NAMES = [name for name, _ in COLUMNS]
_SENT_AS = {"text[]": "text", "json": "text"}
_VALUES = ", ".join(f"{name}::{kind}" if kind in _SENT_AS else name for name, kind in COLUMNS)
_ARRAYS = ", ".join(
    f"${number}::{_SENT_AS.get(kind, kind)}[]" for number, (_, kind) in enumerate(COLUMNS, 1)
)
UNNEST = (
    f"INSERT INTO audit.audit_logs ({', '.join(NAMES)}) SELECT {_VALUES} "
    f"FROM unnest({_ARRAYS}) AS sent ({', '.join(NAMES)})"
)
ONE = (
    f"INSERT INTO audit.audit_logs ({', '.join(NAMES)}) "
    f"VALUES ({', '.join(f'${number}' for number in range(1, len(NAMES) + 1))})"
)


@dataclass(frozen=True)
class Plan:
    """How much.

    Attributes:
        rows: Rows of one measurement, each connection.
        rounds: Turns.
        batches: Rows sent together.
    """

    rows: int = 2048
    rounds: int = 5
    batches: tuple[int, ...] = (1, 100, 512, 2000)


@dataclass(frozen=True)
class Spent:
    seconds: float
    cpu: float


def measure(databases: Databases, plan: Plan) -> dict[str, Any]:
    """Every way in turn, at each size of batch, over one and two connections, sealed or not."""
    found = {}
    for sealed in (False, True):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            found.update(asyncio.run(_measure(databases, plan, Path(scratch), sealed=sealed)))
    return {
        "cases": found,
        "rows": plan.rows,
        "rounds": plan.rounds,
        # what every way of storing it has to do: its text, and the hash of that
        "encoding_us": _spent(lambda record: hashlib.sha256(to_json(record)).digest()),
        "row_us": _spent(to_row),
    }


def records(count: int) -> list[AuditRecord]:
    """Records as the plugin makes them of a POST, each with an id of its own, all of one process."""
    made = [_a_write(number) for number in range(count)]
    return [msgspec.structs.replace(one, producer_id=made[0].producer_id) for one in made]


def _load_a_write() -> Callable[[int], AuditRecord]:
    """The record that the benchmark of the OTLP sink sends: both bodies, one change, 2 KB."""
    place = Path(__file__).parents[1] / "bench_sink.py"
    spec = importlib.util.spec_from_file_location("bench_sink", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Callable[[int], AuditRecord] = module.a_write
    return made


_a_write = _load_a_write()


def _spent(act: Callable[[AuditRecord], object]) -> dict[str, Any]:
    """CPU microseconds that something takes for one record, without any database."""
    written = records(500)
    spent = []
    for _ in range(7):
        began = time.thread_time()
        for record in written:
            act(record)
        spent.append((time.thread_time() - began) / len(written) * 1e6)
    return summary(spent)


async def _measure(
    databases: Databases, plan: Plan, directory: Path, *, sealed: bool
) -> dict[str, Any]:
    dsn = await databases.make("writing")
    await init(dsn)
    found = {}
    async with _sealing(dsn, directory) if sealed else contextlib.nullcontext():
        for batch in plan.batches:
            for connections in (1, 2):
                found[f"{batch}/{connections}/{'sealed' if sealed else 'unsealed'}"] = await _case(
                    dsn, plan, batch, connections, sealed=sealed
                )
                print(f"  batches of {batch}, {connections} connections done", file=sys.stderr)
    return found


@contextlib.asynccontextmanager
async def _sealing(dsn: str, directory: Path) -> AsyncIterator[None]:
    """The sealer as it runs in production: a process of its own beside the writers."""
    directory.chmod(0o700)
    key = directory / "key"
    write_key_files(generate("bench.example.com/log"), key)
    command = [str(Path(sys.executable).parent / "otel-audit"), "seal", "--dsn", dsn]
    command += ["--key-file", str(key), "--anchor", f"dir:{directory / 'anchor'}"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, env=clean_environment(), stdout=log, stderr=log)
    try:
        await asyncio.sleep(1.5)
        if process.poll() is not None:
            raise RuntimeError((directory / "log").read_text())
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


async def _case(
    dsn: str, plan: Plan, batch: int, connections: int, *, sealed: bool
) -> dict[str, Any]:
    # single rows are slow: fewer of them tell as much
    rows = plan.rows if batch > 1 else max(plan.rows // 10, 50)
    spent: dict[str, list[Spent]] = {way: [] for way in WAYS}
    for number in range(plan.rounds + 1):
        turn = number % len(WAYS)
        for way in (*WAYS[turn:], *WAYS[:turn]):
            seen = await _once(dsn, way, rows, batch, connections)
            if number:
                spent[way].append(seen)
    total = rows * connections
    rates = {way: [total / one.seconds for one in seen] for way, seen in spent.items()}
    return {
        "batch": batch,
        "connections": connections,
        "sealed": sealed,
        "ways": {
            way: {
                "rows_per_second": summary(rates[way]),
                "client_cpu_us": summary([one.cpu / total * 1e6 for one in seen]),
                "to_copy": ratio(rates[way], rates["COPY"]),
            }
            for way, seen in spent.items()
        },
    }


async def _once(dsn: str, way: str, rows: int, batch: int, connections: int) -> Spent:
    """One measurement: what is sent is made ready beforehand, but for our own rows."""
    if way == "otel-audit":
        sinks = [PostgresSink(dsn) for _ in range(connections)]
        parts = [_parts(records(rows), batch) for _ in sinks]
        for sink in sinks:
            await sink.check()
        try:
            return await _timed(
                [_each(parts[place], sink.write) for place, sink in enumerate(sinks)]
            )
        finally:
            for sink in sinks:
                await sink.close()
    opened = [await asyncpg.connect(dsn) for _ in range(connections)]
    try:
        if way.startswith("COPY,"):
            made = [records(rows) for _ in opened]
            return await _timed(
                [
                    _encoded(one, batch, connection)
                    for one, connection in zip(made, opened, strict=True)
                ]
            )
        work = []
        for connection in opened:
            sent = _parts([to_row(record) for record in records(rows)], batch)
            work.append(_each([_ready(way, part) for part in sent], _sender(way, connection)))
        return await _timed(work)
    finally:
        for connection in opened:
            await connection.close()


def _ready(way: str, rows: Sequence[Any]) -> Any:
    if way == "unnest":
        return _arrays(rows)
    payload = NAMES.index("payload")
    return [
        (*row.values[:payload], row.payload.decode(), *row.values[payload + 1 :]) for row in rows
    ]


def _arrays(rows: Sequence[Any]) -> list[list[Any]]:
    """One array a column; arrays of arrays cannot be unnested, so entities are array literals."""
    arrays = [list(column) for column in zip(*(row.values for row in rows), strict=True)]
    entities, payload = NAMES.index("entities"), NAMES.index("payload")
    arrays[entities] = [_literal(texts) for texts in arrays[entities]]
    arrays[payload] = [text.decode() for text in arrays[payload]]
    return arrays


def _literal(texts: Sequence[str]) -> str:
    quoted = (text.replace("\\", "\\\\").replace('"', '\\"') for text in texts)
    return "{" + ",".join(f'"{text}"' for text in quoted) + "}"


def _sender(way: str, connection: Any) -> Callable[[Any], Awaitable[Any]]:
    if way == "COPY":
        return lambda sent: connection.copy_records_to_table(
            "audit_logs", schema_name="audit", columns=NAMES, records=sent
        )
    if way == "unnest":
        return lambda sent: connection.execute(UNNEST, *sent)
    return lambda sent: connection.executemany(ONE, sent)


async def _each(parts: Sequence[Any], send: Callable[[Any], Awaitable[Any]]) -> None:
    for part in parts:
        await send(part)


async def _encoded(made: Sequence[AuditRecord], batch: int, connection: Any) -> None:
    """As the sink has to, and by its own encoding: records become rows meanwhile."""
    for part in _parts(made, batch):
        rows = [to_row(record) for record in part]
        await connection.copy_to_table(
            "audit_logs",
            schema_name="audit",
            columns=NAMES,
            source=_one_by_one(in_pieces((row.copied, row.payload) for row in rows)),
            format="binary",
        )


async def _one_by_one(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def _timed(work: Sequence[Awaitable[None]]) -> Spent:
    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*work)
    return Spent(time.perf_counter() - began, time.process_time() - cpu)


def _parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[first : first + size] for first in range(0, len(items), size)]
