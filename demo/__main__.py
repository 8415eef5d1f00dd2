"""``python -m demo``: run the demonstration; with ``KEEP=1`` leave it running at the end."""

from __future__ import annotations

import asyncio
import io
import os
import sys

from demo import screen
from demo.commands import CommandError
from demo.postgres import PostgresError
from demo.run import demonstrate
from demo.server import ServerError


def main() -> int:
    keep = os.environ.get("KEEP", "0") not in ("", "0")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may not know every sign
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
