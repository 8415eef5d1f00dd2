"""`otel-audit web`: the viewer on this machine."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import asyncio
import contextlib
import getpass
import socket
from typing import TYPE_CHECKING, Any, Final

import click

from otel_audit.cli.options import chosen_dsn, dsn_option
from otel_audit.cli.terminal import echo
from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError, MissingExtraError, StoreUnavailableError

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from otel_audit.viewer.authentication import Authenticate

_IN_CLEAR: Final = (
    "What is shown travels in clear to {host}: put a proxy that speaks TLS in front of it"
)
_UNBOUND: Final = (
    "The role of --dsn is a superuser or the store's owner: the database's policies do not bind "
    "it, so no tenant may look through it. A role that fits: otel-audit init --roles --viewer ROLE"
)
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")

VIEWER_PORT: Final = 8321
"""Port of the viewer on this machine, for `otel-audit web` and `otel-audit dev`."""


@click.command()
@dsn_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=VIEWER_PORT, show_default=True)
@click.option("--open/--no-open", "opens", default=False, help="Open the link in a browser.")
@click.option("--name", default=None, help="Your name in the records of your views.")
@click.option(
    "--role", type=click.Choice(["auditor", "support", "tenant"]), default="auditor",
    show_default=True, help="The viewer's role.",
)  # fmt: skip
@click.option("--tenant", "tenants", multiple=True, help="Show this tenant only; repeat.")
@click.option("--auth", metavar="MODULE:NAME", help="Your function that authenticates users.")
@click.option("--auth-header", metavar="NAME", help="Header in which a proxy names the user.")
@click.option("--proxy", "proxies", multiple=True, metavar="ADDRESS", help="Its address; repeat.")
@click.option("--key", "keys", multiple=True, help="Trusted public key, or its file.")
def web(  # noqa: PLR0913, PLR0917 - one for each option
    dsn: str | None,
    host: str,
    port: int,
    opens: bool,
    name: str | None,
    role: str,
    tenants: tuple[str, ...],
    auth: str | None,
    auth_header: str | None,
    proxies: tuple[str, ...],
    keys: tuple[str, ...],
) -> None:
    """Show the trail in a browser.

    For use on this machine it prints a link that works once. For other users set --auth or
    --auth-header, and put a TLS proxy in front. Views are recorded.
    """
    if auth and auth_header:
        raise click.UsageError("give --auth or --auth-header, not both")
    if not (auth or auth_header) and host not in _LOOPBACK:
        raise ConfigurationError(
            f"--host {host}: the one-time link is for this machine only. For other machines give "
            "--auth or --auth-header"
        )
    try:
        import uvicorn

        from otel_audit.viewer.authentication import OneTimeLink
    except ImportError as error:
        raise MissingExtraError("otel-audit web", "viewer") from error
    authenticate = _authenticate(auth, auth_header, proxies, name, role, tenants)
    app = viewer_app(dsn, keys, authenticate, host)
    asyncio.run(_try_store(app, tenants))
    listening = _listening(host, port)
    link = ""
    if isinstance(authenticate, OneTimeLink):
        link = f"/sign-in?link={authenticate.new_link()}"
    elif host not in _LOOPBACK:
        echo(_IN_CLEAR.format(host=host), colour="yellow", err=True)
    server = viewer_server(uvicorn, app, host, port, lambda url: _announce(f"{url}{link}", opens))
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


def _authenticate(  # noqa: PLR0913, PLR0917 - of the command's options
    auth: str | None,
    auth_header: str | None,
    proxies: tuple[str, ...],
    name: str | None,
    role: str,
    tenants: tuple[str, ...],
) -> Authenticate:
    from otel_audit.viewer.authentication import OneTimeLink, TrustedHeader, load
    from otel_audit.viewer.identity import Viewer

    if auth:
        return load(auth)
    limited: Any = tenants or None
    chosen: Any = role
    if auth_header:
        return TrustedHeader(auth_header, proxies or _LOOPBACK[::2], role=chosen, tenants=limited)
    try:
        name = name or getpass.getuser()
    except (OSError, KeyError):  # a user id without a name
        name = "somebody on this machine"
    return OneTimeLink(Viewer(name, chosen, limited))


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on --host {host} --port {port}: {error.strerror}; name another port, "
            "or --port 0 for one that is free"
        ) from None


async def _try_store(app: Starlette, tenants: tuple[str, ...]) -> None:
    """Look once, as every page will; a store that is only away may come back.

    Raises:
        StoreError: It has no schema, another one, or this role may not read it.
    """
    from otel_audit_postgres.query.grammar import Query
    from otel_audit_postgres.query.pool import TrailPool
    from otel_audit_postgres.query.trail import ReaderScope, is_bound
    from otel_audit_postgres.schema import pg_catalog
    from otel_audit_postgres.schema.readiness import refuse_version

    settings = app.state.site.settings
    pool = TrailPool(settings.dsn, size=1, statement_timeout=settings.statement_timeout)
    try:
        async with pool.trail("", ReaderScope(tenants or None), views="off") as trail:
            await trail.search(Query(()), limit=1)
            refuse_version(await trail.ask_unrecorded(pg_catalog.schema_version))
            if not await trail.ask_unrecorded(is_bound):
                echo(_UNBOUND, colour="yellow", err=True)
    except StoreUnavailableError as error:
        echo(f"The store does not answer yet: {error}", colour="yellow", err=True)
    finally:
        await pool.close()


def viewer_app(
    dsn: str | None, keys: tuple[str, ...], authenticate: Authenticate, host: str
) -> Starlette:
    """Make the viewer over a store; on this machine it answers to its own names alone."""
    from otel_audit_postgres.archive.objects import open_archive
    from otel_audit_postgres.ledger.anchors import anchors_from
    from otel_audit_postgres.ledger.settings import chosen_public_keys
    from otel_audit_postgres.personal.protect import key_store_from
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from otel_audit.viewer import create_app

    config = AuditConfig()
    app = create_app(
        dsn=chosen_dsn(dsn),
        authenticate=authenticate,
        keys=chosen_public_keys(config, keys),
        anchors=anchors_from(config.anchor),
        personal_keys=key_store_from(config),
        archive=None if config.archive is None else open_archive(config.archive),
        trace_url=config.trace_url,
        record_views=config.record_views,
    )
    if host in _LOOPBACK:
        # a name of somebody else's that leads here would make his pages ours
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*_LOOPBACK, "[::1]"])
    return app


def viewer_server(uvicorn: Any, app: Starlette, host: str, port: int, announce: Any) -> Any:
    """Make its server; `announce` gets the URL once it listens."""

    class AnnouncingServer(uvicorn.Server):  # type: ignore[misc]
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                where = self.servers[0].sockets[0].getsockname()
                shown = f"[{where[0]}]" if ":" in where[0] else where[0]
                announce(f"http://{shown}:{where[1]}")

    return AnnouncingServer(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            access_log=False,
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            lifespan="on",
            timeout_graceful_shutdown=2,
        )
    )


def _announce(url: str, opens: bool) -> None:
    echo(url)
    echo("(the link works once; Ctrl-C ends the viewer)", err=True)
    if opens:
        click.launch(url)
