"""Errors of PostgreSQL, asyncpg and the network, translated to ours, with the remedy.

The messages name the setting and the remedy. They never quote the original message, as that may
show values of a record or parts of a DSN, and is in the server's language; the SQLSTATE
(PostgreSQL documentation, appendix A) says what happened, and the operation says what it means.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from typing import Final

from otel_audit.errors import StoreError, StoreUnavailableError

INIT: Final = "run `otel-audit init`"
MIGRATE: Final = "run `otel-audit migrate`"
OUR_CLASS: Final = "OA"
"""Class of the SQLSTATEs with which functions of the schema refuse: their text is ours."""

_GRANT: Final = "run `otel-audit init --roles` and name this role as its writer"
_MAY_NOT_READ: Final = (
    "this role may not read the trail: ask as a member of otel_audit_reader "
    "(`otel-audit init --roles --reader ROLE`), with --dsn"
)
_MAY_NOT_SET_UP: Final = (
    "this role lacks a right: run it as the owner of schema audit, or as a superuser"
)
_NO_RIGHT: Final = "42501"
_GROUPS: Final = {
    "seal": "sealer",
    "move the ledger": "sealer",
    "maintain": "writer",
    **dict.fromkeys(
        (
            "list holds", "place a hold", "release a hold", "override a hold", "preview a hold",
            "drop a partition", "retire a partition", "collapse leaves", "restore a month",
            "end a restoration", "list archives", "approve a policy", "release rows",
            "plan retention", "explain retention",
        ),
        "retention",
    ),
}  # fmt: skip
"""Whose right it is, by the first words of what was asked for; all else is the writer's."""
_NOT_THERE: Final = ("3F000", "42P01", "42883", "42703", "42704")
"""A schema, table, function, column or object that is missing."""
_DOCTOR: Final = (
    "something in schema audit is not as otel-audit made it: run `otel-audit doctor`, which names "
    "it; the server's log has the error in full"
)
_POOLER: Final = (
    "there is a pooler in transaction mode in front of the server: add "
    "pgbouncer=true to the parameters of OTEL_AUDIT_DSN (docs/poolers.md)"
)

_REMEDIES: Final = {
    "26000": _POOLER,
    "28": "user or password in OTEL_AUDIT_DSN are refused: correct them, or pg_hba.conf",
    "3D": "the database that OTEL_AUDIT_DSN names does not exist: create it, or let "
    "`otel-audit init --create` do so",
    "42P05": _POOLER,
    "42P07": "schema audit holds tables of these names that otel-audit did not make",
    "42723": "schema audit holds functions of these names that otel-audit did not make",
    _NO_RIGHT: f"the role of OTEL_AUDIT_DSN lacks a right: {_GRANT}",
    **dict.fromkeys(
        _NOT_THERE,
        f"schema audit is missing where OTEL_AUDIT_DSN points, or of another version: {INIT}; if "
        "that finds nothing to do, `otel-audit doctor` names what is missing",
    ),
    **dict.fromkeys(("09", "0A", "22", "23", "27", "42", "44", "54", "55000", "P0"), _DOCTOR),
}
_PASSING: Final = {
    "08": "the connection broke",
    "25006": (
        "the server is read-only: a standby, one that is failing over, or "
        "default_transaction_read_only is set for this server, database or role"
    ),
    "25P03": "the server ended a transaction in which nothing was asked for too long",
    "25P04": "a transaction took too long",
    "40": "the transaction was rolled back by the server",
    "53": "the server is out of resources",
    "53100": "the server's disk is full",
    "53300": "the server has too many connections, or this database or role has its limit of them",
    "55P03": "a lock was not granted in time: another session holds it",
    "55006": "an object is in use",
    "57": "the server is starting, stopping, or cancelled the statement",
    "57014": "the statement took too long, or was cancelled",
    "58": "the server met a system error",
    "XX": "the server met an internal error",
}
_CONNECTING: Final = {
    _NO_RIGHT: (
        "the role of OTEL_AUDIT_DSN may not connect to that database: GRANT CONNECT ON DATABASE "
        "to it"
    ),
    "55000": (
        "the database that OTEL_AUDIT_DSN names takes no connections: ALTER DATABASE with "
        "ALLOW_CONNECTIONS true, if that is not for a restore that is under way"
    ),
}
"""What errors mean before any statement: they say nothing about schema audit."""
_REFUSAL: Final = ("22", "23", "54")
"""Classes of errors about what was to be stored: data, constraints, limits."""

OUR_CHECKS: Final = (
    "well_formed_",
    "audit_logs_content_hash_check",
    "audit_logs_received_hash_check",
)
"""Prefixes of the constraints by which the store itself says that a record is at fault."""


def sqlstate(error: BaseException) -> str:
    """The error's SQLSTATE, empty where it has none."""
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else ""


def is_missing(error: BaseException) -> bool:
    """Return whether a schema, table, function or column is not there."""
    return sqlstate(error) in _NOT_THERE


def is_refusal(error: BaseException) -> bool:
    """Return whether an error is about the data to store; it does not say whose fault that is."""
    return sqlstate(error).startswith(_REFUSAL) or _is_unfit_for_driver(error)


def is_poison(error: BaseException) -> bool:
    """Return whether a record itself is at fault, by our check or the driver's."""
    name = getattr(error, "constraint_name", None) or ""
    return _is_unfit_for_driver(error) or (
        sqlstate(error).startswith("23") and name.startswith(OUR_CHECKS)
    )


def is_data_error(error: BaseException) -> bool:
    """Return whether a value is not of its type, or over a limit of the server.

    A record is at fault where nothing but what otel-audit made looks at it.
    """
    return sqlstate(error).startswith(("22", "54"))


