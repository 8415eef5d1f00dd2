"""The measured application as processes: one for each variant, and one that makes the load."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests import ports
from tests.benchmarks.suite import environments
from tests.benchmarks.suite.environments import Peer, python_of
from tests.benchmarks.suite.postgres import Databases

SERVED = Path(__file__).parent / "served"
PATIENCE = 120.0


@dataclass(frozen=True)
class Variant:
    """One way to run the shop.

    Attributes:
        key: What `served.attach` knows it by.
        title: What it is called in tables.
        peer: Whose environment it needs; None: the project's.
        base: The variant it is compared with, by its key.
    """

    key: str
    title: str
    peer: Peer | None = None
    base: str = "plain"


VARIANTS = (
    Variant("plain", "plain"),
    Variant("contrib", "OpenTelemetry (contrib)"),
    Variant("native", "OpenTelemetry (FastAPI's own)"),
    Variant("audit:none", "otel-audit, level none", base="contrib"),
    Variant("audit:metadata", "otel-audit, level metadata", base="contrib"),
    Variant("audit:changes", "otel-audit, level changes", base="contrib"),
    Variant("audit:request", "otel-audit, level request", base="contrib"),
    Variant("audit:request_response", "otel-audit, level request_response", base="contrib"),
    Variant("alone:request_response", "otel-audit in full, no tracing"),
    Variant("peer:fastapi-audit", "fastapi-audit 0.2.3", environments.FASTAPI_AUDIT),
    Variant("peer:fastapi-audit-log", "fastapi-audit-log 1.4.0", environments.FASTAPI_AUDIT_LOG),
    Variant(
        "peer:sqlalchemy-audit-trail", "sqlalchemy-audit-trail 0.2.0", environments.AUDIT_TRAIL
    ),
)


def clean_environment(**settings: Any) -> dict[str, str]:
    """An environment without anybody's settings, and with what a script of `served` is told."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "AUDIT_", "PYTHON"))
    }
    return {**kept, "BENCH": json.dumps(settings), "OTEL_SERVICE_NAME": "shop"}


class Shop:
    """A running uvicorn process."""

    def __init__(self, variant: Variant, app: str, store: str, directory: Path) -> None:
        self.variant = variant
        self.app, self.store = app, store
        self.directory = directory
        self.asked = 0
        self.port = ports.free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(
        self, *, prepare: bool = True, under: tuple[str, ...] = (), freeze: bool = False
    ) -> None:
        environment = clean_environment(
            variant=self.variant.key,
            app=self.app,
            store=self.store,
            port=self.port,
            prepare=prepare,
            freeze=freeze,
        )
        environment["PYTHONHASHSEED"] = "0"
        environment["OTEL_AUDIT_SPOOL_DIR"] = str(self.directory / "spool")
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*under, python_of(self.variant.peer), str(SERVED / "shop.py")],
                env=environment,
                stdout=log,
                stderr=log,
            )

    def wait_until_up(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                self.ask("/json")
                return
            time.sleep(0.1)
        raise SystemExit(f"{self.variant.title} does not start:\n{self.output()}")

    def output(self) -> str:
        return (self.directory / "log").read_text()[-4000:]

    def meter(self) -> dict[str, float]:
        """Have it write all that it still has to; what its event loop has been like."""
        status, answer = self.ask("/meter")
        if status != 200:
            raise SystemExit(f"{self.variant.title}: {status}\n{self.output()}")
        counters: dict[str, float] = json.loads(answer)
        return counters

    def ask(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE + 30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


async def a_shop(databases: Databases, variant: Variant, directory: Path, prefix: str) -> Shop:
    """Make a shop with databases of its own; it is not started."""
    name = f"{prefix}_{variant.key.replace(':', '_').replace('-', '_')}"
    place = directory / name
    place.mkdir(mode=0o700)
    app = await databases.make(name)
    # its trail is in its own transactions, so it must be in the same database
    store = app if variant.peer is environments.AUDIT_TRAIL else await databases.make(f"{name}_t")
    return Shop(variant, app, store, place)


class Load:
    """The process that asks."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SERVED / "load.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=clean_environment(),
            text=True,
        )

    def make(self, **asked: Any) -> dict[str, Any]:
        sent, answers = self._pipes()
        sent.write(json.dumps(asked) + "\n")
        sent.flush()
        line = answers.readline()
        if not line:
            raise SystemExit(f"the load generator ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        return self.process.stdin, self.process.stdout


@contextlib.contextmanager
def a_load() -> Iterator[Load]:
    load = Load()
    try:
        yield load
    finally:
        for pipe in load._pipes():
            pipe.close()
        load.process.terminate()
        load.process.wait()
