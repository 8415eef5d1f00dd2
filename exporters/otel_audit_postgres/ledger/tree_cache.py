"""Inclusion proofs in milliseconds, for a process that makes many.

Of the tree only the upper hashes are kept, from one for 256 leaves on. What is below is read from
the blocks when a proof needs it.
"""

from __future__ import annotations

import asyncio
import time
from collections import ChainMap
from collections.abc import Mapping
from typing import Any, Final

from otel_audit.errors import StoreError
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.leaves import Block, Pruned
from otel_audit_postgres.ledger.merkle import HASH_SIZE, node_hash

_LOWEST_KEPT: Final = 8
"""The lowest level of nodes that are kept, one for 256 leaves; those below are computed from their
leaves."""
_GROUP: Final = 1 << _LOWEST_KEPT
_BLOCKS_AT_ONCE: Final = 8
"""Blocks that are fetched at once; fewer than elsewhere, because their leaves are hashed in
between."""
_DOUBT_EVERY: Final = 60.0
"""Seconds within which the whole log is read again once, where proofs do not hold."""
_BEGINNING: Final = (
    "SELECT greatest((SELECT max(first) FROM audit.ledger_blocks WHERE first <= $1), "
    "(SELECT max(first) FROM audit.ledger_pruned WHERE first <= $1), 0)"
)

_Nodes = dict[tuple[int, int], bytes]
"""Hashes of complete subtrees, by level and place in it."""
_Known = Mapping[tuple[int, int], bytes]
"""The same, of all that a proof is made of."""


class DamagedLedgerError(StoreError):
    """The blocks are not a log without gaps."""

    def __init__(self) -> None:
        """Make the message; it names `otel-audit verify`."""
        super().__init__("the ledger is damaged: run `otel-audit verify`")


