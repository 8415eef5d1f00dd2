"""Caches that never grow past their bound and need no lock."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_MISSING: Final[Any] = object()
_WIDEST: Final = 128
"""Names of one cached key; beyond it the key is computed each time."""
_LONGEST: Final = 8192
"""Names, and their letters in all, of a cached key: senders of spans choose them."""


class BoundedCache(dict[K, V]):
    """A map of what was used lately, at most twice ``size`` entries.

    Two generations: entries go to the young one, which is the dictionary itself; when it is full it
    becomes the old one, and what was in the old one is forgotten. Each step is one operation on a
    dictionary, so threads need no lock, and a fork can leave none behind. `get` looks into both
    generations. What the dictionary does itself (``in``, `recent`) sees the young one only and
    calls nothing in Python: on the hottest paths a forgotten entry costs less than a call.
    """

    __slots__ = ("_old", "_size")

    def __init__(self, size: int) -> None:
        """Start empty.

        Args:
            size: Entries of one generation: half of the most that are kept.
        """
        super().__init__()
        self._size = size
        self._old: dict[K, V] = {}

    @property
    def recent(self) -> Callable[[K], V | None]:
        """The lookup in the young generation: as quick as a dictionary's."""
        return super().get

    def get(self, key: K, default: V | None = None) -> V | None:  # type: ignore[override]
        """Return the value; the default where there is none."""
        value = super().get(key)
        if value is None:
            value = self._old.get(key)
            if value is None:
                return default
            self.put(key, value)
        return value

    def put(self, key: K, value: V) -> None:
        """Keep a value, at the cost of the longest unused ones."""
        if len(self) >= self._size:
            self._old = dict(self)
            super().clear()
        self[key] = value

    def discard(self, key: K) -> None:
        """Forget one value, in both generations."""
        self.pop(key, None)
        self._old.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        super().clear()
        self._old = {}


KINDS: Final = 128
"""Kinds of spans, each with the same names of attributes, that are remembered at a time."""


def are_few_names(names: tuple[str, ...]) -> bool:
    """Return whether names are few and short enough for a key: those of a kind of span are."""
    return len(names) <= _WIDEST and sum(map(len, names)) <= _LONGEST


class Memo(BoundedCache[K, V]):
    """The results of a function by its argument: ``memo[argument]`` calls it once.

    A dictionary finds what it knows without calling anything in Python, which is why this is not
    `functools.lru_cache`; nor does that one decide which arguments are worth keeping.
    """

    __slots__ = ("_is_worth", "_make")

    def __init__(
        self, make: Callable[[K], V], size: int, is_worth: Callable[[K], bool] = lambda _: True
    ) -> None:
        """Start with no result remembered.

        Args:
            make: Depends on its argument only; what it raises is the caller's.
            size: Results in one generation.
            is_worth: Returns whether arguments are kept with their results: small ones, that come
                again.
        """
        super().__init__(size)
        self._make = make
        self._is_worth = is_worth

    def __missing__(self, key: K) -> V:
        """Take it from the old generation, or make it; keep it if that is worth it."""
        value: V = self._old.get(key, _MISSING)
        if value is _MISSING:
            value = self._make(key)
        if self._is_worth(key):
            self.put(key, value)
        return value
