"""A thread of ours is cut off at each point of its work: nothing is lost, nobody waits for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cut_off_jobs import FILES, JOBS

PROGRAM = Path(__file__).parents[1] / "cut_off_jobs.py"

# what cuts the threads off is logged as what it is: an error that ends them
pytestmark = [pytest.mark.slow, pytest.mark.allow_errors]


@pytest.mark.parametrize("kind", JOBS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("files", FILES)
def test_it_goes_on_wherever_its_thread_is_cut_off(kind: type, files: str, tmp_path: Path) -> None:
    """The work under way is done, so is what comes next, and no lock stays with the dead."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(PROGRAM), kind.__name__, files, str(tmp_path)],
        check=False, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout) > 5
