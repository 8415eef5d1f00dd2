"""How long exports and reports take on a store of many records, and how much memory.

    python -m tests.benchmarks.exports_reports                       # 1,000,000 records
    python -m tests.benchmarks.exports_reports --rows 5000000 --write   # and the table into docs/reports.md

Fills a store in ``--data`` (kept for the next time) and measures each export format and each report,
each in a process of its own: its time, the CPU of this process and of the server's, and its memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import asyncpg

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent, HERE.parents[1]):
    sys.path.insert(0, str(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--data", type=Path, default=Path(tempfile.gettempdir()) / "otel-audit-bench"
    )
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    parser.add_argument("--write", action="store_true", help="write the table into docs/reports.md")
    parser.add_argument("--only", help="one measurement: export:csv, report:rights")
    parser.add_argument("--dsn", help="a store that is filled already")
    options = parser.parse_args()
    if options.only and options.dsn:
        print(json.dumps(asyncio.run(measure(options.dsn, options.only))))
        return
    if options.dsn:
        every(options.dsn, options)
        return
    from viewer_store_filled import filled_store, running_server

    options.data.mkdir(parents=True, exist_ok=True)
    with running_server(options.data) as server:
        every(asyncio.run(filled_store(server, options.data, options.rows)).dsn, options)


def every(dsn: str, options: argparse.Namespace) -> None:
    """Measure each in a process of its own, so that memory is its own."""
    from otel_audit_postgres.exports.write import DataFormat
    from otel_audit_postgres.reports.registry import REPORTS

    names = [
        *(f"export:{one}" for one in get_args(DataFormat)),
        *(f"report:{one}" for one in REPORTS),
    ]
    found = []
    load = os.getloadavg()[0]
    print("".join(HEAD), end="")
    for name in names:
        done = subprocess.run(
            [sys.executable, __file__, "--dsn", dsn, "--only", name],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        found.append(json.loads(done.stdout))
        print(line(found[-1]), end="", flush=True)
    records = found[0]["rows"]
    print(f"{records:,} records; load of the machine before: {load:.1f}")
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    if options.write:
        write_table(records, load, found)


HEAD = (
    "| what | rows | seconds | rows/s | CPU here | CPU of the server | memory |\n",
    "|---|---|---|---|---|---|---|\n",
)


def line(one: dict[str, Any]) -> str:
    kind, _, what = one["name"].partition(":")
    rate = f"{one['rate']:,}" if kind == "export" else ""
    return (
        f"| {kind} `{what}` | {one['rows']:,} | {one['seconds']:.1f} | {rate} | "
        f"{one['client_cpu']:.1f} s | {one['server_cpu']:.1f} s | {one['memory']} MB |\n"
    )


def write_table(records: int, load: float, found: list[dict[str, Any]]) -> None:
    """Put the table between its marks, for this number of records, and leave the rest as it is."""
    page = HERE.parents[1] / "docs" / "reports.md"
    begin, end = f"<!-- figures {records}: begin -->", f"<!-- figures {records}: end -->"
    before, _, rest = page.read_text().partition(begin)
    after = rest.partition(end)[2]
    if not after:
        raise SystemExit(f"{page} has no place for {records} records: {begin} … {end}")
    about = (
        f"{records:,} records, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, load of the machine before: "
        f"{load:.1f}, {os.cpu_count()} cores\n\n"
    )
    table = "".join([*HEAD, *map(line, found)])
    page.write_text(f"{before}{begin}\n\n{about}{table}\n{end}{after}")


async def measure(dsn: str, name: str) -> dict[str, Any]:
    """Measure one; reports of all the time that the store has, in all formats, thrown away."""
    import otel_audit_postgres.exports.write
    import otel_audit_postgres.reports.make_report  # noqa: F401 - what is imported is not measured

    server = await postmaster(dsn)
    begun, own, theirs = time.perf_counter(), time.process_time(), server_cpu(server)
    kind, _, what = name.partition(":")
    rows = await (exported(dsn, what) if kind == "export" else reported(dsn, what))
    seconds = time.perf_counter() - begun
    return {
        "name": name, "rows": rows, "seconds": round(seconds, 2), "rate": round(rows / seconds),
        "client_cpu": round(time.process_time() - own, 1),
        "server_cpu": round(server_cpu(server) - theirs, 1),
        "memory": memory(),
        "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def memory() -> int:
    """The most that this process has had in memory, in MB; `getrusage` counts its parent's, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


async def postmaster(dsn: str) -> int:
    """The server's first process; all others are its children."""
    connection = await asyncpg.connect(dsn)
    try:
        place = await connection.fetchval("SHOW data_directory")
    finally:
        await connection.close()
    return int((Path(place) / "postmaster.pid").read_text().split()[0])


def server_cpu(first: int) -> float:
    """Seconds of CPU of the server: of the processes that live, and of those that it has buried."""
    ticks = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(process.name) == first:
            ticks += sum(map(int, fields[11:15]))
        elif int(fields[1]) == first:
            ticks += sum(map(int, fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


async def exported(dsn: str, form: Any) -> int:
    from otel_audit_postgres.exports.write import write_export
    from otel_audit_postgres.query.grammar import Query

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"all.{form}"
        return (await write_export(dsn, Query(), form, out, views="off")).rows


async def reported(dsn: str, name: str) -> int:
    from otel_audit_postgres.query import queries
    from otel_audit_postgres.reports.make_report import make_report
    from otel_audit_postgres.reports.options import Options
    from otel_audit_postgres.reports.registry import find_report
    from otel_audit_postgres.reports.render import pieces

    definition = find_report(name)
    end = datetime.now(UTC)
    options = Options(
        begin=end - timedelta(days=200), end=end,
        subject="user-7@acme.example" if "subject" in definition.needs else None,
        query="actor:user-7@acme.example" if "query" in definition.needs else "",
    )  # fmt: skip
    async with queries.opened(dsn) as connection:
        report = await make_report(connection, definition, options)
    try:
        for form in ("html", "csv", "json"):
            for _ in pieces(report, form):
                pass
        return report.rows
    finally:
        report.close()


if __name__ == "__main__":
    main()
