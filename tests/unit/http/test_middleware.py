from __future__ import annotations

import asyncio
import gzip
import inspect
from typing import Any

import pytest
from asgi_app import Kept, Tapped, answer, say
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.http.middleware import EXCHANGE


class TestFrames:
    async def test_a_recorded_request_is_opened_answered_and_closed(self):
        """Three frames, one action, and the answer is written down before its last chunk goes."""
        tapped = Tapped(answer(b'{"id": 1}'))
        await tapped.ask(b"{}")
        assert tapped.kept.kinds == ["opened", "answered", "closed"]
        assert len({record.record_id for _, record in tapped.kept.frames}) == 1

    async def test_the_answer_is_written_down_before_the_client_can_have_it(self):
        """When the last chunk leaves, the frame is there."""
        seen: list[Any] = []

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            seen.append(list(tapped.kept.kinds))
            await send({"type": "http.response.body", "body": b"b"})
            seen.append(list(tapped.kept.kinds))

        tapped = Tapped(app)
        await tapped.ask()
        assert seen == [["opened"], ["opened", "answered"]]

    @pytest.mark.parametrize("path", ["/orders", "/health"])
    async def test_headers_that_can_be_read_once_arrive(self, path):
        """ASGI allows any iterable; what we have looked at the client gets all the same."""
        given = [(b"content-type", b"text/html"), (b"set-cookie", b"sid=1")]

        async def app(scope, receive, send):
            start = {"type": "http.response.start", "status": 200, "headers": iter(given)}
            await send(start)
            await send({"type": "http.response.body", "body": b"<p>"})

        tapped = Tapped(app)
        sent = await tapped.ask(path=path)
        assert list(sent[0]["headers"])[:2] == given
        for record in tapped.kept.all("closed"):
            assert record.response.headers["content-type"] == "text/html"

    async def test_headers_that_break_off_are_the_applications_own_error(self):
        """An iterator that raises: the application learns of it, as it would from the server."""

        def breaking():
            yield b"content-type", b"text/html"
            raise LookupError

        async def app(scope, receive, send):
            with pytest.raises(LookupError):
                await send({"type": "http.response.start", "status": 200, "headers": breaking()})
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        sent = await Tapped(app).ask()
        assert [message.get("status") for message in sent] == [500, None]

    async def test_what_a_client_makes_up_is_bounded_and_redacted(self):
        """A method of any length; a token as the name of the host."""
        token = b"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1c2VyLTEyMyJ9.c2lnbmF0dXJlLW9mLTMyLWJ5dGVz"
        tapped = Tapped(answer())
        await tapped.ask(method="M" * 60_000, headers=[(b"host", token)])
        assert tapped.kept.record.request.method == "M" * 32
        assert token.decode() not in (tapped.kept.record.request.host or "")
        tapped = Tapped(answer())
        await tapped.ask(headers=[(b"host", b"shop.example:8000")])
        assert tapped.kept.record.request.host == "shop.example:8000"
        tapped = Tapped(answer())
        await tapped.ask(headers=[(b"host", b"ada:hunter2@shop.example")])
        assert tapped.kept.record.request.host == "[REDACTED]@shop.example"

    async def test_a_request_that_nothing_records_leaves_nothing(self):
        """An excluded path is passed on, and the request id is on the answer all the same."""
        tapped = Tapped(answer(b"well"))
        sent = await tapped.ask(method="GET", path="/health")
        assert tapped.kept.frames == []
        assert any(name == b"x-request-id" for name, _ in sent[0]["headers"])

    async def test_what_was_opened_and_is_not_recorded_is_taken_back(self):
        """A sensitive read of nobody, where anonymous ones are not wanted, is discarded."""
        tapped = Tapped(
            answer(),
            policy_rules=[
                {"level": "none", "status": ["200"], "actors": ["anonymous"]},
                {"level": "metadata", "status": ["200"]},
                {"level": "metadata", "methods": ["GET"]},
            ],
        )
        await tapped.ask(method="GET")
        assert tapped.kept.kinds == ["opened", "discarded"]

    async def test_a_full_spool_refuses_before_the_handler_runs(self):
        """503 with a problem document, and the application never sees the request."""
        ran: list[str] = []

        async def app(scope, receive, send):
            ran.append("it ran")

        tapped = Tapped(app, kept=Kept(has_room=False))
        sent = await tapped.ask(b"{}")
        assert (sent[0]["status"], ran) == (503, [])

    async def test_a_full_spool_refuses_a_socket_too(self):
        """Without the extension for an answer the connection is closed: try again later."""
        tapped = Tapped(answer(), kept=Kept(has_room=False))
        assert await tapped.connect() == [{"type": "websocket.close", "code": 1013}]

    async def test_a_full_spool_answers_a_socket_where_the_server_can(self):
        """With the extension the client gets the same 503."""
        tapped = Tapped(answer(), kept=Kept(has_room=False))
        sent = await tapped.connect(extensions={"websocket.http.response": {}})
        assert (sent[0]["type"], sent[0]["status"]) == ("websocket.http.response.start", 503)


