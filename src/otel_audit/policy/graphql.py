"""GraphQL documents: kind of operation and root fields.

The server's schema has the fields; names and aliases of operations are the client's choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

_LONGEST: Final = 100_000
"""Characters of a document; a longer one gives no event name."""
_MOST_TOKENS: Final = 20_000
"""Tokens that are read of it."""
_MOST_FIELDS: Final = 50
"""Fields of an operation that are kept as its names."""
_TOKEN: Final = re.compile(
    r'(?P<skip>[\s,\ufeff]+|\#[^\n\r]*)|(?P<text>"""|"(?:[^"\\\n\r]|\\.)*")'
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<other>\.\.\.|[^\s])"
)
_KINDS: Final = frozenset({"query", "mutation", "subscription"})
_OPENING: Final = frozenset("([{")
_CLOSING: Final = frozenset(")]}")


@dataclass(frozen=True, slots=True)
class GraphqlOperation:
    """One operation of a document.

    Attributes:
        kind: ``query``, ``mutation`` or ``subscription``.
        name: As the client calls it; empty where it has no name.
        fields: The fields of the root type that it selects, each once.
    """

    kind: str
    name: str
    fields: tuple[str, ...]


@dataclass(slots=True)
class _Selection:
    """A selection set: its fields, and the fragments that it takes in."""

    fields: dict[str, None] = field(default_factory=dict)
    fragments: dict[str, None] = field(default_factory=dict)


class _NotUnderstoodError(Exception):
    pass


def read_operation(document: str, name: str | None = None) -> GraphqlOperation | None:
    """Read the operation that a document has the server carry out.

    Args:
        document: The document.
        name: Which one, where there are several.

    Returns:
        The operation; None if the document is not understood, or does not say which one.
    """
    if len(document) > _LONGEST:
        return None
    try:
        operations, fragments = _read(_Tokens(document))
    except (_NotUnderstoodError, RecursionError):
        return None
    chosen = [one for one in operations if not name or one[1] == name]
    if len(chosen) != 1:
        return None
    kind, own_name, selection = chosen[0]
    fields = tuple(_resolved(selection, fragments))
    return GraphqlOperation(kind, own_name, fields) if fields else None


def _read(tokens: _Tokens) -> tuple[list[tuple[str, str, _Selection]], dict[str, _Selection]]:
    operations: list[tuple[str, str, _Selection]] = []
    fragments: dict[str, _Selection] = {}
    while tokens.now:
        word = tokens.now
        if word == "{":
            operations.append(("query", "", _selection(tokens)))
        elif word in _KINDS:
            name = tokens.take() if _is_name(tokens.after) else ""
            tokens.take()
            _skip_to_selection(tokens)
            operations.append((word, name, _selection(tokens)))
        elif word == "fragment":
            name = tokens.take()
            _skip_to_selection(tokens)
            fragments[name] = _selection(tokens)
        else:
            raise _NotUnderstoodError
    return operations, fragments


def _selection(tokens: _Tokens) -> _Selection:
    """Read from ``{`` to behind its ``}``; deeper levels are skipped."""
    found = _Selection()
    # an inline fragment's own braces are transparent
    depth = 1
    tokens.take()
    while depth:
        word = tokens.now
        if word == "}":
            depth -= 1
            tokens.take()
        elif word == "...":
            word = tokens.take()
            if word != "on" and _is_name(word):
                found.fragments[word] = None
                tokens.take()
            else:
                _skip_to_selection(tokens)
                tokens.take()
                depth += 1
        elif word == "@":
            _skip_directive(tokens)
        elif _is_name(word):
            name = _field(tokens)
            if len(found.fields) < _MOST_FIELDS:
                found.fields[name] = None
        else:
            raise _NotUnderstoodError
    return found


def _field(tokens: _Tokens) -> str:
    name = tokens.now
    if tokens.take() == ":":
        name = tokens.take()
        tokens.take()
    if not _is_name(name):
        raise _NotUnderstoodError
    if tokens.now == "(":
        _skip_balanced(tokens)
    while tokens.now == "@":
        _skip_directive(tokens)
    if tokens.now == "{":
        _skip_balanced(tokens)
    return name


def _skip_directive(tokens: _Tokens) -> None:
    tokens.take()
    tokens.take()
    if tokens.now == "(":
        _skip_balanced(tokens)


def _skip_to_selection(tokens: _Tokens) -> None:
    while tokens.now != "{":
        if tokens.now in _OPENING:
            _skip_balanced(tokens)
        elif not tokens.now or tokens.now in _CLOSING:
            raise _NotUnderstoodError
        else:
            tokens.take()


def _skip_balanced(tokens: _Tokens) -> None:
    depth = 0
    while tokens.now:
        if tokens.now in _OPENING:
            depth += 1
        elif tokens.now in _CLOSING:
            depth -= 1
        tokens.take()
        if not depth:
            return
    raise _NotUnderstoodError


def _resolved(selection: _Selection, fragments: dict[str, _Selection]) -> dict[str, None]:
    found: dict[str, None] = {}
    waiting, seen = [selection], set[str]()
    while waiting:
        one = waiting.pop()
        found |= one.fields
        for name in one.fragments:
            if name in fragments and name not in seen:
                seen.add(name)
                waiting.append(fragments[name])
    return found


def _is_name(word: str) -> bool:
    return word[:1].isalpha() or word[:1] == "_"


class _Tokens:
    """A document token by token; the empty one is its end."""

    def __init__(self, document: str) -> None:
        self._words = self._scan(document)
        self.now = next(self._words, "")
        self.after = next(self._words, "")

    def take(self) -> str:
        """Go on by one, and return it."""
        self.now, self.after = self.after, next(self._words, "")
        return self.now

    @staticmethod
    def _scan(document: str) -> Iterator[str]:
        place = 0
        for _ in range(_MOST_TOKENS):
            found = _TOKEN.match(document, place)
            if found is None:
                return
            place = found.end()
            if found.lastgroup == "text" and found[0] == '"""':
                end = document.find('"""', place)
                while end > 0 and document[end - 1] == "\\":
                    end = document.find('"""', end + 3)
                if end < 0:
                    raise _NotUnderstoodError
                place = end + 3
                yield '"'
            elif found.lastgroup == "text":
                yield '"'
            elif found.lastgroup != "skip":
                yield found[0]
        raise _NotUnderstoodError
