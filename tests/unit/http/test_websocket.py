from __future__ import annotations

import hashlib
import json

import pytest
from asgi_app import Tapped

from otel_audit.errors import ConfigurationError

RULES = [{"level": "changes", "methods": ["WEBSOCKET"], "event": "feed.followed"}]


def talk(*answers: dict, code: int | None = None, accept: bool = True):
    """Make an application that accepts, answers each message, and perhaps closes."""

    async def app(scope, receive, send):
        await receive()
        if accept:
            await send({"type": "websocket.accept"})
        for message in answers:
            await receive()
            await send({"type": "websocket.send", **message})
        if code is not None:
            await send({"type": "websocket.close", "code": code})
        elif accept:
            while (await receive())["type"] != "websocket.disconnect":
                pass

    return app


TEXT = {"type": "websocket.receive", "text": "password=hunter2"}
GONE = {"type": "websocket.disconnect", "code": 1001}


class TestConnection:
    async def test_it_is_one_record_with_counts(self):
        """Opened, closed, by whom, with which code, how many messages: and no contents."""
        tapped = Tapped(talk({"text": "abc"}, {"bytes": b"12345"}))
        await tapped.connect(TEXT, TEXT, TEXT, GONE, path="/feed")
        record = tapped.kept.record
        assert record.metadata["websocket"] == {
            "opened": True,
            "close_code": 1001,
            "closed_by": "client",
            "messages_received": 3,
            "messages_sent": 2,
            "bytes_received": 48,
            "bytes_sent": 8,
        }
        assert (record.request.method, record.response.status_code) == ("WEBSOCKET", 101)
        assert record.outcome == "success"
        assert "hunter2" not in repr(tapped.kept.frames)

    async def test_text_counts_in_bytes_of_utf_8(self):
        """As what is kept of it does, and as it is on the wire."""
        tapped = Tapped(talk({"text": "grüß €"}, {"bytes": b"12"}))
        await tapped.connect(TEXT, TEXT, GONE)
        assert tapped.kept.record.metadata["websocket"]["bytes_sent"] == 10 + 2

    async def test_it_is_opened_and_closed_with_nothing_between(self):
        """A connection has no answer of its own that a client could rely on."""
        tapped = Tapped(talk())
        await tapped.connect(GONE)
        assert tapped.kept.kinds == ["opened", "closed"]

    async def test_the_policy_knows_it_as_a_method_of_its_own(self):
        """A rule for WEBSOCKET names it and sets its level."""
        tapped = Tapped(talk(), policy_rules=RULES)
        await tapped.connect(GONE)
        record = tapped.kept.record
        assert (record.event_name, record.level) == ("feed.followed", "changes")

    async def test_every_message_passes_as_it_is(self):
        """The application and the server exchange the very same messages."""
        tapped = Tapped(talk({"text": "abc"}, code=1000), request_id_header="")
        sent = await tapped.connect(TEXT)
        assert sent == [
            {"type": "websocket.accept"},
            {"type": "websocket.send", "text": "abc"},
            {"type": "websocket.close", "code": 1000},
        ]

    async def test_the_request_id_is_in_the_handshake(self):
        """The client learns it as from any response."""
        tapped = Tapped(talk(code=1000))
        (accept, _) = await tapped.connect()
        assert dict(accept["headers"])[b"x-request-id"].decode() == tapped.kept.record.request.id


def messages(body) -> list:
    """What is kept of the messages of one direction; their times are no matter."""
    return [
        {name: value for name, value in entry.items() if name != "at_ms"}
        for entry in json.loads(body.text)
    ]


