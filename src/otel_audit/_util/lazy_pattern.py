"""Patterns of RE2 that are compiled when they are first used.

A process that records nothing has no use for them, and together they cost more than many a command.
"""

from __future__ import annotations

import weakref
from typing import Any, Final

import re2

_METHODS: Final = ("search", "match", "fullmatch", "finditer", "findall", "split", "sub", "subn")
_waiting: Final[weakref.WeakSet[LazyPattern]] = weakref.WeakSet()


class LazyPattern:
    """A pattern; after its first use its methods are those of the compiled one, at no cost.

    Attributes:
        pattern: Its source.
    """

    def __init__(self, pattern: str | bytes, options: Any = None) -> None:
        """Keep what is to be compiled.

        Args:
            pattern: As for `re2.compile`.
            options: As for `re2.compile`.
        """
        self.pattern = pattern
        self._options = options
        _waiting.add(self)

    def __getattr__(self, name: str) -> Any:
        """Compile, when a method is asked for that is not there yet."""
        if name not in _METHODS:
            raise AttributeError(f"a pattern has no attribute {name!r}")
        self.compile()
        return self.__dict__[name]

    def compile(self) -> None:
        """Compile now."""
        given = () if self._options is None else (self._options,)
        made = re2.compile(self.pattern, *given)
        self.__dict__.update({name: getattr(made, name) for name in _METHODS})
        _waiting.discard(self)


def compile_patterns() -> None:
    """Compile what is not compiled yet, so that no request has to wait for it."""
    for one in list(_waiting):
        one.compile()