def _is_unfit_for_driver(error: BaseException) -> bool:
    return not sqlstate(error) and isinstance(error, ValueError | TypeError | OverflowError)


def refusal_reason(error: BaseException) -> str:
    """Say why a record was refused, without its values."""
    parts = [f"{type(error).__name__} {sqlstate(error)}".strip()]
    for name in ("table_name", "column_name", "constraint_name"):
        value = getattr(error, name, None)
        if value:
            parts.append(f"{name.removesuffix('_name')} {value}")
    return ", ".join(parts)


def as_store_error(  # noqa: PLR0911 - a kind of error each
    error: BaseException, doing: str, *, asks: bool = False, sets_up: bool = False
) -> StoreError:
    """Turn an error into ours.

    Args:
        error: What was raised.
        doing: What was tried, in the infinitive.
        asks: Whether it was a query of the trail, for which a reader has the rights.
        sets_up: Whether it was the schema that was made or changed.

    Returns:
        `StoreUnavailableError` where trying again may help by itself, else `StoreError`.
    """
    if isinstance(error, StoreError):
        return error
    state = sqlstate(error)
    seen = f"{type(error).__name__} {state}".strip()
    if state.startswith(OUR_CLASS):
        return StoreError(f"could not {doing}: {_reason_of(error)}")
    if state:
        passing = _PASSING.get(state) or _PASSING.get(state[:2])
        if passing:
            return StoreUnavailableError(f"could not {doing} (OTEL_AUDIT_DSN): {passing} [{seen}]")
        return StoreError(
            f"could not {doing}: {_remedy(state, doing, asks=asks, sets_up=sets_up)} [{seen}]"
        )
    if isinstance(error, TimeoutError):
        return StoreUnavailableError(f"could not {doing} (OTEL_AUDIT_DSN): no answer in time")
    if type(error).__module__.startswith("asyncpg"):
        # closed under it: the server has ended the session, or something between here and there
        return StoreUnavailableError(
            f"could not {doing} (OTEL_AUDIT_DSN): {_PASSING['08']} [{seen}]"
        )
    if isinstance(error, OSError):
        return StoreUnavailableError(
            f"could not {doing}: no connection to the server that OTEL_AUDIT_DSN names; "
            f"is it running, and reachable from here? [{seen}]"
        )
    return StoreError(f"could not {doing}: unexpected [{seen}]")


def as_connect_error(  # noqa: PLR0911 - a kind of error each
    error: BaseException, settings: Sequence[str]
) -> StoreError:
    """Turn what connecting raised into ours.

    Args:
        error: What was raised.
        settings: Parameters of the DSN that the server was given as they are.
    """
    doing = "connect to the audit store"
    state, seen = sqlstate(error), f"{type(error).__name__} {sqlstate(error)}".strip()
    if state in ("42704", "22023", "08P01", "42501", "55P02") and settings:
        # names are the same in every language; a pooler, too, says which one
        text = str(getattr(error, "message", None) or error)
        named = [name for name in settings if name in text] or list(settings)
        word = "parameter" if len(named) == 1 else "one of the parameters"
        return StoreError(
            f"OTEL_AUDIT_DSN: the server, or a pooler before it, does not take the {word} "
            f"{', '.join(named)}: take it out [{seen}]"
        )
    if state in _CONNECTING:
        return StoreError(f"could not {doing}: {_CONNECTING[state]} [{seen}]")
    if "statement pooling mode" in str(error):  # pgbouncer speaks one language
        return StoreError(
            "OTEL_AUDIT_DSN: the pooler before the server gives each statement another connection "
            "(pool_mode = statement), so that there are no transactions: let it do so by "
            f"transaction (docs/poolers.md) [{seen}]"
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return StoreError(
            "OTEL_AUDIT_DSN: the server's certificate does not fit: name its authority in "
            f"sslrootcert, and the host as the certificate does [{seen}]"
        )
    if type(error) is ConnectionError:
        return StoreError(f"OTEL_AUDIT_DSN: the server takes no TLS, and sslmode wants it [{seen}]")
    if isinstance(error, socket.gaierror):
        return StoreUnavailableError(
            f"could not {doing}: the host's name in OTEL_AUDIT_DSN cannot be looked up; in a "
            f"password, @ is written %40 and / is written %2F [{seen}]"
        )
    if type(error).__name__ == "TargetServerAttributeNotMatched":
        return StoreUnavailableError(
            f"could not {doing}: no host of OTEL_AUDIT_DSN is what target_session_attrs asks for; "
            "is one failing over?"
        )
    return as_store_error(error, doing)


def _remedy(state: str, doing: str, *, asks: bool, sets_up: bool) -> str:
    group = next((group for words, group in _GROUPS.items() if doing.startswith(words)), None)
    if state == _NO_RIGHT and group is not None:
        return (
            f"this role lacks the right: run it as a member of otel_audit_{group} "
            f"(`otel-audit init --roles --{group} ROLE`), with --dsn"
        )
    if state == _NO_RIGHT and (asks or sets_up):
        return _MAY_NOT_READ if asks else _MAY_NOT_SET_UP
    if sets_up and state in _NOT_THERE:
        return (
            "an object that a migration needs is missing, so schema audit was changed by hand: "
            "restore it, or set up a new database"
        )
    return _REMEDIES.get(state) or _REMEDIES.get(state[:2]) or "see the server's log"


def _reason_of(error: BaseException) -> str:
    hint = getattr(error, "hint", None)
    text = str(getattr(error, "message", None) or error).partition("\n")[0]
    return f"{text}; {hint}" if hint else text
