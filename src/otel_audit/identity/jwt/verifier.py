"""Verifies bearer tokens with python-jose, against one or several issuers."""

from __future__ import annotations

import base64
import functools
import hashlib
import time
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

from otel_audit._util.cache import BoundedCache
from otel_audit.identity.jwt.token import (
    LONGEST,
    DecodedToken,
    Header,
    TokenError,
    check_claims,
    decode_object,
    decoded,
    read_header,
    unverified_claims,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from jose.backends.base import Key

    from otel_audit.identity.jwt.keys import VerificationKey


CACHED: Final = 1024
"""Verified tokens that are remembered, about."""

_LONGEST_SIGNATURE: Final = 8_192
"""Bytes; the longest that any algorithm makes are those of RSA, some 2,048."""


def token_hash() -> Callable[[bytes], Any]:
    """Choose what remembered tokens are found by.

    BLAKE2 is quicker than SHA-256, above all where the processor has no instructions for that; but
    where a system is held to FIPS 140, Python may refuse it.
    """
    try:
        hashlib.blake2b(digest_size=32)
    except (ValueError, AttributeError):
        return hashlib.sha256
    return functools.partial(hashlib.blake2b, digest_size=32)


_hash: Final = token_hash()


class TokenReader(Protocol):
    """Gives the actor's resolver the content of a token."""

    def verify(self, token: str) -> DecodedToken:
        """Return what a token says, without waiting.

        Raises:
            TokenError: It is not valid.
        """


class KeySource(Protocol):
    """The source of an issuer's keys."""

    def generation(self) -> int:
        """Say which keys these are: it grows when they change.

        Raises:
            TokenError: There are none, or they are too old.
        """

    def find(self, header: Header) -> Key:
        """Choose the one key for a token, without waiting.

        Raises:
            TokenError: There is none.
        """


@dataclass(frozen=True, slots=True)
class Issuer:
    """An issuer of tokens.

    Attributes:
        name: What ``iss`` must be; None: anything.
        algorithms: What it may sign with, never empty.
        audience: What ``aud`` must be or hold, one of these; none: there must be none.
        keys: Its keys.
    """

    name: str | None
    algorithms: frozenset[str]
    audience: tuple[str, ...]
    keys: KeySource


@dataclass(frozen=True, slots=True)
class _Remembered:
    token: DecodedToken
    keys: KeySource
    generation: int


class JwtVerifier:
    """Verifies a token and returns its content. Thread-safe."""

    def __init__(
        self,
        issuers: tuple[Issuer, ...],
        *,
        leeway: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Start with no token remembered.

        Args:
            issuers: At least one, each with its own name. One may have none: for all other tokens.
            leeway: Seconds of clock difference that are forgiven.
            clock: Unix seconds.
        """
        self._issuers = {issuer.name: issuer for issuer in issuers}
        self._leeway = leeway
        self._clock = clock
        self._cache: BoundedCache[bytes, _Remembered] = BoundedCache(CACHED // 2)
        self._cached_lately = self._cache.recent

    def verify(self, token: str) -> DecodedToken:
        """Verify a token, without waiting for anything.

        Args:
            token: In compact form, as it stands behind ``Bearer``.

        Returns:
            What it says; the same token again is answered from memory until it expires or its
            issuer's keys change.

        Raises:
            TokenError: It is not valid, or its keys are not there yet.
        """
        if len(token) > LONGEST:
            token = without_padding(token)
        digest = _hash(token.encode("utf-8", "surrogatepass")).digest()
        known = self._cached_lately(digest) or self._cache.get(digest)
        if known is not None and known.generation == known.keys.generation():
            if self._clock() < known.token.expires_at:
                return known.token
            raise TokenError("token_expired")
        header = read_header(token)
        issuer = self._issuer(token)
        if header.algorithm not in issuer.algorithms:
            raise TokenError("alg_not_allowed")
        generation = issuer.keys.generation()
        found = self._check(token, header, issuer)
        self._cache.put(digest, _Remembered(found, issuer.keys, generation))
        return found

    def _issuer(self, token: str) -> Issuer:
        named = None
        if len(self._issuers) > 1 or None not in self._issuers:
            named = unverified_claims(token).get("iss")
        issuer = self._issuers.get(named) if isinstance(named, str) else None
        issuer = issuer or self._issuers.get(None)
        if issuer is None:
            raise TokenError("missing_issuer" if named is None else "wrong_issuer")
        return issuer

    def _check(self, token: str, header: Header, issuer: Issuer) -> DecodedToken:
        from otel_audit.identity.jwt.keys import verify_signature

        payload = verify_signature(token, issuer.keys.find(header), header.algorithm)
        claims = decode_object(payload)
        end = check_claims(
            claims,
            now=self._clock(),
            leeway=self._leeway,
            issuer=issuer.name,
            audience=issuer.audience,
            need_expiry=True,
        )
        return DecodedToken(MappingProxyType(claims), issuer.name, end, verified=True)


class UnverifiedReader:
    """Trusts a token without a check: for applications behind a gateway that checks.

    Whatever it reads is marked as not verified. Only what needs no key is looked at: size, form,
    time, and, where they are configured, issuer and audience.
    """

    def __init__(
        self,
        *,
        leeway: float = 0.0,
        issuer: str | None = None,
        audience: tuple[str, ...] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Remember the checks that need no key.

        Args:
            leeway: Seconds that clocks may differ.
            issuer: What ``iss`` must be; None: anything.
            audience: What ``aud`` must be or hold, one of these; none: it is not looked at.
            clock: Gives the time in Unix seconds.
        """
        self._leeway = leeway
        self._issuer = issuer
        self._audience = audience
        self._clock = clock

    def verify(self, token: str) -> DecodedToken:
        """Read a token.

        Raises:
            TokenError: It is malformed, expired, not yet valid, or meant for others.
        """
        token = without_padding(token)
        read_header(token)
        claims = unverified_claims(token)
        end = check_claims(
            claims,
            now=self._clock(),
            leeway=self._leeway,
            issuer=self._issuer,
            audience=self._audience,
            need_expiry=False,
        )
        return DecodedToken(MappingProxyType(claims), self._issuer, end, verified=False)


@dataclass(frozen=True, slots=True)
class FixedKey:
    """The one key of a setting; it has no id, so a token's key id is ignored."""

    key: VerificationKey

    def generation(self) -> int:
        """It never changes."""
        return 0

    def find(self, header: Header) -> Key:
        """Return the key, if it may verify this algorithm."""
        from otel_audit.identity.jwt.keys import choose_key

        return choose_key((self.key,), Header(header.algorithm, None))


def without_padding(token: str) -> str:
    """Leave out of a token's signature what the decoders of applications leave out.

    Only the signature can be lengthened by its bearer: the rest is signed as it stands. Who does so
    is let in by his application, at any length that the server takes, and so must be known here.

    Raises:
        TokenError: ``token_malformed``, or ``token_too_large`` where that makes it no shorter.
    """
    if len(token) <= LONGEST:
        return token
    signed, _, signature = token.rpartition(".")
    raw = decoded(signature)
    if len(raw) > _LONGEST_SIGNATURE:
        raise TokenError("token_too_large")
    return f"{signed}.{base64.urlsafe_b64encode(raw).rstrip(b'=').decode()}"
