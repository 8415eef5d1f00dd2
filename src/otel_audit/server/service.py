"""The common service behind all protocols: from a decoded request to its stored records."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from otel_audit._util.aio import begin_in_thread, has_ended
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.action.compose import chain_broken
from otel_audit.config import AuditConfig
from otel_audit.delivery.sink import Conflict, Receipt, ReceivingSink, Refused
from otel_audit.errors import ConfigurationError
from otel_audit.record import AuditRecord
from otel_audit.redaction import Redactor
from otel_audit.server.authentication import Authentication
from otel_audit.server.backpressure import MemoryBudget
from otel_audit.server.convert import Converter, NotConvertible, with_own_place
from otel_audit.server.credentials import Sender
from otel_audit.server.fair_scheduling import FairTurns, Turn
from otel_audit.server.intake import Intake, Stored
from otel_audit.server.items import LARGE, Batch, ReceivedItem
from otel_audit.server.metrics import ServerMetrics
from otel_audit.server.received_signal import Chains, Positions, break_id, stored_hash
from otel_audit.server.request_budget import RequestBudget
from otel_audit.server.signatures import TrustedSigners, read_trust_file
from otel_audit.setting_values import PREFIX

T = TypeVar("T")

_logger = logging.getLogger(__name__)

_STORED_AT_ONCE: Final = 1_000
"""Records of a request that are stored together: a large one is never in memory as a whole."""

_BYTES_AT_ONCE: Final = 4_000_000
"""Bytes of records that are stored together, for the same reason."""


@dataclass(slots=True)
class RequestResult:
    """The result of one request.

    Attributes:
        stored: Records that are in the store, those that were there before included.
        ignored: Spans that were not flagged.
        quarantined: What is in quarantine: not convertible, undecodable, or refused by the store.
        conflicts: What is stored under another id, as its own is another record's.
        receipts: The store's receipts by record id, if requested.
        notes: The parts of stored records that were left out or changed: where, and why.
    """

    stored: int = 0
    ignored: int = 0
    quarantined: list[Refused] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    receipts: dict[str, Receipt] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Service:
    """Reads, stores and counts; knows neither HTTP nor gRPC."""

    def __init__(
        self,
        config: AuditConfig,
        access: Authentication,
        make_store: Callable[[], ReceivingSink],
        meters: ServerMetrics,
    ) -> None:
        """Build all parts; nothing is opened yet.

        Args:
            config: The settings.
            access: Who may send.
            make_store: Makes a connection's store.
            meters: Where received items and their results are counted.
        """
        self.config = config
        self.access = access
        self.meters = meters
        self.budget = MemoryBudget(config.serve_max_in_flight_bytes)
        self.turns = FairTurns()
        self.intake = Intake(
            make_store,
            writers=config.serve_connections,
            retry_after=config.serve_retry_after,
            observe=self.meters.observe_write,
        )
        self._redactor = Redactor.from_config(config)
        self._signers = _signers(config)
        self._reader: Converter | None = None

    async def take(
        self,
        batches: Iterator[Batch],
        sender: Sender,
        allowance: RequestBudget | None = None,
        *,
        receipts: bool = False,
    ) -> RequestResult:
        """Store what a request holds; return only after it is committed.

        Args:
            batches: From the decoder, which may raise.
            sender: Who sends it.
            allowance: What the request may cost.
            receipts: Whether receipts are requested.

        Raises:
            RequestError: Not all of it is known to be stored.
        """
        # without one, the bounds of `RequestBudget` itself are all that there are
        allowance = RequestBudget(1 << 30, 1 << 30) if allowance is None else allowance
        taking = _Taking(await self._ready(), sender, allowance)
        turn = self.turns.of(sender.identity)
        outcome = RequestResult()
        is_left = True
        while is_left:
            async with turn:
                is_left = await taking.read(batches, turn)
            await self._store(taking, outcome, turn, receipts=receipts)
        self.meters.counts["ignored"] += outcome.ignored
        self.meters.counts["chains.broken"] += taking.broken_chains
        return outcome

    async def _store(
        self, taking: _Taking, outcome: RequestResult, turn: Turn, *, receipts: bool
    ) -> None:
        records, quarantined, size, positions = taking.give()
        sender = taking.sender
        stored = await self.intake.store(
            records, quarantined, receipts=receipts, sender=sender.identity, size=size
        )
        taking.reader.chains.note_positions(positions)
        self._count(len(records), quarantined, stored, sender)
        outcome.stored += len(records) - len(stored.quarantined)
        outcome.ignored = taking.ignored
        outcome.quarantined += [*quarantined, *stored.quarantined]
        outcome.conflicts += stored.conflicts
        if receipts:
            # a turn, as it takes about as long as reading the records did
            async with turn:
                found = await _with_integrity(records, stored.receipts, taking.reader.chains, turn)
            outcome.receipts.update(found)
        outcome.notes = taking.notes

    async def _ready(self) -> Converter:
        self.intake.refuse_if_unavailable()
        if self._reader is None:
            key = await self.intake.receiving_key()
            self._reader = Converter(
                self._redactor,
                key,
                self.config.serve_max_record_bytes,
                self._signers,
                requires_signature=self.config.serve_verify == "require",
            )
        return self._reader

    def _count(
        self, records: int, quarantined: list[NotConvertible], stored: Stored, sender: Sender
    ) -> None:
        self.meters.counts["stored"] += records - len(stored.quarantined)
        self.meters.counts["conflicts"] += len(stored.conflicts)
        for conflict in stored.conflicts:
            log_limited(
                _logger, f"conflict {sender.identity}",
                "A record from %s came under an id that another one has: %s, stored as %s",
                sender.identity, conflict.record_id, conflict.stored_as, level=logging.WARNING,
            )  # fmt: skip
        for item in (*quarantined, *stored.quarantined):
            kind = kind_of(item)
            self.meters.quarantined[kind] += 1
            log_limited(
                _logger, f"{kind} {sender.identity}", "A record from %s is in audit.quarantine: %s",
                sender.identity, item.reason, level=logging.WARNING,
            )  # fmt: skip


class _Taking:
    """One request that is being read, and what was read of it and is not stored yet."""

    def __init__(self, reader: Converter, sender: Sender, allowance: RequestBudget) -> None:
        self.sender = sender
        self.ignored = 0
        self.notes: list[str] = []
        self.broken_chains = 0
        self.reader = reader
        self._allowance = allowance
        self._records: list[AuditRecord] = []
        self._quarantined: list[NotConvertible] = []
        self._size = 0
        self._positions: Positions = {}

    async def read(self, batches: Iterator[Batch], turn: Turn) -> bool:
        """Read on until enough is there to be stored; return whether anything is left."""
        for batch in batches:
            self.ignored += batch.ignored
            for decode in batch.large:
                # it may take longer than a turn: others run meanwhile
                await _to_its_end(functools.partial(self._read_large, decode))
                await turn.pause()
            for item, why in batch.undecodable:
                self._quarantine(item, why)
                await turn.pause()
            for item in batch.items:
                self._take(item)
                # by time, not by number: one may be as large as ten thousand
                await turn.pause()
            await turn.pause()
            if len(self._records) + len(self._quarantined) >= _STORED_AT_ONCE:
                return True
            if self._size >= _BYTES_AT_ONCE:
                return True
        return False

    def give(self) -> tuple[list[AuditRecord], list[NotConvertible], int, Positions]:
        """Return what is to be stored, its approximate size in bytes, and how far streams come."""
        found = self._records, self._quarantined, self._size, self._positions
        self._records, self._quarantined, self._size, self._positions = [], [], 0, {}
        return found

    def _read_large(self, decode: Callable[[Batch], None]) -> None:
        found = Batch()
        decode(found)
        self.ignored += found.ignored
        for item, why in found.undecodable:
            self._quarantine(item, why)
        for item in found.items:
            self._take(item)

    def _quarantine(self, item: ReceivedItem, why: str) -> None:
        found = self.reader.quarantine_undecodable(item, why, self.sender, self._allowance)
        self._quarantined.append(found)
        self._size += len(found.received)

    def _take(self, item: ReceivedItem) -> None:
        item = with_own_place(item)
        before = self._allowance.came
        found = self.reader.read(item, self.sender, self._allowance, self._positions)
        self._size += self._allowance.came - before
        if isinstance(found, NotConvertible):
            self._quarantined.append(found)
            self._size += len(found.received)
            return
        self._records.append(found)
        if found.received is not None and found.received.link == "broken":
            self.broken_chains += 1
            self._records.append(chain_broken(found, break_id(found.occurred_at, found.record_id)))
        self.notes += [f"{item.spelled_place()}: {note}" for note in item.notes]


async def _to_its_end(work: Callable[[], T]) -> T:
    """Run it in a thread, and return only after that has ended, even if this is cancelled.

    Nothing stops a thread: if the turn and the memory of its request were given back before,
    another request would be read with the same `Converter` at the same time.
    """
    doing = begin_in_thread(work)
    await has_ended(doing)
    return doing.result()


def _signers(config: AuditConfig) -> TrustedSigners | None:
    if config.serve_verify == "off":
        return None
    if config.serve_trust_file is None:
        raise ConfigurationError(
            f"{PREFIX}SERVE_TRUST_FILE: missing, and {PREFIX}SERVE_VERIFY is "
            f"{config.serve_verify}; name the file of trusted signers"
        )
    return read_trust_file(config.serve_trust_file)


async def _with_integrity(
    records: Sequence[AuditRecord], receipts: Mapping[str, Receipt], chains: Chains, turn: Turn
) -> dict[str, Receipt]:
    """Give receipts the draft's hash, where the text that is stored is the one made here."""
    from otel_audit_postgres.rows import UnstorableRecordError, to_row

    found = dict(receipts)
    for record in records:
        await turn.pause()
        receipt = found.get(record.record_id)
        if receipt is None:
            continue
        try:
            row = to_row(record, to_copy=False)
        except UnstorableRecordError:
            continue  # it is in quarantine, and has no receipt of its own
        if row.content_hash.hex() != receipt.content_hash:
            continue  # it was there before, from another delivery
        if len(row.payload) > LARGE:
            # it may take longer than a turn, as when it was read
            hashed = await _to_its_end(functools.partial(stored_hash, row.payload))
        else:
            hashed = stored_hash(row.payload)
        if hashed is not None:
            found[record.record_id] = replace(receipt, integrity_hash=hashed)
            chains.note_stored(record.record_id, hashed)
    return found


def kind_of(item: Refused) -> str:
    """One word for why something is in quarantine."""
    if isinstance(item, NotConvertible):
        return item.kind
    from otel_audit_postgres.sink import CONFLICT

    return "conflict" if item.reason == CONFLICT else "unstorable"
