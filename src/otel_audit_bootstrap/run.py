"""`otel-audit run CMD...`: start a program audited, whatever OpenTelemetry's own set-up does.

As the rest of this package it needs the standard library alone.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from otel_audit_bootstrap import (
    REQUIRED,
    explained,
    not_audited,
    pre_instrument,
    serves_multiprocessing,
    was_tried,
)
from otel_audit_bootstrap.exporters import without_missing

SITE: Final = Path(__file__).parent / "_site"
"""The directory whose ``sitecustomize`` each Python process of the command loads first."""

NO_COMMAND: Final = 127
"""What a shell's exit status is for a command that is not there."""

_PATH: Final = "PYTHONPATH"
_IGNORES_PATH: Final = frozenset("EIS")
_DESCRIPTION: Final = """\
Start a program audited, as opentelemetry-instrument would: otel-audit run uvicorn app:app.
Settings are read from OTEL_AUDIT_* variables. An exporter of OpenTelemetry's that is not installed
is left out, and a failure of OpenTelemetry's own set-up does not keep the program from being
audited.
"""


def main(arguments: Sequence[str], prog: str = "otel-audit run") -> NoReturn:
    """Do what the command line says: become the program that it names.

    Args:
        arguments: What stands behind ``otel-audit run``.
        prog: What the usage calls this.
    """
    parser = _Parser(prog=prog, description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "--console", action="store_true", help="print records on standard output; no database"
    )
    parser.add_argument("--required", action="store_true", help="refuse to run unaudited")
    parser.add_argument("--service", metavar="NAME", help="the service's name")
    parser.add_argument("command", metavar="CMD", nargs="?", help="the program")
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="its arguments")
    given = parser.parse_args(arguments)
    if given.command is None:
        parser.error("no command: name the program to run, as in otel-audit run uvicorn app:app")
    command = [given.command, *given.arguments]
    if given.console:
        os.environ["OTEL_AUDIT_EXPORTER"] = "console"
    if given.required:
        os.environ[REQUIRED] = "true"
    if given.service:
        os.environ["OTEL_SERVICE_NAME"] = given.service
    executable = find_command(command[0])
    if executable is None:
        sys.stderr.write(f"{prog}: there is no command {command[0]!a}\n")
        sys.exit(NO_COMMAND)
    line = prepare(os.environ)
    if line:
        sys.stderr.write(f"otel-audit: {line}\n")
    _refuse_deaf(command)
    sys.stderr.flush()
    os.execv(executable, [executable, *command[1:]])  # noqa: S606 - the user's own command


def find_command(name: str) -> str | None:
    """Find a program, on the path or in this environment, which may not be activated.

    Args:
        name: As it is typed.
    """
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def prepare(environment: MutableMapping[str, str]) -> str:
    """Set what a process needs so that it, and each Python process that it starts, is audited.

    Args:
        environment: Its variables.

    Returns:
        What was changed of OpenTelemetry's settings, as a line; empty if nothing.
    """
    chosen, line = without_missing(environment)
    environment.update(chosen)
    kept = [one for one in environment.get(_PATH, "").split(os.pathsep) if one]
    here = os.getcwd()  # noqa: PTH109 - as text, as opentelemetry-instrument has it
    paths = [str(SITE), *([] if here in kept else [here]), *(p for p in kept if p != str(SITE))]
    environment[_PATH] = os.pathsep.join(paths)
    return line


def begin() -> None:
    """Set tracing and auditing up in this process. Never raises."""
    if serves_multiprocessing():
        return
    one_line = _OneLine()
    loggers = [
        logging.getLogger(f"opentelemetry.instrumentation.auto_instrumentation{part}")
        for part in ("", "._load")
    ]
    paths = os.environ.get(_PATH, "").split(os.pathsep)
    # what set-up itself starts must not set up again, and so for ever
    os.environ[_PATH] = os.pathsep.join(one for one in paths if one != str(SITE))
    for logger in loggers:
        logger.addFilter(one_line)
    try:
        from opentelemetry.instrumentation.auto_instrumentation import initialize

        initialize()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - auditing can do without tracing
        sys.stderr.write(f"OpenTelemetry could not be set up: {explained(error)}\n")
    finally:
        for logger in loggers:
            logger.removeFilter(one_line)
        os.environ[_PATH] = os.pathsep.join(paths)
    if not was_tried():
        pre_instrument()


class _OneLine(logging.Filter):
    """Has a failure of OpenTelemetry's set-up said once, and in one line."""

    def __init__(self) -> None:
        super().__init__()
        self._printed: list[BaseException] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Take the traceback out of a line; drop it if it says the same again."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return True
        if any(error is one for one in self._printed):
            return False
        self._printed.append(error)
        text = " ".join(str(error).split())
        record.msg = f"{record.getMessage()}: {type(error).__name__}: {text}".replace("%", "%%")
        record.args = ()
        record.exc_info = None
        return True


class _Parser(argparse.ArgumentParser):
    """Quotes nothing that could steer a terminal."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end."""
        super().error(_plain(message))


def _plain(text: str) -> str:
    return ascii(text)[1:-1]


def _refuse_deaf(command: Sequence[str]) -> None:
    """Say so where an option keeps Python from looking for what begins to audit."""
    if not Path(command[0]).name.startswith("python"):
        return
    for one in command[1:]:
        if not one.startswith("-") or one in ("-", "-c", "-m"):
            return
        if not one.startswith("--") and _IGNORES_PATH.intersection(one):
            not_audited(
                f"python {_plain(one)} ignores PYTHONPATH: leave that option out, or "
                "call otel_audit.instrument() in the program"
            )
            return
