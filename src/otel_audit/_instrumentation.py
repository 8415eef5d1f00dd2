"""Instrumentation: by auto-instrumentation, by the instrumentor, or by `instrument`."""

from __future__ import annotations

import atexit
import functools
import importlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import wrapt
from opentelemetry import trace
from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]
    BaseInstrumentor,
)
from opentelemetry.sdk.trace import SpanProcessor

from otel_audit._util.fork import call_in_child
from otel_audit._util.unconfigured_log import name_unconfigured_messages
from otel_audit.action import current_runtime
from otel_audit.action.current_runtime import made_last
from otel_audit.action.ports import Recorder
from otel_audit.config import AuditConfig
from otel_audit.delivery.hard_exit import deliver_before_exit
from otel_audit.delivery.sink import Receipt
from otel_audit.errors import (
    ConfigurationError,
    InstrumentationError,
    MissingExtraError,
    OtelAuditError,
)
from otel_audit.http import install
from otel_audit.record import AuditRecord
from otel_audit.runtime import Runtime
from otel_audit.scope import warn_outside
from otel_audit.setting_values import PREFIX
from otel_audit.startup_line import startup_line
from otel_audit_bootstrap import (
    announce,
    explained,
    must_be_audited,
    not_audited,
    serves_multiprocessing,
    was_spawned,
)

_logger = logging.getLogger("otel_audit")

_lock = threading.RLock()
_runtime: Runtime | None = None
_orm: Any = None


def instrument(
    app: Any = None,
    *,
    app_engine: Any = None,
    config: AuditConfig | None = None,
    audit_span_processors: Sequence[SpanProcessor] = (),
) -> None:
    """Begin to audit: HTTP requests of an application, and the changes its database sessions make.

    Call it where the application is made; before or after routes are added, and before or after
    OpenTelemetry's own FastAPI instrumentation, if there is any. Calling it again for another
    application adds that one.

    Args:
        app: A FastAPI or Starlette application; None: every one that is made from now on.
        app_engine: Whose changes are recorded: an engine, a sessionmaker, a declarative base, or
            several of these; None: all.
        config: The settings; read from environment and file if None.
        audit_span_processors: Get each finished record as a span, in addition to its delivery. The
            span starts and ends at once. Best effort, as with all spans.

    Raises:
        ConfigurationError: A setting is wrong or missing; the message names it.
        InstrumentationError: The application has already started, or is none; or another
            configuration is already at work in this process.
        StoreError: ``required`` is set, and the audit store cannot take records.
        MissingExtraError: A setting needs a package that is not installed.

    Example::

        app = FastAPI()
        otel_audit.instrument(app, config=otel_audit.AuditConfig(exporter="none"))
    """
    with _lock:
        is_new = _runtime is None
        runtime = _begin(config, app_engine, audit_span_processors)
        if runtime is None:
            return
        _install(app, runtime)
        if is_new:
            announce(startup_line(runtime.config), logging.INFO)


def instrument_into(
    recorder: Recorder,
    app: Any = None,
    *,
    app_engine: Any = None,
    config: AuditConfig,
    seen: Callable[[AuditRecord, trace.Span | None], None] | None = None,
) -> None:
    """As `instrument`, but the records go to a recorder instead of a store.

    Args:
        recorder: Takes the records.
        app: As for `instrument`.
        app_engine: As for `instrument`.
        config: The settings.
        seen: Called for every finished request, also one that is not recorded (level ``none``).

    Raises:
        InstrumentationError: The application cannot be instrumented, or auditing is at work in
            this process already.
        ConfigurationError: A setting is wrong.
    """
    with _lock:
        if _runtime is not None:
            raise InstrumentationError(
                "auditing is already active in this process: call otel_audit.uninstrument() "
                "first, or set OTEL_AUDIT_ENABLED=false where the application starts it"
            )
        _install(app, _start(Runtime(config, recorder, seen=seen), app_engine))


def uninstrument(app: Any = None) -> None:
    """Stop auditing one application, or everything; what waits is delivered first.

    Args:
        app: The application to leave; None: all, listeners and writer included.

    Example::

        app = FastAPI()
        otel_audit.instrument(app, config=otel_audit.AuditConfig(exporter="none"))
        otel_audit.uninstrument()
    """
    with _lock:
        if app is not None:
            install.uninstall(app)
            return
        install.uninstall_all()
        _end()


def flush(timeout: float = 10.0) -> bool:
    """Wait until the store has every record made so far.

    Args:
        timeout: Seconds to wait.

    Returns:
        Whether it has; True where nothing is audited.

    Example::

        otel_audit.emit("report.made", actor="job-7")
        assert otel_audit.flush(timeout=5)
    """
    runtime = _runtime
    if runtime is None or runtime.delivery is None:
        return True
    began = time.monotonic()
    delivered = runtime.delivery.flush(timeout)
    if runtime.transactional is None:
        return delivered
    return runtime.transactional.flush(max(timeout - (time.monotonic() - began), 0.0)) and delivered


