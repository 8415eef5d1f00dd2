"""How many sealed records a second one process streams, and how far behind it is.

    python tests/benchmarks/bench_stream.py --collector "$(make -s collector)"

Prints one JSON object: records a second, and a second of the process's CPU, to a file, to the named
Collector (through `collector-config/siem.yaml`, with its queues on disk) and to a webhook that
answers at once; and the longest lag at 100 records a second, from the write to the line in the file,
with a sealer every second. Records have about 2.5 KB. Takes two minutes on a quiet machine; compare
the figures by CPU on a busy one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
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


def stream_to(log: Log, directory: Path, name: str, table: str, start: int = 0) -> Stream:
    file = directory / f"{name}.toml"
    file.write_text(f"[streams.{name}]\n{table}\n")
    (stream,) = make_streams(
        log.dsn, read_settings(file), state_directory=directory / "state", start=start, interval=0.2
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
        "records_per_cpu_second": round(stream.progress.sent / cpu),
        "cpu_us_per_record": round(cpu / stream.progress.sent * 1e6),
    }


def cpu_of(process_id: int) -> float:
    """CPU seconds of another process so far."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# a server of its own process, as short as one can be: what is measured is the sender
_HOOK = """
import asyncio, re
async def serve(reader, writer):
    try:
        while head := await reader.readuntil(b"\\r\\n\\r\\n"):
            await reader.readexactly(int(re.search(rb"(?i)content-length: *(\\d+)", head)[1]))
            writer.write(b"HTTP/1.1 204 No Content\\r\\n\\r\\n")
    except asyncio.IncompleteReadError:
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 24)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


async def webhook_rate(log: Log, directory: Path, shape: str, rows: int) -> dict[str, float]:
    os.environ["BENCH_HOOK"] = "whsec_" + "A" * 44
    with subprocess.Popen([sys.executable, "-c", _HOOK], stdout=subprocess.PIPE) as hook:
        assert hook.stdout is not None
        port = int(hook.stdout.readline())
        table = (
            f'kind = "webhook"\nurl = "http://127.0.0.1:{port}/"\nsecret_env = ["BENCH_HOOK"]\n'
            f"allow_private = true\n{shape}"
        )
        try:
            return await rate(stream_to(log, directory, "webhook", table, start=rows), 1)
        finally:
            hook.kill()


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
            listen=("SIEM_HTTP", "SIEM_ELASTICSEARCH_HTTP", "SIEM_HEALTH", "SIEM_METRICS_PORT"),
            environment={
                # nobody is there: all of it stays in the queues
                "SPLUNK_HEC_ENDPOINT": "http://127.0.0.1:1/services/collector",
                "SPLUNK_HEC_TOKEN": "x", "AUDIT_KAFKA_BROKERS": "[127.0.0.1:1]",
                "SIEM_FILE": str(directory / "siem.json"),
                "ELASTICSEARCH_ENDPOINT": "http://127.0.0.1:1",
            },
        )  # fmt: skip
        with running(it):
            assert it.process is not None
            before = cpu_of(it.process.pid)
            table = f'kind = "otlp"\nendpoint = "{it.url("SIEM_HTTP")}"\n{shape}'
            found["collector"] = await rate(
                stream_to(log, directory, "collector", table), options.rows
            )
            its = cpu_of(it.process.pid) - before
            found["collector"]["collectors_cpu_us_per_record"] = round(its / options.rows * 1e6)
    found["webhook"] = await webhook_rate(log, directory, shape, options.rows * 3 // 4)
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
