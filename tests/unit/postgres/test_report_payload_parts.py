"""Parts of payloads in reports."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from otel_audit_postgres.reports.payload_parts import bare_noun, reference_of

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


@pytest.mark.parametrize("name", ["role", "Role", "tenant_a.role", "eu.public.role"])
def test_a_noun_is_known_wherever_its_rows_are(name: str) -> None:
    """A report on rights knows a role of every schema, in every spelling."""
    assert bare_noun(name) == "role"
