"""Each way to run an application, told to stop under load: it delivers, or the next start does."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import pytest
from acceptance.servers import BIN, started
from faults.load import settings_for
from otel_audit_postgres.query.gaps import find_gaps

Command = Callable[[int], list[str]]


def uvicorn(*options: str) -> Command:
    return lambda port: [str(BIN / "uvicorn"), "app:app", "--port", str(port), *options]


def gunicorn(*options: str) -> Command:
    return lambda port: [
        str(BIN / "gunicorn"), "app:app", "-b", f"127.0.0.1:{port}", "-w", "2", *options,
    ]  # fmt: skip


def hypercorn(*options: str) -> Command:
    return lambda port: [str(BIN / "hypercorn"), "app:app", "-b", f"127.0.0.1:{port}", *options]


def granian(*options: str) -> Command:
    return lambda port: [
        str(BIN / "granian"), "app:app", "--interface", "asgi", "--port", str(port), *options,
    ]  # fmt: skip


UVICORN_WORKER = ("-k", "uvicorn.workers.UvicornWorker")
SERVERS = {
    "uvicorn": uvicorn(),
    "uvicorn --workers": uvicorn("--workers", "2", "--timeout-worker-healthcheck", "60"),
    "uvicorn --reload": uvicorn("--reload"),
    "gunicorn -k UvicornWorker": gunicorn(*UVICORN_WORKER),
    "gunicorn --preload": gunicorn(*UVICORN_WORKER, "--preload"),
    "gunicorn -k asgi": gunicorn("-k", "asgi"),
    "hypercorn": hypercorn(),
    "granian": granian(),
}
# SIGTERM to plain uvicorn, and to its workers, stands with the other processes
ELSEWHERE = ("uvicorn", "uvicorn --workers")
STOPS = [(name, signal.SIGTERM) for name in SERVERS if name not in ELSEWHERE] + [
    (name, signal.SIGINT) for name in ("uvicorn", "uvicorn --workers", "uvicorn --reload")
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how"), STOPS, ids=[f"{n} {how.name}" for n, how in STOPS])
async def test_told_to_stop_under_load(site, audit_store, told, name, how):
    """Everything answered is stored once when the server has ended, and each stream has an end."""
    with started(site.path, settings_for(audit_store), SERVERS[name]) as server:
        server.wait_until_up(60)
        async with site.load(server, clients=3).running() as load:
            await load.until_answered(100)
            await asyncio.to_thread(server.stop, how, timeout=60)
    verdict = (await site.verdict(audit_store)).assert_sound()
    streams = await find_gaps(audit_store)
    assert streams
    assert all(stream.ended and not stream.missing for stream in streams)
    told(f"{how.name} under load: `{name}`", verdict, "each stream has an end and no hole")
