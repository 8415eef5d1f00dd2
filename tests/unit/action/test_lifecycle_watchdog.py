from __future__ import annotations

import asyncio
import functools
import time

import pytest
from asgi_app import Tapped, say
from jose import jwt

import otel_audit
from otel_audit.action.lifecycle import Watchdog
from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError

SOON = 0.02
KEY = "a shared key of forty characters, or so."


def slow(*, after_answer: bool, actor: str | None = None):
    async def app(scope, receive, send):
        if after_answer:
            await say(send)
        await asyncio.sleep(SOON * 5)
        if actor is not None:
            otel_audit.set_actor(actor)
        if not after_answer:
            await say(send)

    return app


class TestLongActions:
    @pytest.mark.parametrize("after_answer", [True, False])
    async def test_it_leaves_a_record_when_the_time_is_over_and_one_at_the_end(self, after_answer):
        """A stream that goes on, or work after the answer: two records of one action."""
        tapped = Tapped(slow(after_answer=after_answer), long_action_after=SOON)
        await tapped.ask()
        started, completed = tapped.kept.all("closed")
        assert (started.phase, started.outcome) == ("started", "unknown")
        assert (completed.phase, completed.outcome) == ("completed", "success")
        assert started.action_id == completed.action_id
        assert started.record_id != completed.record_id
        assert SOON * 1e9 <= started.duration < completed.duration

    async def test_a_short_one_leaves_one(self):
        """The clock is stopped with the action."""

        async def app(scope, receive, send):
            await say(send)

        tapped = Tapped(app, long_action_after=SOON * 10)
        await tapped.ask()
        await asyncio.sleep(SOON * 12)
        assert [record.phase for record in tapped.kept.all("closed")] == ["completed"]

    async def test_who_becomes_known_later_is_in_the_record_at_the_end(self):
        """The early record settles nothing: authentication may come after it."""
        tapped = Tapped(slow(after_answer=False, actor="clerk-1"), long_action_after=SOON)
        await tapped.ask()
        started, completed = tapped.kept.all("closed")
        assert (started.actor.id, completed.actor.id) == ("anonymous", "clerk-1")

    async def test_who_is_found_later_by_a_resolver_is_too(self):
        """The same where the application leaves its user in the request's state."""

        async def app(scope, receive, send):
            await asyncio.sleep(SOON * 5)
            scope["state"]["user"] = {"id": "clerk-2"}
            await say(send)

        tapped = Tapped(app, long_action_after=SOON)
        await tapped.ask()
        assert tapped.kept.all("closed")[1].actor.id == "clerk-2"

    async def test_a_token_that_comes_later_is_read_too(self):
        """The same where a middleware adds the token to the request while it runs."""

        async def app(scope, receive, send):
            await asyncio.sleep(SOON * 5)
            token = jwt.encode({"sub": "u-3", "tenant_id": "t", "exp": 2**40}, KEY)
            scope["headers"].append((b"authorization", b"Bearer " + token.encode()))
            await say(send)

        tapped = Tapped(app, long_action_after=SOON, jwt_key=KEY, jwt_algorithms=("HS256",))
        await tapped.ask()
        started, completed = tapped.kept.all("closed")
        assert (started.actor.id, completed.actor.id) == ("anonymous", "u-3")
        assert completed.tenant.id == "t"

    async def test_what_is_not_recorded_leaves_nothing(self):
        """A long read that no rule names is not recorded when it starts either."""
        tapped = Tapped(slow(after_answer=False), long_action_after=SOON)
        await tapped.ask(method="GET")
        assert tapped.kept.frames == []

    async def test_a_start_that_was_recorded_gets_its_end(self):
        """Where the answer alone would not be recorded, the end of what began is."""
        rules = [
            {"level": "none", "status": ["2xx"]},
            {"level": "metadata", "methods": ["GET"]},
        ]
        tapped = Tapped(slow(after_answer=False), long_action_after=SOON, policy_rules=rules)
        await tapped.ask(method="GET")
        assert [record.phase for record in tapped.kept.all("closed")] == ["started", "completed"]

    async def test_a_socket_that_stays_open_is_one(self):
        """A connection is in the store while it lasts, and again when it is over."""

        async def app(scope, receive, send):
            await send({"type": "websocket.accept"})
            await asyncio.sleep(SOON * 5)
            await send({"type": "websocket.close", "code": 1000})

        tapped = Tapped(app, long_action_after=SOON)
        await tapped.connect()
        started, completed = tapped.kept.all("closed")
        assert started.metadata["websocket"]["opened"] is True
        assert "close_code" not in started.metadata["websocket"]
        assert completed.metadata["websocket"]["close_code"] == 1000

    def test_a_wrong_time_is_refused(self):
        """Zero would be a record for every action; the message names the setting."""
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_LONG_ACTION_AFTER"):
            AuditConfig(exporter="none", long_action_after=0)


class TestWatch:
    async def test_each_is_told_when_its_own_time_is_over(self):
        """One timer serves all: those that began later are told later, those that ended never."""
        now = asyncio.get_running_loop().time
        told: dict[str, float] = {}
        all_told = asyncio.Event()
        watch = Watchdog(SOON * 4)

        def second() -> None:
            told["second"] = now() - second_began
            all_told.set()

        def ended() -> None:
            told["ended"] = now()

        first_began = now()
        watch.begin(lambda: told.update(first=now() - first_began))
        watched = watch.begin(ended)
        # not by the loop: where that is held up, the first two would be told in between
        time.sleep(SOON * 2)
        second_began = now()
        watch.begin(second)
        watched.end(ended)
        await asyncio.wait_for(all_told.wait(), 60)
        assert list(told) == ["first", "second"]
        assert min(told.values()) >= SOON * 4 - time.get_clock_info("monotonic").resolution

    def test_it_works_on_one_loop_after_the_other(self):
        """A test runner, or a server that restarts, has a new loop in the same thread."""
        told: list[int] = []
        watch = Watchdog(SOON)

        async def act(number: int) -> None:
            watch.begin(functools.partial(told.append, number))
            if number:
                await asyncio.sleep(SOON * 3)

        asyncio.run(act(0))
        asyncio.run(act(1))
        assert told == [1]

    def test_without_a_loop_nobody_is_told(self):
        """There is nobody who could."""
        assert Watchdog(SOON).begin(lambda: None) is None
