"""Threads of ours at work, each cut off at every point of it: a program for `test_cut_off_threads`.

    python tests/cut_off_jobs.py Delivering ours DIRECTORY

It fails by an AssertionError that names the place, and prints how many points there were.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

from cut_off import CutOff
from shelf import Shelf
from strategies import a_record

from otel_audit._util import loop_thread
from otel_audit._util.backoff import Backoff
from otel_audit._util.ids import uuid7
from otel_audit.delivery.delivery import Delivery, DeliveryOptions
from otel_audit.delivery.group_fsync import GroupSync
from otel_audit.delivery.intent import Intents
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.outbox_relay import OutboxState, Relay, RelayOptions, Waiting
from otel_audit.delivery.sink import Written
from otel_audit.delivery.spool import FrameKind, open_spool
from otel_audit.record import AuditRecord, to_json

FILES: Final = {"ours": ("otel_audit/", "threading.py"), "loop": ("/asyncio/", "selectors.py")}


class Job:
    """A thread of ours, and what it is for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.shelf = Shelf()
        self.counters = Counters()

    @abstractmethod
    def do(self) -> None:
        """Have the thread do something; must not block for long."""

    @abstractmethod
    def is_done(self) -> bool:
        """Tell whether all is done that was asked for."""

    @abstractmethod
    def end(self) -> None:
        """End the thread."""


class Delivering(Job):
    """Records go to the store, and wait on disk until they are there."""

    queue_size = 1_000
    has_spool = True
    at_once = 2

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.ids: set[str] = set()
        self.delivery = Delivery(
            lambda: self.shelf,
            self.counters,
            DeliveryOptions(
                queue_size=self.queue_size, batch_interval=0.002, first_pause=0.002,
                longest_pause=0.01, sync_interval=0.01,
            ),
            spool=functools.partial(open_spool, directory, service="shop", fsync="never")
            if self.has_spool else None,
        )  # fmt: skip

    def do(self) -> None:
        self.shelf.held = self.at_once > 1
        for _ in range(self.at_once):
            record = a_record(record_id=uuid7())
            self.ids.add(record.record_id)
            self.delivery.submit(record)
        self.shelf.held = False

    def is_done(self) -> bool:
        stored = {record.record_id for record in self.shelf.stored}
        return self.ids <= stored and self.delivery.depth == 0

    def end(self) -> None:
        assert self.delivery.flush(10)
        self.delivery.close(10)
        assert self.counters.dropped == 0


class DeliveringFromMemory(Delivering):
    """The same where there is no spool."""

    has_spool = False


class DeliveringFromDisk(Delivering):
    """The same where memory is full, and the rest is read back from disk."""

    queue_size = 1
    at_once = 4


class Refusing(Shelf):
    """Refuses each record once, for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    async def write(self, records: Sequence[AuditRecord]) -> Written:
        new = [one.record_id for one in records if one.record_id not in self._seen]
        self._seen.update(new)
        written = await super().write([one for one in records if one.record_id not in new])
        return Written(written.stored, postponed=tuple(new), why_postponed="not now")


class DeliveringWhatWasPostponed(Delivering):
    """The same where the store takes a record when it is offered for the second time."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.shelf = Refusing()


class Table:
    """An outbox in memory."""

    def __init__(self) -> None:
        self.rows: dict[str, str] = {}

    async def take(self, most: int, most_bytes: int) -> Sequence[Waiting]:
        return [Waiting(*row) for row in list(self.rows.items())[:most]]

    async def remove(self, record_ids: Collection[str]) -> None:
        for record_id in record_ids:
            self.rows.pop(record_id, None)

    async def release(self, record_ids: Collection[str]) -> None: ...

    async def state(self) -> OutboxState:
        return OutboxState(len(self.rows), 0.0)

    async def holds_earlier(self, record_id: str) -> bool:
        return any(one <= record_id for one in self.rows)

    async def check(self) -> None: ...

    async def close(self) -> None: ...


