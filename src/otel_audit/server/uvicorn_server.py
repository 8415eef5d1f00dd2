"""The sink on uvicorn, with everything that uvicorn leaves to its user."""

from __future__ import annotations

import asyncio
import gc
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import h11
import msgspec
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from otel_audit.errors import ConfigurationError, MissingExtraError
from otel_audit.server import access_log
from otel_audit.server.app import create_app
from otel_audit.server.authentication import CERTIFICATE
from otel_audit.server.credentials import Certificate
from otel_audit.server.errors import JSON, RequestError, as_status, undecodable

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from otel_audit.server.grpc_server import GrpcListening

_LARGEST_HEAD: Final = 65_536
"""Bytes of request line and headers: more than `app` takes, so that `app` gives the answer."""
_PASSED_ON: Final = "_OTEL_AUDIT_SERVE"
_BETWEEN_COLLECTIONS: Final = 50_000
"""Objects made between two runs of the garbage collector; CPython's default is 700."""
_HEAD_TIMEOUT: Final = 10.0
"""Seconds in which a connection must have brought a request's head."""

_SHORT_NAMES: Final = {
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "streetAddress": "STREET",
    "domainComponent": "DC",
    "userId": "UID",
}
"""The attribute types that RFC 4514 gives a short name, as OpenSSL calls them."""


@dataclass(frozen=True)
class Listening:
    """Address and certificates of the server.

    Attributes:
        host: Address or name.
        port: Port; 0 for any.
        certificate: PEM file with the server's certificate and what leads to its authority.
        key: PEM file with its key, where that is another file.
        client_ca: PEM file with the authorities of client certificates.
        grpc_port: Port of OTLP over gRPC, if any.
        connections: Connections at once, in each process; more get 503.
        workers: Processes that share the port.
    """

    host: str = "127.0.0.1"
    port: int = 4318
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    grpc_port: int | None = None
    connections: int = 1000
    workers: int = 1


