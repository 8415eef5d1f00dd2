"""Hypothesis strategies: records of every shape that a store or a reader may meet."""

from __future__ import annotations

from typing import Any, Final

from otel_audit._util.ids import derived_uuid7
from otel_audit.errors import MissingExtraError
from otel_audit.record import Actor, AuditRecord, Change, ErrorInfo, Target, Tenant
from otel_audit.testing.make_record import make_record

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise MissingExtraError("otel_audit.testing.strategies", "testing") from error

_YEAR_2000: Final = 946_684_800_000_000_000
"""Nanoseconds since 1970."""
_YEAR_2100: Final = 4_102_444_800_000_000_000
"""Nanoseconds since 1970."""

_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30)
_names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20)
_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=8,
)

actors = st.builds(
    Actor,
    id=_names,
    type=st.sampled_from(["user", "service", "system"]),
    role=st.none() | _names,
    verified=st.booleans(),
    roles=st.lists(_names, max_size=3).map(tuple),
)
"""Any actor."""

changes = st.builds(
    Change,
    operation=st.sampled_from(["insert", "update", "delete"]),
    entity=_names,
    name=st.none() | _names,
    table=_names,
    key=st.dictionaries(_names, _texts, min_size=1, max_size=2),
    values=st.dictionaries(_names, st.lists(_values, min_size=2, max_size=2), max_size=3),
)
"""Any change of a mapped object."""


@st.composite
def records(draw: st.DrawFn, /, **fields: Any) -> AuditRecord:
    """Any record.

    Args:
        draw: Hypothesis gives it.
        fields: Strategies, or values, of fields that are not to be just any.
    """
    occurred_at = draw(st.integers(_YEAR_2000, _YEAR_2100))
    plain: dict[str, Any] = {
        # drawn as the rest is, so that a failing example can be run again
        "record_id": derived_uuid7(occurred_at, str(draw(st.integers(0, 2**62 - 1)))),
        "action": st.sampled_from(["CREATE", "READ", "UPDATE", "DELETE", "EXECUTE", "LOGIN"]),
        "outcome": st.sampled_from(["success", "failure", "unknown"]),
        "occurred_at": occurred_at,
        "duration": st.integers(0, 10**12),
        "actor": actors,
        "tenant": st.none() | st.builds(Tenant, id=_names),
        "target": st.none() | st.builds(Target, type=_names, id=st.none() | _names),
        "changes": st.lists(changes, max_size=3).map(tuple),
        "transaction": st.sampled_from(["committed", "rolled_back", "mixed", "unknown", "none"]),
        "error": st.none() | st.builds(ErrorInfo, type=_names, message=st.none() | _texts),
        "level": st.sampled_from(["metadata", "changes", "request", "request_response"]),
        "metadata": st.dictionaries(_names, _values, max_size=3),
        **fields,
    }
    event = plain.pop("event_name", st.from_regex(r"[a-z]{1,10}\.[a-z]{1,10}", fullmatch=True))
    drawn = {name: draw(v) if isinstance(v, st.SearchStrategy) else v for name, v in plain.items()}
    name = draw(event) if isinstance(event, st.SearchStrategy) else event
    return make_record(name, **drawn)
