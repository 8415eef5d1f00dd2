"""Processes that start in no time: forked from one that has imported what they need.

Each is a process of its own, with its own environment, directory, output and exit status: the
command `otel-audit`, or Python with a program, a script or a module. A fresh interpreter takes one
to three seconds of CPU for its imports; a test that is about what is imported, or about worker
processes, which start from the program's file, begins one with `subprocess`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import shutil
import signal
import site
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

_COMMAND = (
    "otel_audit.cli.main", "otel_audit.server.access_log", "otel_audit.server.app",
    "otel_audit.server.uvicorn_server", "otel_audit_postgres.ledger.sealer",
    "uvicorn.lifespan.on", "uvicorn.loops.auto", "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto", "asyncpg",
)  # fmt: skip
# neither the framework nor the mapper: when those are imported makes a difference to us
_PYTHON = (
    "opentelemetry.instrumentation.auto_instrumentation", "opentelemetry.sdk.trace.export",
    "otel_audit_bootstrap", "otel_audit.runtime", "otel_audit._instrumentation",
    "otel_audit_postgres", "asyncpg",
)  # fmt: skip
_SERVER = (
    *_PYTHON, "fastapi", "sqlalchemy.ext.asyncio", "sqlalchemy.orm", "uvicorn.lifespan.on",
    "uvicorn.loops.auto", "uvicorn.protocols.http.auto", "uvicorn.protocols.http.h11_impl",
    "uvicorn.protocols.http.httptools_impl", "uvicorn.protocols.websockets.auto",
    "opentelemetry.instrumentation.fastapi", "opentelemetry.instrumentation.sqlalchemy",
)  # fmt: skip
_PYTEST = (
    "pytest", "xdist.plugin", "fastapi", "starlette.testclient", "sqlalchemy.orm", "asyncpg",
    "otel_audit.runtime", "otel_audit._instrumentation", "otel_audit.testing",
)  # fmt: skip
_MODULES = {"command": _COMMAND, "python": _PYTHON, "server": _SERVER, "pytest": _PYTEST}
"""What a process that is forked has imported."""

_TAKEN_OVER = {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}
"""Variables of the interpreter that a process that is forked heeds; it reads others at its start."""

_LARGEST = 1 << 20


class Process:
    """What `subprocess.Popen` offers, of a process that another one has forked."""

    def __init__(
        self,
        arguments: list[str],
        *,
        env: Mapping[str, str],
        stdout: Path,
        stderr: Path | None = None,
        cwd: Path | str = ".",
        kind: str = "command",
    ) -> None:
        """Start `otel-audit`, or Python, with these arguments.

        Args:
            arguments: Without the command's name.
            env: All of its environment.
            stdout: The file that it writes to.
            stderr: Another one for its errors; None: the same.
            cwd: Its directory.
            kind: `command`, or which modules a Python has imported: `python`, `server` or
                `pytest`. Of its options it knows `-c` and `-m`.

        Raises:
            ValueError: A variable has no effect in a process that is forked.
        """
        self.args = ["otel-audit" if kind == "command" else "python", *arguments]
        self.returncode: int | None = None
        self._forking = _forking(kind)
        _refuse_what_has_no_effect(env, self._forking.environment)
        for one in (stdout, stderr or stdout):
            Path(one).touch()  # it is there at once, as one is that was opened for a process
            _child_errors().note_file(Path(one))
        self.pid = self._forking.start(
            {
                "arguments": arguments,
                "environment": dict(env),
                "directory": str(Path(cwd).absolute()),
                "output": [str(Path(one).absolute()) for one in (stdout, stderr or stdout)],
            }
        )

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._forking.status(self.pid, 0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            left = 1.0 if end is None else end - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = self._forking.status(self.pid, min(left, 1.0))
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | str = ".",
    timeout: float = 60.0,
    kind: str = "command",
) -> subprocess.CompletedProcess[str]:
    """Run it to its end, as `subprocess.run` does with `capture_output` and `text`."""
    with tempfile.TemporaryDirectory() as made:
        output = [Path(made, name) for name in ("stdout", "stderr")]
        process = Process(
            list(arguments), env=os.environ if env is None else env, cwd=cwd,
            stdout=output[0], stderr=output[1], kind=kind,
        )  # fmt: skip
        try:
            status = process.wait(timeout)
        except BaseException:
            process.kill()
            raise
        printed = [one.read_text() for one in output]
        for one in printed:
            _child_errors().note_output(one)
        return subprocess.CompletedProcess(process.args, status, *printed)


@functools.cache
def programs() -> Path:
    """Make a directory with `otel-audit` and `pytest`, which are forked when a shell starts them."""
    made = Path(tempfile.mkdtemp(prefix="otel-audit-programs-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    made.chmod(0o755)
    for name, kind, first in (
        ("otel-audit", "command", []),
        ("pytest", "pytest", ["-m", "pytest"]),
    ):
        program = made / name
        program.write_text(
            f"#!{sys.executable} -IS\nADDRESS = {_forking(kind).address!r}\nFIRST = {first!r}\n"
            f"{_PROGRAM}"
        )
        program.chmod(0o755)
    return made


_PROGRAM = """
import json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
    asking.connect(ADDRESS)
    asked = {
        "arguments": [*FIRST, *sys.argv[1:]], "environment": dict(os.environ),
        "directory": os.getcwd(), "output": [],
    }
    socket.send_fds(asking, [json.dumps(asked).encode()], [0, 1, 2])
    pid = json.loads(asking.recv(100))["started"]
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    status = json.loads(asking.recv(100))["status"]
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""
"""Has a process forked that has its input and output and gets its signals; ends as that one does."""


