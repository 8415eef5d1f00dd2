"""One pass over the log's tree: blocks, roots and checkpoints, without the rows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.checkpoints import Checkpoint
from otel_audit_postgres.ledger.keys import PublicKey
from otel_audit_postgres.ledger.leaves import Block, Pruned
from otel_audit_postgres.ledger.merkle import Frontier
from otel_audit_postgres.ledger.verify.anchored import judged
from otel_audit_postgres.ledger.verify.findings import Findings, ProblemKind

_FORGED: Final = ProblemKind.FORGED_SIGNATURE


@dataclass(frozen=True, slots=True)
class Task:
    """The input of the pass.

    Attributes:
        connection: Within the verification's transaction.
        findings: Where problems are noted.
        origin: The log's name.
        keys: Public keys that may sign.
        sizes: Leaves at which the tree's root is wanted, ascending.
    """

    connection: Connection[Any]
    findings: Findings
    origin: str | None
    keys: Sequence[PublicKey] = ()
    sizes: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class BlockRange:
    """A block's place, for the rows' sake: its leaves, and when the database took it."""

    first: int
    count: int
    recorded_at: datetime | None


@dataclass(slots=True)
class TreePassState:
    """The position of the pass in the log.

    Attributes:
        tree: The tree so far.
        intact: Whether it can still be compared with checkpoints.
        stretches: The blocks that were seen.
        pruned: Leaves that are collapsed.
        suspect: The first block after which the root is not that of its checkpoint.
        checkpoints: Checkpoints that were checked.
        signed_size: Leaves under the last checkpoint that is signed by a given key.
        noted: Leaves under the last checkpoint.
        last_note: The last checkpoint's note.
        roots: Roots at the sizes that were wanted.
    """

    tree: Frontier = field(default_factory=Frontier)
    intact: bool = True
    stretches: list[BlockRange] = field(default_factory=list)
    pruned: int = 0
    suspect: Block | None = None
    checkpoints: int = 0
    signed_size: int = 0
    noted: int = 0
    last_note: str | None = None
    roots: dict[int, bytes] = field(default_factory=dict)


async def walk_tree(task: Task) -> TreePassState:
    """Walk through the whole log.

    Args:
        task: What to look at.

    Returns:
        Where the walk ended; what was found is noted.
    """
    walk = TreePassState()
    async for piece in ledger_queries.pieces(task.connection):
        if isinstance(piece, Pruned):
            await _join(task, walk, piece)
            continue
        _append(task, walk, piece)
        walk.stretches.append(BlockRange(piece.first, piece.count, piece.recorded_at))
        await _check_notes(task, walk, piece)
    beyond = await ledger_queries.notes(task.connection, walk.tree.size, sys.maxsize)
    if beyond:
        task.findings.add(
            ProblemKind.TRUNCATED_TAIL,
            f"the last checkpoint has {max(beyond)} leaves, the ledger has {walk.tree.size}",
            leaf=walk.tree.size,
        )
    return walk


def _append(task: Task, walk: TreePassState, block: Block) -> None:
    """Append a block to the tree; where leaves are missing, the tree is compared no further."""
    if block.first != walk.tree.size or not block.is_whole():
        _lost(task, walk, block.first)
    leaves, start = block.leaf_hashes(), walk.tree.size
    for size in [*(size for size in task.sizes if start < size < start + len(leaves)), sys.maxsize]:
        walk.tree = walk.tree.extended(leaves[walk.tree.size - start : size - start])
        _remember(task, walk)


async def _join(task: Task, walk: TreePassState, pruned: Pruned) -> None:
    """Append what was collapsed; of checkpoints within it only the signatures can be checked."""
    if pruned.first != walk.tree.size or not pruned.is_whole():
        _lost(task, walk, pruned.first)
        return
    notes = await ledger_queries.notes(
        task.connection, walk.tree.size, walk.tree.size + pruned.count
    )
    walk.tree = walk.tree.joined(pruned.hash, pruned.count)
    walk.pruned += pruned.count
    _remember(task, walk)
    for size, note in notes.items():
        checkpoint = _judge_note(task, walk, size, note)
        at_its_end = checkpoint is not None and size == walk.tree.size
        if checkpoint and at_its_end and walk.intact and walk.tree.root() != checkpoint.root:
            walk.intact = False
            task.findings.add(
                ProblemKind.CHANGED,
                f"pruned leaves {pruned.first} to {size - 1} are not those that were sealed",
                leaf=pruned.first,
            )


def _lost(task: Task, walk: TreePassState, following: int) -> None:
    if walk.intact:
        task.findings.add(
            ProblemKind.DELETED if following > walk.tree.size else ProblemKind.CHANGED,
            f"the ledger has no whole block at leaf {walk.tree.size}, the next is at {following}",
            leaf=walk.tree.size,
        )
    walk.intact = False


def _remember(task: Task, walk: TreePassState) -> None:
    if walk.tree.size in task.sizes:
        walk.roots[walk.tree.size] = walk.tree.root()


async def _check_notes(task: Task, walk: TreePassState, block: Block) -> None:
    size = block.first + block.count
    notes = await ledger_queries.notes(task.connection, block.first, size)
    for other in notes.keys() - {size}:
        task.findings.add(
            ProblemKind.INSERTED, f"a checkpoint of {other} leaves, where no block ends"
        )
    if size not in notes:
        task.findings.add(
            ProblemKind.DELETED, f"the checkpoint of {size} leaves is gone", leaf=block.first
        )
        return
    checkpoint = _judge_note(task, walk, size, notes[size])
    if checkpoint is not None and walk.intact and walk.tree.root() != checkpoint.root:
        walk.intact = False
        walk.suspect = block


def _judge_note(task: Task, walk: TreePassState, size: int, note: str) -> Checkpoint | None:
    """Judge a stored checkpoint; None if it cannot be compared with the tree."""
    walk.checkpoints += 1
    walk.noted, walk.last_note = size, note
    where = f"the checkpoint of {size} leaves"
    checkpoint, is_signed = judged(note, task.keys, task.findings, where)
    if checkpoint is None:
        return None
    if is_signed:
        walk.signed_size = size
    if checkpoint.origin != task.origin or checkpoint.size != size:
        task.findings.add(_FORGED, f"{where}: it is of {checkpoint.origin}, {checkpoint.size}")
        return None
    return checkpoint
