"""What is forked behaves as what is started, or is refused."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import preloaded
import pytest

LATE = ("PYTHONHASHSEED", "PYTHONOPTIMIZE", "PYTHONWARNINGS", "OTEL_PROPAGATORS")


@pytest.mark.parametrize("name", LATE)
def test_a_variable_without_effect_is_refused(name: str) -> None:
    """A test that set one would prove nothing."""
    with pytest.raises(ValueError, match=f"^{name}: no effect"):
        preloaded.run("-c", "print(1)", env={"PATH": "/usr/bin", name: "77"}, kind="python")


def test_a_shell_that_sets_one_is_told() -> None:
    """Its programs are forked, too."""
    program = preloaded.programs() / "otel-audit"
    done = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=False, timeout=60,
        env={"PATH": os.environ["PATH"], "PYTHONOPTIMIZE": "77"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "PYTHONOPTIMIZE: no effect" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize("is_unbuffered", [True, False])
def test_an_unbuffered_one_writes_at_once(tmp_path: Path, is_unbuffered: bool) -> None:
    """Also if it is killed before it could write what it held."""
    log, ready = tmp_path / "log", tmp_path / "ready"
    program = (
        "import pathlib, sys, time; print('tea', end=''); "
        "pathlib.Path('ready').touch(); time.sleep(60)"
    )
    environment = {"PATH": "/usr/bin", "PYTHONUNBUFFERED": "1" if is_unbuffered else ""}
    process = preloaded.Process(
        ["-c", program], env=environment, cwd=tmp_path, stdout=log, kind="python"
    )
    until = time.monotonic() + 60
    while not ready.exists():
        assert time.monotonic() < until
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    process.kill()
    process.wait(10)
    assert log.read_text() == ("tea" if is_unbuffered else "")
