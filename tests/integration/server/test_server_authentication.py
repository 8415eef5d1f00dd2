"""Who may send: tokens, what they are bound to, and when they end."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta

import httpx
import preloaded
import pytest
from sinks import request, serving, span

from otel_audit.server.credentials import new_token


def send(sink, token, *spans, service="orders"):
    headers = {"Content-Type": "application/x-protobuf"}
    if token is not None:
        headers["Authorization"] = token
    return httpx.post(
        f"{sink.url}/v1/traces", content=request(*spans, service=service), headers=headers,
        timeout=30,
    )  # fmt: skip


class TestTokens:
    @pytest.mark.parametrize(
        "header",
        [None, "", "Bearer", "Bearer wrong", "Basic dXNlcjpwYXNz", "Bearer " + "x" * 9000,
         "Bearer \xe9\xff"],
    )  # fmt: skip
    async def test_without_the_right_one_nothing_is_taken(
        self, shared, shared_store, actor, header
    ):
        answer = send(shared, None if header is None else header.encode("latin-1"),
                      span(1, audit__actor__id=actor))  # fmt: skip

        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert b"token" in answer.content
        assert await shared_store.rows(actor) == []

    def test_the_scheme_may_be_written_as_one_likes(self, shared):
        assert send(shared, f"bEARER  {shared.token}", span(1)).status_code == 200

    def test_the_file_holds_no_token(self, tmp_path):
        file = tmp_path / "tokens.toml"

        made = _cli("serve", "token", "new", "gateway", "--file", str(file), "--days", "7")

        token = made.stdout.strip()
        assert token.startswith("otas_")
        assert len(token) == 48
        assert token not in file.read_text()
        assert token not in made.stderr
        assert file.stat().st_mode & 0o777 == 0o600

    async def test_tokens_come_and_go_while_the_sink_runs(self, tmp_path, stored, actor):
        """Rotation: both are let in for a while, then the new one alone."""
        with serving(tmp_path, stored.dsn) as sink:
            file = tmp_path / "tokens.toml"
            old_lines = file.read_text()
            secret, new_lines = new_token("test")
            bearer = f"Bearer {secret}"
            assert send(sink, bearer, span(1)).status_code == 401

            file.write_text(old_lines + new_lines)
            _until(lambda: send(sink, bearer, span(1)).status_code == 200)
            assert sink.traces(request(span(2))).status_code == 200

            file.write_text(new_lines)
            _until(lambda: sink.traces(request(span(3))).status_code == 401)
            assert send(sink, bearer, span(3)).status_code == 200

            file.write_text("[[token]]\nname = ")
            while "Earlier credentials stay in force" not in sink.output:
                assert send(sink, bearer, span(4)).status_code == 200
                time.sleep(0.05)
            assert send(sink, bearer, span(4)).status_code == 200

    def test_on_sighup_the_file_is_read_at_once(self, tmp_path, stored):
        import signal

        with serving(tmp_path, stored.dsn) as sink:
            assert sink.traces(request(span(1))).status_code == 200
            secret, lines = new_token("other")
            (tmp_path / "tokens.toml").write_text(lines)
            sink.process.send_signal(signal.SIGHUP)
            # without any request, with which the file is looked at otherwise
            _until(lambda: "Credentials were read again" in sink.output)
            assert send(sink, f"Bearer {secret}", span(1)).status_code == 200

    def test_an_expired_one_is_refused_by_name(self, tmp_path, stored):
        past = datetime.now(UTC) - timedelta(seconds=5)
        with serving(tmp_path, stored.dsn, token={"expires": past}) as sink:
            answer = sink.traces(request(span(1)))

        assert answer.status_code == 401
        assert b"'test' has expired" in answer.content


class TestBound:
    async def test_to_a_tenant(self, tmp_path, stored, actor):
        """Another tenant's record goes to quarantine, loudly; one without a tenant is its own."""
        with serving(tmp_path, stored.dsn, token={"tenant": "acme"}) as sink:
            answer = sink.traces(
                request(
                    span(1, audit__actor__id=actor, audit__tenant__id="acme"),
                    span(2, audit__actor__id=actor, audit__tenant__id="globex"),
                    span(3, audit__actor__id=actor),
                )
            )
            health = sink.client.get("/health").json()
            output = sink.output

        assert answer.status_code == 200
        assert [row["tenant_id"] for row in await stored.rows(actor)] == ["acme", "acme"]
        (kept,) = await stored.quarantine(actor)
        assert kept["reason"] == "token:test may not send for another tenant than its own"
        assert "globex" in kept["received"]
        assert health["quarantined"] == {"foreign_tenant": 1}
        assert "token:test may not send for another tenant" in output

    async def test_to_a_service(self, tmp_path, stored, actor):
        with serving(tmp_path, stored.dsn, token={"service": "orders"}) as sink:
            bearer = f"Bearer {sink.token}"
            told = {"audit__actor__id": actor}
            assert send(sink, bearer, span(1, **told)).status_code == 200
            assert send(sink, bearer, span(2, **told), service="payroll").status_code == 200

        assert [row["service_name"] for row in await stored.rows(actor)] == ["orders"]
        (kept,) = await stored.quarantine(actor)
        assert "another service" in kept["reason"]

    async def test_a_sender_cannot_say_who_received_it_or_when(self, shared, shared_store, actor):
        forged = span(
            1, audit__actor__id=actor, audit__received__by="token:admin", received="x",
            recorded_at="2001-01-01T00:00:00Z", audit__recorded_at="2001-01-01T00:00:00Z",
        )  # fmt: skip

        assert shared.traces(request(forged)).status_code == 200
        (row,) = await shared_store.rows(actor)
        assert row["received_by"] == "token:test"
        assert row["recorded_at"].year > 2020
        assert "2001" not in row["payload"]


