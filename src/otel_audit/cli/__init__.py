"""The command `otel-audit`.

Every call loads the modules of all commands, also ``--help``. So these import at their heads only
what is loaded quickly. The store, a server or the viewer is imported by the function that needs it.
Thus a command also works where an extra is missing that only other commands need.

Private: ``docs/api.md`` lists the public modules.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command; where its own packages are missing, say how to get them."""
    try:
        from otel_audit.cli.main import cli
    except ImportError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.exit("otel-audit: the command needs: pip install 'otel-audit[cli]'")
    cli(prog_name="otel-audit")
