"""Records that leave over OTLP, while the receiver or the process is killed."""

from __future__ import annotations

import asyncio
import time

from faults.load import Verdict
from otlp_receiver import Answer, Receiver, receiving
from ports import free_port


def settings_for(url: str) -> dict[str, str]:
    return {
        "OTEL_AUDIT_OTLP_ENDPOINT": url,
        "OTEL_AUDIT_REQUIRED": "true",
        "OTEL_SERVICE_NAME": "shop",
        # where traces go is no business of ours
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
    }


def verdict_of(site, receiver: Receiver) -> Verdict:
    """As of a store that collapses what comes twice, and finds two that differ."""
    # a copy: the receiver goes on
    stored = list(receiver.stored)
    found = {record.record_id: record for record in stored}
    by_request: dict[str, list] = {}
    for record in found.values():
        by_request.setdefault(record.request.id, []).append(record)
    answered = set().union(*(load.answered for load in site.loads))
    asked = answered.union(*(load.cut_off for load in site.loads))
    begun, done = site.journal
    unknown = {name for name, told in by_request.items() if told[0].outcome == "unknown"}
    cut_down = begun - done
    differing = {record.request.id for record in stored if found[record.record_id] != record}
    return Verdict(
        answered=frozenset(answered),
        lost=frozenset(answered - by_request.keys()),
        twice=frozenset({name for name, told in by_request.items() if len(told) > 1} | differing),
        cut_down=frozenset(cut_down),
        untold=frozenset((cut_down - unknown) | (begun - by_request.keys() - answered)),
        invented=frozenset(by_request.keys() - asked),
    )


async def settled(site, receiver: Receiver) -> Verdict:
    until = time.monotonic() + 60
    while (found := verdict_of(site, receiver)).lost or found.untold:
        if time.monotonic() > until:
            break
        await asyncio.sleep(0.1)
    return found


async def test_the_receiver_is_away_and_the_process_killed(site, told):
    """503, then SIGKILL, then nobody listens, then it is back: all is sent by the next start."""
    port = free_port()  # none that may be given to an outgoing connection in between
    with receiving(port=port) as receiver:
        settings = {**settings_for(receiver.url), "WORK": "0.05"}
        with site.serving(settings, forked=False) as server:
            async with site.load(server).running() as load:
                await load.until_answered(50)
                receiver.decide = lambda _: Answer(503, headers={"Retry-After": "1"})
                await load.until_more(100)
                await site.kill_at_work(server)
        stored = list(receiver.stored)
    # to be required means not to start where the receiver is away
    with site.serving({**settings, "OTEL_AUDIT_REQUIRED": "false"}) as server:
        await asyncio.sleep(0.5)
        with receiving(port=port) as receiver:
            receiver.stored += stored
            verdict = await settled(site, receiver)
            await asyncio.to_thread(server.stop)
    assert verdict.assert_sound().cut_down
    told(
        "OTLP: the receiver is away, then the process killed (SIGKILL) under load", verdict,
        "a stream without its end; interrupted actions with outcome `unknown`",
    )  # fmt: skip
