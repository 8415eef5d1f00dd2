"""Records of every shape, for property tests."""

from __future__ import annotations

import hashlib

import msgspec
from hypothesis import settings
from hypothesis import strategies as st

from otel_audit._util.ids import uuid7
from otel_audit.record import (
    NO_CONTENT,
    SCHEMA_VERSION,
    Actor,
    AuditRecord,
    Body,
    Change,
    ErrorInfo,
    Request,
    Response,
    Source,
    Target,
    Tenant,
)

YEAR_2000 = 946_684_800_000_000_000
YEAR_2026 = 1_767_225_600_000_000_000
YEAR_2100 = 4_102_444_800_000_000_000


def examples(usual: int, *, exploring: int) -> int:
    """How many examples a dear property is tried with: more by `make explore`, where they are new."""
    return exploring if settings.get_current_profile_name() == "explore" else usual


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30)
names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20)
maybe_names = st.none() | names
integers = st.integers(-(2**63), 2**63 - 1)
values = st.recursive(
    st.none() | st.booleans() | integers | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(names, values, max_size=3)
headers = st.dictionaries(st.from_regex(r"[a-z][a-z-]{0,10}", fullmatch=True), texts, max_size=3)


@st.composite
def bodies(draw: st.DrawFn) -> Body:
    content = draw(st.none() | values)
    raw = NO_CONTENT if content is None else msgspec.Raw(msgspec.json.encode(content))
    return Body(
        content=raw,
        size=draw(st.integers(0, 2**31)),
        content_type=draw(maybe_names),
        sha256=None if content is None else hashlib.sha256(bytes(raw)).hexdigest(),
        absent=draw(st.none() | st.sampled_from(["truncated", "binary"])),
    )


changes = st.builds(
    Change,
    operation=st.sampled_from(["insert", "update", "delete"]),
    kind=st.sampled_from(["entity", "relation", "bulk", "untracked"]),
    entity=names,
    table=names,
    key=mappings,
    values=st.dictionaries(names, st.lists(values, min_size=2, max_size=2), max_size=3),
    unknown_before=st.lists(names, max_size=2).map(tuple),
    rows=st.none() | st.integers(0, 10**6),
    statement=maybe_names,
    parameters=values,
)
actors = st.builds(
    Actor,
    id=names,
    type=st.sampled_from(["user", "service", "system"]),
    role=maybe_names,
    email=maybe_names,
    verified=st.booleans(),
    on_behalf_of=maybe_names,
    reason=maybe_names,
    roles=st.lists(names, max_size=3).map(tuple),
    source=maybe_names,
)
requests = st.builds(
    Request,
    id=names,
    method=st.sampled_from(["GET", "POST"]),
    route=maybe_names,
    path=maybe_names,
    query=maybe_names,
    headers=headers,
    http_version=st.sampled_from(["1.1", "2"]),
    host=maybe_names,
    body=st.none() | bodies(),
)
responses = st.builds(
    Response, status_code=st.integers(100, 599), headers=headers, body=st.none() | bodies()
)


@st.composite
def records(draw: st.DrawFn) -> AuditRecord:
    """Any record; one with ids of a server span or without."""
    occurred_at = draw(st.integers(YEAR_2000, YEAR_2100))
    traced = draw(st.booleans())
    return AuditRecord(
        # an id of a time to come is refused by the store
        record_id=uuid7(min(occurred_at, YEAR_2026)),
        action_id=uuid7(occurred_at),
        parent_action_id=draw(st.none() | st.just(uuid7(occurred_at))),
        phase=draw(st.sampled_from(["intent", "started", "completed", "continued", "changes"])),
        schema_version=SCHEMA_VERSION,
        event_name=draw(names),
        action=draw(st.sampled_from(["CREATE", "READ", "UPDATE", "DELETE", "EXECUTE", "LOGIN"])),
        outcome=draw(st.sampled_from(["success", "failure", "unknown"])),
        occurred_at=occurred_at,
        duration=draw(st.integers(0, 10**12)),
        actor=draw(actors),
        tenant=draw(st.none() | st.builds(Tenant, id=names, slug=maybe_names)),
        target=draw(st.none() | st.builds(Target, type=names, id=maybe_names)),
        source=draw(
            st.none()
            | st.builds(
                Source, address=names, type=st.just("ip"), user_agent=maybe_names,
                session_id=maybe_names,
            )
        ),
        request=draw(st.none() | requests),
        response=draw(st.none() | responses),
        changes=draw(st.lists(changes, max_size=3).map(tuple)),
        changes_total=draw(st.none() | st.integers(0, 10**6)),
        changes_rolled_back=draw(st.integers(0, 10)),
        transaction=draw(
            st.sampled_from(["committed", "rolled_back", "mixed", "unknown", "none"])
        ),
        error=draw(st.none() | st.builds(ErrorInfo, type=names, message=maybe_names)),
        trace_id="0af7651916cd43dd8448eb211c80319c" if traced else None,
        span_id="b7ad6b7169203331" if traced else None,
        trace_sampled=draw(st.booleans()) if traced else None,
        producer_id=uuid7(occurred_at),
        sequence_number=draw(st.integers(1, 2**40)),
        level=draw(st.sampled_from(["metadata", "changes", "request", "request_response"])),
        metadata=draw(mappings),
        resource={"service.name": draw(names)},
    )  # fmt: skip


def a_record(**fields: object) -> AuditRecord:
    """One plain record, with what a test wants of it."""
    occurred_at = 1_790_000_000_123_456_789
    plain: dict[str, object] = {
        "record_id": uuid7(occurred_at),
        "phase": "completed",
        "schema_version": SCHEMA_VERSION,
        "event_name": "order.created",
        "action": "CREATE",
        "outcome": "success",
        "occurred_at": occurred_at,
        "duration": 12_345_678,
        "actor": Actor(id="user-1", type="user", verified=True),
        "transaction": "committed",
        **fields,
    }
    plain.setdefault("action_id", plain["record_id"])
    return AuditRecord(**plain)  # type: ignore[arg-type]
