"""What archives cost: writing, verifying, asking, encrypting, erasing; real PostgreSQL, one machine.

    python tests/benchmarks/archive_rates.py [--rows 60000] [--asked 1000000] [--out FILE]

Prints one JSON object. ``rows_s`` is by the clock; ``cpu_us`` and ``server_cpu_us`` are of this
process and of PostgreSQL's, in microseconds a row, and ``rows_cpu_s`` is how many rows go through
a second of both. The question goes to so many archived rows as ``--asked`` says: copies of those
that were written, with ids, orders and actors of their own, in a file a month; in a folder, and in
S3 as moto serves it, with nothing fetched yet (``first``) and with copies kept (``again``).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import secrets
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import asyncpg
import msgspec
import pyarrow as pa
from bench_sink import a_write
from otel_audit_postgres import PostgresSink, maintain
from otel_audit_postgres.archive.catalog import ListedObject, archived_objects
from otel_audit_postgres.archive.check import ArchiveCheckOptions, verify_archives
from otel_audit_postgres.archive.manifest import ArchivedObject
from otel_audit_postgres.archive.objects import (
    ArchiveStore,
    FolderArchive,
    digest_of,
    open_archive,
)
from otel_audit_postgres.archive.parquet_files import RowFile, read_batches, row_schema
from otel_audit_postgres.archive.query import query_archives
from otel_audit_postgres.archive.write_month import write_month
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.keys import generate
from otel_audit_postgres.ledger.sealer import Sealer
from otel_audit_postgres.personal.key_store import FileWrapper, KeyStore, Subject
from otel_audit_postgres.personal.protect import Protector, read_fields
from otel_audit_postgres.query.grammar import parse
from otel_audit_postgres.retention.policy import read_policy
from otel_audit_postgres.retention.run import RetentionRunOptions, run
from otel_audit_postgres.retention.subject import erase
from ports import free_port

from otel_audit._util.ids import uuid7
from otel_audit.record import AuditRecord
from otel_audit.testing.store import embedded_server

BEGIN = 1_736_500_000  # in January 2025
MONTH = date(2025, 1, 1)
POLICY = read_policy("[default]\nhot = 60\narchive = 3650\n")
PERSONAL = ["actor.email", "source.address", "source.user_agent", "source.session_id"]


def records(count: int, first: int = 0) -> list[AuditRecord]:
    found = []
    for number in range(first, first + count):
        moment = (BEGIN * 1000 + number * 10) * 10**6
        record_id = uuid7(moment)
        found.append(
            msgspec.structs.replace(
                a_write(number), record_id=record_id, action_id=record_id, occurred_at=moment
            )
        )
    return found


def server_cpu(dsn: str) -> float:
    """Seconds of CPU of the processes of this server: its data directory is where they are."""
    place, seconds = dsn.partition("host=")[2].partition("&")[0], 0.0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if str((process / "cwd").readlink()) == place:
                fields = (process / "stat").read_text().rsplit(")", 1)[1].split()
                # its own, and that of the children that it has seen end
                seconds += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return seconds


@contextlib.contextmanager
def measured(into: dict[str, Any], name: str, rows: int, dsn: str = "") -> Iterator[None]:
    begun, before, server = time.perf_counter(), time.process_time(), server_cpu(dsn)
    yield
    seconds, cpu = time.perf_counter() - begun, time.process_time() - before
    server = server_cpu(dsn) - server
    into[name] = {
        "rows_s": round(rows / seconds), "cpu_us": round(cpu / rows * 1e6, 1),
        "server_cpu_us": round(server / rows * 1e6, 1), "rows_cpu_s": round(rows / (cpu + server)),
        "seconds": round(seconds, 3),
    }  # fmt: skip


async def stored(dsn: str, wanted: list[AuditRecord], protector: Protector | None = None) -> None:
    sink = PostgresSink(dsn, protector=protector)
    for first in range(0, len(wanted), 500):
        await sink.write(wanted[first : first + 500])
    await sink.close()


async def written_and_verified(dsn: str, rows: int, folder: Path, figures: dict[str, Any]) -> Path:
    for first in range(0, rows, 500):
        await stored(dsn, records(min(500, rows - first), first))
    await maintain(dsn, months=[MONTH])
    key = generate("bench.example.com/log")
    sealer = Sealer(dsn, signer=key)

    async def seal() -> None:
        while (await sealer.seal()).rows:
            pass

    await seal()
    for name in ("cold", "write"):
        (folder / name).mkdir()
        async with (
            ledger_queries.opened(dsn, "measure") as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            with measured(figures, name, rows, dsn):
                month = await write_month(connection, MONTH, folder / name, lambda *_: "default")
    figures["bytes_a_row"] = round(month.files[0].size / rows, 1)
    figures["memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    archive = FolderArchive(folder / "archive")
    with measured(figures, "run", rows, dsn):
        await run(POLICY, RetentionRunOptions(dsn, archive, key, [key.public], seal))
    await seal()
    await sealer.close()
    with measured(figures, "verify_deep", rows, dsn):
        report = await verify_archives(dsn, ArchiveCheckOptions(archive, [key.public], deep=True))
    assert report.ok, report.findings.problems
    return folder / "archive" / (await archived_objects(dsn))[0].entry.key


def copies(source: Path, folder: Path, rows: int) -> list[ListedObject]:
    """Months of rows like the given ones, each with an id, an order and an actor of its own."""
    template = pa.Table.from_batches(read_batches(source), schema=row_schema())
    size, listed = template.num_rows, []
    for number in range(-(-rows // size)):
        month = date(2015 + number // 12, number % 12 + 1, 1)
        count = min(size, rows - number * size)
        table = template.slice(0, count)
        moment = int(time.mktime(month.timetuple())) + 86_400
        ids = [uuid.UUID(uuid7((moment * 1000 + one) * 10**6)).bytes for one in range(count)]
        orders = [[f"order:{number * size + one}"] for one in range(count)]
        actors = [f"user-{(number * size + one) % 5000}" for one in range(count)]
        for name, values in (("id", ids), ("entities", orders), ("actor_id", actors)):
            place = table.schema.get_field_index(name)
            column = pa.array(values, table.schema.field(name).type)
            table = table.set_column(place, table.schema.field(name), column)
        key = f"{month:%Y-%m}/default-{number:016x}.parquet"
        path = folder / key
        path.parent.mkdir(parents=True)
        file = RowFile(path)
        file.add(table)
        file.close()
        entry = ArchivedObject(
            key, "default", count, path.stat().st_size, digest_of(path), 0, 0, None, None
        )
        listed.append(ListedObject(month, entry, is_removed=False))
    return listed


def questions(rows: int) -> dict[str, str]:
    return {
        "entity": f"entity:order:{rows // 3}", "actor": "actor:user-77",
        "actor_in_a_month": "actor:user-77 time:2015-01-01..2015-01-31",
        "text_that_is_frequent": "acme", "text_that_is_nowhere": "CA-1-nobody",
    }  # fmt: skip


def asked_once(archive: ArchiveStore, listed: list[ListedObject], text: str) -> dict[str, Any]:
    begun, before = time.perf_counter(), time.process_time()
    found = query_archives(archive, listed, parse(text))
    return {
        "seconds": round(time.perf_counter() - begun, 3),
        "cpu_seconds": round(time.process_time() - before, 3), "found": len(found),
    }  # fmt: skip


def asked(listed: list[ListedObject], folder: Path, rows: int) -> dict[str, Any]:
    archive, figures = FolderArchive(folder), {}
    for name, text in questions(rows).items():
        times = [asked_once(archive, listed, text) for _ in range(3)]
        figures[name] = sorted(times, key=lambda one: one["seconds"])[1]
    return figures


@contextlib.contextmanager
def moto() -> Iterator[str]:
    """A server that speaks S3, in a process of its own."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def asked_s3(listed: list[ListedObject], folder: Path, rows: int, cache: Path) -> dict[str, Any]:
    import boto3
    from botocore.exceptions import EndpointConnectionError

    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    figures: dict[str, Any] = {}
    with moto() as endpoint:
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        until = time.monotonic() + 60
        while True:
            try:
                client.create_bucket(Bucket="measure", ObjectLockEnabledForBucket=True)
                break
            except EndpointConnectionError:
                assert time.monotonic() < until
                time.sleep(0.1)
        url = f"s3://measure/a?endpoint={endpoint}&region=us-east-1"
        archive = open_archive(url)
        with measured(figures, "upload", rows):
            for one in listed:
                archive.put(one.entry.key, folder / one.entry.key, one.entry.sha256, None)
        for name, text in questions(rows).items():
            kept = open_archive(f"{url}&cache={cache / name}")
            figures[name] = {
                "first": asked_once(kept, listed, text), "again": asked_once(kept, listed, text),
            }  # fmt: skip
    return figures


