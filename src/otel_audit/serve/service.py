"""What every way in has in common: from a decoded request to what was stored of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from otel_audit.complaints import complain
from otel_audit.config import AuditConfig
from otel_audit.pipeline.sink import Conflict, Receipt, Refused
from otel_audit.record import AuditRecord
from otel_audit.redaction import Redactor
from otel_audit.serve.access import Access
from otel_audit.serve.bounds import Budget
from otel_audit.serve.incoming import Batch
from otel_audit.serve.intake import Intake, Store
from otel_audit.serve.metering import Meters
from otel_audit.serve.reading import Reader, Unfit
from otel_audit.serve.senders import Sender

_logger = logging.getLogger(__name__)

_TURN: Final = 0.005
"""Seconds of reading after which others have their turn."""


@dataclass(slots=True)
class Outcome:
    """What became of one request.

    Attributes:
        stored: Records that are in the store, those that were there before included.
        ignored: Spans that were not flagged.
        quarantined: What is in quarantine instead, with the reason.
        conflicts: What is stored under another id, as its own is another record's.
        receipts: What the store says of what it has, by record id, where that was asked for.
    """

    stored: int = 0
    ignored: int = 0
    quarantined: list[Refused] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    receipts: dict[str, Receipt] = field(default_factory=dict)


class Service:
    """Reads, stores and counts; knows neither HTTP nor gRPC."""

    def __init__(
        self, config: AuditConfig, access: Access, make_store: Callable[[], Store]
    ) -> None:
        """Build everything; nothing is opened yet.

        Args:
            config: The settings.
            access: Who may send.
            make_store: Makes a connection's store.
        """
        self.config = config
        self.access = access
        self.meters = Meters()
        self.budget = Budget(config.serve_max_in_flight_bytes)
        self.intake = Intake(
            make_store,
            writers=config.serve_connections,
            retry_after=config.serve_retry_after,
            observe=self.meters.observe_write,
        )
        self._redactor = Redactor.from_config(config)
        self._reader: Reader | None = None

    async def take(
        self, batches: Iterator[Batch], sender: Sender, *, receipts: bool = False
    ) -> Outcome:
        """Store what a request holds; return only after it is committed.

        Args:
            batches: From the decoder, which may raise.
            sender: Who sends it.
            receipts: Whether receipts are wanted.

        Raises:
            Problem: Nothing of it is known to be stored.
        """
        reader = await self._ready()
        outcome = Outcome()
        records: list[AuditRecord] = []
        refused: list[Unfit] = []
        began = time.perf_counter()
        for batch in batches:
            outcome.ignored += batch.ignored
            for item, why in batch.broken:
                refused.append(reader.put_aside(item, why, sender))
                began = await _turn(began)
            for item in batch.items:
                found = reader.read(item, sender)
                if isinstance(found, Unfit):
                    refused.append(found)
                else:
                    records.append(found)
                # by time, not by number: one may be as large as ten thousand
                began = await _turn(began)
            began = await _turn(began)
        await asyncio.sleep(0)
        stored = await self.intake.store(records, refused, receipts=receipts)
        outcome.stored = len(records) - len(stored.quarantined)
        outcome.quarantined = [*refused, *stored.quarantined]
        outcome.conflicts = stored.conflicts
        outcome.receipts = stored.receipts
        self._count(outcome, sender)
        return outcome

    async def _ready(self) -> Reader:
        self.intake.refuse_if_away()
        if self._reader is None:
            key = await self.intake.receiving_key()
            self._reader = Reader(self._redactor, key, self.config.serve_max_record_bytes)
        return self._reader

    def _count(self, outcome: Outcome, sender: Sender) -> None:
        self.meters.counts["stored"] += outcome.stored
        self.meters.counts["ignored"] += outcome.ignored
        self.meters.counts["conflicts"] += len(outcome.conflicts)
        for conflict in outcome.conflicts:
            complain(
                _logger, f"conflict {sender.identity}",
                "A record from %s came under an id that another one has: %s, stored as %s",
                sender.identity, conflict.record_id, conflict.stored_as, level=logging.WARNING,
            )  # fmt: skip
        for item in outcome.quarantined:
            kind = kind_of(item)
            self.meters.quarantined[kind] += 1
            complain(
                _logger, f"{kind} {sender.identity}", "A record from %s is in audit.quarantine: %s",
                sender.identity, item.reason, level=logging.WARNING,
            )  # fmt: skip


async def _turn(began: float) -> float:
    """Let others have their turn, if it is time; say since when it is ours."""
    if time.perf_counter() - began < _TURN:
        return began
    await asyncio.sleep(0)
    return time.perf_counter()


def kind_of(item: Refused) -> str:
    """One word for why something is in quarantine."""
    if isinstance(item, Unfit):
        return item.kind
    from otel_audit_postgres.sink import CONFLICT

    return "conflict" if item.reason == CONFLICT else "unstorable"
