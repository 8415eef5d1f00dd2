"""A page of the product on which a tenant's administrator looks at the own trail, in a frame.

The product's backend knows who is signed in. It mints a token for this person's tenant, and its
page hands that to the frame. Here one administrator is always signed in.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from otel_audit_postgres.ledger.keys import PublicKey, read_public_key

from demo.postgres import AUDIT, VIEWER_ROLE, Postgres
from otel_audit.viewer import Embedding, create_app, mint_token
from otel_audit.viewer.identity import Permission

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Settings: audit trail</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; } body { margin: 0; font: 15px/1.5 system-ui, sans-serif; }
header { padding: .7rem 1rem; border-bottom: 1px solid #8888; } h1 { margin: 0; font-size: 1.1rem; }
otel-audit-viewer { display: block; height: calc(100vh - 4rem); }
</style>
<header><h1>Settings: audit trail</h1></header>
<script src="/audit/static/loader.js"></script>
<otel-audit-viewer token-url="/my-audit-token"></otel-audit-viewer>
</html>
"""


@dataclass(frozen=True)
class Administrator:
    """Whom the product's session names.

    Attributes:
        email: The login name.
        tenant_id: Whose administrator it is.
    """

    email: str
    tenant_id: str


def make_product(
    dsn: str, origin: str, administrator: Administrator, keys: list[PublicKey]
) -> FastAPI:
    """Make the product's application, with the viewer mounted under ``/audit``.

    Args:
        dsn: The audit store, as the viewer's role.
        origin: Where this application is.
        administrator: Who is signed in.
        keys: Public keys whose signatures count as proof.
    """
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    embedding = Embedding(public.decode(), origins=(origin,))
    app = FastAPI(title="Product")
    app.mount("/audit", create_app(dsn=dsn, embedding=embedding, keys=keys))

    @app.get("/", response_class=HTMLResponse)
    async def settings_page() -> str:
        return _PAGE

    @app.get("/my-audit-token")
    async def my_audit_token() -> dict[str, str]:
        signed_in = administrator
        may: tuple[Permission, ...] = ("export", "prove", "tail")
        token = mint_token(private, tenant=signed_in.tenant_id, viewer=signed_in.email, may=may)
        return {"token": token}

    return app


class _Server(uvicorn.Server):
    """A server beside others in one process, which is told by itself when to stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def running_product(
    server: Postgres, directory: Path, administrator: Administrator
) -> AsyncIterator[str]:
    """Run it on a free port of the loopback address; where it is."""
    key = directory / "audit.key.pub"
    keys = [read_public_key(key.read_text(), str(key))] if key.exists() else []
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        origin = f"http://127.0.0.1:{listening.getsockname()[1]}"
        app = make_product(server.dsn(AUDIT, VIEWER_ROLE), origin, administrator, keys)
        running = _Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
        task = asyncio.create_task(running.serve(sockets=[listening]))
        try:
            yield origin
        finally:
            running.should_exit = True
            await task
