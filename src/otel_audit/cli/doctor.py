"""`otel-audit doctor`: is everything in place, and if not, what to do."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click

from otel_audit._util.check_result import CheckResult
from otel_audit._util.loop_thread import run_coroutine
from otel_audit._util.postgres_dsn import plain_dsn
from otel_audit.cli.dev_store import dev_hint
from otel_audit.cli.options import dsn_option, json_option
from otel_audit.cli.terminal import Colour, echo, echo_json, echo_marked
from otel_audit.config import AuditConfig
from otel_audit.errors import OtelAuditError
from otel_audit_bootstrap.exporters import missing_exporters

_WORDS: dict[bool | None, tuple[str, Colour]] = {
    True: ("ok  ", "green"),
    False: ("FAIL", "red"),
    None: ("warn", "yellow"),
}


_TOO_ANONYMOUS = 50
"""Percent of records without an actor that are warned of."""

_ENOUGH = 20
"""Records without which a share says nothing."""

_NAME_ACTORS = (
    "see docs/actors-and-tenants.md: the application names who acts by request.state.user or "
    "otel_audit.set_actor(), or a setting lets us read it"
)


@click.command()
@dsn_option
@click.option("--app-dsn", metavar="DSN", help="Check the application's own database role, too.")
@click.option("--reader-dsn", metavar="DSN", help="A role that may read, to count actors.")
@click.option("--service", metavar="NAME", help="The application's OTEL_SERVICE_NAME.")
@click.option("--app", "target", metavar="MODULE:APP", help="Check the hooks of this application.")
@json_option
def doctor(  # noqa: PLR0913, PLR0917 - one for each option
    dsn: str | None,
    app_dsn: str | None,
    reader_dsn: str | None,
    service: str | None,
    target: str | None,
    as_json: bool,
) -> None:
    """Check settings, hooks, spool and store, and print remedies.

    Prints a line for each check. Exit status 1 if a check failed. Warnings do not count as
    failures.
    """
    failed = False
    shown = []
    for found in _checks(dsn, app_dsn, reader_dsn, target, service):
        check = replace(found, remedy="") if found.ok else found
        failed = failed or check.ok is False
        shown.append(asdict(check))
        if not as_json:
            _print(check)
    if as_json:
        echo_json(shown)
    sys.exit(1 if failed else 0)


def _print(check: CheckResult) -> None:
    word, colour = _WORDS[check.ok]
    echo_marked(word, colour, f"  {check.name}: {check.detail}")
    if check.remedy:
        echo(f"      -> {check.remedy}")


def _checks(
    dsn: str | None,
    app_dsn: str | None,
    reader_dsn: str | None,
    target: str | None,
    service: str | None,
) -> Iterator[CheckResult]:
    if service:
        os.environ["OTEL_SERVICE_NAME"] = service
    try:
        config = AuditConfig() if dsn is None else AuditConfig(dsn=dsn)
    except OtelAuditError as error:
        yield CheckResult("settings", ok=False, detail=str(error), remedy="correct the setting")
        return
    yield CheckResult("settings", ok=True, detail="valid")
    yield from _hooks(target)
    yield from _exporters()
    yield _service()
    yield from _marked(config)
    if config.has_spool:
        yield _spool(config)
    if config.exporter == "otlp":
        yield from _otlp(config)
        if config.asyncpg_dsn is None:
            return
    if config.asyncpg_dsn is None:
        yield CheckResult(
            "store",
            ok=False,
            detail="OTEL_AUDIT_DSN is not set",
            remedy=f"set it, or give --dsn{dev_hint()}",
        )
        return
    yield from _store(config, config.asyncpg_dsn, app_dsn, reader_dsn)


def _store(
    config: AuditConfig, dsn: str, app_dsn: str | None, reader_dsn: str | None
) -> Iterator[CheckResult]:
    from otel_audit_postgres.checks.inspect import inspect

    found = run_coroutine(inspect(dsn, app_dsn=None if app_dsn is None else plain_dsn(app_dsn)))
    # a store that does not answer is waited for once
    answers = all(finding.name != "reachable" or finding.ok for finding in found)
    from otel_audit_postgres.retention.health import inspect_retention

    kept = run_coroutine(inspect_retention(config, dsn))
    sealed = _ledger(config, dsn, answers=answers)
    yield from (*found, *sealed, *kept)
    reader = dsn if reader_dsn is None else plain_dsn(reader_dsn)
    if answers or reader_dsn is not None:
        yield from _streams(reader)
        yield from _actors(reader)
    if config.orm == "transactional" and config.outbox_asyncpg_dsn is not None:
        from otel_audit_postgres.outbox import inspect_outbox

        app = None if app_dsn is None else plain_dsn(app_dsn)
        yield from run_coroutine(inspect_outbox(config.outbox_asyncpg_dsn, app_dsn=app))


def _ledger(config: AuditConfig, dsn: str, *, answers: bool) -> Iterator[CheckResult]:
    from otel_audit_postgres.ledger.anchors import anchors_from
    from otel_audit_postgres.ledger.health import inspect_key_file, inspect_ledger
    from otel_audit_postgres.ledger.settings import chosen_public_keys

    yield from inspect_key_file(config.signing_key_file, seals_here=config.seal)
    try:
        keys, anchors = chosen_public_keys(config), anchors_from(config.anchor)
    except OtelAuditError as error:
        yield CheckResult(
            "ledger settings", ok=False, detail=str(error), remedy="correct the setting"
        )
        return
    if answers:
        yield from run_coroutine(inspect_ledger(dsn, keys=keys, anchors=anchors))


def _hooks(target: str | None) -> Iterator[CheckResult]:
    for group in ("opentelemetry_pre_instrument", "opentelemetry_instrumentor"):
        found = {point.value for point in entry_points(group=group) if point.name == "otel_audit"}
        yield CheckResult(
            f"entry point {group}",
            ok=len(found) == 1,
            detail=next(iter(found)) if len(found) == 1 else f"{len(found)} found",
            remedy="reinstall otel-audit, once, in the application's environment",
        )
    disabled = os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "")
    if {"otel_audit", "*"} & {word.strip() for word in disabled.split(",")}:
        yield CheckResult(
            "hooks",
            ok=False,
            detail="OTEL_PYTHON_DISABLED_INSTRUMENTATIONS switches them off",
            remedy="take otel_audit (or *) out of that list",
        )
        return
    yield _check_middleware(target)


def _marked(config: AuditConfig) -> Iterator[CheckResult]:
    """Check that marked columns are encrypted; `--app` has imported the models, if it was given."""
    if config.orm == "off" or "sqlalchemy.orm" not in sys.modules:
        return
    from otel_audit.orm.marked_columns import marked_columns, marked_in_clear

    in_clear = marked_in_clear(config)
    if in_clear is not None:
        strict = config.required or config.delivery == "strict"
        yield CheckResult(
            "personal columns",
            ok=False if strict else None,
            detail=in_clear,
            remedy="see docs/personal-data.md",
        )
    elif marked := marked_columns():
        yield CheckResult(
            "personal columns", ok=True,
            detail=f"{len(marked)} are marked; "
            + ("encrypted here" if config.keys_dsn else "encrypted where they are stored"),
        )  # fmt: skip


def _exporters() -> Iterator[CheckResult]:
    missing = [str(one) for one in missing_exporters(os.environ)]
    if missing:
        yield CheckResult(
            "exporters",
            ok=None,
            detail=f"not installed: {', '.join(missing)}. If the application's environment is this "
            "one, opentelemetry-instrument fails before it loads any instrumentation, this one "
            "too: nothing is audited",
            remedy="start it by `otel-audit run`, which goes on without them; or install them, or "
            "set OTEL_TRACES_EXPORTER, OTEL_METRICS_EXPORTER and OTEL_LOGS_EXPORTER to those that "
            "are there, or to none",
        )


def _service() -> CheckResult:
    from otel_audit.delivery.factory import is_unnamed, service_of_spool

    name = service_of_spool()
    if name and not is_unnamed(name):
        return CheckResult("service", ok=True, detail=name)
    return CheckResult(
        "service",
        ok=None,
        detail=f"{name or 'no name'}: all applications without a name share a spool directory on "
        "this host, and the trail cannot distinguish them",
        remedy="set OTEL_SERVICE_NAME, another one for each application; here --service says which "
        "application is meant",
    )


def _check_middleware(target: str | None) -> CheckResult:
    """Build a stack as the application would, and look for both middlewares in it."""
    from otel_audit.http.install import install, is_audited, uninstall
    from otel_audit.runtime import Runtime

    name = "hooks"
    try:
        from starlette.applications import Starlette
    except ImportError:
        return CheckResult(
            name, ok=None, detail="Starlette is not installed here: no HTTP auditing"
        )
    try:
        app: Any = Starlette() if target is None else _load(target)
        runtime = Runtime(AuditConfig(enabled=True, exporter="none", required=False))
        install(app, runtime)
        app.middleware_stack = app.build_middleware_stack()
        both = is_audited(app)
        uninstall(app)
    except Exception as error:  # noqa: BLE001 - whatever the application's modules do
        return CheckResult(
            name, ok=False,
            detail=f"{target or 'a plain application'}: {type(error).__name__}: {error}",
            remedy="give --app as module:attribute of an application that can be imported here",
        )  # fmt: skip
    return CheckResult(
        name,
        ok=both,
        detail="both middlewares are in the stack"
        if both
        else "our middleware is not in the stack",
        remedy="report the versions of fastapi and starlette to the project",
    )


def _streams(dsn: str) -> Iterator[CheckResult]:
    from otel_audit_postgres.streams_health import inspect_streams

    try:
        found = run_coroutine(inspect_streams(dsn))
    except OtelAuditError:  # what is wrong with the store is said above
        return
    yield from found


def _actors(dsn: str) -> Iterator[CheckResult]:
    """Say how many of the service's newest records are anonymous, and what to do about it."""
    from otel_audit_postgres.query.anonymous import count_anonymous

    from otel_audit.delivery.factory import service_of_spool
    from otel_audit.identity.unresolved_credential import REMEDIES

    try:
        found = run_coroutine(count_anonymous(dsn, service_of_spool()))
    except OtelAuditError:  # what is wrong with the store is said above
        return
    if found is None:
        yield CheckResult(
            "actors", ok=True, detail="not counted: this role may not read (--reader-dsn)"
        )
        return
    if found.records < _ENOUGH:
        few = f"not enough records yet to judge: {found.records}, and {_ENOUGH} are needed"
        named = f"service {service_of_spool()}: "
        yield CheckResult(
            "actors", ok=True, detail=named + (few if found.records else "no records yet")
        )
        return
    share = 100 * found.anonymous / found.records
    reason = max(found.reasons, key=found.reasons.__getitem__, default="")
    named = f", most for the reason {reason}" if reason else ""
    yield CheckResult(
        "actors",
        ok=None if share > _TOO_ANONYMOUS else True,
        detail=f"{share:.0f} % of the last {found.records:,} records of this service are anonymous"
        + (named if found.anonymous else ""),
        remedy=REMEDIES.get(reason, _NAME_ACTORS),
    )


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    return getattr(importlib.import_module(module), attribute or "app")


