"""The number of live tails is bounded, however many begin at once and however each ends."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from starlette.requests import ClientDisconnect

from otel_audit.errors import StoreUnavailableError
from otel_audit.viewer import tail


@pytest.fixture
def site(monkeypatch):
    """A site whose store takes a moment to say where a tail begins."""

    async def begin(self, given):
        await asyncio.sleep(0.01)
        if given == "fails":
            raise StoreUnavailableError("the store is away")

    async def read(self):
        return [], False

    monkeypatch.setattr(tail._Tail, "begin", begin)
    monkeypatch.setattr(tail._Tail, "_read", read)
    monkeypatch.setattr(tail._Tail, "_event", lambda *_: b"event")
    monkeypatch.setattr(tail, "links_of", lambda _: None)
    monkeypatch.setattr(tail, "parse_query", lambda _, text: text)
    return SimpleNamespace(tails=0)


async def asked(site, given=None):
    viewer = SimpleNamespace(may_do=lambda _: True, narrowed=lambda query: query)
    request = SimpleNamespace(query_params={"from": given}, headers={})
    return await tail.events(site, request, viewer)


async def receive():
    await asyncio.Event().wait()


async def test_so_many_that_come_at_once_are_not_let_in(site):
    """They are counted before the store is asked, and not after it."""
    answers = await asyncio.gather(*(asked(site) for _ in range(200)))
    assert [answer.status_code for answer in answers].count(200) == tail.MOST
    assert site.tails == tail.MOST


@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_client_that_goes_leaves_its_place(site, at):
    """Also one that is gone before its first event: then nothing was begun that could end."""
    answer = await asked(site)
    sent = []

    async def send(message):
        sent.append(message)
        if len(sent) == at:
            raise OSError("the client is gone")

    scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
    if at == 3:
        running = asyncio.create_task(answer(scope, receive, send))
        await asyncio.sleep(0.01)
        assert site.tails == 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    else:
        with pytest.raises(ClientDisconnect):
            await answer(scope, receive, send)
    assert site.tails == 0


async def test_one_that_cannot_begin_leaves_its_place(site):
    """The store is away, or the client was faster."""
    with pytest.raises(StoreUnavailableError):
        await asked(site, "fails")
    beginning = asyncio.create_task(asked(site))
    await asyncio.sleep(0)
    assert site.tails == 1
    beginning.cancel()
    await asyncio.gather(beginning, return_exceptions=True)
    assert site.tails == 0
