"""State shared by all pages: the store, the user, and pages for errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.tree_cache import TreeCache
from otel_audit_postgres.personal.encryption import WrongKeyError
from otel_audit_postgres.personal.reveal import revealed
from otel_audit_postgres.pseudonyms import MARK, EncryptedValue, read_encrypted
from otel_audit_postgres.query import payloads
from otel_audit_postgres.query.grammar import Query, QueryError, parse
from otel_audit_postgres.query.own_events import asks_for_own, without_own
from otel_audit_postgres.query.payloads import DisplayNames, RecordKey
from otel_audit_postgres.query.pool import TookTooLongError, TrailPool
from otel_audit_postgres.query.queries import Found
from otel_audit_postgres.query.trail import Trail
from starlette.requests import Request
from starlette.responses import Response

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.errors import ConfigurationError, OtelAuditError, StoreError, StoreUnavailableError
from otel_audit.viewer.authentication import ask_authentication
from otel_audit.viewer.identity import Viewer
from otel_audit.viewer.rendering import OWN_SHOWN, render
from otel_audit.viewer.settings import ViewerSettings
from otel_audit.viewer.tail_cursor import TailCursors

_logger = logging.getLogger(__name__)

_LONGEST_PARAMETER: Final = 1_000
"""Characters of a parameter of a page; a query has a bound of its own."""

Handler = Callable[["Site", Request, Viewer], Awaitable[Response]]
PageHandler = Callable[[Request], Awaitable[Response]]


class Site:
    """The viewer's state: the store, the tree, and the authentication."""

    def __init__(self, settings: ViewerSettings) -> None:
        """Make the state; the store is not opened yet.

        Args:
            settings: The viewer's settings.
        """
        self.settings = settings
        self.tree = TreeCache()
        self.pool = TrailPool(
            settings.dsn,
            size=settings.connections,
            statement_timeout=settings.statement_timeout,
            views=settings.record_views,
        )
        self.tails = 0
        self.cursors = TailCursors()
        self._keys_turn = asyncio.Lock()

    def trail(self, viewer: Viewer, **options: Any) -> AbstractAsyncContextManager[Trail]:
        """Open the trail for a user."""
        return self.pool.trail(viewer.name, viewer.scope, **options)

    async def read_tree(self) -> None:
        """Read the log's tree ahead of the first proof; a large log takes seconds."""
        try:
            async with self.pool.connection() as connection:
                await self.tree.follow(connection, await ledger_queries.size(connection))
        except OtelAuditError as error:
            # the first record's page tries again, and says what is wrong
            log_limited(
                _logger, "viewer-tree", "The log's tree could not be read yet", error=error,
                level=logging.WARNING,
            )  # fmt: skip

    async def readable(self, payload: str) -> str:
        """A record's text, with personal values decrypted if their keys are known."""
        keys = self.settings.personal_keys
        if keys is None or MARK not in payload:
            return payload
        try:
            # they are read over one connection
            async with self._keys_turn:
                return json.dumps(await revealed(payload, keys), ensure_ascii=False)
        except OtelAuditError as error:
            # values are shown as encrypted, which they are
            log_limited(
                _logger, "viewer-keys", "The keys of personal values could not be read",
                error=error, level=logging.WARNING,
            )  # fmt: skip
            return payload

    async def names(
        self, connection: Connection[Any], records: Sequence[Found]
    ) -> dict[RecordKey, DisplayNames]:
        """Display names of actors and tenants, decrypted if their keys are known."""
        found = {
            key: DisplayNames(_readable_name(one.actor), _readable_name(one.tenant))
            for key, one in (await payloads.names(connection, records)).items()
        }
        encrypted = {
            key: value
            for key, one in found.items()
            if one.actor is not None and (value := read_encrypted(one.actor)) is not None
        }
        opened = await self._opened(encrypted) if encrypted else {}
        return found | {key: DisplayNames(opened.get(key), found[key].tenant) for key in encrypted}

    async def _opened(self, encrypted: Mapping[RecordKey, EncryptedValue]) -> dict[RecordKey, str]:
        keys = self.settings.personal_keys
        if keys is None:
            return {}
        opened = {}
        try:
            async with self._keys_turn:
                known = await keys.by_ids({value.key_id for value in encrypted.values()})
        except OtelAuditError as error:
            log_limited(
                _logger, "viewer-keys", "The keys of personal values could not be read",
                error=error, level=logging.WARNING,
            )  # fmt: skip
            return {}
        for place, value in encrypted.items():
            key = known.get(value.key_id)
            # the record's own page explains a value that cannot be decrypted
            with contextlib.suppress(WrongKeyError):
                if key is not None:
                    opened[place] = key.decrypt(value, str(place[0]), "actor.email")
        return opened

    async def close(self) -> None:
        """Close connections."""
        await self.pool.close()
        if self.settings.personal_keys is not None:
            await self.settings.personal_keys.close()

    async def viewer_of(self, request: Request) -> Viewer | None:
        """Return the user. A login does not replace a refused frame token."""
        embedding, authenticate = self.settings.embedding, self.settings.authenticate
        if embedding is not None and "authorization" in request.headers:
            given = request.headers.getlist("authorization")
            found = embedding.viewer_of(given)
            if found is not None or authenticate is None or embedding.is_meant(given):
                return found
        return None if authenticate is None else await ask_authentication(authenticate, request)

    def page(self, handler: Handler) -> PageHandler:
        """Make an endpoint: authenticate, answer, and turn errors into pages."""

        async def endpoint(request: Request) -> Response:
            viewer = None
            try:
                viewer = await self.viewer_of(request)
                if viewer is None:
                    return await render(request, "sign_in.html", {"title": "Sign in"}, 401)
                _check_parameters(request)
                return await handler(self, request, viewer)
            except OtelAuditError as error:
                return await problem(request, viewer, error)

        return endpoint


