"""A package that is missing: the message names the extra that brings it."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import sys
for name in {missing!r}:
    sys.modules[name] = None
from otel_audit.cli.main import cli
cli({arguments!r}, prog_name="otel-audit")
"""
_NO_AUTH = ["serve", "--insecure-no-auth", "--dsn", "postgresql://nobody@127.0.0.1:1/none"]


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        (["starlette"], _NO_AUTH, "server"),
        (["uvicorn"], _NO_AUTH, "server"),
        (["opentelemetry.proto"], _NO_AUTH, "server"),
        (["grpc"], [*_NO_AUTH, "--grpc-port", "4317"], "grpc"),
        (["asyncpg"], _NO_AUTH, "postgres"),
    ],
)
def test_the_extra_is_named(missing, arguments, extra):
    program = _PROGRAM.format(missing=missing, arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )

    assert done.returncode == 1
    assert f"pip install 'otel-audit[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_library_says_so_as_well():
    program = "import sys; sys.modules['starlette'] = None; from otel_audit.server import app"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert "pip install 'otel-audit[server]'" in done.stderr
