"""A bounded memory of what short texts turn into, for those that come again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

_T = TypeVar("_T")

MOST: Final = 4096
"""Texts that are remembered; then all are forgotten, which costs less than to tell the old ones."""
LONGEST: Final = 255
"""Characters of a text that is worth remembering."""


class TextCache(dict[str | None, _T]):
    """Asked for a text, it gives what the text turns into, made anew where it is not known.

    A dictionary finds what it knows without calling anything in Python, which is the point.
    """

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[Any], _T]) -> None:
        """Take what turns a text into something; its errors are the caller's."""
        super().__init__()
        self._make = make

    def __missing__(self, text: str | None) -> _T:
        """Make it, and keep it if that is cheap."""
        made = self._make(text)
        if text is None or (type(text) is str and len(text) <= LONGEST):
            if len(self) >= MOST:
                self.clear()
            self[text] = made
        return made
