"""Actor and tenant where a verified token alone decides both: the same for each of its requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from otel_audit._util.cache import Memo
from otel_audit.identity.actor import has_canonical_role
from otel_audit.identity.redact_identity import shown_actor, shown_tenant
from otel_audit.identity.safe_access import has_no_named_actor, has_no_named_tenant
from otel_audit.identity.tenant import tenant_of_claims
from otel_audit.record import Actor, Tenant

if TYPE_CHECKING:
    from otel_audit.identity.actor import ActorOptions, Bearer
    from otel_audit.identity.jwt import DecodedToken
    from otel_audit.identity.safe_access import AsgiScope
    from otel_audit.identity.tenant import TenantOptions
    from otel_audit.redaction import Redactor
    from otel_audit.scope import AuditScope

Identity: TypeAlias = tuple[Actor, Tenant | None]

_TOKENS: Final = 512
"""Tokens whose actor and tenant are remembered, about."""


class TokenIdentities:
    """Actor and tenant of a request as its token names them, found once for each token.

    It answers only what `resolve_actor` and `resolve_tenant` would, with the secrets taken out.
    """

    def __init__(
        self, actors: ActorOptions, tenants: TenantOptions, redactor: Redactor, *, is_on: bool
    ) -> None:
        """Start with no token known.

        Args:
            actors: How the actor is found.
            tenants: How the tenant is found.
            redactor: Takes secrets out.
            is_on: Whether nobody else is asked, such as a trusted caller's baggage.
        """
        self._actors = actors
        self._tenants = tenants
        self._redactor = redactor
        self._is_on = is_on and actors.asks_token_next and tenants.asks_token_alone
        self._known: Memo[DecodedToken, Identity | None] = Memo(self._named_by, _TOKENS)

    def read(
        self, asgi_scope: AsgiScope, audit_scope: AuditScope, bearer: Bearer
    ) -> Identity | None:
        """Say who does an action, and for whom, if the token decides both.

        Args:
            asgi_scope: The ASGI scope, as the application left it.
            audit_scope: The action's scope.
            bearer: The request's token.

        Returns:
            None where others have a say, or the token does not name an actor.
        """
        token = bearer.token
        if (
            token is None
            or not self._is_on
            or not token.verified
            or not has_no_named_actor(asgi_scope, audit_scope)
            or not has_no_named_tenant(asgi_scope, audit_scope)
        ):
            return None
        return self._known[token]

    def _named_by(self, token: DecodedToken) -> Identity | None:
        try:
            actor = self._actors.named_by(token)
            tenant = tenant_of_claims(token.claims, self._tenants)
            shown = shown_tenant(tenant, self._redactor)
            # a tenant that is withheld is a line in the log each time
            if isinstance(actor, str) or shown is not tenant:
                return None
            if not has_canonical_role(actor, self._actors):
                return None
            return shown_actor(actor, self._redactor), shown
        except Exception:  # noqa: BLE001 - whoever is asked now finds the same, and reports it
            return None
