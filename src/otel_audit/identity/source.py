"""The source of an action: address, user agent, session; and the request's id."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from otel_audit.identity.proxies import Proxies, parse_address
from otel_audit.identity.safe_access import (
    Scope,
    claim,
    clean,
    cookie_value,
    first_header,
    header_values,
    identifier,
    state_of,
)
from otel_audit.record import Source
from otel_audit.redaction.hashing import KeyedHash
from otel_audit.redaction.truncate import cut_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from otel_audit.config import AuditConfig

USER_AGENT_LIMIT: Final = 512
"""Characters of a user agent that are kept."""

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=+/@-]{7,127}")
"""A well-formed request id: 8 to 128 characters, the first a letter or a digit.

UUIDs, ULIDs, base64 and the ids of the usual gateways pass. What could break a log line, a header,
or a spreadsheet's cell does not.
"""


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """Options of `resolve_source`.

    Attributes:
        proxies: Proxies whose forwarded headers are trusted.
        session_claim: Claim of a verified token that is the session's id.
        session_cookie: Cookie of the session, if its hash shall be kept.
        hash: Makes that hash; without a key there is none.
    """

    proxies: Proxies = field(default_factory=Proxies)
    session_claim: str = "sid"
    session_cookie: str | None = None
    hash: KeyedHash = field(default_factory=KeyedHash)

    @classmethod
    def from_config(cls, config: AuditConfig) -> SourceOptions:
        """Read the settings.

        Raises:
            ConfigurationError: As for `Proxies.from_config`.
        """
        return cls(
            proxies=Proxies.from_config(config),
            session_claim=config.jwt_session_claim,
            session_cookie=config.session_cookie or None,
            hash=KeyedHash.from_config(config),
        )


def resolve_source(
    asgi_scope: Scope,
    options: SourceOptions,
    claims: Mapping[str, Any] | None = None,
    known: Source | None = None,
) -> Source:
    """Find out where an action came from. Never raises for what a client sends.

    Args:
        asgi_scope: The ASGI scope.
        options: From the settings.
        claims: Claims of a verified token, for the session; None if there is none.
        known: What this said before of the same connection: only the session may be news.

    Returns:
        What is known. ``type`` is ``host`` where the server gives a name instead of an address.
    """
    session = _session(asgi_scope, options, claims)
    if known is not None:
        if session == known.session_id:
            return known
        return msgspec.structs.replace(known, session_id=session)
    address = options.proxies.client(asgi_scope)
    agent = first_header(asgi_scope, "user-agent")
    return Source(
        address=None if address is None else clean(address) or None,
        type="ip" if address is None or parse_address(address) is not None else "host",
        user_agent=None if agent is None else _user_agent(agent),
        session_id=session,
    )


def _user_agent(given: str) -> str | None:
    shown = clean(given, USER_AGENT_LIMIT + 1)
    return (shown if len(shown) <= USER_AGENT_LIMIT else cut_text(shown, USER_AGENT_LIMIT)) or None


def request_id(
    asgi_scope: Scope, header_name: str, is_safe: Callable[[str], bool] = bool
) -> str | None:
    """Return the client's id of the request, if it is well-formed (`REQUEST_ID`).

    Args:
        asgi_scope: The ASGI scope.
        header_name: The header to look at; empty: none. Several such headers: none is taken.
        is_safe: Returns whether a client's id may be stored: it may be a token.

    Returns:
        8 to 128 characters; None if there is none to be taken.
    """
    given = header_values(asgi_scope, header_name) if header_name else []
    if len(given) == 1 and REQUEST_ID.fullmatch(given[0].strip()) and is_safe(given[0].strip()):
        return given[0].strip()
    return None


def _session(
    asgi_scope: Scope, options: SourceOptions, claims: Mapping[str, Any] | None
) -> str | None:
    session = identifier(state_of(asgi_scope).get("session_id"))
    if session is None and claims is not None:
        session = identifier(claim(claims, options.session_claim))
    if session is not None or options.session_cookie is None or not options.hash:
        return session
    secret = cookie_value(asgi_scope, options.session_cookie)
    return None if secret is None else options.hash.of(secret)
