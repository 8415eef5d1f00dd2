"""What all pages share: the store, who looks, and how an error is told."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from otel_audit_postgres.ledger import store
from otel_audit_postgres.ledger.tree_cache import TreeCache
from otel_audit_postgres.query.grammar import Query, QueryError, parse
from otel_audit_postgres.query.pool import TrailPool
from otel_audit_postgres.query.trail import Trail
from starlette.requests import Request
from starlette.responses import Response

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.errors import ConfigurationError, OtelAuditError, StoreError, StoreUnavailableError
from otel_audit.viewer.authentication import who_looks
from otel_audit.viewer.identity import Viewer
from otel_audit.viewer.rendering import render
from otel_audit.viewer.settings import ViewerSettings

_logger = logging.getLogger(__name__)

Handler = Callable[["Site", Request, Viewer], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]


class Site:
    """The viewer's state: one store, one tree, who is let in."""

    def __init__(self, settings: ViewerSettings) -> None:
        """Open nothing yet."""
        self.settings = settings
        self.tree = TreeCache()
        self.pool = TrailPool(
            settings.dsn,
            size=settings.connections,
            statement_timeout=settings.statement_timeout,
            views=settings.record_views,
        )
        self.tails = 0

    def trail(self, viewer: Viewer, **options: Any) -> AbstractAsyncContextManager[Trail]:
        """Open the trail for somebody."""
        return self.pool.trail(viewer.name, viewer.scope, **options)

    async def read_tree(self) -> None:
        """Read the log's tree ahead of the first proof; of a large log that takes seconds."""
        try:
            async with self.pool.connection() as connection:
                await self.tree.follow(connection, await store.size(connection))
        except OtelAuditError as error:
            # the first record's page tries again, and says what is wrong
            log_limited(
                _logger, "viewer-tree", "The log's tree could not be read yet", error=error,
                level=logging.WARNING,
            )  # fmt: skip

    async def viewer_of(self, request: Request) -> Viewer | None:
        """Return who looks; a token that is refused is not made up for by anything else."""
        embedding, authenticate = self.settings.embedding, self.settings.authenticate
        if embedding is not None and "authorization" in request.headers:
            found = embedding.viewer_of(request.headers.getlist("authorization"))
            if found is not None or authenticate is None:
                return found
        return None if authenticate is None else await who_looks(authenticate, request)

    def page(self, handler: Handler) -> Endpoint:
        """Make an endpoint: who it is, the page, and what to say where that fails."""

        async def endpoint(request: Request) -> Response:
            viewer = None
            try:
                viewer = await self.viewer_of(request)
                if viewer is None:
                    return await render(request, "sign_in.html", {"title": "Sign in"}, 401)
                return await handler(self, request, viewer)
            except OtelAuditError as error:
                return await problem(request, viewer, error)

        return endpoint


def asked(viewer: Viewer, text: str) -> Query:
    """Read a query, as far as this person may ask it.

    Raises:
        QueryError: It cannot be understood, or looks into what is not shown.
    """
    query = parse(text)
    if not viewer.sees_bodies and any(one.field is None for one in query.terms):
        raise QueryError(
            1,
            "free text looks into bodies, which this role does not see: name a field, field:value",
        )
    return query


async def problem(request: Request, viewer: Viewer | None, error: OtelAuditError) -> Response:
    """Say what happened and what to do."""
    status, title = _kind(error)
    response = await render(
        request,
        "problem.html",
        {"title": title, "viewer": viewer, "message": str(error), "status": status},
        status,
    )
    if isinstance(error, StoreUnavailableError):
        response.headers["retry-after"] = str(int(error.retry_after or 5))
    return response


async def missing(request: Request, viewer: Viewer, message: str) -> Response:
    """Say that there is no such thing, or none that this person may see."""
    context = {"title": "Not found", "viewer": viewer, "message": message, "status": 404}
    return await render(request, "problem.html", context, 404)


async def refused(request: Request, viewer: Viewer, message: str) -> Response:
    """Say that this person may not."""
    context = {"title": "Not allowed", "viewer": viewer, "message": message, "status": 403}
    return await render(request, "problem.html", context, 403)


def _kind(error: OtelAuditError) -> tuple[int, str]:
    if isinstance(error, QueryError):
        return 400, "The query cannot be understood"
    if isinstance(error, ConfigurationError):
        return 400, "This cannot be asked"
    if isinstance(error, StoreUnavailableError):
        return 503, "The audit store cannot answer now"
    if isinstance(error, StoreError):
        return 500, "The audit store cannot answer this"
    return 500, "This went wrong"
