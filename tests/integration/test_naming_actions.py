"""What real requests are called, whom they name, and how they ended."""

from __future__ import annotations

import base64
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse
from jose import jwt

from otel_audit import AuditConfig
from otel_audit.testing import recorded

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_audit.record import AuditRecord

SECRET = "k" * 48


def token(subject: str, **claims: Any) -> str:
    return jwt.encode({"sub": subject, "exp": time.time() + 900, **claims}, SECRET, "HS256")


def an_app() -> FastAPI:  # noqa: C901 - one for each route
    app, orders, shop = FastAPI(), APIRouter(prefix="/orders"), FastAPI()

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[..., Any]) -> Any:
        if "x-deny" in request.headers:
            return JSONResponse({}, int(request.headers["x-deny"]))
        return await call_next(request)

    @app.post("/login/access-token")
    @app.post("/auth/access_token")
    @app.post("/token")
    async def login(request: Request) -> Any:
        if b"right" not in await request.body():
            raise HTTPException(401)
        answer = JSONResponse({"access_token": request.headers.get("x-answer", "opaque")})
        if "x-cookie" in request.headers:
            answer.set_cookie("session", request.headers["x-cookie"])
        return answer

    @app.post("/password-recovery/{email}")
    def recover(email: str) -> None: ...

    @app.post("/logout")
    @app.post("/forgot-password")
    @app.post("/mfa/verify")
    @app.post("/mfa/enable")
    @app.patch("/users/me")
    @app.patch("/me")
    @app.put("/teams/current")
    async def anything(request: Request) -> None:
        await request.body()

    @app.delete("/tokens/{token_id}")
    def revoke(token_id: str) -> None: ...

    @app.post("/verify/{token}")
    def verify(token: str) -> None: ...

    @orders.put("/{slug}")
    def change(slug: str) -> None: ...

    @shop.put("/items/{item}")
    def item(item: str) -> None: ...

    @app.post("/old")
    def moved() -> Any:
        return RedirectResponse("/new")

    @app.post("/done")
    def done() -> Any:
        return RedirectResponse("/thanks", 303)

    app.include_router(orders, prefix="/api/v1")
    app.mount("/shops/{shop}", shop)
    return app


async def record_of(method: str, path: str, sent: dict[str, Any], **settings: Any) -> AuditRecord:
    config = AuditConfig(
        exporter="none", jwt_key=SECRET, jwt_algorithms=("HS256",), **settings
    )  # fmt: skip
    app = an_app()
    with recorded(app, config=config) as records:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            await client.request(method, path, **sent)
    (one,) = records
    return one


class TestWhom:
    @pytest.mark.parametrize("path", ["/login/access-token", "/auth/access_token", "/token"])
    @pytest.mark.parametrize("body", [
        {"data": {"username": "ann", "password": "right"}},
        {"json": {"username": "ann", "password": "right"}},
        {"json": {"user": {"email": "ann", "password": "right"}}},
    ])  # fmt: skip
    async def test_a_login_names_who_wants_in(self, path: str, body: dict[str, Any]) -> None:
        """Form or JSON, nested or not: the target is the user whose name was given."""
        found = await record_of("POST", path, body)
        assert (found.event_name, found.action, found.outcome) == ("user.logged_in", "LOGIN", "success")  # fmt: skip
        assert found.target is not None
        assert (found.target.type, found.target.id) == ("user", "ann")
        assert "right" not in str(found)

    async def test_a_failed_login_names_whom_too(self) -> None:
        """Who was tried is what a reader looks for; so is the user of Basic credentials."""
        found = await record_of("POST", "/token", {"json": {"username": "ann", "password": "no"}})
        assert (found.outcome, found.entities) == ("failure", ("user:ann",))
        basic = base64.b64encode(b"ann:secret-word").decode()
        found = await record_of("POST", "/token", {"headers": {"authorization": f"Basic {basic}"}})
        assert (found.outcome, found.entities) == ("failure", ("user:ann",))

    @pytest.mark.parametrize("header", ["x-answer", "x-cookie"])
    async def test_a_verified_token_in_the_answer_names_whom(self, header: str) -> None:
        """The id that the user's later actions have is worth more than the name that was typed."""
        sent = {"json": {"username": "ann", "password": "right"}, "headers": {header: token("u-7")}}
        found = await record_of("POST", "/token", sent)
        assert found.entities == ("user:u-7",)
        assert found.metadata["audit.login_name"] == "ann"
        sent["headers"][header] = jwt.encode({"sub": "u-8", "exp": 1e10}, "other" * 9, "HS256")
        forged = await record_of("POST", "/token", sent)
        assert forged.entities == ("user:ann",)
        assert "audit.login_name" not in forged.metadata

    @pytest.mark.parametrize("body", [
        {"grant_type": "refresh_token", "client_id": "web", "refresh_token": "right"},
        {"grant_type": "authorization_code", "code": "right"},
    ])  # fmt: skip
    async def test_where_only_a_client_is_named_the_token_says_who(self, body: Any) -> None:
        """A client asks for its user: whose token it is stands in the answer alone."""
        sent = {"data": body, "headers": {"x-answer": token("u-7")}}
        found = await record_of("POST", "/token", sent)
        assert found.entities == ("user:u-7",)
        assert "audit.login_name" not in found.metadata

    async def test_names_that_a_rule_takes_out_are_not_shown(self) -> None:
        """Redaction comes first: what is no name to be kept is not kept as a target either."""
        sent = {"json": {"email": "ann@example.com", "password": "right"}}
        assert (await record_of("POST", "/token", sent)).entities == ("user:ann@example.com",)
        found = await record_of("POST", "/token", sent, redact_emails=True)
        assert "ann@example.com" not in str(found)

    @pytest.mark.parametrize(
        ("path", "event", "who"),
        [
            ("/logout", "user.logged_out", "me"),
            ("/mfa/enable", "user.mfa_enabled", "me"),
            ("/mfa/verify", "user.mfa_verified", "me"),
            ("/forgot-password", "user.password_reset_requested", "ann"),
            ("/password-recovery/ann", "user.password_reset_requested", "ann"),
        ],
    )
    async def test_other_things_done_with_an_account(self, path: str, event: str, who: str) -> None:
        """Who is logged in does it for himself; who is not is named in the request."""
        sent: dict[str, Any] = {"headers": {"authorization": f"Bearer {token('me')}"}}
        if who == "ann":
            sent["json"] = {"email": "ann"}
        found = await record_of("POST", path, sent)
        assert (found.event_name, found.entities) == (event, (f"user:{who}",))

    @pytest.mark.parametrize(("method", "path", "entities"), [
        ("PATCH", "/users/me", ("user:me",)), ("PATCH", "/me", ("user:me",)),
        ("PUT", "/teams/current", ()),
    ])  # fmt: skip
    async def test_me_is_who_acts(self, method: str, path: str, entities: tuple[str, ...]) -> None:
        """Of people that is the actor; a current team is not."""
        sent = {"headers": {"authorization": f"Bearer {token('me')}"}}
        assert (await record_of(method, path, sent)).entities == entities


