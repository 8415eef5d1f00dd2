"""The size of batches: smaller after a failed write, larger again after successful ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_SMALLEST: Final = 1 / 2**20
"""The least share of a batch: of any batch it leaves one record."""
_PROOF: Final = 8
"""Writes of one size that must succeed before a size is tried that has failed before."""


class BatchSize:
    """Entries and bytes in one write, adapted to what the way to the store can carry in its time.

    A time limit that a write ran into says nothing about how much would have fitted, so each
    failure halves the next write, whatever its reason: that costs a store that comes back a few
    small writes, and nothing else.
    """

    def __init__(self, entries: int, size: int) -> None:
        """Start with the largest size.

        Args:
            entries: In one write, at most.
            size: Bytes in one write, at most; of a larger entry only that one.
        """
        self._entries = entries
        self._bytes = size
        self._share = 1.0
        self._ceiling = 1.0
        self._proofs = 0

    @property
    def entries(self) -> int:
        """Entries in the next write, at most."""
        return max(int(self._entries * self._share), 1)

    @property
    def bytes(self) -> int:
        """Bytes in the next write, at most, or one entry."""
        return max(int(self._bytes * self._share), 1)

    def fitting(self, sizes: Iterable[int]) -> int:
        """Say how many of the entries that wait, the first ones, go into the next write.

        Args:
            sizes: Their bytes, in their order.
        """
        count, total = 0, 0
        most, most_bytes = self.entries, self.bytes
        for size in sizes:
            total += size
            if count == most or (count and total > most_bytes):
                break
            count += 1
        return count

    def failed(self, count: int) -> None:
        """Note that a write of so many entries failed."""
        # fewer than may go may have been tried, and half of these is to be tried next
        self._share = max(min(self._share, count / self._entries) / 2, _SMALLEST)
        self._ceiling, self._proofs = self._share, 0

    def succeeded(self) -> None:
        """Note that a write succeeded."""
        if self._share < self._ceiling:
            self._share = min(self._share * 2, self._ceiling)
            return
        self._proofs += 1
        if self._ceiling < 1.0 and self._proofs >= _PROOF:
            self._ceiling, self._proofs = min(self._ceiling * 2, 1.0), 0
            self._share = self._ceiling
