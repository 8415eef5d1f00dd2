"""The shop on a database of its own, and people who have logged in."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from starlette.testclient import TestClient

from otel_audit import AuditConfig

JWT_KEY = "a key of the shop's tests, for HS256"
PASSWORD = "a-password-of-the-clerk"
PEOPLE = {
    "platform": ("root@shop.example", "platform_admin", None),
    "admin": ("ada@acme.example", "tenant_admin", "acme"),
    "user": ("uma@acme.example", "tenant_user", "acme"),
}


@pytest.fixture(scope="session")
def shop(audit_server: Any) -> Iterator[TestClient]:
    from demo.shop.seed import NewUser, seed

    people = [NewUser(email, PASSWORD, role, tenant) for email, role, tenant in PEOPLE.values()]
    with audit_server.database(template="template1") as dsn, pytest.MonkeyPatch.context() as patch:
        url = dsn.replace("postgresql://", "postgresql+asyncpg://")
        patch.setitem(os.environ, "SHOP_DATABASE_URL", url)
        patch.setitem(os.environ, "SHOP_JWT_KEY", JWT_KEY)

        async def fill() -> None:
            engine = create_async_engine(url, poolclass=NullPool)
            await seed(engine, people)
            await engine.dispose()

        asyncio.run(fill())
        from demo.shop.app import app

        with TestClient(app, raise_server_exceptions=False) as client:
            yield client


@pytest.fixture
def audit_config() -> AuditConfig:
    return AuditConfig(exporter="none", jwt_key=JWT_KEY, jwt_algorithms=["HS256"])


class Person:
    """Calls the shop as somebody."""

    def __init__(self, client: TestClient, email: str) -> None:
        answer = client.post("/login", json={"email": email, "password": PASSWORD})
        assert answer.status_code == 200
        self._client = client
        self._headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}

    def __call__(self, method: str, path: str, status: int = 200, **body: Any) -> Any:
        answer = self._client.request(method, path, headers=self._headers, json=body or None)
        assert answer.status_code == status, answer.text
        is_json = answer.headers.get("content-type") == "application/json"
        return answer.json() if is_json and answer.content else answer.text


def _person(name: str) -> Any:
    @pytest.fixture(name=name)
    def person(shop: TestClient, audit: Any) -> Person:
        found = Person(shop, PEOPLE[name][0])
        audit.clear()
        return found

    return person


platform, admin, user = _person("platform"), _person("admin"), _person("user")


@pytest.fixture
def order(user: Person, audit: Any) -> int:
    lines = [{"product_id": 1, "quantity": 1}]
    made = user("POST", "/orders", 201, customer_id=1, lines=lines)
    audit.clear()
    return made["id"]


@pytest.fixture
def paid(order: int, user: Person, audit: Any) -> int:
    card = {"number": "4000056655665556", "expires": "12/30", "cvc": "737"}
    user("POST", f"/orders/{order}/pay", card=card)
    audit.clear()
    return order
