"""A store with its key and anchor, and an administrator who tampers with it."""

from __future__ import annotations

from otel_audit_postgres import PostgresSink
from otel_audit_postgres.ledger.anchors import FileAnchor
from otel_audit_postgres.ledger.keys import generate
from otel_audit_postgres.ledger.sealer import Sealer
from otel_audit_postgres.ledger.verify.verify import verify
from strategies import a_record

from otel_audit._util.ids import uuid7

ALWAYS = {
    "audit_logs": ("refuse_change", "refuse_row_change", "queue_for_sealing"),
    "ledger_queue": ("refuse_change",),
    "ledger_blocks": ("refuse_change",),
    "ledger_checkpoints": ("refuse_change",),
    "ledger_log": ("refuse_change",),
    "ledger_flaws": ("refuse_change",),
    "ledger_pruned": ("refuse_change",),
}


class Administrator:
    """Who owns the database can take the guards away, and put them back as if nothing was."""

    def __init__(self, connection):
        self.connection = connection

    async def does(self, statement, *parameters):
        async with self.connection.transaction():
            for table in ALWAYS:
                await self.connection.execute(f"ALTER TABLE audit.{table} DISABLE TRIGGER USER")
            status = await self.connection.execute(statement, *parameters)
            for table, triggers in ALWAYS.items():
                for trigger in triggers:
                    await self.connection.execute(
                        f"ALTER TABLE audit.{table} ENABLE ALWAYS TRIGGER {trigger}"
                    )
        return status


class Log:
    """A store together with its key and its anchor."""

    def __init__(self, dsn, directory, key=None):
        self.dsn = dsn
        self.key = key or generate("audit.example.com/log")
        self.anchor = FileAnchor(directory / "anchor", directory=False)

    def sealer(self, **options):
        return Sealer(self.dsn, **{"signer": self.key, "anchors": [self.anchor], **options})

    async def write(self, count, **fields):
        sink = PostgresSink(self.dsn, connect_timeout=60)
        records = [a_record(record_id=uuid7(), **fields) for _ in range(count)]
        assert (await sink.write(records)).stored == count
        await sink.close()
        return [record.record_id for record in records]

    async def seal(self, **options):
        sealer = self.sealer(**options)
        try:
            done = await sealer.seal()
            while (more := await sealer.seal()).rows:
                done = more
            return done
        finally:
            await sealer.close()

    async def verify(self, **options):
        return await verify(
            self.dsn, **{"keys": [self.key.public], "anchors": [self.anchor], **options}
        )
