"""The command, run as a person runs it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import preloaded
import pytest
from servers import BIN

NO_EXPORTERS = {
    f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")
}  # fmt: skip


async def otel_audit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run otel-audit with the given variables beside the machine's own."""
    return await asyncio.to_thread(
        preloaded.run, *arguments, env={**os.environ, **environment}, cwd=Path(__file__).parent
    )


@pytest.fixture
async def roles(postgres, database):
    """A store set up with roles; DSNs of its writer and of the application's own role."""
    name = database.partition("?")[0].rpartition("/")[2]
    writer, app = f"w_{name}", f"a_{name}"
    await postgres.execute(f"CREATE ROLE {writer} LOGIN", f"CREATE ROLE {app} LOGIN")
    done = await otel_audit("init", "--roles", "--writer", writer, OTEL_AUDIT_DSN=database)
    assert done.returncode == 0, done.stderr
    yield postgres.dsn(name, writer), postgres.dsn(name, app)
    await postgres.execute(
        f"REVOKE otel_audit_writer FROM {writer}", f"DROP ROLE {writer}", f"DROP ROLE {app}"
    )


class TestCommand:
    async def test_is_the_module_too(self):
        """`python -m otel_audit` is the same command, down to its name."""
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "otel_audit", "--help"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout == (await otel_audit("--help")).stdout
        assert done.stdout.startswith("Usage: otel-audit ")


class TestInit:
    async def test_it_makes_the_store_and_says_what_it_made(self, database):
        """init makes schema and tables, tells so, and does nothing the second time."""
        first = await otel_audit("init", "--dsn", database)
        second = await otel_audit("init", "--dsn", database)
        assert (first.returncode, second.returncode) == (0, 0)
        assert "schema audit: created" in first.stdout
        assert "up to date" in second.stdout
        connection = await asyncpg.connect(database)
        assert await connection.fetchval("SELECT count(*) FROM audit.audit_logs") == 0
        await connection.close()

    async def test_the_sql_can_be_had_instead(self, database):
        """--sql prints a script that makes the same, and touches nothing."""
        script = await otel_audit("init", "--sql")
        assert script.returncode == 0
        connection = await asyncpg.connect(database)
        assert await connection.fetchval("SELECT to_regclass('audit.audit_logs')") is None
        await connection.execute(script.stdout)
        assert await connection.fetchval("SELECT count(*) FROM audit.audit_logs") == 0
        await connection.close()

    async def test_without_a_store_it_names_the_setting(self):
        """No DSN: one line that names the setting, status 1, no traceback."""
        done = await otel_audit("init")
        assert done.returncode == 1
        assert "OTEL_AUDIT_DSN" in done.stderr
        assert "Traceback" not in done.stderr

    async def test_an_unreachable_store_is_one_line_without_the_password(self):
        """A store that cannot be reached is named, its password is not."""
        done = await otel_audit("init", "--dsn", "postgresql://me:hunter2@127.0.0.1:1/audit")
        assert done.returncode == 1
        assert "hunter2" not in done.stderr + done.stdout
        assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("durable_server")
