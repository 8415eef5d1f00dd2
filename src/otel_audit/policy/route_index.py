"""Index of rules by path, so that a request is not compared with hundreds of rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_audit.policy.rules import CompiledRule

_Prefix = tuple[str, ...]


class PathIndex:
    """Rules by the segments that their paths begin with, up to the first that is a pattern."""

    def __init__(self, rules: Iterable[CompiledRule]) -> None:
        """Sort the rules in.

        Args:
            rules: In the order of evaluation; one without paths could match anything.
        """
        self._rules = tuple(rules)
        self._places: dict[_Prefix, list[int]] = {}
        for place, compiled in enumerate(self._rules):
            for prefix in {_literal(path) for path in compiled.rule.paths or ("**",)}:
                self._places.setdefault(prefix, []).append(place)
        self._deepest = max(map(len, self._places), default=0)

    def candidates(self, path: str) -> list[CompiledRule]:
        """Return the rules that could match a path, in their order."""
        if not self._places:
            return []
        segments = tuple(path.split("/", self._deepest + 1)[1:])
        found: set[int] = set()
        for count in range(min(len(segments), self._deepest) + 1):
            found.update(self._places.get(segments[:count], ()))
        return [self._rules[place] for place in sorted(found)]


def _literal(path: str) -> _Prefix:
    """Return the segments before the first that is not plain text."""
    start, *segments = (path.rstrip("/") or "/").split("/")
    if start:
        return ()
    literal: list[str] = []
    for segment in segments:
        if "*" in segment or "{" in segment:
            break
        literal.append(segment)
    return tuple(literal)
