"""The routes of an application that tests must reach, one for each method."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from otel_audit.errors import ConfigurationError
from otel_audit.policy.routes import DEPTH, routes_of
from otel_audit.policy.rules import MARK, READS, Override

_OPAQUE: Final = "/{path:path}"
_DOCUMENTATION: Final = (
    "openapi_url", "docs_url", "redoc_url", "swagger_ui_oauth2_redirect_url",
)  # fmt: skip
EVERY: Final = "*"
"""Method of a mounted application that does not list its routes."""


@dataclass(frozen=True, slots=True, order=True)
class TestedRoute:
    """One method of one route.

    Attributes:
        path: The template, with the prefixes of routers and mounted applications.
        method: HTTP method, ``WEBSOCKET``, or ``*`` for a mounted application of unknown routes.
        override: What the route says about itself.
    """

    __test__ = False  # pytest: no class of tests

    path: str
    method: str
    override: Override | None = None

    @property
    def name(self) -> str:
        """The route as in the file of exceptions: ``POST /orders/{order_id}/refund``."""
        return f"{self.method} {self.path}"

    @property
    def may_write(self) -> bool:
        """Whether its actions must be recorded: everything but reads."""
        return self.method not in READS


def tested_routes(app: Any) -> list[TestedRoute]:
    """List what tests must reach: hidden routes, mounts and WebSockets, too.

    FastAPI's own pages about the application are left out, and the HEAD and OPTIONS that a
    framework adds to a route of another method.
    """
    documentation = set(_documentation(app, "", DEPTH))
    found: dict[tuple[str, str], TestedRoute] = {}
    for route in routes_of(app):
        methods = [m for m in route.methods if m not in ("HEAD", "OPTIONS")] or route.methods
        for method in methods:
            if method == "GET" and route.path in documentation:
                continue
            found.setdefault((route.path, method), TestedRoute(route.path, method, route.override))
    for path in _opaque(getattr(app, "routes", None) or (), "", DEPTH):
        found.setdefault((path, EVERY), TestedRoute(path, EVERY))
    return sorted(found.values(), key=lambda route: (route.path, route.method))


def route_of(
    routes: Iterable[TestedRoute], method: str, template: str | None, path: str | None
) -> TestedRoute | None:
    """Find the route that served a request; None if none of these did."""
    mounts = []
    for route in routes:
        if route.path == template and route.method == method:
            return route
        if route.method == EVERY:
            mounts.append(route)
    for route in sorted(mounts, key=lambda one: -len(one.path)):
        prefix = route.path.removesuffix(_OPAQUE)
        if path is not None and (path == prefix or path.startswith(f"{prefix}/")):
            return route
    return None


def load_app(name: str, root: Path | None = None) -> Any:
    """Import an application.

    Args:
        name: ``module:attribute``, such as ``shop.main:app``.
        root: Where modules are looked for, too.

    Raises:
        ConfigurationError: There is no such thing; the message says at which part it fails.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ConfigurationError(
            f'audit_app = "{name}": expected "module:attribute", as "shop:app"'
        )
    if root is not None and str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise ConfigurationError(
                f'audit_app = "{name}": there is no module {error.name}; looked in '
                f"{root or Path.cwd()} and on the path: see pytest's setting pythonpath"
            ) from error
        raise ConfigurationError(
            f'audit_app = "{name}": importing {module_name} fails: {error}'
        ) from error
    except Exception as error:
        raise ConfigurationError(
            f'audit_app = "{name}": importing {module_name} fails: {type(error).__name__}: {error}'
        ) from error
    for part in attribute.removesuffix("()").split("."):
        if not hasattr(found, part):
            raise ConfigurationError(f'audit_app = "{name}": {module_name} has no {part}')
        found = getattr(found, part)
    if attribute.endswith("()"):
        found = found()
    if not hasattr(found, "routes") or not hasattr(found, "build_middleware_stack"):
        raise ConfigurationError(
            f'audit_app = "{name}": expected a FastAPI or Starlette application, got '
            f'{type(found).__name__}; a factory is named with brackets: "shop:create_app()"'
        )
    return found


def _documentation(app: Any, prefix: str, depth: int) -> Iterator[str]:
    for name in _DOCUMENTATION:
        path = getattr(app, name, None)
        if isinstance(path, str):
            yield prefix + path
    for route in (getattr(app, "routes", None) or ()) if depth else ():
        inner = getattr(route, "app", None)
        if getattr(inner, "routes", None) is not None and hasattr(route, "path"):
            yield from _documentation(inner, prefix + route.path.rstrip("/"), depth - 1)


def _opaque(routes: Any, prefix: str, depth: int) -> Iterator[str]:
    """Name the mounted applications that do not list their routes."""
    for route in routes if depth else ():
        if not hasattr(route, "path") or hasattr(route, "endpoint") or hasattr(route, MARK):
            continue
        path = prefix + route.path.rstrip("/")
        inner = getattr(route, "routes", None)
        if inner:
            yield from _opaque(inner, path, depth - 1)
        elif hasattr(route, "app") and not _serves_files(route.app):
            yield path + _OPAQUE


def _serves_files(app: Any) -> bool:
    return any(kind.__name__ == "StaticFiles" for kind in type(app).__mro__)
