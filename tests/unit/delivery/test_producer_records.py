"""What a process's numbered stream says of itself."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from strategies import a_record

from otel_audit import AuditConfig
from otel_audit.delivery.delivery import Delivery, DeliveryOptions
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.producer import Producer
from otel_audit.delivery.producer_records import ProducerRecordOptions, configuration_hash
from otel_audit.delivery.sink import Refused, Written
from otel_audit.record import AuditRecord

TALKATIVE = ProducerRecordOptions("c0ffee")


class Shelf:
    """A sink in memory."""

    def __init__(self) -> None:
        self.stored: list[AuditRecord] = []

    async def check(self) -> None: ...

    async def write(self, records: Sequence[AuditRecord]) -> Written:
        self.stored += records
        return Written(stored=len(records))

    async def quarantine(self, refused: Sequence[Refused]) -> None: ...

    async def known(self, record_ids) -> set[str]:
        return set()

    async def close(self) -> None: ...


class Process:
    """A recorder with its delivery, and what it has delivered."""

    def __init__(self, stream: ProducerRecordOptions | None) -> None:
        self.shelf = Shelf()
        counters = Counters()
        self.delivery = Delivery(lambda: self.shelf, counters, DeliveryOptions(batch_interval=0.01))
        self.recorder = Producer(self.delivery, counters, refuse_when_full=True, own_records=stream)

    @property
    def told(self) -> list[tuple[int | None, str]]:
        assert self.delivery.flush(60)
        return [(record.sequence_number, record.event_name) for record in self.shelf.stored]


@pytest.fixture
def process() -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def make(stream: ProducerRecordOptions | None = TALKATIVE) -> Process:
        made.append(Process(stream))
        return made[-1]

    yield make
    for one in made:
        one.delivery.close(0)


class TestStream:
    def test_the_first_record_says_that_it_began(self, process):
        """Number 1 is the stream's own beginning, whatever comes first."""
        shop = process()
        shop.recorder.closed(a_record(), None)
        shop.recorder.begin()
        assert shop.told == [(1, "audit.stream.started"), (2, "order.created")]
        started = shop.shelf.stored[0]
        assert started.metadata["pid"] == os.getpid()
        assert started.metadata["configuration_sha256"] == "c0ffee"
        assert {"service", "service_version", "host"} <= set(started.metadata)
        assert started.producer_id == started.target.id == shop.recorder.producer_id

    def test_it_begins_once_among_threads(self, process):
        """Threads that record at once: one beginning, with number 1, and no number twice."""
        shop = process()
        gate = threading.Barrier(8)

        def act() -> None:
            gate.wait()
            for _ in range(20):
                shop.recorder.closed(a_record(), None)

        threads = [threading.Thread(target=act) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        told = dict(shop.told)
        assert sorted(told) == list(range(1, 162))
        assert [number for number, event in told.items() if event.startswith("audit.")] == [1]

    def test_the_last_record_says_that_it_ended(self, process):
        """An orderly end is the last number; what comes after it is followed by another end."""
        shop = process()
        shop.recorder.begin()
        shop.recorder.end()
        shop.recorder.end()
        shop.recorder.closed(a_record(), None)
        shop.recorder.end()
        assert shop.told == [
            (1, "audit.stream.started"),
            (2, "audit.stream.ended"),
            (3, "order.created"),
            (4, "audit.stream.ended"),
        ]

    def test_what_never_began_does_not_end(self, process):
        """A process that recorded nothing, and was never started, says nothing."""
        shop = process()
        shop.recorder.end()
        assert shop.told == []

    def test_an_idle_process_says_that_it_lives(self, process):
        """While nothing happens a heartbeat is recorded; none after the end."""
        shop = process(ProducerRecordOptions("c0ffee", heartbeat=0.1))
        shop.recorder.begin()
        shop.delivery.start()
        waiting = threading.Event()
        for _ in range(1_000):
            if len(shop.told) > 2:
                break
            waiting.wait(0.05)
        assert {event for _, event in shop.told[1:]} == {"audit.stream.alive"}
        shop.recorder.end()
        count = len(shop.told)
        waiting.wait(0.4)
        assert len(shop.told) == count

    def test_it_may_be_silent(self, process):
        """With the setting off the stream has only the actions' records, numbered from 1."""
        shop = process(None)
        shop.recorder.begin()
        shop.recorder.closed(a_record(), None)
        shop.recorder.end()
        assert shop.told == [(1, "order.created")]

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_child_is_a_producer_of_its_own(self, process):
        """After a fork the child counts from 1 under another id."""
        shop = process()
        shop.recorder.closed(a_record(), None)
        assert len(shop.told) == 2
        parent = shop.recorder.producer_id
        child = os.fork()
        if child == 0:
            shop.shelf.stored.clear()
            shop.recorder.closed(a_record(), None)
            well = [number for number, _ in shop.told] == [1, 2]
            os._exit(0 if well and shop.recorder.producer_id != parent else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0


class TestConfigurationHash:
    def test_a_change_shows_and_a_secret_does_not(self):
        """The digest changes with a setting, but not with what a secret is."""
        one = AuditConfig(dsn="postgresql://a:hunter2@db/audit")
        assert configuration_hash(one) == configuration_hash(
            AuditConfig(dsn="postgresql://a:other@db/audit")
        )
        assert configuration_hash(one) != configuration_hash(
            AuditConfig(dsn="postgresql://a:hunter2@db/audit", body_limit=1)
        )
