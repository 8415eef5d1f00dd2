"""Whether a stored row is what it was when it was recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from otel_audit_postgres.ledger.leaves import Leaf, content_hash
from otel_audit_postgres.rows import projections


def leaf_of(row: Mapping[str, Any]) -> Leaf:
    """The leaf that a stored row is now; its content is hashed afresh."""
    return Leaf(row["recorded_us"], row["id"].bytes, content_hash(row["payload"]))


def altered_columns(row: Mapping[str, Any]) -> list[str]:
    """Name the columns that do not follow from the row's payload.

    Args:
        row: A row as `otel_audit_postgres.ledger.store.rows` gives it.

    Returns:
        Names of columns, ``payload`` if it cannot be read or is not what was hashed.
    """
    if content_hash(row["payload"]) != row["content_hash"]:
        return ["payload"]
    try:
        expected = projections(row["payload"])
    except (msgspec.DecodeError, ValueError, RecursionError):
        return ["payload"]
    del expected["payload"]
    return [name for name, value in expected.items() if row[name] != value]
