"""Whether a request may send, and as whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from otel_audit._util.loopback import is_loopback
from otel_audit.server.credentials import (
    LONGEST_TOKEN,
    NOBODY,
    Certificate,
    CredentialsFile,
    Sender,
)
from otel_audit.server.errors import forbidden, unauthenticated

CERTIFICATE: Final = "otel_audit.client_certificate"
"""Key of the ASGI scope's ``state`` under which our server puts the verified `Certificate`."""

NoAuth = Literal["no", "loopback", "anywhere"]


@dataclass(frozen=True)
class Authentication:
    """Authenticates senders.

    Attributes:
        credentials: The file of tokens and certificates, if there is one.
        any_certificate: Whether every certificate of the configured authority is let in, where
            the file names none.
        no_auth: From where requests without any credential are let in.
    """

    credentials: CredentialsFile | None = None
    any_certificate: bool = False
    no_auth: NoAuth = "no"

    def sender(self, authorization: bytes | None, state: Mapping[str, Any], client: str) -> Sender:
        """Return who sends a request.

        Args:
            authorization: Its header of that name.
            state: The ASGI scope's state; for gRPC, its counterpart.
            client: The address that it comes from.

        Returns:
            The sender.

        Raises:
            RequestError: 401 if the credential is missing, unknown or expired; 403 if it is known
                and not let in.
        """
        if (
            authorization is not None
            and self.credentials is not None
            and self.credentials.entries.token
        ):
            return self._by_token(authorization, self.credentials)
        certificate = state.get(CERTIFICATE)
        if isinstance(certificate, Certificate):
            return self._by_certificate(certificate)
        if self.no_auth == "anywhere" or (self.no_auth == "loopback" and is_loopback(client)):
            return NOBODY
        if self.no_auth == "loopback":
            raise forbidden("without authentication only this machine itself may send")
        if self.credentials is None or not self.credentials.entries.token:
            raise unauthenticated("a client certificate is needed")
        raise unauthenticated("a bearer token is needed: Authorization: Bearer …")

    @staticmethod
    def _by_token(authorization: bytes, credentials: CredentialsFile) -> Sender:
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            raise unauthenticated("a bearer token is needed: Authorization: Bearer …")
        token = token.strip()
        entry = credentials.by_token(token) if 0 < len(token) <= LONGEST_TOKEN else None
        if entry is None:
            raise unauthenticated("the bearer token is not known")
        if entry.has_expired():
            raise unauthenticated(f"the bearer token {entry.name!r} has expired")
        return entry.sender()

    def _by_certificate(self, certificate: Certificate) -> Sender:
        named = self.credentials is not None and bool(self.credentials.entries.certificate)
        if named and self.credentials is not None:
            found = self.credentials.by_certificate(certificate)
            if found is None:
                raise forbidden(f"the client certificate {certificate.subject!r} is not listed")
            return found
        if not self.any_certificate:
            raise forbidden("client certificates are not let in here")
        return Sender(f"certificate:{certificate.subject}")
