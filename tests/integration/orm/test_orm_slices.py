"""The end of an action with many changes: the event loop is not held up until all are handed over."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import httpx
import pytest
import trio
from fastapi import FastAPI
from orm_items import Item
from sqlalchemy.orm import Session

import otel_audit
from otel_audit import AuditConfig
from otel_audit.orm import flush
from otel_audit.testing import Recorded, recorded

PAGES = 20


def store_items(items) -> None:
    with Session(items) as session, session.begin():
        session.add_all([Item(name=str(number)) for number in range(PAGES * 10)])


def recording(items, app=None):
    config = AuditConfig(exporter="none", orm_max_entries=10)
    return recorded(app, app_engine=items, config=config)


def assert_complete(records: Recorded) -> None:
    assert len(records) == PAGES
    assert [one.phase for one in records] == ["completed"] + ["continued"] * (PAGES - 1)
    names = [change.values["name"][1] for one in records for change in one.changes]
    assert names == [str(number) for number in range(PAGES * 10)]


class Watcher:
    """Counts how often something else had its turn, and with how many records there at each."""

    def __init__(self, records: Recorded) -> None:
        self.seen: list[int] = []
        self._records = records

    async def watch(self) -> None:
        while True:
            self.seen.append(len(self._records))
            await asyncio.sleep(0)

    def most_at_once(self) -> int:
        steps = [*self.seen, len(self._records)]
        return max(after - before for before, after in pairwise(steps))


async def test_action(items):
    """Others have their turn after each page."""
    with recording(items) as records:
        watcher = Watcher(records)
        watching = asyncio.create_task(watcher.watch())
        await asyncio.sleep(0)
        async with otel_audit.audit("items.imported") as action:
            store_items(items)
        assert_complete(records)
        assert records[0].record_id == action.record_id
        assert watcher.most_at_once() == 1
        watching.cancel()


async def test_request(items):
    """So it is with a request; its answer is out by then."""
    app = FastAPI()

    @app.post("/items")
    async def create() -> None:
        store_items(items)

    with recording(items, app) as records:
        transport = httpx.ASGITransport(app=app)
        watcher = Watcher(records)
        watching = asyncio.create_task(watcher.watch())
        await asyncio.sleep(0)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            assert (await client.post("/items")).status_code == 200
        assert_complete(records)
        # the action's own record, and the first that continues it
        assert watcher.most_at_once() <= 2
        watching.cancel()


async def test_cancelled_in_between(items):
    """A task that is cancelled while it hands over leaves nothing out."""
    with recording(items) as records:

        async def work() -> None:
            async with otel_audit.audit("items.imported"):
                store_items(items)

        task = asyncio.create_task(work())
        # until it is in the middle of handing over
        for _ in range(5):
            await asyncio.sleep(0)
        assert 0 < len(records) < PAGES
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert_complete(records)


async def test_exception_of_the_application(items):
    """It goes on as it came, after everything was handed over."""
    with recording(items) as records:
        with pytest.raises(ZeroDivisionError):
            async with otel_audit.audit("items.imported"):
                store_items(items)
                1 / 0  # noqa: B018 - on purpose
        assert_complete(records)
        assert {one.outcome for one in records} == {"failure"}


@pytest.mark.allow_errors
async def test_record_that_cannot_be_handed_over(items, monkeypatch):
    """An error of our own in between is counted, and does not reach the application."""
    with recording(items) as records:
        hand_over = Recorded.closed

        def fails_once(self, record, span=None, /) -> None:
            if len(self) == 3:
                raise RuntimeError("no room")
            hand_over(self, record, span)

        monkeypatch.setattr(Recorded, "closed", fails_once)
        async with otel_audit.audit("items.imported"):
            store_items(items)
        assert len(records) == 3
        assert otel_audit.health()["capture_errors"] == 1


@pytest.mark.allow_errors
async def test_change_that_cannot_be_described(items, monkeypatch):
    """An error of ORM capture itself is in the health of the process, too."""

    def broken(*_):
        raise RuntimeError("no")

    with recording(items):
        monkeypatch.setattr(flush, "describe_insert", broken)
        async with otel_audit.audit("items.imported"):
            with Session(items) as session, session.begin():
                session.add(Item(name="a"))
        assert otel_audit.health()["capture_errors"] == 1


def test_trio(items):
    """Under Trio it is the same, and a cancelled block ends in order."""
    with recording(items) as records:

        async def main() -> None:
            with trio.CancelScope() as around:
                async with otel_audit.audit("items.imported"):
                    store_items(items)
                    around.cancel()

        trio.run(main)
        assert_complete(records)


def test_block_without_an_event_loop(items):
    """A plain `with` hands over all at once."""
    with recording(items) as records:
        with otel_audit.audit("items.imported"):
            store_items(items)
        assert_complete(records)
