"""The routes of an application, as far as a policy needs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from otel_audit.errors import ConfigurationError
from otel_audit.policy.rules import EXTENSION, MARK, Override, from_extension

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPTH: Final = 8
"""Levels of applications and routers that are followed: one may hold itself."""


@dataclass(frozen=True, slots=True)
class KnownRoute:
    """One route.

    Attributes:
        methods: HTTP methods, sorted; ``WEBSOCKET`` for a socket.
        path: The template, with the prefixes of routers and mounted applications.
        override: What the route says about itself.
        problem: Why what it says about itself is not used.
    """

    methods: tuple[str, ...]
    path: str
    override: Override | None = None
    problem: str | None = None


def routes_of(app: object) -> Iterator[KnownRoute]:
    """List the routes of a Starlette or FastAPI application, mounted ones included.

    Nothing of either is imported: what has ``routes`` is looked into, what has a ``path`` and an
    ``endpoint`` is a route.
    """
    yield from _walk(getattr(app, "routes", None) or (), "", DEPTH)


def _walk(routes: Any, prefix: str, depth: int) -> Iterator[KnownRoute]:
    for route in routes if depth else ():
        included = getattr(route, "effective_route_contexts", None)
        if callable(included):  # FastAPI >= 0.137 keeps included routers apart
            # what is not a route of FastAPI's own is wrapped once more
            contexts = [getattr(one, "starlette_route", None) or one for one in included()]
            yield from _walk(contexts, prefix, depth - 1)
        elif getattr(route, "routes", None):
            path = getattr(route, "path", "")
            yield from _walk(route.routes, prefix + path.rstrip("/"), depth - 1)
        elif callable(getattr(route, "endpoint", None)):
            yield _known(route, prefix)


def _known(route: Any, prefix: str) -> KnownRoute:
    methods = getattr(route, "methods", None)
    names = tuple(sorted(methods)) if methods else ("WEBSOCKET",)
    path = prefix + route.path
    marked = getattr(route.endpoint, MARK, None)
    if isinstance(marked, Override):
        return KnownRoute(names, path, marked)
    extra = getattr(route, "openapi_extra", None) or {}
    if EXTENSION not in extra:
        return KnownRoute(names, path)
    try:
        return KnownRoute(names, path, from_extension(extra[EXTENSION]))
    except ConfigurationError as error:
        return KnownRoute(names, path, problem=str(error))
