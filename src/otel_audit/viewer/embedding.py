"""The viewer in an iframe of the application, for a tenant's administrator.

The application's backend makes a signed token; its page hands it to the frame by ``postMessage``;
the frame keeps it in memory and sends it as ``Authorization``. No cookie, no token in a URL.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from otel_audit.errors import ConfigurationError, MissingExtraError
from otel_audit.viewer.identity import EVERYTHING, Permission, Viewer
from otel_audit.viewer.rendering import render

EMBED_PATH: Final = "/embed"
AUDIENCE: Final = "otel-audit-viewer"
LONGEST_MINUTES: Final = 60
"""Minutes that a frame's token may be valid: nobody can call it back."""
_TYPE: Final = "otel-audit-view+jwt"
_LARGEST_TOKEN: Final = 4_096
"""Characters of such a token: it has a few claims."""
_LEEWAY: Final = 5
"""Seconds that the clocks of two servers may be apart."""


@dataclass(frozen=True)
class Embedding:
    """Settings of the frame: trusted tokens, and the origins that may embed it.

    Attributes:
        public_key: The Ed25519 key that verifies tokens, PEM.
        origins: The application's origins, such as ``https://app.example``.
        audience: Whom tokens must be for.
        is_revoked: Tells whether a token's id (``jti``) is revoked; it is asked each time.

    Example::

        revoked = set()
        embedding = Embedding(
            public_key, origins=("https://app.example",), is_revoked=revoked.__contains__
        )
    """

    public_key: str
    origins: tuple[str, ...]
    audience: str = AUDIENCE
    is_revoked: Callable[[str], bool] = lambda _: False

    def __post_init__(self) -> None:
        """Refuse settings that let any page embed the viewer."""
        _library()
        if not self.origins:
            raise ConfigurationError("embedding: name the origins whose pages may hold the frame")
        for origin in self.origins:
            scheme, _, host = origin.partition("://")
            if scheme not in ("http", "https") or not host or set(host) & set("/*;, '\"\\?#@"):
                raise ConfigurationError(
                    f"embedding: {origin!r} is not an origin: https://app.example, with nothing "
                    "behind"
                )

    def viewer_of(self, authorizations: Sequence[str]) -> Viewer | None:
        """Verify the only Authorization header; None if its token is not valid."""
        if len(authorizations) != 1:
            return None
        scheme, _, token = authorizations[0].partition(" ")
        if scheme.lower() != "bearer" or len(token) > _LARGEST_TOKEN:
            return None
        jwt = _library()
        try:
            header = jwt.get_unverified_header(token)
            if header.get("typ") != _TYPE:
                return None
            claims = jwt.decode(
                token,
                self.public_key,
                algorithms=["EdDSA"],
                audience=self.audience,
                leeway=_LEEWAY,
                options={"require": ["exp", "iat", "aud", "sub", "jti"]},
            )
        # what is nested deeply, and numbers that are none, come from whoever sends the token
        except (jwt.PyJWTError, RecursionError, ValueError, OverflowError, TypeError):
            return None
        return None if self._is_refused(claims) else _viewer(claims)

    def is_meant(self, authorizations: Sequence[str]) -> bool:
        """Whether a header holds a frame token; no other login replaces an invalid one."""
        jwt = _library()
        for one in authorizations:
            try:
                if jwt.get_unverified_header(one.partition(" ")[2]).get("typ") == _TYPE:
                    return True
            except (jwt.PyJWTError, RecursionError, ValueError):
                continue
        return False

    def _is_refused(self, claims: dict[str, Any]) -> bool:
        ends, begins = claims["exp"], claims["iat"]
        if not isinstance(ends, int | float) or not isinstance(begins, int | float):
            return True
        is_short = 0 < ends - begins <= LONGEST_MINUTES * 60
        return not is_short or self.is_revoked(str(claims["jti"]))


def mint_token(  # noqa: PLR0913 - what a token says
    private_key: str,
    *,
    tenant: str,
    viewer: str,
    may: Iterable[Permission] = ("export", "prove"),
    minutes: float = 10,
    audience: str = AUDIENCE,
) -> str:
    """Make a token for a tenant's administrator. It is valid for some minutes.

    Example::

        token = mint_token(private_key, tenant="acme", viewer="ann@acme.example", minutes=10)

    Args:
        private_key: The Ed25519 key, PEM; only the application's backend has it.
        tenant: The tenant's id.
        viewer: Who looks, as it is recorded.
        may: What is allowed besides looking: ``export``, ``prove``, ``tail``.
        minutes: How long, at most 60.
        audience: As for `Embedding`.

    Raises:
        ConfigurationError: It would last too long, or for nobody.
    """
    if not 0 < minutes <= LONGEST_MINUTES:
        raise ConfigurationError(f"mint_token: minutes={minutes}, {LONGEST_MINUTES} at most")
    # refuses what no viewer can be
    allowed = Viewer(viewer, "tenant", (tenant,), frozenset(may))
    now = int(time.time())
    claims = {
        "aud": audience,
        "sub": allowed.name,
        "tenant": tenant,
        "may": sorted(allowed.may),
        "iat": now,
        "exp": now + int(minutes * 60),
        "jti": secrets.token_urlsafe(16),
    }
    token: str = _library().encode(claims, private_key, algorithm="EdDSA", headers={"typ": _TYPE})
    return token


def frame(embedding: Embedding) -> Callable[[Request], Awaitable[Response]]:
    """The page of the frame. It holds no data of the trail."""

    async def endpoint(request: Request) -> Response:
        context = {"title": "Audit trail", "origins": " ".join(embedding.origins)}
        return await render(request, "embed.html", context)

    return endpoint


def _viewer(claims: dict[str, Any]) -> Viewer | None:
    tenant, name, may = claims.get("tenant"), claims["sub"], claims.get("may")
    if not isinstance(tenant, str) or not tenant or not isinstance(name, str) or not name:
        return None
    named = may if isinstance(may, list) else ()
    return Viewer(name, "tenant", (tenant,), frozenset(one for one in EVERYTHING if one in named))


def _library() -> Any:
    try:
        import jwt
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: F401 - jwt needs it
    except ImportError as error:
        raise MissingExtraError("the viewer in a frame", "viewer") from error
    return jwt
