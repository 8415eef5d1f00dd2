"""What a row's leaf is now, and whether its columns follow from its payload.

`verify/row_pass.py` compares the leaf with the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otel_audit_postgres.ledger.leaves import Leaf, content_hash
from otel_audit_postgres.rows import ADDED_IN, projections, versions_with


def leaf_of(row: Mapping[str, Any]) -> Leaf:
    """The leaf that a stored row is now; its content is hashed afresh."""
    return Leaf(row["recorded_us"], row["id"].bytes, content_hash(row["payload"]))


def altered_columns(row: Mapping[str, Any]) -> list[str]:
    """Name the columns that do not follow from the row's payload.

    A column that was added later (`ADDED_IN`) may be NULL in a row of an earlier version.

    Args:
        row: A row as `otel_audit_postgres.ledger.ledger_queries.rows` gives it.

    Returns:
        Names of columns, ``payload`` if it cannot be read or is not what was hashed.
    """
    if content_hash(row["payload"]) != row["content_hash"]:
        return ["payload"]
    expected = _columns_of(row["payload"])
    if expected is None:
        return ["payload"]
    del expected["payload"]
    version = expected["schema_version"]
    return [
        name
        for name, value in expected.items()
        if row[name] != value and not (row[name] is None and _is_older(version, name))
    ]


def is_no_record(row: Mapping[str, Any]) -> bool:
    """Whether a payload is not a record, so that the columns cannot be checked."""
    return _columns_of(row["payload"]) is None


def is_hashed_otherwise(row: Mapping[str, Any], leaf_hash: bytes) -> bool:
    """Whether a leaf is of the row's content hash, and the payload has another one."""
    leaf = Leaf(row["recorded_us"], row["id"].bytes, row["content_hash"])
    return leaf.hash() == leaf_hash and row["content_hash"] != content_hash(row["payload"])


def _is_older(version: str, column: str) -> bool:
    return column in ADDED_IN and version not in versions_with(column)


def _columns_of(payload: str) -> dict[str, Any] | None:
    """The columns as derived from the payload; None if it is not a valid record."""
    try:
        return projections(payload)
    except Exception:  # noqa: BLE001 - anybody may have written it, and the verdict is the caller's
        return None
