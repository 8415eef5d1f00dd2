"""How the command `otel-audit serve` ends."""

from __future__ import annotations

import signal

import pytest
from sinks import request, serving, span


@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["alone", "workers"])
async def test_an_interrupt_is_an_end_in_order(tmp_path, stored, actor, options):
    """Ctrl+C: what was taken is stored, nothing is complained about, status 0."""
    with serving(tmp_path, stored.dsn, *options) as sink:
        assert sink.traces(request(span(1, audit__actor__id=actor))).status_code == 200
        sink.process.send_signal(signal.SIGINT)
        assert sink.process.wait(60) == 0
        for complaint in ("Aborted", "Traceback", "KeyboardInterrupt"):
            assert complaint not in sink.output
    assert len(await stored.rows(actor)) == 1
