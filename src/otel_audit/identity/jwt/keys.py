"""Keys that verify tokens, and the choice of exactly one of them for a token.

python-jose checks signatures; which key and which algorithm it may use is decided here, because it
takes any key for any algorithm, a key's ``use`` and ``key_ops`` unseen. Imported only where tokens
are verified: python-jose and cryptography are optional.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from jose import jws
from jose.backends.base import Key
from jose.backends.cryptography_backend import (
    CryptographyECKey,
    CryptographyHMACKey,
    CryptographyRSAKey,
)
from jose.exceptions import JWKError, JWSError

from otel_audit.identity.jwt.token import Header, TokenError, decoded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

SYMMETRIC: Final = frozenset({"HS256", "HS384", "HS512"})
RSA_PKCS1: Final = frozenset({"RS256", "RS384", "RS512"})
RSA_PSS: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "PS256": hashes.SHA256(),
    "PS384": hashes.SHA384(),
    "PS512": hashes.SHA512(),
}
CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
EDWARDS: Final = frozenset({"EdDSA", "Ed25519"})
ASYMMETRIC: Final = RSA_PKCS1 | frozenset(RSA_PSS) | frozenset(CURVES.values()) | EDWARDS
"""Signature algorithms (RFC 7518, RFC 8037, RFC 9864)."""

SMALLEST_RSA: Final = 2048
"""Bits of an RSA modulus, at least (RFC 7518, section 3.3)."""

_MOST_KEYS: Final = 100
"""Keys of one set: issuers have a few, and each is parsed."""
_CURVES_OF_JWK: Final[Mapping[str, ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}

JwtPublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class UnusableKeyError(ValueError):
    """A key cannot be used; the message says why and holds nothing of the key."""


class _OwnKey(Key):
    """A key for an algorithm that python-jose lacks, in the form it takes keys in."""

    def __init__(self, check: Callable[[bytes, bytes], None]) -> None:
        self._check = check

    def verify(self, msg: bytes, sig: bytes) -> bool:
        try:
            self._check(msg, sig)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """One key.

    Attributes:
        key_id: Its ``kid``.
        by_algorithm: The key as python-jose takes it, for each algorithm it may verify; empty
            for a key that is not for verifying signatures.
    """

    key_id: str | None
    by_algorithm: Mapping[str, Key]


def verify_signature(token: str, key: Key, algorithm: str) -> bytes:
    """Verify a token's signature with one key and one algorithm.

    Returns:
        The payload.

    Raises:
        TokenError: ``bad_signature``.
    """
    signed, _, signature = token.rpartition(".")
    # in the one spelling that python-jose is sure to decode
    plain = base64.urlsafe_b64encode(decoded(signature)).decode()
    try:
        return jws.verify(f"{signed}.{plain}", cast("Any", key), [algorithm])
    except JWSError:
        raise TokenError("bad_signature") from None


def choose_key(keys: Iterable[VerificationKey], header: Header) -> Key:
    """Choose the one key that may verify a token.

    Args:
        keys: All keys of the issuer; those read from a JWK set have their ``kid``.
        header: The token's.

    Raises:
        TokenError: ``unknown_key``; ``key_not_for_signatures``; ``alg_not_allowed`` for this key;
            ``ambiguous_key`` where the token names none and several would do.
    """
    named = [key for key in keys if header.key_id is None or key.key_id == header.key_id]
    if not named:
        raise TokenError("unknown_key")
    fitting = [key for key in named if header.algorithm in key.by_algorithm]
    if len(fitting) > 1:
        raise TokenError("ambiguous_key")
    if not fitting:
        usable = any(key.by_algorithm for key in named)
        raise TokenError("alg_not_allowed" if usable else "key_not_for_signatures")
    return fitting[0].by_algorithm[header.algorithm]


def static_key(text: str, algorithms: frozenset[str]) -> VerificationKey:
    """Read the one key of a setting.

    Args:
        text: A secret where the algorithms are HS*; else a public key or a certificate in PEM, or
            a public key in base64 DER.
        algorithms: Those that are accepted, all symmetric or all asymmetric.

    Raises:
        UnusableKeyError: It does not fit the algorithms.
    """
    if not algorithms & SYMMETRIC:
        return VerificationKey(None, _for_public_key(_public_key(text), algorithms))
    if not text:
        raise UnusableKeyError("the secret is empty")
    try:
        _public_key(text)
    except UnusableKeyError:
        pass
    else:
        # everybody knows the public key, and could sign with it
        raise UnusableKeyError("a public key, and HS* needs a secret")
    return VerificationKey(None, _for_secret(text.encode(), algorithms))


def read_key_set(text: bytes, algorithms: frozenset[str]) -> tuple[VerificationKey, ...]:
    """Read a JWK set (RFC 7517, section 5).

    Args:
        text: JSON.
        algorithms: Those that are accepted; no key is made for any other.

    Returns:
        The keys that could be read; those for other uses without an algorithm. A key of an unknown
        type is left out (RFC 7517, section 5).

    Raises:
        UnusableKeyError: It is not a JWK set, or has more than 100 keys.
    """
    try:
        found = msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise UnusableKeyError("not JSON") from None
    entries = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise UnusableKeyError("no JWK set: there is no list named keys")
    if len(entries) > _MOST_KEYS:
        raise UnusableKeyError(f"more than {_MOST_KEYS} keys")
    keys = (_read_jwk(entry, algorithms) for entry in entries if isinstance(entry, dict))
    return tuple(key for key in keys if key is not None)


def _read_jwk(jwk: dict[str, Any], algorithms: frozenset[str]) -> VerificationKey | None:
    key_id = jwk.get("kid")
    if key_id is not None and not isinstance(key_id, str):
        return None
    if not _is_for_verifying(jwk):
        return VerificationKey(key_id, {})
    if jwk.get("alg") is not None:
        algorithms &= {jwk["alg"]} if isinstance(jwk["alg"], str) else set()
    try:
        return VerificationKey(key_id, _material(jwk, algorithms))
    except (UnusableKeyError, ValueError, TypeError, KeyError, UnsupportedAlgorithm):
        return None


def _is_for_verifying(jwk: Mapping[str, Any]) -> bool:
    operations = jwk.get("key_ops")
    return jwk.get("use") in (None, "sig") and (
        operations is None or (isinstance(operations, list) and "verify" in operations)
    )


def _material(jwk: Mapping[str, Any], algorithms: frozenset[str]) -> dict[str, Key]:
    # only the public parts are read, whatever else is there
    match jwk.get("kty"):
        case "RSA":
            numbers = rsa.RSAPublicNumbers(_number(jwk["e"]), _number(jwk["n"]))
            return _for_public_key(numbers.public_key(), algorithms)
        case "EC":
            point = ec.EllipticCurvePublicNumbers(
                _number(jwk["x"]), _number(jwk["y"]), _CURVES_OF_JWK[jwk["crv"]]
            )
            return _for_public_key(point.public_key(), algorithms)
        case "OKP" if jwk.get("crv") == "Ed25519":
            edwards = ed25519.Ed25519PublicKey.from_public_bytes(_bytes(jwk["x"]))
            return _for_public_key(edwards, algorithms)
        case "oct":
            return _for_secret(_bytes(jwk["k"]), algorithms)
        case _:
            raise UnusableKeyError("unknown type of key")


def _for_public_key(key: JwtPublicKey, algorithms: frozenset[str]) -> dict[str, Key]:
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < SMALLEST_RSA:
            raise UnusableKeyError(f"an RSA key of less than {SMALLEST_RSA} bits")
        found: dict[str, Key] = {
            name: CryptographyRSAKey(key, name) for name in RSA_PKCS1 & algorithms
        }
        return found | {name: _pss(key, RSA_PSS[name]) for name in RSA_PSS.keys() & algorithms}
    if isinstance(key, ed25519.Ed25519PublicKey):
        return {
            name: _OwnKey(lambda msg, sig: key.verify(sig, msg)) for name in EDWARDS & algorithms
        }
    wanted = {CURVES.get(key.curve.name, "")} & algorithms
    return {name: CryptographyECKey(key, name) for name in wanted}


def _for_secret(secret: bytes, algorithms: frozenset[str]) -> dict[str, Key]:
    try:
        return {name: CryptographyHMACKey(secret, name) for name in SYMMETRIC & algorithms}
    except JWKError:
        # otherwise everybody who knows a public key could sign
        raise UnusableKeyError("a key in PEM, which is not a secret for HS*") from None


def _pss(key: rsa.RSAPublicKey, digest: hashes.HashAlgorithm) -> Key:
    # RFC 7518, section 3.5: the salt is as long as the digest
    scheme = padding.PSS(padding.MGF1(digest), digest.digest_size)
    return _OwnKey(lambda msg, sig: key.verify(sig, msg, scheme, digest))


def _public_key(text: str) -> JwtPublicKey:
    raw = text.strip().encode()
    if b"PRIVATE KEY-----" in raw:
        raise UnusableKeyError("a private key, and only the public one is needed here")
    try:
        key = _load_public(raw)
    except (ValueError, TypeError, binascii.Error, UnsupportedAlgorithm):
        raise UnusableKeyError(
            "no public key in PEM; a shared secret has an algorithm such as HS256"
        ) from None
    if not isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey)):
        raise UnusableKeyError("a key that is neither RSA, EC, nor Ed25519")
    return key


def _load_public(raw: bytes) -> object:
    if raw.startswith(b"-----BEGIN CERTIFICATE"):
        return x509.load_pem_x509_certificate(raw).public_key()
    if raw.startswith(b"-----BEGIN"):
        return serialization.load_pem_public_key(raw)
    if raw.startswith((b"ssh-", b"ecdsa-sha2-")):
        return serialization.load_ssh_public_key(raw)
    return serialization.load_der_public_key(base64.b64decode(b"".join(raw.split()), validate=True))


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _number(text: str) -> int:
    return int.from_bytes(_bytes(text), "big")
