"""A small cache that never grows past its bound and needs no lock."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """A map of what was used lately, at most twice ``size`` entries.

    Two generations: entries go to the young one; when it is full it becomes the old one, and what
    was in the old one is forgotten. Each step is one operation on a dict, so threads need no lock,
    and a fork can leave none behind.
    """

    def __init__(self, size: int) -> None:
        """Take the size of one generation."""
        self._size = size
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """Return the value, None where there is none."""
        value = self._young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: K, value: V) -> None:
        """Keep a value, at the cost of the longest unused ones."""
        if len(self._young) >= self._size:
            self._old, self._young = self._young, {}
        self._young[key] = value

    def __len__(self) -> int:
        return len(self._young) + len(self._old)
