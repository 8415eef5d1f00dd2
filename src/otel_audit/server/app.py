"""The sink as an ASGI application: OTLP/HTTP, health and readiness."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
from opentelemetry import metrics
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.config import AuditConfig
from otel_audit.delivery.shutdown_time import ShutdownTime
from otel_audit.delivery.sink import ReceivingSink
from otel_audit.errors import ConfigurationError, MissingExtraError, StoreError
from otel_audit.server import (
    access_log,
    audit_response,
    decode_json,
    decode_protobuf,
    partial_success,
)
from otel_audit.server.authentication import Authentication
from otel_audit.server.credentials import CredentialsFile, Sender
from otel_audit.server.errors import (
    JSON,
    PROTOBUF,
    REFUSAL_HEADER,
    RETRY_AFTER,
    Code,
    RequestError,
    as_asked,
    as_status,
    forbidden,
    unavailable,
    without_frames,
)
from otel_audit.server.items import Batch
from otel_audit.server.metrics import ServerMetrics
from otel_audit.server.request_body import decompressed, read_body
from otel_audit.server.request_budget import LARGEST_HEADERS, RequestBudget
from otel_audit.server.service import RequestResult, Service, kind_of
from otel_audit.setting_values import PREFIX

if TYPE_CHECKING:
    from otel_audit_postgres.ledger.sealer_thread import SealingThread

    from otel_audit.server.grpc_server import GrpcListening, GrpcServer

Decoder = Callable[[bytes, RequestBudget], Iterator[Batch]]

_DECODERS: Final[dict[str, dict[str, Decoder]]] = {
    "/v1/traces": {PROTOBUF: decode_protobuf.spans, JSON: decode_json.spans},
    "/v1/audit": {PROTOBUF: decode_protobuf.logs, JSON: decode_json.logs},
}
_WATCH_INTERVAL: Final = 5.0
"""Seconds between two checks of the other threads."""


def create_app(
    config: AuditConfig | None = None,
    *,
    any_certificate: bool = False,
    grpc: GrpcListening | None = None,
    make_store: Callable[[], ReceivingSink] | None = None,
) -> Starlette:
    """Make the sink, for any ASGI server that runs lifespans.

    Args:
        config: The settings; by default from the environment.
        any_certificate: Let in every client certificate that the server has verified, where the
            file of credentials names none.
        grpc: Where to take OTLP over gRPC as well, if anywhere.
        make_store: Opens a connection to the store; by default to the one of
            ``OTEL_AUDIT_DSN``.

    Returns:
        The application.

    Raises:
        ConfigurationError: There is no store, or senders are not authenticated.
        MissingExtraError: A package of the extra ``grpc`` is not installed, but configured.
    """
    config = config or AuditConfig()
    meters = ServerMetrics()
    service = Service(
        config,
        _access(config, any_certificate),
        make_store or _store_maker(config, meters.note_default_rows),
        meters,
    )
    background = _BackgroundServices(_sealing(config), _grpc_server(service, grpc))
    app = Starlette(
        routes=[
            Route("/v1/traces", functools.partial(_export, service), methods=["POST"]),
            Route("/v1/audit", functools.partial(_export, service), methods=["POST"]),
            Route("/health", functools.partial(_health, service, background), methods=["GET"]),
            Route("/ready", functools.partial(_ready, service), methods=["GET"]),
        ],
        exception_handlers={HTTPException: _no_such_thing},
        lifespan=functools.partial(_lifespan, service, background),
    )
    app.state.service = service
    return app


def _access(config: AuditConfig, any_certificate: bool) -> Authentication:  # noqa: FBT001 - passed on
    credentials = None
    if config.serve_tokens_file is not None:
        credentials = CredentialsFile(config.serve_tokens_file)
    if credentials is None and not any_certificate and config.serve_no_auth == "no":
        raise ConfigurationError(
            f"{PREFIX}SERVE_TOKENS_FILE: missing, and anybody could write the audit trail; make a "
            "token: otel-audit serve token new NAME --file tokens.toml"
        )
    return Authentication(credentials, any_certificate, config.serve_no_auth)


def _store_maker(
    config: AuditConfig, on_default_rows: Callable[[int], None]
) -> Callable[[], ReceivingSink]:
    dsn = config.asyncpg_dsn
    if dsn is None:
        raise ConfigurationError(f"{PREFIX}DSN: missing; it names the audit store")
    from otel_audit_postgres.personal.protect import protector_from
    from otel_audit_postgres.sink import sink_from

    # a wrong setting is reported now, not by the first record
    protector_from(config)
    return functools.partial(sink_from, config, dsn, on_default_rows)


def _sealing(config: AuditConfig) -> SealingThread | None:
    """Make the sealer in the sink's process, if the settings have one."""
    if not config.seal:
        return None
    from otel_audit_postgres.ledger.metrics import publish
    from otel_audit_postgres.ledger.sealer_thread import SealingThread
    from otel_audit_postgres.ledger.settings import sealer_from

    sealer = sealer_from(config)
    publish(metrics.get_meter("otel_audit.server"), sealer)
    return SealingThread(sealer, config.seal_interval)


