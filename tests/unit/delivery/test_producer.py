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
from otel_audit._util.ids import uuid7
from otel_audit.action.compose import Ending, Opening, ended
from otel_audit.action.ports import Close
from otel_audit.delivery.console import ConsoleSink
from otel_audit.delivery.delivery import Delivery, DeliveryOptions
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.producer import Producer
from otel_audit.delivery.queue_entries import read_back
from otel_audit.delivery.spool import FrameKind, adopt, open_spool
from otel_audit.delivery.spool.format import scan
from otel_audit.record import AuditRecord, Change, to_json
from otel_audit.scope import Provenance

KEEPING = DeliveryOptions(batch_interval=3600)
"""What is submitted is there to be looked at: it is not delivered yet."""


@pytest.fixture
def a_recorder() -> Iterator[Callable[..., tuple[Producer, Counters]]]:
    """Make recorders whose threads end with the test."""
    made: list[Delivery] = []

    def make(home: Path, *, refuse: bool, **options) -> tuple[Producer, Counters]:
        ratelimited_log.forget()
        counters = Counters()
        spool = functools.partial(open_spool, home, service="shop", **options)
        delivery = Delivery(ConsoleSink, counters, KEEPING, spool=spool)
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

    def test_a_record_with_a_provenance_keeps_it(self, a_recorder, tmp_path):
        """Trace and process that an action's record has from the start are said again no more."""
        recorder, _ = a_recorder(tmp_path / "spools", refuse=True)
        provenance = recorder.provenance(None)
        assert provenance.producer_id == recorder.producer_id
        record = a_record(
            producer_id=provenance.producer_id, trace_id="1" * 32, resource={"a": "b"}
        )
        recorder.opened(record, None)
        recorder.closed(record, None)
        (item,) = recorder._delivery.queue._memory
        assert item.entry.sequence_number == 1
        assert msgspec.structs.replace(item.entry, sequence_number=None) == record

    def test_the_provenance_of_another_process_is_said_anew(self, a_recorder, tmp_path):
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


class TestAnswered:
    """An answered action is closed by what has changed since."""

    ENDING = Ending("success", 42, "committed")

    def answered(self, recorder: Producer, **facts) -> tuple[AuditRecord, Close | None]:
        known = a_record(producer_id=recorder.producer_id, outcome="unknown", **facts)
        return known, recorder.answered(known, None)

    def frames_of(self, recorder: Producer) -> list[tuple[FrameKind, int]]:
        found = []
        for path in sorted(recorder._delivery.queue.open_spool.path.glob("*.frames")):
            with path.open("rb") as file:
                found += [
                    (frame.kind, len(frame.payload))
                    for frame in scan(file, end=path.stat().st_size)
                ]
        return found

    def test_says_only_what_has_changed(self, a_recorder, tmp_path):
        """The last frame is small, and the record that is handed over is whole and numbered."""
        recorder, _ = a_recorder(tmp_path / "spools", refuse=False)
        known, close = self.answered(recorder, metadata={"note": "x" * 2000})
        finished = close(self.ENDING, None)
        assert finished == ended(known, self.ENDING, 1)
        (first, size), (last, changed) = self.frames_of(recorder)
        assert (first, last) == (FrameKind.ANSWERED, FrameKind.ENDED)
        assert changed < size / 10
        [item] = recorder._delivery.queue.open_spool.read()
        assert read_back(item.record_id, item.payload, item.changed) == finished

    def test_says_all_where_the_answer_is_elsewhere(self, a_recorder, tmp_path):
        """In another segment of the spool, or in another spool, it cannot be relied on."""
        recorder, counters = a_recorder(tmp_path / "spools", refuse=False, segment_bytes=4096)
        known, close = self.answered(recorder)
        recorder.closed(a_record(metadata={"note": "x" * 3500}), None)
        finished = close(self.ENDING, None)
        assert finished == ended(known, self.ENDING, 2)
        assert [kind for kind, _ in self.frames_of(recorder)] == [
            FrameKind.ANSWERED, FrameKind.CLOSED, FrameKind.CLOSED,
        ]  # fmt: skip
        assert counters.spool_errors == 0

    def test_says_all_where_it_would_be_too_large(self, a_recorder, tmp_path):
        """A record that has grown above its bound is split as any other."""
        recorder, _ = a_recorder(tmp_path / "spools", refuse=False)
        recorder._record_limit = 4096
        change = Change(operation="insert", entity="Order", table="orders", key={"id": 1})
        _, close = self.answered(recorder)
        close(msgspec.structs.replace(self.ENDING, changes=(change,) * 60), None)
        kinds = [kind for kind, _ in self.frames_of(recorder)]
        assert kinds[:2] == [FrameKind.ANSWERED, FrameKind.CLOSED]
        assert len(kinds) > 2

    def test_an_answer_that_was_cut_has_no_short_end(self, a_recorder, tmp_path):
        """What was left out of the frame for its size could not be found again."""
        recorder, _ = a_recorder(tmp_path / "spools", refuse=False)
        recorder._record_limit = 4096
        assert self.answered(recorder, metadata={"note": "x" * 5000})[1] is None

    def test_without_a_spool_there_is_nothing_to_rely_on(self):
        """In memory alone the record of the end is whole."""
        delivery = Delivery(ConsoleSink, Counters())
        recorder = Producer(delivery, Counters(), refuse_when_full=False)
        assert self.answered(recorder)[1] is None

    def test_another_producer_says_all(self, a_recorder, tmp_path):
        """After a fork the number is the child's, and the frame is whole."""
        recorder, _ = a_recorder(tmp_path / "spools", refuse=False)
        _, close = self.answered(recorder)
        recorder._begin()
        close(self.ENDING, None)
        kinds = [kind for kind, _ in self.frames_of(recorder)]
        assert kinds == [FrameKind.ANSWERED, FrameKind.CLOSED]
        [item] = recorder._delivery.queue.open_spool.read()
        assert msgspec.json.decode(item.payload)["producer_id"] == recorder.producer_id

    def test_a_beginning_is_no_record_yet(self, a_recorder, tmp_path):
        """What is written down of a beginning is small, and becomes a record when it is read."""
        recorder, _ = a_recorder(tmp_path / "spools", refuse=False)
        provenance = Provenance(recorder.producer_id, resource={"service.name": "shop"})
        record_id = uuid7()
        begun = Opening(
            record_id,
            record_id,
            7,
            "order.created",
            "CREATE",
            "metadata",
            "r1",
            "POST",
            "/o",
            provenance,
        )
        assert recorder.opened(begun, None)
        spool = recorder._delivery.queue.open_spool
        spool.close()
        [adopted] = adopt(tmp_path / "spools", "shop")
        [found] = adopted.records()
        adopted.release()
        assert found.payload == to_json(begun)
        assert read_back(found.record_id, found.payload) == begun.record()
