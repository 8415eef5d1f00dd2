"""Bringing intents to the store while their requests wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest
from shelf import Shelf
from strategies import a_record

from otel_audit._util import ratelimited_log
from otel_audit.delivery.intent import Intents
from otel_audit.delivery.metrics import Counters
from otel_audit.errors import StoreUnavailableError


@pytest.fixture
def shelf() -> Shelf:
    ratelimited_log.forget()
    return Shelf()


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def intents_to(shelf: Shelf, counters: Counters) -> Iterator[Callable[..., Intents]]:
    made: list[Intents] = []

    def make(timeout: float = 60.0) -> Intents:
        made.append(Intents(lambda: shelf, counters, timeout))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert shelf.closed == len([one for one in made if one._writer.started])


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - a thread is watched
            await asyncio.sleep(0.001)


class TestIntents:
    async def test_it_is_stored_when_the_wait_is_over(self, intents_to, shelf, counters):
        """True means that the store had said so before."""
        record = a_record(phase="intent")
        assert await intents_to().store(record)
        assert shelf.stored == [record]
        assert shelf.threads == {"otel-audit-intents"}
        assert counters.exported == 1

    async def test_those_who_wait_share_a_round_trip(self, intents_to, shelf):
        """A hundred requests at once need a few writes, and each has its intent stored."""
        intents = intents_to()
        records = [a_record() for _ in range(100)]
        shelf.held = True
        asked = [asyncio.ensure_future(intents.store(record)) for record in records]
        await until(lambda: sum(shelf.asked) + len(intents._waiting) == 100)
        shelf.held = False
        assert all(await asyncio.gather(*asked))
        assert {r.record_id for r in shelf.stored} == {r.record_id for r in records}
        assert len(shelf.asked) <= 3

    async def test_several_event_loops_may_wait(self, intents_to, shelf):
        """Applications on loops of their own share one connection."""
        intents = intents_to()
        results = await asyncio.gather(
            *(asyncio.to_thread(lambda: asyncio.run(intents.store(a_record()))) for _ in range(4))
        )
        assert results == [True] * 4
        assert len(shelf.stored) == 4

    async def test_a_store_that_fails_says_no_at_once(self, intents_to, shelf, caplog):
        """Nobody waits for the time limit where the answer is known."""
        shelf.failures = [StoreUnavailableError("away")]
        began = time.monotonic()
        assert not await intents_to().store(a_record())
        assert time.monotonic() - began < 30
        assert "Requests are refused" in caplog.text

    async def test_a_store_that_hangs_says_no_in_time(self, intents_to, shelf):
        """After the time limit the answer is no; when the store is back it is yes again."""
        shelf.takes = 60
        intents = intents_to(timeout=0.1)
        began = time.monotonic()
        answers = await asyncio.gather(*(intents.store(a_record()) for _ in range(5)))
        assert answers == [False] * 5
        assert time.monotonic() - began < 30
        shelf.takes = 0
        while not await intents.store(a_record()):
            assert time.monotonic() - began < 60

    async def test_none_waits_behind_those_that_gave_up(self, intents_to, shelf):
        """More than a batch of clients went away while the store hung: the next one is stored."""
        shelf.held = True
        intents = intents_to()
        first = asyncio.ensure_future(intents.store(a_record()))
        await until(lambda: shelf.asked)
        gone = [asyncio.ensure_future(intents.store(a_record())) for _ in range(3 * 512)]
        await until(lambda: len(intents._waiting) == len(gone))
        for one in gone:
            one.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        last = asyncio.ensure_future(intents.store(a_record()))
        await until(lambda: len(intents._waiting) > len(gone))
        shelf.held = False
        async with asyncio.timeout(30):  # an intent has a minute
            assert await asyncio.gather(first, last) == [True, True]
        assert len(shelf.stored) == 2

    async def test_after_the_end_the_answer_is_no(self, intents_to, shelf):
        """What waits at the end is told no, and so is whoever comes later."""
        shelf.held = True
        intents = intents_to()
        first = asyncio.ensure_future(intents.store(a_record()))
        await until(lambda: shelf.asked)
        second = asyncio.ensure_future(intents.store(a_record()))
        await until(lambda: intents._waiting)
        closing = asyncio.ensure_future(asyncio.to_thread(intents.close))
        await until(lambda: intents._writer.ending)
        shelf.held = False
        await closing
        assert (await first, await second) == (True, False)
        assert not await intents.store(a_record())
