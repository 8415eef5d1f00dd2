"""Each way to run an application, told to stop under load: it delivers, or the next start does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
from acceptance.servers import BIN, started
from faults.load import Site, settings_for
from otel_audit_postgres.gaps import find_gaps

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
    "uvicorn --workers 2": uvicorn("--workers", "2", "--timeout-worker-healthcheck", "60"),
    "uvicorn --reload": uvicorn("--reload"),
    "gunicorn -k UvicornWorker": gunicorn(*UVICORN_WORKER),
    "gunicorn -k UvicornWorker --preload": gunicorn(*UVICORN_WORKER, "--preload"),
    "gunicorn -k asgi": gunicorn("-k", "asgi"),
    "hypercorn": hypercorn(),
    "hypercorn --workers 2": hypercorn("--workers", "2"),
    "granian": granian(),
    "granian --workers 2": granian("--workers", "2"),
}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def end_group(leader: int) -> None:
    """End what a server has left running: its workers, and nothing else."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
@pytest.mark.parametrize("name", SERVERS)
async def test_told_to_stop_under_load(site, audit_store, name, how):
    """Everything answered is stored once when the server and whoever comes next have ended."""
    settings = settings_for(audit_store)
    with started(site.path, settings, SERVERS[name]) as server:
        server.wait_until_up(60)
        async with site.load(server).running() as load:
            await load.until_answered(150)
            await asyncio.to_thread(server.stop, how, timeout=60)
    verdict = await site.verdict(audit_store)
    print("OWN", name, how.name, len(verdict.lost), len(verdict.untold), len(await find_gaps(audit_store)), [s.ended for s in await find_gaps(audit_store)])
    if verdict.lost or verdict.untold:
        with site.serving(settings) as server:
            verdict = await site.verdict(audit_store, within=30)
            server.stop()
    verdict.assert_sound()
    streams = await find_gaps(audit_store)
    assert all(not stream.missing for stream in streams)
