"""How much may be under way at once, so that memory has an end, and no sender has all of it."""

from __future__ import annotations

from collections import Counter
from typing import Final, Self

from otel_audit.serve.problems import overloaded

MOST_REQUESTS: Final = 256
"""Requests of one sender that may be under way."""

_BYTES_A_SECOND: Final = 8_000_000
"""About what a process reads and stores; by it a sender is told when to come again."""

_LONGEST_WAIT: Final = 30
_TOO_MUCH: Final = "too much is under way; try again"
_TOO_MUCH_OF_YOURS: Final = "too much from this sender is under way; try again, or send less often"


class Budget:
    """Bytes of requests that are being worked on; used from one event loop only.

    One sender may have half of them, and all senders together three quarters. The last quarter is
    for those of whom nothing is under way yet.
    """

    def __init__(self, limit: int) -> None:
        """Take the bound, in bytes."""
        self._limit = limit
        self.taken = 0
        self._held: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()

    def lease(self, sender: str = "") -> Lease:
        """Begin with a request; its lease is to be closed."""
        return Lease(self, sender)

    def begin(self, sender: str) -> None:
        """Note one request more.

        Raises:
            Problem: 429, where the sender has too many under way.
        """
        if self._requests[sender] >= MOST_REQUESTS:
            raise overloaded(_TOO_MUCH_OF_YOURS, self._wait_for(sender))
        self._requests[sender] += 1

    def end(self, sender: str, held: int) -> None:
        """Note one request less, and release its bytes."""
        self._give_back(sender, held)
        self._requests[sender] -= 1
        if not self._requests[sender]:
            del self._requests[sender]

    def grow(self, sender: str, held: int, size: int) -> None:
        """Reserve bytes for a request.

        Args:
            sender: Who sends it.
            held: What the request has already, which does not stand in its own way.
            size: What it needs in all.

        Raises:
            Problem: 429, where they are not to be had now.
        """
        others, own = self.taken - held, self._held[sender] - held
        # alone, a request may have all that it is allowed to be
        if own and own + size > self._limit // 2:
            raise overloaded(_TOO_MUCH_OF_YOURS, self._wait_for(sender))
        if others and others + size > (self._limit * 3 // 4 if own else self._limit):
            raise overloaded(_TOO_MUCH, self._wait_for(sender))
        self.taken += size - held
        self._held[sender] += size - held

    def _give_back(self, sender: str, count: int) -> None:
        self.taken -= count
        self._held[sender] -= count
        if not self._held[sender]:
            del self._held[sender]

    def _wait_for(self, sender: str) -> int:
        return max(1, min(self._held[sender] // _BYTES_A_SECOND, _LONGEST_WAIT))


class Lease:
    """What one request holds of a budget."""

    def __init__(self, budget: Budget, sender: str) -> None:
        """Hold nothing yet."""
        self._budget = budget
        self._sender = sender
        self.held = 0

    def grow_to(self, size: int) -> None:
        """Hold at least so many bytes.

        Raises:
            Problem: As for `Budget.grow`.
        """
        if size > self.held:
            self._budget.grow(self._sender, self.held, size)
            self.held = size

    def __enter__(self) -> Self:
        """Begin.

        Raises:
            Problem: As for `Budget.begin`.
        """
        self._budget.begin(self._sender)
        return self

    def __exit__(self, *_: object) -> None:
        """Give everything back."""
        self._budget.end(self._sender, self.held)
        self.held = 0
