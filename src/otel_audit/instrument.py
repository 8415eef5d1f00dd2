"""How the audit trail is attached: by auto-instrumentation, by the instrumentor, or by one call."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Collection, Iterable
from typing import Any

from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]
    BaseInstrumentor,
)

from otel_audit.capture import install
from otel_audit.config import PREFIX, AuditConfig
from otel_audit.errors import ConfigurationError, InstrumentationError, OtelAuditError
from otel_audit.runtime import Runtime

_logger = logging.getLogger("otel_audit")

_EXIT_CONFIGURATION = 78
"""EX_CONFIG of sysexits.h: what the process exits with where it must not run unaudited."""

_lock = threading.RLock()
_runtime: Runtime | None = None
_orm: Any = None


def instrument(
    app: Any = None,
    *,
    app_engine: Any = None,
    config: AuditConfig | None = None,
) -> None:
    """Begin to audit: HTTP requests of an application, and the changes its database sessions make.

    Call it where the application is made; before or after routes are added, and before or after
    OpenTelemetry's own FastAPI instrumentation, if there is any. Calling it again for another
    application adds that one.

    Args:
        app: A FastAPI or Starlette application; None: every one that is made from now on.
        app_engine: The SQLAlchemy engine (or several) whose changes are recorded; None: all.
        config: The settings; read from environment and file if None.

    Raises:
        ConfigurationError: A setting is wrong or missing; the message names it.
        InstrumentationError: The application has already started, or is none; or another
            configuration is already at work in this process.
        StoreError: ``required`` is set, and the audit store cannot take records.
        MissingExtraError: Something that was asked for needs a package that is not installed.
    """
    with _lock:
        runtime = _begin(config, app_engine)
        if runtime is None:
            return
        if app is None:
            install.install_for_all(runtime)
        else:
            install.install(app, runtime)


def uninstrument(app: Any = None) -> None:
    """Stop auditing one application, or everything; what waits is delivered first.

    Args:
        app: The application to leave; None: all, listeners and worker included.
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
    """
    runtime = _runtime
    if runtime is None or runtime.delivery is None:
        return True
    return runtime.delivery.flush(timeout)


def health() -> dict[str, Any]:
    """Say how the audit trail of this process is doing.

    Returns:
        ``auditing`` (bool), and if so ``healthy`` (bool), ``queue_depth`` (records that wait),
        ``failing_for_seconds``, and the counts ``emitted``, ``exported``, ``dropped``,
        ``quarantined``, ``retries``, ``capture_errors`` since the process began.
    """
    runtime = _runtime
    return {"auditing": False} if runtime is None else {"auditing": True, **runtime.health()}


class AuditInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # its package is untyped
    """The same as `instrument` and `uninstrument`, in OpenTelemetry's own form."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """Starlette, which FastAPI is built on."""
        return ("starlette >= 0.40",)

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
        if config is None and _runtime is None and kwargs.get("app_engine") is None:
            attach()
            return
        instrument(app_engine=kwargs.get("app_engine"), config=config)

    def _uninstrument(self, **kwargs: Any) -> None:  # noqa: ARG002 - the base class names it
        uninstrument()


def pre_instrument() -> None:
    """Entry point ``opentelemetry_pre_instrument``: attach, before any instrumentor runs."""
    if not _disabled_by_name():
        attach()
        return
    message = (
        "THIS APPLICATION IS NOT AUDITED: OTEL_PYTHON_DISABLED_INSTRUMENTATIONS names "
        "otel_audit (or *); take it out of that list"
    )
    if _is_required():
        _refuse_to_start(message)
    _logger.warning(message)


def attach() -> None:
    """Attach with the settings of environment and file; say loudly if that cannot be.

    With ``OTEL_AUDIT_REQUIRED=true`` the process ends where auditing cannot start.
    """
    try:
        with _lock:
            runtime = _begin(None, None, said_by_environment=True)
            if runtime is not None:
                install.install_for_all(runtime)
    except OtelAuditError as error:
        message = f"THIS APPLICATION IS NOT AUDITED: {error}"
        if _is_required():
            _refuse_to_start(message)
        _logger.error(message)  # noqa: TRY400 - the message says it all


def _begin(
    config: AuditConfig | None, app_engine: Any, *, said_by_environment: bool = False
) -> Runtime | None:
    global _runtime, _orm  # noqa: PLW0603 - the one place where the process's state changes
    if _runtime is not None:
        if config is not None and config != _runtime.config:
            raise InstrumentationError(
                "instrument(): another configuration is already at work in this process "
                "(from opentelemetry-instrument, or from an earlier call); use one of the two, "
                "or call otel_audit.uninstrument() first"
            )
        return _runtime
    settings = AuditConfig() if config is None else config
    if not settings.active:
        _say_inactive(settings, said_by_environment=said_by_environment)
        return None
    runtime = Runtime(settings)
    if settings.required:
        runtime.check_store()
    _orm = _attach_orm(runtime, app_engine)
    _runtime = runtime
    atexit.register(runtime.close)
    return runtime


def _end() -> None:
    global _runtime, _orm  # noqa: PLW0603 - see _begin
    if _orm is not None:
        from otel_audit.capture import orm

        orm.detach(_orm)
    if _runtime is not None:
        atexit.unregister(_runtime.close)
        _runtime.close()
    _runtime = _orm = None


def _say_inactive(settings: AuditConfig, *, said_by_environment: bool) -> None:
    if settings.enabled is False:
        _logger.info("Auditing is off: %sENABLED=false", PREFIX)
        return
    message = f"{PREFIX}DSN: missing, so there is nowhere to keep audit records"
    if not said_by_environment:
        raise ConfigurationError(f"{message}; set it, or pass config=AuditConfig(dsn=…)")
    _logger.warning("THIS APPLICATION IS NOT AUDITED: %s", message)


def _attach_orm(runtime: Runtime, app_engine: Any) -> Any:
    if runtime.config.orm == "off":
        return None
    try:
        import sqlalchemy  # noqa: F401
    except ImportError:
        if app_engine is not None:
            raise
        return None
    from otel_audit.capture import orm

    return orm.attach(
        runtime.redactor,
        options=orm.OrmOptions(engines=_engines(app_engine)),
        on_orphan=runtime.record_outside if runtime.config.orm_outside_actions else None,
    )


def _engines(app_engine: Any) -> tuple[Any, ...]:
    if app_engine is None:
        return ()
    several = app_engine if isinstance(app_engine, Iterable) else (app_engine,)
    return tuple(getattr(engine, "sync_engine", engine) for engine in several)


def _disabled_by_name() -> bool:
    named = os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "")
    return bool({"otel_audit", "*"} & {word.strip() for word in named.split(",")})


def _is_required() -> bool:
    # read by itself: the rest of the settings may be what is wrong
    return os.environ.get(f"{PREFIX}REQUIRED", "").strip().lower() in ("1", "true", "yes", "on")


def _refuse_to_start(message: str) -> None:
    # auto-instrumentation swallows exceptions, and an error in site start-up prints a traceback
    # that buries the reason; nothing of the application runs yet that could be cut short
    sys.stderr.write(f"{message}\nRefusing to start, because {PREFIX}REQUIRED is set.\n")
    sys.stderr.flush()
    os._exit(_EXIT_CONFIGURATION)
