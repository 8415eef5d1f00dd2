"""Whether what is missing was dropped in order: each dropped month has a sealed record of it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any, Final

from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.row_check import leaf_of
from otel_audit_postgres.ledger.verify.findings import Findings, ProblemKind

RETIRED: Final = "audit.partition.retired"


async def recorded_prunings(
    connection: Connection[Any], findings: Findings
) -> list[ledger_queries.Pruning]:
    """The prunings whose manifest is sealed and says the same; the others are noted.

    Args:
        connection: Within the verification's transaction.
        findings: Where prunings without a manifest are noted.
    """
    sound: list[ledger_queries.Pruning] = []
    # the latest month first: an earlier one's manifest may itself have been dropped with a later
    for pruning in reversed(await ledger_queries.prunings(connection)):
        if any(other.held(pruning.manifest_id) for other in sound) or await _is_recorded(
            connection, pruning
        ):
            sound.append(pruning)
        else:
            findings.add(
                ProblemKind.DELETED,
                f"partition {pruning.partition} was dropped without a sealed record of it",
                str(pruning.manifest_id),
            )
    return sound


def unaccounted(
    missing: Sequence[tuple[int, uuid.UUID]],
    pruned: int,
    prunings: Sequence[ledger_queries.Pruning],
    findings: Findings,
    *,
    complete: bool,
) -> list[tuple[int, uuid.UUID]]:
    """Remove properly dropped rows from the missing ones.

    Args:
        missing: Leaves without a row.
        pruned: Leaves that are collapsed.
        prunings: The sound prunings.
        findings: Gets a finding if more rows went than were recorded.
        complete: Whether every row was looked up.

    Returns:
        The rows that nothing explains.
    """
    left = [
        (leaf, record_id)
        for leaf, record_id in missing
        if not any(pruning.held(record_id) for pruning in prunings)
    ]
    gone, recorded = len(missing) - len(left) + pruned, sum(pruning.rows for pruning in prunings)
    if gone > recorded or (complete and gone < recorded):
        findings.add(
            ProblemKind.DELETED if gone > recorded else ProblemKind.CHANGED,
            f"{recorded} rows were dropped with their partitions, as sealed; {gone} are gone",
        )
    return left


async def _is_recorded(connection: Connection[Any], pruning: ledger_queries.Pruning) -> bool:
    async for row in ledger_queries.rows(connection, [pruning.manifest_id]):
        if row["event_name"] != RETIRED or not await _is_sealed(connection, row):
            continue
        facts = _metadata(row["payload"])
        return bool(
            facts.get("partition") == pruning.partition
            and facts.get("rows") == pruning.rows
            and facts.get("lowest") == str(pruning.lowest)
            and facts.get("above") == str(pruning.above)
        )
    return False


def _metadata(payload: str) -> dict[str, Any]:
    """The metadata of a record; empty for one that cannot be read."""
    try:
        facts = json.loads(payload)["metadata"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return {}
    return facts if isinstance(facts, dict) else {}


async def _is_sealed(connection: Connection[Any], row: Any) -> bool:
    leaf = leaf_of(row).hash()
    for block in await ledger_queries.blocks_about(connection, row["id"]):
        if leaf in block.leaf_hashes():
            return True
    return False
