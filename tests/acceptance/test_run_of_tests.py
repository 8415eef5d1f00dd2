"""A run of tests of an application that audits itself, where no store is: short, and no trace."""

from __future__ import annotations

import os
import subprocess
import sys
import time

TESTS = """
import otel_audit

otel_audit.instrument(config=otel_audit.AuditConfig(dsn="postgresql://u@127.0.0.1:1/audit"))

def test_shop():
    otel_audit.emit("order.created", actor="ada", target="order:1")
"""


def test_it_ends_at_once_and_leaves_nothing_in_the_users_spool(tmp_path):
    """Nothing is delivered: nobody waits for that, and the spool was a temporary one."""
    (tmp_path / "test_shop.py").write_text(TESTS)
    kept = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shop.py"]
    begun = time.monotonic()
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280,
        env={**kept, "HOME": str(tmp_path / "home"), "TMPDIR": str(scratch),
             "OTEL_AUDIT_SHUTDOWN_TIMEOUT": "300", "OTEL_SERVICE_NAME": "shop"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - begun < 250  # a shutdown would wait for three hundred
    assert not (tmp_path / "home").exists()
    assert list(scratch.glob("otel-audit*")) == []
