"""How many sealed records a second one process streams, and how far behind it is.

    python tests/benchmarks/bench_stream.py [--rows 20000] [--collector PATH] [--shape native]

Prints one JSON object: records a second to a file and, where a Collector is named, to that (through
`collector-config/siem.yaml`, with its queues on disk); and the longest lag at 100 records a second,
from the write to the line in the file, with a sealer every second. Records have about 2.5 KB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.bench_sink import a_write
from collector.collectors import collector, running
from ledger_store import Log
from otel_audit_postgres import PostgresSink

from otel_audit.streams.factory import make_streams
from otel_audit.streams.settings import read_settings
from otel_audit.streams.stream import Stream
from otel_audit.testing.store import embedded_server

PER_SECOND = 100


async def write(log: Log, count: int) -> list[str]:
    sink = PostgresSink(log.dsn)
    ids: list[str] = []
    while len(ids) < count:
        records = [a_write(len(ids) + n) for n in range(min(500, count - len(ids)))]
        await sink.write(records)
        ids += [record.record_id for record in records]
    await sink.close()
    return ids


def stream_to(log: Log, directory: Path, name: str, table: str) -> Stream:
    file = directory / f"{name}.toml"
    file.write_text(f"[streams.{name}]\n{table}\n")
    (stream,) = make_streams(
        log.dsn, read_settings(file), state_directory=directory / "state", start=0, interval=0.2
    )
    return stream


async def rate(stream: Stream, rows: int) -> dict[str, float]:
    before = time.process_time()
    begun = time.perf_counter()
    await stream.run_once()
    seconds, cpu = time.perf_counter() - begun, time.process_time() - before
    await stream.close()
    assert stream.progress.sent >= rows
    return {
        "records_per_second": round(stream.progress.sent / seconds),
        "cpu_us_per_record": round(cpu / stream.progress.sent * 1e6),
    }


async def lag(log: Log, directory: Path, seconds: float) -> dict[str, float]:
    """Write at a rate, seal every second, and see when each record stands in the file."""
    path = directory / "lag.ndjson"
    stream = stream_to(log, directory, "lag", f'kind = "file"\npath = "{path}"')
    await stream.run_once()
    stop = asyncio.Event()
    task = asyncio.create_task(stream.run(stop))
    written: dict[str, float] = {}
    seen: dict[str, float] = {}
    sealer = log.sealer()
    at = path.stat().st_size

    def look() -> None:
        nonlocal at
        with path.open("rb") as file:
            file.seek(at)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        at += len(whole)
        for line in whole.splitlines():
            seen[json.loads(line)["id"]] = time.perf_counter()

    begun, round_number = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        now = time.perf_counter()
        written |= dict.fromkeys(await write(log, PER_SECOND // 4), now)
        round_number += 1
        if round_number % 4 == 0:
            await sealer.seal()
        look()
        await asyncio.sleep(max(0.25 - (time.perf_counter() - now), 0))
    await sealer.seal()
    while len(written.keys() & seen.keys()) < len(written):
        look()
        await asyncio.sleep(0.02)
    stop.set()
    await task
    await stream.close()
    await sealer.close()
    lags = sorted(seen[one] - written[one] for one in written)
    return {"longest_s": round(lags[-1], 2), "median_s": round(lags[len(lags) // 2], 2)}


async def measure(dsn: str, options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    log = Log(dsn, directory)
    await write(log, options.rows)
    await log.seal()
    shape = f'shape = "{options.shape}"\n'
    table = f'kind = "file"\npath = "{directory}/rate.ndjson"\n{shape}'
    found: dict[str, Any] = {
        "rows": options.rows,
        "shape": options.shape,
        "file": await rate(stream_to(log, directory, "file", table), options.rows),
    }
    if options.collector:
        it = collector(
            Path(options.collector), "siem", files=("siem.yaml",), directory=directory,
            listen=("SIEM_HTTP", "SIEM_HEALTH", "SIEM_METRICS_PORT"),
            environment={
                # nobody is there: all of it stays in the queues
                "SPLUNK_HEC_ENDPOINT": "http://127.0.0.1:1/services/collector",
                "SPLUNK_HEC_TOKEN": "x", "AUDIT_KAFKA_BROKERS": "[127.0.0.1:1]",
                "SIEM_FILE": str(directory / "siem.json"),
            },
        )  # fmt: skip
        with running(it):
            table = f'kind = "otlp"\nendpoint = "{it.url("SIEM_HTTP")}"\n{shape}'
            found["collector"] = await rate(
                stream_to(log, directory, "collector", table), options.rows
            )
    found["lag_at_100_a_second"] = await lag(log, directory, options.seconds)
    found["max_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--shape", default="native")
    parser.add_argument("--collector", help="Of `make collector`.")
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        embedded_server() as server,
        server.database() as dsn,
    ):
        print(json.dumps(asyncio.run(measure(dsn, options, Path(directory)))))


if __name__ == "__main__":
    main()
