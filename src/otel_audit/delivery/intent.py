"""Strict mode: what is about to be done is in the store before it is done."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final, NamedTuple

from otel_audit._util.own_lock import own_lock
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.sink import Sink
from otel_audit.delivery.writer import LAST_GRACE, Messages, OwnsWriter, Writer
from otel_audit.errors import StoreError
from otel_audit.record import AuditRecord

_logger = logging.getLogger(__name__)

_REFUSED: Final = "Requests are refused, as their intents cannot be stored"
_MESSAGES: Final = Messages(waiting=_REFUSED, failed=_REFUSED, again=None)

_LARGEST_BATCH: Final = 512
"""Intents in one write, as many as the default of `batch_size`."""


class _Intent(NamedTuple):
    record: AuditRecord
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[bool]


class Intents(OwnsWriter):
    """Writes intents to the store while their requests wait; all that wait share a round trip.

    It has a thread, an event loop and a connection of its own, so that no backlog stands before
    it. The thread is started when it is first needed. Make a new one in a forked child.
    """

    def __init__(self, make_sink: Callable[[], Sink], counters: Counters, timeout: float) -> None:
        """Remember the store; it is not connected yet.

        Args:
            make_sink: Makes the sink, in the thread that uses it.
            counters: Where everything is counted.
            timeout: Seconds that a request waits at most.
        """
        self._make_sink = make_sink
        self._counters = counters
        self._timeout = timeout
        self._lock = own_lock()
        self._waiting: list[_Intent] = []
        self._taken: list[_Intent] = []
        self._writer = Writer("otel-audit-intents", self._work, counters, messages=_MESSAGES)

    async def store(self, record: AuditRecord) -> bool:
        """Wait until the store has an intent.

        Returns:
            Whether it has it for sure; False after the time limit, and at once where the store
            does not take it. It may then have it all the same.
        """
        loop = asyncio.get_running_loop()
        intent = _Intent(record, loop, loop.create_future())
        with self._lock:
            if self._writer.ending:
                return False
            self._waiting.append(intent)
            self._writer.start()
            self._writer.rouse()
        try:
            async with asyncio.timeout(self._timeout):
                return await intent.future
        except TimeoutError:
            return False

    def close(self) -> None:
        """End the thread; waiting callers are refused. Never raises."""
        with self._lock:
            self._writer.end()
        self._writer.join(LAST_GRACE)

    async def _work(self) -> None:
        sink = self._make_sink()
        with self._lock:
            # the work before this may have ended in the middle of a batch
            self._waiting = self._taken + self._waiting
            self._taken = []
        try:
            while not self._writer.ending:
                batch = self._take()
                if batch:
                    await self._write(sink, batch)
                    self._taken = []
                else:
                    await self._writer.wait(None)
                    self._writer.forget_rousing()
        finally:
            if self._writer.ending:
                for intent in self._take(everything=True):
                    _answer(intent, stored=False)
            await sink.close()

    def _take(self, *, everything: bool = False) -> list[_Intent]:
        with self._lock:
            # no caller waits any more for those that are done: their time was up. Before the slice:
            # a batch without any would let the thread sleep, with others behind it
            waiting = [intent for intent in self._waiting if not intent.future.done()]
            size = len(waiting) if everything else _LARGEST_BATCH
            # an intent is always in one of the two, if in both for a moment
            self._taken = batch = waiting[:size]
            self._waiting = waiting[size:]
        return batch

    async def _write(self, sink: Sink, batch: list[_Intent]) -> None:
        stored, postponed = False, frozenset[str]()
        try:
            async with asyncio.timeout(self._timeout):
                records = [intent.record for intent in batch]
                written = await self._writer.write(sink, records, bad="raise")
            stored, postponed = True, frozenset(written.postponed)
            if postponed:
                log_limited(_logger, "intents", "Requests are refused: %s", written.why_postponed)
            else:
                self._writer.note_success()
        except TimeoutError:
            self._writer.note_failure(StoreError("no answer in time"))
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait need an answer
            self._writer.note_failure(error)
        # no second try here: a request that is refused may be sent again, one that waits may not
        for intent in batch:
            _answer(intent, stored=stored and intent.record.record_id not in postponed)


def _answer(intent: _Intent, *, stored: bool) -> None:
    with contextlib.suppress(RuntimeError):  # its loop has ended, and so has the waiting caller
        intent.loop.call_soon_threadsafe(_set, intent.future, stored)


def _set(future: asyncio.Future[bool], stored: bool) -> None:  # noqa: FBT001 - a callback's argument
    if not future.done():
        future.set_result(stored)
