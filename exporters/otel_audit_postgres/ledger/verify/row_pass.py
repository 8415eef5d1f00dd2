"""The rows under the log's leaves, each read and hashed again; by one process or by several."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from multiprocessing.connection import Connection as Pipe
from typing import Any, Final

from otel_audit.errors import StoreError, StoreUnavailableError
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.errors import sqlstate
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.keys import PublicKey
from otel_audit_postgres.ledger.leaves import Block, Leaf
from otel_audit_postgres.ledger.malformed import Flaw, Malformed, read_flaws
from otel_audit_postgres.ledger.row_check import (
    altered_columns,
    is_hashed_otherwise,
    is_no_record,
    leaf_of,
)
from otel_audit_postgres.ledger.verify.findings import Findings, ProblemKind
from otel_audit_postgres.ledger.verify.tree_pass import BlockRange

ROWS_AT_ONCE: Final = 1000
"""Rows that are fetched by one statement."""
LEAVES_AT_ONCE: Final = 20_000
"""Leaves, at least, that one of several processes checks in one go."""

_KEPT_OPEN_EVERY: Final = 1.0
"""Seconds: well within any timeout for idle transactions that makes sense."""
_NO_SNAPSHOT: Final = ("42704", "22023")
_CUT_OFF: Final = (
    "verify the audit store: the connection that holds what is verified was cut off, by the server "
    "or something before it; run it again, or with --jobs 1"
)

RowProgress = Callable[[int, int], None]
"""Called with how many leaves were seen, and of how many."""


@dataclass(frozen=True, slots=True)
class RowSelection:
    """The rows to read, and what is needed to judge them.

    Attributes:
        since: Only those that were sealed at this time or later.
        from_leaf: Only those from this leaf on, and those in ``leaves``.
        leaves: Only those of these leaves; None for all.
        origin: The log's name.
        keys: Public keys that may sign what is said of malformed rows.
    """

    since: datetime | None = None
    from_leaf: int = 0
    leaves: frozenset[int] | None = None
    origin: str | None = None
    keys: tuple[PublicKey, ...] = ()

    @property
    def is_all(self) -> bool:
        """Whether every row is read."""
        return self.since is None and not self.from_leaf and self.leaves is None

    def of(self, block: Block) -> list[int]:
        """The leaves of a block whose rows are read, counted within the block."""
        if self.since is not None and block.recorded_at and block.recorded_at < self.since:
            return []
        numbers = range(min(block.count, len(block.row_ids())))
        return [number for number in numbers if self._takes(block.first + number)]

    def _takes(self, leaf: int) -> bool:
        if self.from_leaf:
            return leaf >= self.from_leaf or (self.leaves is not None and leaf in self.leaves)
        return self.leaves is None or leaf in self.leaves


@dataclass(slots=True)
class Rows:
    """The result of reading the rows.

    Attributes:
        checked: Leaves whose row is there and was hashed again, changed or not.
        missing: Leaves without a row, with the row's id.
        last_present: The last leaf that has a row, -1 for none.
        findings: What is not as it was sealed.
    """

    checked: int = 0
    missing: list[tuple[int, uuid.UUID]] = field(default_factory=list)
    last_present: int = -1
    findings: Findings = field(default_factory=Findings)

    def add(self, other: Rows) -> None:
        """Take in what was seen elsewhere."""
        self.checked += other.checked
        self.missing += other.missing
        self.last_present = max(self.last_present, other.last_present)
        self.findings.take(other.findings)


async def check_rows(
    connection: Connection[Any],
    stretches: Sequence[BlockRange],
    choice: RowSelection,
    progress: RowProgress | None = None,
) -> Rows:
    """Check the rows of some blocks, one after the other.

    Args:
        connection: Within the verification's transaction.
        stretches: The blocks, in their order.
        choice: Which of their rows.
        progress: Called after each block.
    """
    seen = Rows()
    if not stretches:
        return seen
    end = stretches[-1].first + stretches[-1].count
    async for block in ledger_queries.blocks(
        connection, stretches[0].first, stretches[-1].first + 1
    ):
        await _check_block(connection, block, choice, seen)
        if progress is not None:
            progress(block.first + block.count, end)
    return seen


async def check_rows_together(  # noqa: PLR0913, PLR0917 - each a choice of its own
    dsn: str,
    connection: Connection[Any],
    stretches: Sequence[BlockRange],
    choice: RowSelection,
    jobs: int,
    progress: RowProgress | None = None,
) -> Rows:
    """Check rows by several processes, which all see what this transaction sees.

    Args:
        dsn: The audit store.
        connection: Within the verification's transaction.
        stretches: The blocks, in their order.
        choice: Which of their rows.
        jobs: How many processes.
        progress: Called after each part.
    """
    snapshot = await ledger_queries.exported_snapshot(connection)
    loop, seen, done = asyncio.get_running_loop(), Rows(), 0
    total = sum(stretch.count for stretch in stretches)
    # not forked: this process may have threads
    context = multiprocessing.get_context("spawn")
    lifeline, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(jobs, context, initializer=_depend_on, initargs=(lifeline,))
    kept = asyncio.create_task(_keep_open(connection))
    work: list[asyncio.Future[tuple[int, Rows]]] = []
    try:
        with _deaf_children():
            work = [
                loop.run_in_executor(pool, partial(_check_part, dsn, snapshot, part, choice))
                for part in _parts(stretches)
            ]
        for finished in asyncio.as_completed(work):
            leaves, rows = await finished
            seen.add(rows)
            done += leaves
            if progress is not None:
                progress(done, total)
    except BrokenProcessPool:
        raise StoreError(
            "verify the audit store: a process that reads rows was killed; is there memory for "
            f"{jobs} of them? With --jobs 1 there is none but this one"
        ) from None
    finally:
        # whether all is read, or this is cut short: no process stays
        held.close()
        kept.cancel()
        pool.shutdown(cancel_futures=True)
        lifeline.close()
        # whatever they end with was said, or does not matter any more
        await asyncio.gather(*work, return_exceptions=True)
        await _ended(kept)
    return seen


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Start processes that ignore Ctrl-C from their first moment on.

    It is the business of the one that begins them, which lets go then.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _depend_on(lifeline: Pipe) -> None:
    """End this process as soon as its parent closes the pipe or is gone."""

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            lifeline.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch, name="otel-audit-lifeline", daemon=True).start()


async def _keep_open(connection: Connection[Any]) -> None:
    """Run a statement now and then, so that the snapshot's transaction is not ended as idle."""
    while True:
        await asyncio.sleep(_KEPT_OPEN_EVERY)
        await ledger_queries.keep_open(connection)


