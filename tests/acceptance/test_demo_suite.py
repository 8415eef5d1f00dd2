"""The demo shop's own suite passes, and covers every route."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_shops_suite_covers_every_route(tmp_path, workers):
    """All routes are called, and those that write are recorded; the same with workers."""
    report = tmp_path / "coverage.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-c", "demo/tests/pytest.ini", "demo/tests",
            "-n", workers, "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "base"),
            "--audit-coverage", f"--audit-coverage-report={report}",
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "19 of 19 routes covered: 100 %" in done.stdout
    assert json.loads(report.read_text())["ok"] is True
