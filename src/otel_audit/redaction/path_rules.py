"""Path rules: places in a document that must not be stored, such as `customer.*.iban`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_audit.redaction.names import squash

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class PathRules:
    """Patterns over the path from the root: ``*`` is one step, ``**`` any number of steps.

    A step is a key, in whatever style, or an index of a list.
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        """Split the patterns at their dots.

        Args:
            patterns: Such as ``items[*].price`` or ``**.note``.
        """
        self._patterns = [
            (pattern, [_step(part) for part in pattern.replace("[", ".").split(".")])
            for pattern in patterns
        ]

    def matching(self, path: Sequence[str | int]) -> str | None:
        """Return the first pattern that leads to a path, None if none does."""
        steps = [squash(str(step)) for step in path]
        return next((name for name, wanted in self._patterns if _leads(wanted, steps)), None)


def path_rules(patterns: Iterable[str]) -> PathRules | None:
    """Read patterns; None where there are none, which is asked for every text."""
    given = [pattern for pattern in patterns if pattern.strip()]
    return PathRules(given) if given else None


def _step(part: str) -> str:
    bare = part.strip("] ")
    return bare if bare in ("*", "**") else squash(bare)


def _leads(wanted: list[str], steps: list[str]) -> bool:
    """Match as `glob` does, in time proportional to the product of both lengths."""
    reached = {0}
    for step in steps:
        reached = _closed(wanted, reached)
        reached = {
            place if wanted[place] == "**" else place + 1
            for place in reached
            if place < len(wanted) and wanted[place] in (step, "*", "**")
        }
        if not reached:
            return False
    return len(wanted) in _closed(wanted, reached)


def _closed(wanted: list[str], reached: set[int]) -> set[int]:
    found = set(reached)
    for place in reached:
        after = place
        while after < len(wanted) and wanted[after] == "**":
            after += 1
            found.add(after)
    return found
