"""What records something in the middle of delivery's own work, on the same thread.

A signal handler, a logging handler and the garbage collector do: nobody waits for ever, nothing is
lost, and each record is counted once.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator

import pytest
from cut_off import Interruption, is_traced
from shelf import Shelf
from strategies import a_record

from otel_audit._util import ratelimited_log
from otel_audit._util.own_lock import holds_any, own_lock
from otel_audit.delivery.delivery import Delivery, DeliveryOptions
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.producer import Producer
from otel_audit.delivery.producer_records import ProducerRecordOptions
from otel_audit.delivery.spool import FrameKind, open_spool

QUICK = DeliveryOptions(batch_interval=0.01, sync_interval=0.01)

FILES = (
    "delivery/delivery.py", "delivery/metrics.py", "delivery/queue.py", "delivery/spool/log.py",
    "delivery/spool/segments.py", "_util/own_lock.py", "_util/ratelimited_log.py",
)  # fmt: skip
"""Whose code is interrupted: what holds a lock, and what runs under one."""


@pytest.fixture(autouse=True)
def forget_lines():
    ratelimited_log.forget()


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def delivery(tmp_path, shelf, counters) -> Iterator[Delivery]:
    spool = functools.partial(open_spool, tmp_path, service="shop")
    made = Delivery(lambda: shelf, counters, QUICK, spool=spool)
    yield made
    made.close(5)


def in_time(act: Callable[[], object]) -> bool:
    """Whether something ends in a thread of its own, which is left behind where it does not."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(20)
    return not thread.is_alive()


def at_each_point(act: Callable[[], object], interrupt: Callable[[], object]) -> int:
    """Call something again and again, interrupted at one point more each time; how many it has."""
    if is_traced():
        pytest.skip("something else traces this process")
    point = 0
    while True:
        point += 1
        with Interruption(point, FILES, interrupt) as interruption:
            interruption.armed = True
            assert in_time(act), f"stopped for ever at {interruption.place}"
        if not interruption.place:
            return point - 1


def submit_one(delivery: Delivery) -> None:
    delivery.submit(a_record())


def write_all_frames(delivery: Delivery) -> None:
    record = a_record()
    delivery.queue.note(FrameKind.OPENED, record.record_id, record)
    delivery.queue.note(FrameKind.ANSWERED, record.record_id, record)
    delivery.discard(record.record_id)
    submit_one(delivery)


