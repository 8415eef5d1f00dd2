"""Hostile requests as bytes on the wire, to real servers with both of their parsers."""

from __future__ import annotations

import json
import os
import re
import socket
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
from acceptance.servers import Server, uvicorn

from hostile import oracles
from hostile.applications import SHAPES, Seen
from hostile.driving import Answer
from hostile.generated import API_KEY_HEADER, CANARIES, KEY, TENANT_HEADER, Generator, Hostile
from hostile.oracles import Case
from otel_audit.record import AuditRecord

pytestmark = pytest.mark.slow

REQUESTS = int(os.environ.get("HOSTILE_REQUESTS", "24000")) // 24
"""To each server: what a request costs is the connection."""
SEED = os.environ.get("SEED", "1")
SHAPES_SERVED = ("catching all", "talking", "overriding")
HEALTH = "/our-own-health"
PATIENCE = 0.3
"""Seconds that the client waits where the server waits for more of a body that lied."""

JUDGED = (
    oracles.one_record_per_request,
    oracles.right_actor,
    oracles.reason_where_a_credential_was_presented,
    oracles.right_tenant,
    oracles.right_request,
    oracles.right_status,
    oracles.body_that_was_read,
    oracles.no_canary,
    oracles.bounded_record,
)


@pytest.mark.parametrize("parser", ["h11", "httptools"])
@pytest.mark.parametrize("shape", SHAPES_SERVED)
async def test_bytes_on_the_wire_do_no_harm(
    parser: str, shape: str, audit_store: str, tmp_path: Path
) -> None:
    """What a server makes of hostile bytes: one true row each, and no secret in any file."""
    journal = tmp_path / "journal.jsonl"
    settings = {
        "HOSTILE_SHAPE": shape,
        "HOSTILE_JOURNAL": str(journal),
        "PYTHONPATH": os.pathsep.join(map(str, _import_paths())),
        "OTEL_AUDIT_DSN": audit_store,
        "OTEL_AUDIT_JWT_KEY": KEY,
        "OTEL_AUDIT_JWT_ALGORITHMS": "HS256",
        "OTEL_AUDIT_API_KEY_HEADER": API_KEY_HEADER,
        "OTEL_AUDIT_TENANT_HEADER": TENANT_HEADER,
        "OTEL_AUDIT_REQUEST_LOG": "true",
        "OTEL_AUDIT_HEALTH_PATH": HEALTH,
        **{
            f"OTEL_AUDIT_{name.upper()}": str(value)
            for name, value in SHAPES[shape].settings.items()
        },
    }
    options = ("--http", parser, "--no-access-log")
    served = uvicorn(
        tmp_path, settings, *options, app="hostile.served_app:app", instrumented=False, forked=True
    )
    with served as server:
        server.wait_until_up()
        for request in islice(Generator(f"{SEED} {parser} {shape}"), REQUESTS):
            say(server, on_the_wire(request))
        health = httpx.get(server.url + HEALTH, timeout=60).json()
        server.stop()
        assert "Application shutdown complete" in server.output

    aside = await set_aside(audit_store)
    assert not aside, aside[0]
    counted = ("capture_errors", "dropped", "redaction_errors", "spool_errors", "quarantined")
    assert {name: health[name] for name in counted} == dict.fromkeys(counted, 0)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(lines) > REQUESTS // 3, "most requests did not get as far as the application"
    wrong = faults(lines, await stored(audit_store))
    assert not wrong, f"{parser}, {shape}, SEED={SEED}: {json.dumps(wrong, indent=1)[:4_000]}"
    # the application's own failures are in the server's log, which is none of ours
    assert not secrets_in(tmp_path / "spool")
    ours = [line for line in server.output.splitlines() if "otel_audit" in line]
    assert not [line for line in ours if any(secret in line for secret in CANARIES.values())]


def on_the_wire(request: Hostile) -> bytes:
    """Spell a request as bytes; a body has its length, unless a header lies about it."""
    names = {name.lower() for name, _ in request.headers}
    headers = [(name, re.sub(rb"[\r\n]", b" ", value)) for name, value in request.headers]
    body = b"".join(request.body)
    if request.kind == "websocket":
        headers += [
            (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"),
            (b"Sec-WebSocket-Version", b"13"), (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
        ]  # fmt: skip
    else:
        headers.append((b"Connection", b"close"))
        if not names & {b"content-length", b"transfer-encoding"}:
            headers.append((b"Content-Length", b"%d" % len(body)))
    head = [request.method.encode() + b" " + request.target + b" HTTP/1.1"]
    head += [name + b": " + value for name, value in headers]
    return b"\r\n".join([*head, b"", body])


def say(server: Server, raw: bytes) -> None:
    """Send bytes, and read until the server has answered, has closed, or waits for more."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        try:
            connection.sendall(raw)
            connection.settimeout(PATIENCE)
            while found := connection.recv(65_536):
                if found.startswith(b"HTTP/1.1 101"):
                    return
        except (TimeoutError, ConnectionError):
            return


async def stored(dsn: str) -> dict[str, list[AuditRecord]]:
    """Read what the store holds, by the requests' ids."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("SELECT payload::text AS payload FROM audit.audit_logs")
    finally:
        await connection.close()
    found: dict[str, list[AuditRecord]] = defaultdict(list)
    for row in rows:
        record = msgspec.json.decode(row["payload"], type=AuditRecord)
        assert record.request is not None
        found[record.request.id or ""].append(record)
    return found


async def set_aside(dsn: str) -> list[str]:
    """Read why the store has put records aside, which no client may bring about."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            "SELECT row_to_json(one)::text AS row FROM audit.quarantine one"
        )
    finally:
        await connection.close()
    return [row["row"][:1_500] for row in rows]


def faults(lines: list[Any], records: dict[str, list[AuditRecord]]) -> dict[str, list[str]]:
    """Judge each request that the application was given; return what is wrong, kind by kind."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        case = case_of(line, records.pop(line["id"], []))
        for oracle in JUDGED:
            wrong = oracle(case)
            if wrong is not None:
                found[oracle.__name__].append(f"{wrong}: {str(line)[:600]}")
    if records:
        found["of no request"] = [str(several)[:600] for several in records.values()]
    return found


def case_of(line: Any, records: list[AuditRecord]) -> Case:
    """Make a case of what the journal says; the bare application is not asked here."""
    body = line["seen"].pop("body")
    read = None if body is None else body.encode("latin-1")
    marker = re.search(rb"marker\d+x", read or b"")
    answer = Answer(sent=[(kind, value) for kind, value in line["sent"]])
    request = Hostile(
        kind=line["kind"],
        method=line["method"],
        target=line["target"].encode("latin-1").removesuffix(b"?"),
        headers=[
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in line["headers"]
        ],
        path=line["path"],
        marker="" if marker is None else marker[0].decode(),
    )
    seen = Seen(**line["seen"], body=read)
    return Case(request, answer, answer, seen, records, health={}, elsewhere="")


def secrets_in(directory: Path) -> list[str]:
    """Name the planted secrets that are in any file below a directory."""
    whole = b"".join(file.read_bytes() for file in directory.rglob("*") if file.is_file())
    return [name for name, secret in CANARIES.items() if secret.encode() in whole]


def _import_paths() -> Iterator[Path]:
    tests = Path(__file__).parents[1]
    yield tests
    yield tests.parent
    yield from map(Path, os.environ.get("PYTHONPATH", "").split(os.pathsep))
