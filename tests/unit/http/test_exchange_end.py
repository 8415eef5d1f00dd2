"""The record at the end: what was written with the answer, and what has changed since."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from asgi_app import Tapped, answer

import otel_audit
from otel_audit._util.spill import SpilledChanges
from otel_audit.http import exchange_record
from otel_audit.http.exchange_record import ExchangeRecordBuilder
from otel_audit.record import Change
from otel_audit.scope import add_metadata, current_scope, set_event

TOKEN = "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc"


class Pending:
    """A transaction that has written, and has not ended."""

    def pending(self, _owner: Any) -> Any:
        return iter(())


def orders(after: Any = None) -> Any:
    """An application that creates orders, and does something after its answer."""

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        scope["route"], scope["endpoint"] = type("Route", (), {"path": "/orders"})(), handler
        await receive()
        await answer(b'{"id": 7}', status=201)(scope, receive, send)
        if after is not None:
            after()

    return handler


def commit() -> None:
    scope = current_scope()
    assert scope is not None
    changes = SpilledChanges()
    changes.add(
        Change(operation="insert", kind="entity", entity="Order", table="orders", key={"id": 7})
    )
    scope.note_transaction_end("committed", changes)


async def recorded(app: Any) -> Any:
    tapped = Tapped(app)
    await tapped.ask(b'{"total": 12}', path="/orders", headers=[
        (b"content-type", b"application/json"), (b"user-agent", b"browser"),
    ])  # fmt: skip
    assert tapped.kept.kinds == ["opened", "answered", "closed"]
    assert tapped.runtime.counters.capture_errors == 0
    return [record for _, record in tapped.kept.frames]


async def test_nothing_has_happened_since() -> None:
    """The end is the answer's record, with its outcome and its duration."""
    _, answered, closed = await recorded(orders())
    assert closed.duration > answered.duration
    assert (answered.outcome, closed.outcome) == ("unknown", "success")
    same = msgspec.structs.replace(closed, outcome="unknown", duration=answered.duration)
    assert same == answered


async def test_a_commit_after_the_answer_is_told() -> None:
    """A session that a dependency closes commits last: changes, target and bodies are there."""
    _, answered, closed = await recorded(orders(commit))
    assert (answered.transaction, answered.changes, answered.target.id) == ("none", (), None)
    assert (closed.transaction, closed.target.id, closed.outcome) == ("committed", "7", "success")
    assert [change.entity for change in closed.changes] == ["Order"]
    assert bytes(closed.request.body.content) == b'{"total": 12}'


async def test_what_the_application_says_after_the_answer_is_told() -> None:
    """A background task names the event, and adds what it has found out."""

    def say() -> None:
        set_event("order.placed")
        add_metadata(found="late")

    _, answered, closed = await recorded(orders(say))
    assert (answered.event_name, answered.metadata) == ("order.created", {})
    assert (closed.event_name, closed.metadata) == ("order.placed", {"found": "late"})


async def test_a_commit_that_was_pending_with_the_answer_is_told() -> None:
    """It wrote before and after: only what became of it is another thing."""
    scopes: list[Any] = []

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        scope["route"], scope["endpoint"] = type("Route", (), {"path": "/orders"})(), handler
        audit = current_scope()
        assert audit is not None
        scopes.append(audit)
        transaction: Any = Pending()
        audit.note_flushed(1, transaction)
        await answer(b"{}", status=201)(scope, receive, send)
        commit()

    _, answered, closed = await recorded(handler)
    assert (answered.transaction, closed.transaction) == ("none", "committed")
    assert (closed.outcome, closed.target.id) == ("success", "7")
    assert scopes[0].changes_pending == 0


async def test_what_is_still_pending_at_the_end_is_decided_again() -> None:
    """A read whose transaction is left open was recorded for what it had written."""

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        scope["route"], scope["endpoint"] = type("Route", (), {"path": "/orders"})(), handler
        audit = current_scope()
        assert audit is not None
        transaction: Any = Pending()
        audit.note_flushed(1, transaction)
        await answer(b"{}")(scope, receive, send)

    tapped = Tapped(handler, policy_rules=[{"level": "metadata", "methods": ["GET"]}])
    await tapped.ask(method="GET", path="/orders")
    (_, opened), (_, answered), (_, closed) = tapped.kept.frames
    assert [one.level for one in (opened, answered, closed)] == ["metadata", "changes", "metadata"]


async def test_an_action_inside_after_the_answer_is_no_reason_to_forget() -> None:
    """What was recorded by hand after the answer keeps the request recorded."""

    def act() -> None:
        audit = current_scope()
        assert audit is not None
        audit.note_nested()

    _, answered, closed = await recorded(orders(act))
    assert (answered.level, closed.level) == ("request_response", "request_response")
    assert closed.outcome == "success"


@pytest.mark.allow_errors
async def test_what_cannot_be_derived_is_described_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake on the short way costs no record; it is counted."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(exchange_record, "ending_of", fail)
    tapped = Tapped(orders())
    await tapped.ask(b'{"total": 12}', path="/orders")
    assert tapped.kept.kinds == ["opened", "answered", "closed"]
    _, closed = tapped.kept.frames[-1]
    assert (closed.event_name, closed.outcome) == ("order.created", "success")
    assert tapped.runtime.counters.capture_errors == 1


async def test_the_beginning_is_told_by_the_head_alone() -> None:
    """What a crash would leave: when, what, from where; no headers, and no body."""
    opened, answered, _ = await recorded(orders())
    assert (opened.phase, opened.outcome, opened.event_name) == (
        "started", "unknown", "order.created",
    )  # fmt: skip
    assert (opened.request.method, opened.request.path) == ("POST", "/orders")
    assert opened.request.id == answered.request.id
    assert opened.source.user_agent == "browser"
    assert (opened.request.headers, opened.request.body) == ({}, None)
    assert opened.occurred_at == answered.occurred_at


async def test_an_actor_named_late_is_redacted_after_a_look_that_is_undone(monkeypatch) -> None:
    """A long action is decided for its record `started`, and that decision is taken back."""
    made: list[Any] = []
    begin = ExchangeRecordBuilder.__init__

    def remember(builder: Any, *given: Any) -> None:
        made.append(builder)
        begin(builder, *given)

    def name_and_look() -> None:
        otel_audit.set_actor(TOKEN)
        otel_audit.set_tenant(TOKEN)
        (builder,) = made
        resolution = builder.resolution
        builder.decide(wrote=True)
        builder.resolution = resolution

    monkeypatch.setattr(ExchangeRecordBuilder, "__init__", remember)
    _, _, closed = await recorded(orders(name_and_look))
    assert closed.actor.source == "app"
    assert TOKEN not in str(closed)
