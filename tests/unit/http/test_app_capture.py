from __future__ import annotations

from typing import Any

import httpx
import pytest
from asgi_app import Kept
from fastapi import BackgroundTasks, FastAPI
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

import otel_audit
from otel_audit import AuditConfig, audit_route
from otel_audit.http import install
from otel_audit.runtime import Runtime


@pytest.fixture
def tap():
    """Put taps into an application; give the recorder that they report to."""
    tapped: list[Any] = []

    def put(app: Any, **settings: Any) -> Kept:
        kept = Kept()
        install.install(app, Runtime(AuditConfig(exporter="none", **settings), kept))
        tapped.append(app)
        return kept

    yield put
    for app in tapped:
        install.uninstall(app)


async def get(app: Any, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        return await client.get(path)


def add_report(app: FastAPI, path: str = "/reports/{report_id}", **options: Any) -> None:
    @app.get(path, **options)
    @audit_route("report.downloaded", level="request_response")
    async def report(report_id: int) -> dict[str, int]:
        return {"id": report_id}


class TestRoutesOwnLevels:
    async def test_a_body_that_only_the_route_wants_is_copied(self, tap):
        """A read is not recorded by default; this one says that its answer is."""
        app = FastAPI()
        add_report(app)
        kept = tap(app)
        await get(app, "/reports/7")
        assert kept.record.event_name == "report.downloaded"
        assert kept.record.response.body.text == '{"id":7}'

    async def test_so_does_one_that_says_it_in_openapi(self, tap):
        """The extension x-audit is read as the decorator is."""
        app = FastAPI()

        @app.get("/reports/{report_id}", openapi_extra={"x-audit": {"level": "request_response"}})
        async def report(report_id: int) -> dict[str, int]:
            return {"id": report_id}

        kept = tap(app)
        await get(app, "/reports/7")
        assert kept.record.response.body.text == '{"id":7}'

    async def test_one_that_is_added_later_is_known_too(self, tap):
        """An application may add routes as it starts, when the stack has long been built."""
        app = FastAPI()
        kept = tap(app)
        await get(app, "/nothing")
        add_report(app)
        await get(app, "/reports/7")
        assert kept.record.response.body.text == '{"id":7}'

    async def test_one_that_nobody_could_know_says_that_its_body_was_not_copied(self, tap):
        """A route inside of something opaque is recorded at its level, and the gap is named."""
        inner = FastAPI()
        add_report(inner)

        async def opaque(scope: Any, receive: Any, send: Any) -> None:
            await inner(scope, receive, send)

        app = FastAPI()
        app.mount("/hidden", opaque)
        kept = tap(app)
        await get(app, "/hidden/reports/7")
        assert kept.record.level == "request_response"
        assert kept.record.response.body.absent == "not_copied"

    async def test_a_route_that_wants_none_leaves_none(self, tap):
        """A write may say that it is not worth a record."""
        app = FastAPI()

        @app.post("/ping")
        @audit_route(level="none")
        async def ping() -> None: ...

        kept = tap(app)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            await client.post("/ping")
        assert "closed" not in kept.kinds


class TestOneRecord:
    async def test_a_mounted_application_makes_one(self, tap):
        """Both have taps; the outer ones record, with the inner one's route."""
        inner = FastAPI()
        add_report(inner)
        app = FastAPI()
        app.mount("/v1", inner)
        silent, kept = tap(inner), tap(app)
        await get(app, "/v1/reports/7")
        assert silent.frames == []
        assert kept.record.request.route == "/v1/reports/{report_id}"
        assert kept.record.target.id == "7"

    async def test_so_does_one_of_starlettes_mounts(self, tap):
        """Routes below a mount are routes."""

        async def create(request: Any) -> JSONResponse:
            return JSONResponse({"id": 1}, status_code=201)

        app = Starlette(routes=[Mount("/v1", routes=[Route("/orders", create, methods=["POST"])])])
        kept = tap(app)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            await client.post("/v1/orders", json={"item": "tea"})
        assert kept.record.request.route == "/v1/orders"
        assert kept.record.response.body.text == '{"id":1}'

    async def test_what_a_background_task_adds_belongs_to_the_action(self, tap):
        """The record is made when the task is done, not when the client has its answer."""
        app = FastAPI()

        def afterwards() -> None:
            otel_audit.add_metadata(mailed=True)

        @app.post("/orders")
        async def create(tasks: BackgroundTasks) -> None:
            tasks.add_task(afterwards)

        kept = tap(app)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            await client.post("/orders")
        (answered,) = kept.all("answered")
        assert answered.metadata == {}
        assert kept.record.metadata == {"mailed": True}
