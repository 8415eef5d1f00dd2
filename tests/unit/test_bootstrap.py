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
class TestUnknownUser:
    """A uid that nobody has entered, as in a container, and no HOME."""

    @pytest.fixture
    def start(self, tmp_path):
        def run(**settings: str) -> subprocess.CompletedProcess[str]:
            # what is used is imported before, as that user may not read where it is
            program = (
                "import os, asyncpg, otel_audit_bootstrap, otel_audit, otel_audit_postgres.sink\n"
                "import otel_audit_postgres.personal.protect, otel_audit.orm, urllib.request, difflib\n"
                "import concurrent.futures.thread\n"
                "os.environ.pop('HOME', None); os.setuid(54321)\n"
                "otel_audit_bootstrap.pre_instrument()\n"
                "print(otel_audit.health()['auditing'])\n"
            )
            return subprocess.run(
                [sys.executable, "-c", program], check=False, capture_output=True, text=True,
                env={"OTEL_AUDIT_REQUIRED": "true", "OTEL_SERVICE_NAME": "shop", **settings},
            )  # fmt: skip

        return run

    @pytest.mark.parametrize(
        ("settings", "part"),
        [
            (
                {"OTEL_AUDIT_DSN": "postgresql://a@localhost/b"},
                "SPOOL_DIR: missing, and user 54321",
            ),
            ({"OTEL_AUDIT_DSN": "postgresql://localhost/b"}, "OTEL_AUDIT_DSN: names no user"),
            (
                {"OTEL_AUDIT_DSN": "postgresql://a@h/b", "OTEL_AUDIT_SPOOL_DIR": "~/spool"},
                "OTEL_AUDIT_SPOOL_DIR: begins with ~",
            ),
            ({"OTEL_AUDIT_CONFIG_FILE": "~/audit.toml"}, "OTEL_AUDIT_CONFIG_FILE: begins with ~"),
        ],
    )
    def test_it_is_told_what_to_set(self, settings, part, start):
        """One line, no traceback, and it does not start."""
        done = start(**settings)
        assert done.returncode == 78
        (line,) = done.stderr.splitlines()
        assert "NOT AUDITED: OTEL_AUDIT_" in line
        assert part in line
        assert line.endswith("refusing to start, because OTEL_AUDIT_REQUIRED is set")

    def test_where_nothing_waits_on_disk_no_directory_is_needed(self, start):
        """Records for the console need no spool."""
        done = start(OTEL_AUDIT_EXPORTER="console")
        assert (done.returncode, done.stdout) == (0, "True\n")


class TestAnyError:
    @pytest.mark.allow_errors
    @pytest.mark.parametrize("error", ["RuntimeError", "SystemExit", "BaseException", "KeyError"])
    @pytest.mark.parametrize("required", ["1", ""])
    def test_whatever_is_raised_is_said_and_refused(self, error, required, tmp_path):
        """Of whatever type, when it is imported or started: OpenTelemetry would swallow it."""
        program = (
            "import otel_audit._instrumentation as one, otel_audit_bootstrap as b\n"
            f"def fails(*_, **__): raise {error}('hunter2')\n"
            "one.AuditConfig = fails\n"
            "b.pre_instrument(); one.AuditInstrumentor().instrument(); print('went on')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], check=False, capture_output=True, text=True,
            env={"OTEL_AUDIT_REQUIRED": required, "OTEL_AUDIT_SPOOL_DIR": str(tmp_path)},
        )  # fmt: skip
        (line,) = done.stderr.splitlines()
        assert f"NOT AUDITED: auditing could not be started [{error} at" in line
        assert "hunter2" not in done.stderr
        assert done.returncode == (78 if required else 0)
        assert line.endswith("REQUIRED is set") == bool(required)
