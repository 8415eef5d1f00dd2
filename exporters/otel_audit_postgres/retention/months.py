"""Removal of a month in three steps, each checked by the store; see docs/retention.md.

1. `retire` records what the month's partition holds: the manifest, a record like any other.
2. Once the sealer has sealed that record, `drop` drops the partition. The database refuses if the
   manifest is not sealed or the partition holds anything else.
3. `collapse` puts subtree hashes in place of the leaves. The log's root stays what it was, so
   checkpoints, proofs of what is left, and `otel-audit verify` go on to hold.
"""

from __future__ import annotations

from typing import Any, Final

from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries

LONGEST_RUN: Final = 1 << 20
"""Leaves that are collapsed in one statement, at most: 48 bytes each are read at once."""

_COLLAPSIBLE: Final = "SELECT first, leaves FROM audit.collapsible_blocks()"


async def retire(dsn: str, partition: str) -> str:
    """Record the content of a partition.

    Args:
        dsn: The audit store, as its retention role.
        partition: Such as ``audit_logs_2026_11``.

    Returns:
        The id of the record, which `drop` wants.

    Raises:
        StoreError: There is no such partition, or the role lacks a right.
    """
    async with ledger_queries.opened(dsn, "retire a partition") as connection:
        return str(await connection.fetchval("SELECT audit.retire_partition($1)", partition))


async def drop(dsn: str, partition: str, manifest_id: str) -> int:
    """Drop a partition that was retired.

    Args:
        dsn: The audit store, as its retention role.
        partition: Such as ``audit_logs_2026_11``.
        manifest_id: What `retire` returned.

    Returns:
        How many rows went.

    Raises:
        StoreError: The manifest is not sealed, says something else, or would go too; rows of the
            partition wait to be sealed; or the role lacks a right. Nothing was dropped.
    """
    async with ledger_queries.opened(dsn, "drop a partition") as connection:
        rows: int = await connection.fetchval(
            "SELECT audit.drop_partition($1, $2::uuid)", partition, manifest_id
        )
    return rows


async def collapse(dsn: str) -> int:
    """Collapse the leaves of all blocks whose rows are gone with their partitions.

    Args:
        dsn: The audit store, as its retention role.

    Returns:
        How many leaves were collapsed. A block that also holds leaves of another month stays.

    Raises:
        StoreError: The role lacks a right, or the ledger is not what it was.
    """
    async with ledger_queries.opened(dsn, "collapse leaves") as connection:
        collapsed = 0
        for first, end in await _runs(connection):
            await connection.fetchval("SELECT audit.collapse_leaves($1, $2)", first, end)
            collapsed += end - first
        return collapsed


async def _runs(connection: Connection[Any]) -> list[tuple[int, int]]:
    """Ranges of adjacent blocks that can be collapsed: first leaf, and the leaf after the last."""
    runs: list[tuple[int, int]] = []
    for first, leaves in await connection.fetch(_COLLAPSIBLE):
        end = first + leaves
        if runs and runs[-1][1] == first and end - runs[-1][0] <= LONGEST_RUN:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((first, end))
    return runs
