"""The line that a process begins with: that it is audited, and how."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from otel_audit._util.printable import visible
from otel_audit.config import AuditConfig
from otel_audit.delivery.factory import is_unnamed, service_of_spool
from otel_audit.delivery.fingerprint import destination_shown
from otel_audit.delivery.producer_records import VERSION
from otel_audit.setting_values import PREFIX

_ALWAYS: Final = {"app": "set_actor()", "state": "request.state.user", "user": "request.user"}


def startup_line(config: AuditConfig) -> str:
    """Say in one line what is audited, where to, and where actors come from.

    Args:
        config: The settings at work.

    Returns:
        The line; it shows no password, and nothing that could steer a terminal.
    """
    return visible("; ".join(_parts(config)))


def _parts(config: AuditConfig) -> Iterator[str]:
    service = service_of_spool()
    hint = ", set OTEL_SERVICE_NAME" if is_unnamed(service) else ""
    yield (
        f"otel-audit {VERSION}: auditing is on: service {service}{hint}, "
        f"to {destination_shown(config)}"
    )
    if config.has_spool:
        yield f"spool {config.spool_path}"
    yield f"actors from {', '.join(_actors(config)) or 'nowhere'}"
    if not _reads_tokens(config):
        yield f"bearer tokens are not read ({PREFIX}JWT_JWKS_URL or _JWT_KEY)"
    yield f"level {config.level or 'by policy'}"
    if config.delivery == "strict":
        yield "strict"
    if config.required:
        yield "required"


def _actors(config: AuditConfig) -> Iterator[str]:
    """Name the configured sources of the actor, in their order."""
    by_setting = {
        "session": f"request.session[{config.actor_session_key!r}]",
        "jwt": "verified bearer tokens" if _verifies(config) else "unverified bearer tokens",
        "api_key": f"the header {config.api_key_header}",
        "certificate": f"the header {config.client_certificate_header}",
        "callable": "actor_resolver",
    }
    is_set = {
        "session": bool(config.actor_session_key),
        "jwt": _reads_tokens(config),
        "api_key": bool(config.api_key_header),
        "certificate": bool(config.client_certificate_header),
        "callable": config.actor_resolver is not None,
    }
    for name in config.actor_order:
        if name in _ALWAYS:
            yield _ALWAYS[name]
        elif is_set.get(name):
            yield by_setting[name]


def _verifies(config: AuditConfig) -> bool:
    return bool(config.jwt_key or config.jwt_jwks_url or config.jwt_jwks_file or config.jwt_issuers)


def _reads_tokens(config: AuditConfig) -> bool:
    return _verifies(config) or config.jwt_unverified_behind_gateway
