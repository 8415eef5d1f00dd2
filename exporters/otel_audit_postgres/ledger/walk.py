"""One pass over the log: each leaf against its row, each checkpoint against the tree."""

from __future__ import annotations

import sys
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from otel_audit_postgres.connecting import Connection
from otel_audit_postgres.ledger import store
from otel_audit_postgres.ledger.findings import Findings, Kind
from otel_audit_postgres.ledger.keys import PublicKey
from otel_audit_postgres.ledger.leaves import Block
from otel_audit_postgres.ledger.merkle import Frontier
from otel_audit_postgres.ledger.rowcheck import altered_columns, leaf_of
from otel_audit_postgres.ledger.witness import judged

ROWS_AT_ONCE: Final = 1000

Progress = Callable[[int, int], None]
"""Is told how many leaves were seen, and of how many."""


@dataclass(frozen=True, slots=True)
class Task:
    """What one pass is to look at.

    Attributes:
        connection: Within the verification's transaction.
        findings: Where problems are noted.
        origin: The log's name.
        keys: Public keys that may sign.
        sizes: Leaves at which the tree's root is wanted, ascending.
        since: Read only rows that were sealed at this time or later.
        chosen: Read only the rows of these leaves; None for all.
        total: Leaves that are to be expected.
        progress: Called after each block.
    """

    connection: Connection[Any]
    findings: Findings
    origin: str | None
    keys: Sequence[PublicKey] = ()
    sizes: Sequence[int] = ()
    since: datetime | None = None
    chosen: frozenset[int] | None = None
    total: int = 0
    progress: Progress | None = None


@dataclass(slots=True)
class Walk:
    """Where the walk through the log is.

    Attributes:
        tree: The tree so far.
        intact: Whether it can still be compared with checkpoints.
        missing: Leaves without a row, with the row's id.
        last_present: The last leaf that has a row, -1 for none.
        checked: Leaves whose row is there and was hashed again, changed or not.
        checkpoints: Checkpoints that were checked.
        signed_size: Leaves under the last checkpoint that is signed by a given key.
        noted: Leaves under the last checkpoint.
        roots: Roots at the sizes that the anchors have seen.
    """

    tree: Frontier = field(default_factory=Frontier)
    intact: bool = True
    missing: list[tuple[int, uuid.UUID]] = field(default_factory=list)
    last_present: int = -1
    checked: int = 0
    checkpoints: int = 0
    signed_size: int = 0
    noted: int = 0
    roots: dict[int, bytes] = field(default_factory=dict)


async def walk_log(task: Task) -> Walk:
    """Walk through the whole log.

    Args:
        task: What to look at.

    Returns:
        Where the walk ended; rows that are gone are in it, all else is noted as found.
    """
    walk = Walk()
    async for block in store.blocks(task.connection):
        _append(task, walk, block)
        before = task.findings.counts.total()
        await _check_rows(task, walk, block)
        fine = task.findings.counts.total() == before
        await _check_notes(task, walk, block, rows_are_fine=fine)
        if task.progress is not None:
            task.progress(walk.tree.size, max(task.total, walk.tree.size))
    beyond = await store.notes(task.connection, walk.tree.size, sys.maxsize)
    if beyond:
        task.findings.add(
            Kind.TRUNCATED_TAIL,
            f"the last checkpoint has {max(beyond)} leaves, the ledger has {walk.tree.size}",
            leaf=walk.tree.size,
        )
    return walk


def _append(task: Task, walk: Walk, block: Block) -> None:
    """Append a block to the tree; where leaves are missing, the tree is compared no further."""
    if block.first != walk.tree.size or not block.is_whole():
        kind = Kind.DELETED if block.first > walk.tree.size else Kind.CHANGED
        if walk.intact:
            task.findings.add(
                kind,
                f"the ledger has no whole block at leaf {walk.tree.size}, the next is at "
                f"{block.first}",
                leaf=walk.tree.size,
            )
        walk.intact = False
    leaves, start = block.leaf_hashes(), walk.tree.size
    for size in [*(size for size in task.sizes if start < size < start + len(leaves)), sys.maxsize]:
        walk.tree = walk.tree.extended(leaves[walk.tree.size - start : size - start])
        walk.roots[walk.tree.size] = walk.tree.root()
    for size in [size for size in walk.roots if size not in task.sizes and size != walk.tree.size]:
        del walk.roots[size]


def _wanted(task: Task, block: Block) -> list[int]:
    """Which of a block's leaves to read the rows of, counted within the block."""
    if task.since is not None and block.recorded_at is not None and block.recorded_at < task.since:
        return []
    numbers = range(min(block.count, len(block.row_ids())))
    if task.chosen is None:
        return list(numbers)
    return [number for number in numbers if block.first + number in task.chosen]


async def _check_rows(task: Task, walk: Walk, block: Block) -> None:
    ids, hashes = block.row_ids(), block.leaf_hashes()
    numbers = _wanted(task, block)
    for start in range(0, len(numbers), ROWS_AT_ONCE):
        part = numbers[start : start + ROWS_AT_ONCE]
        rows = await _by_id(task.connection, [ids[number] for number in part])
        for number in part:
            leaf, found = block.first + number, rows.get(ids[number], [])
            if not found:
                walk.missing.append((leaf, ids[number]))
                continue
            walk.checked += 1
            walk.last_present = leaf
            altered = _altered(found, hashes[number])
            if altered:
                task.findings.add(Kind.CHANGED, altered, str(ids[number]), leaf)


async def _by_id(
    connection: Connection[Any], ids: Sequence[uuid.UUID]
) -> dict[uuid.UUID, list[Mapping[str, Any]]]:
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


async def _check_notes(task: Task, walk: Walk, block: Block, *, rows_are_fine: bool) -> None:
    findings = task.findings
    size = block.first + block.count
    notes = await store.notes(task.connection, block.first, size)
    for other in notes.keys() - {size}:
        findings.add(Kind.INSERTED, f"a checkpoint of {other} leaves, where no block ends")
    if size not in notes:
        findings.add(Kind.DELETED, f"the checkpoint of {size} leaves is gone", leaf=block.first)
        return
    walk.checkpoints += 1
    walk.noted = size
    where = f"the checkpoint of {size} leaves"
    checkpoint, is_signed = judged(notes[size], task.keys, findings, where)
    if checkpoint is None:
        return
    if is_signed:
        walk.signed_size = size
    if checkpoint.origin != task.origin or checkpoint.size != size:
        findings.add(
            Kind.FORGED_SIGNATURE, f"{where}: it is of {checkpoint.origin}, {checkpoint.size}"
        )
        return
    if walk.intact and walk.tree.root() != checkpoint.root:
        walk.intact = False
        if rows_are_fine:
            await _blame(task, block)


async def _blame(task: Task, block: Block) -> None:
    """Tell what happened to a block whose rows agree with its leaves, and whose root does not."""
    rows = await _by_id(task.connection, block.row_ids())
    leaves = [leaf_of(row) for record_id in block.row_ids() for row in rows.get(record_id, [])]
    if leaves != sorted(leaves):
        kind, done = Kind.REORDERED, "are not in the order in which they were sealed"
    else:
        kind, done = Kind.CHANGED, "were rewritten together with their leaves"
    task.findings.add(
        kind,
        f"rows of leaves {block.first} to {block.first + block.count - 1} {done}",
        str(block.row_ids()[0]),
        block.first,
    )
