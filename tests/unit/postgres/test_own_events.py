"""A query that names the trail's own events has them; one that names others does not."""

from __future__ import annotations

import pytest
from otel_audit_postgres.query.grammar import parse
from otel_audit_postgres.query.own_events import asks_for_own


@pytest.mark.parametrize(
    "text",
    [
        "event:audit.viewed", "event:audit.*", "event:audit*", "event:order.paid,audit.viewed",
        "target:audit_history:order:7", "entity:audit_record:1", "entity:audit.record:1",
        "target:audit_record",
    ],
)  # fmt: skip
def test_own_events_are_asked_for(text):
    """By their names, and by what they are about."""
    assert asks_for_own(parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "event:auditor.created", "event:auditor.*", "event:auditing*", "target:auditor:7",
        "entity:auditor:7", "-event:audit.*", "event:order.*", "actor:audit.x", "",
    ],
)  # fmt: skip
def test_others_are_not(text):
    """An application may have names that begin alike."""
    assert not asks_for_own(parse(text))
