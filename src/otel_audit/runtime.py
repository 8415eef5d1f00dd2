"""One process's audit trail at work: everything that a configuration brings to life."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit.capture.actor import ActorOptions, resolve_actor, verified_claims
from otel_audit.capture.exchange import Exchange, Observer, Recorder
from otel_audit.capture.source import SourceOptions, request_id, resolve_source
from otel_audit.capture.strays import record_outside
from otel_audit.capture.tenant import TenantOptions, resolve_tenant
from otel_audit.complaints import complain
from otel_audit.config import PREFIX, AuditConfig
from otel_audit.errors import ConfigurationError, StoreError, StoreUnavailableError
from otel_audit.pipeline.console import ConsoleSink
from otel_audit.pipeline.counters import Counters, publish
from otel_audit.pipeline.delivery import Delivery, DeliveryOptions
from otel_audit.pipeline.provider import application_resource
from otel_audit.pipeline.recorder import SpanRecorder
from otel_audit.pipeline.sink import Sink
from otel_audit.pipeline.spool import AesGcmSealing, Sealing, adopt, open_spool
from otel_audit.policy import Policy
from otel_audit.record import Actor, AuditRecord, Change, Source, Tenant, TransactionOutcome
from otel_audit.redaction import Redactor
from otel_audit.scope import AuditScope

_logger = logging.getLogger("otel_audit")


class _NoRecorder:
    """For ``OTEL_AUDIT_EXPORTER=none``: spans are enriched, records go nowhere."""

    def opened(self, _record: AuditRecord, _span: trace.Span | None, /) -> bool:
        """Let it begin."""
        return True

    def answered(self, _record: AuditRecord, _span: trace.Span | None, /) -> None:
        """Let it go on."""

    def discarded(self, _record_id: str, /) -> None:
        """Let it go."""

    def closed(self, _record: AuditRecord, _span: trace.Span | None, /) -> None:
        """Let it go."""


class Runtime:
    """What the taps report to, and what brings their records to the store."""

    def __init__(self, config: AuditConfig) -> None:
        """Build everything; nothing is opened or connected yet.

        Args:
            config: The settings.

        Raises:
            ConfigurationError: A setting that only shows its fault here.
            MissingExtraError: A setting needs a package that is not installed.
        """
        self.config = config
        self.counters = Counters()
        self.redactor = Redactor.from_config(config)
        self.delivery: Delivery | None = None
        recorder: Recorder = _NoRecorder()
        if config.exporter != "none":
            self.delivery = _make_delivery(config, self.counters)
            recorder = SpanRecorder(
                self.delivery, self.counters, refuse_when_full=config.spool_full == "refuse"
            )
            depth = self.delivery
            publish(metrics.get_meter("otel_audit"), self.counters, lambda: depth.depth)
        self._recorder = recorder
        self._observer = _make_observer(config, recorder, self.redactor, self._count_error)

    def open(self, scope: MutableMapping[str, Any]) -> Exchange | None:
        """Begin to observe a request. Never raises."""
        try:
            return Exchange(self._observer, scope)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._count_error()
            complain(_logger, "open", "A request is not audited", error=error)
            return None

    def record_outside(self, outcome: TransactionOutcome, changes: list[Change]) -> None:
        """Record a transaction that no action contained. Never raises."""
        try:
            service = str(application_resource().attributes.get("service.name", "process"))
            self._recorder.closed(record_outside(outcome, changes, service), None)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._count_error()
            complain(_logger, "outside", "A transaction is not audited", error=error)

    async def started(self) -> None:
        """Look at the store once, in the background: a fault shows before a record waits."""
        if self.delivery is not None:
            self.delivery.start()
            threading.Thread(target=self.report_store, name="otel-audit-check", daemon=True).start()

    async def stopping(self) -> None:
        """Deliver what waits, without holding up the event loop. Never raises."""
        if self.delivery is not None:
            settle = functools.partial(self.delivery.settle, self.config.shutdown_timeout)
            await asyncio.get_running_loop().run_in_executor(None, settle)

    def check_store(self) -> None:
        """See whether the store can take records; blocks for a connection's time.

        Raises:
            StoreUnavailableError: It cannot be reached now.
            StoreError: It is not in the state it must be in.
        """
        if self.config.exporter != "none":
            worker = _Check(_sink_maker(self.config))
            worker.start()
            worker.join()
            if worker.error is not None:
                raise worker.error

    def report_store(self) -> None:
        """Check the store and log what is wrong; never raises."""
        try:
            self.check_store()
        except StoreUnavailableError as error:
            _logger.warning("%s; records wait until it is back", error)
        except StoreError as error:
            _logger.error("THIS APPLICATION IS NOT AUDITED: %s", error)  # noqa: TRY400 - said in full
        except Exception as error:  # noqa: BLE001 - a check in the background
            complain(_logger, "check", "The audit store could not be checked", error=error)

    def health(self) -> dict[str, Any]:
        """Say how the audit trail is doing, as plain values."""
        delivery = self.delivery
        return {
            "healthy": delivery is None or delivery.failing_for == 0,
            "queue_depth": 0 if delivery is None else delivery.depth,
            "failing_for_seconds": 0.0 if delivery is None else delivery.failing_for,
            **self.counters.snapshot(),
        }

    def close(self) -> None:
        """Deliver what waits and end the worker. Never raises."""
        if self.delivery is not None:
            self.delivery.close(self.config.shutdown_timeout)

    def _count_error(self) -> None:
        self.counters.add("capture_errors")


class _Check(threading.Thread):
    """Asks a sink of its own, on a loop of its own, so that it may run wherever it is wanted."""

    def __init__(self, make_sink: Callable[[], Sink]) -> None:
        super().__init__(name="otel-audit-check", daemon=True)
        self._make_sink = make_sink
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            with suppress_instrumentation():
                asyncio.run(self._check())
        except Exception as error:  # noqa: BLE001 - raised again by whoever waits
            self.error = error

    async def _check(self) -> None:
        sink = self._make_sink()
        try:
            await sink.check()
        finally:
            await sink.close()


def _sink_maker(config: AuditConfig) -> Callable[[], Sink]:
    dsn = config.asyncpg_dsn
    if config.exporter == "console" or dsn is None:
        return ConsoleSink
    from otel_audit_postgres.sink import PostgresSink

    return lambda: PostgresSink(dsn, connect_timeout=config.connect_timeout)


def _sealing(config: AuditConfig) -> Sealing | None:
    if config.spool_key is None:
        return None
    try:
        return AesGcmSealing(bytes.fromhex(config.spool_key.get_secret_value().strip()))
    except ValueError:
        raise ConfigurationError(
            f"{PREFIX}SPOOL_KEY: 32 bytes in hex are needed, for example from `openssl rand -hex 32`"
        ) from None


def _make_delivery(config: AuditConfig, counters: Counters) -> Delivery:
    options = DeliveryOptions(
        queue_size=config.queue_size,
        batch_size=config.batch_size,
        batch_interval=config.batch_interval,
    )
    make_sink = _sink_maker(config)
    if config.exporter == "console":
        return Delivery(make_sink, counters, options)
    service = str(application_resource().attributes.get("service.name", "unknown_service"))
    sealing = _sealing(config)
    return Delivery(
        make_sink,
        counters,
        options,
        spool=functools.partial(
            open_spool,
            config.spool_dir,
            service=service,
            fsync=config.spool_fsync,
            max_bytes=config.spool_max_bytes,
            segment_bytes=config.spool_segment_bytes,
            max_age=config.spool_max_age,
            sealing=sealing,
        ),
        adopt=functools.partial(adopt, config.spool_dir, service, sealing=sealing),
    )


def _make_observer(
    config: AuditConfig, recorder: Recorder, redactor: Redactor, on_error: Callable[[], None]
) -> Observer:
    actor_options = ActorOptions.from_config(config)
    tenant_options = TenantOptions.from_config(config)
    source_options = SourceOptions.from_config(config)

    def actor(scope: Mapping[str, Any], audit: AuditScope) -> Actor:
        return resolve_actor(scope, audit, actor_options)

    def tenant(scope: Mapping[str, Any], audit: AuditScope) -> Tenant | None:
        return resolve_tenant(scope, audit, verified_claims(scope, actor_options), tenant_options)

    def source(scope: Mapping[str, Any]) -> Source:
        return resolve_source(scope, source_options, verified_claims(scope, actor_options))

    return Observer(
        recorder=recorder,
        policy=Policy.from_config(config),
        redactor=redactor,
        actor=actor,
        tenant=tenant,
        source=source,
        request_id=functools.partial(request_id, header_name=config.request_id_header),
        kept_headers=frozenset(name.lower() for name in config.capture_headers),
        request_id_header=config.request_id_header.lower().encode("latin-1"),
        body_limit=config.body_limit,
        request_bodies=config.capture_request_body,
        response_bodies=config.capture_response_body,
        full_payload=config.span_payload == "full",
        on_error=on_error,
    )
