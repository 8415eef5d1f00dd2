"""An HTTP client of the shop that notes what it sent and what an auditor must find of it."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field
from typing import Any

import httpx
from jose import jwt

SENSITIVE_PATHS = ("/customers", "/orders/export.csv", "/tenants")
"""Reads of these are recorded too."""

_DENIED = (401, 403)
_PATIENCE = 200


def make_http(url: str) -> httpx.AsyncClient:
    """A connection for each request: uvicorn resets one on which the application has failed."""
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=url, limits=limits, timeout=20, trust_env=False)


@dataclass(frozen=True)
class Person:
    """Somebody who is logged in."""

    email: str
    id: str
    tenant_id: str | None
    token: str


@dataclass(frozen=True)
class Sent:
    """A request that was answered.

    Attributes:
        request_id: Sent along in ``X-Request-ID``; finds the row.
        label: Its place in the story, None for ordinary traffic.
        actor_id, tenant_id: What the row must name.
        kept: Whether the database kept what the answer promised.
    """

    request_id: str
    method: str
    path: str
    status: int
    label: str | None
    actor_id: str
    tenant_id: str | None
    kept: bool

    @property
    def audited(self) -> bool:
        """Whether the default policy records it."""
        return (
            self.method != "GET"
            or self.status in _DENIED
            or self.status >= 500
            or self.path.startswith(SENSITIVE_PATHS)
        )

    @property
    def outcome(self) -> str:
        return "success" if self.kept and self.status < 400 else "failure"


@dataclass
class ShopClient:
    """Calls the shop."""

    http: httpx.AsyncClient
    sent: list[Sent] = field(default_factory=list)

    async def call(  # noqa: PLR0913 - what makes a request, and what is to be found of it
        self,
        person: Person | None,
        method: str,
        path: str,
        *,
        json: Any = None,
        label: str | None = None,
        token: str | None = None,
        kept: bool = True,
    ) -> httpx.Response:
        """Send a request.

        Args:
            person: Who is calling, None for nobody in particular.
            method: HTTP method.
            path: Path.
            json: Body.
            label: Place in the story.
            token: Another token than the person's own, such as a forged one.
            kept: Whether the database will keep what the answer says.
        """
        request_id = uuid.uuid4().hex
        headers = {"X-Request-ID": request_id}
        bearer = token or (person.token if person else None)
        if bearer:
            headers["Authorization"] = f"Bearer {bearer}"
        response = await self.http.request(method, path, json=json, headers=headers)
        self.sent.append(
            Sent(
                request_id=request_id,
                method=method,
                path=path,
                status=response.status_code,
                label=label,
                actor_id=person.id if person else "anonymous",
                tenant_id=person.tenant_id if person else None,
                kept=kept,
            )
        )
        return response

    async def log_in(self, email: str, password: str, label: str | None = None) -> Person:
        response = await self.call(
            None, "POST", "/login", json={"email": email, "password": password}, label=label
        )
        token = response.raise_for_status().json()["access_token"]
        claims = jwt.get_unverified_claims(token)
        return Person(email, claims["sub"], claims.get("tenant_id"), token)

    async def order(
        self,
        person: Person,
        customer_id: int,
        lines: dict[int, int],
        *,
        note: str | None = None,
        label: str | None = None,
    ) -> int:
        """Place an order of ``{product id: quantity}``; return its number once it is visible."""
        body = {
            "customer_id": customer_id,
            "lines": [{"product_id": key, "quantity": count} for key, count in lines.items()],
            "note": note,
        }
        response = await self.call(person, "POST", "/orders", json=body, label=label)
        order_id: int = response.raise_for_status().json()["id"]
        # the shop commits after it has answered, so its answer may be early
        for _ in range(_PATIENCE):
            seen = await self.call(person, "GET", f"/orders/{order_id}")
            if seen.status_code != 404:
                break
            await asyncio.sleep(0.01)
        return order_id

    async def pay(
        self, person: Person, order_id: int, card: str, label: str | None = None
    ) -> httpx.Response:
        body = {"card": {"number": card, "expires": "11/29", "cvc": "737"}}
        return await self.call(person, "POST", f"/orders/{order_id}/pay", json=body, label=label)
