"""What waits for the store, in memory and on disk."""

from __future__ import annotations

import functools
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shelf import Shelf
from strategies import a_record

from otel_audit._util import ratelimited_log
from otel_audit._util.ids import uuid7
from otel_audit.delivery.batch_size import BatchSize
from otel_audit.delivery.delivery import Delivery, DeliveryOptions
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.queue import RecordQueue
from otel_audit.delivery.sink import Refused
from otel_audit.delivery.spool import (
    FrameKind,
    Spool,
    SpoolError,
    SpoolFullError,
    adopt,
    open_spool,
)
from otel_audit.record import Actor


def a_backlog(home: Path | None, queue_size: int = 100, **options) -> RecordQueue:
    ratelimited_log.forget()
    spool = functools.partial(open_spool, home, service="shop", **options) if home else None
    return RecordQueue(spool, Counters(), queue_size)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "spools"


def at_most(count: int) -> BatchSize:
    return BatchSize(count, 10**9)


def next_of(backlog: RecordQueue, count: int) -> list:
    """Do one round of the worker: a batch of memory, or all that is only on disk; acknowledge."""
    taken = backlog.take(at_most(count))
    through = None if taken else backlog.begin_reading()
    backlog.done(taken)
    if through is not None:
        for items in backlog.read(through, at_most(count)):
            backlog.done(items)
            taken += items
    return [item.entry for item in taken]


def _full(*_: object) -> None:
    raise SpoolFullError("full")


def everything(backlog: RecordQueue) -> list:
    found: list = []
    while backlog.has_work:
        found += next_of(backlog, 10)
    return found


class TestSpilling:
    @given(
        queue_size=st.integers(1, 20),
        steps=st.lists(st.integers(-15, 15), max_size=20),
    )
    @settings(max_examples=25)
    def test_every_record_comes_once_and_in_order(self, tmp_path_factory, queue_size, steps):
        """Whatever fits into memory and whatever does not: each record comes once, in order."""
        home = tmp_path_factory.mktemp("spools")
        backlog = a_backlog(home, queue_size, fsync="never")
        sent, got = [], []
        for step in steps:
            for _ in range(step):
                sent.append(a_record())
                assert backlog.put(sent[-1])
            if step < 0:
                got += next_of(backlog, -step)
        while backlog.has_work:
            got += next_of(backlog, 10)
        assert got == sent
        assert backlog.depth == 0
        backlog.close()
        assert not backlog.spool.path.exists()

    def test_what_comes_while_the_disk_is_read_is_not_read_twice(self, home):
        """A record that arrives after reading has begun is in memory only, and comes once."""
        backlog = a_backlog(home, queue_size=1)
        for _ in range(3):
            backlog.put(a_record())
        backlog.done(backlog.take(at_most(10)))
        through = backlog.begin_reading()
        late = a_record()
        backlog.put(late)
        read = [item for items in backlog.read(through, at_most(10)) for item in items]
        assert len(read) == 2
        backlog.done(read)
        (taken,) = backlog.take(at_most(10))
        assert taken.entry == late

    def test_a_record_of_wrong_types_holds_nothing_up(self, home):
        """What cannot be read back as a record comes as refused, with its text, in its place."""
        backlog = a_backlog(home, queue_size=1)
        odd = a_record(actor=Actor(id="u", type="robot"))  # type: ignore[arg-type]
        records = [a_record(), odd, a_record()]
        for record in records:
            backlog.put(record)
        first, refused, last = everything(backlog)
        assert (first, last) == (records[0], records[2])
        assert isinstance(refused, Refused)
        assert refused.record_id == odd.record_id
        assert b'"robot"' in refused.received

    def test_what_is_damaged_on_disk_is_counted(self, home, caplog):
        """A spilled record whose bytes were altered is counted as lost; the others come."""
        backlog = a_backlog(home, queue_size=1)
        for number in range(3):
            backlog.put(a_record(event_name=f"order.number{number}"))
        (segment,) = backlog.spool.path.glob("*.frames")
        content = segment.read_bytes()
        segment.write_bytes(content.replace(b"order.number1", b"order.numberX"))
        got = [entry.event_name for entry in everything(backlog)]
        assert got == ["order.number0", "order.number2"]
        assert backlog._counters.dropped == 1
        assert backlog.depth == 0
        assert "damaged on disk" in caplog.text


class TestWithoutASpool:
    def test_what_is_left_at_the_end_is_counted(self):
        """Records in memory and under way are lost at the end, and their number is told."""
        backlog = a_backlog(None)
        for _ in range(5):
            backlog.put(a_record())
        backlog.take(at_most(2))
        assert backlog.depth == 5
        assert backlog.close() == 5

    def test_a_full_memory_takes_nothing_more(self):
        """Without a spool the bound of the queue is the bound."""
        backlog = a_backlog(None, queue_size=1)
        assert backlog.put(a_record())
        assert not backlog.put(a_record())


