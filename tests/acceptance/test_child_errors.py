"""An error of ours in a process that a test starts fails the test."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import child_errors
import preloaded
import pytest

CAUGHT = """
import logging
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.errors import StoreError

try:
    raise {error}("42")
except {error} as error:
    log_limited(logging.getLogger("otel_audit"), "matter", "It failed", error=error)
"""
RAISED = """
from otel_audit._util.printable import visible

visible({argument})
"""
APPLICATIONS = """
def handler():
    raise KeyError("order")

handler()
"""


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, check=False)


@pytest.mark.parametrize("error", ["KeyError", "AssertionError", "Fault"])
def test_what_a_guard_has_caught_is_found(error):
    """Whatever its type is: the line says where it was raised."""
    run(f"class Fault(Exception): ...\n{CAUGHT.format(error=error)}")
    (line,) = child_errors.taken()
    assert line.endswith(f"It failed [{error} at <string>:8]")


@pytest.mark.parametrize("error", ["OSError", "ConnectionResetError", "StoreError"])
def test_what_system_or_store_refuse_is_no_error_of_ours(error):
    """As in the tests' own process."""
    run(CAUGHT.format(error=error))
    assert child_errors.taken() == []


def test_what_nothing_caught_is_found():
    """A traceback that ends in our code, as of a thread."""
    run(RAISED.format(argument=42))
    (lines,) = child_errors.taken()
    assert lines.startswith("Traceback")
    assert "/otel_audit/_util/printable.py" in lines


def test_the_applications_own_error_is_not_ours():
    """Its traceback may pass through our code; it does not end there."""
    run(APPLICATIONS)
    assert child_errors.taken() == []


def test_what_a_server_writes_to_its_file_is_found_while_it_runs(tmp_path: Path):
    """Each line once; one that is being written, when it is whole."""
    code = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=log, text=True
        ) as process,
    ):
        assert process.stdin is not None
        process.stdin.write("an order\nIt failed [KeyError at /x/a.py:1]\n")
        process.stdin.flush()
        found: list[str] = []
        while not found:
            found = child_errors.taken()
        assert found == ["It failed [KeyError at /x/a.py:1]"]
        process.stdin.write("again [TypeError at /x/a.py:1]\n")
        process.stdin.close()
        assert process.wait(30) == 0
    assert child_errors.taken() == ["again [TypeError at /x/a.py:1]"]


def test_a_traceback_that_is_being_written_is_found_when_it_is_whole(tmp_path: Path):
    """Between two searches it may be cut anywhere."""
    lines = (
        "started\n",
        "Traceback (most recent call last):\n",
        '  File "/x/otel_audit/a.py", line 1, in a\n    b()\n',
        "KeyError: 1\n",
    )
    log = tmp_path / "log"
    log.touch()
    child_errors.note_file(log)
    for line in lines:
        assert child_errors.taken() == []
        with log.open("a") as file:
            file.write(line)
    (found,) = child_errors.taken()
    assert found == "".join(lines[1:]).removesuffix(": 1\n")
    assert child_errors.taken() == []


@pytest.mark.slow
def test_what_a_process_printed_that_took_too_long_is_found():
    """It is killed, and what it has said is known."""
    # a shell has said it within a millisecond, an interpreter takes its time to start
    code = "echo 'It failed [KeyError at /x/a.py:1]'; exec sleep 600"
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(["/bin/sh", "-c", code], capture_output=True, check=False, timeout=10)
    assert child_errors.taken() == ["It failed [KeyError at /x/a.py:1]"]


SHARED = """
import subprocess, sys
import pytest

@pytest.fixture(scope="module")
def server():
    yield
    said = "print('It failed [KeyError at /x/a.py:1]')"
    subprocess.run([sys.executable, "-c", said], capture_output=True, check=True)

def test_it(server): ...
"""


def test_what_a_shared_server_says_as_it_ends_fails_its_file(tmp_path: Path):
    """Not the next file's test, nor none."""
    tests = Path(__file__).parents[1]
    (tmp_path / "test_shared.py").write_text(SHARED)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "conftest"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100,
        env={**os.environ, "PYTHONPATH": f"{tests}:{tests.parent}"},
    )  # fmt: skip
    child_errors.taken()
    assert done.returncode == 1, done.stdout
    assert "1 passed, " in done.stdout
    assert "ERROR test_shared.py::test_it" in done.stdout


def test_a_forked_command_is_searched_as_well(tmp_path: Path):
    """Its files are known, though nothing of it was started here."""
    log = tmp_path / "log"
    process = preloaded.Process(["--version"], env={"PATH": "/usr/bin"}, stdout=log)
    assert process.wait(60) == 0
    with log.open("a") as file:
        file.write("It failed [KeyError at /x/a.py:1]\n")
    assert child_errors.taken() == ["It failed [KeyError at /x/a.py:1]"]
