"""Signatures over log records of the draft audit signal, and the trusted keys."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from otel_audit.attributes import PRODUCER_ID
from otel_audit.audit_signal import ALGORITHM, CERTIFICATE, VALUE
from otel_audit.errors import ConfigurationError, MissingExtraError
from otel_audit.redaction.placeholders import WITHHELD_FOR_SIZE
from otel_audit.server.canonical_forms import UndecodableRecordError, canonical_forms, parse_log
from otel_audit.server.decode_attributes import Nodes, value_of

Verdict = Literal["valid", "invalid", "unsigned", "unknown_signer", "unsupported"]

ALGORITHMS: Final = ("RS256", "RS512", "ES256", "EdDSA", "HMAC-SHA256")
_HMAC: Final = "HMAC-SHA256"
_SHORTEST_SECRET: Final = 16
"""Bytes: 128 bits, which nobody can try out."""
_FINGERPRINT: Final = "sha256:"
_LONGEST_SIGNED: Final = 2 << 20
"""Bytes of a record whose signature is looked at: signers refuse more."""


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ``[[signer]]`` of the file."""

    name: str
    certificate: str | None = None
    hmac_key: str | None = None
    algorithms: tuple[Literal["RS256", "RS512", "ES256", "EdDSA", "HMAC-SHA256"], ...] = ()


class _Entries(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    signer: tuple[_Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of checking a record's signature.

    Attributes:
        verdict: Whether it holds, or why nothing can be said.
        signer: Whose it is, by the trust file; None where it does not hold.
        form: The canonical form that was signed.
    """

    verdict: Verdict
    signer: str | None = None
    form: str | None = None


@dataclass(frozen=True, slots=True)
class _Signer:
    """One who is trusted."""

    name: str
    algorithms: frozenset[str]
    key: Any
    certificate: bytes = b""

    @property
    def fingerprint(self) -> str:
        """A short name of the signer's certificate."""
        return _FINGERPRINT + hashlib.sha256(self.certificate).hexdigest()


class TrustedSigners:
    """Checks signatures by the certificates and secrets of a file."""

    def __init__(self, signers: Sequence[_Signer]) -> None:
        """Index the signers by fingerprint and certificate.

        Args:
            signers: Those of the trust file; see `read_trust_file`.
        """
        self._secrets = [one for one in signers if not one.certificate]
        self._named: dict[str, _Signer] = {}
        for one in signers:
            if one.certificate:
                self._named[one.fingerprint] = one
                self._named[base64.b64encode(one.certificate).decode()] = one

    def check(  # noqa: PLR0911 - one for each verdict
        self, raw: bytes, attributes: Mapping[str, Any], resource: Mapping[str, Any], body: Any
    ) -> Checked:
        """Check one record.

        Args:
            raw: The log record as it came.
            attributes: Its attributes, as they are to be stored.
            resource: Its resource's.
            body: Its body, as it is to be stored.
        """
        value = attributes.get(VALUE)
        if value is None:
            return Checked("unsigned")
        algorithm = resource.get(ALGORITHM, attributes.get(ALGORITHM))
        if algorithm not in ALGORITHMS:
            return Checked("unsupported")
        signature = _decoded(value)
        # what could be read in part only has no bytes, and nobody has signed what is left of it
        if signature is None or not 0 < len(raw) <= _LONGEST_SIGNED:
            return Checked("invalid")
        signers = self._candidates(
            algorithm, resource.get(CERTIFICATE, attributes.get(CERTIFICATE))
        )
        if not signers:
            return Checked("unknown_signer")
        try:
            record = parse_log(raw)
            if not _matches_stored(record, attributes, body):
                return Checked("invalid")
            for form, text in canonical_forms(record):
                for signer in signers:
                    if _holds(signer.key, algorithm, signature, text):
                        return Checked("valid", signer.name, form)
        except UndecodableRecordError:
            return Checked("invalid")
        return Checked("invalid")

    def _candidates(self, algorithm: str, certificate: Any) -> list[_Signer]:
        if algorithm == _HMAC:
            return [one for one in self._secrets if algorithm in one.algorithms]
        named = self._named.get(certificate) if isinstance(certificate, str) else None
        # the algorithm is the sender's word: a key serves for its own only
        return [named] if named is not None and algorithm in named.algorithms else []


def read_trust_file(path: Path) -> TrustedSigners:
    """Read whom to believe.

    Args:
        path: TOML, a ``[[signer]]`` with ``name`` and either ``certificate`` (a PEM file) or
            ``hmac_key`` (a file with base64), each beside the file itself where it is relative.

    Raises:
        ConfigurationError: It cannot be read; the message names the file and the entry.
    """
    try:
        found = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _Entries)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"{path}: no trust file can be read here: {error}") from None
    if not found.signer:
        raise ConfigurationError(f"{path}: it names no [[signer]], so nothing could be verified")
    return TrustedSigners([_signer(path, one) for one in found.signer])


