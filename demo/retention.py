"""``python -m demo.retention``: a year in a minute, on a simulated clock.

Months fill, are archived, read back and dropped; one is held; one person is erased; and at the end
everything that is left, here and in the archive, still proves.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import sys
import tempfile
import time
import uuid
from datetime import UTC, date, datetime
from pathlib import Path

import asyncpg
from otel_audit_postgres import PostgresSink, maintain
from otel_audit_postgres.archive.check import ArchiveCheckOptions, together, verify_archives
from otel_audit_postgres.archive.objects import FolderArchive
from otel_audit_postgres.archive.prove import prove_archived
from otel_audit_postgres.ledger import verify_evidence
from otel_audit_postgres.ledger.anchors import FileAnchor
from otel_audit_postgres.ledger.keys import SigningKey, generate
from otel_audit_postgres.ledger.sealer import Sealer
from otel_audit_postgres.ledger.verify.verify import verify
from otel_audit_postgres.personal.key_store import FileWrapper, KeyStore, Subject
from otel_audit_postgres.personal.protect import Protector, read_fields
from otel_audit_postgres.retention.holds import HoldConditions, place_hold, release_hold
from otel_audit_postgres.retention.policy import read_policy
from otel_audit_postgres.retention.run import RetentionRunOptions, RunReport, run
from otel_audit_postgres.retention.subject import erase, export_subject

from otel_audit.record import Actor, AuditRecord, Source, Target, Tenant
from otel_audit.testing.store import embedded_server

YEAR = datetime.now(UTC).year - 2
ROWS = 400
PEOPLE = ("ada", "bob", "cyd", "dan")
ID = re.compile("hold [0-9a-f-]{36}")
HINTS = """
The same for a store of your own (docs/retention.md, docs/personal-data.md):
    .venv/bin/otel-audit retention --help
    .venv/bin/otel-audit hold place --help
    .venv/bin/otel-audit subject erase --help"""
POLICY = """
floor = 30
[default]
hot = 60
archive = 3650
[[rule]]
name = "sign-ins"
match = { event = "auth.*" }
hot = 60
archive = 90
"""


class Year:
    """A store, its keys and its archive, and the months that pass over them."""

    def __init__(self, dsn: str, keys: KeyStore, folder: Path) -> None:
        self.dsn, self.keys = dsn, keys
        self.archive = FolderArchive(folder / "archive")
        self.key: SigningKey = generate("audit.example.com/demo")
        self.anchor = FileAnchor(folder / "anchor", directory=False)
        self.policy = read_policy(POLICY)
        self.sample: list[uuid.UUID] = []

    async def fill(self, month: date) -> None:
        records = [self._record(month, number) for number in range(ROWS)]
        sink = PostgresSink(
            self.dsn,
            protector=Protector(self.keys, read_fields(["actor.email", "source.address"])),
        )
        await sink.write(records)
        await sink.close()
        await maintain(self.dsn, months=[month])
        await self.seal()
        self.sample.append(uuid.UUID(records[1].record_id))

    def _record(self, month: date, number: int) -> AuditRecord:
        moment = int(datetime(month.year, month.month, 2, tzinfo=UTC).timestamp()) + number * 600
        person = PEOPLE[number % len(PEOPLE)]
        record_id = uuid.UUID(int=(moment * 1000) << 80 | 7 << 76 | 2 << 62 | secrets.randbits(62))
        signs_in = number % 5 == 0
        return AuditRecord(
            record_id=str(record_id), action_id=str(record_id), phase="completed",
            schema_version="1", event_name="auth.signed_in" if signs_in else "order.paid",
            action="LOGIN" if signs_in else "UPDATE", outcome="success",
            occurred_at=moment * 10**9, transaction="committed",
            actor=Actor(id=person, type="user", email=f"{person}@example.com"),
            tenant=Tenant(id="acme"), source=Source(address=f"192.0.2.{number % 250}"),
            target=Target(type="order", id=str(number)),
        )  # fmt: skip

    async def seal(self) -> None:
        sealer = Sealer(self.dsn, signer=self.key, anchors=[self.anchor])
        while (await sealer.seal()).rows:
            pass
        await sealer.close()

    async def retain(self, today: date) -> RunReport:
        options = RetentionRunOptions(
            self.dsn, self.archive, self.key, [self.key.public], self.seal
        )
        return await run(self.policy, options, today)

    async def addresses_of(self, person: str) -> set[str]:
        subject = Subject("acme", person)
        return {
            one["record"]["source"]["address"]
            async for one in export_subject(self.dsn, self.keys, subject, self.archive)
        }


async def live(year: Year) -> bool:
    begun = time.monotonic()
    print("A year of a store, its keys and its archive; all of it is temporary.")
    hold: uuid.UUID | None = None
    for number in range(1, 13):
        await year.fill(date(YEAR, number, 1))
        if number == 4:
            hold, _ = await place_hold(
                year.dsn, "case 7", "a letter of a lawyer",
                HoldConditions(actor="dan", since=datetime(YEAR, 3, 1, tzinfo=UTC),
                           until=datetime(YEAR, 4, 1, tzinfo=UTC)),
                year.archive,
            )  # fmt: skip
            print(f"{YEAR}-04  a hold on what dan did in March")
        today = date(YEAR + number // 12, number % 12 + 1, 1)
        told(today, await year.retain(today))
        if number == 9:
            before = await year.addresses_of("bob")
            await erase(year.dsn, year.keys, Subject("acme", "bob"), "GDPR 17", "on demand")
            after = await year.addresses_of("bob")
            print(
                f"{today:%Y-%m}  bob is erased: his {len(before)} addresses are "
                f"{', '.join(sorted(after))} now"
            )
    assert hold is not None
    await release_hold(year.dsn, hold, "settled", year.archive)
    today = date(YEAR + 1, 6, 1)
    told(today, await year.retain(today))
    await year.seal()
    options = ArchiveCheckOptions(year.archive, [year.key.public], deep=True)
    archived = await verify_archives(year.dsn, options)
    here = await verify(year.dsn, keys=options.keys, anchors=[year.anchor])
    report = together(here, archived)
    rows = report.size - report.dropped
    print(f"\n{rows + archived.archived} rows: {archived.archived} archived, {rows} here")
    print(
        f"{archived.removed} more were removed as the policy says; {len(report.problems)} problems"
    )
    proved = 0
    for record_id in year.sample:
        bundle = prove_archived(year.archive, record_id, [year.key.public])
        proved += bool(verify_evidence.check(dict(bundle), []))
    print(f"{proved} of {len(year.sample)} records proved from the archive alone")
    print(f"a year in {time.monotonic() - begun:.0f} s")
    print(HINTS)
    return report.ok and proved == len(year.sample)


def told(today: date, done: RunReport) -> None:
    parts = [f"{name} archived and dropped: {rows} rows" for name, rows in done.dropped.items()]
    parts += [f"{name} stays: {ID.sub('hold', why)}" for name, why in done.blocked.items()]
    parts += [f"{len(done.removed)} expired archive files removed"] if done.removed else []
    for part in parts or ["nothing is due"]:
        print(f"{today:%Y-%m}  {part}")


async def demonstrate(dsn: str, keys_dsn: str, folder: Path) -> bool:
    keys = KeyStore(keys_dsn, FileWrapper(secrets.token_bytes(32)))
    await keys.init()
    try:
        return await live(Year(dsn, keys, folder))
    finally:
        await keys.close()


def main() -> int:
    with (
        tempfile.TemporaryDirectory() as folder,
        embedded_server() as server,
        server.database() as dsn,
    ):
        name = f"keys_{uuid.uuid4().hex[:8]}"
        asyncio.run(_create(dsn, name))
        ok = asyncio.run(demonstrate(dsn, server.dsn(name), Path(folder)))
    return 0 if ok else 1


async def _create(dsn: str, name: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()


if __name__ == "__main__":
    sys.exit(main())
