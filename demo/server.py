"""The shop in a real uvicorn process, under ``opentelemetry-instrument``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from demo.commands import our_program

PROJECT = Path(__file__).resolve().parents[1]
COMMAND = ("opentelemetry-instrument", "uvicorn", "demo.shop.app:app")
_LISTENING = re.compile(r"Uvicorn running on (http://[0-9.:]+)")
_START_SECONDS = 60.0
_STOP_SECONDS = 40.0


class ServerError(RuntimeError):
    """The shop did not start, or did not stop when it was asked to."""


@dataclass
class Server:
    """A running shop.

    Attributes:
        process: Its process; nothing else is ever signalled.
        log: The file that has its output.
        url: Where it listens.
    """

    process: asyncio.subprocess.Process
    log: Path
    url: str = ""

    async def stop(self) -> float:
        """Ask it to end, as a container platform does: SIGTERM.

        Returns:
            How many seconds it took.

        Raises:
            ServerError: It had to be killed.
        """
        asked = time.perf_counter()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.process.wait(), _STOP_SECONDS)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            raise ServerError(
                f"the shop did not end within {_STOP_SECONDS:.0f} s of SIGTERM{self._tail()}"
            ) from None
        return time.perf_counter() - asked

    async def wait_until_listening(self) -> None:
        """Find out where it listens.

        Raises:
            ServerError: It ended, or took too long.
        """
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            found = _LISTENING.search(self.log.read_text())
            if found:
                self.url = found[1]
                return
            if self.process.returncode is not None:
                raise ServerError(f"the shop did not start{self._tail()}")
            await asyncio.sleep(0.02)
        raise ServerError(f"the shop did not listen within {_START_SECONDS:.0f} s{self._tail()}")

    def _tail(self) -> str:
        lines = self.log.read_text().splitlines()[-25:]
        return "; the end of its log:\n  " + "\n  ".join(lines)


@asynccontextmanager
async def running_shop(
    settings: Mapping[str, str], log: Path, *, port: int = 0
) -> AsyncIterator[Server]:
    """Run the shop on a port of the loopback address (any free one: 0)."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            our_program(COMMAND[0]),
            *COMMAND[1:],
            *("--host", "127.0.0.1", "--port", str(port), "--app-dir", str(PROJECT)),
            env=_environment(settings),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us; we stop it in good order
        )
    server = Server(process, log)
    try:
        await server.wait_until_listening()
        yield server
    finally:
        await stop(process)


async def stop(process: asyncio.subprocess.Process) -> None:
    """End a process in good order; one that takes too long is killed."""
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except (TimeoutError, asyncio.CancelledError):
            process.kill()
            await process.wait()


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Ours, without what this machine may say about observability, and with the settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "SHOP_", "PYTHONWARNINGS"))
    }
    scripts = str(Path(sys.executable).parent)
    path = os.pathsep.join(filter(None, (scripts, kept.get("PATH"))))
    return kept | {"PATH": path, "PYTHONUNBUFFERED": "1"} | dict(settings)
