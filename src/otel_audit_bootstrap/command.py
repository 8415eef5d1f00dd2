"""The command `otel-audit`: what must work where nothing else can be imported, and all the rest."""

from __future__ import annotations

import importlib
import sys

from otel_audit_bootstrap import run


def main() -> None:
    """Run the command."""
    if sys.argv[1:2] == ["run"]:
        run.main(sys.argv[2:])
    # by its name: this package stands below that one
    importlib.import_module("otel_audit.cli").main()
