"""The Merkle tree of RFC 9162 (Certificate Transparency 2.0), section 2.1, over SHA-256.

Leaves come in as hashes (`leaf_hash` of an entry), so that nothing here needs to see an entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

HASH_SIZE: Final = 32
"""Bytes of SHA-256."""
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()

_sha256 = hashlib.sha256


def leaf_hash(entry: bytes) -> bytes:
    """Hash an entry: ``SHA-256(0x00 || entry)`` (RFC 9162, 2.1.1), 32 bytes."""
    return _sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two children: ``SHA-256(0x01 || left || right)`` (RFC 9162, 2.1.1), 32 bytes."""
    return _sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Frontier:
    """The part of a tree that appending needs: its largest complete subtrees.

    Attributes:
        size: Leaves in the tree.
        hashes: Roots of its complete subtrees, the largest and leftmost first; one for each bit
            that is set in ``size``.
    """

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def extended(self, leaves: Iterable[bytes]) -> Frontier:
        """The frontier after these leaf hashes were appended."""
        size, hashes = self.size, list(self.hashes)
        for leaf in leaves:
            node, level = leaf, size
            while level & 1:
                node = node_hash(hashes.pop(), node)
                level >>= 1
            hashes.append(node)
            size += 1
        return Frontier(size, tuple(hashes))

    def joined(self, subtree: bytes, count: int) -> Frontier:
        """The frontier after a complete subtree was appended, known by its hash alone.

        Args:
            subtree: The subtree's root hash.
            count: Its leaves: a power of two that divides ``size``.

        Raises:
            ValueError: It is not a complete subtree at this place.
        """
        if count < 1 or count & (count - 1) or self.size % count:
            raise ValueError(f"no subtree of {count} leaves after {self.size}")
        hashes, node, level = list(self.hashes), subtree, self.size // count
        while level & 1:
            node = node_hash(hashes.pop(), node)
            level >>= 1
        return Frontier(self.size + count, (*hashes, node))

    def root(self) -> bytes:
        """The tree's root hash, 32 bytes."""
        if not self.hashes:
            return EMPTY_ROOT
        node = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            node = node_hash(left, node)
        return node


class Tree:
    """A whole tree in memory, which answers for itself and for each smaller tree it grew from."""

    def __init__(
        self,
        leaves: Iterable[bytes | None],
        pruned: Mapping[tuple[int, int], bytes] = MappingProxyType({}),
    ) -> None:
        """Hash all complete subtrees, about as many as there are leaves.

        Args:
            leaves: Leaf hashes, 32 bytes each, in their order; None if pruned.
            pruned: Hashes of pruned subtrees, by first leaf and count.
        """
        self._levels = [list(leaves)]
        _place(self._levels[0], 0, pruned)
        while len(self._levels[-1]) > 1:
            below = self._levels[-1]
            pairs = zip(below[0::2], below[1::2], strict=False)
            above = [
                None if left is None or right is None else node_hash(left, right)
                for left, right in pairs
            ]
            _place(above, len(self._levels), pruned)
            self._levels.append(above)

    @property
    def size(self) -> int:
        """Leaves in the tree."""
        return len(self._levels[0])

    def root(self, size: int) -> bytes:
        """The root hash of the tree of the first ``size`` leaves, 32 bytes.

        Raises:
            ValueError: The tree is not that large.
        """
        self._refuse_beyond(size)
        return self._range(0, size) if size else EMPTY_ROOT

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """Prove that a leaf is in the tree of the first ``size`` leaves (RFC 9162, 2.1.3.1).

        Args:
            index: The leaf's place, from 0.
            size: Leaves of the tree for which to prove it.

        Returns:
            The inclusion path, the nodes next to the leaf first.

        Raises:
            ValueError: The tree is not that large, or the leaf is not in it.
        """
        self._refuse_beyond(size)
        if not 0 <= index < size:
            raise ValueError(f"no leaf {index} in a tree of {size}")
        path: list[bytes] = []
        start, end = 0, size
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                path.append(self._range(middle, end))
                end = middle
            else:
                path.append(self._range(start, middle))
                start = middle
        return path[::-1]

    def consistency(self, old: int, new: int) -> list[bytes]:
        """Prove that the tree of ``new`` leaves only appends to that of ``old`` (2.1.4.1).

        Args:
            old: Leaves of the earlier tree, at least 1.
            new: Leaves of the later one.

        Returns:
            The consistency proof; empty if both are the same.

        Raises:
            ValueError: The tree is not that large, or ``old`` is none or larger than ``new``.
        """
        self._refuse_beyond(new)
        if not 1 <= old <= new:
            raise ValueError(f"no consistency proof from {old} to {new} leaves")
        path: list[bytes] = []
        start, end, whole = 0, new, True
        while old < end:
            middle = start + _split(end - start)
            if old <= middle:
                path.append(self._range(middle, end))
                end = middle
            else:
                path.append(self._range(start, middle))
                start, whole = middle, False
        if not whole:
            path.append(self._range(start, end))
        return path[::-1]

    def _range(self, start: int, end: int) -> bytes:
        """The hash over leaves ``start`` to ``end``, where ``start`` is aligned as in the RFC."""
        count = end - start
        if count & (count - 1) == 0:
            level = count.bit_length() - 1
            found = self._levels[level][start >> level]
            if found is None:
                raise ValueError(f"leaves {start} to {end - 1} were pruned")
            return found
        middle = start + _split(count)
        return node_hash(self._range(start, middle), self._range(middle, end))

    def _refuse_beyond(self, size: int) -> None:
        if not 0 <= size <= self.size:
            raise ValueError(f"the tree has {self.size} leaves, not {size}")


def _place(nodes: list[bytes | None], level: int, pruned: Mapping[tuple[int, int], bytes]) -> None:
    """Put the hashes of pruned subtrees of one level in their places."""
    for (first, count), found in pruned.items():
        if count == 1 << level:
            nodes[first >> level] = found


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> bool:
    """Check an inclusion proof (RFC 9162, 2.1.3.2).

    Args:
        leaf: The leaf's hash.
        index: Its place, from 0.
        size: Leaves of the tree.
        proof: The inclusion path.
        root: The tree's root hash.

    Returns:
        Whether it proves that the leaf stands there.
    """
    if not 0 <= index < size:
        return False
    place, last, node = index, size - 1, leaf
    for step in proof:
        if last == 0:
            return False
        if place & 1 or place == last:
            node = node_hash(step, node)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            node = node_hash(node, step)
        place, last = place >> 1, last >> 1
    return last == 0 and node == root


def _split(count: int) -> int:
    """The largest power of two smaller than ``count``, which is at least 2."""
    return 1 << (count - 1).bit_length() - 1
