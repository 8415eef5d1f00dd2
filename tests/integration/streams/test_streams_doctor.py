"""`otel-audit doctor` looks at each stream: ahead, behind, paused, parked."""

from __future__ import annotations

import asyncio
import json
import uuid

import pytest
from click.testing import CliRunner
from otel_audit_postgres import stream_positions, streams_health
from otel_audit_postgres.schema.install import init
from otlp_receiver import Answer

from otel_audit.cli.main import cli


@pytest.fixture
def looked(log):
    """Looks, and gives what was found of streams: by its name, whether it is well, and what."""

    async def look(*options: str) -> dict[str, tuple[bool | None, str, str]]:
        done = await asyncio.to_thread(
            CliRunner().invoke, cli, ["doctor", "--json", "--dsn", log.dsn, *options]
        )
        return {
            one["name"]: (one["ok"], one["detail"], one["remedy"])
            for one in json.loads(done.stdout)
            if one["name"].startswith("stream")
        }

    return look


def to(receiver):
    return 'kind = "otlp"', f'endpoint = "{receiver.url}"'


async def test_no_stream_no_word(looked):
    """A store without streams is none that lacks them."""
    assert await looked() == {}


async def test_one_that_is_up_to_date(log, stream_to, receiver, looked):
    """How far it is."""
    await log.write(3)
    await log.seal()
    await stream_to(*to(receiver)).run_once()
    assert await looked() == {"stream siem": (True, "at leaf 3 of 3", "")}


async def test_one_that_is_behind(log, stream_to, receiver, looked, monkeypatch):
    """By more than some minutes: a warning, with how long, and that it may not run."""
    await stream_to(*to(receiver)).run_once()
    await log.write(3)
    await log.seal()
    ok, _, _ = (await looked())["stream siem"]
    assert ok is True
    monkeypatch.setattr(streams_health, "LATE", 0.0)
    ok, detail, remedy = (await looked())["stream siem"]
    assert ok is None
    assert detail.startswith("is 4 leaves behind; the oldest was sealed 0 minutes ago")
    assert "`otel-audit stream run` runs" in remedy


async def test_one_that_is_paused(log, stream_to, receiver, connection, looked):
    """Somebody may have forgotten it."""
    await log.write(2)
    await log.seal()
    await stream_to(*to(receiver)).run_once()
    await stream_positions.pause(connection, "siem", paused=True)
    ok, detail, remedy = (await looked())["stream siem"]
    assert (ok, detail) == (None, "is paused, 0 leaves behind")
    assert remedy == "otel-audit stream resume siem"


async def test_one_whose_destination_refuses(log, stream_to, receiver, connection, looked):
    """Until it was rewound past what is parked, and that was taken."""
    await log.write(2)
    await log.seal()
    receiver.decide = lambda _asked: Answer(status=422)
    await stream_to(*to(receiver)).run_once()
    ok, detail, remedy = (await looked())["stream siem"]
    assert (ok, detail) == (None, "its destination refused 2 records, which are parked")
    assert "otel-audit stream parked siem" in remedy
    receiver.decide = lambda _asked: Answer()
    await stream_positions.rewind(connection, "siem", 0, "the index is mended")
    await stream_to(*to(receiver)).run_once()
    ok, _, _ = (await looked())["stream siem"]
    assert ok is True


async def test_one_that_is_ahead_of_the_log(log, stream_to, receiver, connection, looked):
    """As after a restore: a failure, with the command that says from where to go on."""
    await log.write(2)
    await log.seal()
    await stream_to(*to(receiver)).run_once()
    await connection.execute("UPDATE audit.streams SET next_leaf = 9")
    ok, detail, remedy = (await looked())["stream siem"]
    assert ok is False
    assert detail.startswith("its position lies ahead: leaves up to 8 were sent")
    assert "otel-audit stream rewind siem" in remedy


async def test_a_writer_cannot_see_them(log, postgres, stream_to, receiver, looked):
    """It says so, and sees them by --reader-dsn."""
    writer, reader = (f"role_{uuid.uuid4().hex[:8]}" for _ in range(2))
    await postgres.execute(f"CREATE ROLE {writer} LOGIN", f"CREATE ROLE {reader} LOGIN")
    await init(log.dsn, roles=True, writer=writer, reader=reader)
    await stream_to(*to(receiver)).run_once()
    scheme, _, rest = log.dsn.partition("://")

    def named(role: str) -> str:
        return f"{scheme}://{role}@{rest.partition('@')[2]}"

    assert await looked("--dsn", named(writer)) == {
        "streams": (True, "not seen: this role may not read (--reader-dsn)", "")
    }
    assert "stream siem" in await looked("--dsn", named(writer), "--reader-dsn", named(reader))
