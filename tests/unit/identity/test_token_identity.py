"""A token's actor and tenant, found once, are those that all the resolvers would find."""

from __future__ import annotations

import math
from typing import Any

import pytest

from otel_audit.config import AuditConfig
from otel_audit.identity.actor import ActorOptions, Bearer, resolve_actor
from otel_audit.identity.jwt import DecodedToken
from otel_audit.identity.redact_identity import shown_actor, shown_tenant
from otel_audit.identity.tenant import TenantOptions, resolve_tenant
from otel_audit.identity.token_identity import TokenIdentities
from otel_audit.record import Actor, Tenant
from otel_audit.redaction import Redactor
from otel_audit.scope import AuditScope

REDACTOR = Redactor()
SECRET = "ghp_" + "a1B2" * 9
PLAIN: dict[str, Any] = {"sub": "user-1", "actor_type": "clerk", "tenant_id": "acme"}
SETTINGS: dict[str, Any] = {
    "jwt_key": "k" * 32, "jwt_algorithms": "HS256", "jwt_tenant_claim": "tenant_id",
}  # fmt: skip


def ask(
    claims: dict[str, Any],
    *,
    verified: bool = True,
    asgi: dict[str, Any] | None = None,
    audit: AuditScope | None = None,
    is_on: bool = True,
    **settings: Any,
) -> tuple[Any, tuple[Actor, Tenant | None]]:
    """Return what is found at once, and what the resolvers find."""
    config = AuditConfig(**SETTINGS, **settings)
    actors, tenants = ActorOptions.from_config(config), TenantOptions.from_config(config)
    scope = {"headers": [], "state": {"request_id": "r"}, **(asgi or {})}
    bearer = Bearer(DecodedToken(claims, None, math.inf, verified=verified))
    audit = audit or AuditScope()
    identities = TokenIdentities(actors, tenants, REDACTOR, is_on=is_on)
    found = [identities.read(scope, audit, bearer) for _ in range(2)]
    assert found[0] is found[1]
    tenant = resolve_tenant(scope, audit, bearer.claims, tenants)
    actor = resolve_actor(scope, audit, actors, bearer)
    return found[0], (shown_actor(actor, REDACTOR), shown_tenant(tenant, REDACTOR))


@pytest.mark.parametrize(
    "claims", [PLAIN, {"sub": "user-1"}, {"sub": SECRET}, {**PLAIN, "email": "a@shop.example"}]
)
def test_it_is_what_the_resolvers_find(claims: dict[str, Any]) -> None:
    """With a tenant and without; what looks like a secret is taken out."""
    found, expected = ask(claims)
    assert found == expected


def test_it_has_the_canonical_role() -> None:
    """An alias of the application's for a role is read here as anywhere."""
    found, expected = ask(PLAIN, actor_type_aliases={"clerk": "agent"})
    assert found == expected
    assert found[0].role == "agent"


@pytest.mark.parametrize(
    "given",
    [
        {"verified": False},
        {"is_on": False},
        {"asgi": {"user": object()}},
        {"asgi": {"state": None}},
        {"asgi": {"state": {"user": "ann"}}},
        {"asgi": {"state": {"tenant": "other"}}},
        {"asgi": {"state": {"tenant_id": "other"}}},
        {"audit": AuditScope(actor=Actor(id="ann", type="user"))},
        {"audit": AuditScope(tenant=Tenant(id="other"))},
        {"tenant_order": ("header", "jwt"), "tenant_header": "x-tenant"},
        {"actor_order": ("session", "jwt"), "actor_session_key": "who"},
    ],
)
def test_others_are_asked_where_they_have_a_say(given: dict[str, Any]) -> None:
    """Whoever may know better than the token, or at the same time, keeps his say."""
    found, _ = ask(PLAIN, **given)
    assert found is None


@pytest.mark.parametrize("claims", [{"tenant_id": "acme"}, {**PLAIN, "tenant_id": SECRET}])
def test_what_is_reported_is_left_to_the_resolvers(claims: dict[str, Any]) -> None:
    """A token that names nobody, or a tenant that is withheld, is reported each time."""
    found, _ = ask(claims)
    assert found is None
