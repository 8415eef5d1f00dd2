"""A part of a record that cannot be made costs that part: never the record, never the request."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from asgi_app import Kept, Tapped, answer

from otel_audit import runtime as runtimes
from otel_audit._util.spill import SpilledChanges
from otel_audit.action import manual_action as actions
from otel_audit.action.arguments import RecordArguments
from otel_audit.http import exchange, exchange_facts, request_metadata
from otel_audit.http import exchange_record as accounts
from otel_audit.policy import Policy, engine
from otel_audit.record import INCOMPLETE, AuditRecord, Change
from otel_audit.redaction import Redactor
from otel_audit.scope import add_metadata, set_event, set_target

CLASSES: list[tuple[object, str, str]] = [
    (exchange_facts, "route_template", "route"),
    (exchange_facts, "secret_parameters", "target"),
    (accounts, "shown_target", "target"),
    (accounts, "with_new_id", "target"),
    (accounts, "parse_event", "name"),
    (accounts, "describe_error", "error"),
    (accounts, "outcome_of", "outcome"),
    (accounts, "with_scope_facts", "record"),
    (accounts, "enrich", "span"),
    (accounts.ExchangeRecordBuilder, "collect", "record"),
    (accounts.ExchangeRecordBuilder, "outcome", "record"),
    (accounts.ExchangeRecordBuilder, "decide", "policy"),
    (exchange_facts.HttpExchangeCapture, "request_body", "request.body"),
    (exchange_facts.HttpExchangeCapture, "response_body", "response.body"),
    (exchange_facts.HttpExchangeCapture, "copy", "bodies"),
    (request_metadata, "secret_parameters", "path"),
    (request_metadata.RequestHead, "_shown_host", "host"),
    (Policy, "assess_head", "bodies"),
    (Policy, "decide", "policy"),
    (engine, "override_of", "policy"),
    (engine, "name_action", "name"),
    (engine, "_target", "target"),
    (Redactor, "headers", "headers"),
    (Redactor, "query", "query"),
    (request_metadata, "is_plain_path", "path"),
    (Redactor, "document", "metadata"),
]
AGAIN = {
    "assess_head", "route_template", "parse_event", "shown_target", "with_new_id", "with_scope_facts", "collect", "decide", "override_of", "name_action",
    "_target", "is_plain_path", "document", "source",
}  # fmt: skip
"""What is described anew: where it fails once alone, the record lacks nothing in the end."""

OBSERVED = {
    "bearer": "actor", "actor": "actor", "tenant": "tenant", "source": "source",
    "request_id": "request_id",
}  # fmt: skip

pytestmark = pytest.mark.allow_errors


class Breaks:
    """Raises at each call, or at the first alone."""

    def __init__(self, real: Any, *, once: bool) -> None:
        self.real, self.once, self.calls = real, once, 0

    def __get__(self, instance: object, owner: object) -> Any:
        return lambda *args, **kwargs: self(instance, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == 1 or not self.once:
            raise IndexError("a defect of ours")
        return self.real(*args, **kwargs)


class Span:
    """The application's span, recording."""

    def is_recording(self) -> bool:
        return True

    def set_attributes(self, found: Any) -> None: ...


async def handler(scope: Any, receive: Any, send: Any) -> None:
    scope["route"], scope["endpoint"] = type("Route", (), {"path": "/orders/{id}"})(), handler
    scope["path_params"] = {"id": "7"}
    set_event("order.paid")
    set_target("order", "7")
    add_metadata(why="because")
    await answer(b'{"id": 7}')(scope, receive, send)
    if scope["path"] == "/raises":
        raise KeyError("mine")


async def told(tapped: Tapped, path: str = "/orders/7") -> None:
    opening = accounts.ExchangeRecordBuilder.__init__

    def with_span(self: Any, *args: Any) -> None:
        opening(self, *args)
        self.audit.server_span = Span()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(accounts.ExchangeRecordBuilder, "__init__", with_span)
        given = [(b"content-type", b"application/json"), (b"x-request-id", b"given-id-1")]
        await tapped.ask(b'{"a": 1}', headers=given, path=path, query_string=b"a=1")


