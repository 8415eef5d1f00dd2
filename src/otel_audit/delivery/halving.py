"""The search for the bad records of a batch: what is refused is halved until they stand alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
Why = TypeVar("Why")


async def write_by_halves(
    items: Sequence[T],
    write: Callable[[Sequence[T]], Awaitable[Why | None]],
    refuse: Callable[[T, Why], Awaitable[None]],
) -> None:
    """Write a batch in as few writes as its bad items allow, in its order.

    Args:
        items: The batch.
        write: Writes some of them, all or none. Returns None, or why they are refused; what it
            raises ends everything.
        refuse: Is given an item that is refused alone, and why.
    """
    why = await write(items)
    if why is None:
        return
    if len(items) == 1:
        await refuse(items[0], why)
        return
    middle = len(items) // 2
    await write_by_halves(items[:middle], write, refuse)
    await write_by_halves(items[middle:], write, refuse)