async def _ended(kept: asyncio.Task[None]) -> None:
    """Raise what cut off the transaction that holds the snapshot, if anything did."""
    # not awaited by itself: the cancellation of this task would look like that of the other one
    await asyncio.wait([kept])
    error = None if kept.cancelled() else kept.exception()
    if error is not None:
        raise StoreUnavailableError(_CUT_OFF) from error


def _parts(stretches: Sequence[BlockRange]) -> Iterator[list[BlockRange]]:
    part: list[BlockRange] = []
    for stretch in stretches:
        part.append(stretch)
        if stretch.first + stretch.count - part[0].first >= LEAVES_AT_ONCE:
            yield part
            part = []
    if part:
        yield part


def _check_part(
    dsn: str, snapshot: str, part: Sequence[BlockRange], choice: RowSelection
) -> tuple[int, Rows]:
    """The work of another process."""

    async def check() -> Rows:
        async with (
            ledger_queries.opened(dsn, "verify the audit store", asks=True) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            try:
                await connection.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
            except Exception as error:
                if sqlstate(error) not in _NO_SNAPSHOT:
                    raise
                raise StoreUnavailableError(_CUT_OFF) from None
            await ledger_queries.unlimited(connection)
            return await check_rows(connection, part, choice)

    return sum(stretch.count for stretch in part), asyncio.run(check())


async def _check_block(
    connection: Connection[Any], block: Block, choice: RowSelection, seen: Rows
) -> None:
    ids, hashes, numbers = block.row_ids(), block.leaf_hashes(), choice.of(block)
    suspects: list[_Suspect] = []
    for start in range(0, len(numbers), ROWS_AT_ONCE):
        part = numbers[start : start + ROWS_AT_ONCE]
        verdicts: dict[uuid.UUID, list[_Verdict]] = defaultdict(list)
        leaves: dict[uuid.UUID, list[bytes]] = defaultdict(list)
        for number in part:
            leaves[ids[number]].append(hashes[number])
        # judged as they come, so that large rows are not all held at once
        async for row in ledger_queries.rows(connection, list(leaves)):
            verdicts[row["id"]].append(_judged(row, leaves[row["id"]]))
        for number in part:
            leaf, found = block.first + number, verdicts.get(ids[number], [])
            if not found:
                seen.missing.append((leaf, ids[number]))
                continue
            seen.checked += 1
            seen.last_present = leaf
            mine = [verdict for verdict in found if verdict.leaf_hash == hashes[number]]
            if not mine:
                altered = "payload, content_hash or recorded_at is not what was sealed"
                if any(hashes[number] in verdict.hashed_otherwise for verdict in found):
                    altered = _HASHED_OTHERWISE
                seen.findings.add(ProblemKind.CHANGED, altered, str(ids[number]), leaf)
            elif all(verdict.columns for verdict in mine):
                suspects.append(_Suspect(leaf, ids[number], mine[0]))
    if suspects:
        await _judge_suspects(connection, block, choice, suspects, seen.findings)


_HASHED_OTHERWISE: Final = (
    "the payload is not what content_hash and the leaf say: changed since, or inserted so before "
    "the store looked at that (version 6)"
)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """A row's current state: its leaf, and the columns that do not match its payload."""

    leaf_hash: bytes
    columns: list[str]
    is_no_record: bool
    hashed_otherwise: tuple[bytes, ...]
    tenant_id: str
    producer: str | None


@dataclass(frozen=True, slots=True)
class _Suspect:
    leaf: int
    record_id: uuid.UUID
    verdict: _Verdict


def _judged(row: Mapping[str, Any], leaf_hashes: Sequence[bytes]) -> _Verdict:
    columns = altered_columns(row)
    return _Verdict(
        leaf_of(row).hash(),
        columns,
        bool(columns) and is_no_record(row),
        tuple(one for one in leaf_hashes if columns and is_hashed_otherwise(row, one)),
        row["tenant_id"],
        row["producer_id"],
    )


async def _judge_suspects(
    connection: Connection[Any],
    block: Block,
    choice: RowSelection,
    suspects: Sequence[_Suspect],
    findings: Findings,
) -> None:
    """Distinguish rows that were inserted so, by their leaves or the sealer's note, from others."""
    note = await ledger_queries.flaws(connection, block.first)
    flaws: frozenset[Flaw] = frozenset()
    if note is not None:
        flaws = read_flaws(note, choice.origin, block.first, choice.keys)
    named = {record_id for record_id, _ in flaws}
    hashes = await ledger_queries.column_hashes(
        connection, [suspect.record_id for suspect in suspects]
    )
    for suspect in suspects:
        record_id, verdict = suspect.record_id, suspect.verdict
        now = hashes.get((record_id.bytes, verdict.tenant_id), b"")
        # the leaf covers the text: a text that is not a record now was none when it was inserted
        no_record = verdict.is_no_record and record_id.bytes not in named
        what = (
            "the payload is not a record"
            if verdict.is_no_record
            else f"columns that do not follow from the payload: {', '.join(verdict.columns)}"
        )
        if no_record or (record_id.bytes, now) in flaws:
            findings.add_malformed(Malformed(what, str(record_id), suspect.leaf, verdict.producer))
        else:
            findings.add(ProblemKind.CHANGED, what, str(record_id), suspect.leaf)


async def blame(connection: Connection[Any], block: Block, findings: Findings) -> None:
    """Add what happened to a block whose rows agree with its leaves, and whose root does not."""
    found: dict[uuid.UUID, list[Leaf]] = defaultdict(list)
    async for row in ledger_queries.rows(connection, block.row_ids()):
        found[row["id"]].append(leaf_of(row))
    leaves = [leaf for record_id in block.row_ids() for leaf in found.get(record_id, [])]
    if leaves != sorted(leaves):
        kind, done = ProblemKind.REORDERED, "are not in the order in which they were sealed"
    else:
        kind, done = ProblemKind.CHANGED, "were rewritten together with their leaves"
    findings.add(
        kind,
        f"rows of leaves {block.first} to {block.first + block.count - 1} {done}",
        str(block.row_ids()[0]),
        block.first,
    )
