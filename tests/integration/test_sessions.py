"""Starlette's SessionMiddleware and tokens in cookies name the actor by settings alone."""

from __future__ import annotations

import time

import httpx
from fastapi import FastAPI, Request, Response
from jose import jwt
from starlette.middleware.sessions import SessionMiddleware

from otel_audit import AuditConfig
from otel_audit.testing import recorded

SECRET = "a-shared-secret-of-some-length-0123456789"


def shop() -> FastAPI:
    """An application that knows nothing of auditing, with the session of its framework."""
    app = FastAPI()
    app.add_middleware(SessionMiddleware, secret_key="s" * 32)

    @app.post("/login")
    def login(request: Request) -> None:
        request.session["user_id"] = 17

    @app.post("/orders")
    def order() -> None: ...

    @app.post("/logout")
    def logout(request: Request) -> None:
        request.session.clear()

    @app.post("/token")
    def token(response: Response) -> None:
        made = jwt.encode({"sub": "u-1", "exp": time.time() + 60}, SECRET)
        response.set_cookie("access_token", made)

    return app


async def post(app: FastAPI, *paths: str) -> None:
    """Post to each path in turn, as one browser."""
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="https://shop") as browser:
        for path in paths:
            assert (await browser.post(path)).status_code == 200


async def test_a_session_names_who_logs_in_acts_and_logs_out():
    """All three, with one setting."""
    app, config = shop(), AuditConfig(exporter="none", actor_session_key="user_id")
    with recorded(app, config=config) as found:
        await post(app, "/login", "/orders", "/logout", "/orders")
    assert [one.actor.id for one in found] == ["17", "17", "17", "anonymous"]
    assert found[1].actor.verified
    assert found[3].actor.reason is None


async def test_without_the_setting_each_record_says_why_it_is_nobody():
    """Somebody is logged in, and the trail cannot tell who."""
    app = shop()
    with recorded(app, config=AuditConfig(exporter="none")) as found:
        await post(app, "/login", "/orders")
    assert [one.actor.reason for one in found] == ["session_not_read"] * 2


async def test_a_token_in_a_cookie_names_the_actor():
    """As single-page applications have it."""
    config = AuditConfig(
        exporter="none", jwt_key=SECRET, jwt_algorithms=("HS256",), jwt_cookie="access_token"
    )
    app = shop()
    with recorded(app, config=config) as found:
        await post(app, "/token", "/orders")
    assert (found[-1].actor.id, found[-1].actor.verified) == ("u-1", True)
