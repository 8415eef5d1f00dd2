"""A store with two tenants' records, and the viewer of it as each kind of person."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpx
import pytest
from otel_audit_postgres import init
from viewer_store import ViewerStore

from otel_audit.viewer import Viewer, create_app


@dataclass
class Clients:
    """Makes HTTP clients of the viewer, each somebody's."""

    dsn: str
    stack: AsyncExitStack

    async def __call__(self, viewer: Viewer | None, **options) -> httpx.AsyncClient:
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
