"""``python -m demo``: run the demonstration; with ``KEEP=1`` leave it running at the end."""

from __future__ import annotations

import asyncio
import codecs
import io
import os
import sys

from demo import screen
from demo.commands import CommandError
from demo.postgres import PostgresError
from demo.run import demonstrate
from demo.server import ServerError

_ASCII = {
    "✓": "+", "✗": "x", "●": "*", "○": "o", "↺": "<", "→": ">", "·": "-", "…": "~", "█": "#",
    "░": ".", "─": "-", "│": "|", "╭": "+", "╮": "+", "╰": "+", "╯": "+", "“": '"', "”": '"',
}  # fmt: skip
"""Signs of one column for signs of one column, so that tables stay straight."""


def _plainer(error: UnicodeError) -> tuple[str, int]:
    """Say by ASCII what a terminal cannot show."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_ASCII.get(sign, "?") for sign in text), error.end


def _knows_ascii_only() -> bool:
    """Whether the locale is POSIX; Python writes UTF-8 there all the same."""
    chosen = (os.environ.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    return next((name for name in chosen if name), "C") in ("C", "POSIX")


def main() -> int:
    keep = os.environ.get("KEEP", "0") not in ("", "0")
    codecs.register_error("plainer", _plainer)
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding = "ascii" if _knows_ascii_only() else None
        sys.stdout.reconfigure(encoding=encoding, errors="plainer")
    console = screen.make_console()
    try:
        return asyncio.run(demonstrate(console, keep=keep))
    except (PostgresError, ServerError, CommandError) as error:
        screen.show_failures(console, [str(error)])
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("\nStopped: everything that was started here has ended.")
        return 0 if keep else 130


if __name__ == "__main__":
    sys.exit(main())