def _signer(path: Path, entry: _Entry) -> _Signer:
    where = f"{path}: signer {entry.name!r}"
    if (entry.certificate is None) == (entry.hmac_key is None):
        raise ConfigurationError(f"{where} needs either a certificate or an hmac_key")
    file = path.parent / (entry.certificate or entry.hmac_key or "")
    try:
        text = file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{where}: {file} cannot be read: {error.strerror}") from None
    if entry.hmac_key is not None:
        return _Signer(entry.name, frozenset({_HMAC}), _secret(where, text))
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding
    except ImportError as error:
        raise MissingExtraError("verifying signatures", "encryption") from error
    try:
        certificate = x509.load_pem_x509_certificate(text)
        key = certificate.public_key()
    except ValueError:
        raise ConfigurationError(f"{where}: {file} is not a certificate in PEM") from None
    fitting = _fitting(key)
    if not fitting.issuperset(entry.algorithms):
        raise ConfigurationError(
            f"{where}: its key serves for {', '.join(sorted(fitting)) or 'none of the algorithms'}"
        )
    used = frozenset(entry.algorithms) or fitting
    return _Signer(entry.name, used, key, certificate.public_bytes(Encoding.DER))


def _secret(where: str, text: bytes) -> bytes:
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        raise ConfigurationError(f"{where}: its hmac_key is not base64") from None
    if len(key) < _SHORTEST_SECRET:
        raise ConfigurationError(f"{where}: its hmac_key has less than {_SHORTEST_SECRET} bytes")
    return key


def _fitting(key: Any) -> frozenset[str]:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, rsa.RSAPublicKey):
        return frozenset({"RS256", "RS512"})
    if isinstance(key, ed25519.Ed25519PublicKey):
        return frozenset({"EdDSA"})
    is_p256 = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    return frozenset({"ES256"}) if is_p256 else frozenset()


def _matches_stored(record: LogRecord, attributes: Mapping[str, Any], body: Any) -> bool:
    """Whether the record whose signature is looked at says what is stored.

    The two are read by different code. A value of two kinds, say, must not be verified as the one
    and stored as the other.
    """
    nodes = Nodes()
    named = {pair.key: value_of(pair.value, nodes) for pair in record.attributes}
    return _is_same(value_of(record.body, nodes), body) and all(
        _is_same(named.get(name), value)
        for name, value in attributes.items()
        # the draft's name of a stream, repeated under ours
        if name in named or name != PRODUCER_ID
    )


def _is_same(signed: Any, stored: Any) -> bool:
    # what is too large to be stored is not there at all, and says nothing else
    if stored in (WITHHELD_FOR_SIZE, [WITHHELD_FOR_SIZE]):
        return True
    return (type(signed), signed) == (type(stored), stored)


def _holds(key: Any, algorithm: str, signature: bytes, text: bytes) -> bool:
    if algorithm == _HMAC:
        return hmac.compare_digest(hmac.digest(key, text, "sha256"), signature)
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding

    try:
        if algorithm == "EdDSA":
            key.verify(signature, text)
        elif algorithm == "ES256":
            key.verify(_as_asn1(signature), text, ec.ECDSA(hashes.SHA256()))
        else:
            digest = hashes.SHA256() if algorithm == "RS256" else hashes.SHA512()
            key.verify(signature, text, padding.PKCS1v15(), digest)
    except InvalidSignature:
        return False
    return True


def _as_asn1(signature: bytes) -> bytes:
    """A signature by P-256 in ASN.1, which the Collector writes; JOSE writes two numbers."""
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    half = 32
    if len(signature) != 2 * half:
        return signature
    return encode_dss_signature(int.from_bytes(signature[:half]), int.from_bytes(signature[half:]))


def _decoded(value: Any) -> bytes | None:
    if not isinstance(value, str):
        return None
    try:
        return base64.b64decode(
            value + "=" * (-len(value) % 4),
            altchars=b"-_" if _is_url(value) else None,
            validate=True,
        )
    except binascii.Error:
        return None


def _is_url(value: str) -> bool:
    return "-" in value or "_" in value
