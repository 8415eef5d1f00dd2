"""A store with its sealer, and streams that are made from a file of settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from ledger_store import Administrator, Log
from stream_receiver import Receiver, receiving

from otel_audit._util import ratelimited_log
from otel_audit.streams.factory import make_streams
from otel_audit.streams.settings import read_settings
from otel_audit.streams.stream import Stream

SECRET = "whsec_" + "c2VjcmV0IG9mIHRoZSB0ZXN0LCAzMiBieXRlcyBsb25n"


@pytest.fixture
def log(audit_store: str, tmp_path: Path) -> Log:
    ratelimited_log.forget()
    return Log(audit_store, tmp_path)


@pytest.fixture
def administrator(connection: Any) -> Administrator:
    return Administrator(connection)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
async def stream_to(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Stream]]:
    """Makes one stream named ``siem`` from lines of TOML; ``start`` is its first leaf."""
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    file = tmp_path / "streams.toml"
    made: list[Stream] = []

    def make(*lines: str, start: int | None = 0, dsn: str | None = None) -> Stream:
        file.write_text("[streams.siem]\n" + "\n".join(lines) + "\n")
        (stream,) = make_streams(
            dsn or log.dsn, read_settings(file), state_directory=tmp_path / "state", start=start,
            interval=0.02,
        )  # fmt: skip
        made.append(stream)
        return stream

    yield make
    for stream in made:
        await stream.close()


@asynccontextmanager
async def running(stream: Stream) -> AsyncIterator[asyncio.Task[None]]:
    """Run a stream beside the test; it is stopped at the end."""
    stop = asyncio.Event()
    task = asyncio.create_task(stream.run(stop))
    try:
        yield task
    finally:
        stop.set()
        await asyncio.wait([task])
        await stream.close()


async def until(condition: Callable[[], bool], within: float = 30.0) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - a condition of another process's, or thread's
            await asyncio.sleep(0.01)
