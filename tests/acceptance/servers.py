"""Real uvicorn processes on the loopback interface, for tests from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
import preloaded
from opentelemetry.instrumentation import auto_instrumentation
from ports import free_port

BIN = Path(sys.executable).parent
AUTO_INSTRUMENTATION = Path(auto_instrumentation.__file__).parent


class Server:
    """A running application: its address, its process, what it has printed."""

    def __init__(
        self, process: subprocess.Popen[bytes] | preloaded.Process, port: int, log: Path
    ) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self._log = log

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait_until_up(self, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}:\n{self.output}")
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{self.url}/up", timeout=5)
                return
            time.sleep(0.05)
        raise AssertionError(f"not up in {timeout} s:\n{self.output}")

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout: float = 60.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(timeout)


@contextlib.contextmanager
def uvicorn(
    directory: Path,
    environment: Mapping[str, str],
    *options: str,
    app: str = "app:app",
    instrumented: bool = True,
    forked: bool = False,
) -> Iterator[Server]:
    """Start uvicorn in a directory; under auto-instrumentation unless told otherwise.

    Forked, it takes a fifth of the CPU, for tests of what it does when it is up; worker processes
    need one that is not.
    """

    def command(port: int) -> list[str]:
        first = ["-m", "uvicorn"] if forked else [str(BIN / "uvicorn")]
        return [*first, app, "--port", str(port), *options]

    with started(
        directory, environment, command, instrumented=instrumented, forked=forked
    ) as server:
        yield server


@contextlib.contextmanager
def started(
    directory: Path,
    environment: Mapping[str, str],
    command: Callable[[int], list[str]],
    *,
    instrumented: bool = True,
    forked: bool = False,
) -> Iterator[Server]:
    """Start any server in a directory: its command for a free port of the loopback interface."""
    port = free_port()
    line = command(port)
    log = directory / f"server-{port}.log"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    given = {
        **clean,
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_AUDIT_SPOOL_DIR": str(directory / "spool"),
        # a test that counts rows counts actions
        "OTEL_AUDIT_STREAM_RECORDS": "false",
        # and looks at them when the server has ended, which takes a busy machine longer than the
        # settings' defaults allow; less than `Server.stop` waits
        "OTEL_AUDIT_SHUTDOWN_TIMEOUT": "40",
        "OTEL_AUDIT_CONNECT_TIMEOUT": "40",
        **environment,
    }
    process: subprocess.Popen[bytes] | preloaded.Process
    if forked:
        if instrumented:  # what `opentelemetry-instrument` does before it becomes the program
            others = given.get("PYTHONPATH")
            paths = [str(AUTO_INSTRUMENTATION), str(directory), *([others] if others else [])]
            given["PYTHONPATH"] = os.pathsep.join(paths)
        process = preloaded.Process(line, cwd=directory, env=given, stdout=log, kind="server")
    else:
        if instrumented:
            line.insert(0, str(BIN / "opentelemetry-instrument"))
        with log.open("wb") as output:
            process = subprocess.Popen(
                line, cwd=directory, env=given, stdout=output, stderr=subprocess.STDOUT
            )
    server = Server(process, port, log)
    try:
        yield server
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
