"""Waiting for the disk without stopping the event loop."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from shelf import no_more_threads
from strategies import a_record

from otel_audit._util import ratelimited_log
from otel_audit.delivery import group_fsync
from otel_audit.delivery.group_fsync import GroupSync
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.queue import RecordQueue
from otel_audit.delivery.spool import FrameKind, Spool, open_spool
from otel_audit.record import to_json


class HeldDisk:
    """How often it was asked; whether it was let go, or had given up."""

    def __init__(self) -> None:
        self.asked = 0
        self.let_go = threading.Event()
        self.was_let_go = False


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    ratelimited_log.forget()
    opened = open_spool(tmp_path, service="shop", fsync="always")
    yield opened
    opened.close()


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A disk that takes 50 ms; the times at which it was asked."""
    asked: list[float] = []
    real = os.fdatasync

    def fdatasync(file: int) -> None:
        asked.append(time.monotonic())
        time.sleep(0.05)
        real(file)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    return asked


@pytest.fixture
def held_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldDisk]:
    """A disk that answers when it is told to."""
    disk, real = HeldDisk(), os.fdatasync

    def fdatasync(file: int) -> None:
        disk.asked += 1
        disk.was_let_go = disk.let_go.wait(60)
        real(file)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    yield disk
    disk.let_go.set()


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def group(spool: Spool, counters: Counters) -> Iterator[GroupSync]:
    """One without an interval: it syncs where somebody waits."""
    made = GroupSync(lambda: spool, counters)
    yield made
    made.close(10)


def append(spool: Spool) -> int:
    record = a_record()
    return spool.append(FrameKind.ANSWERED, record.record_id, to_json(record))


class TestGroupSync:
    async def test_whoever_waits_goes_on_when_the_disk_has_it(self, spool, group, slow_disk):
        """After the wait everything that was appended before it is synced."""
        position = append(spool)
        assert await group.wait()
        assert spool.synced >= position
        assert len(slow_disk) == 1

    async def test_the_event_loop_goes_on(self, spool, group, held_disk):
        """While the disk is busy the loop turns: the disk is let go by what the loop does then."""
        append(spool)
        waiting = asyncio.ensure_future(group.wait())
        while not held_disk.asked:  # noqa: ASYNC110 - a thread is watched
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not waiting.done()
        held_disk.let_go.set()
        await waiting
        assert held_disk.was_let_go

    async def test_those_who_wait_share_a_sync(self, spool, group, held_disk):
        """A hundred answers that come while the disk is busy need one more sync, not a hundred."""

        async def answer() -> bool:
            append(spool)
            return await group.wait()

        first = asyncio.ensure_future(answer())
        while not held_disk.asked:  # noqa: ASYNC110 - a thread is watched
            await asyncio.sleep(0)
        others = [asyncio.ensure_future(answer()) for _ in range(100)]
        await asyncio.sleep(0)  # each comes to its wait
        assert len(group._waiting) == 101
        held_disk.let_go.set()
        assert all(await asyncio.gather(first, *others))
        assert held_disk.asked == 2

    async def test_what_is_synced_already_waits_for_nothing(self, spool, group, slow_disk):
        """Without anything new the disk is not asked."""
        append(spool)
        spool.sync()
        slow_disk.clear()
        assert await group.wait()
        assert not slow_disk

    async def test_a_disk_that_fails_is_told_and_nobody_hangs(
        self, spool, counters, group, monkeypatch, caplog
    ):
        """Where syncing fails, those who wait go on; it is counted and logged."""
        append(spool)
        with monkeypatch.context() as broken:
            broken.setattr(os, "fdatasync", lambda file: (_ for _ in ()).throw(OSError(5, "EIO")))
            assert not await group.wait()
        assert counters.spool_errors == 1
        assert "before its record was on disk" in caplog.text

    @pytest.mark.allow_errors
    async def test_a_thread_that_cannot_start_is_tried_again(
        self, spool, counters, group, monkeypatch
    ):
        """At a limit of processes nobody waits for what cannot come; later it comes."""
        append(spool)
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", no_more_threads)
            async with asyncio.timeout(group_fsync.LONGEST_WAIT / 2):
                assert not await group.wait()
        assert counters.spool_errors == 1
        assert await group.wait()

    async def test_a_disk_that_hangs_stops_nobody_for_ever(
        self, spool, counters, group, held_disk, monkeypatch
    ):
        """After the longest wait the answer goes out, counted."""
        monkeypatch.setattr(group_fsync, "LONGEST_WAIT", 0.01)
        append(spool)
        assert not await group.wait()
        assert counters.spool_errors == 1

    async def test_whoever_gives_up_harms_nobody(self, spool, group, slow_disk):
        """A request that is cancelled while it waits leaves the others waiting for the disk."""
        append(spool)
        given_up = asyncio.ensure_future(group.wait())
        await asyncio.sleep(0.01)
        given_up.cancel()
        append(spool)
        assert await group.wait()


