"""The OTLP endpoint: its URL, headers and TLS, checked at the start.

None of OpenTelemetry's own ``OTEL_EXPORTER_OTLP_*`` variables is looked at, nor a proxy from the
environment: an audit trail must not go where traces happen to go.
"""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

from otel_audit._util.loopback import is_loopback
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError
from otel_audit.setting_values import PREFIX

_logger = logging.getLogger(__name__)

TRACES_PATH: Final = "/v1/traces"
"""OTLP specification, OTLP/HTTP request."""

_OTHER_SIGNALS: Final = ("/v1/audit", "/v1/logs", "/v1/metrics")
_GRPC_PORT: Final = 4317
"""OTLP's port for gRPC; over HTTP it is 4318."""
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PRINTABLE: Final = re.compile(r"[\x20-\x7e\x80-\xff]*")
_OURS: Final = frozenset({
    "connection", "content-encoding", "content-length", "content-type", "host", "transfer-encoding",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OTLP/HTTP receiver of spans.

    Attributes:
        url: Absolute, with the path to the signal.
        headers: Sent with each request: tokens and the like.
        tls: For ``https``: whom to trust, and our certificate; None for ``http``.
        compression: How a request's body is compressed.
        timeout: Seconds that one request may take, from connecting to the answer's last byte.

    Example::

        endpoint = Endpoint("http://127.0.0.1:4318/v1/traces", headers={"x-token": "…"})
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: ssl.SSLContext | None = None
    compression: Literal["gzip", "none"] = "gzip"
    # as the setting `otlp_timeout`, and as OpenTelemetry's own exporters
    timeout: float = 10.0

    @classmethod
    def from_config(cls, config: AuditConfig) -> Self:
        """Read the settings.

        Args:
            config: ``otlp_endpoint`` and the other settings of that beginning.

        Returns:
            The endpoint; nothing is connected yet.

        Raises:
            ConfigurationError: A setting is missing or cannot be used; the message names it and
                the remedy, and shows no secret.
        """
        parts = _split(config.otlp_endpoint)
        return cls(
            url=_with_signal(parts),
            headers=_headers(config.otlp_headers),
            tls=_tls(config, secure=parts.scheme == "https"),
            compression=config.otlp_compression,
            timeout=config.otlp_timeout,
        )

    def warn_of_clear_text(self) -> None:
        """Log it if records leave this machine unencrypted."""
        host = urlsplit(self.url).hostname or ""
        if self.tls is None and not is_loopback(host):
            log_limited(
                _logger, "clear text",
                "%sOTLP_ENDPOINT is plain HTTP to another machine: anybody on the network can read "
                "the audit records%s; use https", PREFIX, " and the token" if self.headers else "",
                level=logging.WARNING,
            )  # fmt: skip


def _split(endpoint: str | None) -> SplitResult:
    name = f"{PREFIX}OTLP_ENDPOINT"
    try:
        parts = urlsplit((endpoint or "").strip())
        port = parts.port
    except ValueError:
        raise ConfigurationError(
            f"{name}: this is not a URL, such as http://127.0.0.1:4318"
        ) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(
            f"{name}: a URL with http:// or https:// and a host is needed, such as "
            "http://127.0.0.1:4318"
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigurationError(
            f"{name}: user, password, query and fragment have no place in it, because it is "
            f"logged; put secrets into {PREFIX}OTLP_HEADERS"
        )
    if port == _GRPC_PORT:
        log_limited(
            _logger, "gRPC port",
            "%s: port %d is usually OTLP over gRPC; records are sent over HTTP, usually to 4318",
            name, port, level=logging.WARNING,
        )  # fmt: skip
    return parts


def _with_signal(parts: SplitResult) -> str:
    path = parts.path.rstrip("/")
    if path.endswith(_OTHER_SIGNALS):
        raise ConfigurationError(
            f"{PREFIX}OTLP_ENDPOINT: records are sent as spans; end its path with {TRACES_PATH}, "
            "or leave the signal out"
        )
    if not path.endswith(TRACES_PATH):
        path += TRACES_PATH
    return f"{parts.scheme}://{parts.netloc}{path}"


def _headers(given: Mapping[str, SecretStr]) -> dict[str, str]:
    name = f"{PREFIX}OTLP_HEADERS"
    found = {key.strip().lower(): value.get_secret_value() for key, value in given.items()}
    for key, value in found.items():
        if not _TOKEN.fullmatch(key):
            raise ConfigurationError(f"{name}: a header's name has characters that none may have")
        if key in _OURS:
            raise ConfigurationError(f"{name}: {key} is set by otel-audit itself; leave it out")
        if not _PRINTABLE.fullmatch(value):
            raise ConfigurationError(
                f"{name}: the value of {key} has characters that no header may have, such as a "
                "line's end"
            )
    return found


def _tls(config: AuditConfig, *, secure: bool) -> ssl.SSLContext | None:
    certificate, key = config.otlp_client_certificate, config.otlp_client_key
    if not secure:
        for name in ("otlp_certificate", "otlp_client_certificate", "otlp_client_key"):
            if getattr(config, name) is not None:
                raise ConfigurationError(
                    f"{PREFIX}{name.upper()}: there is no TLS with http://; write https:// in "
                    f"{PREFIX}OTLP_ENDPOINT, or unset it"
                )
        return None
    if key is not None and certificate is None:
        raise ConfigurationError(
            f"{PREFIX}OTLP_CLIENT_KEY: a key without its certificate; set "
            f"{PREFIX}OTLP_CLIENT_CERTIFICATE, too"
        )
    context = _trusting(config.otlp_certificate)
    if certificate is not None:
        _readable("OTLP_CLIENT_CERTIFICATE", certificate)
        if key is not None:
            _readable("OTLP_CLIENT_KEY", key)
        try:
            # an encrypted key would make OpenSSL ask at a terminal that is not there
            context.load_cert_chain(certificate, key, password=_no_password)
        except (ssl.SSLError, ValueError):
            raise ConfigurationError(
                f"{PREFIX}OTLP_CLIENT_CERTIFICATE, {PREFIX}OTLP_CLIENT_KEY: these are not "
                "certificate and its unencrypted key in PEM"
            ) from None
    return context


def _trusting(authorities: Path | None) -> ssl.SSLContext:
    if authorities is None:
        return ssl.create_default_context()
    _readable("OTLP_CERTIFICATE", authorities)
    try:
        return ssl.create_default_context(cafile=authorities)
    except ssl.SSLError:
        raise ConfigurationError(
            f"{PREFIX}OTLP_CERTIFICATE: the file holds no certificate in PEM"
        ) from None


def _readable(setting: str, path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{PREFIX}{setting}: the file cannot be read ({error.strerror})"
        ) from None


def _no_password() -> str:
    raise ValueError("the key is encrypted")
