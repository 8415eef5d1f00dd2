"""Group commit: what requests bring at the same time is stored together, and answered after it is.

Each writer has a connection of its own. What comes while all are busy waits, and goes with the next
one that is free, so that batches grow with the load and no record waits without need.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Final

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.delivery.sink import Accepted, Conflict, Receipt, ReceivingSink, Refused
from otel_audit.errors import StoreError, StoreUnavailableError
from otel_audit.record import AuditRecord
from otel_audit.server.errors import RETRY_AFTER, unavailable

_logger = logging.getLogger(__name__)

_PAUSE: Final = 1.0
"""Seconds for which a failed store is not called again."""

_BATCH_BYTES: Final = 8_000_000
"""Bytes of records that are stored together; one part of a request is never taken apart."""

_AWAY: Final = "the audit store cannot be reached now; nothing was stored"
_HELD: Final = "the audit store refuses valid records until it is fixed; send them again"
_ENDING: Final = "this server is ending; nothing was stored"


@dataclass(frozen=True, slots=True)
class Stored:
    """The result of one request's records.

    Attributes:
        quarantined: Those that the store quarantined.
        receipts: Receipts of the others, if requested, by the id in the store.
        conflicts: Those that it has under another id than their own.
    """

    quarantined: list[Refused]
    receipts: dict[str, Receipt]
    conflicts: list[Conflict] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Waiting:
    records: Sequence[AuditRecord]
    to_quarantine: Sequence[Refused]
    wants_receipts: bool
    done: asyncio.Future[Stored]
    sender: str
    size: int
    ids: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = frozenset(record.record_id for record in self.records)


class _Queue:
    """The waiting requests, by sender: one of each in turn, so that none waits for all of another.

    Senders that were served last come last.
    """

    def __init__(self) -> None:
        self._by_sender: dict[str, deque[_Waiting]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_sender)

    def __iter__(self) -> Iterator[_Waiting]:
        return chain.from_iterable(self._by_sender.values())

    def append(self, one: _Waiting) -> None:
        self._by_sender.setdefault(one.sender, deque()).append(one)

    def remove(self, one: _Waiting) -> None:
        """Take one out that nobody waits for any more, if no writer has it yet."""
        waiting = self._by_sender.get(one.sender)
        if waiting is None or one not in waiting:
            return
        waiting.remove(one)
        if not waiting:
            del self._by_sender[one.sender]

    def clear(self) -> None:
        self._by_sender.clear()

    def take(self, most_records: int, most_bytes: int) -> list[_Waiting]:
        """Take whole requests to be written together; none only where all were cancelled."""
        group: list[_Waiting] = []
        ids: set[str] = set()
        records = size = 0
        held_up: set[str] = set()
        while len(held_up) < len(self._by_sender) and records < most_records and size < most_bytes:
            sender = next(who for who in self._by_sender if who not in held_up)
            waiting = self._by_sender.pop(sender)
            if waiting[0].done.done():
                waiting.popleft()  # cancelled just now: `remove` would come too late
            # two under one id apart, so that each learns what became of its own
            elif ids.isdisjoint(waiting[0].ids):
                one = waiting.popleft()
                group.append(one)
                ids |= one.ids
                records += len(one.records)
                size += one.size
            else:
                held_up.add(sender)
            if waiting:
                self._by_sender[sender] = waiting
        return group


class Intake:
    """Takes what requests bring, and stores it."""

    def __init__(
        self,
        make_store: Callable[[], ReceivingSink],
        *,
        writers: int = 2,
        batch: int = 1000,
        retry_after: int = RETRY_AFTER,
        observe: Callable[[float, int], None] = lambda _seconds, _records: None,
    ) -> None:
        """Remember the settings; no connection is opened yet.

        Args:
            make_store: Makes a connection's store; called once a writer.
            writers: Connections.
            batch: Records that are stored together; one request's are never taken apart.
            retry_after: Seconds after which to try again, for those who are sent away.
            observe: Called with each write: seconds, and records.
        """
        self._make_store = make_store
        self._writers = writers
        self._batch = batch
        self._retry_after = retry_after
        self._observe = observe
        self._waiting = _Queue()
        self._wake = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self._asking: ReceivingSink | None = None
        self._asking_lock = asyncio.Lock()
        self._key: bytes | None = None
        self._away_until = 0.0
        self._check_again = 0.0
        self._found_wrong: str | None = None
        self._ending = False

    @property
    def depth(self) -> int:
        """Records that wait for a writer."""
        return sum(len(one.records) for one in self._waiting)

    @property
    def ending(self) -> bool:
        """Whether the intake is closed."""
        return self._ending

    def start(self) -> None:
        """Begin to write."""
        self._tasks = [
            asyncio.create_task(self._write_for_ever(), name=f"otel-audit-writer-{number}")
            for number in range(self._writers)
        ]

    def refuse_if_unavailable(self) -> None:
        """Send away at once, before anything is read, who could not be served.

        Raises:
            RequestError: 503.
        """
        if self._ending:
            raise unavailable(_ENDING, self._retry_after)
        if time.monotonic() < self._away_until:
            raise unavailable(_AWAY, self._retry_after)

    async def store(
        self,
        records: Sequence[AuditRecord],
        to_quarantine: Sequence[Refused],
        *,
        receipts: bool = False,
        sender: str = "",
        size: int = 0,
    ) -> Stored:
        """Store a request's records, or a part of them; return only after they are committed.

        If it is cancelled, what no writer has yet is not written.

        Args:
            records: The records.
            to_quarantine: What is not convertible, or undecodable.
            receipts: Whether receipts are requested.
            sender: Who sent them.
            size: About how many bytes they have.

        Raises:
            RequestError: 503, where they may not be stored; to be sent again.
        """
        self.refuse_if_unavailable()
        if not records and not to_quarantine:
            return Stored([], {})
        done = asyncio.get_running_loop().create_future()
        one = _Waiting(records, to_quarantine, receipts, done, sender, size)
        async with self._wake:
            self._waiting.append(one)
            self._wake.notify()
        try:
            return await one.done
        except asyncio.CancelledError:
            # its sender sends all of it again: left here, it would be memory that nobody counts,
            # and be written as often as it is sent
            self._waiting.remove(one)
            raise

    async def receiving_key(self) -> bytes:
        """The key of the store, read once.

        Raises:
            RequestError: 503, where it cannot be read.
        """
        if self._key is None:
            async with self._asking_lock:
                try:
                    self._key = self._key or await self._asked().receiving_key()
                except StoreError as error:
                    self._note_outage(error)
                    raise unavailable(_AWAY, self._retry_after) from None
        return self._key

    async def check(self) -> None:
        """Check whether the store accepts records; at most once a second.

        Raises:
            StoreError: It cannot; the message says why, and the remedy.
        """
        async with self._asking_lock:
            if time.monotonic() >= self._check_again:
                self._found_wrong = None
                try:
                    await self._asked().check()
                    self._away_until = 0.0
                except StoreError as error:
                    self._found_wrong = str(error)
                self._check_again = time.monotonic() + _PAUSE
            if self._found_wrong is not None:
                raise StoreError(self._found_wrong)

    async def stop(self, patience: float) -> None:
        """Store what waits, send away what comes, and close the connections. Never raises.

        Args:
            patience: Seconds that it may take.
        """
        self._ending = True
        async with self._wake:
            self._wake.notify_all()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=patience)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for one in self._waiting:
            _fail(one, unavailable(_ENDING, self._retry_after))
        self._waiting.clear()
        if self._asking is not None:
            await self._asking.close()

    def _asked(self) -> ReceivingSink:
        if self._asking is None:
            self._asking = self._make_store()
        return self._asking

    async def _write_for_ever(self) -> None:
        store = self._make_store()
        try:
            while group := await self._next_group():
                try:
                    await self._write(store, group)
                except asyncio.CancelledError:
                    for one in group:
                        _fail(one, unavailable(_ENDING, self._retry_after))
                    raise
        finally:
            await store.close()

    async def _next_group(self) -> list[_Waiting]:
        """Wait for work; empty at the end."""
        async with self._wake:
            group: list[_Waiting] = []
            while not group:
                await self._wake.wait_for(lambda: self._waiting or self._ending)
                if not self._waiting:
                    break
                group = self._waiting.take(self._batch, _BATCH_BYTES)
            if self._waiting:
                self._wake.notify()
            return group

    async def _write(self, store: ReceivingSink, group: Sequence[_Waiting]) -> None:
        records = [record for one in group for record in one.records]
        to_quarantine = [item for one in group for item in one.to_quarantine]
        asked = [id_ for one in group if one.wants_receipts for id_ in one.ids]
        began = time.monotonic()
        try:
            became = await store.accept(records, to_quarantine)
            asked += [conflict.stored_as for conflict in became.conflicts] if asked else []
            receipts = await _receipts(store, asked)
        except Exception as error:  # noqa: BLE001 - whatever it is, no sender gets success
            self._note_outage(error)
            for one in group:
                _fail(one, unavailable(_AWAY, self._retry_after))
            return
        self._observe(time.monotonic() - began, len(records))
        if self._found_wrong is not None:
            # the store has accepted records since: the next check gets a fresh answer
            self._check_again = 0.0
        if became.postponed:
            self._note_outage(
                StoreError(became.why_postponed), rests=len(became.postponed) == len(records)
            )
        for one in group:
            if not one.ids.isdisjoint(became.postponed):
                _fail(one, unavailable(_HELD, self._retry_after))
            elif not one.done.done():
                one.done.set_result(_own(one, became, receipts))

    def _note_outage(self, error: Exception, *, rests: bool = True) -> None:
        if rests:
            self._away_until = time.monotonic() + _PAUSE
        if isinstance(error, StoreUnavailableError):
            log_limited(_logger, "away", "No records accepted: %s", error, level=logging.WARNING)
        elif isinstance(error, StoreError):
            log_limited(_logger, "held", "NO RECORDS ACCEPTED until this is fixed: %s", error)
        else:
            log_limited(_logger, "write", "No records accepted: writing failed", error=error)


def _own(one: _Waiting, became: Accepted, receipts: dict[str, Receipt]) -> Stored:
    """Give a request the results of its own records, and of no others."""
    quarantined = [item for item in became.refused if item.record_id in one.ids]
    conflicts = [item for item in became.conflicts if item.record_id in one.ids]
    if not one.wants_receipts:
        return Stored(quarantined, {}, conflicts)
    # of several records under one id, one may have it; else it is another's, and so its receipt
    left = Counter(record.record_id for record in one.records)
    left.subtract(item.record_id for item in quarantined)
    left.subtract(conflict.record_id for conflict in conflicts)
    there = [id_ for id_, count in left.items() if count > 0]
    found = {id_: receipts[id_] for id_ in there if id_ in receipts}
    for item in conflicts:
        receipt = receipts.get(item.stored_as)
        if receipt is not None:
            found[item.stored_as] = replace(receipt, conflict_of=item.record_id)
    return Stored(quarantined, found, conflicts)


async def _receipts(store: ReceivingSink, record_ids: Sequence[str]) -> dict[str, Receipt]:
    """Read receipts, by ids as their senders wrote them; an id that is not a UUID has none."""
    spelled = {}
    for record_id in record_ids:
        with contextlib.suppress(ValueError):
            spelled[record_id] = str(uuid.UUID(record_id))
    found = await store.receipts(list(spelled.values())) if spelled else {}
    return {ours: found[theirs] for ours, theirs in spelled.items() if theirs in found}


def _fail(one: _Waiting, problem: Exception) -> None:
    if not one.done.done():
        one.done.set_exception(problem)
