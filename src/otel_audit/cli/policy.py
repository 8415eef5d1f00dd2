"""``otel-audit policy``: what is recorded, at which level, under which name, and why."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from otel_audit.cli.options import json_option
from otel_audit.cli.terminal import echo, echo_json, echo_table
from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError
from otel_audit.policy import Policy, PolicyDecision
from otel_audit.policy.routes import KnownRoute, routes_of
from otel_audit.policy.rules import MARK, WRITES, Override
from otel_audit.record import ANONYMOUS, Actor, Tenant

if TYPE_CHECKING:
    from collections.abc import Iterable

_COLUMNS = ("METHOD", "ROUTE", "LEVEL", "EVENT", "ACTION", "RULE")
_BORING = frozenset({"HEAD", "OPTIONS"})


@click.group()
def policy() -> None:
    """Show what is recorded, at which level, and by which rule."""


@policy.command()
@click.argument("method")
@click.argument("path")
@click.option("--status", type=int, default=200, show_default=True, help="Status of the answer.")
@click.option(
    "--actor", default="somebody", show_default=True, help="The actor's id, or anonymous."
)
@click.option("--role", help="The actor's role.")
@click.option("--tenant", help="The tenant's id.")
@click.option("--wrote", is_flag=True, help="The request wrote to the database.")
@click.option("--app", "app_path", help="module:app. Its route decides, with its overrides.")
@json_option
def explain(  # noqa: PLR0913, PLR0917 - one argument an option
    method: str,
    path: str,
    status: int,
    actor: str,
    role: str | None,
    tenant: str | None,
    wrote: bool,
    app_path: str | None,
    as_json: bool,
) -> None:
    """Print rule, level and event name of METHOD PATH."""
    known = Policy.from_config(AuditConfig())
    method = method.upper()
    route, parameters = _route_for(method, path, app_path)
    template = route.path if route else path if "{" in path else None
    decision = known.decide(
        method=method,
        path=path,
        route=template,
        status=status,
        actor=ANONYMOUS if actor == "anonymous" else Actor(id=actor, type="user", role=role),
        tenant=None if tenant is None else Tenant(id=tenant),
        wrote=wrote,
        scope=_scope(route.override if route else None) | {"path_params": parameters},
    )
    rows = {
        "rule": decision.rule,
        "level": decision.level,
        "event": decision.event_name,
        "action": decision.action,
        "target": _target(decision),
        "route": template or "-",
        "sampled": f"1 of {decision.sample}" if decision.sample else "-",
    }
    if as_json:
        echo_json({name: None if text == "-" else text for name, text in rows.items()})
    else:
        _print_pairs(rows)


@policy.command()
@click.argument("app", metavar="MODULE:APP")
@click.option("--factory", is_flag=True, help="APP is a function that makes the application.")
@click.option("--strict", is_flag=True, help="Exit with 1 if a route that writes is not recorded.")
@json_option
def routes(app: str, factory: bool, strict: bool, as_json: bool) -> None:
    """List every route of MODULE:APP with its level and name.

    Warns of routes that may write and are not recorded, and of overrides on routes that cannot be
    used.
    """
    known = Policy.from_config(AuditConfig())
    listed = list(routes_of(_load(app, factory=factory)))
    rows = []
    warnings = [f"{route.path}: {route.problem}" for route in listed if route.problem]
    unrecorded = 0
    for method, route, decision in _decisions(known, listed):
        event = decision.event_name if decision.level != "none" else "-"
        rows.append((method, route.path, decision.level, event, decision.action, decision.rule))
        if method in WRITES and decision.level == "none":
            unrecorded += 1
            warnings.append(f"{method} {route.path} writes, and is not recorded")
    if as_json:
        names = [name.lower() for name in _COLUMNS]
        found = [dict(zip(names, row, strict=True)) for row in rows]
        echo_json({"routes": found, "warnings": warnings})
    else:
        # the action follows from the method, nearly always
        whole = ("METHOD", "LEVEL", "ACTION")
        echo_table(_COLUMNS, rows, whole=whole, dispensable="ACTION")
        echo(*(f"warning: {warning}" for warning in warnings), err=True)
    if strict and unrecorded:
        sys.exit(1)


def _decisions(
    known: Policy, listed: Iterable[KnownRoute]
) -> Iterable[tuple[str, KnownRoute, PolicyDecision]]:
    for route in listed:
        for method in route.methods:
            if method in _BORING and len(route.methods) > 1:
                continue
            yield (
                method,
                route,
                known.decide(
                    method=method,
                    path=route.path,
                    route=route.path,
                    status=200,
                    actor=Actor(id="somebody", type="user"),
                    tenant=None,
                    wrote=False,
                    scope=_scope(route.override),
                ),
            )


def _route_for(
    method: str, path: str, app_path: str | None
) -> tuple[KnownRoute | None, dict[str, str]]:
    """Find the route of an application that serves a path, and the path's parameters."""
    if app_path is None:
        return None, {}
    for route in routes_of(_load(app_path, factory=False)):
        parameters = _parameters(route.path, path)
        if method in route.methods and parameters is not None:
            return route, parameters
    raise click.ClickException(f"{app_path} has no route for {method} {path}")


def _parameters(template: str, path: str) -> dict[str, str] | None:
    parts, words = template.strip("/").split("/"), path.strip("/").split("/")
    if parts[-1].endswith(":path}"):
        words = [*words[: len(parts) - 1], "/".join(words[len(parts) - 1 :])]
    pairs = list(zip(parts, words, strict=False))
    if len(parts) != len(words) or not all(part == word or "{" in part for part, word in pairs):
        return None
    return {part.strip("{}").partition(":")[0]: word for part, word in pairs if "{" in part}


def _scope(override: Override | None) -> dict[str, object]:
    def endpoint() -> None: ...

    if override is None:
        return {}
    setattr(endpoint, MARK, override)
    return {"endpoint": endpoint}


def _target(decision: PolicyDecision) -> str:
    if decision.target is None:
        return "-"
    return ":".join(part for part in (decision.target.type, decision.target.id) if part)


def _load(name: str, *, factory: bool) -> object:
    module, colon, attribute = name.partition(":")
    if not colon or not attribute:
        raise click.BadParameter("expected module:app", param_hint="MODULE:APP")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found() if factory and callable(found) else found
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigurationError(f"{name}: cannot be imported: {reason}") from error


def _print_pairs(pairs: dict[str, str]) -> None:
    for name, value in pairs.items():
        echo(f"{name:<8} {value}")