def _child_errors() -> Any:
    """Imported by who starts processes: the one that is forked sees nothing of the tests."""
    import child_errors

    return child_errors


class _Forking:
    """This process's side: one that forks, and what is known of those it has forked."""

    def __init__(self, kind: str) -> None:
        self._lock = threading.Lock()
        self._ended: dict[int, int] = {}
        self.address = f"\0otel-audit-tests-{os.getpid()}-{kind}"
        """Where programs ask."""
        # those of the process that is asked for are added when it is
        self.environment = {
            name: text
            for name, text in os.environ.items()
            if name not in ("PYTHONPATH", "OTEL_PROPAGATORS")
        }
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listening.bind(self.address)
        listening.listen()
        with other, listening:
            self._process = subprocess.Popen(
                [sys.executable, __file__, kind, str(other.fileno()), str(listening.fileno())],
                pass_fds=[other.fileno(), listening.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                env=self.environment,
            )
        atexit.register(self._close)

    def start(self, asked: dict[str, Any]) -> int:
        with self._lock:
            self._socket.send(json.dumps(asked).encode())
            while (told := self._receive(60.0)) is None or "started" not in told:
                pass
            return int(told["started"])

    def status(self, pid: int, timeout: float) -> int | None:
        """How a process has ended; None: it runs, also after so many seconds."""
        with self._lock:
            while pid not in self._ended and self._receive(timeout) is not None:
                pass
            return self._ended.pop(pid, None)

    def _receive(self, timeout: float) -> dict[str, Any] | None:
        self._socket.settimeout(timeout)
        try:
            content = self._socket.recv(_LARGEST)
        except (TimeoutError, BlockingIOError):
            return None
        if not content:
            raise AssertionError("the process that forks others has ended")
        told: dict[str, Any] = json.loads(content)
        if "ended" in told:
            self._ended[told["ended"]] = told["status"]
        return told

    def _close(self) -> None:
        self._socket.close()
        self._process.wait(10)


@functools.cache
def _forking(kind: str) -> _Forking:
    return _Forking(kind)


def _fork_for(asking: socket.socket, listening: socket.socket) -> dict[str, Any] | None:
    """Fork for who asks until nobody does; what was asked, in a process that was forked."""
    selector = selectors.DefaultSelector()
    selector.register(asking, selectors.EVENT_READ, asking)
    selector.register(listening, selectors.EVENT_READ, listening)
    while True:
        for key, _ in selector.select():
            if isinstance(key.data, _Child):
                key.data.has_ended(selector)
                continue
            asker = listening.accept()[0] if key.data is listening else asking
            content, files, *_ = socket.recv_fds(asker, _LARGEST, 3)
            if not content and asker is asking:
                return None
            if content and (pid := os.fork()) == 0:
                selector.close()
                for number, file in enumerate(files):
                    os.dup2(file, number)
                for one in {*files, asking.detach(), listening.detach(), asker.detach()} - {-1}:
                    os.close(one)
                return dict(json.loads(content))
            for file in files:
                os.close(file)
            if content:
                child = _Child(pid, os.pidfd_open(pid), asker, is_of_tests=asker is asking)
                child.begins(selector)


@dataclass(frozen=True)
class _Child:
    pid: int
    pidfd: int
    asker: socket.socket
    is_of_tests: bool

    def begins(self, selector: selectors.BaseSelector) -> None:
        selector.register(self.pidfd, selectors.EVENT_READ, self)
        self._tell(started=self.pid)

    def has_ended(self, selector: selectors.BaseSelector) -> None:
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        selector.unregister(self.pidfd)
        os.close(self.pidfd)
        self._tell(ended=self.pid, status=status)
        if not self.is_of_tests:
            self.asker.close()

    def _tell(self, **what: int) -> None:
        with contextlib.suppress(OSError):  # nobody asks any more
            self.asker.send(json.dumps(what).encode())


def _refuse_what_has_no_effect(asked: Mapping[str, str], own: Mapping[str, str]) -> None:
    """Raise where a variable had to be there before the imports, and was not.

    Args:
        asked: The environment of the process that is asked for.
        own: The environment of the one that forks it.

    Raises:
        ValueError: Names the variables.
    """
    late = [
        name
        for name, text in asked.items()
        if (name.startswith("PYTHON") or name == "OTEL_PROPAGATORS")
        and name not in _TAKEN_OVER
        and own.get(name) != text
    ]
    if late:
        raise ValueError(
            f"{', '.join(sorted(late))}: no effect in a process that is forked, as it is read "
            "before that; start one with subprocess"
        )


def _become(asked: dict[str, Any]) -> None:
    """Be the process that was asked for, as if it had been started so."""
    for number, path in enumerate(asked["output"], 1):
        # a file that both write to is not overwritten by either
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    # those that were opened for /dev/null take what they write to for a file
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    is_unbuffered = bool(asked["environment"].get("PYTHONUNBUFFERED"))
    sys.stdout = _writer(1, "strict", is_unbuffered=is_unbuffered)
    sys.stderr = _writer(2, "backslashreplace", is_unbuffered=is_unbuffered)
    # programs ask from outside: nobody has looked at theirs
    _refuse_what_has_no_effect(asked["environment"], os.environ)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["directory"])
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    added = asked["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [place for place in added if place]


def _writer(number: int, errors: str, *, is_unbuffered: bool) -> io.TextIOWrapper:
    raw = io.FileIO(number, "w", closefd=False)
    if is_unbuffered:  # as the interpreter itself does it
        return io.TextIOWrapper(cast("io.BufferedWriter", raw), errors=errors, write_through=True)
    return io.TextIOWrapper(io.BufferedWriter(raw), errors=errors, line_buffering=number == 2)


def _run_command(arguments: list[str]) -> None:
    sys.argv = ["otel-audit", *arguments]
    sys.modules["otel_audit.cli.main"].cli(prog_name="otel-audit")


def _run_python(arguments: list[str]) -> None:
    """Do what an interpreter does after its own start."""
    site.execsitecustomize()
    first, *rest = arguments
    if first == "-m":
        sys.argv = rest
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    sys.argv = ["-c", *rest[1:]] if first == "-c" else arguments
    sys.path.insert(0, "" if first == "-c" else str(Path(first).parent))
    main = types.ModuleType("__main__")
    if first != "-c":
        main.__file__ = first
    sys.modules["__main__"] = main
    text = rest[0] if first == "-c" else Path(first).read_text()
    exec(compile(text, "<string>" if first == "-c" else first, "exec"), vars(main))


def _is_not_rewritten(module: types.ModuleType) -> None:
    """Pytest warns of a plugin's package that was imported before its assertions are rewritten."""
    module.__doc__ = f"{module.__doc__ or ''}\nPYTEST_DONT_REWRITE"


if __name__ == "__main__":
    sys.path.pop(0)  # the directory of this file: what is forked does not see the tests
    kind = sys.argv[1]
    for name in _MODULES[kind]:
        importlib.import_module(name)
    if kind == "pytest":
        for module in [one for name, one in sys.modules.items() if "." not in name]:
            _is_not_rewritten(module)
    gc.freeze()  # else each one visits all of it once more as it ends
    asked = _fork_for(*(socket.socket(fileno=int(number)) for number in sys.argv[2:]))
    if asked is not None:
        _become(asked)
        (_run_command if kind == "command" else _run_python)(asked["arguments"])
