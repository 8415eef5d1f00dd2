"""The client certificate that a proxy passes on whole (RFC 9440, `Client-Cert`)."""

from __future__ import annotations

import base64
import datetime as dt
import importlib.util
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.config import AuditConfig
from otel_audit.errors import MissingExtraError
from otel_audit.identity.actor import NO_BEARER, ActorOptions, resolve_actor
from otel_audit.identity.certificate import certificate_subject
from otel_audit.record import Actor
from otel_audit.scope import AuditScope


def certificate(*uris: str, name: str | None = "job-1") -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    attributes = [] if name is None else [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Shop"),
        x509.NameAttribute(NameOID.COMMON_NAME, name),
    ]  # fmt: skip
    subject = x509.Name(attributes)
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    builder = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
    )
    if uris:
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def spelled(der: bytes) -> str:
    return f":{base64.b64encode(der).decode()}:"


PLAIN = certificate()
SETTINGS: dict[str, Any] = {
    "client_certificate_header": "Client-Cert",
    "trusted_proxies": "10.0.0.0/8",
    "exporter": "none",
}


def resolve(*values: str, peer: str = "10.0.0.1") -> Actor:
    headers = [(b"client-cert", value.encode()) for value in values]
    scope = {"type": "http", "headers": headers, "client": (peer, 1)}
    options = ActorOptions.from_config(AuditConfig(**SETTINGS))
    return resolve_actor(scope, AuditScope(), options, NO_BEARER)


class TestCertificate:
    def test_its_subject_is_the_actor(self) -> None:
        """The proxy has verified it, so it is verified."""
        assert resolve(spelled(PLAIN)) == Actor(
            id="CN=job-1,O=Shop", type="service", verified=True, source="certificate"
        )

    def test_a_uri_goes_before_the_subject(self) -> None:
        """As with SPIFFE, and as with Envoy's header."""
        assert resolve(spelled(certificate("spiffe://td/job"))).id == "spiffe://td/job"

    def test_control_characters_are_taken_out(self) -> None:
        """A subject may hold any text."""
        found = resolve(spelled(certificate(name="a\nb"))).id
        assert "\n" not in found
        assert found.startswith("CN=a")

    @pytest.mark.parametrize(
        "value",
        [
            "::", ":", ":AAAA:", ":not base64:", spelled(PLAIN)[:-1], spelled(PLAIN)[1:],
            spelled(PLAIN[:-10]), spelled(PLAIN) + ";a=1", f"{spelled(PLAIN)}, {spelled(PLAIN)}",
            spelled(certificate(name=None)), spelled(PLAIN + b"x" * 20_000),
            ":-----BEGIN CERTIFICATE-----:",
        ],
    )  # fmt: skip
    def test_what_is_none_names_nobody(self, value: str) -> None:
        """Not of the form of the RFC, no certificate, one without a name, or far too long."""
        found = resolve(value)
        assert (found.id, found.reason) == ("anonymous", "certificate_unreadable")

    def test_two_are_none(self) -> None:
        """One of them may be the client's own."""
        assert resolve(spelled(PLAIN), spelled(PLAIN)).reason == "certificate_unreadable"

    def test_from_anybody_else_it_names_nobody(self) -> None:
        """Whoever has no proxy of ours before them can send what they like."""
        found = resolve(spelled(PLAIN), peer="192.0.2.1")
        assert (found.id, found.reason) == ("anonymous", "certificate_from_untrusted_peer")

    @given(st.binary(max_size=200))
    def test_any_bytes_are_survived(self, der: bytes) -> None:
        """Whatever stands there, it is a name or none."""
        assert certificate_subject(spelled(der)) is None

    def test_without_the_package_auditing_does_not_start(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The message names the setting and what to install."""
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        with pytest.raises(MissingExtraError, match=r"CERTIFICATE_HEADER.*otel-audit\[encryption"):
            ActorOptions.from_config(AuditConfig(**SETTINGS))
