"""Mutual TLS with real certificates: whoever has one of the authority's is let in, as himself."""

from __future__ import annotations

import datetime as dt
import ssl

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sinks import request, serving, span, trusting


class Authority:
    """A certificate authority, and the certificates it gives."""

    def __init__(self, directory, name):
        self.directory = directory
        self.name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} CA")])
        self.file = directory / f"{name}-ca.pem"
        self.file.write_bytes(
            self._signed(self._subject, self._key, is_authority=True).public_bytes(
                serialization.Encoding.PEM
            )
        )

    def issue(self, common_name, *names):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Acme, Inc"),
                x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            ]
        )
        certificate = self._signed(subject, key, names=names)
        paths = [self.directory / f"{self.name}-{common_name}.{kind}" for kind in ("pem", "key")]
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return str(paths[0]), str(paths[1])

    def _signed(self, subject, key, *, names=(), is_authority=False):
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"), "ours")


@pytest.fixture(scope="module")
def options(authority):
    import ipaddress

    server = authority.issue("sink", x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    return ("--tls-cert", server[0], "--tls-key", server[1], "--tls-client-ca",
            str(authority.file))  # fmt: skip


def send(sink, authority, certificate, *spans, token=""):
    headers = {"Content-Type": "application/x-protobuf"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    with httpx.Client(verify=trusting(authority.file, certificate), timeout=30) as client:
        return client.post(f"{sink.url}/v1/traces", content=request(*spans), headers=headers)


async def test_every_certificate_of_the_authority(
    tmp_path, stored, authority, options, tmp_path_factory
):
    """The record is marked with the subject; who has none, or another's, is not let in."""
    others = Authority(tmp_path_factory.mktemp("others"), "others")
    workers = ("--workers", "2")
    with serving(tmp_path, stored.dsn, *options, *workers, no_token=True, scheme="https") as sink:
        gateway = authority.issue("gateway-eu")
        assert send(sink, authority, gateway, span(1)).status_code == 200

        without = send(sink, authority, None, span(2))
        assert without.status_code == 401
        assert b"a client certificate is needed" in without.content
        with pytest.raises((httpx.TransportError, ssl.SSLError)):
            send(sink, authority, others.issue("gateway-eu"), span(3))
        with httpx.Client(verify=trusting(authority.file), timeout=30) as probe:
            assert probe.get(f"{sink.url}/ready").json() == {"ready": True}

    assert [row["received_by"] for row in await stored.rows()] == [
        "certificate:CN=gateway-eu,O=Acme\\, Inc"
    ]


async def test_certificates_that_are_listed(tmp_path, stored, authority, options):
    """Bound like tokens, by subject or by alternative name; tokens go on beside them."""
    listed = tmp_path / "listed.toml"
    listed.write_text(
        '[[certificate]]\nname = "eu"\nsubject = "CN=gateway-eu,O=Acme\\\\, Inc"\n'
        'tenant = "acme"\n'
        '[[certificate]]\nname = "us"\nsan = "URI:spiffe://acme/gateway-us"\n'
    )
    from otel_audit.server.credentials import new_token

    token, lines = new_token("beside")
    listed.write_text(listed.read_text() + lines)
    with serving(
        tmp_path, stored.dsn, *options, "--tokens", str(listed), no_token=True, scheme="https"
    ) as sink:
        by_subject = authority.issue("gateway-eu")
        by_name = authority.issue("any", x509.UniformResourceIdentifier("spiffe://acme/gateway-us"))
        assert send(sink, authority, by_subject, span(1)).status_code == 200
        assert send(sink, authority, by_name, span(2)).status_code == 200
        assert send(sink, authority, None, span(3), token=token).status_code == 200
        assert send(sink, authority, authority.issue("stranger"), span(4)).status_code == 403

    assert [(row["received_by"], row["tenant_id"]) for row in await stored.rows()] == [
        ("certificate:eu", "acme"),
        ("certificate:us", ""),
        ("token:beside", ""),
    ]
