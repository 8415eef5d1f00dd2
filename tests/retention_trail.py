"""A store with months of long ago, an archive, and a policy by which they are due."""

from __future__ import annotations

from datetime import UTC, date, datetime

from ledger_store import Log
from otel_audit_postgres import maintain
from otel_audit_postgres.archive.check import ArchiveCheckOptions, together, verify_archives
from otel_audit_postgres.archive.objects import FolderArchive
from otel_audit_postgres.ledger.verify.verify import verify
from otel_audit_postgres.retention.policy import read_policy
from otel_audit_postgres.retention.run import RetentionRunOptions, run
from otel_audit_postgres.sink import PostgresSink
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.record import Actor, Target, Tenant

# With a floor of 30, last month's empty partition would be due on each 31st, and the one before it
# after a month's end that comes while the tests run.
POLICY = """
floor = 45
[default]
hot = 60
archive = 3000
[[rule]]
name = "sign-ins"
match = { event = "auth.*" }
min = 90
hot = 60
archive = 40
"""
JANUARY, MARCH, APRIL = date(2025, 1, 1), date(2025, 3, 1), date(2025, 4, 1)


def ids_of(month: date, count: int) -> list[str]:
    start = int(datetime(month.year, month.month, 10, tzinfo=UTC).timestamp())
    return [uuid7((start + number) * 10**9) for number in range(count)]


class Trail(Log):
    """A store with its key, its anchor and its archive."""

    def __init__(self, dsn, directory, key=None):
        super().__init__(dsn, directory, key)
        self.archive = FolderArchive(directory / "archive")
        self.policy = read_policy(POLICY)

    async def write_in(
        self, month, count, *, event="order.paid", tenant="acme", actor="ada", **fields
    ):
        sink = PostgresSink(self.dsn, connect_timeout=60)
        ids = ids_of(month, count)
        records = [
            a_record(
                record_id=record_id, occurred_at=(int(record_id[:8] + record_id[9:13], 16)) * 10**6,
                event_name=event, tenant=Tenant(id=tenant), actor=Actor(id=actor, type="user"),
                target=Target(type="order", id=str(number)), **fields,
            )
            for number, record_id in enumerate(ids)
        ]  # fmt: skip
        assert (await sink.write(records)).stored == count
        await sink.close()
        await maintain(self.dsn, months=[month])
        return ids

    def run_options(self, **options):
        return RetentionRunOptions(
            **{
                "dsn": self.dsn,
                "archive": self.archive,
                "signer": self.key,
                "keys": [self.key.public],
                "seal": self.seal,
                **options,
            }
        )

    async def retain(self, today=None, **options):
        policy = options.pop("policy", self.policy)
        return await run(policy, self.run_options(**options), today)

    def check_options(self, **options):
        return ArchiveCheckOptions(self.archive, options.pop("keys", [self.key.public]), deep=True)

    async def check(self, **options):
        return await verify_archives(self.dsn, self.check_options(**options))

    async def check_all(self):
        options = self.check_options()
        report = await verify(self.dsn, keys=options.keys, anchors=[self.anchor])
        archived = await verify_archives(self.dsn, options)
        return together(report, archived), archived
