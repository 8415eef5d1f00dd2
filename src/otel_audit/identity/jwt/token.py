"""Checks of a bearer token's form and claims, apart from its signature.

Sources: RFC 7515 (JWS), RFC 7519 (JWT), RFC 8725 (best current practices).
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

LONGEST: Final = 65_536
"""Characters of a token; a longer one is not looked at. As many as servers take of all headers."""

_SEGMENTS_OF_JWS: Final = 3
"""Header, payload and signature (RFC 7515, section 7.1)."""
_SEGMENTS_OF_JWE: Final = 5
"""An encrypted token (RFC 7516, section 7.1); it is never looked into."""
_KEY_ID_LIMIT: Final = 256
"""Characters of a ``kid``; a longer one is refused, because each is looked up and remembered."""

# kinds of tokens that are signed with the same keys and say nothing about who calls
# (RFC 8725, section 3.11)
_FOREIGN_TYPES: Final = frozenset(
    {"dpop+jwt", "logout+jwt", "secevent+jwt", "token-introspection+jwt"}
)


class TokenError(Exception):
    """A token is not valid. Neither the reason nor the message holds anything of the token.

    Attributes:
        reason: A short word for the record, such as ``token_expired``.
    """

    def __init__(self, reason: str) -> None:
        """Make the error; its message is the reason.

        Args:
            reason: What is wrong, in fixed words.
        """
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, eq=False)
class DecodedToken:
    """The content of a token; if it is verified, the same object again for the same token.

    Attributes:
        claims: Its claims.
        issuer: The configured issuer it was checked against, None if none is named.
        expires_at: Unix seconds after which it is no longer valid, the leeway included; infinite
            where it does not say and was not verified.
        verified: True unless the verifier runs unverified, behind a gateway.
    """

    claims: Mapping[str, Any]
    issuer: str | None
    expires_at: float
    verified: bool


@dataclass(frozen=True, slots=True)
class Header:
    """The used fields of a token's header.

    Attributes:
        algorithm: ``alg``.
        key_id: ``kid``, None if there is none.
    """

    algorithm: str
    key_id: str | None


def read_header(token: str) -> Header:
    """Read a token's header, and refuse what is not a plain signed token.

    Keys that the header itself brings or points to (``jwk``, ``jku``, ``x5c``, ``x5u``) are never
    looked at.

    Args:
        token: The token in its compact form.

    Raises:
        TokenError: It is ``token_too_large``, ``token_malformed``, ``token_encrypted`` (a JWE),
            has a ``critical_header`` (RFC 7515, section 4.1.11), or is of the ``wrong_type``.
    """
    signature = _check_form(token)
    header = decode_object(token.partition(".")[0])
    if "enc" in header or "zip" in header:
        raise TokenError("token_encrypted")
    if "crit" in header:
        raise TokenError("critical_header")
    algorithm, key_id, kind = header.get("alg"), header.get("kid"), header.get("typ")
    if isinstance(algorithm, str) and algorithm.lower() == "none":
        raise TokenError("alg_not_allowed")
    if not signature or not isinstance(algorithm, str):
        raise TokenError("token_malformed")
    if key_id is not None and not (isinstance(key_id, str) and len(key_id) <= _KEY_ID_LIMIT):
        raise TokenError("token_malformed")
    if isinstance(kind, str) and kind.lower().removeprefix("application/") in _FOREIGN_TYPES:
        raise TokenError("wrong_type")
    return Header(algorithm, key_id)


def decoded(segment: str) -> bytes:
    """Decode base64url as Python's own decoder does, with or without padding.

    Raises:
        TokenError: ``token_malformed``.
    """
    raw = segment.encode("utf-8", "surrogatepass")
    try:
        return base64.urlsafe_b64decode(raw + b"==")  # more than is needed does no harm
    except (ValueError, binascii.Error):
        raise TokenError("token_malformed") from None


def _check_form(token: str) -> bytes:
    if len(token) > LONGEST:
        raise TokenError("token_too_large")
    segments = token.split(".")
    if len(segments) == _SEGMENTS_OF_JWE:
        raise TokenError("token_encrypted")
    # an empty signature passes here: that is a token with alg none, and is refused by that name
    if len(segments) != _SEGMENTS_OF_JWS or not all(segments[:2]):
        raise TokenError("token_malformed")
    # Padding, and characters that are of no alphabet, are left out by what applications verify
    # with, PyJWT and python-jose: whom they let in for a token, that token names here. It is no
    # weakness: what is signed is compared as it stands.
    return decoded(segments[2])


def unverified_claims(token: str) -> dict[str, Any]:
    """Read a token's claims, without verification.

    Raises:
        TokenError: ``token_malformed``.
    """
    return decode_object(token.split(".")[1])


def decode_object(segment: str | bytes) -> dict[str, Any]:
    """Decode a JSON object: from base64url where it is text, else from its bytes.

    Raises:
        TokenError: ``token_malformed``.
    """
    raw = decoded(segment) if isinstance(segment, str) else segment
    try:
        found = _object(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise TokenError("token_malformed") from None
    if not isinstance(found, dict):
        raise TokenError("token_malformed")
    return found


def _object(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        # Applications read claims with Python's own parser, which takes more: a lone surrogate in
        # a name that its user has chosen must not make him anonymous.
        return json.loads(raw)


def check_claims(  # noqa: PLR0913 - one argument a question
    claims: Mapping[str, Any],
    *,
    now: float,
    leeway: float,
    issuer: str | None,
    audience: Collection[str],
    need_expiry: bool,
) -> float:
    """See whether claims hold now and are meant for us.

    Args:
        claims: The claims.
        now: Unix seconds.
        leeway: Seconds of clock difference that are forgiven.
        issuer: What ``iss`` must be; None: anything.
        audience: What ``aud`` must be or hold, one of these; none: there must be none, for a token
            that names an audience is only for those who know that they are meant (RFC 7519,
            section 4.1.3).
        need_expiry: Whether ``exp`` must be there.

    Returns:
        Unix seconds at which the claims cease to hold, infinite where they do not say.

    Raises:
        TokenError: ``token_expired``, ``token_not_yet_valid``, ``missing_exp``, ``invalid_exp``,
            ``invalid_nbf``, ``missing_issuer``, ``wrong_issuer``, ``missing_audience``,
            ``wrong_audience``, ``audience_not_configured``.
    """
    expires = _time(claims, "exp")
    if expires is None and need_expiry:
        raise TokenError("missing_exp")
    end = math.inf if expires is None else expires + leeway
    if now >= end:
        raise TokenError("token_expired")
    begins = _time(claims, "nbf")
    if begins is not None and now < begins - leeway:
        raise TokenError("token_not_yet_valid")
    if issuer is not None and claims.get("iss") != issuer:
        raise TokenError("wrong_issuer" if "iss" in claims else "missing_issuer")
    _check_audience(claims.get("aud"), audience, strict=need_expiry)
    return end


def _check_audience(given: object, wanted: Collection[str], *, strict: bool) -> None:
    listed = [given] if isinstance(given, str) else given
    if not wanted:
        if listed and strict:
            raise TokenError("audience_not_configured")
        return
    if not listed:
        raise TokenError("missing_audience")
    if not isinstance(listed, list) or not any(one in listed for one in wanted):
        raise TokenError("wrong_audience")


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TokenError(f"invalid_{name}")
    try:
        # applications verify with libraries that take digits in a text, too
        seconds = float(int(value) if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        raise TokenError(f"invalid_{name}") from None
    if not math.isfinite(seconds):
        raise TokenError(f"invalid_{name}")
    return seconds
