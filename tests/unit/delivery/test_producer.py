"""Refusing what could not be recorded."""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from strategies import a_record

from otel_audit._util import ratelimited_log
from otel_audit.delivery.console import ConsoleSink
from otel_audit.delivery.delivery import Delivery
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.producer import Producer
from otel_audit.delivery.spool import open_spool


@pytest.fixture
def a_recorder() -> Iterator[Callable[..., tuple[Producer, Counters]]]:
    """Make recorders whose threads end with the test."""
    made: list[Delivery] = []

    def make(home: Path, *, refuse: bool, **options) -> tuple[Producer, Counters]:
        ratelimited_log.forget()
        counters = Counters()
        spool = functools.partial(open_spool, home, service="shop", **options)
        delivery = Delivery(ConsoleSink, counters, spool=spool)
        made.append(delivery)
        return Producer(delivery, counters, refuse_when_full=refuse), counters

    yield make
    for delivery in made:
        delivery.close(0)


class TestOpened:
    @pytest.mark.parametrize("refuse", [True, False])
    def test_a_full_spool_refuses_or_goes_on_as_configured(
        self, a_recorder, tmp_path, caplog, refuse
    ):
        """At the bound: refused and counted, or allowed; in both cases loudly."""
        recorder, counters = a_recorder(
            tmp_path / "spools", refuse=refuse, max_bytes=16_384, segment_bytes=4096
        )
        big = a_record(metadata={"note": "x" * 20_000})
        assert recorder.opened(big, None) is not refuse
        assert counters.refused == refuse
        assert "takes no new action" in caplog.text
        assert caplog.records[-1].levelno == logging.CRITICAL

    @pytest.mark.parametrize("refuse", [True, False])
    def test_a_spool_that_cannot_be_written_does_the_same(self, a_recorder, tmp_path, refuse):
        """A disk that takes nothing is like a full one: no action begins that would be lost."""
        home = tmp_path / "spools"
        recorder, counters = a_recorder(home, refuse=refuse)
        recorder._delivery.queue.rest()
        shutil.rmtree(home)
        home.write_text("in the way")
        assert recorder.opened(a_record(), None) is not refuse
        assert counters.refused == refuse

    @pytest.mark.allow_errors
    def test_a_record_that_cannot_be_measured_is_kept(self, a_recorder, tmp_path, caplog):
        """A record too deep to be written as JSON has no size: it is handed over as it is."""
        deep: dict[str, object] = {}
        for _ in range(3_000):
            deep = {"in": deep}
        recorder, counters = a_recorder(tmp_path / "spools", refuse=True)
        assert recorder.opened(a_record(metadata=deep), None)
        recorder.closed(a_record(metadata=deep), None)
        assert recorder._delivery.depth == 1
        assert (counters.dropped, counters.capture_errors) == (0, 2)
        assert "below its bound" in caplog.text

    def test_a_record_that_says_its_place_keeps_it(self, a_recorder, tmp_path):
        """Trace and process that an action's record has from the start are said again no more."""
        recorder, _ = a_recorder(tmp_path / "spools", refuse=True)
        place = recorder.place(None)
        assert place.producer_id == recorder.producer_id
        record = a_record(producer_id=place.producer_id, trace_id="1" * 32, resource={"a": "b"})
        recorder.opened(record, None)
        recorder.closed(record, None)
        (item,) = recorder._delivery.queue._memory
        assert item.entry.sequence_number == 1
        assert msgspec.structs.replace(item.entry, sequence_number=None) == record

    def test_the_place_of_another_process_is_said_anew(self, a_recorder, tmp_path):
        """A forked child that ends its parent's action is the producer of that record."""
        recorder, _ = a_recorder(tmp_path / "spools", refuse=True)
        recorder.closed(a_record(producer_id="parent", trace_id="1" * 32), None)
        (item,) = recorder._delivery.queue._memory
        assert item.entry.producer_id == recorder.producer_id
        assert item.entry.trace_id is None

    def test_after_the_end_nothing_is_refused(self, a_recorder, tmp_path):
        """When delivery has ended the application goes on; what it does then is kept on disk."""
        recorder, counters = a_recorder(tmp_path / "spools", refuse=True)
        recorder._delivery.close(0)
        assert recorder.opened(a_record(), None)
        recorder.closed(a_record(event_name="late.done"), None)
        assert (counters.emitted, counters.dropped) == (1, 0)
        files = [one for one in (tmp_path / "spools").rglob("*") if one.is_file()]
        assert any(b"late.done" in one.read_bytes() for one in files)