class TestASpoolThatFails:
    def test_a_record_it_does_not_take_is_delivered_from_memory(self, home, caplog):
        """A finished record that the spool has no room for is kept in memory, and told of."""
        backlog = a_backlog(home, max_bytes=16_384, segment_bytes=4096)
        big = a_record(metadata={"note": "x" * 20_000})
        assert backlog.put(big)
        assert backlog.depth == 1
        assert backlog._counters.spool_errors == 1
        assert "in memory only" in caplog.text
        assert backlog.close() == 1

    def test_what_was_stored_from_memory_is_not_told_again_as_cut_down(self, home, monkeypatch):
        """The spool took the beginning and not the end: once stored, the beginning is taken back."""
        backlog = a_backlog(home)
        record = a_record()
        backlog.note(FrameKind.OPENED, record.record_id, record)
        with monkeypatch.context() as full:
            full.setattr(Spool, "append", _full)
            assert backlog.put(record)
            backlog.done(backlog.take(at_most(1)))
            assert backlog.spool.open_actions == 1
        other = a_record()
        backlog.put(other)
        backlog.done(backlog.take(at_most(1)))
        assert backlog.spool.open_actions == 0
        backlog.close()
        assert adopt(home, "shop") == []

    def test_what_could_not_be_taken_back_is_at_the_end(self, home, monkeypatch):
        """There is room again only at the end."""
        backlog = a_backlog(home)
        record = a_record()
        backlog.note(FrameKind.OPENED, record.record_id, record)
        with monkeypatch.context() as full:
            full.setattr(Spool, "append", _full)
            backlog.put(record)
            backlog.done(backlog.take(at_most(1)))
        backlog.close()
        assert adopt(home, "shop") == []

    def test_one_under_way_that_is_only_in_memory_counts_as_lost_at_the_end(self, home):
        """A record that is on no disk and was being written when the end came is lost, counted."""
        backlog = a_backlog(home, max_bytes=16_384, segment_bytes=4096)
        backlog.put(a_record(metadata={"note": "x" * 20_000}))
        backlog.put(a_record())
        assert len(backlog.take(at_most(10))) == 2
        assert backlog.close() == 1

    def test_an_action_that_begins_is_told(self, home):
        """Where an action begins, and only there, the caller hears that it cannot be kept."""
        backlog = a_backlog(home, max_bytes=16_384, segment_bytes=4096)
        record = a_record(metadata={"note": "x" * 20_000})
        with pytest.raises(SpoolFullError):
            backlog.note(FrameKind.OPENED, record.record_id, record)
        backlog.note(FrameKind.ANSWERED, record.record_id, record)
        assert backlog._counters.spool_errors == 1

    def test_one_that_cannot_be_opened_again_is_tried_again(self, home, monkeypatch):
        """After a rest the directory is in the way: told, counted, and mended when it is gone."""
        backlog = a_backlog(home)
        backlog.put(a_record())
        backlog.done(backlog.take(at_most(1)))
        backlog.rest()
        shutil.rmtree(home)
        home.write_text("in the way")
        record = a_record()
        with pytest.raises(SpoolError):
            backlog.note(FrameKind.OPENED, record.record_id, record)
        assert backlog.put(a_record())
        home.unlink()
        monkeypatch.setattr("otel_audit.delivery.queue._OPENING_PAUSE", 0)
        backlog._next_opening = 0
        backlog.note(FrameKind.OPENED, record.record_id, record)
        assert backlog.open_spool is not None
        assert backlog.depth == 1


class TestRest:
    def test_an_empty_spool_is_removed_and_comes_back(self, home):
        """At rest no file is left; the next record opens the spool again."""
        backlog = a_backlog(home)
        backlog.rest()
        assert not backlog.spool.path.exists()
        backlog.put(a_record())
        assert backlog.open_spool.pending == 1

    def test_an_open_action_prevents_it(self, home):
        """While an action is under way the spool stays as it is."""
        backlog = a_backlog(home)
        record = a_record()
        backlog.note(FrameKind.OPENED, record.record_id, record)
        backlog.rest()
        assert backlog.open_spool.open_actions == 1

    def test_actions_that_begin_meanwhile_are_never_lost(self, home):
        """Threads that begin actions while another one rests: none is told that it is closed."""
        backlog = a_backlog(home, fsync="never")
        failures: list[Exception] = []

        def act() -> None:
            for _ in range(100):
                record = a_record()
                try:
                    backlog.note(FrameKind.OPENED, record.record_id, record)
                    backlog.discard(record.record_id)
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=act) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            backlog.rest()
        assert not failures
        assert backlog._counters.spool_errors == 0


class TestFork:
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_child_is_not_stopped_by_a_lock_of_its_parent(self, home):
        """A fork while other threads hold our locks leaves the child free to record."""
        backlog = a_backlog(home)
        counters = backlog._counters
        with backlog._using, counters._lock, ratelimited_log._lock:
            child = os.fork()
            if child == 0:
                backlog.after_fork()
                backlog.put(a_record())
                counters.add("emitted")
                os._exit(0 if backlog.depth == 1 and counters.emitted == 1 else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0


class TestRemovedSpool:
    def test_another_one_is_opened_and_nothing_is_refused(self, tmp_path, caplog):
        """Its directory goes under a living process: what it keeps in memory is delivered."""
        shelf, counters = Shelf(), Counters()
        delivery = Delivery(
            lambda: shelf,
            counters,
            DeliveryOptions(batch_interval=0.01, sync_interval=0.01),
            spool=functools.partial(open_spool, tmp_path, service="shop"),
        )
        shelf.held = True
        records = [a_record(record_id=uuid7()) for _ in range(5)]
        for record in records:
            delivery.submit(record)
        gone = delivery.queue.spool
        shutil.rmtree(gone.path)
        until = time.monotonic() + 60
        while delivery.queue.spool is gone:
            assert time.monotonic() < until
            time.sleep(0.01)
        begun = a_record(record_id=uuid7())
        delivery.queue.note(FrameKind.OPENED, begun.record_id, begun)
        records.append(a_record(record_id=uuid7()))
        delivery.submit(records[-1])
        shelf.held = False
        assert delivery.close(60)
        assert {one.record_id for one in shelf.stored} == {one.record_id for one in records}
        assert counters.dropped == 0
        assert "was removed while it was in use" in caplog.text
