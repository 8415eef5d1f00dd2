"""Counts of records without an actor, by reason, among a service's newest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from otel_audit_postgres.connection import InsufficientPrivilegeError
from otel_audit_postgres.query.conditions import READABLE
from otel_audit_postgres.query.queries import opened

_NEWEST: Final = 1_000
"""Records of the service that are counted."""
_LOOKED_AT: Final = 20_000
"""Records of all services among which those are searched: the question is quick in any store."""
_QUERY: Final = f"""
SELECT actor_id = 'anonymous' AS is_anonymous,
       CASE WHEN actor_id = 'anonymous' AND {READABLE} THEN payload -> 'actor' ->> 'reason' END
           AS reason,
       count(*) AS number
FROM (SELECT actor_id, payload FROM (
          SELECT actor_id, actor_type, event_name, service_name, payload, id
          FROM audit.audit_logs ORDER BY id DESC LIMIT {_LOOKED_AT}) AS newest
      WHERE service_name = $1 AND actor_type <> 'system' AND event_name NOT LIKE 'audit.%'
      ORDER BY id DESC LIMIT {_NEWEST}) AS its
GROUP BY 1, 2
"""  # noqa: S608 - constants


@dataclass(frozen=True, slots=True)
class Anonymous:
    """The counts.

    Attributes:
        records: Records of the service that were looked at.
        anonymous: Those without an actor.
        reasons: How many have which reason; "" where there is none.
    """

    records: int
    anonymous: int
    reasons: Mapping[str, int]


async def count_anonymous(dsn: str, service: str) -> Anonymous | None:
    """Count the newest records of a service that have no actor.

    Args:
        dsn: The audit store, as a role that may read it.
        service: The service's name.

    Returns:
        The counts; None where the role may not read the trail.

    Raises:
        StoreError: The store cannot be asked.
    """
    async with opened(dsn) as connection:
        try:
            rows = await connection.fetch(_QUERY, service)
        except InsufficientPrivilegeError:
            return None
    reasons = {row["reason"] or "": row["number"] for row in rows if row["is_anonymous"]}
    return Anonymous(sum(row["number"] for row in rows), sum(reasons.values()), reasons)
