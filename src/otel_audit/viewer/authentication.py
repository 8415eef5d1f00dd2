"""Authentication of the viewer's users, without passwords of its own."""

from __future__ import annotations

import hashlib
import hmac
import inspect
import ipaddress
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final, Protocol

from starlette.requests import Request

from otel_audit.errors import ConfigurationError
from otel_audit.viewer.identity import Role, Viewer

Authenticate = Callable[[Request], Viewer | Awaitable[Viewer | None] | None]
"""Is given the request and says who looks; None: nobody who may."""

_LINK_SECONDS: Final = 600
"""Ten minutes to click on a link that works once."""
_SESSION_SECONDS: Final = 8 * 3600
"""A working day."""
_MOST_SESSIONS: Final = 100
"""Sessions at once; the oldest one ends for another."""


class SignsIn(Protocol):
    """An `Authenticate` that has a page of its own to begin and to end a session."""

    def sign_in(self, link: str) -> str | None:
        """Begin a session by a link's secret; the value of its cookie, None if it is refused."""

    def sign_out(self, session: str) -> None:
        """End a session."""

    @property
    def cookie(self) -> str:
        """The cookie's name."""


@dataclass
class OneTimeLink:
    """A sign-in by a one-time link, which a command prints. The link expires after ten minutes.

    Attributes:
        viewer: As whom.
        cookie: Name of the session's cookie.
        clock: Seconds.
    """

    viewer: Viewer
    cookie: str = "otel_audit_viewer"
    clock: Callable[[], float] = time.monotonic
    _links: dict[str, float] = field(default_factory=dict)
    _sessions: dict[str, float] = field(default_factory=dict)

    def new_link(self) -> str:
        """Make a link's secret."""
        # 256 random bits; nobody guesses one while it is valid
        secret = secrets.token_urlsafe(32)
        self._links[_digest(secret)] = self.clock() + _LINK_SECONDS
        return secret

    def sign_in(self, link: str) -> str | None:
        """Use the link; it works once."""
        ends = self._links.pop(_digest(link), None)
        if ends is None or ends < self.clock():
            return None
        if len(self._sessions) >= _MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        session = secrets.token_urlsafe(32)
        self._sessions[_digest(session)] = self.clock() + _SESSION_SECONDS
        return session

    def sign_out(self, session: str) -> None:
        """Forget a session."""
        self._sessions.pop(_digest(session), None)

    def __call__(self, request: Request) -> Viewer | None:
        """Look for the session's cookie."""
        ends = self._sessions.get(_digest(request.cookies.get(self.cookie, "")))
        return None if ends is None or ends < self.clock() else self.viewer


@dataclass(frozen=True)
class TrustedHeader:
    """A sign-in by a reverse proxy's header. The proxy must remove it from clients' requests.

    Attributes:
        header: Its name, such as ``x-forwarded-user``.
        proxies: Addresses or networks of the proxies; from other addresses the header is ignored.
        secret: Value of the header ``x-otel-audit-proxy`` that the proxy sends, if others can
            connect from its address, too.
        role: The role of every user.
        tenants: As for `Viewer`.

    Example::

        create_app(dsn=dsn, authenticate=TrustedHeader("x-forwarded-user", proxies=("10.0.0.7",)))
    """

    header: str
    proxies: tuple[str, ...] = ("127.0.0.1", "::1")
    secret: str | None = None
    role: Role = "auditor"
    tenants: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse a proxy that is not a network."""
        for proxy in self.proxies:
            try:
                ipaddress.ip_network(proxy)
            except ValueError:
                raise ConfigurationError(
                    f"trusted proxy {proxy!r} is not an address or network"
                ) from None

    def __call__(self, request: Request) -> Viewer | None:
        """Read the header, if a trusted proxy sent it exactly once."""
        named = request.headers.getlist(self.header)
        if len(named) != 1 or not named[0].strip() or not self._is_proxy(request):
            return None
        return Viewer(named[0].strip()[:200], self.role, self.tenants)

    def _is_proxy(self, request: Request) -> bool:
        if self.secret is not None:
            given = request.headers.get("x-otel-audit-proxy", "")
            if not hmac.compare_digest(given.encode(), self.secret.encode()):
                return False
        try:
            address = ipaddress.ip_address(request.client.host if request.client else "")
        except ValueError:
            return False
        return any(address in ipaddress.ip_network(proxy) for proxy in self.proxies)


async def ask_authentication(authenticate: Authenticate, request: Request) -> Viewer | None:
    """Call an authentication function, synchronous or asynchronous.

    Raises:
        ConfigurationError: The answer is not a viewer.
    """
    found: Any = authenticate(request)
    if inspect.isawaitable(found):
        found = await found
    if found is not None and not isinstance(found, Viewer):
        raise ConfigurationError(
            f"the viewer's authenticate returned {type(found).__name__}: a Viewer, or None"
        )
    return found


def load(place: str) -> Authenticate:
    """Import ``module:name``.

    Raises:
        ConfigurationError: It is not there, or cannot be called.
    """
    module, colon, name = place.partition(":")
    try:
        found = getattr(import_module(module), name) if colon and name else None
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"--auth {place}: {error}") from None
    if not callable(found):
        raise ConfigurationError(f"--auth {place}: module:name of a function is expected")
    authenticate: Authenticate = found
    return authenticate


def _digest(secret: str) -> str:
    """The digest of a secret. A lookup by the digest leaks nothing about the secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
