"""For whom: the order of the sources, and which of them a client can write."""

from __future__ import annotations

import unicodedata
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import State

from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError
from otel_audit.identity.tenant import TenantOptions, resolve_tenant
from otel_audit.record import Tenant
from otel_audit.scope import AuditScope


def resolve(
    *headers: tuple[bytes, bytes],
    scope: Any = None,
    audit: AuditScope | None = None,
    claims: Any = None,
    **settings: Any,
) -> Tenant | None:
    options = TenantOptions.from_config(AuditConfig(**settings))
    asgi = {"headers": list(headers), **(scope or {})}
    return resolve_tenant(asgi, audit or AuditScope(), claims, options)


FROM_CLIENT = TenantOptions(header="x-tenant", domain="x.y")


class TestTenantSources:
    def test_none(self) -> None:
        """Where nobody names one there is none."""
        assert resolve() is None

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ({"tenant_id": 7, "tenant_slug": "acme"}, Tenant(id="7", slug="acme")),
            ({"id": "t", "slug": "acme"}, Tenant(id="t", slug="acme")),
            (SimpleNamespace(id="t", slug="acme"), Tenant(id="t", slug="acme")),
            (SimpleNamespace(tenant_id="t"), Tenant(id="t")),
            (SimpleNamespace(slug="acme"), Tenant(id="acme", slug="acme")),
            ("t", Tenant(id="t")),
            (Tenant(id="t"), Tenant(id="t")),
            (SimpleNamespace(), None),
            (None, None),
        ],
    )
    def test_state(self, value: Any, expected: Tenant | None) -> None:
        """`request.state.tenant` may be an id, a mapping, or an object."""
        assert resolve(scope={"state": {"tenant": value}}) == expected

    @pytest.mark.allow_errors
    def test_a_state_that_cannot_be_read_hides_no_claim(self) -> None:
        """What a middleware has put in its place costs that source alone."""

        class Unreadable:
            @property
            def _state(self) -> Any:
                raise RuntimeError

        found = resolve(scope={"state": Unreadable()}, claims={"o": 7}, jwt_tenant_claim="o")
        assert found == Tenant(id="7")

    def test_state_by_parts(self) -> None:
        """`request.state.tenant_id` will do as well."""
        scope = {"state": {"tenant_id": "t", "tenant_slug": "acme"}}
        assert resolve(scope=scope) == Tenant(id="t", slug="acme")

    def test_claim(self) -> None:
        """A verified token's claims name it, nested ones by their path."""
        claims = {"org": {"id": 7}, "tenant_slug": "acme"}
        assert resolve(claims=claims, jwt_tenant_claim="org.id") == Tenant(id="7", slug="acme")

    def test_header(self) -> None:
        """The configured header names it; of two the first one, which the application reads."""
        header = (b"X-Tenant", b"acme")
        assert resolve(header) is None
        assert resolve(header, tenant_header="x-tenant") == Tenant(id="acme")
        assert resolve(header, (b"x-tenant", b"b"), tenant_header="x-tenant") == Tenant(id="acme")

    def test_path(self) -> None:
        """The configured path parameter names it."""
        scope = {"path_params": {"org": 7}}
        assert resolve(scope=scope, tenant_path_parameter="org") == Tenant(id="7")
        assert resolve(scope=scope) is None

    @pytest.mark.parametrize(
        ("host", "expected"),
        [
            (b"acme.example.com", "acme"),
            (b"ACME.Example.com:8443", "acme"),
            (b"acme.example.com.", "acme"),
            (b"example.com", None),
            (b"www.example.com", None),
            (b"a.b.example.com", None),
            (b"acme.evil.com", None),
            (b"acmeexample.com", None),
            (b".example.com", None),
            (b"", None),
        ],
    )
    def test_subdomain(self, host: bytes, expected: str | None) -> None:
        """One label before the configured domain names it."""
        found = resolve((b"host", host), tenant_domain="example.com")
        assert found == (None if expected is None else Tenant(id=expected, slug=expected))

    @pytest.mark.allow_errors
    def test_callable(self) -> None:
        """The user's callable names it; one that raises is left out."""
        assert resolve(tenant_resolver=lambda _: {"id": "t"}) == Tenant(id="t")
        assert resolve(tenant_resolver=lambda _: 1 / 0) is None


