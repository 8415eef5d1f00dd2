"""The trail's own events (``audit.*``): looks, exports, starts and ends of processes."""

from __future__ import annotations

from typing import Final

from otel_audit_postgres.query.grammar import Query, QueryValue, Term

OWN: Final = "audit."
_BEGINNINGS: Final = (OWN, "audit_")
"""Of our own events and of what they are about; an application may have auditors."""
_NAMING: Final = ("event", "target", "entity")
"""Fields whose values say that our own events are asked for."""


def asks_for_own(query: Query) -> bool:
    """Whether a query names our own events, so that nobody wants them left out."""
    return any(
        one.field in _NAMING and not one.negated and _is_own(value)
        for one in query.terms
        for value in one.values
    )


def _is_own(value: QueryValue) -> bool:
    # event:audit* has them among others
    return value.text.startswith(_BEGINNINGS) or (
        value.operator == "prefix" and value.text == OWN.rstrip(".")
    )


def without_own(query: Query) -> Query:
    """Leave out the events of our own."""
    return query.with_term(Term("event", (QueryValue(OWN, "prefix"),), negated=True))
