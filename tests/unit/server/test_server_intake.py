"""Group commit: together under load, at once without, and nobody is answered too early."""

from __future__ import annotations

import asyncio

import pytest
from memory_store import MemoryStore
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.errors import StoreError, StoreUnavailableError
from otel_audit.server import intake as intake_module
from otel_audit.server.errors import RequestError
from otel_audit.server.intake import Intake


def records(count: int):
    return [a_record(record_id=uuid7()) for _ in range(count)]


async def come_to_wait() -> None:
    """What was begun goes on until it waits for something."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.fixture
def store():
    return MemoryStore()


class Clock:
    """In place of the module `time`: goes on when it is told to."""

    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(intake_module, "time", clock)
    return clock


@pytest.fixture
async def intake(store):
    made = Intake(lambda: store, writers=1, batch=50)
    made.start()
    yield made
    await made.stop(1)


async def test_what_comes_while_a_write_is_under_way_goes_together(store, intake):
    store.gate = asyncio.Event()
    first = asyncio.create_task(intake.store(records(1), []))
    await come_to_wait()
    others = [asyncio.create_task(intake.store(records(2), [])) for _ in range(10)]
    await come_to_wait()
    assert not first.done()
    assert intake.depth == 20

    store.gate.set()
    await asyncio.gather(first, *others)

    assert store.batches == [1, 20]


async def test_a_batch_has_an_end(store, intake):
    store.gate = asyncio.Event()
    waiting = [asyncio.create_task(intake.store(records(30), [])) for _ in range(5)]
    await come_to_wait()
    store.gate.set()
    await asyncio.gather(*waiting)

    assert sum(store.batches) == 150
    assert max(store.batches) == 60


async def test_two_under_one_id_are_not_written_together(store, intake):
    """So that each learns what became of its own."""
    store.gate = asyncio.Event()
    record = a_record(record_id=uuid7())
    waiting = [asyncio.create_task(intake.store([record], [])) for _ in range(3)]
    await come_to_wait()
    store.gate.set()
    await asyncio.gather(*waiting)

    assert store.batches == [1, 1, 1]


async def test_what_is_cancelled_while_it_waits_is_not_written(store, intake):
    """A gRPC exporter's deadline ends, and it sends the same again: nothing is queued twice."""
    store.gate = asyncio.Event()
    written = asyncio.create_task(intake.store(records(1), []))
    await come_to_wait()
    again = records(3)
    for _ in range(4):
        late = asyncio.create_task(intake.store(again, [], sender="one"))
        await come_to_wait()
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
    kept = asyncio.create_task(intake.store(again, [], sender="one"))
    await come_to_wait()
    assert intake.depth == 3

    store.gate.set()
    await asyncio.gather(written, kept)

    assert store.batches == [1, 3]


async def test_what_is_cancelled_while_it_is_written_is_written(store, intake):
    store.gate = asyncio.Event()
    late = asyncio.create_task(intake.store(records(1), []))
    await come_to_wait()
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)
    store.gate.set()
    await intake.store(records(2), [])

    assert store.batches == [1, 2]


async def test_a_writer_goes_on_where_all_that_waited_was_cancelled_at_once(store, intake):
    """The writer may look before the cancelled one has been told."""
    store.gate = asyncio.Event()
    written = asyncio.create_task(intake.store(records(1), []))
    await come_to_wait()
    late = asyncio.create_task(intake.store(records(5), []))
    await come_to_wait()
    group = intake._waiting.take
    taken = []

    def take(*bounds):
        if not taken:
            late.cancel()
        taken.append(group(*bounds))
        return taken[-1]

    intake._waiting.take = take
    store.gate.set()
    await asyncio.gather(written, late, return_exceptions=True)
    assert taken == [[]]

    await asyncio.wait_for(intake.store(records(2), []), 5)
    assert store.batches == [1, 2]


@pytest.mark.allow_errors
@pytest.mark.parametrize(
    "error", [StoreUnavailableError("gone"), StoreError("no schema"), RuntimeError("a mistake")]
)
async def test_whatever_fails_nobody_is_told_that_it_is_stored(store, intake, error):
    store.error = error

    with pytest.raises(RequestError) as refused:
        await intake.store(records(1), [])

    assert (refused.value.status, refused.value.retry_after) == (503, 5)


async def test_a_store_that_failed_is_left_alone_for_a_moment(store, intake, clock):
    store.error = StoreUnavailableError("gone")
    with pytest.raises(RequestError):
        await intake.store(records(1), [])
    store.error = None

    with pytest.raises(RequestError):
        await intake.store(records(1), [])
    clock.now += 1.05
    await intake.store(records(1), [])

    assert store.batches == [1]


async def test_a_sender_that_goes_away_costs_others_nothing(store, intake):
    store.gate = asyncio.Event()
    gone = asyncio.create_task(intake.store(records(1), []))
    stays = asyncio.create_task(intake.store(records(1), []))
    await come_to_wait()
    gone.cancel()
    store.gate.set()
    await stays

    assert sum(store.batches) == 2


async def test_at_the_end_what_waits_is_stored_and_what_comes_is_sent_away(store):
    intake = Intake(lambda: store, writers=1)
    intake.start()
    store.gate = asyncio.Event()
    waiting = [asyncio.create_task(intake.store(records(1), [])) for _ in range(3)]
    await come_to_wait()
    ending = asyncio.create_task(intake.stop(5))
    await come_to_wait()
    with pytest.raises(RequestError) as refused:
        await intake.store(records(1), [])
    assert refused.value.status == 503
    store.gate.set()
    await ending

    assert all(task.done() and task.exception() is None for task in waiting)
    assert sum(store.batches) == 3


async def test_at_the_end_what_is_not_stored_in_time_is_sent_away(store):
    intake = Intake(lambda: store, writers=1)
    intake.start()
    store.gate = asyncio.Event()
    waiting = [asyncio.create_task(intake.store(records(1), [])) for _ in range(3)]
    await come_to_wait()

    await intake.stop(0.1)

    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(one) for one in found} == {RequestError}
    assert store.records == {}


async def test_the_store_is_asked_once_a_second_at_the_most(store, intake, clock):
    """Whoever asks whether it is ready needs no token."""
    store.error = StoreError("no schema")
    with pytest.raises(StoreError, match="no schema"):
        await intake.check()
    store.error = None
    with pytest.raises(StoreError, match="no schema"):
        await intake.check()

    clock.now += 1.05
    await intake.check()
    store.error = StoreError("no schema")
    await intake.check()