class TestTenantOrder:
    EVERYTHING: dict[str, Any] = {
        "claims": {"tenant_id": "claimed"},
        "scope": {"state": {"tenant": "stated"}, "path_params": {"org": "path"}},
        "tenant_header": "x-tenant",
        "tenant_path_parameter": "org",
    }
    HEADER = (b"x-tenant", b"header")

    def test_app_wins(self) -> None:
        """What the application said through us wins."""
        audit = AuditScope(tenant=Tenant(id="said"))
        assert resolve(self.HEADER, audit=audit, **self.EVERYTHING) == Tenant(id="said")

    def test_header_is_last_but_path(self) -> None:
        """What a client can write comes after what the application and the token say."""
        everything = dict(self.EVERYTHING)
        assert resolve(self.HEADER, **everything) == Tenant(id="stated")
        everything["scope"] = {"path_params": {"org": "path"}}
        assert resolve(self.HEADER, **everything) == Tenant(id="claimed")
        everything["claims"] = None
        assert resolve(self.HEADER, **everything) == Tenant(id="header")
        assert resolve(**everything) == Tenant(id="path")

    def test_configured(self) -> None:
        """The order is configured; an unknown name is refused."""
        assert resolve(self.HEADER, tenant_order="header,jwt", **self.EVERYTHING) == Tenant(
            id="header"
        )
        with pytest.raises(ConfigurationError, match="TENANT_ORDER"):
            resolve(tenant_order="header,magic")

    @given(st.binary(), st.binary())
    def test_any_header(self, tenant: bytes, host: bytes) -> None:
        """Whatever a client sends, the tenant is clean text or none."""
        asgi = {"headers": [(b"x-tenant", tenant), (b"host", host)]}
        found = resolve_tenant(asgi, AuditScope(), None, FROM_CLIENT)
        assert found is None or 0 < len(found.id) <= 256
        assert found is None or not any(unicodedata.category(c) == "Cc" for c in found.id)


@pytest.mark.allow_errors
class TestTokenAlone:
    """What the application could have set, and has not, is not asked."""

    @pytest.mark.parametrize("order", [None, ("jwt",), ("jwt", "state", "app"), ("header", "jwt")])
    @pytest.mark.parametrize(
        "scope",
        [
            {},
            {"state": None},
            {"state": {"request_id": "1"}},
            {"state": {"tenant": "stated"}},
            {"state": {"tenant": None}},
            {"state": {"tenant_id": "stated", "tenant_slug": "s"}},
            {"state": {"tenant_slug": "s"}},
            {"state": State({"tenant": "stated"})},
            {"state": SimpleNamespace(_state={"tenant_id": "stated"})},
        ],
    )
    @pytest.mark.parametrize("claims", [None, {"tenant_id": "claimed"}])
    def test_it_is_the_tenant_that_all_sources_together_would_name(
        self, order: Any, scope: dict[str, Any], claims: Any
    ) -> None:
        """The short way and the whole list give one tenant."""
        settings = {
            "tenant_header": "x-tenant",
            **({} if order is None else {"tenant_order": order}),
        }
        asgi = {"headers": [(b"x-tenant", b"sent")], **scope}
        for audit in (AuditScope(), AuditScope(tenant=Tenant(id="told"))):
            chosen = TenantOptions.from_config(AuditConfig(**settings))
            whole = TenantOptions.from_config(AuditConfig(**settings))
            object.__setattr__(whole, "beyond", whole.asked)
            found = resolve_tenant(asgi, audit, claims, chosen)
            assert found == resolve_tenant(asgi, audit, claims, whole)
