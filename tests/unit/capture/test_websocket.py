from __future__ import annotations

import pytest
from unit.capture.asgi_app import Tapped

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
