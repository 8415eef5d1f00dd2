"""What is asked for and not installed is named, with the command that brings it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
for name in {missing!r}:
    sys.modules[name] = None
import otel_audit
from starlette.applications import Starlette
config = otel_audit.AuditConfig(**{settings!r})
otel_audit.instrument(Starlette(), config=config, app_engine={engine!r})
"""
DSN = "postgresql://nobody@127.0.0.1:1/audit"


def run(missing: list[str], settings: dict[str, object], engine: object = None) -> str:
    program = PROGRAM.format(missing=missing, settings=settings, engine=engine)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    return "fine" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


class TestMissingExtras:
    @pytest.mark.parametrize(
        ("missing", "settings", "engine", "extra"),
        [
            (["asyncpg"], {"dsn": DSN}, None, "postgres"),
            (["jose"], {"dsn": DSN, "jwt_key": "k" * 32, "jwt_algorithms": ["HS256"]}, None, "jwt"),
            (["sqlalchemy"], {"dsn": DSN}, "an engine", "sqlalchemy"),
            (["cryptography"], {"dsn": DSN, "spool_key": "ab" * 32}, None, "encryption"),
            (["httpx"], {"otlp_endpoint": "http://127.0.0.1:1"}, None, "otlp"),
            (["opentelemetry.proto"], {"otlp_endpoint": "http://127.0.0.1:1"}, None, "otlp"),
        ],
    )
    def test_the_extra_is_named(self, missing, settings, engine, extra):
        """An option whose package is missing fails at once, naming the extra that brings it."""
        assert f"pip install 'otel-audit[{extra}]'" in run(missing, settings, engine)

    @pytest.mark.parametrize("start", ["otel_audit.__main__", "otel_audit.cli"])
    def test_the_command_names_its_own(self, start):
        """By whichever way it is started."""
        program = (
            "import sys, runpy; sys.modules['click'] = None\n"
            "runpy.run_module('otel_audit', run_name='__main__')"
            if start.endswith("__main__")
            else "import sys; sys.modules['click'] = None\nfrom otel_audit.cli import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr == "otel-audit: the command needs: pip install 'otel-audit[cli]'\n"

    def test_what_is_not_asked_for_may_be_missing(self):
        """Without SQLAlchemy and python-jose HTTP requests are audited all the same."""
        assert run(["sqlalchemy", "jose"], {"dsn": DSN}) == "fine"

    def test_over_otlp_no_database_driver_is_needed(self):
        """Nor what only OpenTelemetry's own exporters bring."""
        settings = {"otlp_endpoint": "http://127.0.0.1:1"}
        assert run(["asyncpg", "requests", "opentelemetry.exporter"], settings) == "fine"
