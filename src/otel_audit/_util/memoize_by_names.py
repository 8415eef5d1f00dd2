"""What follows from names alone, worked out once for all that have the same names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeVar

from otel_audit._util.cache import BoundedCache

Plan = TypeVar("Plan")

_MOST: Final = 128
_WIDEST: Final = 128
_LONGEST: Final = 8192


class MemoizedByNames(Generic[Plan]):
    """Plans by the names, in their order, of what they are for.

    Spans of one kind carry the same attributes one after another. No more than some hundred sets of
    names are remembered, and no large ones.
    """

    def __init__(self, work_out: Callable[[tuple[str, ...]], Plan]) -> None:
        """Say how a plan is made; it may depend on the names only."""
        self._work_out = work_out
        self._known: BoundedCache[tuple[str, ...], Plan] = BoundedCache(_MOST)

    def plan(self, names: Iterable[str]) -> Plan:
        """Return the plan for these names."""
        shape = tuple(names)
        found = self._known.get(shape)
        if found is None:
            found = self._work_out(shape)
            if len(shape) <= _WIDEST and sum(map(len, shape)) <= _LONGEST:
                self._known.put(shape, found)
        return found

    def __len__(self) -> int:
        return len(self._known)
