"""The sealer: turns the rows that wait into leaves, and signs what the tree has become.

However many sealers run, in each moment one of them seals; all may die at any moment, as a block,
its checkpoint and the queue change together or not at all.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit.complaints import complain
from otel_audit.errors import OtelAuditError, StoreError, StoreUnavailableError
from otel_audit_postgres.connecting import (
    Connection,
    connect,
    disconnect_later,
    disconnected,
    settle,
)
from otel_audit_postgres.failures import as_store_error
from otel_audit_postgres.ledger import store
from otel_audit_postgres.ledger.anchors import Anchor, AnchorError
from otel_audit_postgres.ledger.flaws import MOST, write_flaws
from otel_audit_postgres.ledger.keys import Signer
from otel_audit_postgres.ledger.leaves import Pruned, grown, packed
from otel_audit_postgres.ledger.merkle import Frontier
from otel_audit_postgres.ledger.notes import Checkpoint, NoteError, read_checkpoint, signed
from otel_audit_postgres.ledger.waiting import Judged, judge

_logger = logging.getLogger(__name__)

OVERDUE: Final = 30.0
"""Seconds that a row may wait while another one holds the lock of sealing, without an error."""

_DURABLE: Final = "SET LOCAL synchronous_commit = on"


class LedgerError(StoreError):
    """The ledger is not what it was; to go on sealing would cover it up."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What one round did.

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
    """

    rows: int
    size: int
    faulty: tuple[str, ...] = ()
    leads: bool = True
    malformed: tuple[str, ...] = ()
    waits: float = 0.0
    holders: tuple[store.Holder, ...] = ()

    @property
    def is_held_up(self) -> bool:
        """Whether another one holds the lock, and rows wait for too long."""
        return not self.leads and self.waits > OVERDUE

    def held_up_by(self) -> str:
        """Say how long rows wait, and for whom."""
        who = "; ".join(map(str, self.holders)) or "nobody any more: it is tried again"
        return f"rows wait for {self.waits:.0f} s; the lock of sealing is held by {who}"


class Sealer:
    """Seals over one connection, opened when it is first needed and again after an error."""

    def __init__(
        self,
        dsn: str,
        *,
        signer: Signer | None = None,
        anchors: Sequence[Anchor] = (),
        batch: int = 5000,
        connect_timeout: float = 10.0,
    ) -> None:
        """Remember where and with what; nothing is opened yet.

        Args:
            dsn: The audit store, as a role that may seal.
            signer: Who signs; None seals unsigned, which whoever owns the database can forge.
            anchors: Where to publish.
            batch: Rows in one block, at the most.
            connect_timeout: Seconds that connecting may take.
        """
        self._dsn = dsn
        self._signers = () if signer is None else (signer,)
        self._anchors = tuple(anchors)
        self._batch = batch
        self._connect_timeout = connect_timeout
        self._connection: Connection[Any] | None = None
        self._tree = Frontier()
        self._published: dict[int, int] = {}
        self.sealed_rows = 0
        self.faulty_rows = 0
        self.failed_publications = 0
        self.lag = 0.0

    @property
    def size(self) -> int:
        """Leaves under the last checkpoint, as far as this sealer knows."""
        return self._tree.size

    async def seal(self) -> Sealed:
        """Seal what waits, one block at the most, and publish the checkpoint.

        Returns:
            What was done.

        Raises:
            LedgerError: The ledger is smaller than, or different from, what this sealer or an
                anchor has seen of it. Nothing was signed.
            StoreUnavailableError: The store cannot be reached now; nothing was sealed.
            StoreError: The store lacks the ledger, or the role a right.
        """
        with suppress_instrumentation():
            try:
                connection = await self._connected()
                async with connection.transaction():
                    await connection.execute(_DURABLE)
                    if not await store.try_to_lead(connection):
                        return await self._followed(connection)
                    done, tree, note, agreeing = await self._seal(connection)
                    oldest = await store.waiting_for(connection)
                if note is not None:
                    # what an anchor has seen must be there after a failover, too
                    await settle(connection)
                self._tree = tree
                self.lag = oldest
            except BaseException as error:
                self._drop()
                if isinstance(error, OtelAuditError) or not isinstance(error, Exception):
                    raise
                raise as_store_error(error, "seal the audit store") from None
        self.sealed_rows += done.rows
        self.faulty_rows += len(done.faulty)
        if note is not None:
            await self._publish(note, agreeing)
        return done

    async def run(self, stop: asyncio.Event, interval: float = 1.0) -> None:
        """Seal until told to stop.

        Args:
            stop: Set it to end; what is under way is finished.
            interval: Seconds between two rounds where little waits.

        Raises:
            LedgerError: As for `seal`.
            StoreError: As for `seal`; while the store is merely unavailable it is tried again.
        """
        while True:
            more = False
            try:
                done = await self.seal()
                more = done.rows == self._batch
            except StoreUnavailableError as error:
                complain(_logger, "seal", "Sealing waits: %s", error)
            if stop.is_set():
                return
            if not more:
                await _wait(stop, interval)

    async def _followed(self, connection: Connection[Any]) -> Sealed:
        """Say what becomes of what waits, while another one leads."""
        self.lag = await store.waiting_for(connection)
        holders = tuple(await store.holders(connection)) if self.lag > OVERDUE else ()
        done = Sealed(0, self._tree.size, leads=False, waits=self.lag, holders=holders)
        if done.is_held_up:
            complain(_logger, "held", "Nothing is sealed: %s", done.held_up_by())
        return done

    async def close(self) -> None:
        """Give back the connection. Never raises."""
        self._drop()
        await disconnected()

    async def _connected(self) -> Connection[Any]:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._dsn, self._connect_timeout)
            await store.refuse_without_ledger(self._connection)
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            disconnect_later(connection)

    async def _seal(
        self, connection: Connection[Any]
    ) -> tuple[Sealed, Frontier, str | None, list[Anchor]]:
        tree = await self._caught_up(connection)
        waiting = await store.queued(connection, self._batch)
        if not waiting:
            agreeing = await self._agreeing(connection, tree, self._behind(tree.size))
            note = await store.last_note(connection) if agreeing else None
            return Sealed(0, tree.size), tree, note, agreeing
        agreeing = await self._agreeing(connection, tree, self._anchors)
        origin = await self._origin(connection)
        judged = await judge(connection, waiting)
        _complain_of(judged)
        block = packed(tree.size, sorted(entry.leaf for entry in waiting))
        tree = tree.extended(block.leaf_hashes())
        checkpoint = Checkpoint(origin, tree.size, tree.root())
        # a key management service is asked over the network
        note = await asyncio.to_thread(signed, checkpoint, self._signers)
        await store.append(connection, block, note, [entry.position for entry in waiting])
        if judged.flaws:
            flaws = await asyncio.to_thread(
                write_flaws, origin, block.first, judged.flaws[:MOST], self._signers
            )
            await store.append_flaws(connection, block.first, flaws)
        faulty = (*judged.deleted, *judged.changed)
        malformed = tuple(row.record_id for row in judged.malformed)
        return (
            Sealed(len(waiting), tree.size, faulty, malformed=malformed),
            tree,
            note,
            agreeing,
        )

    async def _caught_up(self, connection: Connection[Any]) -> Frontier:
        """Read what others have sealed since, and see that it fits what was seen before."""
        tree = self._tree
        async for piece in store.pieces(connection, tree.size):
            if piece.first != tree.size or not piece.is_whole():
                raise LedgerError(
                    f"the ledger is damaged at leaf {tree.size}: run `otel-audit verify`"
                )
            tree = grown(tree, piece)
        note = await store.last_note(connection)
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

    def _behind(self, size: int) -> list[Anchor]:
        """The anchors that lack the checkpoint of this size, as far as this sealer knows."""
        return [anchor for anchor in self._anchors if self._published.get(id(anchor), -1) < size]

    async def _agreeing(
        self, connection: Connection[Any], tree: Frontier, anchors: Sequence[Anchor]
    ) -> list[Anchor]:
        """Ask anchors what they saw last; those that cannot be asked now are left out."""
        agreeing = []
        for anchor in anchors:
            try:
                note = await anchor.last()
            except AnchorError as error:
                self._complain_unpublished(anchor, error)
                continue
            if note is not None:
                await _refuse_other(connection, tree, anchor.name, note)
            agreeing.append(anchor)
        return agreeing

    async def _origin(self, connection: Connection[Any]) -> str:
        found = await store.origin(connection)
        if found is not None:
            return found
        name = self._signers[0].name if self._signers else f"otel-audit/{uuid.uuid4()}"
        await store.begin_log(connection, name)
        return name

    async def _publish(self, note: str, anchors: Sequence[Anchor]) -> None:
        """Publish a checkpoint; where it fails, the next round tries again."""
        size = read_checkpoint(note).size
        for anchor in anchors:
            try:
                await anchor.publish(note)
                self._published[id(anchor)] = size
            except AnchorError as error:
                self._complain_unpublished(anchor, error)

    def _complain_unpublished(self, anchor: Anchor, error: AnchorError) -> None:
        self.failed_publications += 1
        complain(
            _logger,
            anchor.name,
            "Sealing goes on, but its checkpoints are not published, and tried again: %s",
            error,
        )


def _complain_of(judged: Judged) -> None:
    """Say which rows are not what they should be, a line for each kind."""
    for kind, names in (("deleted", judged.deleted), ("changed", judged.changed)):
        if names:
            complain(
                _logger,
                kind,
                "%d rows were %s before they were sealed; the first is %s",
                len(names),
                kind,
                names[0],
            )
    if judged.malformed:
        complain(
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
    origin = await store.origin(connection)
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


async def _root_at(connection: Connection[Any], tree: Frontier, size: int) -> bytes | None:
    """The root of an earlier tree; None where its leaves were pruned."""
    if size == tree.size:
        return tree.root()
    earlier = Frontier()
    async for piece in store.pieces(connection):
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


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