async def wait_for_receipt(
    record_id: str | None = None,
    *,
    timeout: float = 10.0,  # noqa: ASYNC109
) -> Receipt:
    """Wait until the store has a record, and get what it says of it.

    The record must be finished: what `emit` made, or an `audit` block that has ended; the record of
    a request is finished after its answer. The event loop continues meanwhile.

    Args:
        record_id: As `emit` returns it, or `record_id` of an action. None: of what was recorded by
            hand last, in this task or thread.
        timeout: Seconds to wait.

    Returns:
        The record's id, the hash of its text as stored, and the store's time.

    Raises:
        StoreUnavailableError: The store does not have it in time; it is kept until it has.
        ConfigurationError: Nothing is audited in this process, or not to a store.
        ValueError: The id is not a UUID, or none is given and nothing was recorded by hand before.

    Example::

        otel_audit.emit("report.made", actor="job-7")
        receipt = await otel_audit.wait_for_receipt(timeout=30)
        print(receipt.content_hash, receipt.recorded_at)
    """
    runtime = _runtime
    if runtime is None:
        raise ConfigurationError("wait_for_receipt(): nothing is audited in this process")
    record_id = made_last.get() if record_id is None else record_id
    if record_id is None:
        raise ValueError(
            "wait_for_receipt(): nothing was recorded by hand before in this task; a request's own "
            "record is made after its answer"
        )
    return await runtime.receipt(record_id, timeout)


def health() -> dict[str, Any]:
    """Say how the audit trail of this process is doing.

    Returns:
        ``auditing`` (bool), and if it is true:

        - ``healthy`` (bool), ``overdue`` (bool: a record has waited longer than
          ``unhealthy_after``), ``failing_for_seconds``, ``oldest_seconds`` (how long the oldest
          record has waited), ``queue_depth`` (records that wait);
        - counts since the process began: ``emitted``, ``exported``, ``dropped``, ``quarantined``,
          ``conflicts`` (stored under another id), ``retries``, ``capture_errors``,
          ``redaction_errors``, ``refused``, ``spool_errors``, ``relayed`` (out of the outbox),
          ``outbox_errors`` (transactions that the outbox failed);
        - ``spool_bytes``, ``spool_foreign`` (files and directories of the spool that are not
          trusted, as others may write to them), ``spool_damaged_files``;
        - ``threads`` (by name ``ok``, or why the thread failed), ``thread_restarts``;
        - with the exporter ``postgres``: ``default_partition_rows``; with ``otlp``:
          ``quarantine_files``;
        - where an outbox is relayed: ``outbox_depth``, ``outbox_oldest_seconds``,
          ``outbox_failing_for_seconds``.

    Example::

        if not otel_audit.health()["auditing"]:
            raise RuntimeError("this process is not audited")
    """
    runtime = _runtime
    return {"auditing": False} if runtime is None else {"auditing": True, **runtime.health()}


class AuditInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # its package is untyped
    """`instrument` and `uninstrument` as an OpenTelemetry instrumentor.

    Example::

        otel_audit.AuditInstrumentor().instrument(config=otel_audit.AuditConfig(exporter="none"))
        otel_audit.AuditInstrumentor().uninstrument()
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """Starlette, which FastAPI is built on."""
        return ("starlette >= 0.40",)

    def instrument(self, **kwargs: Any) -> Any:
        """Audit everything that is made from now on; takes what the function `instrument` takes.

        Args:
            kwargs: Also ``required=True``, which stands for that setting.

        Raises:
            InstrumentationError: Auditing is required, and Starlette is missing or too old, so that
                there is nothing whose requests could be audited.
        """
        required = kwargs.pop("required", None)
        config = kwargs.get("config")
        if required is not None:
            # as objects: dumped to dictionaries, rules and senders would be read in another form
            given = (
                {}
                if config is None
                else {name: getattr(config, name) for name in config.model_fields_set}
            )
            kwargs["config"] = config = AuditConfig(**{**given, "required": required})
        # auto-instrumentation has checked this, or reports the conflict itself
        if not (kwargs.get("skip_dep_check") or kwargs.get("raise_exception_on_conflict")):
            conflict = self._check_dependency_conflicts()
            demanded = must_be_audited() if config is None else config.required
            if conflict is not None and demanded:
                raise InstrumentationError(
                    "AuditInstrumentor().instrument(): no HTTP request can be audited: "
                    f"{conflict}; install starlette >= 0.40, or call otel_audit.instrument() "
                    "where only database changes and actions by hand are to be audited"
                )
        return super().instrument(**kwargs)

    def instrument_app(self, app: Any, **kwargs: Any) -> None:
        """Audit one application; takes what `instrument` takes."""
        instrument(app, **kwargs)

    def uninstrument_app(self, app: Any) -> None:
        """Stop auditing one application."""
        uninstrument(app)

    def _instrument(self, **kwargs: Any) -> None:
        config = kwargs.get("config")
        if config is None and _runtime is None and _disabled_by_name():
            return
        if (
            config is None
            and _runtime is None
            and not (kwargs.get("app_engine") or kwargs.get("audit_span_processors"))
        ):
            attach()
            return
        instrument(
            app_engine=kwargs.get("app_engine"),
            config=config,
            audit_span_processors=kwargs.get("audit_span_processors", ()),
        )

    def _uninstrument(self, **kwargs: Any) -> None:  # noqa: ARG002 - the base class names it
        uninstrument()


def pre_instrument() -> None:
    """Attach, before any instrumentor runs; see `otel_audit_bootstrap`."""
    if not _disabled_by_name():
        attach()
        return
    not_audited(
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS names otel_audit (or *); remove it from that list"
    )


def attach() -> None:
    """Attach with the settings of environment and file; say loudly if that cannot be.

    With ``OTEL_AUDIT_REQUIRED=true`` the process ends where auditing cannot start.
    """
    if serves_multiprocessing():
        return
    try:
        with _lock:
            is_new = _runtime is None
            runtime = _begin(None, None, by_environment=True)
            if runtime is not None:
                _install(None, runtime)
                if is_new:
                    _log_begun(runtime.config)
    except OtelAuditError as error:
        not_audited(str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - it would switch off the app's tracing as well
        not_audited(explained(error))


def _log_begun(config: AuditConfig) -> None:
    """Say that auditing is on: once for each run, however many processes serve in it."""
    line = startup_line(config)
    if was_spawned():
        # the process that spawned this one was set up in the same way, and has printed the line
        _logger.info("%s", line)
    else:
        announce(line, logging.INFO)


def _begin(
    config: AuditConfig | None,
    app_engine: Any,
    span_processors: Sequence[SpanProcessor] = (),
    *,
    by_environment: bool = False,
) -> Runtime | None:
    if _runtime is not None:
        if config is not None and config != _runtime.config:
            raise InstrumentationError(
                "instrument(): another configuration is already active in this process "
                "(from opentelemetry-instrument, or from an earlier call); use one of the two, "
                "or call otel_audit.uninstrument() first"
            )
        return _runtime
    settings = AuditConfig() if config is None else config
    if not settings.active:
        _log_inactive(settings, by_environment=by_environment)
        return None
    runtime = Runtime(settings, span_processors=span_processors)
    if settings.required:
        try:
            runtime.check_store()
        except BaseException:
            runtime.close()
            raise
    return _start(runtime, app_engine)


def _start(runtime: Runtime, app_engine: Any) -> Runtime:
    global _runtime, _orm  # noqa: PLW0603 - the one place where the process's state changes
    try:
        if app_engine is not None or not _may_wait_for_sqlalchemy(runtime.config):
            _orm = _attach_orm(runtime, app_engine)
        else:
            runtime.spill_cipher()  # a wrong key is said now, not when SQLAlchemy is imported
    except BaseException:
        runtime.close()
        raise
    _runtime = runtime
    if _orm is not None:
        runtime.report_commits = _orm.report_commits
    elif runtime.config.orm == "observed":
        _once_imported("sqlalchemy", functools.partial(_attach_orm_late, runtime))
    runtime.watch_spans()
    current_runtime.use(runtime.current)
    warn_outside(is_audited=True)
    atexit.register(runtime.close)
    _close_with_child(runtime)
    return runtime


def _adopt_left() -> None:
    if _runtime is not None:
        _log_missed(_runtime.config)
        _runtime.adopt_left()


def _log_missed(config: AuditConfig) -> None:
    """Say what was imported past the import hook, so that it was not audited."""
    missed = ["its applications"] if install.is_any_missed() else []
    if _orm is None and config.orm == "observed" and "sqlalchemy" in sys.modules:
        missed.append("its database changes")
    if missed:
        announce(
            f"NOT ALL WAS AUDITED in this process: not {' and not '.join(missed)}, as Starlette, "
            "FastAPI or SQLAlchemy was imported again, or by a finder in sys.meta_path that is not "
            f"Python's own; set {PREFIX}REQUIRED=true, or import it before otel-audit starts",
            logging.CRITICAL,
        )


def _call_at_the_end(call: Callable[[], None]) -> None:
    # earlier than atexit where that is to be had: from Python 3.12 on no thread starts then
    register = getattr(threading, "_register_atexit", atexit.register)
    try:
        register(call)
    except RuntimeError:  # imported while the interpreter ends
        return


_call_at_the_end(_adopt_left)
name_unconfigured_messages()


def _close_with_child(runtime: Runtime) -> None:
    # a child that multiprocessing has forked ends without atexit
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is not None and process is not None and process.parent_process() is not None:
        # finalizers run from the highest priority down: pools have 15, a queue that is still being
        # written has -5, and records that are made meanwhile are to be delivered, too
        util.Finalize(None, runtime.close, exitpriority=-100)


def _after_fork() -> None:
    util = sys.modules.get("multiprocessing.util")
    if util is not None and _runtime is not None:
        # only now: multiprocessing forgets its parent's finalizers after this
        util.register_after_fork(_runtime, _close_with_child)
    if _runtime is not None:
        deliver_before_exit(_runtime.close, _runtime.config.shutdown_timeout)


call_in_child(_after_fork)


def _install(app: Any, runtime: Runtime) -> None:
    if app is not None:
        install.install(app, runtime)
        return
    for module in install.FRAMEWORK_MODULES:
        if not (_imports_at_once(runtime.config) or module in sys.modules):
            _once_imported(module, install.patch_imported)
            continue
        try:
            # where another thread is importing it just now, this waits until its class is there
            importlib.import_module(module)
        except ImportError:
            # a script or a worker has no use for it; or it is found when sys.path is complete
            _once_imported(module, install.patch_imported)
    install.install_for_all(runtime)


def _imports_at_once(config: AuditConfig) -> bool:
    """Whether auditing must hold, whoever else changes how modules are found.

    A finder that stands before the hook's and loads by itself keeps the hook from being called.
    """
    return config.required or config.delivery == "strict"


def _once_imported(module: str, call: Callable[[], None]) -> None:
    """Do something as soon as the application imports a module, before it can use it.

    A process that has no use for a framework must not pay for its import, which is more than the
    rest of a start.
    """

    def hook(_module: object) -> None:
        try:
            call()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - it would end the application's own import
            not_audited(str(error) if isinstance(error, OtelAuditError) else explained(error))

    wrapt.register_post_import_hook(hook, module)


def _may_wait_for_sqlalchemy(config: AuditConfig) -> bool:
    return (
        config.orm == "observed"
        and not _imports_at_once(config)
        and "sqlalchemy" not in sys.modules
    )


def _attach_orm_late(runtime: Runtime) -> None:
    global _orm  # noqa: PLW0603 - see _start
    # without `_lock`: who holds it may wait for the import that this is a part of
    if _runtime is runtime and _orm is None:
        _orm = _attach_orm(runtime, None)
        if _orm is not None:
            runtime.report_commits = _orm.report_commits


def _end() -> None:
    global _runtime, _orm  # noqa: PLW0603 - see _start
    current_runtime.use(None)
    warn_outside(is_audited=False)
    if _orm is not None:
        # needs SQLAlchemy, which an application may not have
        from otel_audit import orm

        orm.detach(_orm)
    if _runtime is not None:
        atexit.unregister(_runtime.close)
        _runtime.close()
    _runtime = _orm = None


def _log_inactive(settings: AuditConfig, *, by_environment: bool) -> None:
    if settings.enabled is False:
        current_runtime.leave_out()
        _logger.info("Auditing is off: %sENABLED=false", PREFIX)
        return
    message = f"{PREFIX}DSN: missing, so there is nowhere to keep audit records"
    if not by_environment:
        raise ConfigurationError(f"{message}; set it, or pass config=AuditConfig(dsn=…)")
    not_audited(message)


def _attach_orm(runtime: Runtime, app_engine: Any) -> Any:
    if runtime.config.orm == "off":
        return None
    try:
        # needs SQLAlchemy, which an application may not have
        from otel_audit import orm
    except MissingExtraError:
        if app_engine is not None or runtime.config.orm == "transactional":
            raise
        return None
    sources, transactional = orm.sources_of(app_engine), runtime.transactional
    if transactional is not None:
        _refuse_other_databases(sources["engines"])
    attachment = orm.attach(
        runtime.redactor,
        options=orm.OrmOptions.from_config(
            runtime.config, spill_cipher=runtime.spill_cipher(), **sources
        ),
        on_orphan=runtime.record_outside,
        transactional=None if transactional is None else transactional.for_orm(),
        on_error=runtime.count_error,
    )
    if transactional is not None:
        transactional.attachment = attachment
    return attachment


def _refuse_other_databases(engines: Iterable[Any]) -> None:
    for engine in engines:
        if engine.dialect.name != "postgresql":
            raise ConfigurationError(
                f"{PREFIX}ORM=transactional works in transactions of PostgreSQL, and app_engine is "
                f"one of {engine.dialect.name}: use {PREFIX}ORM=observed for it"
            )


def _disabled_by_name() -> bool:
    named = os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "")
    return bool({"otel_audit", "*"} & {word.strip() for word in named.split(",")})
