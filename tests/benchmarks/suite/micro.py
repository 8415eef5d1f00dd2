"""Single steps of the hot path, by pytest-benchmark; the figures of `bench_micro`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
BENCHES = ROOT / "tests" / "benchmarks" / "bench_micro.py"


def measure(seconds: float) -> dict[str, Any]:
    """Median and quartiles of each, in microseconds."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "micro.json"
        subprocess.run(
            [
                sys.executable, "-m", "pytest", str(BENCHES), "-q", "-p", "no:cacheprovider",
                "-o", "python_files=bench_*.py", "-o", "python_functions=bench_*",
                f"--benchmark-max-time={seconds}", f"--benchmark-json={out}",
                "--benchmark-columns=median",
            ],
            check=True, cwd=ROOT, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        benches = json.loads(out.read_text())["benchmarks"]
    return {
        "steps": {
            bench["name"].removeprefix("bench_").replace("_", " "): {
                "median": bench["stats"]["median"] * 1e6,
                "low": bench["stats"]["q1"] * 1e6,
                "high": bench["stats"]["q3"] * 1e6,
            }
            for bench in benches
        }
    }