def _grpc_server(service: Service, listening: GrpcListening | None) -> GrpcServer | None:
    if listening is None:
        return None
    try:
        from otel_audit.server.grpc_server import GrpcServer
    except ImportError as error:
        raise MissingExtraError("OTLP over gRPC", "grpc") from error
    return GrpcServer(service, listening)


@dataclass(frozen=True)
class _BackgroundServices:
    """Everything that runs in parallel to the application, as long as it does."""

    sealing: SealingThread | None
    grpc: GrpcServer | None

    @property
    def threads(self) -> dict[str, str]:
        """The state of the background threads: ``ok``, or why one does not work."""
        if self.sealing is None:
            return {}
        return {"sealing": self.sealing.state.failure or "ok"}

    async def watch(self) -> None:
        """Replace what is gone of them, for as long as the application runs."""
        while self.sealing is not None:
            await asyncio.sleep(_WATCH_INTERVAL)
            self.sealing.ensure()

    async def start(self) -> None:
        if self.sealing is not None:
            self.sealing.start()
        if self.grpc is not None:
            await self.grpc.start()

    async def stop(self, patience: float) -> None:
        if self.sealing is not None:
            await asyncio.to_thread(self.sealing.stop, patience)


@contextlib.asynccontextmanager
async def _lifespan(
    service: Service, background: _BackgroundServices, _: Starlette
) -> AsyncIterator[None]:
    service.intake.start()
    service.meters.publish(
        metrics.get_meter("otel_audit.server"),
        lambda: service.budget.taken,
        lambda: service.intake.depth,
    )
    await background.start()
    watching = asyncio.create_task(background.watch())
    with _reloading(service):
        yield
    watching.cancel()
    # requests under way had their own time before this; what is behind them has this one together
    with ShutdownTime(service.config.shutdown_timeout).waits() as left:
        if background.grpc is not None:
            await background.grpc.stop(left())
        await service.intake.stop(left())
        await background.stop(left())


@contextlib.contextmanager
def _reloading(service: Service) -> Iterator[None]:
    """Read the file of credentials again on SIGHUP, if signals are available."""
    credentials = service.access.credentials
    if credentials is None:
        yield
        return
    try:
        before = signal.signal(signal.SIGHUP, lambda *_: credentials.reload_if_changed())
    except (ValueError, AttributeError):  # not the main thread, or not POSIX
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


async def _health(service: Service, background: _BackgroundServices, _: Request) -> Response:
    """Whether the process lives, and the state of its background threads."""
    logged = {
        "status": "ending" if service.intake.ending else "up",
        **service.meters.snapshot(),
        "threads": background.threads,
    }
    return Response(msgspec.json.encode(logged), media_type=JSON)


async def _ready(service: Service, _: Request) -> Response:
    """Whether it can store what is sent now."""
    try:
        service_ends = service.intake.ending
        if not service_ends:
            await service.intake.check()
    except StoreError as error:
        return Response(
            msgspec.json.encode({"ready": False, "reason": str(error)}), 503, media_type=JSON
        )
    if service_ends:
        return Response(
            msgspec.json.encode({"ready": False, "reason": "ending"}), 503, media_type=JSON
        )
    return Response(msgspec.json.encode({"ready": True}), media_type=JSON)


async def _export(service: Service, request: Request) -> Response:
    """Take an export request, and answer after its records are committed."""
    began = time.perf_counter()
    logged: dict[str, Any] = {}
    problem: RequestError | None = None
    try:
        response = await _exported(service, request, logged)
    except RequestError as found:
        problem = without_frames(found)
    except ClientDisconnect:
        problem = RequestError(499, Code.UNAVAILABLE, "disconnected", "the client went away")
    except Exception as error:  # noqa: BLE001 - a 500 would make exporters drop their batch
        log_limited(
            access_log.logger, "request", "A request failed and is to be sent again", error=error
        )
        problem = unavailable("an unexpected error; nothing is known to be stored", RETRY_AFTER)
    if problem is not None:
        service.meters.refused[problem.kind] += 1
        kind = JSON if _media_type(request) == JSON else PROTOBUF
        response = Response(
            as_status(problem, kind), problem.status, problem.headers(), media_type=kind
        )
        logged["problem"] = problem.message
    service.meters.http_requests[request.url.path, response.status_code] += 1
    client = request.client.host if request.client is not None else None
    seconds = time.perf_counter() - began
    access_log.write(
        request.method, request.url.path, response.status_code, client, seconds, logged
    )
    return response


