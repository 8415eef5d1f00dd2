"""The route of the application that served a request, from the ASGI scope alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from otel_audit.http.request_metadata import path_below_root
from otel_audit.policy.routes import DEPTH

_CONVERTOR: Final = re.compile(r":[^{}]*\}")


def route_template(scope: Mapping[str, Any], app: object = None) -> str | None:
    """Find the template of the route that served a request.

    Args:
        scope: The ASGI scope as the router left it.
        app: The outermost application, whose mounts say how their prefixes are spelled.

    Returns:
        For example ``/api/v1/orders/{order_id}``, with the prefixes of included routers and
        mounted applications; None if no route matched.
    """
    route = scope.get("route")
    if route is None:
        return _template_of_endpoint(scope, scope.get("app") if app is None else app)
    path = _included_path(scope, route) or getattr(route, "path", None)
    if not isinstance(path, str):
        return None
    # without a prefix, none is to be spelled
    return _mount_prefix(scope, app) + path if scope.get("root_path") else path


def _template_of_endpoint(scope: Mapping[str, Any], app: object) -> str | None:
    """Find the template if only the endpoint is given: older versions of Starlette do so."""
    endpoint = scope.get("endpoint")
    if endpoint is None:
        return None
    outer = {**scope, "root_path": scope.get("app_root_path", scope.get("root_path"))}
    method = None if scope.get("type") == "websocket" else scope.get("method")
    found = _serving(getattr(app, "routes", None), path_below_root(outer), method, DEPTH)
    return found[1] if found is not None and found[0].endpoint is endpoint else None


def _included_path(scope: Mapping[str, Any], route: object) -> str | None:
    # FastAPI >= 0.137 leaves the prefix of an included router out of the route itself
    fastapi_scope = scope.get("fastapi")
    if fastapi_scope is None:
        return None
    if type(fastapi_scope) is not dict and not isinstance(fastapi_scope, Mapping):
        return None
    context = fastapi_scope.get("effective_route_context")
    if getattr(context, "original_route", None) is not route:
        return None
    path = getattr(context, "path", None)
    return path if isinstance(path, str) else None


def _mount_prefix(scope: Mapping[str, Any], app: object) -> str:
    root = scope.get("root_path") or ""
    own = scope.get("app_root_path") or ""
    prefix = root.removeprefix(own)
    if "app_root_path" not in scope or not prefix:
        return ""
    mounted = _mounted(getattr(app, "routes", None), prefix, DEPTH)
    if mounted is not None:
        return mounted
    # mounted by something that does not say: by the values, which a client may make alike
    names = {str(value): name for name, value in (scope.get("path_params") or {}).items()}
    return "/".join(
        f"{{{names[segment]}}}" if segment in names else segment for segment in prefix.split("/")
    )


def _mounted(routes: Any, prefix: str, depth: int) -> str | None:
    """Spell the prefix of a mounted application as its mounts do; None if none leads there."""
    if not prefix.strip("/"):
        return ""
    for route in _flat(routes, depth):
        pattern, path = getattr(route, "path_regex", None), getattr(route, "path", None)
        if pattern is None or not isinstance(path, str) or getattr(route, "endpoint", None):
            continue
        match = pattern.match(prefix.rstrip("/") + "/")
        if match is None:
            continue
        rest = match.groupdict().get("path") or ""
        below = _mounted(getattr(route, "routes", None), f"/{rest}".rstrip("/"), depth - 1)
        if below is not None:
            return _CONVERTOR.sub("}", path) + below
    return None


@dataclass(frozen=True, slots=True)
class ForeseenRoute:
    """The route that would have served a request which middleware has answered.

    Attributes:
        path: Its template, with the prefixes of routers and mounted applications.
        openapi_extra: What it says about itself.
    """

    path: str
    openapi_extra: object = None


def foresee(scope: Mapping[str, Any], app: object) -> MutableMapping[str, Any] | None:
    """Return the route that a request would have had, if it has not reached the router.

    Args:
        scope: The ASGI scope as the server made it.
        app: The application.

    Returns:
        A copy of the scope with the route, its endpoint and the path's parameters; None if no
        route would have served it.
    """
    method = None if scope.get("type") == "websocket" else scope.get("method")
    found = _serving(getattr(app, "routes", None), path_below_root(scope), method, DEPTH)
    if found is None:
        return None
    route, template, parameters = found
    return {
        **scope,
        "route": ForeseenRoute(template, getattr(route, "openapi_extra", None)),
        "endpoint": route.endpoint,
        "path_params": {**(scope.get("path_params") or {}), **parameters},
    }


_Serving = tuple[Any, str, dict[str, str]]


def _serving(routes: Any, path: str, method: object, depth: int) -> _Serving | None:
    """Find the first route that serves a method at a path; else the first at that path."""
    other: _Serving | None = None
    for route in _flat(routes, depth):
        pattern, template = getattr(route, "path_regex", None), getattr(route, "path", None)
        if pattern is None or not isinstance(template, str):
            continue
        match = pattern.match(path)
        if match is None:
            continue
        parameters = match.groupdict()
        if callable(getattr(route, "endpoint", None)):
            methods = getattr(route, "methods", None)
            if (method is None) is not (methods is None):
                continue  # a socket's route, and no socket; or the other way round
            found = route, template, parameters
            if methods is None or method in methods:
                return found
            other = other or found
        else:
            rest = parameters.pop("path", None) or ""
            below = _serving(getattr(route, "routes", None), f"/{rest}", method, depth - 1)
            if below is not None:
                prefix = _CONVERTOR.sub("}", template)
                return below[0], prefix + below[1], {**parameters, **below[2]}
    return other


def _flat(routes: Any, depth: int) -> Iterator[Any]:
    """List routes, those of included routers among them."""
    for route in routes if routes and depth > 0 else ():
        included = getattr(route, "effective_route_contexts", None)
        if callable(included):  # FastAPI >= 0.137 keeps included routers apart
            yield from _flat(included(), depth - 1)
        else:
            yield getattr(route, "starlette_route", None) or route
