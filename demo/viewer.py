"""The viewer and the sealer, left running beside the shop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from demo.commands import CommandError, our_program, output_of
from demo.postgres import AUDIT, VIEWER_ROLE, Postgres
from demo.server import stop

VIEWER = "auditor@shop.example"
_START_SECONDS = 60.0


@asynccontextmanager
async def running_viewer(server: Postgres, directory: Path) -> AsyncIterator[str]:
    """Run ``otel-audit web`` and ``otel-audit seal``; the link that the first has printed."""
    program, key = our_program("otel-audit"), directory / "audit.key"
    await output_of(program, "init", "--roles", "--viewer", VIEWER_ROLE, "--dsn", server.dsn(AUDIT))
    async with AsyncExitStack() as stack:
        if key.exists():
            anchor = f"file:{directory / 'anchor'}"
            sealing = ("--key-file", str(key), "--anchor", anchor, "--dsn", server.dsn(AUDIT))
            await stack.enter_async_context(_running(program, "seal", *sealing))
        keys = ("--key", f"{key}.pub") if key.exists() else ()
        dsn = server.dsn(AUDIT, VIEWER_ROLE)
        web = await stack.enter_async_context(
            _running(program, "web", "--port", "0", "--name", VIEWER, "--dsn", dsn, *keys)
        )
        assert web.stdout is not None
        async with asyncio.timeout(_START_SECONDS):
            link = (await web.stdout.readline()).decode().strip()
        if not link:
            raise CommandError("otel-audit web did not start")
        yield link


@asynccontextmanager
async def _running(program: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        stdout=asyncio.subprocess.PIPE if arguments[0] == "web" else asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for us; we stop it in good order
    )
    try:
        yield process
    finally:
        await stop(process)
