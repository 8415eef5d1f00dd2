"""Credentials that a request presents, but that cannot be resolved here.

The application may be able to: so the client is not known, which is not anonymous.
"""

from __future__ import annotations

import functools
import logging
import re
import threading
from typing import Final
from urllib.parse import unquote_plus

from otel_audit.identity.safe_access import AsgiScope
from otel_audit.setting_values import PREFIX

_logger = logging.getLogger(__name__)

OTHER: Final = "credential_not_checked"
BEARER: Final = "bearer_not_checked"
BASIC: Final = "basic_not_checked"
API_KEY: Final = "api_key_not_checked"
COOKIE: Final = "cookie_not_checked"
SESSION: Final = "session_not_read"

UNCHECKED: Final = frozenset({OTHER, BEARER, BASIC, API_KEY, COOKIE, SESSION})
"""The reasons of who has presented something that says who it is, only not to us."""

_BY_HAND: Final = "request.state.user or otel_audit.set_actor()"
REMEDIES: Final = {
    BEARER: (
        f"tokens are not verified: set {PREFIX}JWT_JWKS_URL or {PREFIX}JWT_KEY, with "
        f"{PREFIX}JWT_ALGORITHMS (HS256 for a shared secret), and {PREFIX}JWT_SCHEMES where the "
        "scheme is not Bearer"
    ),
    BASIC: f"only the application knows whose they are: let it say so by {_BY_HAND}",
    API_KEY: (
        f"name the header in {PREFIX}API_KEY_HEADER to tell keys apart, or let the application say "
        f"whose key it is by {_BY_HAND}"
    ),
    COOKIE: (
        f"if the cookie holds a token, name it in {PREFIX}JWT_COOKIE; if it is of Starlette's "
        f"SessionMiddleware, set {PREFIX}ACTOR_SESSION_KEY; else let the application say who it is "
        f"by {_BY_HAND}"
    ),
    SESSION: f"set {PREFIX}ACTOR_SESSION_KEY to the key of request.session with the user's id",
    OTHER: f"let the application say who it is by {_BY_HAND}, or set {PREFIX}ACTOR_RESOLVER",
}
"""The remedy for each reason."""

_LONGEST_NAME: Final = 128
"""Characters of a header's name that can be a credential's."""

# what says who calls, by the words in which services, gateways and frameworks name it; what stands
# in every browser's requests (Sec-Fetch-User, X-CSRF-Token, Sec-WebSocket-Key) is none
_CREDENTIAL: Final = re.compile(
    r"auth(?!or(?:s|ity)?(?:-|$))|token|jwt|session|api-?key|access-?key|subscription-key|secret"
    r"|credential|signature|^dpop$|assertion|principal|oidc|password"
    r"|^(?:x-)?(?:remote|forwarded|request|authenticated)-user|^x-user(?:-id|-email|name)?$"
)
_NAMES_KEY: Final = re.compile(r"api-?key|access-?key|subscription-key")
_FORGERY: Final = re.compile(r"csrf|xsrf|forgery")
_COOKIES: Final = re.compile(rb"(?:^|;)([^=;]*)=")
_OF_A_LOGIN: Final = re.compile(rb"(?i)sess|sid|auth|token|jwt|login|remember|access|user|account")
_A_TOKEN: Final = re.compile(rb"(?:^|[=,\s\"])eyJ[A-Za-z0-9_-]{8,}\.")
_PARAMETERS: Final = re.compile(
    r"(?i)(?:^|[&;])[^&;=]{0,40}(?:token|api[_-]?key|jwt|auth|session|signature|secret|password)"
    r"[^&;=]{0,40}=|(?:^|[&;])(?:key|sig|sid)="
)
_LONGEST_QUERY: Final = 8_192
"""Bytes of a query in which a credential's name is looked for, as many as are recorded."""
_SCHEMES: Final = {b"bearer": BEARER, b"jwt": BEARER, b"token": BEARER, b"basic": BASIC}

_warned: Final[set[str]] = set()
_lock = threading.Lock()


def unresolved_credential(asgi_scope: AsgiScope, *, reads_session: bool = False) -> str | None:
    """Say that a client has presented a credential, and of which kind.

    Args:
        asgi_scope: The ASGI scope, as the application left it.
        reads_session: Whether a session was looked into: then it says that nobody is logged in.

    Returns:
        The reason for not knowing who it is; None if there is no credential.
    """
    has_cookie = False
    for name, value in asgi_scope.get("headers") or ():
        kind = _kind(name) if value else None
        if kind == OTHER and name.lower() == b"authorization":
            return _of_authorization(value)
        if kind is not None:
            return kind
        if value and _holds_credential(name.lower(), value):
            if name.lower() != b"cookie":
                return OTHER
            has_cookie = True
    has_session = _has_session(asgi_scope)
    if has_session and not reads_session:
        return SESSION
    if has_cookie and not has_session:
        return COOKIE
    query = asgi_scope.get("query_string")
    # as frameworks read it: a name may be spelled in percents
    text = unquote_plus(query[:_LONGEST_QUERY].decode("latin-1")) if query else ""
    return OTHER if _PARAMETERS.search(text) else None


def warn_once(reason: str) -> None:
    """Log once in this process that actions are anonymous for a reason that a setting can fix."""
    with _lock:
        if reason in _warned:
            return
        _warned.add(reason)
    _logger.warning(
        "Requests with a credential are recorded as anonymous (%s): %s", reason, REMEDIES[reason]
    )


def forget() -> None:
    """Forget which lines were logged; for tests."""
    with _lock:
        _warned.clear()


def _has_session(asgi_scope: AsgiScope) -> bool:
    """Whether a middleware has read a session, and something is in it."""
    session = asgi_scope.get("session")
    # others may load theirs when they are asked
    return isinstance(session, dict) and bool(session)


@functools.lru_cache(maxsize=512)
def _kind(name: bytes) -> str | None:
    if len(name) > _LONGEST_NAME:
        return None
    text = name.decode("latin-1").lower()
    if _CREDENTIAL.search(text) is None or _FORGERY.search(text) is not None:
        return None
    return API_KEY if _NAMES_KEY.search(text) else OTHER


def _of_authorization(value: bytes) -> str:
    scheme = value.strip().partition(b" ")[0].lower()
    return _SCHEMES.get(scheme, BEARER if _A_TOKEN.search(value) else OTHER)


def _holds_credential(name: bytes, value: bytes) -> bool:
    if name == b"cookie":
        # names first, then words in each: one pattern for both would look at all for each word
        named = any(_OF_A_LOGIN.search(one) for one in _COOKIES.findall(value))
        return named or _A_TOKEN.search(value) is not None
    # a browser can send a credential of a WebSocket in no other header
    return name == b"sec-websocket-protocol" and (
        b"bearer" in value.lower() or _A_TOKEN.search(value) is not None
    )
