"""The viewer as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from otel_audit.viewer import exports, pages, proofs, reports, tail
from otel_audit.viewer.authentication import OneTimeLink
from otel_audit.viewer.embedding import EMBED_PATH, frame
from otel_audit.viewer.rendering import render
from otel_audit.viewer.security_headers import SecurityHeaders
from otel_audit.viewer.sessions import sessions, static
from otel_audit.viewer.settings import ViewerSettings
from otel_audit.viewer.site import Handler, Site

_PAGES: Sequence[tuple[str, str, Handler]] = (
    ("/", "search", pages.search),
    ("/record/{record_id}", "record", pages.record),
    ("/record/{record_id}/evidence.json", "evidence", proofs.as_json),
    ("/record/{record_id}/evidence.zip", "evidence_zip", proofs.as_zip),
    ("/entity", "entity", pages.entity),
    ("/actor", "actor", pages.actor),
    ("/export", "export", exports.export),
    ("/reports", "reports", reports.index),
    ("/reports/{name}", "report", reports.show),
    ("/tail", "tail", tail.page),
    ("/tail/events", "tail_events", tail.events),
    ("/help", "help", pages.help_page),
)


def create_app(settings: ViewerSettings | None = None, **options: Any) -> Starlette:
    """Make the viewer.

    Mounted in an application, its own login tells who looks::

        app.mount("/audit", create_app(dsn=dsn, authenticate=who))

    Args:
        settings: How it works.
        options: Fields of `ViewerSettings`, instead.

    Returns:
        The application; it runs under any path, with or without a lifespan.

    Raises:
        ConfigurationError: Something does not fit, or nobody says who may look.
    """
    site = Site(settings or ViewerSettings(**options))
    routes: list[BaseRoute] = [
        Route(path, site.page(handler), name=name) for path, name, handler in _PAGES
    ]
    routes.append(Route("/static/{name}", static, name="static"))
    authenticate, embedding = site.settings.authenticate, site.settings.embedding
    if isinstance(authenticate, OneTimeLink):
        sign_in, sign_out = sessions(authenticate)
        routes.append(Route("/sign-in", sign_in, name="sign_in"))
        routes.append(Route("/sign-out", sign_out, methods=["POST"], name="sign_out"))
    embed = ""
    origins: Sequence[str] = ()
    if embedding is not None:
        embed, origins = EMBED_PATH, embedding.origins
        routes.append(Route(EMBED_PATH, frame(embedding), name="embed"))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        reading = asyncio.create_task(site.read_tree())
        yield
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await site.close()

    app = Starlette(
        routes=routes,
        middleware=[Middleware(SecurityHeaders, embed=embed, ancestors=origins)],
        exception_handlers={HTTPException: _http_problem, Exception: _unexpected},
        lifespan=lifespan,
    )
    app.state.site = site
    app.state.keeps_sessions = isinstance(authenticate, OneTimeLink)
    return app


async def _http_problem(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = "There is no such page." if status == 404 else "This is not done here."  # noqa: PLR2004
    context = {"title": "Not found" if status == 404 else "Refused"}  # noqa: PLR2004
    return await render(request, "problem.html", context | {"message": message}, status)


async def _unexpected(request: Request, error: Exception) -> Response:
    message = f"The viewer itself failed ({type(error).__name__}); its log has the details."
    context = {"title": "This went wrong", "message": message}
    return await render(request, "problem.html", context, 500)
