"""Whatever way an application comes to its middleware stack, the taps stand in it."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from asgi_app import Kept
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from otel_audit import AuditConfig, InstrumentationError
from otel_audit.http import install
from otel_audit.runtime import Runtime


class Counted(Runtime):
    """A runtime that counts how often the server has come and gone."""

    def __init__(self, **settings: Any) -> None:
        self.kept = Kept()
        super().__init__(AuditConfig(exporter="none", enabled=True, **settings), self.kept)
        self.came = self.went = 0

    async def started(self) -> None:
        self.came += 1

    async def stopping(self) -> None:
        self.went += 1


@pytest.fixture(autouse=True)
def _leave_nothing():
    yield
    install.uninstall_all()


async def create(request: Any) -> JSONResponse:
    return JSONResponse({"id": 1, **await request.json()}, status_code=201)


ROUTES = [Route("/orders", create, methods=["POST"])]


class Deny:
    """Middleware that lets nobody in who has no badge, and hides what it calls."""

    def __init__(self, app: Any) -> None:
        self._inside = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and b"x-badge" not in dict(scope["headers"]):
            await JSONResponse({"detail": "no badge"}, 401)(scope, receive, send)
            return
        await self._inside(scope, receive, send)


class OwnStack(Starlette):
    """Builds its stack without asking the framework."""

    def build_middleware_stack(self) -> Any:
        return Deny(self.router)


class OwnStackOfPlainLayers(Starlette):
    def build_middleware_stack(self) -> Any:
        return ServerErrorMiddleware(GZipMiddleware(self.router, minimum_size=1))


class Enclosed(Starlette):
    """Puts something around what the framework builds."""

    def build_middleware_stack(self) -> Any:
        return Deny(super().build_middleware_stack())


class OwnCall(Starlette):
    """Answers before its stack is asked."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await Deny(super().__call__)(scope, receive, send)


class NoStack(Starlette):
    """Asks its router itself, without any stack."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope["app"] = self
        await self.router(scope, receive, send)


@dataclasses.dataclass
class Unhashable(FastAPI):
    """Applications of this class are equal to each other, and have no hash."""

    name: str = "shop"

    def __post_init__(self) -> None:
        FastAPI.__init__(self, routes=list(ROUTES))

    def build_middleware_stack(self) -> Any:
        return Deny(self.router)


def replaced() -> Starlette:
    """The method is replaced on the application itself."""
    app = Starlette(routes=list(ROUTES))
    app.build_middleware_stack = lambda: Deny(app.router)  # type: ignore[method-assign]
    return app


def limited() -> Starlette:
    """The framework's own layer that stands before all middleware of the application."""
    return Starlette(routes=list(ROUTES), max_body_size=5)


SHAPES: dict[str, Callable[[], Any]] = {
    "plain": lambda: Starlette(
        routes=list(ROUTES), middleware=[Middleware(GZipMiddleware, minimum_size=1)]
    ),
    "own stack": lambda: OwnStack(routes=list(ROUTES)),
    "own stack of plain layers": lambda: OwnStackOfPlainLayers(routes=list(ROUTES)),
    "enclosed": lambda: Enclosed(routes=list(ROUTES)),
    "own call": lambda: OwnCall(routes=list(ROUTES)),
    "no stack": lambda: NoStack(routes=list(ROUTES)),
    "replaced": replaced,
    "unhashable": Unhashable,
    "hidden middleware": lambda: Starlette(routes=list(ROUTES), middleware=[Middleware(Deny)]),
    "mounted": lambda: Starlette(routes=[Mount("/", OwnStack(routes=list(ROUTES)))]),
}
DENYING = ("own stack", "enclosed", "own call", "replaced", "unhashable", "hidden middleware")


