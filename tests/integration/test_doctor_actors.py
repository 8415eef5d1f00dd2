"""`otel-audit doctor` says how many records have no actor, and what to set."""

from __future__ import annotations

import asyncio
import json

import httpx
import msgspec
import pytest
from click.testing import CliRunner
from fastapi import FastAPI

from otel_audit import AuditConfig, AuditRecord
from otel_audit.cli.main import cli
from otel_audit.testing import recorded
from otel_audit.testing.store import AuditStore

BEARER = {"Authorization": "Bearer not-checked"}


async def orders(headers: dict[str, str], number: int) -> list[AuditRecord]:
    """Records of an application that takes orders."""
    app = FastAPI()

    @app.post("/orders")
    def order() -> None: ...

    with recorded(app, config=AuditConfig(exporter="none")) as found:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            for _ in range(number):
                await client.post("/orders", headers=headers)
    return [msgspec.structs.replace(one, resource={"service.name": "shop"}) for one in found]


def actors_check(dsn: str) -> dict[str, object]:
    done = CliRunner().invoke(cli, ["doctor", "--json", "--dsn", dsn])
    (check,) = [one for one in json.loads(done.stdout) if one["name"] == "actors"]
    return dict(check)


@pytest.fixture(autouse=True)
def _named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")


async def test_a_share_of_nobody_names_the_setting(audit_store):
    """Most have a token that nothing checks: a warning, with how many, and the setting."""
    empty = await asyncio.to_thread(actors_check, audit_store)
    assert (empty["ok"], empty["detail"]) == (True, "service shop: no records yet")
    records = [*await orders(BEARER, 27), *await orders({}, 3)]
    await asyncio.to_thread(AuditStore(audit_store).write, records)
    check = await asyncio.to_thread(actors_check, audit_store)
    assert check["ok"] is None
    assert "100 % of the last 30 records of this service are anonymous" in str(check["detail"])
    assert "bearer_not_checked" in str(check["detail"])
    assert "OTEL_AUDIT_JWT_JWKS_URL" in str(check["remedy"])


async def test_a_few_say_nothing(audit_store):
    """Too few to be a share of anything."""
    records = await orders(BEARER, 2)
    await asyncio.to_thread(AuditStore(audit_store).write, records)
    check = await asyncio.to_thread(actors_check, audit_store)
    assert (check["ok"], check["remedy"]) == (True, "")
    assert "not enough records yet to judge: 2" in str(check["detail"])
