"""Turns: whoever has used least is next, one at a time, and nobody's cancelling holds up others."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from memory_growth import kept_by_async

from otel_audit.server import fair_scheduling
from otel_audit.server.fair_scheduling import FairTurns


async def worked(turns: FairTurns, sender: str, seconds: float, told: list[str]) -> None:
    await turns.take(sender)
    told.append(sender)
    turns.give_back(sender, seconds)


async def test_whoever_has_used_least_is_next():
    turns, told = FairTurns(), []
    await turns.take("busy")
    waiting = [
        asyncio.create_task(worked(turns, who, 1.0, told))
        for who in ("busy", "busy", "busy", "quiet", "quiet")
    ]
    await asyncio.sleep(0)
    turns.give_back("busy", 2.0)
    await asyncio.gather(*waiting)

    assert told == ["quiet", "quiet", "busy", "busy", "busy"]


async def test_time_away_is_not_saved_up():
    """Who comes after an hour goes first once, and then in turn."""
    turns, told = FairTurns(), []
    for _ in range(3):
        await worked(turns, "steady", 100.0, [])
    await turns.take("steady")
    waiting = [
        asyncio.create_task(worked(turns, who, 10.0, told))
        for who in ("steady", "steady", "new", "new", "new", "new")
    ]
    await asyncio.sleep(0)
    turns.give_back("steady", 0.0)
    await asyncio.gather(*waiting)

    assert told[0] == "new"
    assert sorted(told) == ["new"] * 4 + ["steady"] * 2


async def test_who_gives_up_waiting_holds_up_nobody():
    """Also when the turn had just become his."""
    turns, told = FairTurns(), []
    await turns.take("first")
    given_up = asyncio.create_task(worked(turns, "second", 0.0, told))
    late = asyncio.create_task(worked(turns, "third", 0.0, told))
    await asyncio.sleep(0)
    turns.give_back("first", 0.0)
    given_up.cancel()
    await asyncio.gather(given_up, late, return_exceptions=True)

    assert told == ["third"]
    await asyncio.wait_for(worked(turns, "fourth", 0.0, told), 5)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, which passes only where a test says so."""
    now = [0.0]
    monkeypatch.setattr(fair_scheduling, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


async def at_work(turns: FairTurns, sender: str, clock: list[float], told: list[str]) -> None:
    """A request of six turns."""
    async with turns.of(sender) as turn:
        for _ in range(6):
            clock[0] += 0.006
            told.append(sender)
            await turn.pause()


async def test_a_sender_of_many_requests_has_no_more_turns(clock):
    """Twenty requests at once have as many as the one of somebody else."""
    turns, told = FairTurns(), []
    await asyncio.gather(
        *(at_work(turns, "many", clock, told) for _ in range(20)),
        at_work(turns, "one", clock, told),
    )

    assert len(told) == 21 * 6
    until_done = told[: len(told) - told[::-1].index("one")]
    assert until_done.count("many") <= 7


async def test_who_is_cancelled_in_a_pause_gives_back_no_turn_of_others(clock):
    """One at a time goes on."""
    turns, told = FairTurns(), []
    at_once = most_at_once = 0

    async def at_work_alone(sender: str) -> None:
        nonlocal at_once, most_at_once
        await turns.take(sender)
        at_once += 1
        most_at_once = max(most_at_once, at_once)
        for _ in range(5):
            await asyncio.sleep(0)
        at_once -= 1
        turns.give_back(sender, 0.001)

    given_up = asyncio.create_task(at_work(turns, "gives up", clock, told))
    others = [asyncio.create_task(at_work_alone(f"other {number}")) for number in range(4)]
    while not told or not at_once:  # noqa: ASYNC110 - each turn of the loop is looked at
        await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(given_up, *others, return_exceptions=True)

    assert most_at_once == 1
    assert told == ["gives up"]


async def test_what_is_remembered_is_bounded():
    """Senders that come and go take no memory that grows."""
    turns = FairTurns()

    async def senders(first: int) -> None:
        for number in range(first, first + 10_000):
            await worked(turns, f"{number}" + "x" * 100, 0.1, [])

    await senders(0)
    assert await kept_by_async(lambda: senders(10_000)) < 500_000
