"""A request of which no record is due is observed only when something happens in it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from asgi_app import Message, Tapped, answer

import otel_audit
from otel_audit._util.spill import SpilledChanges
from otel_audit.action.arguments import RecordArguments
from otel_audit.action.manual_action import Action
from otel_audit.http import exchange
from otel_audit.http.middleware import InnerMiddleware
from otel_audit.record import Change
from otel_audit.scope import action_under_way, current_scope, open_scope

QUIET = ({"level": "none", "paths": ["/quiet"]},)


def write() -> None:
    """What the ORM does when a transaction of the action has been committed."""
    scope = current_scope()
    assert scope is not None
    changes = SpilledChanges()
    changes.add(
        Change(operation="insert", kind="entity", entity="Order", table="orders", key={"id": 1})
    )
    scope.note_transaction_end("committed", changes)


async def ask(app: Any, **options: Any) -> Tapped:
    tapped = Tapped(app, policy_rules=QUIET, **options)
    await tapped.ask(b"{}", path="/quiet", method="GET")
    return tapped


async def test_nothing_is_made_for_it() -> None:
    """No scope, no frame; the client gets an id, and the handler the same."""
    seen: list[Any] = []

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        under_way = action_under_way()
        seen.extend([scope["state"]["request_id"], getattr(under_way, "made", "none at all")])
        await answer(b"{}")(scope, receive, send)

    tapped = await ask(handler)
    assert tapped.kept.frames == []
    assert dict(tapped.sent[0]["headers"])[b"x-request-id"].decode() == seen[0]
    assert seen[1] is None
    assert open_scope() is current_scope() is None


async def test_the_clients_id_is_taken() -> None:
    """As for a request that is recorded."""
    tapped = Tapped(answer(b"{}"), policy_rules=QUIET)
    await tapped.ask(path="/quiet", method="GET", headers=[(b"X-Request-Id", b"given-id-1")])
    assert (b"x-request-id", b"given-id-1") in tapped.sent[0]["headers"]


@pytest.mark.parametrize("late", [False, True])
async def test_a_write_makes_it_a_record(late: bool) -> None:
    """Before or after the answer: one record, which knows what was seen until then."""

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["user"] = {"id": "ann"}
        if not late:
            write()
        await answer(b"{}", status=202)(scope, receive, send)
        if late:
            write()

    tapped = await ask(handler)
    record = tapped.kept.record
    told = dict(tapped.sent[0]["headers"])[b"x-request-id"].decode()
    assert (record.level, record.outcome, record.transaction) == ("changes", "success", "committed")
    assert (record.request.id, record.request.path) == (told, "/quiet")
    assert (record.response.status_code, record.actor.id) == (202, "ann")
    assert [change.entity for change in record.changes] == ["Order"]
    assert tapped.kept.kinds == (["closed"] if late else ["answered", "closed"])
    assert record.duration > 0


async def test_a_write_on_another_thread_counts_as_well() -> None:
    """A handler without `async` runs on one; two that ask at once get one action."""
    found: list[Any] = []

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        both = threading.Barrier(2)

        def work() -> None:
            both.wait()
            found.append(current_scope())
            write()

        await asyncio.gather(asyncio.to_thread(work), asyncio.to_thread(work))
        await answer(b"{}")(scope, receive, send)

    tapped = await ask(handler)
    assert found[0] is found[1]
    assert tapped.kept.record.action_id == found[0].action_id
    assert len(tapped.kept.record.changes) == 2


async def test_an_error_after_a_write_is_told() -> None:
    """The handler raises: the record says so, and the error goes on."""

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        write()
        raise KeyError("mine")

    tapped = Tapped(handler, policy_rules=QUIET)
    with pytest.raises(KeyError):
        await tapped.ask(path="/quiet", method="GET")
    record = tapped.kept.record
    assert (record.outcome, record.error.type) == ("failure", "KeyError")


async def test_an_error_without_a_write_leaves_nothing() -> None:
    """The same as for any answer: the policy wants no record."""

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("mine")

    tapped = Tapped(handler, policy_rules=QUIET)
    with pytest.raises(KeyError):
        await tapped.ask(path="/quiet", method="GET")
    assert tapped.kept.frames == []
    assert current_scope() is None


async def test_an_action_by_hand_inside_brings_its_request_along() -> None:
    """What is recorded inside of a request must not lead back to nothing."""

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        action = Action(
            RecordArguments("order.paid", "ann", None, None, {}, None), tapped.runtime.current
        )
        action.begin()
        action.end(None)
        await answer(b"{}")(scope, receive, send)

    tapped = Tapped(handler, policy_rules=QUIET)
    await tapped.ask(path="/quiet", method="GET")
    inner, outer = tapped.kept.all("closed")
    assert inner.event_name == "order.paid"
    assert (outer.level, outer.request.path) == ("changes", "/quiet")
    assert inner.parent_action_id == outer.action_id


async def test_what_the_router_sees_is_what_is_done() -> None:
    """Middleware turns it into a request that is recorded: body, method and path are those."""

    def moving(app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "method": "POST", "path": "/orders"}, receive, send)

        return middleware

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await answer(b'{"id": 7}')(scope, receive, send)

    mounted = InnerMiddleware(handler)  # an application within the application has taps, too
    tapped = Tapped(mounted, moving, policy_rules=QUIET)
    await tapped.ask(b'{"total": 1}', path="/quiet", method="GET")
    record = tapped.kept.record
    assert tapped.kept.kinds == ["opened", "answered", "closed"]
    assert (record.request.method, record.request.path) == ("POST", "/orders")
    assert bytes(record.request.body.content) == b'{"total": 1}'
    assert bytes(record.response.body.content) == b'{"id": 7}'


async def test_a_route_may_ask_for_more_than_the_policy() -> None:
    """The route that served it has a level of its own, which nobody knew when it began."""

    @otel_audit.audit_route(level="metadata")
    async def endpoint() -> None: ...

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        scope["route"], scope["endpoint"] = type("Route", (), {"path": "/quiet"})(), endpoint
        await answer(b"{}")(scope, receive, send)

    tapped = await ask(handler)
    assert (tapped.kept.record.level, tapped.kept.record.response.status_code) == ("metadata", 200)


async def test_a_task_that_outlives_it_has_no_action() -> None:
    """What it writes belongs to the process, as after any request."""
    go_on = asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []

    async def work() -> Any:
        await go_on.wait()
        return open_scope(), action_under_way(), current_scope()

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        tasks.append(asyncio.create_task(work()))
        await answer(b"{}")(scope, receive, send)

    tapped = await ask(handler)
    go_on.set()
    opened, under_way, current = await tasks[0]
    assert opened is under_way is None
    assert current.closed
    assert tapped.kept.frames == []


@pytest.mark.allow_errors
async def test_what_cannot_be_observed_any_more_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The action cannot be made when it is asked for: that is counted, and the request goes on."""

    def broken(*_: Any) -> None:
        raise RuntimeError("a defect of ours")

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        assert current_scope() is None
        assert current_scope() is None
        await answer(b"{}")(scope, receive, send)

    monkeypatch.setattr(exchange, "ExchangeRecordBuilder", broken)
    tapped = await ask(handler)
    assert tapped.sent[0]["status"] == 200
    assert tapped.runtime.counters.dropped == 1


async def test_headers_that_can_be_read_once_are_passed_on() -> None:
    """ASGI allows any iterable; what the server gets has all of them, and the id."""

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": iter([(b"a", b"1")])})
        await send({"type": "http.response.body", "body": b""})

    tapped = await ask(handler)
    sent: Message = tapped.sent[0]
    assert [name for name, _ in sent["headers"]] == [b"a", b"x-request-id"]
