from __future__ import annotations

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from otel_audit.http.routes import foresee, route_template


def an_app() -> FastAPI:
    app, sub, orders, api = FastAPI(), FastAPI(), APIRouter(prefix="/orders"), APIRouter()

    @orders.post("/{order_id}/refund")
    def refund(order_id: int) -> None: ...

    @app.get("/plain/{x}")
    def plain(x: str) -> None: ...

    @app.get("/numbered/{n:int}")
    def numbered(n: int) -> None: ...

    @sub.get("/s/{y}")
    def deep(y: str) -> None: ...

    api.include_router(orders)
    app.include_router(api, prefix="/api/v1")
    app.mount("/sub/{z}", sub)
    return app


def a_starlette() -> Starlette:
    async def answer(request: object) -> PlainTextResponse:
        return PlainTextResponse("")

    return Starlette(
        routes=[
            Route("/plain/{x}", answer),
            Mount("/files/{area}", routes=[Route("/{name}", answer)]),
        ]
    )


async def template_of(app: object, method: str, path: str) -> str | None:
    seen = {}

    async def watched(scope, receive, send):
        seen["scope"] = scope
        await app(scope, receive, send)

    transport = httpx.ASGITransport(app=watched)
    async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        await client.request(method, path)
    return route_template(seen["scope"])


ROUTES = [
    (an_app, "GET", "/plain/4", "/plain/{x}"),
    (an_app, "GET", "/numbered/4", "/numbered/{n:int}"),
    (an_app, "POST", "/api/v1/orders/3/refund", "/api/v1/orders/{order_id}/refund"),
    (an_app, "GET", "/sub/1/s/2", "/sub/{z}/s/{y}"),
    (an_app, "GET", "/nowhere", None),
    (a_starlette, "GET", "/plain/4", "/plain/{x}"),
    (a_starlette, "GET", "/files/docs/a.txt", "/files/{area}/{name}"),
    (a_starlette, "GET", "/nowhere", None),
]
"""Application, method and path, and the route's template."""


class TestRouteTemplate:
    @pytest.mark.parametrize(("build", "method", "path", "expected"), ROUTES)
    async def test_it_is_the_whole_template(self, build, method, path, expected):
        """Prefixes of routers and mounts belong to the template."""
        assert await template_of(build(), method, path) == expected


class TestForesee:
    @pytest.mark.parametrize(
        ("build", "method", "path", "expected"),
        [*ROUTES, (an_app, "DELETE", "/plain/4", "/plain/{x}")],
    )
    def test_it_is_what_the_router_would_find(self, build, method, path, expected):
        """Without running anything, as the request may have been denied before."""
        app = build()
        found = foresee({"type": "http", "method": method, "path": path}, app)
        assert (found and route_template(found, app)) == expected

    def test_a_socket_has_a_sockets_route(self):
        """Where both are at one path, the kind of the connection decides."""
        app = FastAPI()

        @app.get("/feed/{page}")
        def page(page: int) -> None: ...

        @app.websocket("/feed/{room}")
        async def room(room: int) -> None: ...

        found = foresee({"type": "websocket", "path": "/feed/3"}, app)
        assert found is not None
        assert found["path_params"] == {"room": "3"}
