"""For which tenant an action is done."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.config import AuditConfig
from otel_audit.identity.safe_access import (
    AsgiScope,
    claim,
    exact,
    first_header,
    first_identifier,
    has_no_named_tenant,
    identifier,
    load_hook,
    primary_key,
    state_of,
)
from otel_audit.record import Tenant
from otel_audit.setting_values import PREFIX, check_words

if TYPE_CHECKING:
    from otel_audit.scope import AuditScope

_logger = logging.getLogger(__name__)

_IDS: Final = ("tenant_id", "id", "pk", "uuid")
_SLUGS: Final = ("tenant_slug", "slug")
_NO_TENANTS: Final = frozenset({"www"})

Claims = Mapping[str, Any]

_Ask: TypeAlias = "Callable[[AsgiScope, AuditScope, Claims, TenantOptions], Tenant | None]"
_NO_CLAIMS: Final[Claims] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TenantOptions:
    """Options of `resolve_tenant`; an empty name switches its source off.

    Attributes:
        order: Names of the sources to call; the first answer wins.
        claim: Claim of a verified token that is the tenant's id.
        slug_claim: Claim that is its readable name.
        header: Header that names it.
        path_parameter: Path parameter that names it.
        domain: Domain whose subdomains are tenants.
        resolver: The user's callable; gets the ASGI scope.
    """

    order: tuple[str, ...] = ("app", "state", "jwt", "header", "path", "subdomain", "callable")
    claim: str = "tenant_id"
    slug_claim: str = "tenant_slug"
    header: str | None = None
    path_parameter: str | None = None
    domain: str | None = None
    resolver: Callable[[AsgiScope], object] | None = None
    asked: tuple[tuple[str, _Ask], ...] = field(init=False, repr=False, compare=False)
    """The sources that are not switched off."""

    beyond: tuple[tuple[str, _Ask], ...] = field(init=False, repr=False, compare=False)
    """Those of them to be asked where the application has set nothing."""

    asks_token_alone: bool = field(init=False, repr=False, compare=False)
    """Whether only a token may name the tenant where the application has set nothing."""

    def __post_init__(self) -> None:
        off = {
            "header": self.header is None,
            "path": self.path_parameter is None,
            "subdomain": self.domain is None,
            "callable": self.resolver is None,
        }
        found = tuple((name, _SOURCES[name]) for name in self.order if not off.get(name))
        object.__setattr__(self, "asked", found)
        beyond = tuple((name, ask) for name, ask in found if name not in ("app", "state"))
        object.__setattr__(self, "beyond", beyond)
        object.__setattr__(self, "asks_token_alone", all(name == "jwt" for name, _ in beyond))

    @classmethod
    def from_config(cls, config: AuditConfig) -> TenantOptions:
        """Read the settings.

        Raises:
            ConfigurationError: A source's name is unknown, or the callable cannot be found; the
                message names the setting.
        """
        check_words(f"{PREFIX}TENANT_ORDER", config.tenant_order, list(_SOURCES))
        return cls(
            order=config.tenant_order,
            claim=config.jwt_tenant_claim,
            slug_claim=config.jwt_tenant_slug_claim,
            header=config.tenant_header or None,
            path_parameter=config.tenant_path_parameter or None,
            domain=(config.tenant_domain or "").strip(".").lower() or None,
            resolver=load_hook(config.tenant_resolver, "tenant_resolver"),
        )


def resolve_tenant(
    asgi_scope: AsgiScope, audit_scope: AuditScope, claims: Claims | None, options: TenantOptions
) -> Tenant | None:
    """Find the tenant an action is done for. Never raises for what a client or the app gives.

    Args:
        asgi_scope: The ASGI scope, as the application left it.
        audit_scope: The action's scope; what the application set there is the source ``app``.
        claims: Claims of a VERIFIED token; None if there is none.
        options: From the settings.

    Returns:
        The tenant, None if no source names one.
    """
    is_unnamed = has_no_named_tenant(asgi_scope, audit_scope)
    asked = options.beyond if is_unnamed else options.asked
    for name, ask in asked:
        try:
            found = ask(asgi_scope, audit_scope, claims or _NO_CLAIMS, options)
        except Exception as error:  # noqa: BLE001 - the app's objects and callables raise anything
            log_limited(
                _logger, f"tenant {name}", "tenant source %s failed; it is left out", name,
                error=error,
            )  # fmt: skip
            continue
        if found is not None:
            return found
    return None


def tenant_from(thing: object) -> Tenant | None:
    """Read a tenant from what an application has: a `Tenant`, an id, a mapping, or an object.

    Args:
        thing: Its ``tenant_id`` or ``id``, and ``tenant_slug`` or ``slug``, are read.
    """
    if thing is None:
        return None
    if isinstance(thing, Tenant):
        slug = None if thing.slug is None else exact(thing.slug)
        return thing if thing.id == exact(thing.id) else Tenant(id=exact(thing.id), slug=slug)
    plain = identifier(thing)
    if plain is not None:
        return Tenant(id=plain)
    slug = first_identifier(thing, _SLUGS)
    found = first_identifier(thing, _IDS) or primary_key(thing) or slug
    return None if found is None else Tenant(id=found, slug=slug)


def _app(
    _asgi: AsgiScope, scope: AuditScope, _claims: Claims, _options: TenantOptions
) -> Tenant | None:
    return None if scope.tenant is None else tenant_from(scope.tenant)


def _state(
    asgi: AsgiScope, _scope: AuditScope, _claims: Claims, _options: TenantOptions
) -> Tenant | None:
    state = state_of(asgi)
    given = state.get("tenant")
    found = None if given is None else tenant_from(given)
    if found is not None:
        return found
    given = state.get("tenant_id")
    named = None if given is None else identifier(given)
    if named is None:
        return None
    return Tenant(id=named, slug=identifier(state.get("tenant_slug")))


def _jwt(
    _asgi: AsgiScope, _scope: AuditScope, claims: Claims, options: TenantOptions
) -> Tenant | None:
    return tenant_of_claims(claims, options)


def tenant_of_claims(claims: Claims, options: TenantOptions) -> Tenant | None:
    """Read the tenant that a verified token names."""
    found = identifier(claim(claims, options.claim)) if options.claim and claims else None
    if found is None:
        return None
    slug = identifier(claim(claims, options.slug_claim)) if options.slug_claim else None
    return Tenant(id=found, slug=slug)


def _header(
    asgi: AsgiScope, _scope: AuditScope, _claims: Claims, options: TenantOptions
) -> Tenant | None:
    return tenant_from(first_header(asgi, options.header)) if options.header else None


def _path(
    asgi: AsgiScope, _scope: AuditScope, _claims: Claims, options: TenantOptions
) -> Tenant | None:
    parameters = asgi.get("path_params")
    if options.path_parameter is None or not isinstance(parameters, Mapping):
        return None
    found = identifier(parameters.get(options.path_parameter))
    return None if found is None else Tenant(id=found)


def _subdomain(
    asgi: AsgiScope, _scope: AuditScope, _claims: Claims, options: TenantOptions
) -> Tenant | None:
    given = first_header(asgi, "host") if options.domain else None
    if given is None:
        return None
    host = given.strip().lower().partition(":")[0].rstrip(".")
    label = host.removesuffix(f".{options.domain}")
    if label in ("", host) or "." in label or label in _NO_TENANTS:
        return None
    slug = identifier(label)
    return None if slug is None else Tenant(id=slug, slug=slug)


def _callable(
    asgi: AsgiScope, _scope: AuditScope, _claims: Claims, options: TenantOptions
) -> Tenant | None:
    return None if options.resolver is None else tenant_from(options.resolver(asgi))


_SOURCES: Final[Mapping[str, _Ask]] = {
    "app": _app,
    "state": _state,
    "jwt": _jwt,
    "header": _header,
    "path": _path,
    "subdomain": _subdomain,
    "callable": _callable,
}
