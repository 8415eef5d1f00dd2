"""OTLP over gRPC: the same service behind ``TraceService/Export``.

``Export`` is unary. It is handled as a stream of requests all the same, because then its message is
not read before it is asked for: who sends it is known first, as for HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.errors import ConfigurationError, MissingExtraError
from otel_audit.server import decode_protobuf, grpc_message, partial_success
from otel_audit.server.access_log import logger, write
from otel_audit.server.authentication import CERTIFICATE
from otel_audit.server.backpressure import MOST_REQUESTS
from otel_audit.server.credentials import Certificate, Sender
from otel_audit.server.errors import (
    PROTOBUF,
    REFUSAL_HEADER,
    RETRY_AFTER,
    Code,
    RequestError,
    as_asked,
    status_message,
    too_slow,
    unavailable,
    without_frames,
)
from otel_audit.server.request_budget import LARGEST_HEADERS, RequestBudget
from otel_audit.server.service import Service

_TRACES: Final = "opentelemetry.proto.collector.trace.v1.TraceService"
_PATH: Final = f"/{_TRACES}/Export"
_CALLS: Final = 16 * MOST_REQUESTS
"""Calls at once; gRPC itself answers more with RESOURCE_EXHAUSTED, whoever calls. So it is far more
than one sender may have, and who is nobody has none: such a call is answered at once."""

_READ_AT_ONCE: Final = 16
"""Messages of one sender that are read at once, each of which may be as large as the limit before
its size is known. What is not read yet stays with its sender, but for 64 KiB."""

_STATUSES: Final = {status.value[0]: status for status in grpc.StatusCode}


@dataclass(frozen=True)
class GrpcListening:
    """Address and certificates of the gRPC server; see `uvicorn_server.Listening`.

    Attributes:
        shared: Whether other processes listen on the same port.
    """

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    shared: bool = False


class GrpcServer:
    """The server; runs in the event loop of the HTTP one."""

    def __init__(self, service: Service, listening: GrpcListening) -> None:
        """Read the certificates; no port is opened yet.

        Args:
            service: Takes the requests, as for HTTP.
            listening: Address and certificates.

        Raises:
            ConfigurationError: A certificate cannot be read.
            MissingExtraError: Client certificates need a package that is not installed.
        """
        self._service = service
        self._listening = listening
        self._credentials = _credentials(listening)
        self._server: grpc.aio.Server | None = None
        self._readers = _Readers()

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigurationError: The port cannot be had.
        """
        limit = self._service.config.serve_max_message_bytes
        server = grpc.aio.server(
            maximum_concurrent_rpcs=_CALLS,
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.per_message_decompression", 0),  # see grpc_message
                ("grpc.max_metadata_size", LARGEST_HEADERS),
                ("grpc.so_reuseport", 1 if self._listening.shared else 0),
            ],
        )
        handler = grpc.stream_unary_rpc_method_handler(self._export)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_TRACES, {"Export": handler}),)
        )
        host = self._listening.host
        address = f"{f'[{host}]' if ':' in host else host}:{self._listening.port}"
        try:
            if self._credentials is None:
                server.add_insecure_port(address)
            else:
                server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise ConfigurationError(f"gRPC could not listen on {address}") from error
        await server.start()
        logger.info("OTLP/gRPC is received on %s", address)
        self._server = server

    async def stop(self, patience: float) -> None:
        """Take no more calls, and let those under way end within so many seconds."""
        if self._server is not None:
            await self._server.stop(patience)

    async def _export(
        self, messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> bytes:
        began = time.perf_counter()
        entry: dict[str, Any] = {"bytes": 0}
        problem: RequestError | None = None
        answer = b""
        try:
            answer = await self._exported(messages, context, entry)
        except RequestError as found:
            problem = without_frames(found)
        except Exception as error:  # noqa: BLE001 - INTERNAL would make exporters drop their batch
            log_limited(logger, "call", "A call failed and is to be sent again", error=error)
            problem = unavailable("an unexpected error; nothing is known to be stored", RETRY_AFTER)
        code = 0 if problem is None else int(problem.code)
        if problem is not None:
            self._service.meters.refused[problem.kind] += 1
            entry["problem"] = problem.message
        self._service.meters.grpc_requests[_PATH[1:], _STATUSES[code].name] += 1
        write("gRPC", _PATH, code, _client(context), time.perf_counter() - began, entry)
        if problem is not None:
            details = (("grpc-status-details-bin", _details(problem)),)
            await context.abort(_STATUSES[code], problem.message, details)
        return answer

    async def _exported(
        self,
        messages: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext[bytes, bytes],
        entry: dict[str, Any],
    ) -> bytes:
        sender = self._sender(context)
        entry["sender"] = sender.identity
        self._service.intake.refuse_if_unavailable()
        config = self._service.config
        with self._service.budget.lease(sender.identity) as lease:
            sent = await self._message(messages, sender)
            entry["bytes"] = len(sent)
            lease.grow_to(len(sent))
            turn = self._service.turns.of(sender.identity)
            message = await grpc_message.decompressed(
                sent, config.serve_max_message_bytes, lease, turn
            )
            del sent
            allowance = RequestBudget(entry["bytes"], len(message))
            batches = decode_protobuf.spans(message, allowance)
            outcome = await self._service.take(batches, sender, allowance)
        entry.update(
            stored=outcome.stored, ignored=outcome.ignored, quarantined=len(outcome.quarantined),
            conflicts=len(outcome.conflicts),
        )  # fmt: skip
        return partial_success.answer(partial_success.of(outcome), PROTOBUF)

    async def _message(self, messages: AsyncIterator[bytes], sender: Sender) -> bytes:
        """Read the call's message; what a stream sends after it is not read, as in a unary call."""
        patience = self._service.config.serve_body_timeout
        try:
            async with asyncio.timeout(patience), self._readers.one_of(sender.identity):
                return await anext(messages)
        except TimeoutError:
            raise too_slow("message", patience) from None
        except StopAsyncIteration:
            # gRPC has answered RESOURCE_EXHAUSTED itself to one that is larger than its bound
            most = self._service.config.serve_max_message_bytes
            raise RequestError(
                400, Code.INVALID_ARGUMENT, "no_message",
                f"the call has no message, or one of more than {most} bytes",
            ) from None  # fmt: skip

    def _sender(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> Sender:
        found = dict(context.invocation_metadata() or ())
        authorization = found.get("authorization")
        if isinstance(authorization, str):
            authorization = authorization.encode("utf-8", "replace")
        try:
            return self._service.access.sender(authorization, _state(context), _client(context))
        except RequestError as refused:
            asked = found.get(REFUSAL_HEADER)
            again = self._service.config.serve_retry_after
            raise as_asked(refused, asked if isinstance(asked, str) else None, again) from None


class _Readers:
    """Bounds the messages of one sender that are read at once; others wait, of that sender only."""

    def __init__(self) -> None:
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._calls: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def one_of(self, sender: str) -> AsyncIterator[None]:
        self._calls[sender] += 1
        try:
            async with self._slots.setdefault(sender, asyncio.Semaphore(_READ_AT_ONCE)):
                yield
        finally:
            self._calls[sender] -= 1
            if not self._calls[sender]:
                del self._calls[sender], self._slots[sender]


def _state(context: grpc.aio.ServicerContext[bytes, bytes]) -> Mapping[str, Any]:
    pem = context.auth_context().get("x509_pem_cert")
    return {} if not pem else {CERTIFICATE: _certificate(pem[0])}


def _certificate(pem: bytes) -> Certificate:
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(pem)
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return Certificate(certificate.subject.rfc4514_string())
    names = [f"DNS:{name}" for name in found.get_values_for_type(x509.DNSName)]
    names += [f"URI:{name}" for name in found.get_values_for_type(x509.UniformResourceIdentifier)]
    return Certificate(certificate.subject.rfc4514_string(), tuple(names))


def _client(context: grpc.aio.ServicerContext[bytes, bytes]) -> str:
    """The address of ``ipv4:127.0.0.1:50000`` or ``ipv6:%5B::1%5D:50000``."""
    host: str = context.peer().partition(":")[2].rpartition(":")[0]
    return host.replace("%5B", "").replace("%5D", "").strip("[]")


def _details(problem: RequestError) -> bytes:
    """Write the ``google.rpc.Status``; a ``RetryInfo`` says when to try again."""
    if problem.retry_after is None:
        return status_message(problem.code, problem.message)
    retry = RetryInfo(retry_delay=Duration(seconds=problem.retry_after))
    return status_message(problem.code, problem.message, retry)


def _credentials(listening: GrpcListening) -> grpc.ServerCredentials | None:
    if listening.certificate is None:
        return None
    try:
        certificate = listening.certificate.read_bytes()
        key = (listening.key or listening.certificate).read_bytes()
        authority = None if listening.client_ca is None else listening.client_ca.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"TLS: {error.filename}: {error.strerror}") from None
    if authority is not None:
        try:
            import cryptography  # noqa: F401 - to say it now
        except ImportError as error:
            raise MissingExtraError("client certificates over gRPC", "encryption") from error
    # gRPC either demands a client's certificate or does not ask for one
    return grpc.ssl_server_credentials(
        [(key, certificate)], authority, require_client_auth=authority is not None
    )
