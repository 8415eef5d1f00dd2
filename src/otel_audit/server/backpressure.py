"""The memory budget of requests under way, shared among senders."""

from __future__ import annotations

import time
from collections import Counter
from typing import Final, Self

from otel_audit.server.errors import overloaded

MOST_REQUESTS: Final = 256
"""Requests of one sender that may be under way."""

_MOST_REMEMBERED: Final = 4_096
"""Senders whose credit is known; where there are more, all begin again with the whole of it."""
_BYTES_A_SECOND: Final = 8_000_000
"""Rough rate of reading and storing; ``Retry-After`` is computed from it."""

_LONGEST_WAIT: Final = 30
"""Seconds of ``Retry-After`` at most."""

FREE_SIZE: Final = 4 << 20
"""Bytes that any request may have, decompressed: more than our own exporter sends at once."""

MOST_RATIO: Final = 100
"""Compression ratio up to which a larger request uses no credit."""

CREDIT: Final = 64 << 20
"""Bytes beyond that a sender may have decompressed at once."""

_CREDIT_A_SECOND: Final = 1 << 20
"""Bytes of it that come back each second. Repetitive data is no attack: it must not be lost."""

_TOO_MUCH: Final = "too much is under way; try again"
_INFLATED: Final = (
    "decompressed, the body is larger than 4 MiB and more than 100 times as large as it was sent, "
    "and this sender has sent much of that kind; try again, or send it without compression"
)
_TOO_MUCH_OF_YOURS: Final = "too much from this sender is under way; try again, or send less often"


class MemoryBudget:
    """Bytes of requests that are being worked on; used from one event loop only.

    One sender may have half of them, and all senders together three quarters. The last quarter is
    for those of whom nothing is under way yet.
    """

    def __init__(self, limit: int) -> None:
        """Start with nothing taken.

        Args:
            limit: The most bytes of all requests together.
        """
        self._limit = limit
        self.taken = 0
        self._held: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()
        # what was used of a sender's credit, and when that was known
        self._inflated: dict[str, tuple[float, float]] = {}

    def lease(self, sender: str = "") -> MemoryLease:
        """Begin with a request. The lease must be closed."""
        return MemoryLease(self, sender)

    def begin(self, sender: str) -> None:
        """Note one request more.

        Raises:
            RequestError: 429, where the sender has too many under way.
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
            held: Bytes that the request already has; they do not count against it.
            size: What it needs in all.

        Raises:
            RequestError: 429, where they are not to be had now.
        """
        others, own = self.taken - held, self._held[sender] - held
        # alone, a request may have all that it is allowed to be
        if own and own + size > self._limit // 2:
            raise overloaded(_TOO_MUCH_OF_YOURS, self._wait_for(sender))
        if others and others + size > (self._limit * 3 // 4 if own else self._limit):
            raise overloaded(_TOO_MUCH, self._wait_for(sender))
        self.taken += size - held
        self._held[sender] += size - held

    def count_inflation(self, sender: str, excess: int) -> float:
        """See whether a sender's credit is enough for a body that becomes so much too large.

        Returns:
            What it has used of its credit.

        Raises:
            RequestError: 429, it is not.
        """
        used, since = self._inflated.get(sender, (0.0, 0.0))
        used = max(used - (time.monotonic() - since) * _CREDIT_A_SECOND, 0.0)
        if used + excess > CREDIT:
            wait = int((used + excess - CREDIT) / _CREDIT_A_SECOND) + 1
            raise overloaded(_INFLATED, min(wait, _LONGEST_WAIT))
        return used

    def pay_inflation(self, sender: str, excess: int) -> None:
        """Take it off the credit.

        Raises:
            RequestError: As for `count_inflation`.
        """
        used = self.count_inflation(sender, excess)
        if len(self._inflated) >= _MOST_REMEMBERED:
            self._inflated.clear()
        self._inflated[sender] = (used + excess, time.monotonic())

    def _give_back(self, sender: str, count: int) -> None:
        self.taken -= count
        self._held[sender] -= count
        if not self._held[sender]:
            del self._held[sender]

    def _wait_for(self, sender: str) -> int:
        return max(1, min(self._held[sender] // _BYTES_A_SECOND, _LONGEST_WAIT))


class MemoryLease:
    """One request's part of a budget."""

    def __init__(self, budget: MemoryBudget, sender: str) -> None:
        """Start with no byte taken.

        Args:
            budget: What the bytes are taken from.
            sender: Whose request it is.
        """
        self._budget = budget
        self._sender = sender
        self.held = 0

    def grow_to(self, size: int) -> None:
        """Hold at least so many bytes.

        Raises:
            RequestError: As for `MemoryBudget.grow`.
        """
        if size > self.held:
            self._budget.grow(self._sender, self.held, size)
            self.held = size

    def count_inflation(self, sent: int, size: int) -> None:
        """See whether a body may become so large; what it was when it was sent counts.

        Raises:
            RequestError: As for `MemoryBudget.count_inflation`.
        """
        excess = _inflation(sent, size)
        if excess > 0:
            self._budget.count_inflation(self._sender, excess)

    def pay_inflation(self, sent: int, size: int) -> None:
        """Pay for a body that has become so large.

        Raises:
            RequestError: As for `MemoryBudget.count_inflation`.
        """
        excess = _inflation(sent, size)
        if excess > 0:
            self._budget.pay_inflation(self._sender, excess)

    def __enter__(self) -> Self:
        """Begin.

        Raises:
            RequestError: As for `MemoryBudget.begin`.
        """
        self._budget.begin(self._sender)
        return self

    def __exit__(self, *_: object) -> None:
        """Give everything back."""
        self._budget.end(self._sender, self.held)
        self.held = 0


def _inflation(sent: int, size: int) -> int:
    """Bytes by which a body is larger than one that is free."""
    return size - max(FREE_SIZE, MOST_RATIO * sent)
