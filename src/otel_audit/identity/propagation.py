"""Actor and tenant, passed on to called services by W3C Baggage.

Only opaque ids travel: baggage is sent in clear to every called service. Baggage from outside is
trusted only if a setting says so, and is never passed on as this service's own.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, Final

from opentelemetry import baggage, propagate
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)

from otel_audit._util.own_lock import own_lock
from otel_audit._util.ratelimited_log import log_limited, log_postponed
from otel_audit.attributes import ACTOR_ID, ACTOR_TYPE, TENANT_ID
from otel_audit.identity.safe_access import header_values, identifier
from otel_audit.record import ANONYMOUS, Actor, Tenant
from otel_audit.scope import Origin, open_scope
from otel_audit.setting_values import PREFIX

_logger = logging.getLogger(__name__)

_ENTRIES: Final = (ACTOR_ID, ACTOR_TYPE, TENANT_ID)
# no @, so no e-mail address
_OPAQUE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


class IdentityPropagator(TextMapPropagator):
    """Adds the actor and the tenant of the action under way to what another propagator sends."""

    def __init__(self, inner: TextMapPropagator) -> None:
        """Wrap a propagator.

        Args:
            inner: Decides whether baggage is sent at all.
        """
        self.inner = inner
        self.active = True

    def extract(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,
    ) -> Context:
        """Extract as the wrapped propagator does."""
        return self.inner.extract(carrier, context, getter)

    def inject(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        setter: Setter[CarrierT] = default_setter,
    ) -> None:
        """Inject as the wrapped propagator does, with the ids in the baggage."""
        self.inner.inject(carrier, self._with_identity(context), setter)

    @property
    def fields(self) -> set[str]:
        """The fields of the wrapped propagator."""
        return self.inner.fields

    def _with_identity(self, context: Context | None) -> Context | None:
        if not self.active:
            return context
        try:
            found = context
            # what a client has sent under these names is not this service's word
            for name in _ENTRIES:
                found = baggage.remove_baggage(name, found)
            scope = open_scope()
            entries = {} if scope is None else _entries(scope.known_origin())
            for name, value in entries.items():
                found = baggage.set_baggage(name, value, found)
        except Exception as error:  # noqa: BLE001 - an exception here would reach the application
            log_limited(_logger, "baggage", "A call goes out without its actor", error=error)
            return context
        return found


class PropagatorInstaller:
    """Keeps the process's propagator wrapped, also where the application sets another one."""

    def __init__(self) -> None:
        self._lock = own_lock()
        self._mine: IdentityPropagator | None = None

    def attach(self) -> None:
        """Wrap the propagator there is, unless it is wrapped already."""
        if propagate.get_global_textmap() is not self._mine:
            with self._lock:
                self._wrap(propagate.get_global_textmap())
            log_postponed()

    def _wrap(self, current: TextMapPropagator) -> None:
        if current is self._mine:
            return
        if "baggage" not in current.fields:
            log_limited(
                _logger, "propagators",
                "%sBAGGAGE_SEND has no effect: baggage is not among OTEL_PROPAGATORS", PREFIX,
                level=logging.WARNING,
            )  # fmt: skip
        self._give_back()
        self._mine = IdentityPropagator(propagate.get_global_textmap())
        propagate.set_global_textmap(self._mine)

    def detach(self) -> None:
        """Give the propagator back; where another one has wrapped ours, ours does nothing more."""
        with self._lock:
            self._give_back()

    def _give_back(self) -> None:
        mine, self._mine = self._mine, None
        if mine is None:
            return
        mine.active = False
        if propagate.get_global_textmap() is mine:
            propagate.set_global_textmap(mine.inner)


def origin_from_request(asgi_scope: Mapping[str, Any]) -> Origin:
    """Read the caller's baggage; only if a setting says to trust it.

    Args:
        asgi_scope: The ASGI scope.

    Returns:
        Actor and tenant as far as they are there; the actor is not verified.
    """
    given = ",".join(header_values(asgi_scope, "baggage"))
    if not given:
        return Origin()
    return origin_from_context(W3CBaggagePropagator().extract({"baggage": given}, Context()))


def origin_from_context(context: Context | None = None) -> Origin:
    """As `origin_from_request`, from a context that a worker's instrumentation has filled."""
    actor, tenant = (
        identifier(baggage.get_baggage(name, context)) for name in (ACTOR_ID, TENANT_ID)
    )
    kind = baggage.get_baggage(ACTOR_TYPE, context)
    return Origin(
        actor=None
        if actor is None or actor == ANONYMOUS.id
        else Actor(
            id=actor,
            type="service" if kind == "service" else "system" if kind == "system" else "user",
            source="baggage",
            reason="baggage_not_verified",
        ),
        tenant=None if tenant is None else Tenant(id=tenant),
    )


def _entries(origin: Origin) -> dict[str, str]:
    actor, tenant = origin.actor, origin.tenant
    found: dict[str, str] = {}
    if actor is not None and actor.id != ANONYMOUS.id and _passes(actor):
        found |= {ACTOR_ID: actor.id, ACTOR_TYPE: actor.type}
    if tenant is not None and _OPAQUE.fullmatch(tenant.id):
        found[TENANT_ID] = tenant.id
    return found


def _passes(actor: Actor) -> bool:
    # an actor from trusted baggage may be passed on; no other without proof
    known = actor.verified or actor.source == "baggage"
    return known and _OPAQUE.fullmatch(actor.id) is not None
