from __future__ import annotations

import json
import logging

import pytest
from asgi_app import Tapped, answer, say

import otel_audit


@pytest.fixture
def lines(caplog):
    """What is written on the request log, line by line."""
    caplog.set_level(logging.INFO, logger="otel_audit.requests")
    return lambda: [
        json.loads(found.message) for found in caplog.records if found.name == "otel_audit.requests"
    ]


class TestRequestLog:
    async def test_it_is_off_by_default(self, lines):
        """Nobody's log fills up unasked."""
        await Tapped(answer()).ask()
        assert lines() == []

    async def test_each_request_is_a_line(self, lines):
        """Who, what, from where, how it ended; and the record's id, to find it."""

        async def app(scope, receive, send):
            otel_audit.set_actor("clerk-1")
            otel_audit.set_tenant("acme")
            await say(send, status=201)

        tapped = Tapped(app, request_log=True)
        await tapped.ask()
        (line,) = lines()
        assert line.pop("time").endswith("+00:00")
        assert line.pop("duration_ms") >= 0
        assert line == {
            "event": "order.created", "outcome": "success", "method": "POST", "path": "/orders",
            "http_version": "1.1", "request_id": tapped.kept.record.request.id, "status": 201,
            "actor": "clerk-1", "actor_type": "user", "tenant": "acme", "client": "192.0.2.7",
            "level": "request_response", "record_id": tapped.kept.record.record_id,
        }  # fmt: skip

    async def test_what_is_not_recorded_is_a_line_too(self, lines):
        """The line then names no record."""
        tapped = Tapped(answer(), request_log=True)
        await tapped.ask(method="GET", path="/health")
        (line,) = lines()
        assert (line["path"], line["status"], line["level"]) == ("/health", 200, "none")
        assert "record_id" not in line
        assert tapped.kept.frames == []

    async def test_it_shows_no_secret(self, lines):
        """Query, user agent and error are redacted as in the record; bodies are left out."""

        async def app(scope, receive, send):
            raise RuntimeError("password=hunter2")

        headers = [(b"user-agent", b"curl"), (b"authorization", b"Bearer hunter2")]
        tapped = Tapped(app, request_log=True)
        with pytest.raises(RuntimeError):
            await tapped.ask(b'{"password": "hunter2"}', headers=headers,
                             query_string=b"page=1&token=hunter2")  # fmt: skip
        (line,) = lines()
        assert "hunter2" not in json.dumps(line)
        assert line["query"].startswith("page=1&token=")
        assert (line["error"], line["status"]) == ("RuntimeError", 500)
