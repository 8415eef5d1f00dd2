"""The command `otel-audit`.

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