def check(tapped: Tapped, broken: Breaks, part: str, *, later: bool = False) -> None:
    assert broken.calls > 0
    record = tapped.kept.record  # exactly one
    assert record.response is None or record.response.status_code == 200
    assert (part in record.metadata.get(INCOMPLETE, ())) is not later
    assert tapped.runtime.counters.capture_errors > 0
    assert tapped.runtime.counters.dropped == 0
    assert tapped.sent[0]["status"] == 200


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize(("where", "name", "part"), CLASSES)
async def test_a_part_that_fails_is_named(
    where: Any, name: str, part: str, once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step that describes an action raises: one record, which says what it lacks."""
    broken = Breaks(getattr(where, name), once=once)
    tapped = Tapped(handler)
    monkeypatch.setattr(where, name, broken)
    if name == "describe_error":
        with pytest.raises(KeyError):
            await told(tapped, "/raises")
    else:
        await told(tapped)
    again = name in AGAIN
    check(tapped, broken, part, later=once and again)
    if once and again:
        record = tapped.kept.record
        assert (record.target.id, record.event_name) == ("7", "order.paid")
        assert record.metadata["why"] == "because"
        assert record.request.path == "/orders/7"


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize(("name", "part"), OBSERVED.items())
async def test_what_the_observer_cannot_read_is_named(name: str, part: str, once: bool) -> None:
    """Who, for whom, from where: what is not known is never nobody."""
    tapped = Tapped(handler, log_anonymous=False, jwt_key="k" * 48, jwt_algorithms="HS256")
    broken = Breaks(getattr(tapped.runtime._options, name), once=once)
    tapped.runtime._options = dataclasses.replace(tapped.runtime._options, **{name: broken})
    if part != "actor":
        tapped = tapped_without_anonymous(tapped)
    await told(tapped)
    check(tapped, broken, part, later=once and name in AGAIN)
    if not once and name == "actor":
        assert tapped.kept.record.actor.reason == "actor_failed"


def tapped_without_anonymous(tapped: Tapped) -> Tapped:
    """The same with anonymous actions recorded: nobody presents anything here."""
    plain = Tapped(handler)
    kept = tapped.runtime._options
    plain.runtime._options = dataclasses.replace(
        kept, policy=plain.runtime._options.policy,
        recorder=plain.kept, on_error=plain.runtime.count_error,
    )  # fmt: skip
    return plain


class Broken(Kept):
    """A recorder that cannot write down that anything has begun."""

    def opened(self, record: Any, span: Any, /) -> bool:
        raise OSError("a defect of ours")


@pytest.mark.parametrize("refuses", [True, False])
async def test_what_cannot_be_written_down_is_refused(refuses: bool) -> None:
    """Where nothing may run unrecorded, an error of ours at the beginning is a refusal."""
    tapped = Tapped(handler, kept=Broken())
    tapped.runtime._options = dataclasses.replace(
        tapped.runtime._options, refuses_unrecorded=refuses
    )
    await tapped.ask()
    assert tapped.sent[0]["status"] == (503 if refuses else 200)
    assert tapped.runtime.counters.capture_errors > 0


@pytest.mark.parametrize("refuses", [True, False])
async def test_what_cannot_be_observed_is_refused(
    refuses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where not even the core could be made; else that is a loss, and counted."""
    tapped = Tapped(handler)
    tapped.runtime._options = dataclasses.replace(
        tapped.runtime._options, refuses_unrecorded=refuses
    )
    monkeypatch.setattr(
        exchange, "ExchangeRecordBuilder", Breaks(exchange.ExchangeRecordBuilder, once=False)
    )
    await tapped.ask()
    assert tapped.sent[0]["status"] == (503 if refuses else 200)
    assert tapped.runtime.counters.dropped == 1


@pytest.mark.parametrize("path", ["/0:À", "/orders/1:_", "/x:_:_", "", "/x:y"])
async def test_denied_paths_without_words_are_recorded(path: str) -> None:
    """An answer of 401 by a middleware: opened, answered, closed, whatever the path."""
    tapped = Tapped(answer(b"no", status=401))
    await tapped.ask(path=path)
    assert tapped.kept.kinds == ["opened", "answered", "closed"]
    assert tapped.runtime.counters.capture_errors == 0


async def test_an_intent_is_asked_for_whatever_fails() -> None:
    """A rule asks for an intent, and deciding fails: the handler does not run without one."""
    asked: list[Any] = []

    async def away(record: Any, span: Any) -> bool:
        asked.append(record)
        return False

    rule = {"level": "request", "paths": ["/payments"], "strict": True}
    tapped = Tapped(handler, policy_rules=(rule,))
    tapped.runtime._options = dataclasses.replace(tapped.runtime._options, intended=away)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Policy, "decide", Breaks(Policy.decide, once=True))
        await tapped.ask(path="/payments")
    assert tapped.sent[0]["status"] == 503
    assert [one.phase for one in asked] == ["intent"]


