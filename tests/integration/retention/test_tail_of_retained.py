"""Who follows the log goes on behind leaves whose month was dropped, which have no ids any more."""

from __future__ import annotations

import pytest
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.latest_records import read_sealed, sealed_ids


@pytest.mark.parametrize("most", [1, 4, 13, 50, 1_000])
async def test_each_leaf_is_passed_once(retained, connection, most):
    """In steps of any length, from any beginning: no step stays, and no record comes twice."""
    size = await ledger_queries.size(connection)
    kept = await sealed_ids(connection, 0, size)
    assert 0 < len(kept) < size
    for begin in (0, 1, 35):
        seen, place, steps = [], begin, 0
        while place < size:
            part = await read_sealed(connection, place, most)
            assert part.end == min(place + most, size)
            assert part.size == size
            seen += part.ids
            place, steps = part.end, steps + 1
        assert seen == await sealed_ids(connection, begin, size)
        assert len(set(seen)) == len(seen)
        assert steps == -(-(size - begin) // most)
    # a log that is shorter than it was, as after a restoration, is followed from its end
    beyond = await read_sealed(connection, size + 5, most)
    assert (beyond.ids, beyond.end, beyond.size) == ([], size, size)