async def post(app: Any, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        return await client.post("/orders", content=b'{"item":"tea"}', headers=headers)


async def live(app: Any) -> list[str]:
    """Start an application as a server does, and end it; give what it says."""
    told = iter(("lifespan.startup", "lifespan.shutdown"))
    said: list[str] = []

    async def receive() -> dict[str, str]:
        return {"type": next(told)}

    async def send(message: Any) -> None:
        said.append(message["type"])

    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    return said


def before(build: Callable[[], Any], capture: Runtime) -> Any:
    """Auditing begins before the application is made."""
    install.install_for_all(capture)
    return build()


def after(build: Callable[[], Any], capture: Runtime) -> Any:
    """Auditing begins after it is made."""
    app = build()
    install.install_for_all(capture)
    return app


def alone(build: Callable[[], Any], capture: Runtime) -> Any:
    """One application is audited."""
    app = build()
    install.install(app, capture)
    return app


ORDERS = [before, after, alone]


class TestShapes:
    @pytest.mark.parametrize("begin", ORDERS)
    @pytest.mark.parametrize("shape", SHAPES)
    async def test_a_request_is_one_record(self, shape, begin):
        """One request is one record, with its bodies as the handler has them."""
        plain = await post(SHAPES[shape](), **{"x-badge": "1"})
        runtime = Counted()
        app = begin(SHAPES[shape], runtime)
        answer = await post(app, **{"x-badge": "1"})
        assert (answer.status_code, answer.content) == (plain.status_code, plain.content)
        assert answer.headers.keys() - plain.headers.keys() == {"x-request-id"}
        record = runtime.kept.record
        assert record.response.status_code == 201
        assert record.request.body.text == '{"item":"tea"}'
        assert record.event_name == "order.created"

    @pytest.mark.parametrize("begin", ORDERS)
    @pytest.mark.parametrize("shape", DENYING)
    async def test_what_a_layer_of_its_own_denies_is_a_record(self, shape, begin):
        """Whoever is turned away before the handler leaves a record."""
        runtime = Counted()
        app = begin(SHAPES[shape], runtime)
        assert (await post(app)).status_code == 401
        assert runtime.kept.record.response.status_code == 401

    @pytest.mark.skipif(
        "max_body_size" not in inspect.signature(Starlette).parameters, reason="an older Starlette"
    )
    @pytest.mark.parametrize("begin", ORDERS)
    async def test_what_the_frameworks_own_limit_refuses_is_a_record(self, begin):
        """A body beyond the framework's limit is refused before any middleware is asked."""
        runtime = Counted()
        app = begin(limited, runtime)
        assert (await post(app)).status_code == 413
        assert runtime.kept.record.response.status_code == 413

    @pytest.mark.parametrize("begin", ORDERS)
    @pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"no stack"}))
    async def test_the_server_comes_and_goes_once(self, shape, begin):
        """However many taps there are, delivery is begun and ended once."""
        runtime = Counted()
        said = await live(begin(SHAPES[shape], runtime))
        assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert (runtime.came, runtime.went) == (1, 1)

    @pytest.mark.parametrize("shape", SHAPES)
    async def test_it_can_be_left(self, shape):
        """Without taps the application answers as it did, and nothing of ours is on it."""
        runtime = Counted()
        app = before(SHAPES[shape], runtime)
        await post(app, **{"x-badge": "1"})
        install.uninstall_all()
        assert "x-request-id" not in (await post(app, **{"x-badge": "1"})).headers
        assert len(runtime.kept.all("closed")) == 1


class WrapsUserMiddleware(Starlette):
    """Puts a layer of its own around the application's middleware, as FastAPI does."""

    def build_middleware_stack(self) -> Any:
        stack: Any = super().build_middleware_stack()
        stack.app = GZipMiddleware(stack.app)
        return stack


@pytest.mark.parametrize("kind", [FastAPI, Starlette, WrapsUserMiddleware])
def test_the_outer_tap_stands_once(kind):
    """Outside of a framework's own layers; one further inside would cost each request a step."""
    app = kind()
    install.install(app, Counted())
    app.middleware_stack = app.build_middleware_stack()
    names = [type(one).__name__ for one in install._chain(app.middleware_stack)]
    assert (names.count("OuterMiddleware"), names.count("InnerMiddleware")) == (1, 1)
    assert names.index("OuterMiddleware") == 1


