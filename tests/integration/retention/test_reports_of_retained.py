"""Reports on a store whose months were really archived and dropped."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from otel_audit_postgres.query import queries
from otel_audit_postgres.reports.evidence import Witnesses
from otel_audit_postgres.reports.make_report import make_report
from otel_audit_postgres.reports.options import Options
from otel_audit_postgres.reports.registry import REPORTS
from retention_trail import JANUARY, Trail


async def notes_of(trail: Trail, name: str, **options: object) -> list[str]:
    asked = Options(begin=datetime(2025, 1, 1, tzinfo=UTC), end=datetime.now(UTC), **options)
    witnesses = Witnesses((trail.key.public,), (trail.anchor,))
    async with queries.opened(trail.dsn) as connection:
        found = await make_report(connection, REPORTS[name], asked, witnesses=witnesses)
    found.close()
    return list(found.notes)


@pytest.mark.parametrize("name", ["integrity", "coverage"])
async def test_what_was_dropped_and_what_came_late_is_no_tampering(retained, connection, name):
    """As of each checkpoint, before and after records of a dropped month came late."""
    late = JANUARY, 3
    for step in ("dropped", "late"):
        if step == "late":
            await retained.write_in(*late, event="order.late", actor="eve")
            await retained.seal()
        sizes = [
            row[0] for row in await connection.fetch("SELECT size FROM audit.ledger_checkpoints")
        ]
        for size in [None, *sizes]:
            told = await notes_of(retained, name, checkpoint=size)
            assert [note for note in told if note.startswith("TAMPERED")] == [], (step, size)
    assert (await retained.verify()).problems == ()
