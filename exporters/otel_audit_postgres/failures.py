"""What PostgreSQL, asyncpg and the network report, in terms of what to do about it.

The messages name the setting and the remedy. They never quote the original message, as that may
show values of a record or parts of a DSN; the SQLSTATE (PostgreSQL documentation, appendix A)
tells what happened.
"""

from __future__ import annotations

from typing import Final

from otel_audit.errors import StoreError, StoreUnavailableError

INIT: Final = "run `otel-audit init`"
MIGRATE: Final = "run `otel-audit migrate`"
_GRANT: Final = "run `otel-audit init --roles` and name this role as its writer"
_MAY_NOT_READ: Final = (
    "this role may not read the trail: ask as a member of otel_audit_reader "
    "(`otel-audit init --roles --reader ROLE`), with --dsn"
)
_NO_RIGHT: Final = "42501"

_REMEDIES: Final = {
    "28": "user or password in OTEL_AUDIT_DSN are refused: correct them, or pg_hba.conf",
    "3D": "the database that OTEL_AUDIT_DSN names does not exist: create it",
    "3F": f"schema audit is missing in the database of OTEL_AUDIT_DSN: {INIT}",
    "42": f"schema audit is missing where OTEL_AUDIT_DSN points, or of another version: {INIT}",
    "42P07": "schema audit holds tables of these names that otel-audit did not make",
    "42723": "schema audit holds functions of these names that otel-audit did not make",
    _NO_RIGHT: f"the role of OTEL_AUDIT_DSN lacks a right: {_GRANT}",
}
_PASSING: Final = {
    "08": "the connection broke",
    "25006": "the server is read-only: a standby, or one that is failing over",
    "40": "the transaction was rolled back by the server",
    "53": "the server is out of resources",
    "53100": "the server's disk is full",
    "53300": "the server has too many connections",
    "55": "a lock could not be had",
    "57": "the server is starting, stopping, or cancelled the statement",
    "57014": "the statement took too long",
    "58": "the server met a system error",
    "XX": "the server met an internal error",
}
_REFUSING: Final = (
    "function audit.drop_partition(", "function audit.partition_content(",
    "function audit.collapse_leaves(", "function audit.record_view(",
    "function audit_guard.refuse_ddl(",
)  # fmt: skip
"""Functions of the schema that refuse with a reason."""
_POISON: Final = ("22", "23", "54")
"""Classes of errors that a record's own content causes: data, constraints, limits."""


def sqlstate(error: BaseException) -> str:
    """The error's SQLSTATE, empty where it has none."""
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else ""


def is_poison(error: BaseException) -> bool:
    """Tell whether an error comes from a record's content, not from the store's condition."""
    return sqlstate(error).startswith(_POISON) or (
        not sqlstate(error) and isinstance(error, ValueError | TypeError | OverflowError)
    )


def poison_reason(error: BaseException) -> str:
    """Say why a record was refused, without its values."""
    parts = [f"{type(error).__name__} {sqlstate(error)}".strip()]
    for name in ("column_name", "constraint_name"):
        value = getattr(error, name, None)
        if value:
            parts.append(f"{name.removesuffix('_name')} {value}")
    return ", ".join(parts)


def as_store_error(error: BaseException, doing: str, *, asks: bool = False) -> StoreError:
    """Turn an error into ours.

    Args:
        error: What was raised.
        doing: What was tried, in the infinitive.
        asks: Whether it was a question to the trail, for which a reader has the rights.

    Returns:
        `StoreUnavailableError` where trying again may help by itself, else `StoreError`.
    """
    if isinstance(error, StoreError):
        return error
    seen = f"{type(error).__name__} {sqlstate(error)}".strip()
    if _is_ours(error):
        return StoreError(f"could not {doing}: {_said(error)}")
    if sqlstate(error):
        return _from_server(sqlstate(error), doing, seen, asks=asks)
    if isinstance(error, TimeoutError):
        return StoreUnavailableError(f"could not {doing} (OTEL_AUDIT_DSN): no answer in time")
    if isinstance(error, OSError) or type(error).__module__.startswith("asyncpg"):
        return StoreUnavailableError(
            f"could not {doing}: no connection to the server that OTEL_AUDIT_DSN names; "
            f"is it running, and reachable from here? [{seen}]"
        )
    return StoreError(f"could not {doing}: unexpected [{seen}]")


def _is_ours(error: BaseException) -> bool:
    """Whether a function of the schema refused it: its text is ours, and shows no values."""
    context = getattr(error, "context", None) or ""
    return any(name in context.split("\n")[0] for name in _REFUSING)


def _said(error: BaseException) -> str:
    hint = getattr(error, "hint", None)
    text = str(getattr(error, "message", None) or error).partition("\n")[0]
    return f"{text}; {hint}" if hint else text


def _from_server(state: str, doing: str, seen: str, *, asks: bool) -> StoreError:
    passing = _PASSING.get(state) or _PASSING.get(state[:2])
    if passing:
        return StoreUnavailableError(f"could not {doing} (OTEL_AUDIT_DSN): {passing} [{seen}]")
    if asks and state == _NO_RIGHT:
        return StoreError(f"could not {doing}: {_MAY_NOT_READ} [{seen}]")
    remedy = _REMEDIES.get(state) or _REMEDIES.get(state[:2]) or "see the server's log"
    return StoreError(f"could not {doing}: {remedy} [{seen}]")