class TestCallables:
    @pytest.mark.parametrize("path", ["/orders", "/health"])
    async def test_who_asks_finds_coroutine_functions(self, path):
        """Other frameworks tell by that whether an application is one of ASGI 3."""
        found: list[Any] = []

        def between(app):
            found.append(app.__call__)

            async def middleware(scope, receive, send):
                found.extend((receive, send))
                await app(scope, receive, send)

            return middleware

        async def app(scope, receive, send):
            found.extend((receive, send))
            await answer(b"{}")(scope, receive, send)

        await Tapped(app, between).ask(b"{}", path=path)
        assert len(found) == 5
        assert all(map(inspect.iscoroutinefunction, found))


class TestMessages:
    @given(
        request=st.lists(st.binary(max_size=40), max_size=6),
        response=st.lists(st.binary(max_size=40), max_size=6),
        limit=st.integers(0, 60),
    )
    def test_every_byte_passes_as_it_is(self, request, response, limit):
        """Whatever the chunks and the bound, both sides see what they would see without us."""
        got: list[bytes] = []

        async def app(scope, receive, send):
            while True:
                message = await receive()
                got.append(message["body"])
                if not message["more_body"]:
                    break
            await say(send, *response)

        tapped = Tapped(app, body_limit=limit)
        sent = asyncio.run(tapped.ask(*request))
        assert got == (request or [b""])
        assert [message["body"] for message in sent[1:]] == [*response, b""]

    async def test_other_messages_are_the_very_same_objects(self):
        """Only the response's head is made anew, for the request id's header."""
        body = {"type": "http.response.body", "body": b"x", "more_body": False, "own": 1}

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send(body)

        sent = await Tapped(app).ask()
        assert sent[1] is body

    @pytest.mark.parametrize("chunk", [bytearray(b'{"a":1}'), memoryview(b'{"a":1}')])
    async def test_a_buffer_is_copied_because_its_owner_may_use_it_again(self, chunk):
        """What the record holds stays, also when the application reuses the buffer."""

        async def app(scope, receive, send):
            await say(send, chunk)

        tapped = Tapped(app)
        await tapped.ask()
        assert tapped.kept.record.response.body.text == '{"a":1}'

    @pytest.mark.allow_errors
    async def test_a_message_that_makes_no_sense_reaches_the_server_unharmed(self):
        """An application's odd message is the server's matter; we count that we did not follow."""
        odd = {"type": "http.response.start"}

        async def app(scope, receive, send):
            await send(odd)

        tapped = Tapped(app)
        assert await tapped.ask() == [odd]
        assert tapped.runtime.counters.capture_errors == 2

    async def test_an_exception_passes_and_is_recorded(self):
        """The application's exception reaches the server; the record says 500 and which it was."""

        async def app(scope, receive, send):
            raise RuntimeError("token=s3cr3t-value")

        tapped = Tapped(app)
        with pytest.raises(RuntimeError, match="s3cr3t"):
            await tapped.ask()
        record = tapped.kept.record
        assert (record.outcome, record.response.status_code) == ("failure", 500)
        assert record.error.type == "RuntimeError"
        assert "s3cr3t" not in record.error.message

    async def test_a_cancelled_request_is_recorded_as_unknown(self):
        """Nobody knows how far it came, and the cancellation goes on."""

        async def app(scope, receive, send):
            raise asyncio.CancelledError

        tapped = Tapped(app)
        with pytest.raises(asyncio.CancelledError):
            await tapped.ask()
        assert tapped.kept.record.outcome == "unknown"

    async def test_an_answer_without_its_end_is_unknown(self):
        """A stream whose reader has gone has no last chunk: that is no success."""

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})

        tapped = Tapped(app)
        await tapped.ask()
        assert tapped.kept.kinds == ["opened", "closed"]
        assert tapped.kept.record.outcome == "unknown"

    async def test_a_scope_that_lacks_nearly_all_is_recorded(self):
        """What no server makes is the application's to handle, and ours to record."""
        ran: list[bool] = []

        async def app(scope, receive, send):
            ran.append(True)

        tapped = Tapped(app)
        await tapped.ask(path=None)
        assert ran == [True]
        assert tapped.kept.record.request.path == ""
        bare = Tapped(app)
        await bare.app({"type": "http"}, None, None)
        assert bare.kept.record.request.method == ""
        assert bare.runtime.counters.capture_errors == 0

    async def test_nested_taps_make_one_record(self):
        """A mounted application's own taps stay out of the way of the outer ones."""
        inner = Tapped(answer(b'{"id": 1}'))
        outer = Tapped(inner.app)
        await outer.ask(b'{"a": 1}')
        assert inner.kept.frames == []
        assert outer.kept.record.request.body.text == '{"a": 1}'
        assert outer.kept.record.response.body.text == '{"id": 1}'


