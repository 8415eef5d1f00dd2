"""A bound on the work that one document may cause, so that no body can hold up the event loop.

Counted in units, not in time: the same document has the same result on every machine. One unit is
about a microsecond on a machine of 2020.
"""

from __future__ import annotations

from typing import Final

FREE: Final = 4_000
"""Units that every document has, however small it is."""

PER_CHARACTER: Final = 0.5
"""Units that each byte or character of a document adds."""


class WorkSpentError(Exception):
    """What a document may cost is used up; what is left of it is to be withheld."""


class Work:
    """What is left of the work that a document may cause.

    Attributes:
        left: Units; below 0 it is used up.
        rate: Units that each character adds that is met on the way; 0 where the size was known
            beforehand.
    """

    __slots__ = ("_keys", "_names", "left", "rate")

    def __init__(self, size: int | None = None) -> None:
        """Begin.

        Args:
            size: Bytes or characters of the document; None where nobody knows.
        """
        self.rate = PER_CHARACTER if size is None else 0.0
        self.left = FREE + PER_CHARACTER * (size or 0)
        self._keys: set[str] = set()
        self._names: set[str] = set()

    def spend(self, units: float) -> None:
        """Take units off.

        Raises:
            WorkSpentError: There are none left.
        """
        self.left -= units
        if self.left < 0:
            raise WorkSpentError

    def is_new_key(self, key: str) -> bool:
        """Tell whether a key is met for the first time; it is judged once, and then remembered."""
        return _is_new(key, self._keys)

    def is_new_name(self, name: str) -> bool:
        """Tell the same of a name in a text."""
        return _is_new(name, self._names)


def _is_new(name: str, met: set[str]) -> bool:
    if name in met:
        return False
    met.add(name)
    return True
