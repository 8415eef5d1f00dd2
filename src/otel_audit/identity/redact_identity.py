"""Keeps secrets out of who, and for whom: an application may take a token or a card for an id."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import msgspec

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.redaction.prefilter import is_plain

if TYPE_CHECKING:
    from otel_audit.record import Actor, Source, Tenant
    from otel_audit.redaction import Redactor
    from otel_audit.redaction.budget import WorkBudget

_logger = logging.getLogger("otel_audit.identity")

ID_WITHHELD: Final = "id_withheld"
"""The reason that an actor has whose id is not stored."""


def shown_actor(actor: Actor, redactor: Redactor, work: WorkBudget | None = None) -> Actor:
    """Take out of an actor what the value rules name.

    Args:
        actor: As the application, a token, or a proxy named it.
        redactor: Its value rules judge each part, of an id those for credentials alone; an e-mail
            address passes unless e-mail addresses are redacted.
        work: What that may cost in all; each part by its size if None.

    Returns:
        The actor. What looks like a secret is replaced by its keyed hash, so that equal actors are
        still found, or by ``[REDACTED]`` where there is no key; of an id ``reason`` then says so.
    """
    shown = {
        "id": _shown(actor.id, redactor, work, is_id=True),
        "role": _shown_or_none(actor.role, redactor, work),
        "email": _shown_or_none(actor.email, redactor, work),
        "on_behalf_of": _shown_or_none(actor.on_behalf_of, redactor, work, is_id=True),
        "roles": tuple(_shown(role, redactor, work) for role in actor.roles),
    }
    if all(value == getattr(actor, name) for name, value in shown.items()):
        return actor
    reason = actor.reason if shown["id"] == actor.id else actor.reason or ID_WITHHELD
    return msgspec.structs.replace(actor, reason=reason, **shown)


def shown_tenant(
    tenant: Tenant | None, redactor: Redactor, work: WorkBudget | None = None
) -> Tenant | None:
    """Take out of a tenant what the value rules name; see `shown_actor`."""
    if tenant is None:
        return None
    found = _shown(tenant.id, redactor, work, is_id=True)
    slug = _shown_or_none(tenant.slug, redactor, work)
    if (found, slug) == (tenant.id, tenant.slug):
        return tenant
    return msgspec.structs.replace(tenant, id=found, slug=slug)


def shown_source(source: Source, redactor: Redactor) -> Source:
    """Take out of a source what the value rules name: in the user agent, and as the session."""
    agent = None if source.user_agent is None else redactor.phrase(source.user_agent)
    session = _shown_or_none(source.session_id, redactor)
    if (agent, session) == (source.user_agent, source.session_id):
        return source
    return msgspec.structs.replace(source, user_agent=agent, session_id=session)


def _shown_or_none(
    text: str | None, redactor: Redactor, work: WorkBudget | None = None, *, is_id: bool = False
) -> str | None:
    return None if text is None else _shown(text, redactor, work, is_id=is_id)


def _shown(
    text: str, redactor: Redactor, work: WorkBudget | None = None, *, is_id: bool = False
) -> str:
    # an id of 16 digits is one; anything else with a card's number is not
    judged = redactor.identifier if is_id else redactor.text
    if is_plain(text) or judged(text, work) == text:
        return text
    log_limited(
        _logger,
        "identity",
        "An id, a role or an e-mail address looks like a secret and is not stored; what the "
        "application or the token names must be safe to keep",
    )
    return redactor.hashed(text)