class Protocol(H11Protocol):
    """Hands the client's certificate on, and waits for no head without end."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Read the client's certificate, and bound the wait for the first head."""
        super().connection_made(transport)
        certificate = _client_certificate(transport.get_extra_info("ssl_object"))
        if certificate is not None:
            # what becomes the scope's state is this connection's own
            self.app_state = {**self.app_state, CERTIFICATE: certificate}
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Bound the wait for the next head, or end it."""
        before = self.cycle
        if self._deadline is None and (before is None or before.response_complete):
            self._await_head()
        super().data_received(data)
        if self.cycle is not before:
            self._head_is_here()

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection."""
        self._head_is_here()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP in OTLP's form."""
        problem: RequestError = undecodable(f"{msg} Headers may have {_LARGEST_HEAD} bytes in all.")
        body = as_status(problem, JSON)
        headers = [
            (b"content-type", JSON.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=problem.status, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _await_head(self) -> None:
        self._deadline = self.loop.call_later(_HEAD_TIMEOUT, self.transport.close)

    def _head_is_here(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def run(listening: Listening, *, shutdown_timeout: float) -> None:
    """Serve until SIGTERM or SIGINT; what is under way then is finished.

    Args:
        listening: Where.
        shutdown_timeout: Seconds that requests under way may take at the end.

    Raises:
        ConfigurationError: As for `otel_audit.server.app.create_app`; or the certificates cannot
            be read, or do not belong together; or the port cannot be had.
    """
    if listening.client_ca is not None and listening.certificate is None:
        raise ConfigurationError("--tls-client-ca needs --tls-cert: there is no TLS without it")
    _refuse_unusable(listening)
    # so that what is wrong is said here, before a worker fails
    several, app = listening.workers > 1, _app(listening)
    _pass_on(listening)
    settings: dict[str, Any] = {
        "app": f"{__name__}:worker_app" if several else app,
        "factory": several,
        "workers": listening.workers,
        "host": listening.host,
        "port": listening.port,
        "http": Protocol,
        "ws": "none",
        "lifespan": "on",
        "access_log": False,
        "server_header": False,
        "date_header": False,
        "proxy_headers": False,
        "limit_concurrency": listening.connections,
        "h11_max_incomplete_event_size": _LARGEST_HEAD,
        # longer than the 60 s for which proxies keep a silent connection: whoever closes first must
        # be the sender, or a request that is just on its way is lost
        "timeout_keep_alive": 75,
        "timeout_graceful_shutdown": int(shutdown_timeout) or 1,
        "log_config": None,
        "ssl_certfile": listening.certificate,
        "ssl_keyfile": listening.key,
        "ssl_ca_certs": None if listening.client_ca is None else str(listening.client_ca),
        # requested here and required by the application, so that probes need none
        "ssl_cert_reqs": ssl.CERT_NONE if listening.client_ca is None else ssl.CERT_OPTIONAL,
    }
    if several:
        uvicorn.run(**settings)
        return
    _collect_seldom()
    server = uvicorn.Server(uvicorn.Config(**settings))
    server.run()
    if not server.started:
        raise ConfigurationError(
            f"could not listen on {listening.host}:{listening.port}; see the log above"
        )


def worker_app() -> Starlette:
    """Make the application in a worker process, from what its parent has passed on."""
    access_log.to_stderr()
    _collect_seldom()
    listening = msgspec.json.decode(os.environ[_PASSED_ON], type=Listening, dec_hook=_made)
    return _app(listening)


def _made(kind: type[Path], text: str) -> Path:
    return kind(text)


def _pass_on(listening: Listening) -> None:
    """Pass to worker processes the options that are not settings."""
    os.environ[_PASSED_ON] = msgspec.json.encode(listening, enc_hook=str).decode()


def _app(listening: Listening) -> Starlette:
    return create_app(any_certificate=listening.client_ca is not None, grpc=_grpc(listening))


def _grpc(listening: Listening) -> GrpcListening | None:
    if listening.grpc_port is None:
        return None
    try:
        from otel_audit.server.grpc_server import GrpcListening
    except ImportError as error:
        raise MissingExtraError("otel-audit serve --grpc-port", "grpc") from error
    return GrpcListening(
        listening.host, listening.grpc_port, listening.certificate, listening.key,
        listening.client_ca, shared=listening.workers > 1,
    )  # fmt: skip


def _collect_seldom() -> None:
    """Look for garbage less often: a batch makes many objects, and nearly none in cycles."""
    gc.freeze()
    # CPython's 10 before each of the older generations are doubled: these take longest
    gc.set_threshold(_BETWEEN_COLLECTIONS, 20, 20)


def _refuse_unusable(listening: Listening) -> None:
    if listening.certificate is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(listening.certificate, listening.key)
        if listening.client_ca is not None:
            context.load_verify_locations(listening.client_ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"TLS: certificate, key or authorities cannot be used: {error}"
        ) from None


def _client_certificate(tls: Any) -> Certificate | None:
    if tls is None:
        return None
    certificate = tls.getpeercert()
    if not certificate:
        return None
    parts = [
        "+".join(f"{_SHORT_NAMES.get(kind, kind)}={_escaped(value)}" for kind, value in part)
        for part in reversed(certificate.get("subject", ()))
    ]
    names = tuple(f"{kind}:{value}" for kind, value in certificate.get("subjectAltName", ()))
    return Certificate(",".join(parts), names)


def _escaped(value: str) -> str:
    """Escape an attribute's value (RFC 4514, section 2.4)."""
    found = "".join(f"\\{letter}" if letter in '"+,;<>\\' else letter for letter in value)
    if found[:1] in ("#", " "):
        found = "\\" + found
    if found.endswith(" ") and not found.endswith("\\ "):
        found = found[:-1] + "\\ "
    return found.replace("\x00", "\\00")
