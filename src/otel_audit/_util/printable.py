"""Untrusted text, made safe for terminals and logs.

Control characters move a cursor, colour or hide what stands there; bidi controls change the order
in which it is read; characters without a shape make two names look like one. None gets through.
"""

from __future__ import annotations

import logging
import re
from typing import Final

_SHAPELESS: Final = (
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef"
)
# a line of plain ASCII is what nearly everything is
_PLAIN: Final = re.compile(r"[ -~]*")
_PRINTABLE_AND_SHAPELESS: Final = re.compile(f"[{_SHAPELESS}]")
_NOT_ASCII: Final = re.compile(r"[^ -~\n]")
_JSON_SPACE: Final = "\t\r"


def visible(text: str) -> str:
    r"""Write every character that is not plainly visible as its number, ``\u{202e}``.

    Those are control characters and line ends of every kind, bidi and other format characters,
    spaces other than the plain one, lone surrogates, and what has no shape. The result is one line.
    """
    if _PLAIN.fullmatch(text):
        return text
    return "".join(char if _is_visible(char) else f"\\u{{{ord(char):x}}}" for char in text)


def ascii_json(text: str) -> str:
    """Write a JSON text in visible ASCII alone; it means the same.

    Args:
        text: JSON, over several lines or not; beyond ASCII it has only what is in its strings.
    """
    return _NOT_ASCII.sub(_escaped, text)


class VisibleFormatter(logging.Formatter):
    """Formats a log record, its traceback included, as visible lines."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record."""
        return "\n".join(visible(line) for line in super().format(record).split("\n"))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return its message, on one line."""
        return visible(super().formatMessage(record))


def log_to_stderr(level: int, layout: str = "%(message)s") -> None:
    """Write log lines to standard error, unless logging is configured.

    Args:
        level: From which on.
        layout: Of a line.
    """
    root = logging.getLogger()
    ours = any(isinstance(one.formatter, VisibleFormatter) for one in root.handlers)
    handler = logging.StreamHandler()
    handler.setFormatter(VisibleFormatter(layout))
    logging.basicConfig(level=level, handlers=[handler], force=ours)


def _is_visible(char: str) -> bool:
    return char == " " or (
        char.isprintable() and not char.isspace() and not _PRINTABLE_AND_SHAPELESS.match(char)
    )


def _escaped(found: re.Match[str]) -> str:
    char = found[0]
    if char in _JSON_SPACE:
        return " "
    units = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4))
