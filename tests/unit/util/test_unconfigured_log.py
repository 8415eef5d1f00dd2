"""Messages say whose they are, where Python prints nothing but the message."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = "import logging, otel_audit\n"
WARN = "logging.getLogger({name!r}).{level}({message!r}, 7)\n"


def printed(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stderr


@pytest.mark.parametrize(
    "name", ["otel_audit.identity", "otel_audit_postgres.sink", "otel_audit_otlp"]
)
def test_a_warning_names_who_warns(name):
    """Whichever part it is of; what is less than a warning is not printed, as always."""
    code = WARN.format(name=name, level="warning", message="%d requests are anonymous")
    assert printed(code) == "otel-audit: 7 requests are anonymous\n"
    assert not printed(WARN.format(name=name, level="info", message="%d"))


def test_who_is_named_already_is_not_named_twice():
    """Many messages name a command."""
    code = WARN.format(name="otel_audit", level="error", message="run `otel-audit doctor` %d")
    assert printed(code) == "run `otel-audit doctor` 7\n"


@pytest.mark.parametrize("logger", ["", "otel_audit"])
def test_an_application_that_configures_logging_decides(logger):
    """Each message comes once, as its handler has it."""
    configure = (
        "handler = logging.StreamHandler()\n"
        "handler.setFormatter(logging.Formatter('%(name)s|%(message)s'))\n"
        f"logging.getLogger({logger!r}).addHandler(handler)\n"
    )
    code = WARN.format(name="otel_audit.identity", level="warning", message="%d")
    assert printed(configure + code) == "otel_audit.identity|7\n"


def test_the_request_log_still_goes_somewhere():
    """Our own handler is none that writes its lines."""
    code = (
        "from otel_audit.http.request_log import begin_request_log, logger\n"
        "begin_request_log()\nlogger.info('{}')\n"
    )
    assert printed(code) == "{}\n"