async def test_what_the_router_sees_asks_for_the_intent() -> None:
    """GET that middleware turns into DELETE by a header: refused without an intent, and recorded."""
    for stored in (True, False):
        asked: list[Any] = []

        async def store(record: Any, span: Any, stored: bool = stored, asked: Any = asked) -> bool:
            asked.append(record)
            return stored

        def overriding(app: Any) -> Any:
            async def middleware(scope: Any, receive: Any, send: Any) -> None:
                scope["method"] = "DELETE"
                await app(scope, receive, send)

            return middleware

        tapped = Tapped(answer(b"gone"), overriding)
        tapped.runtime._options = dataclasses.replace(
            tapped.runtime._options, intended=store, strict=True
        )
        await tapped.ask(method="GET", path="/orders/7")
        record = tapped.kept.record
        assert len(asked) == 1
        assert tapped.sent[0]["status"] == (200 if stored else 503)
        assert (record.action, record.request.method) == ("DELETE", "DELETE")
        assert record.metadata["http.request.method_original"] == "GET"
        assert record.outcome == ("success" if stored else "failure")


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize(
    ("name", "part"),
    [("parse_event", "name"), ("parse_actor", "actor"), ("parse_tenant", "tenant"),
     ("parse_target", "target"), ("parse_metadata", "metadata"), ("describe_error", "error")],
)  # fmt: skip
def test_a_part_of_an_action_by_hand_that_fails_is_named(
    name: str, part: str, once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for what is recorded by hand: exactly one record, whatever of it cannot be told."""
    tapped = Tapped(handler)
    broken = Breaks(getattr(actions, name), once=once)
    monkeypatch.setattr(actions, name, broken)
    told_so = RecordArguments("order.paid", "ann", "acme", "order:7", {"a": 1}, None)
    action = actions.Action(told_so, tapped.runtime.current)
    action.begin()
    action.end(KeyError("mine"))
    record = tapped.kept.record
    assert broken.calls > 0
    assert part in record.metadata[INCOMPLETE]
    assert record.outcome == "failure"
    assert tapped.runtime.counters.capture_errors > 0
    assert tapped.runtime.counters.dropped == 0
    assert record.actor.id == ("anonymous" if part == "actor" else "ann")


async def test_an_empty_health_path_is_off() -> None:
    """An empty setting is no value: an empty path reaches the application, and is recorded."""
    tapped = Tapped(answer(b"mine"), health_path="")
    await tapped.ask(path="")
    assert tapped.kept.kinds == ["opened", "answered", "closed"]
    assert tapped.sent[0]["status"] == 200


async def test_behind_a_prefix_start_and_end_decide_by_the_same_path() -> None:
    """The prefix of the server is no part of what the policy and the health endpoint go by."""
    rule = {"level": "metadata", "paths": ["/orders"], "name": "orders"}
    for root, path in (("/svc", "/svc/orders"), ("/svc", "/orders"), ("", "/orders")):
        tapped = Tapped(answer(b"{}"), policy_rules=(rule,), health_path="/up")
        await tapped.ask(path=path, root_path=root)
        assert tapped.kept.record.level == "metadata"
        assert tapped.kept.record.request.path == path
        await tapped.ask(path=f"{root}/up", root_path=root, method="GET")
        assert b"healthy" in tapped.sent[-1]["body"]


class TestOutsideOfActions:
    """A transaction that no action contained is a record, whatever part of it cannot be made."""

    def a_record(
        self, changes: SpilledChanges, service: Any = lambda: "shop"
    ) -> tuple[AuditRecord, int]:
        tapped = Tapped(handler)
        runtime, kept = tapped.runtime, tapped.kept
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(runtimes, "_service_name", service)
            runtime.record_outside("committed", changes)
        assert runtime.counters.dropped == 0
        return kept.record, runtime.counters.capture_errors

    def changed(self) -> SpilledChanges:
        pages = SpilledChanges()
        pages.add(
            Change(operation="insert", kind="entity", entity="Order", table="orders", key={"id": 1})
        )
        return pages

    def test_whole(self) -> None:
        """Nothing is missing, and nothing says so."""
        record, errors = self.a_record(self.changed())
        assert (record.action, record.actor.id, len(record.changes)) == ("CREATE", "shop", 1)
        assert (record.metadata, errors) == ({}, 0)

    def test_without_a_service(self) -> None:
        """Which process it was is not known: somebody, not nobody."""
        record, errors = self.a_record(self.changed(), Breaks(None, once=False))
        assert record.actor.reason == "actor_failed"
        assert (record.metadata, errors) == ({INCOMPLETE: ["actor"]}, 1)

    def test_without_its_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was changed cannot be read back: that so many rows were is told."""
        monkeypatch.setattr(SpilledChanges, "split", Breaks(None, once=False))
        record, errors = self.a_record(self.changed())
        assert (record.changes, record.changes_total, record.transaction) == ((), 1, "committed")
        assert (record.metadata, errors) == ({INCOMPLETE: ["changes"]}, 1)
