"""One process's audit trail at work: everything that a configuration brings to life."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from opentelemetry import metrics, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import SpanProcessor

from otel_audit._util.aio import in_thread, on_any_loop
from otel_audit._util.ids import uuid7
from otel_audit._util.lazy_pattern import compile_patterns
from otel_audit._util.loop_thread import ThreadState, begin_thread, run_in_thread
from otel_audit._util.ratelimited_log import log_limited
from otel_audit._util.spill import Cipher, SpilledChanges
from otel_audit.action.current_runtime import CurrentRuntime
from otel_audit.action.lifecycle import Watchdog, record_outside
from otel_audit.action.ports import NoRecorder, Recorder, do_nothing
from otel_audit.action.record_limit import OTLP_LIMIT
from otel_audit.config import AuditConfig
from otel_audit.delivery.console import ConsoleSink
from otel_audit.delivery.delivery import Delivery
from otel_audit.delivery.factory import (
    local_quarantine,
    make_delivery,
    service_of_spool,
    spool_encryption,
)
from otel_audit.delivery.flagged_spans import FlaggedSpans
from otel_audit.delivery.intent import Intents
from otel_audit.delivery.metrics import Counters, publish
from otel_audit.delivery.producer import Producer, application_resource, make_resource
from otel_audit.delivery.producer_records import ProducerRecordOptions, configuration_hash
from otel_audit.delivery.receipts import await_receipt
from otel_audit.delivery.shutdown_time import ShutdownTime
from otel_audit.delivery.sink import Receipt, ReceivingSink, Sink
from otel_audit.delivery.spool import damaged_files, foreign_found
from otel_audit.errors import (
    ConfigurationError,
    MissingExtraError,
    OtelAuditError,
    StoreError,
    StoreUnavailableError,
)
from otel_audit.http.deferred import DeferredRequest
from otel_audit.http.exchange import Exchange
from otel_audit.http.headers import kept_headers
from otel_audit.http.middleware import RoutedCapture
from otel_audit.http.options import CaptureOptions
from otel_audit.http.request_log import begin_request_log, log_request
from otel_audit.http.request_metadata import LONGEST_METHOD
from otel_audit.identity.actor import (
    ActorOptions,
    Bearer,
    note_session,
    read_bearer,
    resolve_actor,
    subject_of,
)
from otel_audit.identity.child_spans import ChildSpans
from otel_audit.identity.propagation import (
    PropagatorInstaller,
    origin_from_context,
    origin_from_request,
)
from otel_audit.identity.redact_identity import shown_actor, shown_tenant
from otel_audit.identity.source import SourceOptions, SourceReader, request_id
from otel_audit.identity.tenant import Claims, TenantOptions, resolve_tenant
from otel_audit.identity.token_identity import TokenIdentities
from otel_audit.identity.unresolved_credential import UNCHECKED
from otel_audit.policy import Policy
from otel_audit.record import (
    ANONYMOUS,
    Actor,
    AuditRecord,
    Tenant,
    TransactionOutcome,
)
from otel_audit.redaction import Redactor
from otel_audit.scope import AuditScope, Origin
from otel_audit.setting_values import PREFIX

if TYPE_CHECKING:
    from otel_audit_postgres.ledger.sealer_thread import SealingThread

    from otel_audit.delivery.outbox_relay import Outbox
    from otel_audit.transactional import TransactionalRecording

_logger = logging.getLogger("otel_audit")

_WATCH_INTERVAL: Final = 5.0
"""Seconds between two looks whether all threads are alive."""


class Runtime:
    """One configuration at work: capture and delivery of an instrumented process."""

    def __init__(
        self,
        config: AuditConfig,
        recorder: Recorder | None = None,
        *,
        span_processors: Sequence[SpanProcessor] = (),
        seen: Callable[[AuditRecord, trace.Span | None], None] | None = None,
    ) -> None:
        """Build everything; nothing is opened or connected yet.

        Args:
            config: The settings.
            recorder: Takes the records, in place of delivery to a store.
            span_processors: See the audit span of each record that is delivered.
            seen: Called for every finished request, also one that is not recorded.

        Raises:
            ConfigurationError: A setting that only shows its fault here.
            MissingExtraError: A setting needs a package that is not installed.
        """
        self.config = config
        make_resource()
        self.counters = counters = Counters()
        self._shutdown_time = ShutdownTime(config.shutdown_timeout, lambda: counters.emitted)
        self.redactor = Redactor.from_config(config, self._count_redaction_error)
        self.delivery: Delivery | None = None
        self._producer: Producer | None = None
        self._sealing: SealingThread | None = None
        self._check: threading.Thread | None = None
        self._checked = self._names_reported = self._is_loaded = False
        self._in_default = 0
        if recorder is None and config.exporter == "none":
            recorder = NoRecorder()
        if recorder is None:
            self.delivery = make_delivery(
                config,
                sink_maker(config, self._note_default_rows),
                self.counters,
                spooled=config.exporter != "console",
            )
            recorder = self._producer = Producer(
                self.delivery,
                self.counters,
                refuse_when_full=config.spool_full == "refuse",
                own_records=_producer_record_options(config),
                intents=_intents(config, self.counters),
                span_processors=span_processors,
                record_limit=min(config.record_limit, OTLP_LIMIT)
                if config.exporter == "otlp"
                else config.record_limit,
            )
            self.delivery.every(_WATCH_INTERVAL, self._ensure_threads)
            self.delivery.observe = publish(
                metrics.get_meter("otel_audit"), self.counters, self.delivery
            )
        self._recorder = recorder
        self.transactional = self._make_transactional()
        self._flagged_spans = (
            FlaggedSpans(self._producer, self.redactor, self.count_error)
            if self._producer is not None and config.flagged_spans
            else None
        )
        self._options = dataclasses.replace(
            self._with_delivery(_make_options(config, recorder, self.redactor, self.count_error)),
            on_loss=self._count_loss,
        )
        if seen is not None:
            self._options = dataclasses.replace(self._options, log=seen)
        self.report_commits: Callable[[], None] = do_nothing
        self._spans = ChildSpans() if config.child_spans else None
        self._sending = PropagatorInstaller() if config.baggage_send else None
        self._attaches = self._spans is not None or self._sending is not None
        self.current = CurrentRuntime(
            recorder=recorder,
            redactor=self.redactor,
            aliases=config.actor_type_aliases,
            service=_service_name,
            report_commits=self._report_commits,
            around=origin_from_context if config.baggage_trust else Origin,
            opened=self._begins,
            begin=recorder.opened
            if config.required or self._producer is None
            else self._producer.opened_regardless,
            on_error=self.count_error,
            on_loss=self._count_loss,
            receipt=self.receipt,
            required=config.required,
            enlist=None if self.transactional is None else self.transactional.enlist,
            intended=self._options.intended if config.delivery == "strict" else None,
        )

    def open_with(
        self, options: CaptureOptions, scope: MutableMapping[str, Any], path: str
    ) -> Exchange | DeferredRequest | None:
        """Begin to observe a request as the options say. Never raises."""
        if self._attaches or not self._is_loaded:
            self._begins()
        try:
            # let a request pass that nothing but a write could have recorded
            if (
                scope["type"] == "http"
                and options.log is None
                and isinstance(method := scope.get("method"), str)
                and len(method) <= LONGEST_METHOD
                and options.policy.assess_head(method, path).level == "none"
            ):
                found = self._defer(options, scope, path)
                if found is not None:
                    return found
        except Exception as error:  # noqa: BLE001 - then it is observed as any other
            self.count_error()
            log_limited(_logger, "pass", "A request was not let pass at once", error=error)
        return self._observe(options, scope, None, path)

    def _defer(
        self, options: CaptureOptions, scope: MutableMapping[str, Any], path: str
    ) -> DeferredRequest | None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # trio, or none at all
            return None
        return DeferredRequest(options, scope, path, loop, self._observe)

    def _observe(
        self,
        options: CaptureOptions,
        scope: MutableMapping[str, Any],
        begun: DeferredRequest | None = None,
        path: str | None = None,
    ) -> Exchange | None:
        try:
            return Exchange(options, scope, begun, path)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self.count_error()
            self._count_loss(error)
            return None

    @property
    def refuses_unrecorded(self) -> bool:
        """Whether a request that cannot be observed must not be carried out."""
        return self._options.refuses_unrecorded

    @property
    def required(self) -> bool:
        """Whether an application that cannot be observed must not run."""
        return self.config.required

    @property
    def reason_not_to_run(self) -> str | None:
        """Why an application must not run as it is set up, if it is to run only audited well."""
        if not self.config.required and self.config.delivery != "strict":
            return None
        return self._marked_in_clear()

    def _marked_in_clear(self) -> str | None:
        if self.config.orm == "off" or "sqlalchemy.orm" not in sys.modules:
            return None
        # SQLAlchemy is there: the check before says so
        from otel_audit.orm.marked_columns import marked_in_clear

        return marked_in_clear(self.config)

    def for_app(self, app: Any) -> RoutedCapture:
        """Return what observes one application, by what its routes say about themselves."""
        return RoutedCapture(self, self._options, app)

    def record_outside(
        self, outcome: TransactionOutcome, changes: SpilledChanges, *, begun_in: str | None = None
    ) -> None:
        """Record a transaction that no action contained. Never raises.

        Args:
            outcome: What became of it.
            changes: What it changed.
            begun_in: Id of the action that began the task which has written.
        """
        if begun_in is None and not self.config.orm_outside_actions:
            return
        if not self._is_loaded:
            self._load()
        record_outside(self._options, outcome, changes, _service_name, begun_in)

    def watch_spans(self) -> None:
        """Look for flagged spans in the application's own tracing, if it has begun."""
        if self._flagged_spans is not None:
            self._flagged_spans.attach(trace.get_tracer_provider())

    async def started(self) -> None:
        """Begin to deliver; look at the store, so that a fault shows at once. Never raises."""
        try:
            self._start()
        except Exception as error:  # noqa: BLE001 - the application starts all the same
            self.count_error()
            log_limited(_logger, "start", "Not all of auditing has started", error=error)

    def _start(self) -> None:
        self._shutdown_time.renew()
        self._load()
        if self.delivery is not None:
            self.delivery.start()
            self.watch_spans()
            if self._producer is not None:
                self._producer.begin()
            if self.transactional is not None:
                self.transactional.start()
            self._check_once()
            if self._sealing is None:
                self._sealing = _begin_sealing(self.config)

    @property
    def threads(self) -> dict[str, ThreadState]:
        """The state of this process's delivery threads."""
        found = {} if self.delivery is None else self.delivery.threads
        intents = None if self._producer is None else self._producer.intents
        relay = None if self.transactional is None else self.transactional.relay
        for name, one in (("intents", intents), ("relay", relay), ("sealing", self._sealing)):
            if one is not None:
                found[name] = one.state
        return found

    def _ensure_threads(self) -> None:
        """Replace what is gone of them. Never raises."""
        if self.delivery is not None:
            self.delivery.ensure()
        intents = None if self._producer is None else self._producer.intents
        relay = None if self.transactional is None else self.transactional.relay
        for one in (intents, relay, self._sealing):
            if one is not None:
                one.ensure()
        if self._check is not None:
            self._check_once()

    def _check_once(self) -> None:
        """See that the store is looked at once, in a thread of its own."""
        if not self._checked and (self._check is None or not self._check.is_alive()):
            self._check = begin_thread("otel-audit-check", self.report_store) or self._check

    async def stopping(self) -> None:
        """Deliver what waits, without holding up the event loop. Never raises."""
        if self.delivery is not None:
            if self._producer is not None:
                self._producer.end()
            with self._shutdown_time.waits() as left:
                await in_thread(functools.partial(self.delivery.flush_and_rest, left()))
                if self.transactional is not None:
                    await in_thread(functools.partial(self.transactional.flush, left()))
                if self._sealing is not None:
                    await in_thread(functools.partial(self._sealing.stop, left()))
                    self._sealing = None

    async def receipt(self, record_id: str, timeout: float) -> Receipt:  # noqa: ASYNC109
        """Wait until the store has a record, and say what it says; see `await_receipt`."""
        if self.delivery is None or self.config.exporter != "postgres":
            raise ConfigurationError(f"receipts need a store: set {PREFIX}EXPORTER=postgres")
        with suppress_instrumentation():
            make_sink = cast("Callable[[], ReceivingSink]", sink_maker(self.config))
            ask = on_any_loop(await_receipt)
            delivery = self.delivery
            return await ask(make_sink, delivery.hurry, record_id, timeout, lambda: delivery.depth)

    def check_store(self) -> None:
        """See whether the store can take records; blocks for a connection's time.

        Raises:
            StoreUnavailableError: It cannot be reached now.
            StoreError: It is not in the state it must be in.
        """
        check_store(self.config)
        if self.transactional is not None and self.transactional.relay is not None:
            from otel_audit.transactional import outbox_maker

            make = outbox_maker(self.config)
            run_in_thread("otel-audit-check", lambda: _check(make)).result()

    def report_names(self) -> None:
        """Log which settings do not fit the models, once those are there. Never raises."""
        if self._names_reported or self.config.orm == "off" or "sqlalchemy" not in sys.modules:
            return
        self._names_reported = True
        try:
            from otel_audit.orm.unmatched_names import names_nothing

            in_clear = self._marked_in_clear()
            if in_clear is not None:
                log_limited(_logger, "marked in clear", "%s", in_clear, level=logging.WARNING)
            for setting, name, why in names_nothing(self.config):
                log_limited(
                    _logger, f"{setting} {name}", "%s%s: %s: %s",
                    PREFIX, setting.upper(), name, why, level=logging.WARNING,
                )  # fmt: skip
        except Exception as error:  # noqa: BLE001 - it is advice, and no part of auditing
            log_limited(_logger, "names", "Names in the settings not checked", error=error)

    def report_store(self) -> None:
        """Check the store and log what is wrong; never raises."""
        self.report_names()
        try:
            self.check_store()
            self._checked = True
        except StoreUnavailableError as error:
            self._checked = True
            _logger.warning("%s; records wait until it is back", error)
        except StoreError as error:
            self._checked = True
            _logger.error(  # noqa: TRY400 - said in full
                "AUDIT RECORDS DO NOT REACH THE STORE: %s; %s", error, self._meanwhile()
            )
        except Exception as error:  # noqa: BLE001 - a check in the background
            log_limited(_logger, "check", "The audit store could not be checked", error=error)

    def _meanwhile(self) -> str:
        if self.delivery is None or self.delivery.queue.spool is None:
            return "they wait in memory, and are lost with this process unless that is fixed before"
        return "they are kept in the spool until that is fixed"

    def health(self) -> dict[str, Any]:
        """Say how the audit trail is doing, as plain values."""
        delivery = self.delivery
        oldest = 0.0 if delivery is None else delivery.oldest_age
        overdue = oldest > self.config.unhealthy_after
        relay = None if self.transactional is None else self.transactional.relay
        if relay is not None:
            oldest = max(oldest, relay.oldest_age)
            overdue = oldest > self.config.unhealthy_after
        failing = 0.0 if relay is None else relay.failing_for
        self._ensure_threads()
        threads, counts = self.threads, self.counters.snapshot()
        return {
            # a loss is not made good by what comes after it
            "healthy": not overdue
            and failing == 0
            and counts["dropped"] == 0
            and not any(one.failure for one in threads.values())
            and (delivery is None or delivery.failing_for == 0),
            "overdue": overdue,
            "oldest_seconds": oldest,
            "spool_bytes": 0 if delivery is None else delivery.spool_bytes,
            "spool_foreign": foreign_found(),
            "spool_damaged_files": self._damaged_files(),
            "queue_depth": 0 if delivery is None else delivery.depth,
            "failing_for_seconds": 0.0 if delivery is None else delivery.failing_for,
            **self._sink_figures(),
            **(
                {}
                if relay is None
                else {
                    "outbox_depth": relay.depth,
                    "outbox_oldest_seconds": relay.oldest_age,
                    "outbox_failing_for_seconds": failing,
                }
            ),
            **counts,
            "threads": {name: one.failure or "ok" for name, one in threads.items()},
            "thread_restarts": sum(one.restarts for one in threads.values()),
        }

    def _note_default_rows(self, rows: int) -> None:
        self._in_default = rows

    def _damaged_files(self) -> int:
        if not self.config.has_spool:
            return 0
        return len(damaged_files(self.config.spool_path, service_of_spool()))

    def _sink_figures(self) -> dict[str, int]:
        if self.config.exporter == "postgres":
            return {"default_partition_rows": self._in_default}
        if self.config.exporter != "otlp":
            return {}
        return {"quarantine_files": len(local_quarantine(self.config).files())}

    @property
    def health_path(self) -> str | None:
        """The path of the health endpoint, None if there is none."""
        # an empty setting is off, and an empty path is the application's
        return self.config.health_path or None

    def adopt_left(self) -> None:
        """Deliver what dead processes left, before this one ends. Never raises."""
        try:
            if self.delivery is not None:
                self._within_shutdown_time(self.delivery.adopt_left)
        except Exception as error:  # noqa: BLE001 - the process ends all the same
            log_limited(_logger, "left", "What dead processes left is still there", error=error)

    def close(self) -> None:
        """Deliver what waits and end the writer.

        Raises only what a signal handler of the application raises meanwhile; what waits is
        delivered, kept or counted first.
        """
        with contextlib.ExitStack() as last_first:
            if self.delivery is not None:
                last_first.callback(self._within_shutdown_time, self.delivery.close)
            if self.transactional is not None:
                last_first.callback(self._within_shutdown_time, self.transactional.close)
            # the first of these: what is recorded between two waits would renew their time
            if self._producer is not None:
                last_first.callback(self._producer.close)
            self.report_names()
            self.report_commits()
            for one in (self._spans, self._sending, self._flagged_spans):
                if one is not None:
                    one.detach()

    def _within_shutdown_time(self, act: Callable[[float], object]) -> None:
        with self._shutdown_time.waits() as left:
            act(left())

    def _make_transactional(self) -> TransactionalRecording | None:
        if self.config.orm != "transactional":
            return None
        # only this mode needs it
        from otel_audit.transactional import TransactionalRecording

        producer = self._producer
        return TransactionalRecording(
            self.config,
            self.counters,
            None if producer is None else sink_maker(self.config),
            _without_provenance if producer is None else producer.with_provenance,
            _service_name,
        )

    def spill_cipher(self) -> Cipher | None:
        """Make what encrypts large transactions on disk; None if nothing on disk is encrypted.

        Raises:
            ConfigurationError: The key of the spool is none.
        """
        encryption = spool_encryption(self.config)
        return None if encryption is None else encryption.for_spool(uuid7())

    def _with_delivery(self, options: CaptureOptions) -> CaptureOptions:
        """Add what an exchange waits for, if the settings need it."""
        options = dataclasses.replace(options, report_commits=self._report_commits)
        config, producer = self.config, self._producer
        if self.delivery is None or producer is None:
            return options
        return dataclasses.replace(
            options,
            provenance=producer.provenance,
            durable=on_any_loop(self.delivery.synced) if config.spool_fsync == "always" else None,
            intended=on_any_loop(producer.intended) if config.exporter == "postgres" else None,
            strict=config.delivery == "strict",
            refuses_unrecorded=config.spool_full == "refuse"
            or config.delivery == "strict"
            or options.policy.may_be_strict,
        )

    def _load(self) -> None:
        """Import and compile what the first record needs; many a process never makes one.

        Not later: an import while the interpreter ends would change its exit status, as CPython
        forgets an unhandled KeyboardInterrupt when it evaluates a text. Never raises.
        """
        self._is_loaded = True
        try:
            compile_patterns()
            if self.delivery is not None and self.config.exporter == "postgres":
                importlib.import_module("otel_audit_postgres.sink")
                if self.config.keys_dsn is not None:
                    importlib.import_module("otel_audit_postgres.personal.protect")
        except Exception as error:  # noqa: BLE001 - whoever needs it meets the same, and says so
            self.count_error()
            log_limited(_logger, "load", "Not all of auditing could be loaded", error=error)

    def _begins(self) -> None:
        if not self._is_loaded:
            self._load()
        # the application may set its tracing up, or again, whenever it likes
        try:
            if self._spans is not None:
                self._spans.attach()
            if self._sending is not None:
                self._sending.attach()
        except Exception as error:  # noqa: BLE001 - the action is audited all the same
            self.count_error()
            log_limited(_logger, "attach", "Actor and tenant are not passed on", error=error)

    def _report_commits(self) -> None:
        self.report_commits()

    def _count_redaction_error(self) -> None:
        self.counters.add("redaction_errors")

    def count_error(self) -> None:
        """Count a failure of ours while an action was observed."""
        self.counters.add("capture_errors")

    def _count_loss(self, error: Exception) -> None:
        self.counters.add("dropped")
        log_limited(
            _logger, "loss", "An audit record is lost, because it could not be made",
            level=logging.CRITICAL, error=error,
        )  # fmt: skip


