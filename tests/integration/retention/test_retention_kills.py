"""A run that is killed at any point is gone on with, and nothing is lost or done twice."""

from __future__ import annotations

from pathlib import Path

import preloaded
import pytest

# each is killed before the step is taken, the last ones for a second month
POINTS = (
    "policy", "write", "put 2025-01/default", "put 2025-01/tree", "put manifest", "record",
    "read back", "retire", "seal", "drop", "collapse", "holds", "remove", "delete", "record run",
)  # fmt: skip

PROGRAM = """
import asyncio, os, signal, sys
from pathlib import Path
from retention_trail import Trail

trail = Trail(sys.argv[1], Path(sys.argv[2]))
trail.key = __import__("otel_audit_postgres.ledger.keys", fromlist=["x"]).read_signing_key(
    sys.argv[3], "test")

def on_step(month, step):
    if step.startswith(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(trail.retain(on_step=on_step))
"""


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
async def test_goes_on(months, point, tmp_path):
    """SIGKILL in a process of its own; the next run does the rest, and all of it verifies."""
    root = Path(__file__).parents[2]
    killed = preloaded.run(
        "-c", PROGRAM, months.dsn, str(tmp_path), months.key.text(), point,
        cwd=root, timeout=120, kind="python",
    )  # fmt: skip
    assert killed.returncode == -9, killed.stderr
    report = await months.verify()
    assert report.problems == ()
    await months.retain()
    await months.seal()
    report, archived = await months.check_all()
    assert report.problems == ()
    assert (archived.archived, archived.removed, report.dropped) == (64, 12, 76)
    assert not [key for key in months.archive.list_keys() if key.endswith(".part")]