async def encrypted(dsn: str, keys: KeyStore, rows: int, figures: dict[str, Any]) -> None:
    protector = Protector(keys, read_fields(PERSONAL))
    wanted = records(rows)
    for first in range(0, rows, 500):  # each actor has his key
        await protector.protect(wanted[first : first + 500])
    with measured(figures, "encrypt", rows, dsn):
        for first in range(0, rows, 500):
            await protector.protect(wanted[first : first + 500])
    times = {}
    for number, count in enumerate((10, 1000, 10_000)):
        mine = [
            msgspec.structs.replace(
                one, record_id=uuid7(), actor=msgspec.structs.replace(one.actor, id=f"p-{number}")
            )
            for one in wanted[:count]
        ]
        await stored(dsn, mine, protector)
        tenants = {one.tenant.id for one in mine if one.tenant is not None}
        begun = time.perf_counter()
        await erase(dsn, keys, Subject(min(tenants), f"p-{number}"), "law", "demand")
        times[str(count)] = round(time.perf_counter() - begun, 3)
    figures["erase_seconds_by_rows"] = times
    await protector.close()


REQUESTS = """
import asyncio, json, os, sys, time
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
import otel_audit

async def pay(request):
    number = request.headers["x-number"]
    otel_audit.set_actor(f"user-{int(number) % 500}", email=f"{number}@example.com")
    return JSONResponse({"ok": True})

app = Starlette(routes=[Route("/orders", pay, methods=["POST"])])
otel_audit.instrument(app)
count = int(sys.argv[1])

async def asked(number):
    headers = [(b"host", b"shop"), (b"user-agent", b"bench"), (b"x-number", b"%d" % number)]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": "/orders", "raw_path": b"/orders", "query_string": b"",
        "headers": headers, "client": ("203.0.113.7", 5), "server": ("shop", 80), "state": {},
    }
    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}
    async def send(message):
        pass
    await app(scope, receive, send)

async def main():
    for number in range(200):
        await asked(number)
    before, waited = time.process_time(), 0.0
    for number in range(count):
        begun = time.perf_counter()
        await asked(number)
        waited += time.perf_counter() - begun
        if number % 50 == 0:
            await asyncio.sleep(0.02)  # the worker's turn
    otel_audit.uninstrument()
    return time.process_time() - before, waited

cpu, waited = asyncio.run(main())
print(json.dumps({"cpu_us": round(cpu / count * 1e6, 1), "seen_us": round(waited / count * 1e6, 1)}))
"""


