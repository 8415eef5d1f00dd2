"""The rows under the log's leaves, each read and hashed again; by one process or by several."""

from __future__ import annotations

import asyncio
import multiprocessing
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Final

from otel_audit_postgres.connecting import Connection
from otel_audit_postgres.ledger import store
from otel_audit_postgres.ledger.findings import Findings, Kind
from otel_audit_postgres.ledger.leaves import Block
from otel_audit_postgres.ledger.rowcheck import altered_columns, leaf_of
from otel_audit_postgres.ledger.walk import Stretch

ROWS_AT_ONCE: Final = 1000
LEAVES_AT_ONCE: Final = 20_000
"""Leaves, at the least, that one of several processes checks in one go."""

Progress = Callable[[int, int], None]
"""Is told how many leaves were seen, and of how many."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows are read.

    Attributes:
        since: Only those that were sealed at this time or later.
        from_leaf: Only those from this leaf on, and those in ``leaves``.
        leaves: Only those of these leaves; None for all.
    """

    since: datetime | None = None
    from_leaf: int = 0
    leaves: frozenset[int] | None = None

    @property
    def is_all(self) -> bool:
        """Whether every row is read."""
        return self == Choice()

    def of(self, block: Block) -> list[int]:
        """Which of a block's leaves to read the rows of, counted within the block."""
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
    """What was seen of the rows.

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
        self.findings.counts.update(other.findings.counts)
        self.findings.problems += other.findings.problems


async def check_rows(
    connection: Connection[Any],
    stretches: Sequence[Stretch],
    choice: Choice,
    progress: Progress | None = None,
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
    async for block in store.blocks(connection, stretches[0].first, stretches[-1].first + 1):
        await _check_block(connection, block, choice, seen)
        if progress is not None:
            progress(block.first + block.count, end)
    return seen


async def check_rows_together(  # noqa: PLR0913, PLR0917 - each a choice of its own
    dsn: str,
    connection: Connection[Any],
    stretches: Sequence[Stretch],
    choice: Choice,
    jobs: int,
    progress: Progress | None = None,
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
    snapshot = await store.exported_snapshot(connection)
    loop, seen, done = asyncio.get_running_loop(), Rows(), 0
    total = sum(stretch.count for stretch in stretches)
    # not forked: this process may have threads
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        parts = list(_parts(stretches))
        work = [
            loop.run_in_executor(pool, partial(_check_part, dsn, snapshot, part, choice))
            for part in parts
        ]
        for finished in asyncio.as_completed(work):
            leaves, rows = await finished
            seen.add(rows)
            done += leaves
            if progress is not None:
                progress(done, total)
    return seen


def _parts(stretches: Sequence[Stretch]) -> Iterator[list[Stretch]]:
    part: list[Stretch] = []
    for stretch in stretches:
        part.append(stretch)
        if stretch.first + stretch.count - part[0].first >= LEAVES_AT_ONCE:
            yield part
            part = []
    if part:
        yield part


def _check_part(
    dsn: str, snapshot: str, part: Sequence[Stretch], choice: Choice
) -> tuple[int, Rows]:
    """The work of another process."""

    async def check() -> Rows:
        async with (
            store.opened(dsn, "verify the audit store", asks=True) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            await connection.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
            return await check_rows(connection, part, choice)

    return sum(stretch.count for stretch in part), asyncio.run(check())


async def _check_block(
    connection: Connection[Any], block: Block, choice: Choice, seen: Rows
) -> None:
    ids, hashes, numbers = block.row_ids(), block.leaf_hashes(), choice.of(block)
    for start in range(0, len(numbers), ROWS_AT_ONCE):
        part = numbers[start : start + ROWS_AT_ONCE]
        rows = await rows_by_id(connection, [ids[number] for number in part])
        for number in part:
            leaf, found = block.first + number, rows.get(ids[number], [])
            if not found:
                seen.missing.append((leaf, ids[number]))
                continue
            seen.checked += 1
            seen.last_present = leaf
            altered = _altered(found, hashes[number])
            if altered:
                seen.findings.add(Kind.CHANGED, altered, str(ids[number]), leaf)


async def rows_by_id(
    connection: Connection[Any], ids: Sequence[uuid.UUID]
) -> dict[uuid.UUID, list[Mapping[str, Any]]]:
    """The stored rows of these ids; several under one id only where tenants share it."""
    found = defaultdict(list)
    for row in await store.rows(connection, ids):
        found[row["id"]].append(row)
    return found


def _altered(rows: Sequence[Mapping[str, Any]], leaf_hash: bytes) -> str:
    """Say what is altered, empty if one of the rows is as it was sealed."""
    for row in rows:
        columns = altered_columns(row)
        if leaf_of(row).hash() == leaf_hash:
            if not columns:
                return ""
            return f"columns that do not follow from the payload: {', '.join(columns)}"
    return "payload, content_hash or recorded_at is not what was sealed"


async def blame(connection: Connection[Any], block: Block, findings: Findings) -> None:
    """Tell what happened to a block whose rows agree with its leaves, and whose root does not."""
    rows = await rows_by_id(connection, block.row_ids())
    leaves = [leaf_of(row) for record_id in block.row_ids() for row in rows.get(record_id, [])]
    if leaves != sorted(leaves):
        kind, done = Kind.REORDERED, "are not in the order in which they were sealed"
    else:
        kind, done = Kind.CHANGED, "were rewritten together with their leaves"
    findings.add(
        kind,
        f"rows of leaves {block.first} to {block.first + block.count - 1} {done}",
        str(block.row_ids()[0]),
        block.first,
    )