class TestDoctor:
    async def test_a_sound_installation_passes(self, roles):
        """Settings, hooks, spool, store and roles are in order: a line each, status 0."""
        writer, app = roles
        done = await otel_audit("doctor", "--app-dsn", app, OTEL_AUDIT_DSN=writer)
        assert done.returncode == 0, done.stdout
        assert "FAIL" not in done.stdout
        for looked_at in ("settings", "entry point", "hooks", "spool", "may_insert", "app_role"):
            assert looked_at in done.stdout

    async def test_an_owner_who_writes_is_a_hole(self, database):
        """Whoever owns the trail can change it: doctor fails and names the remedy."""
        await otel_audit("init", "--dsn", database)
        done = await otel_audit("doctor", OTEL_AUDIT_DSN=database)
        assert done.returncode == 1
        assert "FAIL  not_owner" in done.stdout
        assert "otel-audit init --roles --writer" in done.stdout

    async def test_an_application_that_owns_the_trail_is_a_hole(self, roles, database):
        """The application's own role is looked at, too."""
        writer, _ = roles
        done = await otel_audit("doctor", "--app-dsn", database, OTEL_AUDIT_DSN=writer)
        assert done.returncode == 1
        assert "FAIL  app_role" in done.stdout

    async def test_a_missing_schema_names_init(self, database):
        """A database without the schema: what to run is said."""
        done = await otel_audit("doctor", OTEL_AUDIT_DSN=database)
        assert done.returncode == 1
        assert "otel-audit init" in done.stdout

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"OTEL_AUDIT_BODY_LIMITS": "5"}, "OTEL_AUDIT_BODY_LIMITS"),
            ({"OTEL_AUDIT_BODY_LIMIT": "five"}, "OTEL_AUDIT_BODY_LIMIT"),
            ({}, "OTEL_AUDIT_DSN"),
            ({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "otel_audit"}, "DISABLED_INSTRUMENTATIONS"),
            ({"OTEL_AUDIT_SPOOL_DIR": "/proc/1"}, "spool"),
        ],
    )
    async def test_what_is_wrong_is_named(self, settings, named):
        """A wrong setting, a missing one, hooks switched off, a spool that cannot be: status 1."""
        done = await otel_audit("doctor", **settings)
        assert done.returncode == 1
        assert named in next(line for line in done.stdout.splitlines() if "FAIL" in line)

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({}, "unknown_service"),
            ({"OTEL_SERVICE_NAME": "unknown_service:shop"}, "unknown_service:shop"),
        ],
    )
    async def test_a_service_without_a_name_is_warned_of(self, roles, settings, said):
        """Applications without a name share a spool directory: said, with the remedy."""
        writer, app = roles
        arguments = ("doctor", "--app-dsn", app)
        warned = await otel_audit(*arguments, OTEL_AUDIT_DSN=writer, **settings)
        assert f"warn  service: {said}" in warned.stdout
        assert "set OTEL_SERVICE_NAME" in warned.stdout
        named = await otel_audit(*arguments, OTEL_AUDIT_DSN=writer, OTEL_SERVICE_NAME="shop")
        assert "ok    service: shop" in named.stdout
        assert (warned.returncode, named.returncode) == (0, 0)

    @pytest.mark.parametrize(
        ("settings", "missing"),
        [
            ({}, ["TRACES", "METRICS", "LOGS"]),
            ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, []),
            ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, ["TRACES", "METRICS", "LOGS"]),
            ({**NO_EXPORTERS, "OTEL_LOGS_EXPORTER": "console, mine"}, ["LOGS"]),
            (NO_EXPORTERS, []),
        ],
        ids=["default", "http", "unknown protocol", "unknown exporter", "none"],
    )
    async def test_an_exporter_that_is_missing_is_warned_of(self, settings, missing):
        """What doctor says of the exporters is what opentelemetry-instrument does."""
        done = await otel_audit("doctor", **settings)
        lines = [line for line in done.stdout.splitlines() if "  exporters: " in line]
        assert ["warn  "] * bool(missing) == [line[:6] for line in lines]
        for signal in missing:
            assert f"OTEL_{signal}_EXPORTER=" in lines[0]
        tried = await asyncio.to_thread(
            subprocess.run,
            [str(BIN / "opentelemetry-instrument"), sys.executable, "-c", ""],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **settings},
        )
        assert ("Failed to auto initialize" in tried.stderr) == bool(missing), tried.stderr

    async def test_the_hooks_of_an_application_are_looked_at(self, roles):
        """--app loads an application and sees whether the taps reach its stack."""
        writer, _ = roles
        done = await otel_audit("doctor", "--app", "no_such:app", OTEL_AUDIT_DSN=writer)
        assert done.returncode == 1
        assert "FAIL  hooks: no_such:app" in done.stdout


NO_ANSWER = """
import socket, sys, time
def look_up(*_, **__):
    time.sleep(50)
    raise OSError("too late")
socket.getaddrinfo = look_up
from otel_audit.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", [["doctor"], ["gaps"], ["relay"], ["migrate"]])
def test_a_resolver_that_never_answers_costs_the_time_for_connecting(command):
    """Not as long as the resolver takes: nobody waits for it at the end."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", NO_ANSWER, *command],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
            "OTEL_AUDIT_DSN": "postgresql://u@store.example/audit",
            "OTEL_AUDIT_CONNECT_TIMEOUT": "1",
        },
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "in time" in done.stdout + done.stderr
    assert time.monotonic() - began < 40
