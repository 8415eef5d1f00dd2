"""The sink for a first look: a line of JSON for each record, and none holds up the others."""

from __future__ import annotations

import json

import pytest
from strategies import a_record

from otel_audit.delivery.console import ConsoleSink
from otel_audit.delivery.delivery import Delivery
from otel_audit.delivery.metrics import Counters


def too_deep() -> dict[str, object]:
    deep: dict[str, object] = {}
    for _ in range(5_000):
        deep = {"in": deep}
    return deep


@pytest.mark.allow_errors
def test_a_record_that_is_no_json_is_put_aside(capsys) -> None:
    """It is told by its id and counted as quarantined; what is behind it is printed."""
    counters = Counters()
    delivery = Delivery(ConsoleSink, counters)
    records = [a_record(), a_record(metadata=too_deep()), a_record()]
    for record in records:
        delivery.submit(record)
    assert delivery.close(30)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["record_id"] for line in lines] == [record.record_id for record in records]
    assert lines[1]["refused"].startswith("it is not JSON")
    counts = counters.snapshot()
    assert (counts["exported"], counts["quarantined"], counts["dropped"]) == (2, 1, 0)