class TreeCache:
    """The upper part of one log's tree; it follows as the log grows."""

    def __init__(self) -> None:
        """Start empty; the first proof reads all leaf hashes."""
        self._readings = 0
        self._doubted: bytes | None = None
        self._next_doubt = 0.0
        self._reset()
        self._turn = asyncio.Lock()

    @property
    def reading(self) -> int:
        """Which reading of the log the tree is from, counted from 1; see `doubt`."""
        return self._readings

    async def doubt(self, reading: int, root: bytes) -> bool:
        """Forget the tree, as a proof from it does not lead to the root that was signed.

        The log may be another one than the tree was read from: the store was restored. Where that
        does not help, the log itself is at fault; it is not read for each proof then, nor for each
        new root.

        Args:
            reading: The reading that the proof is from.
            root: The root that it does not lead to.

        Returns:
            Whether to prove it again.
        """
        # whoever is taking in the log would take what follows for the log's beginning
        async with self._turn:
            if reading != self._readings:
                return True
            now = time.monotonic()
            if root == self._doubted or now < self._next_doubt:
                return False
            self._doubted, self._next_doubt = root, now + _DOUBT_EVERY
            self._reset()
            return True

    def _reset(self) -> None:
        self._readings += 1
        self._size = 0
        self._open: list[bytes] = []
        self._kept: _Nodes = {}

    async def follow(self, connection: Connection[Any], size: int) -> None:
        """Take in what was sealed since.

        Args:
            connection: To the store.
            size: Leaves of the log when the caller looked; less than the tree has, where others
                have waited for it meanwhile.

        Raises:
            DamagedLedgerError: A piece is missing or is none.
        """
        async with self._turn:
            if self._size >= size:
                return
            async for piece in ledger_queries.pieces(
                connection, self._size, at_once=_BLOCKS_AT_ONCE
            ):
                if piece.first != self._size or not piece.is_whole():
                    self._reset()
                    raise DamagedLedgerError
                if isinstance(piece, Pruned):
                    self._append(piece.hash, piece.count.bit_length() - 1)
                else:
                    self._append_leaves(piece.hashes)
                await asyncio.sleep(0)

    async def proof(self, connection: Connection[Any], leaf: int, size: int) -> list[bytes]:
        """Prove that a leaf is in the tree of the first ``size`` leaves (RFC 9162, 2.1.3.1).

        Args:
            connection: To the store, within the transaction in which ``size`` was read.
            leaf: The leaf's place, from 0.
            size: Leaves of the tree; `follow` has seen them.

        Raises:
            DamagedLedgerError: What is needed for it is not there.
        """
        # another one may doubt the tree meanwhile; what this one has is whole
        kept = self._kept
        nodes = await self._group(connection, leaf // _GROUP)
        if size % _GROUP and size // _GROUP != leaf // _GROUP:
            nodes |= await self._group(connection, size // _GROUP)
        known = ChainMap(kept, nodes)
        path: list[bytes] = []
        start, end = 0, size
        while end - start > 1:
            middle = start + (1 << (end - start - 1).bit_length() - 1)
            if leaf < middle:
                path.append(_range(known, middle, end))
                end = middle
            else:
                path.append(_range(known, start, middle))
                start = middle
        return path[::-1]

    def _append_leaves(self, hashes: bytes) -> None:
        """Append leaf hashes; whole groups at once, of which the lower hashes are not kept."""
        at, end = 0, len(hashes)
        while at < end:
            behind = at + _GROUP * HASH_SIZE
            if self._size % _GROUP == 0 and behind <= end:
                self._append(_root_of(hashes[at:behind]), _LOWEST_KEPT)
                at = behind
            else:
                self._append(hashes[at : at + HASH_SIZE], 0)
                at += HASH_SIZE

    def _append(self, node: bytes, level: int) -> None:
        place, count = self._size >> level, 1 << level
        while True:
            if level >= _LOWEST_KEPT:
                self._kept[level, place] = node
            if not place & 1:
                break
            node = node_hash(self._open.pop(), node)
            place, level = place >> 1, level + 1
        self._open.append(node)
        self._size += count

    async def _group(self, connection: Connection[Any], number: int) -> _Nodes:
        """The hashes of one group's leaves, and of its pruned subtrees."""
        start, end = number * _GROUP, (number + 1) * _GROUP
        begin = await connection.fetchval(_BEGINNING, start)
        nodes: _Nodes = {}
        async for piece in ledger_queries.pieces(connection, begin, end):
            if isinstance(piece, Pruned):
                level = piece.count.bit_length() - 1
                nodes[level, piece.first >> level] = piece.hash
            else:
                _place_leaves(nodes, piece, start, end)
        return nodes


def _range(known: _Known, start: int, end: int) -> bytes:
    """The root of the leaves from ``start`` on and before ``end``."""
    count = end - start
    level = count.bit_length() - 1
    if count == 1 << level:
        return _node(known, level, start >> level)
    middle = start + (1 << (count - 1).bit_length() - 1)
    return node_hash(_range(known, start, middle), _range(known, middle, end))


def _node(known: _Known, level: int, place: int) -> bytes:
    found = known.get((level, place))
    if found is not None:
        return found
    if not level or level > _LOWEST_KEPT:
        raise DamagedLedgerError
    left = _node(known, level - 1, place * 2)
    return node_hash(left, _node(known, level - 1, place * 2 + 1))


def _root_of(hashes: bytes) -> bytes:
    """The root of a complete subtree's leaf hashes."""
    while len(hashes) > HASH_SIZE:
        pairs = range(0, len(hashes), 2 * HASH_SIZE)
        hashes = b"".join(
            [
                node_hash(hashes[at : at + HASH_SIZE], hashes[at + HASH_SIZE : at + 2 * HASH_SIZE])
                for at in pairs
            ]
        )
    return hashes


def _place_leaves(nodes: _Nodes, block: Block, start: int, end: int) -> None:
    first, last = max(start, block.first), min(end, block.first + block.count)
    for number in range(first, last):
        at = (number - block.first) * HASH_SIZE
        nodes[0, number] = block.hashes[at : at + HASH_SIZE]
