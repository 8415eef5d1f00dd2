"""Parts of payloads in reports."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from otel_audit_postgres.reports.payload_parts import reference_of

from otel_audit.record import Change


@pytest.mark.parametrize(
    ("entity", "name"),
    [("Order", None), ("HTTPRule", None), ("OrderLine", None), ("Order", "tenant_a.order")],
)
def test_a_change_is_named_as_the_store_names_it(entity: str, name: str | None) -> None:
    """What a report names is what `otel-audit history` finds."""
    change = Change(operation="insert", entity=entity, name=name, table="t", key={"id": 7})
    stored: dict[str, Any] = msgspec.to_builtins(change)

    assert reference_of(stored) == change.reference