class TestStart:
    def test_without_any_authentication_it_does_not_start(self, stored):
        ended = _cli("serve", environment={"OTEL_AUDIT_DSN": stored.dsn})

        assert ended.returncode == 1
        assert "anybody could write the audit trail" in ended.stderr

    def test_an_open_door_to_the_world_must_be_asked_for_by_name(self, stored):
        ended = _cli("serve", "--host", "0.0.0.0", "--insecure-no-auth",
                     environment={"OTEL_AUDIT_DSN": stored.dsn})  # fmt: skip

        assert ended.returncode == 1
        assert "--insecure-no-auth=anywhere" in ended.stderr

    async def test_without_authentication_on_this_machine(self, tmp_path, stored, actor):
        with serving(tmp_path, stored.dsn, "--insecure-no-auth", no_token=True) as sink:
            assert send(sink, None, span(1, audit__actor__id=actor)).status_code == 200

        (row,) = await stored.rows(actor)
        assert row["received_by"] == "nobody"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "holds neither"),
            ("[[token]]\nname = 'a'\nsha256 = 'abc'\n", "must be 64 lower-case hex digits"),
            ("[[token]]\nname = 'a'\n", "sha256"),
            ("[[token]]\nname = 'a'\nsecret = 'b'\n", "token"),
            ("[[certificate]]\nname = 'a'\n", "give either subject or san"),
            ("not toml", "SERVE_TOKENS_FILE"),
        ],
    )
    def test_a_file_that_is_wrong_is_named(self, tmp_path, stored, text, message):
        file = tmp_path / "tokens.toml"
        file.write_text(text)
        ended = _cli("serve", "--tokens", str(file), environment={"OTEL_AUDIT_DSN": stored.dsn})

        assert ended.returncode == 1
        assert message in ended.stderr
        assert "Traceback" not in ended.stderr

    def test_a_file_that_others_may_write_is_refused(self, tmp_path, stored):
        file = tmp_path / "tokens.toml"
        file.write_text(new_token("a")[1])
        file.chmod(0o666)

        ended = _cli("serve", "--tokens", str(file), environment={"OTEL_AUDIT_DSN": stored.dsn})

        assert ended.returncode == 1
        assert "chmod go-w" in ended.stderr


def _cli(*arguments, environment=None):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    return preloaded.run(*arguments, env={**clean, **(environment or {})})


def _until(happens, timeout=60.0):
    deadline = time.monotonic() + timeout
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)