def _check_parameters(request: Request) -> None:
    """Refuse parameters that the store can neither search for nor record.

    Raises:
        ConfigurationError: A parameter holds a NUL, or is too long.
    """
    for name, value in request.query_params.multi_items():
        if "\0" in value:
            raise ConfigurationError(f"{name[:30]}: holds a NUL character, which no record does")
        # the query itself says where it is too long
        if name != "q" and len(value) > _LONGEST_PARAMETER:
            raise ConfigurationError(f"{name[:30]}: {_LONGEST_PARAMETER:,} characters at most")


def _readable_name(name: str | None) -> str | None:
    """A name, if it is readable or can be decrypted; otherwise None."""
    if name is None or payloads.says_who(name) or read_encrypted(name) is not None:
        return name
    return None


def parse_query(viewer: Viewer, text: str) -> Query:
    """Parse a query, within the user's rights.

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


def hide_own_events(request: Request, viewer: Viewer, query: Query) -> Query:
    """Hide ``audit.*`` events unless the query asks for them, as on the command line."""
    # they are of no tenant
    if not viewer.sees_store or request.query_params.get(OWN_SHOWN) or asks_for_own(query):
        return query
    return without_own(query)


async def problem(request: Request, viewer: Viewer | None, error: OtelAuditError) -> Response:
    """The page for an error: what happened, and what to do."""
    status, title = _kind(error)
    response = await render(
        request,
        "problem.html",
        {
            "title": title,
            "viewer": viewer,
            "message": str(error),
            "can_retry": isinstance(error, StoreUnavailableError),
        },
        status,
    )
    if isinstance(error, StoreUnavailableError):
        # 5 s, as the OTLP sink says by default, where the store does not say when
        response.headers["retry-after"] = str(int(error.retry_after or 5))
    return response


async def missing(request: Request, viewer: Viewer, message: str) -> Response:
    """The page for a record that is missing, or not visible to this user."""
    context = {"title": "Not found", "viewer": viewer, "message": message}
    return await render(request, "problem.html", context, 404)


async def refused(request: Request, viewer: Viewer, message: str) -> Response:
    """The page for a missing right."""
    context = {"title": "Not allowed", "viewer": viewer, "message": message}
    return await render(request, "problem.html", context, 403)


def _kind(error: OtelAuditError) -> tuple[int, str]:
    if isinstance(error, QueryError):
        return 400, "The query cannot be understood"
    if isinstance(error, ConfigurationError):
        return 400, "This cannot be asked"
    if isinstance(error, TookTooLongError):
        return 503, "This takes too long"
    if isinstance(error, StoreUnavailableError):
        return 503, "The audit store cannot answer now"
    if isinstance(error, StoreError):
        return 500, "The audit store cannot answer this"
    return 500, "This went wrong"