class TestInterval:
    """What nobody waits for is brought to disk as well."""

    async def test_what_is_appended_is_synced_now_and_then(self, spool):
        """From the start on, also what comes later."""
        group = GroupSync(lambda: spool, Counters(), interval=0.001)
        group.start()
        for _ in range(3):
            position = append(spool)
            while spool.synced < position:  # noqa: ASYNC110 - a thread is watched
                await asyncio.sleep(0.001)
        group.close(10)

    async def test_whoever_waits_does_not_wait_for_the_interval(self, spool, slow_disk):
        """A caller is served at once, however long the interval is."""
        group = GroupSync(lambda: spool, Counters(), interval=3600.0)
        group.start()
        for _ in range(3):
            append(spool)
            assert await group.wait()
        assert len(slow_disk) == 3
        group.close(10)

    @pytest.mark.allow_errors
    async def test_a_failure_is_told_and_the_next_sync_tried(self, spool, monkeypatch):
        """Where nobody waits, it is counted here; the thread goes on."""
        counters, told = Counters(), threading.Semaphore(0)
        group = GroupSync(lambda: spool, counters, 0.001, told.release)
        append(spool)
        with monkeypatch.context() as broken:
            broken.setattr(os, "fdatasync", lambda file: (_ for _ in ()).throw(OSError(5, "EIO")))
            group.start()
            for _ in range(2):
                assert await asyncio.to_thread(told.acquire, timeout=10)
        assert counters.spool_errors >= 2
        assert group.state.restarts == 0
        group.close(10)


class Watched:
    """A queue with a spool, and the thread that syncs it and sleeps while nothing is appended."""

    def __init__(self, spool: Spool, interval: float) -> None:
        self.looks = 0
        self.spool = spool
        self.queue = RecordQueue(lambda: spool, Counters(), 10)
        self.group = GroupSync(
            self.look, Counters(), interval, at_next_append=self.call_at_next_append
        )
        self.asleep = threading.Semaphore(0)

    def look(self) -> Spool:
        self.looks += 1
        return self.spool

    def call_at_next_append(self, call: Callable[[], None]) -> None:
        self.queue.at_next_append = call
        self.asleep.release()

    async def falls_asleep(self) -> None:
        assert await asyncio.to_thread(self.asleep.acquire, timeout=10)

    def append(self) -> int:
        record = a_record()
        position = self.queue.note(FrameKind.ANSWERED, record.record_id, record)
        assert position is not None
        return position


class TestQuiet:
    """Where nothing is appended the thread sleeps, and misses nothing."""

    @pytest.fixture
    def look_after(self) -> float:
        """Seconds that it sleeps at most, set before its thread starts."""
        return 3600.0

    @pytest.fixture
    async def watched(self, spool, look_after, monkeypatch) -> AsyncIterator[Watched]:
        monkeypatch.setattr(group_fsync, "_LOOK_AFTER", look_after)
        made = Watched(spool, 0.001)
        made.group.start()
        yield made
        made.group.close(10)
        assert made.group.state == (None, 0)

    async def test_it_looks_once_a_second(self, watched):
        """A process that records nothing is not woken up at each interval."""
        await watched.falls_asleep()
        await asyncio.sleep(0)
        looks = watched.looks
        await asyncio.sleep(0.2)
        assert watched.looks - looks <= 1  # the one before it sleeps

    async def test_an_append_rouses_it(self, watched):
        """What comes then is on disk after the interval, however long it would have slept."""
        for _ in range(3):
            await watched.falls_asleep()
            position = watched.append()
            async with asyncio.timeout(10):
                while watched.spool.synced < position:  # noqa: ASYNC110 - a thread is watched
                    await asyncio.sleep(0.001)

    async def test_an_append_that_comes_as_it_falls_asleep_rouses_it(self, spool, monkeypatch):
        """It looks once more when it can be roused: nothing falls in between."""
        monkeypatch.setattr(group_fsync, "_LOOK_AFTER", 3600.0)
        watched, positions = Watched(spool, 0.001), []

        def append_just_before(call: Callable[[], None]) -> None:
            if not positions:
                positions.append(append(spool))
            watched.queue.at_next_append = call

        group = GroupSync(watched.look, Counters(), 0.001, at_next_append=append_just_before)
        group.start()
        async with asyncio.timeout(10):
            while not positions or spool.synced < positions[0]:  # noqa: ASYNC110 - a thread is watched
                await asyncio.sleep(0.001)
        group.close(10)

    async def test_whoever_waits_rouses_it(self, watched):
        """A caller that waits for the disk is served at once."""
        await watched.falls_asleep()
        append(watched.spool)
        assert await watched.group.wait()

    @pytest.mark.allow_errors
    async def test_what_is_not_on_disk_yet_is_tried_again_soon(self, watched, monkeypatch):
        """After a failure it does not sleep, although nothing new comes."""
        await watched.falls_asleep()
        with monkeypatch.context() as broken:
            broken.setattr(os, "fdatasync", lambda file: (_ for _ in ()).throw(OSError(5, "EIO")))
            watched.append()
            looks = watched.looks
            async with asyncio.timeout(10):
                while watched.looks < looks + 50:  # noqa: ASYNC110 - a thread is watched
                    await asyncio.sleep(0.001)
        assert not watched.asleep.acquire(blocking=False)

    @pytest.mark.parametrize("look_after", [0.01])
    async def test_it_looks_around_meanwhile(self, watched):
        """Whether the files are still there is seen as often as before."""
        for _ in range(3):
            await watched.falls_asleep()
