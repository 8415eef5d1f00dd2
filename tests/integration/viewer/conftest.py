"""A store with two tenants' records, and the viewer of it as each kind of person."""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
import uvicorn
from otel_audit_postgres import init
from ports import free_port
from viewer_store import AUDITOR, ViewerStore

from otel_audit.viewer import Viewer, create_app


@dataclass
class Clients:
    """Makes HTTP clients of the viewer, each somebody's."""

    dsn: str
    stack: AsyncExitStack

    async def __call__(self, viewer: Viewer | None, **options) -> httpx.AsyncClient:
        options.setdefault("statement_timeout", 30.0)
        app = create_app(dsn=self.dsn, authenticate=lambda _: viewer, **options)
        self.stack.push_async_callback(app.state.site.pool.close)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")
        return await self.stack.enter_async_context(client)


@pytest.fixture
async def viewer_role(postgres, audit_store) -> str:
    """The DSN of the viewer's own role, in a store with the group roles."""
    role = f"viewer_{uuid.uuid4().hex[:8]}"
    await postgres.execute(f"CREATE ROLE {role} LOGIN")
    await init(audit_store, roles=True, viewer=role)
    return postgres.dsn(audit_store.partition("?")[0].rpartition("/")[2], role)


@pytest.fixture
async def store(audit_store, tmp_path) -> ViewerStore:
    """Orders of two tenants, in the store's own hands."""
    made = ViewerStore(audit_store, tmp_path)
    await made.write_orders()
    return made


@pytest.fixture
async def clients(viewer_role) -> AsyncIterator[Callable]:
    """Makes clients of the viewer: ``await clients(AUDITOR)``."""
    async with AsyncExitStack() as stack:
        yield Clients(viewer_role, stack)


@asynccontextmanager
async def served(app, port: int | None = None) -> AsyncIterator[str]:
    """Run an application on a port; its address."""
    port = port or free_port()
    config = uvicorn.Config(app, port=port, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - it has no event to wait for
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


@pytest.fixture
def serve():
    """Runs an application: ``async with serve(app) as address``."""
    return served


@pytest.fixture
async def running(store, viewer_role) -> AsyncIterator[str]:
    """The viewer on a port, as an auditor's; its address."""
    await store.seal()
    app = create_app(
        dsn=viewer_role, authenticate=lambda _: AUDITOR, keys=[store.key.public],
        trace_url="https://traces.example/{trace_id}",
    )  # fmt: skip
    async with served(app) as address:
        yield address


@pytest.fixture
async def browser():
    """Debian's Chromium; where it is missing the tests are skipped, but not in CI."""
    program = shutil.which("chromium")
    if program is None:
        said = "needs Chromium: apt-get install chromium"
        if os.environ.get("TEST_BROWSER_REQUIRED"):
            pytest.fail(said)
        pytest.skip(said)
    playwright = pytest.importorskip("playwright.async_api", reason="pip install playwright")
    async with playwright.async_playwright() as started:
        launched = await started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield launched
        await launched.close()
