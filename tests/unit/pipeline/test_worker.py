"""A thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import threading

from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from otel_audit.pipeline.worker import Worker


class Waiter:
    """Waits to be roused, again and again, and remembers how it went."""

    def __init__(self) -> None:
        self.worker = Worker("test-worker", self.work)
        self.begun, self.roused = threading.Event(), threading.Event()
        self.seen: list[str] = []
        self.traced = True

    async def work(self) -> None:
        self.traced = is_instrumentation_enabled()
        self.worker.join(60)  # does not wait for itself
        self.begun.set()
        try:
            await self.worker.wake.wait()
            self.seen.append(threading.current_thread().name)
            self.roused.set()
            await asyncio.sleep(300)
        finally:
            self.seen.append("ended")


def test_it_is_roused_and_cancelled_from_another_thread() -> None:
    """The coroutine runs untraced in a thread of that name, and may be cut off in order."""
    waiter = Waiter()
    assert (waiter.worker.started, waiter.worker.alive) == (False, False)
    waiter.worker.start()
    assert waiter.begun.wait(60)
    waiter.worker.rouse()
    assert waiter.roused.wait(60)
    waiter.worker.cancel()
    waiter.worker.join(60)
    assert waiter.seen == ["test-worker", "ended"]
    assert (waiter.worker.started, waiter.worker.alive) == (True, False)
    assert not waiter.traced


def test_what_does_not_run_is_left_alone() -> None:
    """Before the start and after the end nobody is roused, and nothing is raised."""
    waiter = Waiter()
    waiter.worker.rouse()
    waiter.worker.cancel()
    waiter.worker.join(60)
    waiter.worker.start()
    assert waiter.begun.wait(60)
    assert not waiter.worker.wake.is_set()
    waiter.worker.cancel()
    waiter.worker.join(60)
    waiter.worker.rouse()
    waiter.worker.cancel()
    assert waiter.seen == ["ended"]