def _spool(config: AuditConfig) -> CheckResult:
    from otel_audit.delivery.factory import own_destination, service_of_spool, spool_encryption
    from otel_audit.delivery.spool import SpoolSettings, inspect

    try:
        directory, encryption = config.spool_path, spool_encryption(config)
        SpoolSettings(
            directory=directory, service=service_of_spool(),
            max_bytes=config.spool_max_bytes, segment_bytes=config.spool_segment_bytes,
        )  # fmt: skip
    except OtelAuditError as error:
        return CheckResult("spool", ok=False, detail=str(error), remedy="correct the setting")
    found = inspect(directory, service_of_spool(), own_destination(config) or "", encryption)
    if found.unusable:
        return CheckResult(
            "spool", ok=False, detail=found.unusable,
            remedy="; ".join(found.problems) or "fix it: the application would not start",
        )  # fmt: skip
    if found.problems:
        usable = found.writable and found.private
        return CheckResult(
            "spool", ok=None if usable and not found.stuck else False,
            detail=f"{found.directory}: {found.problems[0]}",
            remedy="; ".join(found.problems[1:]) or "set OTEL_AUDIT_SPOOL_DIR accordingly",
        )  # fmt: skip
    left = f", {found.abandoned} left by ended processes" if found.abandoned else ""
    if found.kept_age is not None:
        left += (
            f"; the oldest full file of a running process was written {_ago(found.kept_age)} ago: "
            "an action that is still open, or what the store has not taken, keeps it"
        )
    return CheckResult(
        "spool",
        ok=True,
        detail=f"{found.directory} on {found.file_system}: {found.bytes_used} bytes held, "
        f"{found.bytes_free} free{left}",
    )


def _ago(seconds: float) -> str:
    """A duration in words, in its largest unit."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def _otlp(config: AuditConfig) -> Iterator[CheckResult]:
    from otel_audit.delivery.factory import local_quarantine
    from otel_audit.runtime import check_store

    try:
        check_store(config)
    except OtelAuditError as error:
        yield CheckResult(
            "receiver", ok=False, detail=str(error), remedy="fix it, and run doctor again"
        )
    else:
        yield CheckResult("receiver", ok=True, detail=f"{config.otlp_endpoint} takes records")
    kept = local_quarantine(config)
    number = len(kept.files())
    yield CheckResult(
        "quarantine",
        ok=None if number else True,
        detail=f"{number} records that the receiver refused are in {kept.path}",
        remedy="see why: otel-audit quarantine",
    )
