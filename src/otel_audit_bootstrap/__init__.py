"""The entry point of ``opentelemetry-instrument``: attaches the audit trail, or logs why not.

It needs the standard library alone. So whatever is wrong with otel-audit, with a package that it
needs, or with a setting, there is somebody left to say so, and to end the process where it must be
audited.

Private: ``docs/api.md`` lists the public modules.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

EXIT_CONFIGURATION: Final = 78
"""EX_CONFIG of sysexits.h: what the process exits with where it must not run unaudited."""

REQUIRED: Final = "OTEL_AUDIT_REQUIRED"
_NO: Final = frozenset({"0", "false", "no", "off", "n", "f"})
_REQUIRED_IN_FILE: Final = re.compile(r"^[ \t]*required[ \t]*=[ \t]*true\b", re.MULTILINE)
_logger = logging.getLogger("otel_audit")
_HELPER: Final = "from multiprocessing.resource_tracker import main"
_SPAWNED: Final = "--multiprocessing-fork"
_NARROWEST: Final = 40
"""Columns below which a message is not wrapped any more."""
_tried = False
_logged: Final[set[str]] = set()
_printed: Final[set[str]] = set()


def pre_instrument() -> None:
    """Entry point ``opentelemetry_pre_instrument``: attach, before any instrumentor runs.

    Never raises: an exception would be logged and forgotten. With ``OTEL_AUDIT_REQUIRED=true`` the
    process ends where auditing cannot start.
    """
    global _tried  # noqa: PLW0603 - of the process
    _tried = True
    try:
        with _uncollected():
            # by its name: this module must be there when that one cannot be imported
            importlib.import_module("otel_audit._instrumentation").pre_instrument()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever it is, the trail is not there
        not_audited(explained(error))


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Collect no garbage: imports leave none, and looking for it is a fifth of what they cost."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def serves_multiprocessing() -> bool:
    """Whether this process only keeps account of others' semaphores; it runs no application."""
    return any(one.startswith(_HELPER) for one in sys.orig_argv)


def was_spawned() -> bool:
    """Whether multiprocessing started this process for another one, as servers start workers."""
    return _SPAWNED in sys.orig_argv


def was_tried() -> bool:
    """Tell whether `pre_instrument` was called in this process."""
    return _tried


def __getattr__(name: str) -> Any:
    """Entry point ``opentelemetry_instrumentor``: the class, where it can be imported.

    Raises:
        ModuleNotFoundError: It cannot be. OpenTelemetry then skips it; after any other error it
            would give up the application's tracing as well.
    """
    if name != "AuditInstrumentor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return importlib.import_module("otel_audit._instrumentation").AuditInstrumentor
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - `pre_instrument` has said what it is
        raise ModuleNotFoundError(explained(error)) from None


def not_audited(why: str) -> None:
    """Say in one line that the application is not audited; end the process if it must be."""
    message = f"THIS APPLICATION IS NOT AUDITED: {_one_line(why)}"
    if must_be_audited():
        refuse_to_start(message)
    # the entry point and the instrumentor both come here
    if message not in _logged:
        _logged.add(message)
        announce(message, logging.ERROR)


def announce(message: str, level: int) -> None:
    """Log a line about this process's auditing, and see that somebody can read it.

    It goes to the logger `otel_audit`, and to standard error where nobody has configured logging
    for that; there each line once. Handlers of OpenTelemetry's do not count: they show nothing
    here.

    Args:
        message: One line, without secrets.
        level: The logging level.
    """
    # our own for where nobody has configured logging is none
    handlers = [one for one in _handlers(_logger) if not hasattr(one, "is_last_resort")]
    if handlers:
        _logger.log(level, "%s", message)
    if all(type(one).__module__.startswith("opentelemetry.") for one in handlers):
        _print_once(message)


def _handlers(logger: logging.Logger | None) -> Iterator[logging.Handler]:
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


def _print_once(message: str) -> None:
    if message in _printed or sys.stderr is None:
        return
    _printed.add(message)
    with contextlib.suppress(OSError, ValueError):  # closed: nobody is there to read it
        sys.stderr.write(f"{_for_terminal(_one_line(message))}\n")
        sys.stderr.flush()


def _for_terminal(line: str) -> str:
    """Fold a line between words where somebody looks at a terminal; in a log it stays one line."""
    if not sys.stderr.isatty():
        return line
    import shutil
    import textwrap

    columns = max(shutil.get_terminal_size().columns, _NARROWEST)
    return textwrap.fill(
        line, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def refuse_to_start(message: str) -> NoReturn:
    """End the process at once; nothing of the application runs yet that could be cut short."""
    # auto-instrumentation swallows exceptions, and an error in site start-up prints a traceback
    # that buries the reason
    try:
        line = f"{message}; refusing to start, because {REQUIRED} is set"
        sys.stderr.write(f"{_for_terminal(line)}\n")
        sys.stderr.flush()
    finally:  # also where standard error is closed
        os._exit(EXIT_CONFIGURATION)


def must_be_audited() -> bool:
    """Return whether the environment, or else the file, says ``required``, whatever else is wrong.

    What is neither yes nor no counts as yes: somebody wanted to say something.
    """
    value = os.environ.get(REQUIRED)
    if value is not None and value.strip():
        return value.strip().lower() not in _NO
    file = Path(os.environ.get("OTEL_AUDIT_CONFIG_FILE", "").strip())
    try:
        file = file.expanduser()
        # a device or a pipe might never end
        text = file.read_text("utf-8") if file.is_file() else ""
    except (OSError, ValueError, RuntimeError):  # the last: of a home that nobody has
        return False
    if not text:
        return False
    import tomllib

    try:
        return tomllib.loads(text).get("required") is True
    except (ValueError, RecursionError):
        return _REQUIRED_IN_FILE.search(text) is not None


def explained(error: BaseException) -> str:
    """Say what an error that is none of ours means, without what it may quote."""
    if isinstance(error, ImportError):
        return f"otel-audit cannot be imported: {error}; install it again with its dependencies"
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    place = "" if traceback is None else (
        f" at {traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
    )  # fmt: skip
    # not its message: that may quote a secret
    return (
        f"auditing could not be started [{type(error).__name__}{place}]; see what `otel-audit "
        "doctor` says, and report it if that finds nothing"
    )


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