class TestLater:
    async def test_a_stack_that_is_replaced_after_the_start(self):
        """What is put around the built stack stands inside of the taps."""
        runtime = Counted()
        install.install_for_all(runtime)
        app = Starlette(routes=list(ROUTES))
        await live(app)
        app.middleware_stack = Deny(app.middleware_stack)
        assert (await post(app)).status_code == 401
        assert (await post(app, **{"x-badge": "1"})).status_code == 201
        assert [one.response.status_code for one in runtime.kept.all("closed")] == [401, 201]

    @pytest.mark.parametrize("begin", ORDERS)
    async def test_a_method_that_is_replaced_after_auditing_began(self, begin):
        """Whoever replaces what we have wrapped replaces no audit."""
        runtime = Counted()
        app = begin(lambda: Starlette(routes=list(ROUTES)), runtime)
        app.build_middleware_stack = lambda: Deny(app.router)
        assert (await post(app)).status_code == 401
        assert runtime.kept.record.response.status_code == 401

    @pytest.mark.parametrize("begin", ORDERS)
    async def test_a_part_that_is_mounted_later(self, begin):
        """A part of the application with a stack of its own is audited once, by the whole."""
        runtime = Counted()
        app = begin(Starlette, runtime)
        await live(app)
        app.mount("/", Enclosed(routes=list(ROUTES)))
        assert (await post(app)).status_code == 401
        assert runtime.kept.record.response.status_code == 401

    async def test_a_stack_that_is_built_anew(self):
        """Middleware that is added to a started application, whose stack is then built anew."""
        runtime = Counted()
        install.install_for_all(runtime)
        app = Starlette(routes=list(ROUTES))
        await live(app)
        app.middleware_stack = None
        app.add_middleware(Deny)
        assert (await post(app)).status_code == 401
        assert runtime.kept.record.response.status_code == 401

    async def test_an_application_that_had_started_before(self):
        """One that stands already when auditing begins is audited from its next request on."""
        app = Starlette(routes=list(ROUTES))
        await post(app)
        runtime = Counted()
        install.install_for_all(runtime)
        await post(app)
        assert runtime.kept.record.event_name == "order.created"

    async def test_an_assigned_stack_is_there_again_when_left(self):
        """Taps are taken out of the stack; it is not built anew, as that would be another one."""
        runtime = Counted()
        install.install_for_all(runtime)
        app = Starlette(routes=list(ROUTES))
        own = GZipMiddleware(app.router)
        app.middleware_stack = own
        await post(app)
        install.uninstall_all()
        assert app.middleware_stack is own
        assert own.app is app.router


class TestRefusal:
    @pytest.mark.allow_errors
    @pytest.mark.parametrize("required", [True, False])
    async def test_what_can_have_no_taps_is_said_and_refused_if_required(self, required, caplog):
        """An application that cannot be observed says so once; with ``required`` it does not run."""

        class Frozen(Counted):
            def for_app(self, app: Any) -> Any:
                raise RuntimeError("no")

        class Shop(Starlette):
            pass

        install.install_for_all(Frozen(required=required))
        app = Shop(routes=list(ROUTES))
        with caplog.at_level(logging.CRITICAL):
            app.middleware_stack = app.router
            app.middleware_stack = app.router
        (line,) = [one for one in caplog.messages if "Shop" in one]
        assert line.startswith("THIS APPLICATION IS NOT AUDITED: our middleware")
        assert (await post(app)).status_code == (503 if required else 201)
        assert (await live(app))[0] == (
            "lifespan.startup.failed" if required else "lifespan.startup.complete"
        )

    def test_what_is_no_application_is_refused_at_once(self):
        """The error says what was expected."""
        with pytest.raises(InstrumentationError, match="expected a FastAPI or Starlette"):
            install.install(object(), Counted())
