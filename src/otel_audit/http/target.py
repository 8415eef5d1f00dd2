"""The target of an action, if it differs from the one in the path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_audit.action.arguments import parse_name
from otel_audit.http.request_metadata import unless_token
from otel_audit.policy.entity_names import alike
from otel_audit.record import Change, Operation, Target
from otel_audit.scope import AuditScope

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_audit.redaction import Redactor


def shown_target(
    target: Target | None, secrets: frozenset[str], redactor: Redactor, *, routed: bool
) -> Target | None:
    """Leave out the id of a target where it is, or holds, a secret.

    Args:
        target: As the application, the route or the path name it.
        secrets: Values of the path parameters whose names say that they are secrets.
        redactor: Knows secrets by their shape.
        routed: Whether a route was found; where none was, an id that looks like a token is none.
    """
    if target is None:
        return None
    kind = parse_name(target.type, redactor)
    if target.id is None:
        return target if kind == target.type else Target(type=kind)
    known = any(map(target.id.__contains__, secrets))
    is_token = not routed and unless_token(target.id) != target.id
    if known or is_token or _shows_secret(target.id, redactor):
        return Target(type=kind)
    return target if kind == target.type else Target(type=kind, id=target.id)


def _shows_secret(found: str, redactor: Redactor) -> bool:
    if redactor.identifier(found) != found:
        return True
    if "@" not in found:
        return False
    # a route may have cut a URL's scheme off, which distinguishes a password from a name
    url = f"https://{found.lstrip('/')}"
    return redactor.identifier(url) != url


def with_new_id(target: Target | None, audit: AuditScope) -> Target | None:
    """Name the one entity that was created, where the path could not name it yet."""
    if target is None or target.id is not None:
        return target
    found = _one_of(target.type, audit, "insert")
    return target if found is None else Target(type=target.type, id=found)


def changed_id(kind: str, audit: AuditScope) -> str | None:
    """Return the id of the one entity of a kind that was updated; None if there is not one."""
    return _one_of(kind, audit, "update")


def _one_of(kind: str, audit: AuditScope, operation: Operation) -> str | None:
    """Find the one row that is likest to a kind of thing, by what it is called."""
    best, keys = 0, set[str]()
    for change in audit.changes:
        if change.operation != operation or change.kind != "entity" or not change.key:
            continue
        rank = max(alike(name, kind) for name in _names_of(change))
        if rank > best:
            best, keys = rank, set()
        if rank and rank == best:
            keys.add(change.reference.partition(":")[2])
    return keys.pop() if len(keys) == 1 else None


def _names_of(change: Change) -> Iterator[str]:
    for reference in (change.reference, *change.related):
        # what stands before the noun is where it is
        yield reference.partition(":")[0].rpartition(".")[2]