class TestTargets:
    async def test_the_id_of_a_token_is_no_token(self) -> None:
        """It is shown; a token itself is not."""
        assert (await record_of("DELETE", "/tokens/t-1", {})).entities == ("token:t-1",)
        assert "s3cr3t" not in str(await record_of("POST", "/verify/s3cr3t", {}))

    @pytest.mark.parametrize(("method", "path", "route", "event", "entity"), [
        ("PUT", "/api/v1/orders/my-page", "/api/v1/orders/{slug}", "order.updated", "order:my-page"),
        ("PUT", "/shops/acme/items/blue", "/shops/{shop}/items/{item}", "item.updated", "item:blue"),
        ("DELETE", "/tokens/t1", "/tokens/{token_id}", "token.deleted", "token:t1"),
        ("POST", "/api/v1/orders/my-page", "/api/v1/orders/{slug}", "order.updated", "order:my-page"),
    ])  # fmt: skip
    async def test_what_middleware_denies_has_its_route(
        self, method: str, path: str, route: str, event: str, entity: str
    ) -> None:
        """The router never saw it; name and target are those that it would have had."""
        found = await record_of(method, path, {"headers": {"x-deny": "401"}})
        assert found.request is not None
        assert (found.request.route, found.event_name) == (route, event)
        assert (found.entities, found.outcome) == ((entity,), "failure")

    async def test_a_secret_in_the_path_is_known_by_the_route_that_was_not_reached(self) -> None:
        """A denied request's one-time token stays out of the record like any other's."""
        found = await record_of("POST", "/verify/hunter2", {"headers": {"x-deny": "403"}})
        assert "hunter2" not in str(found)

    async def test_what_no_route_would_serve_is_named_by_its_path(self) -> None:
        """There is nothing better."""
        found = await record_of("POST", "/nowhere/7", {"headers": {"x-deny": "401"}})
        assert found.request is not None
        assert (found.request.route, found.event_name) == (None, "nowhere.updated")


class TestRedirections:
    async def test_what_nothing_has_served_was_not_done(self) -> None:
        """A redirect to the right spelling of the path: the action is that of the next request."""
        found = await record_of("PUT", "/api/v1/orders/7/", {})
        assert (found.event_name, found.outcome, found.entities) == ("http.redirected", "unknown", ())  # fmt: skip

    @pytest.mark.parametrize("status", ["302", "307"])
    async def test_middleware_that_sends_elsewhere_has_done_nothing(self, status: str) -> None:
        """To a login page, or to HTTPS."""
        found = await record_of("PUT", "/api/v1/orders/7", {"headers": {"x-deny": status}})
        assert (found.event_name, found.outcome) == ("http.redirected", "unknown")

    async def test_a_handler_that_has_the_client_repeat_a_write_has_not_done_it(self) -> None:
        """307 says: the same request, there."""
        found = await record_of("POST", "/old", {})
        assert (found.event_name, found.outcome) == ("old.created", "unknown")

    async def test_a_handler_that_redirects_when_it_is_done_has_succeeded(self) -> None:
        """As forms do."""
        assert (await record_of("POST", "/done", {})).outcome == "success"
