"""The sealer: turns the rows that wait into leaves, and signs the new tree.

However many sealers run, in each moment one of them seals; all may die at any moment, as a block,
its checkpoint and the queue change together or not at all.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit._util.aio import unless_stopped, wait_at_most
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.delivery.batch_size import BatchSize
from otel_audit.errors import OtelAuditError, StoreError, StoreUnavailableError
from otel_audit_postgres.connection import (
    ANSWER,
    Connection,
    TimeLimits,
    connect,
    disconnect_later,
    disconnected,
    wait_until_durable,
)
from otel_audit_postgres.errors import as_store_error
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.anchors import Anchor, forgotten, remembers
from otel_audit_postgres.ledger.checkpoints import Checkpoint, NoteError, read_checkpoint, signed
from otel_audit_postgres.ledger.keys import Signer
from otel_audit_postgres.ledger.leaves import Block, Pruned, grown, packed
from otel_audit_postgres.ledger.malformed import MOST, write_flaws
from otel_audit_postgres.ledger.merkle import Frontier
from otel_audit_postgres.ledger.publish_anchors import AnchorCheckpoint, Publishing
from otel_audit_postgres.ledger.queued_rows import QueuedRows, judge_first

_logger = logging.getLogger(__name__)

OVERDUE: Final = 30.0
"""Seconds that a row may wait while another one holds the lock of sealing, without an error."""

BLOCK_BYTES: Final = 64_000_000
"""Bytes of rows in one block, or one row: they are read in one transaction, within its limits."""

_SECOND_LOOKS: Final = (0.2, 1.0)
"""Seconds after which an empty anchor is read again, before that counts."""

_BLOCKS_AT_ONCE: Final = 8
"""Blocks that are read in one statement; a slow link shall carry them within its time."""

_TIME_TO_STOP: Final = 5.0
"""Seconds to finish a round after it was stopped; a service manager kills after 10 s or more."""

_DOING: Final = "seal the audit store"
_DURABLE: Final = "SET LOCAL synchronous_commit = on"


class LedgerError(StoreError):
    """The ledger is not what it was; to go on sealing would cover it up."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """The result of one round.

    Attributes:
        rows: Rows that were sealed.
        size: Leaves in the tree now.
        faulty: Ids of rows that were changed or deleted before they were sealed. They are sealed
            as they were inserted, so that `verify` names them for ever.
        leads: False if another sealer was at work, and nothing was done.
        malformed: Ids of rows that were inserted malformed and not changed since. They are sealed
            as they are, and a signed note says so.
        waits: Seconds that the oldest row waits, where another one leads.
        holders: Who holds the lock of sealing then.
        more: Whether more waits than went into the block.
    """

    rows: int
    size: int
    faulty: tuple[str, ...] = ()
    leads: bool = True
    malformed: tuple[str, ...] = ()
    waits: float = 0.0
    holders: tuple[ledger_queries.Holder, ...] = ()
    more: bool = False

    @property
    def is_held_up(self) -> bool:
        """Whether another one holds the lock, and rows wait for too long."""
        return not self.leads and self.waits > OVERDUE

    def held_up_by(self) -> str:
        """Say how long rows wait, and for whom."""
        who = "; ".join(map(str, self.holders)) or "nobody any more: it is tried again"
        return f"rows wait for {self.waits:.0f} s; the lock of sealing is held by {who}"


@dataclass(frozen=True, slots=True)
class _Plan:
    """The block that a round is about to append.

    Attributes:
        tree: The log's tree with it.
        last_note: The last checkpoint that it was planned upon.
        agreeing: The anchors that agree with the log, and get its checkpoint.
        origin: The log's name, None if it has none yet.
        block: What to append; None for nothing.
        positions: Its places in the queue.
        judged: What the rows were found to be.
        new: Anchors that hold nothing.
        more: Whether more waits.
    """

    tree: Frontier
    last_note: str | None
    agreeing: list[Anchor]
    origin: str | None = None
    block: Block | None = None
    positions: list[int] = field(default_factory=list)
    judged: QueuedRows | None = None
    new: list[Anchor] = field(default_factory=list)
    more: bool = False


class Sealer:
    """Seals over one connection, opened when it is first needed and again after an error.

    Attributes:
        sealed_rows: Rows that this sealer has sealed.
        faulty_rows: Of these, how many had been changed or deleted.
        lag: Seconds that the oldest row has waited, when last measured; while rounds fail, at least
            those since then.
        failure: Why the last round failed; None if it did not.
    """

    def __init__(  # noqa: PLR0913 - a choice each
        self,
        dsn: str,
        *,
        signer: Signer | None = None,
        anchors: Sequence[Anchor] = (),
        batch: int = 5000,
        block_bytes: int = BLOCK_BYTES,
        connect_timeout: float = 10.0,
    ) -> None:
        """Remember the settings; no connection is opened yet.

        Args:
            dsn: The audit store, as a role that may seal.
            signer: The signer; None seals unsigned, which the owner of the database can forge.
            anchors: Where to publish.
            batch: Rows in one block, at most.
            block_bytes: Bytes of rows in one block, at most, or one row.
            connect_timeout: Seconds that connecting may take.
        """
        self._dsn = dsn
        self._signers = () if signer is None else (signer,)
        self._anchors = tuple(anchors)
        self._publishing = Publishing(self._anchors)
        self._began = False
        self._size = BatchSize(batch, block_bytes)
        self._tried = 0
        self._connect_timeout = connect_timeout
        self._connection: Connection[Any] | None = None
        self._tree = Frontier()
        self.sealed_rows = 0
        self.faulty_rows = 0
        self.lag = 0.0
        self._measured = time.monotonic()
        self.failure: str | None = None

    @property
    def failed_publications(self) -> int:
        """Number of failed reads and writes of anchors."""
        return self._publishing.failures

    @property
    def size(self) -> int:
        """Leaves under the last checkpoint that this sealer knows."""
        return self._tree.size

    async def seal(self) -> Sealed:
        """Seal what waits, one block at most, and publish the checkpoint.

        Nothing is held in the database while anchors or the signer are awaited: they are called
        between one transaction, which looks and plans, and another, which appends the block if
        no other sealer has sealed meanwhile.

        Returns:
            What was done.

        Raises:
            LedgerError: The ledger is smaller than, or different from, what this sealer or an
                anchor has seen of it, an anchor has forgotten it, or it lies in another database
                than before. Nothing was signed.
            StoreUnavailableError: The store cannot be reached now; nothing was sealed.
            StoreError: The store lacks the ledger, or the role a right.
        """
        with suppress_instrumentation():
            try:
                self._tried = 0
                connection = await self._connected()
                waits, size = await ledger_queries.outlook(connection)
                anchors = self._anchors if waits else self._publishing.behind(size)
                plan = await self._planned(connection, await self._answers(anchors, size))
                if isinstance(plan, Sealed):
                    self.failure = None
                    return plan
                if plan.block is None:
                    done, note = Sealed(0, plan.tree.size), plan.last_note
                else:
                    done, note = await self._appended(connection, plan)
                    if note is None:
                        self.failure = None
                        return done
                if note is not None and (plan.agreeing or plan.block is not None):
                    # what an anchor has seen must be there after a failover, too
                    await wait_until_durable(connection)
                self._tree = plan.tree
                self.lag = await ledger_queries.waiting_for(connection)
            except BaseException as error:
                self._drop()
                if self._tried:
                    # large rows, or a slow server: so many are too many for its time limits
                    self._size.failed(self._tried)
                if not isinstance(error, Exception):
                    raise
                ours = _as_ours(error)
                self.failure = str(ours)
                # by our own clock: the store does not say how long its rows wait
                self.lag = max(self.lag, time.monotonic() - self._measured)
                raise ours from None
            self.failure = None
            self._measured = time.monotonic()
            if done.rows:
                self._size.succeeded()
            self.sealed_rows += done.rows
            self.faulty_rows += len(done.faulty)
            if note is not None and plan.agreeing:
                await self._publishing.publish(note, plan.agreeing, plan.new)
        return done

    # after at most 5 s of the round, and before the 2 s that closing the connection may take: the
    # most impatient service managers kill after 10 s
    async def end_publications(self, timeout: float = 3.0) -> None:  # noqa: ASYNC109 - hands it on
        """Wait for running publications, and cancel those that do not end in time."""
        await self._publishing.end_running(timeout)

    async def run(self, stop: asyncio.Event, interval: float = 1.0) -> None:
        """Seal until stopped.

        Args:
            stop: Set it to end; the round under way is cut off 5 s later.
            interval: Seconds between two rounds where little waits.

        Raises:
            LedgerError: As for `seal`.
            StoreError: As for `seal`; while the store is merely unavailable it is tried again.
        """
        while True:
            more = False
            try:
                done = await unless_stopped(self.seal(), stop, _TIME_TO_STOP)
                more = done is not None and done.more
            except StoreUnavailableError as error:
                log_limited(_logger, "seal", "Sealing waits: %s", error)
            if stop.is_set():
                return
            if not more:
                await wait_at_most(stop, interval)

    async def _followed(self, connection: Connection[Any]) -> Sealed:
        """Measure how long rows wait while another sealer leads; log it if that is too long."""
        self.lag = await ledger_queries.waiting_for(connection)
        self._measured = time.monotonic()
        holders = tuple(await ledger_queries.holders(connection)) if self.lag > OVERDUE else ()
        done = Sealed(0, self._tree.size, leads=False, waits=self.lag, holders=holders)
        if done.is_held_up:
            log_limited(_logger, "held", "Nothing is sealed: %s", done.held_up_by())
        return done

    async def close(self) -> None:
        """Give back the connection. Never raises."""
        self._publishing.forget_running()
        self._drop()
        await disconnected()

    async def _connected(self) -> Connection[Any]:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(
                self._dsn, self._connect_timeout, TimeLimits(answer=ANSWER)
            )
            await ledger_queries.refuse_without_ledger(self._connection)
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            disconnect_later(connection)

    async def _answers(self, anchors: Sequence[Anchor], size: int) -> list[AnchorCheckpoint]:
        """Read anchors, and empty ones once more: another sealer may just be writing to them."""
        answers = await self._publishing.ask(anchors, begun_here=self._began)
        if self._began or not size:
            return answers
        for pause in _SECOND_LOOKS:
            silent = [one.anchor for one in answers if one.note is None and remembers(one.anchor)]
            if not silent:
                break
            await asyncio.sleep(pause)
            answered = [one for one in answers if one.anchor not in silent]
            answers = [*answered, *await self._publishing.ask(silent)]
        return answers

    async def _planned(
        self, connection: Connection[Any], answers: Sequence[AnchorCheckpoint]
    ) -> _Plan | Sealed:
        """Read ledger and queue, and return what to append; appends nothing."""
        async with connection.transaction():
            if not await ledger_queries.try_to_lead(connection):
                return await self._followed(connection)
            tree = await self._caught_up(connection)
            if not tree.size:
                self._began = True
            await self._refuse_what_differs(connection, tree, answers)
            await _refuse_elsewhere(connection)
            await ledger_queries.record_quarantined(connection)
            agreeing = [one.anchor for one in answers]
            last_note = await ledger_queries.last_note(connection)
            waiting = await ledger_queries.queued(connection, self._size.entries)
            new = [one.anchor for one in answers if one.note is None and remembers(one.anchor)]
            if not waiting:
                return _Plan(tree, last_note, agreeing, new=new)
            origin = await ledger_queries.origin(connection)
            self._tried = len(waiting)
            judged, count = await judge_first(connection, waiting, self._size.bytes)
            more = count < len(waiting) or count == self._size.entries
            waiting = waiting[:count]
        _log_faults(judged)
        block = packed(tree.size, sorted(entry.leaf for entry in waiting))
        grown_tree = tree.extended(block.leaf_hashes())
        return _Plan(
            grown_tree, last_note, agreeing, origin, block,
            [entry.position for entry in waiting], judged, new, more,
        )  # fmt: skip

    async def _appended(
        self, connection: Connection[Any], plan: _Plan
    ) -> tuple[Sealed, str | None]:
        """Sign what is planned, and append it, unless another one has sealed in the meantime."""
        block, judged = plan.block, plan.judged
        assert block is not None  # noqa: S101 - there is something to append
        assert judged is not None  # noqa: S101 - as there is a block
        origin = plan.origin or self._new_name()
        checkpoint = Checkpoint(origin, plan.tree.size, plan.tree.root())
        # a key management service is called over the network
        note = await asyncio.to_thread(signed, checkpoint, self._signers)
        flaws = None
        if judged.flaws:
            flaws = await asyncio.to_thread(
                write_flaws, origin, block.first, judged.flaws[:MOST], self._signers
            )
        if not block.first and plan.new:
            # they know of the log before it has a leaf: from then on, to know nothing is an error
            empty = Frontier()
            begins = Checkpoint(origin, empty.size, empty.root())
            done = await self._publishing.begin(
                plan.new, await asyncio.to_thread(signed, begins, self._signers)
            )
            # where that failed, it is tried in the next round
            for one in plan.new:
                if one not in done:
                    plan.agreeing.remove(one)
            plan.new.clear()
        async with connection.transaction():
            await connection.execute(_DURABLE)
            if not await ledger_queries.try_to_lead(connection):
                return await self._followed(connection), None
            if await ledger_queries.last_note(connection) != plan.last_note:
                return Sealed(0, self._tree.size, leads=False), None
            if plan.origin is None:
                await ledger_queries.begin_log(connection, origin)
            await ledger_queries.append(connection, block, note, plan.positions)
            if flaws is not None:
                await ledger_queries.append_flaws(connection, block.first, flaws)
        faulty = (*judged.deleted, *judged.changed)
        malformed = tuple(row.record_id for row in judged.malformed)
        sealed = Sealed(
            len(plan.positions), plan.tree.size, faulty, malformed=malformed, more=plan.more
        )
        return sealed, note

    def _new_name(self) -> str:
        return self._signers[0].name if self._signers else f"otel-audit/{uuid.uuid4()}"

    async def _caught_up(self, connection: Connection[Any]) -> Frontier:
        """Read what others have sealed since, and see that it fits what was seen before."""
        tree = self._tree
        async for piece in ledger_queries.pieces(connection, tree.size, at_once=_BLOCKS_AT_ONCE):
            if piece.first != tree.size or not piece.is_whole():
                raise LedgerError(
                    f"the ledger is damaged at leaf {tree.size}: run `otel-audit verify`"
                )
            tree = grown(tree, piece)
        note = await ledger_queries.last_note(connection)
        if note is None:
            if tree.size:
                raise LedgerError("the ledger's checkpoints are gone: run `otel-audit verify`")
            return tree
        last = _read(note, "the ledger's last checkpoint")
        if (last.size, last.root) != (tree.size, tree.root()):
            raise LedgerError(
                f"the ledger's last checkpoint has {last.size} leaves, its blocks (with what this "
                f"sealer has seen) {tree.size}, or their roots differ: run `otel-audit verify`"
            )
        return tree

    async def _refuse_what_differs(
        self, connection: Connection[Any], tree: Frontier, answers: Sequence[AnchorCheckpoint]
    ) -> None:
        for anchor, note in answers:
            if note is not None:
                await _refuse_other(connection, tree, anchor.name, note)
                continue
            why = forgotten(anchor, tree.size)
            # an anchor that never got the log's beginning from this sealer has not forgotten it
            if why is not None and (not self._began or self._publishing.has_published(anchor)):
                raise LedgerError(why)


def _as_ours(error: Exception) -> OtelAuditError:
    if isinstance(error, OtelAuditError):
        return error
    # what went wrong first says more than that a transaction could not be undone after it
    first = error.__context__
    return first if isinstance(first, StoreUnavailableError) else as_store_error(error, _DOING)


def _log_faults(judged: QueuedRows) -> None:
    """Say which rows are not what they should be, a line for each kind."""
    for kind, names in (("deleted", judged.deleted), ("changed", judged.changed)):
        if names:
            log_limited(
                _logger,
                kind,
                "%d rows were %s before they were sealed; the first is %s",
                len(names),
                kind,
                names[0],
            )
    if judged.malformed:
        log_limited(
            _logger,
            "malformed",
            "%d rows were inserted malformed, and are sealed as they are; the first is %s (%s)",
            len(judged.malformed),
            judged.malformed[0].record_id,
            judged.malformed[0].detail,
            level=logging.WARNING,
        )


async def _refuse_other(
    connection: Connection[Any], tree: Frontier, anchor: str, note: str
) -> None:
    seen = _read(note, f"what is at the anchor {anchor}")
    origin = await ledger_queries.origin(connection)
    if origin is not None and seen.origin != origin:
        raise LedgerError(f"the anchor {anchor} belongs to another log, {seen.origin}")
    if seen.size > tree.size:
        raise LedgerError(
            f"the anchor {anchor} has seen {seen.size} leaves, the ledger has {tree.size}: "
            "an old copy was restored, or its tail cut off; run `otel-audit verify`"
        )
    if await _root_at(connection, tree, seen.size) not in (seen.root, None):
        raise LedgerError(
            f"the first {seen.size} leaves are not those that the anchor {anchor} has seen: "
            "run `otel-audit verify`"
        )


async def _refuse_elsewhere(connection: Connection[Any]) -> None:
    """Raise where the log belongs to another database: this one is a copy, or was moved."""
    place = await ledger_queries.place(connection)
    if place.is_elsewhere:
        raise LedgerError(str(place))


async def _root_at(connection: Connection[Any], tree: Frontier, size: int) -> bytes | None:
    """The root of an earlier tree; None if its leaves were pruned."""
    if size == tree.size:
        return tree.root()
    earlier = Frontier()
    async for piece in ledger_queries.pieces(connection):
        if earlier.size >= size:
            break
        if isinstance(piece, Pruned):
            if earlier.size + piece.count > size:
                return None
            earlier = grown(earlier, piece)
        else:
            earlier = earlier.extended(piece.leaf_hashes()[: size - earlier.size])
    return earlier.root()


def _read(note: str, what: str) -> Checkpoint:
    try:
        return read_checkpoint(note)
    except NoteError as error:
        raise LedgerError(f"{what} cannot be read: {error}") from None
