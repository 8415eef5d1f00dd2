"""The headers that are kept: by our setting, and by OpenTelemetry's own variables."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator

import re2

from otel_audit._util.cache import BoundedCache
from otel_audit.errors import ConfigurationError

CAPTURE_VARIABLES = (
    "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST",
    "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE",
)
"""Comma-separated regular expressions, as contrib's instrumentation reads them."""

_REMEMBERED = 1024
"""Names of headers about which it is remembered whether they are captured, about."""
_REMEMBERED_LENGTH = 128
"""Characters of such a name; a client chooses them, and memory is bounded."""


class HeaderNames(Collection[str]):
    """A set of header names in lower case, some of them as patterns."""

    def __init__(self, names: Iterable[str], patterns: Iterable[str] = ()) -> None:
        """Compile the patterns.

        Args:
            names: Header names, in any case.
            patterns: Regular expressions that match a whole name, without regard to case.

        Raises:
            ConfigurationError: A pattern is not a regular expression.
        """
        self._names = frozenset(name.lower() for name in names)
        joined = "|".join(f"(?:{pattern})" for pattern in patterns)
        self._pattern = _compiled(joined) if joined else None
        self._answers: BoundedCache[str, bool] = BoundedCache(_REMEMBERED)

    def __contains__(self, name: object) -> bool:
        if name in self._names:
            return True
        if self._pattern is None or not isinstance(name, str):
            return False
        answer = self._answers.get(name)
        if answer is None:
            answer = self._pattern.fullmatch(name) is not None
            if len(name) <= _REMEMBERED_LENGTH:
                self._answers.put(name, answer)
        return answer

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def kept_headers(names: Iterable[str]) -> Collection[str]:
    """Choose the headers that are kept: the given ones, and what OpenTelemetry's variables name.

    Returns:
        Their names in lower case, for ``in``; a plain set if no variable adds any.

    Raises:
        ConfigurationError: A variable holds something that is not a regular expression.
    """
    patterns = [
        pattern.strip()
        for variable in CAPTURE_VARIABLES
        for pattern in os.environ.get(variable, "").split(",")
        if pattern.strip()
    ]
    if patterns:
        return HeaderNames(names, patterns)
    return frozenset(name.lower() for name in names)


def _compiled(pattern: str) -> re2.Pattern:
    try:
        return re2.compile(f"(?i:{pattern})")
    except re2.error as error:
        raise ConfigurationError(
            f"{' or '.join(CAPTURE_VARIABLES)}: not a regular expression: {error}"
        ) from None
