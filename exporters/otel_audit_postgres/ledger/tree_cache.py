"""Inclusion proofs in milliseconds, for a process that makes many.

Of the tree only the upper hashes are kept, from one for 256 leaves on. What is below is read from
the blocks when a proof needs it.
"""

from __future__ import annotations

import asyncio
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
_BEGINNING: Final = (
    "SELECT greatest((SELECT max(first) FROM audit.ledger_blocks WHERE first <= $1), "
    "(SELECT max(first) FROM audit.ledger_pruned WHERE first <= $1), 0)"
)

_Nodes = dict[tuple[int, int], bytes]
"""Hashes of complete subtrees, by level and place in it."""


class DamagedLedgerError(StoreError):
    """The blocks are not a log without gaps."""

    def __init__(self) -> None:
        """Make the message; it names `otel-audit verify`."""
        super().__init__("the ledger is damaged: run `otel-audit verify`")


class TreeCache:
    """The upper part of one log's tree; it follows as the log grows."""

    def __init__(self) -> None:
        """Start empty; the first proof reads all leaf hashes."""
        self._reset()
        self._turn = asyncio.Lock()

    def _reset(self) -> None:
        self._size = 0
        self._open: list[bytes] = []
        self._kept: _Nodes = {}

    async def follow(self, connection: Connection[Any], size: int) -> None:
        """Take in what was sealed since.

        Args:
            connection: To the store.
            size: Leaves of the log now.

        Raises:
            DamagedLedgerError: A piece is missing or is none.
        """
        async with self._turn:
            if size < self._size:
                self._reset()
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
        nodes = await self._group(connection, leaf // _GROUP)
        if size % _GROUP and size // _GROUP != leaf // _GROUP:
            nodes |= await self._group(connection, size // _GROUP)
        path: list[bytes] = []
        start, end = 0, size
        while end - start > 1:
            middle = start + (1 << (end - start - 1).bit_length() - 1)
            if leaf < middle:
                path.append(self._range(nodes, middle, end))
                end = middle
            else:
                path.append(self._range(nodes, start, middle))
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

    def _range(self, nodes: _Nodes, start: int, end: int) -> bytes:
        """The root of the leaves from ``start`` on and before ``end``."""
        count = end - start
        level = count.bit_length() - 1
        if count == 1 << level:
            return self._node(nodes, level, start >> level)
        middle = start + (1 << (count - 1).bit_length() - 1)
        return node_hash(self._range(nodes, start, middle), self._range(nodes, middle, end))

    def _node(self, nodes: _Nodes, level: int, place: int) -> bytes:
        found = self._kept.get((level, place)) or nodes.get((level, place))
        if found is not None:
            return found
        if not level or level > _LOWEST_KEPT:
            raise DamagedLedgerError
        left = self._node(nodes, level - 1, place * 2)
        return node_hash(left, self._node(nodes, level - 1, place * 2 + 1))


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
