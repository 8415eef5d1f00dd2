"""Whether a process must be audited is known whatever else is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import otel_audit_bootstrap as bootstrap


class TestMustBeAudited:
    @pytest.mark.parametrize(
        ("said", "file", "expected"),
        [
            (None, None, False),
            ("true", None, True),
            ("1", None, True),
            ("Y", None, True),
            ("perhaps", None, True),
            ("", None, False),
            ("off", "required = true", False),
            (None, "required = true", True),
            (None, "required = false", False),
            (None, "", False),
            (None, "dsn = \nrequired = true", True),
            (None, "a = " + "[" * 5000 + "\nrequired=true", True),
            (None, "dsn = ", False),
        ],
    )
    def test_by_environment_or_file(self, said, file, expected, tmp_path, monkeypatch):
        """The variable, else the file, even one that is no TOML; an odd word is a yes."""
        if said is not None:
            monkeypatch.setenv("OTEL_AUDIT_REQUIRED", said)
        if file is not None:
            (tmp_path / "audit.toml").write_text(file)
            monkeypatch.setenv("OTEL_AUDIT_CONFIG_FILE", str(tmp_path / "audit.toml"))
        assert bootstrap.must_be_audited() is expected

    @pytest.mark.parametrize("file", ["no.toml", ".", "nul\ufffd"])
    def test_a_file_that_cannot_be_read_says_nothing(self, file, monkeypatch):
        """There is no such file, or it is a directory."""
        monkeypatch.setenv("OTEL_AUDIT_CONFIG_FILE", file)
        assert bootstrap.must_be_audited() is False


class TestAlone:
    def test_it_needs_the_standard_library_alone(self):
        """What says that something is broken must not need what may be broken."""
        done = subprocess.run(
            [sys.executable, "-S", "-c", "import otel_audit_bootstrap"],
            env={"PYTHONPATH": str(Path(bootstrap.__file__).parents[1])},
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    @pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
    def test_a_user_without_a_home_is_told_what_to_set(self):
        """A uid that nobody has entered, as in a container, and no HOME: one line, no traceback."""
        program = (
            "import os, otel_audit_bootstrap, otel_audit\n"
            "os.environ.pop('HOME', None); os.setuid(54321)\n"
            "otel_audit_bootstrap.pre_instrument()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], check=False, capture_output=True, text=True,
            env={"OTEL_AUDIT_REQUIRED": "true", "OTEL_AUDIT_DSN": "postgresql://a@localhost/b"},
        )  # fmt: skip
        assert done.returncode == 78
        first, second = done.stderr.splitlines()
        assert "NOT AUDITED: OTEL_AUDIT_SPOOL_DIR: missing, and user 54321 has no home" in first
        assert second.startswith("Refusing to start")