def requested(dsn: str, keys_dsn: str, folder: Path, count: int = 3000) -> dict[str, Any]:
    """The cost of a request, all of its process's CPU until everything is stored; with and without
    keys, by turns, the lowest of three."""
    kek = folder / "kek"
    kek.write_text(secrets.token_hex(32))
    kek.chmod(0o600)
    plain = {
        **os.environ, "OTEL_AUDIT_DSN": dsn, "OTEL_SERVICE_NAME": "bench",
        "OTEL_AUDIT_SPOOL_DIR": str(folder / "spool"),
    }  # fmt: skip
    keyed = {**plain, "OTEL_AUDIT_KEYS_DSN": keys_dsn, "OTEL_AUDIT_KEYS_KEK_FILE": str(kek)}
    subprocess.run(
        [str(Path(sys.executable).with_name("otel-audit")), "subject", "init"],
        env=keyed, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    figures: dict[str, dict[str, float]] = {}
    for _ in range(3):
        for name, environment in (("without_keys", plain), ("with_keys", keyed)):
            done = subprocess.run(
                [sys.executable, "-c", REQUESTS, str(count)], env=environment, check=True,
                capture_output=True, text=True,
            )  # fmt: skip
            once = json.loads(done.stdout.splitlines()[-1])
            best = figures.setdefault(name, once)
            figures[name] = {key: min(best[key], once[key]) for key in once}
    return figures


async def main(
    options: argparse.Namespace, dsn: str, keys_dsn: str, folder: Path
) -> dict[str, Any]:
    figures: dict[str, Any] = {"rows": options.rows, "asked_rows": options.asked}
    file = await written_and_verified(dsn, options.rows, folder, figures)
    listed = copies(file, folder / "many", options.asked)
    figures["question_folder"] = asked(listed, folder / "many", options.asked)
    figures["question_s3"] = asked_s3(listed, folder / "many", options.asked, folder / "cache")
    keys = KeyStore(keys_dsn, FileWrapper(secrets.token_bytes(32)))
    await keys.init()
    await encrypted(dsn, keys, 10_000, figures)
    await keys.close()
    return figures


async def create(dsn: str, name: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--asked", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


def measure(arguments: list[str], say: Callable[[str], None] = print) -> None:
    options = parsed(arguments)
    with (
        tempfile.TemporaryDirectory() as folder,
        embedded_server() as server,
        server.database() as dsn,
    ):
        name = f"keys_{uuid.uuid4().hex[:8]}"
        asyncio.run(create(dsn, name))
        figures = asyncio.run(main(options, dsn, server.dsn(name), Path(folder)))
        name = f"keys_{uuid.uuid4().hex[:8]}"
        asyncio.run(create(dsn, name))
        figures["request"] = requested(dsn, server.dsn(name), Path(folder))
    text = json.dumps(figures, indent=2)
    if options.out is not None:
        options.out.write_text(text + "\n", "utf-8")
    say(text)


if __name__ == "__main__":
    measure(sys.argv[1:])