class TestInterrupted:
    @pytest.mark.parametrize("interrupt", [submit_one, write_all_frames])
    def test_a_record_in_the_middle_of_another_is_delivered(
        self, delivery, shelf, counters, interrupt
    ):
        """Wherever it comes, both are stored, each once, and no action stays open."""
        submit_one(delivery)  # its threads are not interrupted
        points = at_each_point(
            functools.partial(write_all_frames, delivery), functools.partial(interrupt, delivery)
        )
        assert points > 50
        assert delivery.flush(20)
        submitted = 2 * points + 2
        assert counters.snapshot()["emitted"] == submitted
        assert len({record.record_id for record in shelf.stored}) == submitted
        assert delivery.queue.spool is not None
        assert delivery.queue.spool.open_actions == 0

    def test_a_record_in_the_middle_of_a_sync_is_delivered(self, delivery, shelf):
        """The garbage collector runs in our own threads, too."""
        submit_one(delivery)
        assert delivery.queue.spool is not None
        points = at_each_point(delivery.queue.spool.sync, functools.partial(submit_one, delivery))
        assert points > 5
        assert delivery.flush(20)
        assert len(shelf.stored) == points + 1

    def test_each_count_is_made_once(self, counters):
        """A count in the middle of another one is not lost with it."""
        points = at_each_point(
            functools.partial(counters.add, "dropped"),
            functools.partial(counters.add, "dropped", 7),
        )
        assert counters.snapshot()["dropped"] == 8 * points + 1

    @pytest.mark.parametrize("held", ["delivery", "counters", "using", "spool", "upkeep"])
    def test_it_does_not_wait_for_what_another_thread_holds(self, delivery, shelf, held):
        """That thread may wait for what is held here."""
        submit_one(delivery)
        # the writer's own thread, as it begins or ends a write, waits for one of them with the other
        assert delivery.flush(20)
        spool = delivery.queue.spool
        assert spool is not None
        mine = {
            "delivery": delivery._lock, "counters": delivery._counters._lock,
            "using": delivery.queue._using, "spool": spool._lock, "upkeep": spool._upkeep,
        }[held]  # fmt: skip
        theirs = spool._lock if held == "delivery" else delivery._lock
        taken, done = threading.Event(), threading.Event()

        def hold() -> None:
            with theirs:
                taken.set()
                done.wait(60)

        def interrupted() -> None:
            with mine:
                submit_one(delivery)
                assert not delivery.flush(5)
                delivery.hurry()

        holder = threading.Thread(target=hold)
        holder.start()
        taken.wait()
        try:
            assert in_time(interrupted)
        finally:
            done.set()
            holder.join()
        assert delivery.flush(20)
        assert len(shelf.stored) == 2

    def test_an_end_in_the_middle_of_a_record_is_made_after_it(self, delivery, shelf):
        """A signal handler that ends auditing does not wait for the record that it has stopped."""
        ends = []

        def interrupted() -> None:
            with delivery._lock:
                submit_one(delivery)
                ends.append(delivery.close(10))

        assert in_time(interrupted)
        assert ends == [False]
        for thread in threading.enumerate():
            if thread.name == "otel-audit-close":
                assert not thread.daemon
                thread.join(20)
        assert delivery._closed
        assert len(shelf.stored) == 1

    def test_a_record_in_the_middle_of_the_first_one_is_not_the_first_twice(self, delivery):
        """The stream begins once, although its own first record is interrupted."""
        producer = Producer(
            delivery,
            delivery._counters,
            refuse_when_full=False,
            own_records=ProducerRecordOptions(""),
        )
        seen = []

        def interrupt(_event: str) -> None:
            seen.append(_event)
            producer.begin()

        producer._send_own_record = interrupt  # type: ignore[method-assign]
        assert in_time(producer.begin)
        assert len(seen) == 1


class Recording(logging.Handler):
    """A handler of the application's that records each line, as one does that writes to a table."""

    def __init__(self, delivery: Delivery) -> None:
        super().__init__()
        self.delivery = delivery
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.delivery.submit(a_record())


class TestLogging:
    @pytest.fixture
    def full(self, shelf, counters) -> Iterator[Delivery]:
        shelf.held = True
        made = Delivery(lambda: shelf, counters, DeliveryOptions(queue_size=1))
        yield made
        made.close(0)

    def test_a_logging_handler_may_record_what_we_log(self, full, counters):
        """The line about a lost record does not stop the thread that has lost it."""
        handler = Recording(full)
        logging.getLogger("otel_audit").addHandler(handler)
        try:
            assert in_time(lambda: [full.submit(a_record()) for _ in range(3)])
        finally:
            logging.getLogger("otel_audit").removeHandler(handler)
        assert "An audit record is lost: the queue is full" in handler.lines
        assert counters.snapshot()["dropped"] == 2 + len(handler.lines)

    def test_no_lock_is_held_while_a_line_is_logged(self, full):
        """A handler's own lock may be held by a thread that records something under it."""
        held: list[bool] = []
        handler = logging.Handler()
        handler.emit = lambda _: held.append(holds_any())  # type: ignore[method-assign]
        logging.getLogger("otel_audit").addHandler(handler)
        try:
            full.submit(a_record())
            full.submit(a_record())
            full.close(0)
        finally:
            logging.getLogger("otel_audit").removeHandler(handler)
        assert held
        assert not any(held)

    @pytest.mark.usefixtures("only_the_test_logs")
    def test_a_line_under_a_lock_is_logged_after_it(self, caplog):
        """It is put off, not held back."""
        logger = logging.getLogger("otel_audit.test")
        with own_lock() as _:
            ratelimited_log.log_limited(logger, "one", "the first %d", 1)
            assert not caplog.records
        ratelimited_log.log_limited(logger, "two", "the second")
        assert [line.getMessage() for line in caplog.records] == ["the first 1", "the second"]
