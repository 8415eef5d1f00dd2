from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from shelf import Shelf, no_more_threads
from strategies import a_record

from otel_audit._util import ratelimited_log
from otel_audit._util.ids import uuid7
from otel_audit.delivery import group_fsync
from otel_audit.delivery.delivery import Delivery, DeliveryOptions
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.sink import Refused, Written
from otel_audit.delivery.spool import FrameKind, Spool, adopt, open_spool
from otel_audit.errors import StoreError, StoreUnavailableError

QUICK = DeliveryOptions(batch_interval=0.01, first_pause=0.01, longest_pause=0.05)


@pytest.fixture
def shelf() -> Shelf:
    ratelimited_log.forget()
    return Shelf()


@pytest.fixture
def deliver_to(shelf: Shelf) -> Iterator[Callable[..., Delivery]]:
    made: list[Delivery] = []

    def make(options: DeliveryOptions = QUICK) -> Delivery:
        made.append(Delivery(lambda: shelf, Counters(), options))
        return made[-1]

    yield make
    for delivery in made:
        delivery.close(0)


def counted(delivery: Delivery) -> dict[str, int]:
    return {name: count for name, count in delivery._counters.snapshot().items() if count}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def submit_from_eight_threads(delivery: Delivery, each: int) -> None:
    threads = [
        threading.Thread(target=lambda: [delivery.submit(a_record()) for _ in range(each)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class TestDelivering:
    def test_records_reach_the_sink_in_order(self, deliver_to, shelf):
        """What is submitted is stored, in the order in which it was submitted."""
        delivery = deliver_to()
        records = [a_record(event_name=f"order.{number}") for number in range(1_500)]
        for record in records:
            delivery.submit(record)
        assert delivery.flush(60)
        assert shelf.stored == records
        assert max(shelf.asked) <= 512
        assert counted(delivery) == {"emitted": 1_500, "exported": 1_500}

    @pytest.mark.allow_errors
    def test_a_thread_that_cannot_start_is_tried_again(self, deliver_to, shelf, monkeypatch):
        """At a limit of processes records wait, and the next one brings them on their way."""
        delivery = deliver_to()
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", no_more_threads)
            delivery.start()
            delivery.submit(a_record())
        assert counted(delivery) == {"emitted": 1}
        delivery.submit(a_record())
        assert delivery.flush(60)
        assert len(shelf.stored) == 2

    @pytest.mark.parametrize("end", ["flush", "close"])
    @pytest.mark.allow_errors
    def test_a_thread_is_tried_again_where_no_other_record_comes(
        self, deliver_to, monkeypatch, end
    ):
        """What waits is delivered at the end at the latest."""
        delivery = deliver_to()
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", no_more_threads)
            delivery.submit(a_record())
        assert getattr(delivery, end)(60)
        assert counted(delivery) == {"emitted": 1, "exported": 1}

    @pytest.mark.allow_errors
    def test_syncing_goes_on_after_whatever_fault(self, shelf, tmp_path, monkeypatch):
        """A look at the spool's files that fails once is counted, and is not the last."""
        options = dataclasses.replace(QUICK, sync_interval=0.01)
        counters = Counters()
        made = functools.partial(open_spool, tmp_path, service="shop")
        delivery = Delivery(lambda: shelf, counters, options, spool=made)
        spool = delivery.queue.spool
        faults = [PermissionError(13, "Permission denied"), ValueError()]

        def sync() -> int:
            if faults:
                raise faults.pop()
            return Spool.sync(spool)

        monkeypatch.setattr(spool, "sync", sync)
        spool.append(FrameKind.OPENED, uuid7(), b"o")
        delivery.start()
        wait_for(lambda: spool.synced == spool.appended)
        assert counters.spool_errors == 2
        spool.append(FrameKind.OPENED, uuid7(), b"o")
        delivery.close(10)

    @pytest.mark.allow_errors
    def test_a_sink_that_cancels_itself_is_tried_again(self, shelf):
        """What a library cancels of its own is a failure like any other, not the end."""

        class Cancelling(Shelf):
            tries = 0

            async def write(self, records):
                self.tries += 1
                if self.tries == 1:
                    raise asyncio.CancelledError
                return await super().write(records)

        sink = Cancelling()
        delivery = Delivery(lambda: sink, Counters(), QUICK)
        delivery.submit(a_record())
        assert delivery.flush(60)
        assert counted(delivery) == {"emitted": 1, "exported": 1, "retries": 1}
        assert delivery.close(10)

    def test_the_thread_that_submits_does_not_write(self, deliver_to, shelf):
        """Writing happens in the worker's own thread."""
        delivery = deliver_to()
        delivery.submit(a_record())
        assert delivery.flush(60)
        assert shelf.threads == {"otel-audit-delivery"}

    def test_a_store_that_asks_for_a_pause_gets_it(self, deliver_to, shelf):
        """Neither a hurry nor new records shorten it; then delivery goes on."""
        shelf.failures = [StoreUnavailableError("later", retry_after=0.5)]
        delivery = deliver_to()
        began = time.monotonic()
        delivery.submit(a_record())
        wait_for(lambda: not shelf.failures)
        delivery.submit(a_record())
        assert delivery.flush(60)
        assert time.monotonic() - began >= 0.5
        assert len(shelf.stored) == 2

    def test_an_end_does_not_wait_for_the_pause(self, deliver_to, shelf):
        """A store that asks for five minutes does not hold up a shutdown."""
        shelf.failures = [StoreUnavailableError("later", retry_after=300)]
        delivery = deliver_to()
        delivery.submit(a_record())
        wait_for(lambda: not shelf.failures)
        began = time.monotonic()
        assert not delivery.close(0.1)
        assert time.monotonic() - began < 60
        assert delivery._writer.started
        assert not delivery._writer.alive

    def test_many_threads_may_submit(self, deliver_to, shelf):
        """No record is lost between threads."""
        delivery = deliver_to()
        submit_from_eight_threads(delivery, 200)
        assert delivery.flush(60)
        assert len(shelf.stored) == 1_600

    def test_a_lone_record_does_not_wait_for_a_full_batch(self, deliver_to, shelf):
        """A record that has no company is written after the batch interval, unasked."""
        deliver_to().submit(a_record())
        wait_for(lambda: len(shelf.stored) == 1)


class TestOddRecords:
    @pytest.mark.allow_errors
    def test_what_json_cannot_say_does_not_cost_the_record(self, deliver_to, shelf, caplog):
        """A record that cannot be written to the spool waits in memory, and is told of."""
        delivery = deliver_to()
        deep: list[object] = []
        for _ in range(20_000):
            deep = [deep]
        odd = a_record(metadata={"deep": deep})
        delivery.submit(odd)
        assert delivery.flush(60)
        assert [record.record_id for record in shelf.stored] == [odd.record_id]
        assert counted(delivery)["spool_errors"] == 1
        assert "in memory only" in caplog.text


class TestFailures:
    @pytest.mark.parametrize(
        "failure", [StoreUnavailableError("away"), StoreError("no schema"), ValueError("a bug")]
    )
    @pytest.mark.allow_errors
    def test_a_failed_write_is_tried_again(self, deliver_to, shelf, failure, caplog):
        """Whatever the failure, the batch is kept and written when that is possible again."""
        shelf.failures = [failure] * 3
        delivery = deliver_to()
        delivery.submit(a_record())
        assert delivery.flush(60)
        assert len(shelf.stored) == 1
        assert counted(delivery)["retries"] == 3
        assert "takes records again" in caplog.text

    def test_a_storm_of_failures_is_one_line(self, deliver_to, shelf, caplog):
        """The same failure is logged once a minute, not once a try."""
        shelf.failures = [StoreUnavailableError("the store is away")] * 5
        delivery = deliver_to()
        delivery.submit(a_record())
        assert delivery.flush(60)
        assert caplog.text.count("the store is away") == 1

    @pytest.mark.allow_errors
    def test_the_message_of_a_foreign_error_is_not_logged(self, deliver_to, shelf, caplog):
        """A driver's error may quote values, so only its type and place are logged."""
        shelf.failures = [ValueError("hunter2")]
        delivery = deliver_to()
        delivery.submit(a_record())
        assert delivery.flush(60)
        assert "ValueError" in caplog.text
        assert "hunter2" not in caplog.text

    def test_flush_says_when_it_did_not_succeed(self, deliver_to, shelf):
        """A flush that runs out of time says so, and the record is still there."""
        shelf.held = True
        delivery = deliver_to()
        delivery.submit(a_record())
        assert not delivery.flush(0.05)
        assert delivery.depth == 1

    def test_failing_for_tells_how_long(self, deliver_to, shelf):
        """While writes fail, the time since the first failure is known; after that it is 0."""
        shelf.failures = [StoreUnavailableError("away")] * 100_000
        delivery = deliver_to()
        delivery.submit(a_record())
        wait_for(lambda: delivery.failing_for > 0)
        shelf.failures = []
        assert delivery.flush(60)
        assert delivery.failing_for == 0

    def test_the_end_of_failing_is_known_before_nothing_waits(
        self, deliver_to, shelf, monkeypatch, caplog
    ):
        """Who waits until what was postponed is stored finds a store that takes records."""
        delivery, waiting, write = deliver_to(), [], shelf.write
        refused = a_record()

        async def refuse(records):
            return Written(0, postponed=(refused.record_id,), why_postponed="not now")

        def note_depth(line: logging.LogRecord) -> bool:
            if "takes records again" in line.getMessage():
                waiting.append(delivery.depth)
            return True

        monkeypatch.setattr(caplog.handler, "filters", [note_depth])
        monkeypatch.setattr(shelf, "write", refuse)
        delivery.submit(refused)
        wait_for(lambda: delivery.failing_for > 0)
        monkeypatch.setattr(shelf, "write", write)
        assert delivery.flush(60)
        assert delivery.failing_for == 0
        assert waiting == [1]


class TestLosses:
    def test_a_full_queue_is_counted_and_logged(self, deliver_to, shelf, caplog):
        """A record that finds the queue full is lost, loudly."""
        shelf.held = True
        delivery = deliver_to(DeliveryOptions(queue_size=3, batch_interval=0.01))
        for _ in range(5):
            delivery.submit(a_record())
        assert counted(delivery) == {"emitted": 5, "dropped": 2}
        assert "the queue is full" in caplog.text
        assert caplog.records[-1].levelno == logging.CRITICAL

    def test_what_is_left_at_the_end_is_counted_and_logged(self, deliver_to, shelf, caplog):
        """Records that the store did not take in time are lost at the end, loudly."""
        shelf.held = True
        delivery = deliver_to()
        delivery.submit(a_record())
        delivery.submit(a_record())
        assert not delivery.close(0.1)
        assert counted(delivery)["dropped"] == 2
        assert "2 audit records are lost" in caplog.text
        assert shelf.closed == 1

    def test_what_a_signal_handler_cuts_off_is_counted_and_logged(
        self, deliver_to, shelf, caplog, monkeypatch
    ):
        """A handler that raises while the end waits for the store loses nothing in silence."""
        shelf.held = True
        delivery = deliver_to()
        delivery.submit(a_record())
        delivery.submit(a_record())

        def interrupted(*_):
            raise SystemExit(3)

        with monkeypatch.context() as patched, pytest.raises(SystemExit):
            patched.setattr(delivery._changed, "wait_for", interrupted)
            delivery.close(10)
        assert counted(delivery)["dropped"] == 2
        assert "2 audit records are lost: a signal handler" in caplog.text
        assert delivery._hurry == 0
        assert not delivery._writer.alive

    @pytest.mark.parametrize("place", ["rouse", "end", "join"])
    def test_what_a_second_signal_handler_cuts_off_is_counted_and_logged(
        self, deliver_to, shelf, caplog, monkeypatch, place
    ):
        """Wherever it raises while the thread is ended, each record is counted, and only once."""
        shelf.held = True
        delivery = deliver_to()
        delivery.submit(a_record())
        delivery.submit(a_record())
        meant = getattr(delivery._writer, place)
        stops = [SystemExit(3), KeyboardInterrupt()]

        def interrupted(*_):
            raise stops.pop(0)

        def interrupted_or_done(*given, **named):
            if len(stops) == 1:
                interrupted()
            return meant(*given, **named)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(delivery._changed, "wait_for", interrupted)
            patched.setattr(delivery._writer, place, interrupted_or_done)
            delivery.close(10)
        delivery.submit(a_record())
        delivery.close(0)
        assert counted(delivery)["dropped"] == 3
        assert "2 audit records are lost: a signal handler" in caplog.text
        assert "delivery has ended" in caplog.text
        wait_for(lambda: not delivery._writer.alive)

    def test_what_a_signal_handler_cuts_off_in_the_queue_is_counted_by_the_next_close(
        self, deliver_to, shelf, monkeypatch
    ):
        """Nothing counts as closed before it is."""
        shelf.held = True
        delivery = deliver_to()
        delivery.submit(a_record())

        def interrupted():
            raise SystemExit(3)

        with monkeypatch.context() as patched, pytest.raises(SystemExit):
            patched.setattr(delivery, "log_kept_records", interrupted)
            delivery.close(0)
        assert not delivery.close(0)
        assert counted(delivery)["dropped"] == 1

    def test_after_the_end_nothing_is_taken(self, deliver_to, caplog):
        """A record that comes after the end is lost, loudly."""
        delivery = deliver_to()
        delivery.close(0)
        delivery.submit(a_record())
        assert counted(delivery)["dropped"] == 1
        assert "delivery has ended" in caplog.text


class TestCompany:
    def test_a_full_write_waits_for_no_company(self, deliver_to, shelf):
        """Where writes have become smaller, fewer records fill one, and a backlog does not dawdle."""
        delivery = deliver_to(
            DeliveryOptions(batch_size=8, batch_interval=3600, first_pause=0.01, longest_pause=0.05)
        )
        shelf.failures = [StoreUnavailableError("away")]
        for _ in range(8):
            delivery.submit(a_record())
        wait_for(lambda: delivery.depth == 0)
        for _ in range(4):
            delivery.submit(a_record())
        wait_for(lambda: delivery.depth == 0)
        assert len(shelf.stored) == 12

    def test_a_lone_record_waits_for_company(self, deliver_to, shelf):
        """It waits for company in the sleep that it ends, and is written when that is over."""
        delivery = deliver_to(DeliveryOptions(batch_interval=2.0))
        delivery.submit(a_record())
        wait_for(lambda: delivery._asleep)
        began = time.monotonic()
        for _ in range(2):
            delivery.submit(a_record())
        wait_for(lambda: len(shelf.stored) == 3)
        assert time.monotonic() - began >= 2.0
        assert shelf.asked == [1, 2]

    def test_a_flush_ends_the_wait_for_company(self, deliver_to, shelf):
        """However long the first record would have waited for others."""
        delivery = deliver_to(DeliveryOptions(batch_interval=3600))
        delivery.submit(a_record())
        assert delivery.flush(60)
        wait_for(lambda: delivery._asleep)
        delivery.submit(a_record())
        assert delivery.flush(60)
        assert len(shelf.stored) == 2


class TestEnding:
    def test_close_delivers_what_waits(self, deliver_to, shelf):
        """An orderly end loses nothing and closes the sink."""
        delivery = deliver_to(DeliveryOptions(batch_interval=30))
        for _ in range(100):
            delivery.submit(a_record())
        assert delivery.close(60)
        assert len(shelf.stored) == 100
        assert shelf.closed == 1

    def test_close_may_be_called_twice_and_before_anything(self, deliver_to):
        """Ending what has ended, or has never begun, does nothing."""
        delivery = deliver_to()
        assert delivery.close(1)
        assert delivery.close(1)


class TestWithASpool:
    @pytest.fixture
    def spooled(self, shelf, tmp_path) -> Iterator[Callable[..., Delivery]]:
        made: list[Delivery] = []

        def make(options: DeliveryOptions = QUICK, service: str = "shop") -> Delivery:
            made.append(
                Delivery(
                    lambda: shelf,
                    Counters(),
                    options,
                    spool=functools.partial(open_spool, tmp_path, service=service),
                    adopt=functools.partial(adopt, tmp_path, service),
                )
            )
            return made[-1]

        yield make
        for delivery in made:
            delivery.close(0)

    def test_what_does_not_fit_into_memory_is_delivered_from_disk(self, spooled, shelf):
        """A burst far beyond the queue, during an outage, reaches the store once and in order."""
        shelf.failures = [StoreUnavailableError("away")] * 3
        delivery = spooled(dataclasses.replace(QUICK, queue_size=20, batch_size=16))
        records = [a_record() for _ in range(500)]
        for record in records:
            delivery.submit(record)
        assert delivery.flush(60)
        assert shelf.stored == records
        assert counted(delivery) == {"emitted": 500, "exported": 500, "retries": 3}

    def test_what_is_noted_after_a_quiet_time_is_brought_to_disk(self, spooled, monkeypatch):
        """The thread that syncs sleeps until then, and is roused by it."""
        monkeypatch.setattr(group_fsync, "_LOOK_AFTER", 3600.0)
        delivery = spooled(dataclasses.replace(QUICK, sync_interval=0.001))
        delivery.start()
        record, spool = a_record(), delivery.queue.open_spool
        assert spool is not None
        wait_for(lambda: delivery.queue.at_next_append is not None)
        position = delivery.queue.note(FrameKind.ANSWERED, record.record_id, record)
        assert position is not None
        wait_for(lambda: spool.synced >= position)

    def test_many_threads_and_a_small_queue(self, spooled, shelf):
        """Spilling and reading back while eight threads submit: each record once."""
        delivery = spooled(dataclasses.replace(QUICK, queue_size=7, batch_size=5))
        submit_from_eight_threads(delivery, 100)
        assert delivery.flush(60)
        assert len(shelf.stored) == 800
        assert len({record.record_id for record in shelf.stored}) == 800

    def test_what_is_kept_is_said_anew_after_it_was_delivered(self, spooled, shelf, caplog):
        """The same number, at the end of another lifespan."""
        delivery = spooled()
        for _ in range(2):
            shelf.held = True
            delivery.submit(a_record())
            delivery.flush_and_rest(0.1)
            shelf.held = False
            delivery.flush_and_rest(10)
        assert caplog.text.count("1 audit records are kept in") == 2

    def test_what_the_store_did_not_take_is_adopted_later(self, spooled, shelf, caplog):
        """An end during an outage leaves the records on disk; the next delivery stores them."""
        shelf.held = True
        first = spooled()
        for _ in range(3):
            first.submit(a_record())
        first.flush_and_rest(0.1)  # the end of a lifespan, which the process's follows
        assert not first.close(0.1)
        assert counted(first) == {"emitted": 3}
        assert caplog.text.count("3 audit records are kept in") == 1
        shelf.held = False
        second = spooled()
        second.start()
        wait_for(lambda: len(shelf.stored) == 3)

    def test_an_end_is_not_held_up_by_an_adoption(self, spooled, shelf):
        """Ending while what a dead process left cannot be stored takes no longer than it must."""
        shelf.held = True
        first = spooled()
        first.submit(a_record())
        wait_for(lambda: len(shelf.asked) == 1)
        first.close(0.05)
        second = spooled()
        second.start()
        wait_for(lambda: len(shelf.asked) == 2)
        second.close(0.1)
        assert not second._writer.alive
        assert shelf.closed == 2

    def test_what_was_refused_goes_to_quarantine(self, spooled, shelf):
        """What could not become a record is kept aside by the sink, and counted."""
        delivery = spooled()
        delivery.submit(refused := Refused(uuid7(), b"{}", "it lacks an actor"))
        delivery.submit(a_record())
        assert delivery.flush(60)
        assert shelf.quarantined == [refused]
        assert counted(delivery) == {"emitted": 2, "exported": 1, "quarantined": 1}

    def test_a_slow_store_does_not_hold_up_those_who_submit(self, spooled, shelf):
        """While a write takes long, submitting takes microseconds."""
        shelf.held = True
        delivery = spooled()
        delivery.submit(a_record())
        wait_for(lambda: len(shelf.asked) == 1)
        began = time.monotonic()
        for _ in range(200):
            delivery.submit(a_record())
        # the write that is under way never ends
        assert time.monotonic() - began < 20
        assert delivery.depth == 201


class TestFork:
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_child_delivers_its_own_and_not_its_parents(self, deliver_to, shelf):
        """After a fork the child's worker starts anew; the parent's queue stays the parent's."""
        shelf.held = True
        delivery = deliver_to()
        delivery.submit(a_record(event_name="of.parent"))
        child = os.fork()
        if child == 0:
            shelf.held = False
            delivery.submit(a_record(event_name="of.child"))
            well = delivery.flush(60) and [r.event_name for r in shelf.stored] == ["of.child"]
            os._exit(0 if well else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert delivery.depth == 1
