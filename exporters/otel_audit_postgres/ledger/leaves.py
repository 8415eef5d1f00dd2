"""The leaf of a row in the Merkle tree."""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from otel_audit_postgres.ledger.merkle import HASH_SIZE, Frontier, leaf_hash

TAG: Final = b"otel-audit leaf 1\n"
ID_SIZE: Final = 16
"""Bytes of a UUID."""
_pack_time: Final = struct.Struct(">q").pack


@dataclass(frozen=True, slots=True, order=True)
class Leaf:
    """One row as the ledger knows it; in a block they stand in this order.

    Attributes:
        recorded_at: Microseconds since 1970 UTC, as the database recorded it.
        id: The record's id, 16 bytes.
        content_hash: SHA-256 of the payload's text, 32 bytes.
    """

    recorded_at: int
    id: bytes
    content_hash: bytes

    def entry(self) -> bytes:
        """The bytes that are hashed: tag, id, content hash, time as a signed big-endian 64 bit."""
        return TAG + self.id + self.content_hash + _pack_time(self.recorded_at)

    def hash(self) -> bytes:
        """The leaf's hash in the tree, 32 bytes."""
        return leaf_hash(self.entry())


@dataclass(frozen=True, slots=True)
class Block:
    """Leaves that were sealed together, in their stored form.

    Attributes:
        first: Index of its first leaf in the log, from 0.
        ids: The rows' ids, 16 bytes each, without separators.
        hashes: The leaf hashes, 32 bytes each, without separators.
        recorded_at: When the database took it; None before that.
    """

    first: int
    ids: bytes
    hashes: bytes
    recorded_at: datetime | None = None

    @property
    def count(self) -> int:
        """Leaves in it."""
        return len(self.hashes) // HASH_SIZE

    def is_whole(self) -> bool:
        """Whether there is one id for each hash, and at least one."""
        return (
            bool(self.hashes)
            and len(self.hashes) % HASH_SIZE == 0
            and len(self.ids) == self.count * ID_SIZE
        )

    def leaf_hashes(self) -> list[bytes]:
        """Its leaf hashes in their order, 32 bytes each."""
        return [self.hashes[at : at + HASH_SIZE] for at in range(0, len(self.hashes), HASH_SIZE)]

    def row_ids(self) -> list[uuid.UUID]:
        """The rows' ids in their order."""
        return [uuid.UUID(bytes=one) for one in self.id_bytes()]

    def places(self, row_id: bytes) -> Iterator[int]:
        """The place of a row's id in the block."""
        at = self.ids.find(row_id)
        while at >= 0:
            if at % ID_SIZE == 0:
                yield at // ID_SIZE
            at = self.ids.find(row_id, at + 1)

    def id_bytes(self) -> list[bytes]:
        """The ids in stored form, 16 bytes each; faster to make and compare."""
        return [
            self.ids[at : at + ID_SIZE]
            for at in range(0, len(self.ids) // ID_SIZE * ID_SIZE, ID_SIZE)
        ]


@dataclass(frozen=True, slots=True)
class Pruned:
    """Leaves whose rows were dropped in order, collapsed to the hash of their subtree.

    Attributes:
        first: Index of its first leaf in the log, from 0.
        count: Leaves in it, a power of two that divides ``first``.
        hash: The subtree's root, 32 bytes.
    """

    first: int
    count: int
    hash: bytes

    def is_whole(self) -> bool:
        """Whether it can be a subtree at its place."""
        power = self.count > 0 and self.count & (self.count - 1) == 0
        return power and self.first % self.count == 0 and len(self.hash) == HASH_SIZE


def grown(tree: Frontier, piece: Block | Pruned) -> Frontier:
    """The tree after a whole piece was appended."""
    if isinstance(piece, Pruned):
        return tree.joined(piece.hash, piece.count)
    return tree.extended(piece.leaf_hashes())


def packed(first: int, leaves: list[Leaf]) -> Block:
    """Pack leaves, already in their order, into a block.

    Args:
        first: Index of the first one in the log.
        leaves: The leaves.
    """
    return Block(
        first, b"".join(leaf.id for leaf in leaves), b"".join(leaf.hash() for leaf in leaves)
    )


def leaf_hash_of(recorded_at: int, row_id: bytes, payload: bytes | memoryview) -> bytes:
    """The leaf hash of a row's present content, from its UTF-8 payload; a faster `Leaf.hash`.

    Args:
        recorded_at: Microseconds since 1970 UTC.
        row_id: The record's id, 16 bytes.
        payload: What is hashed afresh.
    """
    content = hashlib.sha256(payload).digest()
    return leaf_hash(TAG + row_id + content + _pack_time(recorded_at))


def content_hash(payload: str) -> bytes:
    """Hash a payload's text, as `otel_audit_postgres.rows` does: SHA-256 of UTF-8, 32 bytes."""
    return hashlib.sha256(payload.encode("utf-8", "surrogatepass")).digest()