class TestMessages:
    async def test_both_directions_are_kept_where_the_setting_asks_for_it(self):
        """JSON as JSON, text as text, redacted; numbered in the order in which they passed."""
        tapped = Tapped(
            talk({"text": "thanks"}, {"text": '{"token":"hunter2"}'}), capture_socket_messages=True
        )
        pin = {"type": "websocket.receive", "text": '{"pin":"hunter2","item":"tea"}'}
        await tapped.connect(TEXT, pin, GONE)
        record = tapped.kept.record
        assert messages(record.request.body) == [
            {"n": 1, "message": "password=[REDACTED]"},
            {"n": 3, "message": {"pin": "[REDACTED]", "item": "tea"}},
        ]
        assert messages(record.response.body) == [
            {"n": 2, "message": "thanks"},
            {"n": 4, "message": {"token": "[REDACTED]"}},
        ]
        assert record.request.body.size == len(TEXT["text"]) + len(pin["text"])
        assert record.level == "request_response"
        assert "hunter2" not in repr(tapped.kept.frames)

    async def test_binary_ones_are_described(self):
        """Size and hash, as for bodies; what is short enough to be guessed has no hash."""
        data = bytes(range(100))
        tapped = Tapped(talk({"bytes": b"12345"}), capture_socket_messages=True)
        await tapped.connect({"type": "websocket.receive", "bytes": data, "text": None}, GONE)
        (received,) = messages(tapped.kept.record.request.body)
        (sent,) = messages(tapped.kept.record.response.body)
        digest = hashlib.sha256(data).hexdigest()
        assert received["message"] == {"_binary": True, "_size": 100, "_sha256": digest}
        assert sent["message"] == {"_binary": True, "_size": 5}

    @pytest.mark.parametrize("rule", [{"messages": True}, {"messages": True, "body_limit": 20}])
    async def test_they_share_the_bound_of_a_body(self, rule):
        """The message at the bound is cut, later ones are counted; each says so."""
        tapped = Tapped(
            talk({"text": "ok"}),
            body_limit=20 if "body_limit" not in rule else 10_000,
            policy_rules=[{"level": "request", **rule}],
        )
        words = {"type": "websocket.receive", "text": "one two three"}
        await tapped.connect(words, words, words, words, GONE)
        record = tapped.kept.record
        assert messages(record.request.body) == [
            {"n": 1, "message": "one two three"},
            {"n": 3, "message": {"_truncated": True, "_original_size": 13}},
            {"_truncated": True, "_messages_left_out": 2, "_original_size": 52},
        ]
        assert (record.request.body.absent, record.response.body) == ("truncated", None)

    async def test_there_is_a_bound_on_their_number(self):
        """Thousands of empty messages are not kept one by one."""
        tapped = Tapped(talk(), capture_socket_messages=True)
        empty = {"type": "websocket.receive", "text": ""}
        await tapped.connect(*[empty] * 1_000, GONE)
        kept = messages(tapped.kept.record.request.body)
        assert kept[0] == {"n": 1, "message": ""}
        assert kept[-1] == {"_truncated": True, "_messages_left_out": 800, "_original_size": 0}

    async def test_a_rule_may_ask_for_them(self):
        """Where the setting does not."""
        rules = [{"level": "request_response", "paths": ["/feed"], "messages": True}]
        for path, kept in (("/feed", True), ("/other", False)):
            tapped = Tapped(talk({"text": "ok"}), policy_rules=rules)
            await tapped.connect(TEXT, GONE, path=path)
            assert (tapped.kept.record.request.body is not None) is kept

    async def test_a_rule_may_refuse_them(self):
        """Where the setting asks for them."""
        rules = [{"level": "request_response", "messages": False}]
        tapped = Tapped(talk({"text": "ok"}), policy_rules=rules, capture_socket_messages=True)
        await tapped.connect(TEXT, GONE)
        assert tapped.kept.record.request.body is None
        assert tapped.kept.record.response.body is None

    async def test_a_full_level_alone_does_not_ask_for_them(self):
        """Who wants all bodies of requests has not asked for conversations."""
        tapped = Tapped(talk({"text": "ok"}), level="request_response")
        await tapped.connect(TEXT, GONE)
        assert tapped.kept.record.request.body is None

    @pytest.mark.parametrize("side", ["request", "response"])
    async def test_either_direction_may_be_switched_off(self, side):
        """The settings for bodies hold for messages, too."""
        tapped = Tapped(
            talk({"text": "ok"}), capture_socket_messages=True, **{f"capture_{side}_body": False}
        )
        await tapped.connect(TEXT, GONE)
        record = tapped.kept.record
        assert getattr(record, side).body is None
        assert {"request": record.response, "response": record.request}[side].body is not None

    def test_a_rule_that_could_keep_none_is_refused(self):
        """At level metadata no message is ever kept."""
        with pytest.raises(ConfigurationError, match=r"rule 1: messages: needs level request"):
            Tapped(talk(), policy_rules=[{"level": "metadata", "messages": True}])


class TestOutcome:
    @pytest.mark.parametrize(
        ("code", "outcome"), [(1000, "success"), (1001, "success"), (1008, "failure"),
                              (1011, "failure"), (4003, "failure")],
    )  # fmt: skip
    async def test_the_applications_code_decides(self, code, outcome):
        """An orderly end is success; any other code with which the application closes is not."""
        tapped = Tapped(talk(code=code))
        await tapped.connect()
        record = tapped.kept.record
        assert (record.outcome, record.metadata["websocket"]["close_code"]) == (outcome, code)

    async def test_a_client_that_vanishes_is_no_failure_of_the_action(self):
        """1006 says only that the connection broke."""
        tapped = Tapped(talk())
        await tapped.connect({**GONE, "code": 1006})
        assert tapped.kept.record.outcome == "success"

    async def test_one_that_the_application_leaves_open_is_dropped(self):
        """It returns and has not closed: the client sees no close frame, the record 1006."""

        async def app(scope, receive, send):
            await send({"type": "websocket.accept"})

        tapped = Tapped(app)
        await tapped.connect()
        facts = tapped.kept.record.metadata["websocket"]
        assert (facts["close_code"], facts["closed_by"]) == (1006, "application")
        assert tapped.kept.record.outcome == "success"

    async def test_one_that_is_not_accepted_is_a_denial(self):
        """Servers answer it with 403, and so says the record."""
        tapped = Tapped(talk(accept=False, code=1000))
        await tapped.connect()
        record = tapped.kept.record
        assert (record.outcome, record.response.status_code) == ("failure", 403)
        assert record.metadata["websocket"]["opened"] is False

    async def test_one_that_is_answered_over_http_has_that_status(self):
        """With the denial extension the application chooses the status."""

        async def app(scope, receive, send):
            await send({"type": "websocket.http.response.start", "status": 404, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b""})

        tapped = Tapped(app)
        await tapped.connect()
        assert tapped.kept.record.response.status_code == 404

    async def test_an_exception_is_a_failure(self):
        """The server then closes with 1011."""

        async def app(scope, receive, send):
            await send({"type": "websocket.accept"})
            raise RuntimeError

        tapped = Tapped(app)
        with pytest.raises(RuntimeError):
            await tapped.connect()
        record = tapped.kept.record
        assert (record.outcome, record.error.type) == ("failure", "RuntimeError")
        assert record.metadata["websocket"]["close_code"] == 1011