class TestBodies:
    async def test_both_are_copied_as_the_handler_has_them(self):
        """Chunks are put together; the sizes are those that passed."""
        tapped = Tapped(answer(b'{"id"', b": 1}"))
        await tapped.ask(b'{"item":', b' "tea"}')
        record = tapped.kept.record
        assert (record.request.body.text, record.request.body.size) == ('{"item": "tea"}', 15)
        assert (record.response.body.text, record.response.body.size) == ('{"id": 1}', 9)

    async def test_what_middleware_encodes_is_copied_before(self):
        """A compressing middleware outside changes bytes and headers, not the record."""

        def squeeze(app):
            async def middleware(scope, receive, send):
                async def squeezed(message):
                    if message["type"] == "http.response.start":
                        headers = [*message["headers"], (b"content-encoding", b"gzip")]
                        message = {**message, "headers": headers}
                    elif message["body"]:
                        message = {**message, "body": gzip.compress(message["body"])}
                    await send(message)

                await app(scope, receive, squeezed)

            return middleware

        tapped = Tapped(answer(b'{"id": 1}'), squeeze)
        await tapped.ask()
        assert tapped.kept.record.response.body.text == '{"id": 1}'

    async def test_middleware_that_answers_itself_is_copied_outside(self):
        """Where the router is never reached, what the client gets is what is kept."""

        def deny(app):
            return answer(b'{"detail": "no"}', status=403)

        tapped = Tapped(answer(), deny)
        await tapped.ask(b'{"item": "tea"}')
        record = tapped.kept.record
        assert record.response.status_code == 403
        assert record.response.body.text == '{"detail": "no"}'
        assert record.request.body.text == '{"item": "tea"}'

    async def test_middleware_that_answers_otherwise_is_believed(self):
        """Where the client gets another answer than the handler's, the record has the client's."""

        def replace(app):
            async def middleware(scope, receive, send):
                async def swallow(message): ...

                await app(scope, receive, swallow)
                await say(send, b'{"from": "outside"}', status=409)

            return middleware

        tapped = Tapped(answer(b'{"from": "inside"}'), replace)
        await tapped.ask()
        assert tapped.kept.record.response.body.text == '{"from": "outside"}'

    async def test_a_body_that_nobody_reads_is_named_so(self):
        """The handler never asked for it: it was not read, by us neither."""

        async def app(scope, receive, send):
            await say(send)

        tapped = Tapped(app)
        await tapped.ask(b'{"item": "tea"}')
        assert tapped.reads == 0
        assert tapped.kept.record.request.body.absent == "not_read"

    async def test_reading_on_after_the_end_changes_nothing(self):
        """A handler that reads twice waits for the disconnect, as it would without us."""
        got: list[str] = []

        async def app(scope, receive, send):
            got.extend([(await receive())["type"], (await receive())["type"]])
            await say(send)

        tapped = Tapped(app)
        await tapped.ask(b'{"item": "tea"}')
        assert got == ["http.request", "http.disconnect"]
        assert tapped.kept.record.request.body.text == '{"item": "tea"}'

    async def test_no_body_is_nothing(self):
        """A request without one has none in the record, read or not."""
        tapped = Tapped(answer(status=204))
        await tapped.ask()
        record = tapped.kept.record
        assert (record.request.body, record.response.body) == (None, None)

    @pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("POST", 304), ("POST", 204)])
    async def test_an_answer_that_has_no_body_has_none(self, method, status):
        """HEAD, 204 and 304 carry headers about a body, and no body."""
        tapped = Tapped(answer(status=status), level="request_response")
        await tapped.ask(method=method)
        closed = tapped.kept.all("closed")
        assert all(record.response.body is None for record in closed)

    async def test_a_file_that_the_server_sends_is_named_so(self):
        """With the pathsend extension no byte passes us; the record says that it was a file."""

        async def app(scope, receive, send):
            headers = [(b"content-type", b"application/pdf")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.pathsend", "path": "/srv/report.pdf"})

        tapped = Tapped(app)
        await tapped.ask(extensions={"http.response.pathsend": {}})
        body = tapped.kept.record.response.body
        assert (body.absent, body.content_type) == ("file", "application/pdf")
        assert tapped.kept.kinds == ["opened", "answered", "closed"]

    @pytest.mark.parametrize("side", ["request", "response"])
    async def test_each_side_can_be_switched_off(self, side):
        """Without the one, the other is there."""
        tapped = Tapped(answer(b'{"id": 1}'), **{f"capture_{side}_body": False})
        await tapped.ask(b'{"item": "tea"}')
        record = tapped.kept.record
        bodies = {"request": record.request.body, "response": record.response.body}
        assert bodies.pop(side) is None
        (other,) = bodies.values()
        assert other.text is not None

    async def test_a_rules_own_bound_holds_for_what_is_stored(self):
        """A rule with a smaller bound cuts, though more was copied for other rules' sake."""
        rules = [
            {"level": "request_response", "status": ["409"], "body_limit": 8},
            {"level": "request_response", "status": ["200"]},
        ]
        cut = Tapped(answer(b'{"id": 1, "more": 2}', status=409), policy_rules=rules)
        await cut.ask()
        whole = Tapped(answer(b'{"id": 1, "more": 2}'), policy_rules=rules)
        await whole.ask()
        assert cut.kept.record.response.body.absent == "truncated"
        assert whole.kept.record.response.body.text == '{"id": 1, "more": 2}'


class TestSource:
    async def test_what_a_client_says_of_itself_is_free_text(self):
        """A secret in the user agent is taken out, an ordinary one stays."""
        for agent, shown in (("curl password=hunter2-x", False), ("curl/8.4 (linux)", True)):
            tapped = Tapped(answer())
            await tapped.ask(headers=[(b"user-agent", agent.encode())])
            assert (tapped.kept.record.source.user_agent == agent) is shown
            assert "hunter2" not in repr(tapped.kept.frames)


class TestRequestId:
    async def test_one_id_is_in_state_header_and_record(self):
        """The application, the client and the auditor have the same one."""
        seen: list[str] = []

        async def app(scope, receive, send):
            seen.append(scope["state"]["request_id"])
            await say(send)

        tapped = Tapped(app)
        sent = await tapped.ask()
        header = dict(sent[0]["headers"])[b"x-request-id"].decode()
        assert [header] == seen == [tapped.kept.record.request.id]

    async def test_the_applications_own_header_stays(self):
        """Whoever sets it knows better; there are not two."""
        tapped = Tapped(answer(headers=[(b"X-Request-ID", b"own")]))
        sent = await tapped.ask()
        assert [v for k, v in sent[0]["headers"] if k.lower() == b"x-request-id"] == [b"own"]

    async def test_none_is_added_without_a_name(self):
        """With an empty setting the head passes as it is."""
        tapped = Tapped(answer(), request_id_header="")
        sent = await tapped.ask()
        assert [name for name, _ in sent[0]["headers"]] == [b"content-type"]


class TestPath:
    def routed(self, route: str, **parameters: Any) -> Any:
        class Route:
            path = route

        async def app(scope, receive, send):
            scope.update(route=Route(), path_params=parameters)
            await say(send)

        return app

    @pytest.mark.parametrize(
        ("path", "route", "token", "shown"),
        [
            ("/password-reset/abc123", "/password-reset/{token}", "abc123",
             "/password-reset/[REDACTED]"),
            ("/reset/a/b/c", "/reset/{token:path}", "a/b/c", "/reset/[REDACTED]"),
            ("/reset/ABC-1.zip", "/reset/{token}.zip", "ABC-1", "/reset/{token}.zip"),
            ("/reset/0042", "/reset/{token:int}", 42, "/reset/{token:int}"),
        ],
    )  # fmt: skip
    async def test_a_secret_parameter_does_not_stand_in_it(self, path, route, token, shown):
        """Found in the path it is replaced; spelled otherwise, the route's template stands there."""
        tapped = Tapped(self.routed(route, token=token))
        await tapped.ask(path=path)
        assert tapped.kept.record.request.path == shown
        assert all(
            record.request.path == shown
            for kind, record in tapped.kept.frames
            if kind in ("answered", "closed")
        )

    async def test_a_target_that_was_withheld_before_it_was_routed_is_named_then(self):
        """What looks like a token may be an id: the route says so, to whatever was decided before."""
        token = "8f3a9c0d7e6b5a4f3c2d"

        def slow(app):
            async def before(scope, receive, send):
                scope[EXCHANGE]()._takes_long()
                await app(scope, receive, send)

            return before

        tapped = Tapped(self.routed("/orders/{order_id}", order_id=token), slow)
        await tapped.ask(path=f"/orders/{token}", method="DELETE")
        begun, ended = tapped.kept.all("closed")
        assert (begun.phase, begun.target.type, begun.target.id) == ("started", "order", None)
        assert ended.target.id == token

    async def test_nor_in_the_target(self):
        """A parameter that a setting calls secret names no target either."""
        app = self.routed("/invites/{invite_code}", invite_code="abc123")
        tapped = Tapped(app, redact_fields=["invite_code"])
        await tapped.ask(path="/invites/abc123", method="DELETE")
        record = tapped.kept.record
        assert (record.target.type, record.target.id) == ("invite", None)
        assert "abc123" not in record.request.path

    async def test_before_it_is_routed_what_looks_like_a_token_is_withheld(self):
        """In the frame of an action that has only begun nobody knows which segment is secret."""
        tapped = Tapped(self.routed("/reset/{token}", token="x"))
        await tapped.ask(path="/reset/8f3a9c0d7e6b5a4f3c2d")
        (opened,) = tapped.kept.all("opened")
        assert opened.request.path == "/reset/[REDACTED]"

    async def test_nor_does_what_looks_like_a_secret(self):
        """A parameter of an innocent name that holds a credential is none in the target."""
        secret = "ghp_" + "a1B2c3D4e5F6" * 3
        tapped = Tapped(self.routed("/links/{link_id}", link_id=secret))
        await tapped.ask(path=f"/links/{secret}")
        assert tapped.kept.record.target.id is None
        assert secret not in repr(tapped.kept.frames)

    async def test_without_a_route_what_looks_like_a_token_names_no_target(self):
        """The path alone tells no id from a token."""
        tapped = Tapped(answer(status=404))
        await tapped.ask(path="/reset/8f3a9c0d7e6b5a4f3c2d")
        assert "8f3a9c0d7e6b5a4f3c2d" not in repr(tapped.kept.frames)

    async def test_ids_stay(self):
        """What names a thing is what an auditor looks for."""
        path = "/orders/018f4e1c-7d1a-7c3e-9f00-aabbccddeeff"
        tapped = Tapped(self.routed("/orders/{order_id}", order_id=path.rpartition("/")[2]))
        await tapped.ask(path=path)
        assert tapped.kept.record.request.path == path
