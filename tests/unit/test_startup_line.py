"""A process says once, in one line, whether and how it is audited."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

import otel_audit
from otel_audit import AuditConfig
from otel_audit.delivery.producer_records import VERSION
from otel_audit.startup_line import startup_line

STORE = "postgresql://shop_audit:hunter2@db.internal:6432/audit?sslmode=require"
PRE = "import otel_audit_bootstrap as b; b.pre_instrument()\n"


@pytest.fixture
def run_program(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program as a process of its own, with nothing but these settings."""

    def start(program: str, **settings: str) -> subprocess.CompletedProcess[str]:
        kept = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
        given = {"OTEL_SERVICE_NAME": "shop", "OTEL_AUDIT_SPOOL_DIR": str(tmp_path), **settings}
        return subprocess.run(
            [sys.executable, "-c", program], env={**kept, **given},
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip

    return start


class TestLine:
    def test_it_names_what_an_operator_asks_first(self):
        """Service, store without its password, role, spool, actors, level, version."""
        line = startup_line(AuditConfig(dsn=STORE, spool_dir="/var/spool/audit", level="changes"))
        for part in (
            "auditing is on", "to postgresql://db.internal:6432/audit as shop_audit",
            "spool /var/spool/audit", "level changes", "set_actor()", "bearer tokens are not read",
            f"otel-audit {VERSION}:",
        ):  # fmt: skip
            assert part in line
        assert "hunter2" not in line
        assert "\n" not in line

    @pytest.mark.parametrize(
        ("settings", "part"),
        [
            (
                {"dsn": "postgresql:///audit?host=/run/pg&user=w"},
                "to postgresql:///audit?host=/run/pg as w",
            ),
            (
                {"dsn": "postgresql://w@%2Frun%2Fpg:6432/audit"},
                "to postgresql:///audit?host=/run/pg&port=6432 as w",
            ),
            (
                {"dsn": "postgresql:///audit?host=/run/pg,db&user=w"},
                "to postgresql:///audit?host=/run/pg,db as w",
            ),
            ({"dsn": "postgresql+asyncpg://w:p%40x@a:1,b:2/x"}, "postgresql://a:1,b:2/x as w"),
            ({"otlp_endpoint": "https://u:hunter2@c:4318/hunter2?t=hunter2"}, "to https://c:4318;"),
            ({"exporter": "console"}, "to the console; actors"),
            ({"exporter": "none", "enabled": True}, "to nowhere (exporter none); actors"),
            ({"dsn": STORE, "delivery": "strict"}, "; strict"),
            ({"dsn": STORE, "required": True}, "; required"),
            (
                {"dsn": STORE, "jwt_key": "hunter2", "jwt_algorithms": ("HS256",)},
                "request.user, verified bearer tokens; level",
            ),
            ({"dsn": STORE, "jwt_unverified_behind_gateway": True}, "unverified bearer tokens"),
            ({"dsn": STORE, "actor_order": ("jwt",)}, "actors from nowhere"),
            ({"dsn": STORE, "api_key_header": "X-Key"}, "the header X-Key"),
        ],
    )
    def test_it_follows_the_settings(self, settings, part):
        """Each destination and each way to name an actor, and never a secret."""
        line = startup_line(AuditConfig(**settings))
        assert part in line
        assert "hunter2" not in line


class TestProcess:
    def test_it_is_printed_once_where_logging_is_not_configured(self, run_program):
        """Auto-instrumentation and a call in code are one start."""
        done = run_program(
            PRE + "import otel_audit; otel_audit.AuditInstrumentor().instrument()\n"
            "otel_audit.instrument()\n",
            OTEL_AUDIT_EXPORTER="console",
        )
        (line,) = [one for one in done.stderr.splitlines() if "auditing is on" in one]
        assert "service shop, to the console" in line
        assert "auditing is on" not in done.stdout

    def test_it_is_a_log_line_where_logging_is_configured(self, run_program):
        """The handlers of the application get it, and standard error does not."""
        done = run_program(
            "import logging, sys\n"
            "logging.basicConfig(level='INFO', stream=sys.stdout, format='%(levelname)s %(name)s')\n"
            + PRE,
            OTEL_AUDIT_EXPORTER="console",
        )
        assert "INFO otel_audit\n" in done.stdout
        assert done.stderr == ""

    def test_a_handler_of_opentelemetrys_shows_nobody_anything(self, run_program):
        """What goes to a collector alone is printed as well."""
        done = run_program(
            "import logging\n"
            "class H(logging.Handler):\n"
            "    __module__ = 'opentelemetry.sdk._logs'\n"
            "    def emit(self, record): print('sent', record.levelname)\n"
            "logging.root.addHandler(H()); logging.root.setLevel(0)\n" + PRE,
            OTEL_AUDIT_EXPORTER="console",
        )
        assert "sent INFO\n" in done.stdout
        assert "auditing is on" in done.stderr

    @pytest.mark.parametrize("settings", [{}, {"OTEL_AUDIT_DSN": "mysql://h/x"}])
    def test_what_is_not_audited_is_said_once(self, settings, run_program):
        """The entry point and the instrumentor both try; one line says why it is off."""
        done = run_program(
            PRE + "import otel_audit; otel_audit.AuditInstrumentor().instrument()\n", **settings
        )
        (line,) = done.stderr.splitlines()
        assert line.startswith("THIS APPLICATION IS NOT AUDITED: OTEL_AUDIT_DSN")

    def test_closed_standard_error_is_no_fault(self, run_program):
        """A daemon may have none."""
        done = run_program(
            f"import sys; sys.stderr.close(); sys.stderr = None\n{PRE}print('went on')",
            OTEL_AUDIT_EXPORTER="console",
        )
        assert "went on\n" in done.stdout


def test_it_is_logged_again_for_another_start(caplog) -> None:
    """Off and on again in one process: the log has both starts."""
    with caplog.at_level(logging.INFO, "otel_audit"):
        for _ in range(2):
            otel_audit.instrument(config=AuditConfig(exporter="none"))
            otel_audit.uninstrument()
    assert [one for one in caplog.messages if "auditing is on" in one][1:] != []
