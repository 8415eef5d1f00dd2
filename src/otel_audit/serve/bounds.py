"""How much may be under way at once, so that memory has an end."""

from __future__ import annotations

from typing import Self

from otel_audit.serve.problems import overloaded


class Budget:
    """Bytes of requests that are being worked on; used from one event loop only."""

    def __init__(self, limit: int) -> None:
        """Take the bound, in bytes."""
        self._limit = limit
        self.taken = 0

    def lease(self) -> Lease:
        """Begin with a request; its lease is to be closed."""
        return Lease(self)

    def take(self, count: int) -> None:
        """Reserve bytes.

        Raises:
            Problem: 429, where they are not to be had now.
        """
        # alone, a request may have all it is allowed to be
        if self.taken and self.taken + count > self._limit:
            raise overloaded("too much is under way; try again")
        self.taken += count

    def give_back(self, count: int) -> None:
        """Release bytes."""
        self.taken -= count


class Lease:
    """What one request holds of a budget."""

    def __init__(self, budget: Budget) -> None:
        """Hold nothing yet."""
        self._budget = budget
        self.held = 0

    def grow_to(self, size: int) -> None:
        """Hold at least so many bytes.

        Raises:
            Problem: As for `Budget.take`.
        """
        more = size - self.held
        if more > 0:
            # what this request holds already does not stand in its own way
            self._budget.give_back(self.held)
            try:
                self._budget.take(size)
            except BaseException:
                self._budget.taken += self.held
                raise
            self.held = size

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give everything back."""
        self._budget.give_back(self.held)
        self.held = 0
