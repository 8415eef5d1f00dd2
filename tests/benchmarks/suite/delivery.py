"""How many instructions the delivery of a record takes, in the threads beside the application's."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from otel_audit_postgres import init

from tests.benchmarks.suite.postgres import Databases
from tests.benchmarks.suite.shops import SERVED, clean_environment

BATCHES = {1: 32, 32: 8, 512: 2}
"""Records that go together, and how many times they are counted."""

WARMING = 60
"""Records before any is counted, and two batches at least: the interpreter specializes what runs
often, and caches fill. Only then is a record what it is in a process that runs for long."""

_ROOT = Path(__file__).parents[3]
_SUMMARY = re.compile(r"^summary: (\d+)", re.MULTILINE)


def measure(databases: Databases) -> dict[str, Any] | None:
    """Count for each size of batch; None where there is no valgrind."""
    if shutil.which("valgrind") is None:
        print("  valgrind is not installed: nothing is counted", file=sys.stderr)
        return None
    store = asyncio.run(_store(databases))
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        counts = Path(scratch) / "counts"
        command = [
            "valgrind", "--quiet", "--tool=callgrind", "--separate-threads=yes",
            "--instr-atstart=no", f"--callgrind-out-file={counts}",
            sys.executable, str(SERVED / "deliver.py"),
        ]  # fmt: skip
        environment = clean_environment(store=store, spool=str(Path(scratch) / "spool"))
        environment |= {"PYTHONPATH": str(_ROOT), "PYTHONHASHSEED": "0"}
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                return {
                    "batches": {
                        str(size): _counted(process, counts, turn, size, times)
                        for turn, (size, times) in enumerate(BATCHES.items(), 1)
                    }
                }
            finally:
                process.terminate()


async def _store(databases: Databases) -> str:
    dsn = await databases.make("delivery")
    await init(dsn)
    return dsn


def _counted(
    process: subprocess.Popen[str], counts: Path, turn: int, size: int, times: int
) -> dict[str, float]:
    """Instructions for one record, beside the main thread's."""
    _deliver(process, size, max(WARMING // size, 2))
    if turn == 1:
        # never off again: a thread that waits meanwhile is counted wrong afterwards
        _tell(process, "--instr=on")
    _tell(process, "--zero")
    _deliver(process, size, times)
    _tell(process, "--dump")
    beside = sum(
        int(found[1])
        for path in counts.parent.glob(f"{counts.name}.{turn}-*")
        if not path.name.endswith("-01")
        for found in [_SUMMARY.search(path.read_text())]
        if found is not None
    )
    return {"instructions": beside / (size * times)}


def _deliver(process: subprocess.Popen[str], size: int, times: int) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"batch": size, "batches": times}) + "\n")
    process.stdin.flush()
    if process.stdout.readline() != "done\n":
        raise SystemExit(f"delivery ended with {process.wait()}")


def _tell(process: subprocess.Popen[str], what: str) -> None:
    subprocess.run(
        ["callgrind_control", what, str(process.pid)], check=True, stdout=subprocess.DEVNULL
    )
