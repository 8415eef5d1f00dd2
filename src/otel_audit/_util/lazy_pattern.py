"""Patterns that are compiled when they are first used.

A process that records nothing does not need them, and compiling all takes longer than many a
command.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Final

import re2

_METHODS: Final = ("search", "match", "fullmatch", "finditer", "findall", "split", "sub", "subn")
_OCCURS: Final = "occurs_in"
_NO_SPAN: Final = (-1, -1)
_waiting: Final[weakref.WeakSet[LazyPattern]] = weakref.WeakSet()


MEMORY: Final = 64 << 20
"""Bytes that RE2 may use for a pattern of many alternatives; its default is 8 MiB. RE2 refuses a
pattern that does not fit into its share of them. Where the states do not fit, it searches without
an automaton, which takes many times as long."""


class LazyPattern:
    """A pattern; after its first use its methods are those of the compiled one, at no cost.

    Attributes:
        pattern: Its source.
    """

    occurs_in: Callable[[bytes], bool]
    """Whether it has a match in bytes; quicker than `search`."""

    def __init__(
        self,
        pattern: str | bytes | Callable[[], str],
        options: Any = None,
        compiler: Callable[..., Any] = re2.compile,
    ) -> None:
        """Remember the pattern; it is compiled on first use.

        Args:
            pattern: Its source, or what makes it.
            options: As for the compiler.
            compiler: `re2.compile`, or `re.compile`.
        """
        self.pattern = pattern
        self._options = options
        self._compiler = compiler
        _waiting.add(self)

    def __getattr__(self, name: str) -> Any:
        """Compile, when a method is asked for that is not there yet."""
        if name != _OCCURS and name not in _METHODS:
            raise AttributeError(f"a pattern has no attribute {name!r}")
        self.compile()
        return self.__dict__[name]

    def compile(self) -> None:
        """Compile now."""
        given = () if self._options is None else (self._options,)
        # read once: another thread may be putting the text in the place of what makes it
        pattern = self.pattern
        if callable(pattern):
            self.pattern = pattern = pattern()
        made = self._compiler(pattern, *given)
        self.__dict__.update({name: getattr(made, name) for name in _METHODS})
        self.__dict__[_OCCURS] = occurrence(made)
        _waiting.discard(self)


def occurrence(made: Any) -> Callable[[bytes], bool]:
    """Return what says whether a compiled pattern has a match in bytes.

    `search` of re2 makes a generator, and a third of a short search is that. Below it lies what is
    not public: it is used only where it answers two questions as it must.

    Args:
        made: A compiled pattern, of `re2` or `re`.
    """
    try:
        anchor = re2._Anchor.UNANCHORED  # noqa: SLF001 - see above
        sample = re2.compile(b"b")._regexp.Match  # noqa: SLF001 - see above
        is_known = sample(anchor, b"abc", 0, 3) == [(1, 2)] and sample(anchor, b"a", 0, 1) == [
            _NO_SPAN
        ]
        match = made._regexp.Match if is_known else None  # noqa: SLF001 - see above
    except (AttributeError, TypeError, IndexError):
        match = None
    if match is None:
        return lambda text: made.search(text) is not None
    # whatever else it may answer is taken for a match
    return lambda text: match(anchor, text, 0, len(text))[0] != _NO_SPAN


def compile_patterns() -> None:
    """Compile what is not compiled yet, so that no request has to wait for it."""
    for one in list(_waiting):
        one.compile()