async def _exported(service: Service, request: Request, logged: dict[str, Any]) -> Response:
    if sum(len(name) + len(value) for name, value in request.headers.raw) > LARGEST_HEADERS:
        raise RequestError(431, Code.INVALID_ARGUMENT, "headers", "the headers are too large")
    sender = _sender(service, request)
    logged["sender"] = sender.identity
    kind = _media_type(request)
    decode = _DECODERS[request.url.path].get(kind)
    if decode is None:
        raise RequestError(
            415, Code.INVALID_ARGUMENT, "content_type",
            f"Content-Type must be {PROTOBUF} or {JSON}",
        )  # fmt: skip
    service.intake.refuse_if_unavailable()
    with service.budget.lease(sender.identity) as lease:
        config = service.config
        body = await read_body(
            request.stream(), _declared(request), config.serve_max_body_bytes, lease,
            config.serve_body_timeout,
        )  # fmt: skip
        logged["bytes"] = len(body)
        coding = request.headers.get("content-encoding", "")
        async with service.turns.of(sender.identity) as turn:
            message = await decompressed(
                body, coding, config.serve_max_message_bytes, lease, turn.pause
            )
        allowance = RequestBudget(len(body), len(message))
        del body
        wants_receipts = request.url.path == "/v1/audit"
        outcome = await service.take(
            decode(message, allowance), sender, allowance, receipts=wants_receipts
        )
    logged.update(
        stored=outcome.stored, ignored=outcome.ignored, quarantined=len(outcome.quarantined),
        conflicts=len(outcome.conflicts),
    )  # fmt: skip
    if not wants_receipts:
        return Response(partial_success.answer(partial_success.of(outcome), kind), media_type=kind)
    _refuse_lone(outcome)
    found = audit_response.answer(
        list(outcome.receipts.values()), outcome.quarantined, kind, partial_success.of(outcome)
    )
    return Response(found, media_type=kind)


def _refuse_lone(outcome: RequestResult) -> None:
    """Answer who sends a single record with its result."""
    if len(outcome.conflicts) == outcome.stored == 1 and not outcome.quarantined:
        # nothing is lost: who sends it learns that its id is another's, and where it is
        conflict = outcome.conflicts[0]
        raise RequestError(
            409, Code.ALREADY_EXISTS, "conflict",
            "another record with this id is in the store; "
            f"this one is stored beside it as {conflict.stored_as}",
        )  # fmt: skip
    if outcome.stored or len(outcome.quarantined) != 1:
        return
    item = outcome.quarantined[0]
    kind = kind_of(item)
    if kind == "conflict":
        raise RequestError(
            409, Code.ALREADY_EXISTS, "conflict", f"{item.reason}; it is in quarantine"
        )
    if kind in ("foreign_tenant", "foreign_service"):
        raise forbidden(f"{item.reason}; the record is in quarantine")


def _sender(service: Service, request: Request) -> Sender:
    authorization = request.headers.get("authorization")
    client = request.client.host if request.client is not None else ""
    try:
        return service.access.sender(
            None if authorization is None else authorization.encode("latin-1"),
            request.scope.get("state") or {},
            client,
        )
    except RequestError as refused:
        asked = request.headers.get(REFUSAL_HEADER)
        raise as_asked(refused, asked, service.config.serve_retry_after) from None


def _declared(request: Request) -> int | None:
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isdecimal() and declared.isascii() else None


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _no_such_thing(request: Request, error: Exception) -> Response:
    """Answer an unknown path or method in OTLP's form."""
    assert isinstance(error, HTTPException)  # noqa: S101 - as it is registered
    kind = JSON if _media_type(request) != PROTOBUF else PROTOBUF
    what = "no such path: records are sent to /v1/traces or /v1/audit"
    if error.status_code != 404:  # noqa: PLR2004 - Not Found
        what = "this method is not taken here"
    problem = RequestError(error.status_code, Code.UNIMPLEMENTED, "path", what)
    return Response(as_status(problem, kind), error.status_code, error.headers, media_type=kind)
