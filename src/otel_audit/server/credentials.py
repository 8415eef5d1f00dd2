"""The credentials of senders: bearer tokens and client certificates, in one file.

.. code-block:: toml

    [[token]]
    name = "gateway-eu"
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    tenant = "acme"                     # optional: records of no other tenant
    service = "orders"                  # optional: records of no other service.name
    expires = 2027-01-31T00:00:00Z      # optional

    [[certificate]]
    name = "gateway-us"
    subject = "CN=gateway-us,O=Acme"

A token has 256 random bits, so that its plain SHA-256 cannot be guessed from; the file holds no
secret, but whoever can write to it can let anybody in.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import stat
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from otel_audit._util.printable import visible
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.errors import ConfigurationError

_logger = logging.getLogger(__name__)

PREFIX: Final = "otas_"
"""Prefix of tokens, so that scanners for leaked secrets recognize them."""

_SETTING: Final = "OTEL_AUDIT_SERVE_TOKENS_FILE"

LONGEST_TOKEN: Final = 512
"""Characters of a sender's token: a longer one is not hashed at all."""
_LOOK_AGAIN: Final = 1.0
"""Seconds between two looks at the file."""


@dataclass(frozen=True, slots=True)
class Sender:
    """The sender, by its credential.

    Attributes:
        identity: ``token:NAME``, ``certificate:NAME``, or ``nobody``.
        tenant: The only tenant it may send for, None for any.
        service: The only ``service.name`` it may send for, None for any.
    """

    identity: str
    tenant: str | None = None
    service: str | None = None


NOBODY: Final = Sender("nobody")


class TokenEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ``[[token]]`` of the file."""

    name: str
    sha256: str
    tenant: str | None = None
    service: str | None = None
    expires: datetime | None = None

    def sender(self) -> Sender:
        """The sender of the credential."""
        return Sender(f"token:{self.name}", self.tenant, self.service)

    def has_expired(self) -> bool:
        """Return whether its time is over; a time without a zone is UTC."""
        if self.expires is None:
            return False
        zone = self.expires.tzinfo or UTC
        return datetime.now(UTC) >= self.expires.replace(tzinfo=zone)


class CertificateEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ``[[certificate]]`` of the file: by its subject, or by one of its alternative names."""

    name: str
    subject: str | None = None
    san: str | None = None
    tenant: str | None = None
    service: str | None = None

    def sender(self) -> Sender:
        """The sender of the credential."""
        return Sender(f"certificate:{self.name}", self.tenant, self.service)


class CredentialEntries(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    token: tuple[TokenEntry, ...] = ()
    certificate: tuple[CertificateEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class Certificate:
    """A client certificate that the TLS layer has verified.

    Attributes:
        subject: Its subject as RFC 4514 writes it: ``CN=gateway-eu,O=Acme``.
        names: Its alternative names: ``DNS:gateway.example.com``, ``URI:spiffe://…``.
    """

    subject: str
    names: tuple[str, ...] = ()


class CredentialsFile:
    """The entries of the file, read again when it changes."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Args:
            path: The file.

        Raises:
            ConfigurationError: It cannot be read, holds nothing, or others may write it.
        """
        self._path = path
        self._entries = read_entries(path)
        self._seen = _fingerprint(path)
        self._looked = time.monotonic()

    @property
    def entries(self) -> CredentialEntries:
        """The file's content, or its last readable one."""
        if time.monotonic() - self._looked >= _LOOK_AGAIN:
            self.reload_if_changed()
        return self._entries

    def reload_if_changed(self) -> None:
        """Read the file if it has changed. If it cannot be read, the last content stays valid."""
        self._looked = time.monotonic()
        seen = _fingerprint(self._path)
        if seen == self._seen:
            return
        try:
            self._entries = read_entries(self._path)
        except ConfigurationError as error:
            log_limited(_logger, "credentials", "Earlier credentials stay in force: %s", error)
            return
        self._seen = seen
        _logger.info("Credentials were read again from %s", self._path)

    def by_token(self, token: bytes) -> TokenEntry | None:
        """Find the entry of a token; every entry is compared, in constant time."""
        digest = hashlib.sha256(token).hexdigest().encode()
        found = None
        for entry in self.entries.token:
            if hmac.compare_digest(entry.sha256.encode(), digest):
                found = entry
        return found

    def by_certificate(self, certificate: Certificate) -> Sender | None:
        """Find the entry of a verified certificate."""
        for entry in self.entries.certificate:
            if entry.subject == certificate.subject or entry.san in certificate.names:
                return entry.sender()
        return None


def read_entries(path: Path) -> CredentialEntries:
    """Read and check a file of credentials.

    Raises:
        ConfigurationError: What is wrong with it, and where.
    """
    try:
        if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigurationError(
                f"{_SETTING}: others may write the file, and so let anybody send: chmod go-w it"
            )
        entries = msgspec.toml.decode(path.read_bytes(), type=CredentialEntries)
    except OSError as error:
        raise ConfigurationError(f"{_SETTING}: cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigurationError(visible(f"{_SETTING}: {error}")) from None
    except RecursionError:
        raise ConfigurationError(f"{_SETTING}: nested too deeply") from None
    for number, token in enumerate(entries.token, 1):
        if len(token.sha256) != 64 or not _is_hex(token.sha256):  # noqa: PLR2004 - of SHA-256
            raise ConfigurationError(
                f"{_SETTING}: token {number} ({token.name}): sha256 must be 64 lower-case hex "
                "digits; make one: otel-audit serve token new NAME"
            )
    for number, entry in enumerate(entries.certificate, 1):
        if (entry.subject is None) == (entry.san is None):
            raise ConfigurationError(
                f"{_SETTING}: certificate {number} ({entry.name}): give either subject or san"
            )
    if not entries.token and not entries.certificate:
        raise ConfigurationError(f"{_SETTING}: holds neither [[token]] nor [[certificate]]")
    return entries


def new_token(
    name: str,
    *,
    tenant: str | None = None,
    service: str | None = None,
    expires: datetime | None = None,
) -> tuple[str, str]:
    """Make a token.

    Args:
        name: Whose it is; it marks every record that comes with it.
        tenant: The only tenant it may send for.
        service: The only ``service.name`` it may send for.
        expires: When it ends.

    Returns:
        The token, to be shown once; and the lines for the file.
    """
    token = PREFIX + secrets.token_urlsafe(32)
    lines = [
        "[[token]]",
        f"name = {_quoted(name)}",
        f'sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"',
    ]
    if tenant is not None:
        lines.append(f"tenant = {_quoted(tenant)}")
    if service is not None:
        lines.append(f"service = {_quoted(service)}")
    if expires is not None:
        lines.append(f"expires = {expires.astimezone(UTC).strftime('%Y-%m-%dT%H:%M:%SZ')}")
    return token, "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A basic string of TOML, whose escapes are JSON's, of visible characters alone."""
    quoted = msgspec.json.encode(text).decode()
    return "".join(one if visible(one) == one else f"\\U{ord(one):08X}" for one in quoted)


def _is_hex(text: str) -> bool:
    return not set(text) - set("0123456789abcdef")


def _fingerprint(path: Path) -> tuple[Any, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_size, found.st_ino)