def _without_provenance(record: AuditRecord, _span: trace.Span | None) -> list[AuditRecord]:
    return [record]


def _service_name() -> str:
    return str(application_resource().attributes.get("service.name", "process"))


async def _check(make_sink: Callable[[], Sink | Outbox]) -> None:
    sink = make_sink()
    try:
        await sink.check()
    finally:
        await sink.close()


def check_store(config: AuditConfig) -> None:
    """See whether the store takes records; blocks for a connection's time.

    Raises:
        StoreUnavailableError: It cannot be reached now.
        StoreError: It is not in the state it must be in.
        ConfigurationError: The settings do not say where it is.
    """
    if config.exporter != "none":
        make = sink_maker(config)
        run_in_thread("otel-audit-check", lambda: _check(make)).result()


def sink_maker(
    config: AuditConfig, on_default_rows: Callable[[int], None] | None = None
) -> Callable[[], Sink]:
    """Name the sink that the settings say; nothing is connected yet.

    Args:
        config: The settings.
        on_default_rows: Called daily with the number of rows in a PostgreSQL store's default
            partition.
    """
    if config.exporter == "otlp":
        return _otlp_sink_maker(config)
    dsn = config.asyncpg_dsn
    if config.exporter == "console" or dsn is None:
        return ConsoleSink
    # a wrong setting, or what is missing, is reported now, not by the first record
    if importlib.util.find_spec("asyncpg") is None:
        raise MissingExtraError("the PostgreSQL audit store", "postgres")
    if config.keys_dsn is not None:
        # needs the extra postgres
        from otel_audit_postgres.personal.protect import protector_from

        protector_from(config)
    return functools.partial(_postgres_sink, config, dsn, on_default_rows)


