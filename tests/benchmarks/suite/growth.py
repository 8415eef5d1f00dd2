"""How the store behaves as it grows; measured by `ledger_growth`, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.suite.postgres import Databases
from tests.benchmarks.suite.shops import clean_environment

SCRIPT = Path(__file__).parents[1] / "ledger_growth.py"


def measure(databases: Databases, rows: int, steps: int) -> dict[str, Any]:
    """Let the store grow to so many rows, and look at it in so many steps."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "growth.json"
        command = [sys.executable, str(SCRIPT), "--rows", str(rows), "--steps", str(steps)]
        command += ["--dsn", databases.server_dsn, "--out", str(out)]
        subprocess.run(command, check=True, env=clean_environment())
        found: dict[str, Any] = json.loads(out.read_text())
    found.pop("machine", None)
    return found
