"""A store in memory, for what is about the sink's front and not about PostgreSQL."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from otel_audit.delivery.sink import Accepted, Receipt, Refused
from otel_audit.record import AuditRecord, to_json


class MemoryStore:
    """Keeps what it is given; raises what it is told to."""

    def __init__(self) -> None:
        self.records: dict[str, AuditRecord] = {}
        self.quarantine: list[Refused] = []
        self.batches: list[int] = []
        self.error: Exception | None = None
        self.gate = None

    async def check(self) -> None:
        if self.error is not None:
            raise self.error

    async def receiving_key(self) -> bytes:
        await self.check()
        return b"k" * 32

    async def accept(
        self, records: Sequence[AuditRecord], refused: Sequence[Refused] = ()
    ) -> Accepted:
        if self.gate is not None:
            await self.gate.wait()
        await self.check()
        self.batches.append(len(records))
        self.records.update((record.record_id, record) for record in records)
        self.quarantine += refused
        return Accepted()

    async def receipts(self, record_ids: Sequence[str]) -> dict[str, Receipt]:
        now = datetime(2026, 1, 1, tzinfo=UTC)
        return {
            one: Receipt(one, hashlib.sha256(to_json(self.records[one])).hexdigest(), now)
            for one in record_ids
            if one in self.records
        }

    async def close(self) -> None:
        self.gate = None