def _postgres_sink(
    config: AuditConfig, dsn: str, on_default_rows: Callable[[int], None] | None
) -> Sink:
    # imported with the first record: many a process that could record never does
    from otel_audit_postgres.sink import sink_from

    return sink_from(config, dsn, on_default_rows)


def _otlp_sink_maker(config: AuditConfig) -> Callable[[], Sink]:
    # needs the extra otlp
    from otel_audit_otlp.endpoint import Endpoint
    from otel_audit_otlp.sink import OtlpSink

    endpoint = Endpoint.from_config(config)
    endpoint.warn_of_clear_text()
    return functools.partial(OtlpSink, endpoint, local_quarantine(config).keep)


def _intents(config: AuditConfig, counters: Counters) -> Callable[[], Intents] | None:
    if config.exporter != "postgres":
        return None
    return functools.partial(Intents, sink_maker(config), counters, config.strict_timeout)


def _producer_record_options(config: AuditConfig) -> ProducerRecordOptions | None:
    if not config.stream_records:
        return None
    return ProducerRecordOptions(configuration_hash(config), heartbeat=config.heartbeat_interval)


def _make_options(
    config: AuditConfig, recorder: Recorder, redactor: Redactor, on_error: Callable[[], None]
) -> CaptureOptions:
    actor_options = ActorOptions.from_config(config)
    tenant_options = TenantOptions.from_config(config)
    sources = SourceReader(SourceOptions.from_config(config), redactor)

    # the same actors come again and again
    shown = functools.lru_cache(maxsize=1024)(functools.partial(shown_actor, redactor=redactor))

    def actor(scope: Mapping[str, Any], audit: AuditScope, bearer: Bearer) -> Actor:
        found = resolve_actor(scope, audit, actor_options, bearer)
        # another reason means that somebody claimed to be known, and is not
        unknown = found.id == ANONYMOUS.id and (found.reason is None or found.reason in UNCHECKED)
        if config.baggage_trust and unknown and not found.verified:
            found = origin_from_request(scope).actor or found
        return shown(found)

    def tenant(scope: Mapping[str, Any], audit: AuditScope, claims: Claims | None) -> Tenant | None:
        found = resolve_tenant(scope, audit, claims, tenant_options)
        if found is None and config.baggage_trust:
            found = origin_from_request(scope).tenant
        return shown_tenant(found, redactor)

    if config.request_log:
        begin_request_log()
    return CaptureOptions(
        recorder=recorder,
        policy=Policy.from_config(config),
        redactor=redactor,
        bearer=functools.partial(read_bearer, options=actor_options),
        actor=actor,
        tenant=tenant,
        token_identity=TokenIdentities(
            actor_options, tenant_options, redactor, is_on=not config.baggage_trust
        ).read,
        source=sources.read,
        request_id=functools.partial(
            request_id,
            header_name=config.request_id_header,
            is_safe=lambda given: redactor.text(given) == given,
        ),
        kept_headers=kept_headers(config.capture_headers),
        request_id_header=config.request_id_header.lower().encode("latin-1"),
        body_limit=config.body_limit,
        request_bodies=config.capture_request_body,
        response_bodies=config.capture_response_body,
        socket_messages=config.capture_socket_messages,
        full_payload=config.span_payload == "full",
        span_urls=config.redact_spans,
        watch=None if config.long_action_after is None else Watchdog(config.long_action_after),
        log=log_request if config.request_log else None,
        on_error=on_error,
        subject_of=functools.partial(subject_of, options=actor_options),
        entered=functools.partial(note_session, key=config.actor_session_key)
        if config.actor_session_key
        else None,
    )


def _begin_sealing(config: AuditConfig) -> SealingThread | None:
    """Seal in this process, if the settings say so."""
    if not config.seal or config.exporter != "postgres":
        return None
    try:
        # needs asyncpg and cryptography: optional packages
        from otel_audit_postgres.ledger.metrics import publish as publish_sealing
        from otel_audit_postgres.ledger.sealer_thread import SealingThread
        from otel_audit_postgres.ledger.settings import sealer_from

        sealer = sealer_from(config)
    except OtelAuditError as error:
        log_limited(_logger, "seal", "This process does not seal: %s", error)
        return None
    publish_sealing(metrics.get_meter("otel_audit"), sealer)
    sealing = SealingThread(sealer, config.seal_interval)
    sealing.start()
    return sealing