class Relaying(Job):
    """Records of the outbox go to the store."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.table = Table()
        self.relay = Relay(
            lambda: self.table, lambda: self.shelf, self.counters, RelayOptions(interval=0.01)
        )

    def do(self) -> None:
        record = a_record(record_id=uuid7())
        self.table.rows[record.record_id] = to_json(record).decode()
        self.relay.nudge()

    def is_done(self) -> bool:
        return not self.table.rows

    def end(self) -> None:
        assert self.relay.flush(10)
        self.relay.close(10)


class Waits(Job):
    """Requests wait for the thread; each in an event loop of its own."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.answers: list[bool | None] = []

    def do(self) -> None:
        self.answers.append(None)
        threading.Thread(target=self._wait, args=(len(self.answers) - 1,), daemon=True).start()

    def _wait(self, number: int) -> None:
        self.answers[number] = asyncio.run(self.wait())

    @abstractmethod
    async def wait(self) -> bool: ...

    def is_done(self) -> bool:
        if self.answers[-1] is False:
            self.do()  # what was under way when the thread was cut off is refused
        return None not in self.answers and self.answers[-1] is True


class StoringIntents(Waits):
    """Strict mode waits for its intents."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.intents = Intents(lambda: self.shelf, self.counters, 60)

    async def wait(self) -> bool:
        return await self.intents.store(a_record(record_id=uuid7()))

    def end(self) -> None:
        self.intents.close()


class Syncing(Waits):
    """Strict mode waits for the disk."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.spool = open_spool(directory, service="shop", fsync="always")
        self.group = GroupSync(lambda: self.spool, self.counters)

    async def wait(self) -> bool:
        record = a_record(record_id=uuid7())
        self.spool.append(FrameKind.ANSWERED, record.record_id, to_json(record))
        return await self.group.wait()

    def end(self) -> None:
        self.spool.close()


JOBS: Final[list[type[Job]]] = [
    Delivering, DeliveringFromMemory, DeliveringFromDisk, DeliveringWhatWasPostponed, Relaying,
    StoringIntents, Syncing,
]  # fmt: skip


def cut_off_everywhere(kind: type[Job], files: tuple[str, ...], directory: Path) -> int:
    """Cut the thread off at each point in turn; how many points there were.

    All of the first, then fewer: what follows is more of the same.
    """
    point = 1
    while cut_off_at(point, files, kind, directory / str(point)):
        point += 1 + point // 8
    return point


def cut_off_at(point: int, files: tuple[str, ...], kind: type[Job], directory: Path) -> bool:
    """Cut a thread off; tell whether it got that far."""
    directory.mkdir()
    with CutOff(point, files) as cut:
        job = kind(directory)
        promptly(job.do, cut)
        until(job.is_done, cut)
    cut.armed = True
    promptly(job.do, cut)
    until(lambda: bool(cut.place) or job.is_done(), cut)
    promptly(job.do, cut)
    until(job.is_done, cut)
    promptly(job.end, cut)
    return bool(cut.place)


def promptly(call: Callable[[], object], cut: CutOff) -> None:
    """Call something in a thread, so that a lock that is never given back is seen."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), f"it hangs: {where(cut)}"
    assert not failed, f"{failed}: {where(cut)}"


def until(condition: Callable[[], bool], cut: CutOff) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"it is not done: {where(cut)}"
        time.sleep(0.002)


def where(cut: CutOff) -> str:
    return cut.place or "before it was cut off"


def main(kind: str, files: str, directory: str) -> None:
    """Begin again at once; no thread of another test is about."""
    loop_thread._BACKOFF = Backoff(first=0.001)
    loop_thread._LONGEST_END = 0.05
    chosen = next(one for one in JOBS if one.__name__ == kind)
    print(cut_off_everywhere(chosen, FILES[files], Path(directory)))


if __name__ == "__main__":
    main(*sys.argv[1:])
