"""`otel-audit stream` and `otel-audit map` at the command line, on a real store."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
import uuid

import preloaded
import pytest
from acceptance.servers import BIN
from click.testing import CliRunner
from otel_audit_postgres.pseudonyms import EncryptedValue
from stream_receiver import lines_of

from otel_audit.cli.main import cli
from otel_audit.record import Actor


@pytest.fixture
def run(log, tmp_path, monkeypatch):
    """Types a command, in a process of its own as far as its event loop is concerned."""
    monkeypatch.setenv("OTEL_AUDIT_DSN", log.dsn)
    monkeypatch.chdir(tmp_path)

    async def typed(*arguments, text=None):
        return await asyncio.to_thread(CliRunner().invoke, cli, list(arguments), input=text)

    return typed


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "streams.toml"
    path.write_text('[streams.siem]\nkind = "file"\npath = "out.ndjson"\n')
    return path


def events(tmp_path):
    return lines_of(tmp_path / "out.ndjson")


ONCE = ("stream", "run", "--config", "streams.toml", "--state", "state", "--once")


async def test_history_is_sent_only_after_a_question(log, run, file, tmp_path):
    """What was sent cannot be taken back."""
    await log.write(3)
    await log.seal()
    asked = await run(*ONCE, "--from", "start", text="n\n")
    assert asked.exit_code == 1
    assert "send 3 leaves of history to each new stream?" in asked.output
    assert not (tmp_path / "out.ndjson").exists()
    done = await run(*ONCE, "--from", "1", text="y\n")
    assert done.exit_code == 0, done.output
    assert [event["leaf"] for event in events(tmp_path)] == [1, 2]
    assert "siem: sent 2, parked 0, at leaf 3 of 3" in done.output
    for begin, said in (("99", "the log has 3 leaves"), ("never", "not a leaf's number")):
        refused = await run(*ONCE, "--from", begin)
        assert (refused.exit_code, said in refused.output) == (2, True)
    silent = await run(*ONCE, "--from", "start", "--json")
    assert (silent.exit_code, "give --yes" in silent.output) == (2, True)


async def test_status_pause_resume_rewind_parked_test(log, run, file, tmp_path):
    """Each says what it did, in words and in JSON."""
    await log.write(4)
    await log.seal()
    assert (await run("stream", "status")).output == "no streams: run `otel-audit stream run`\n"
    assert (await run(*ONCE, "--from", "start", "--yes")).exit_code == 0
    (row,) = (await run("stream", "status", "--json")).output.splitlines()
    state = json.loads(row)
    assert (state["stream"], state["to"], state["leaf"], state["of"]) == ("siem", "file", 4, 4)
    assert (state["behind"], state["sent"], state["parked"], state["paused"]) == (0, 4, 0, False)
    assert "siem" in (await run("stream", "status")).output
    assert (await run("stream", "pause", "siem")).output == "siem: paused\n"
    assert (await run("stream", "pause", "siem")).output == "siem: was so already\n"
    assert json.loads((await run("stream", "resume", "siem", "--json")).output)["changed"]
    no = await run("stream", "rewind", "siem", "--to-leaf", "1", "--reason", "lost", text="n\n")
    assert no.exit_code == 1
    yes = await run("stream", "rewind", "siem", "--to-leaf", "1", "--reason", "lost", "--yes")
    assert yes.output == "siem: at leaf 1\n"
    assert (await run("stream", "parked", "siem")).output == "nothing is parked\n"
    assert "recorded audit.destination.tested" in (await run("stream", "test", "siem")).output
    await log.seal()
    await run(*ONCE)
    names = [event["record"]["event_name"] for event in events(tmp_path)]
    assert names[-1] == "audit.destination.tested"
    for command in ("pause", "parked", "test"):
        unknown = await run("stream", command, "nobody")
        assert unknown.exit_code == 1
        assert "there is no stream nobody" in unknown.output


async def test_a_parked_event_is_exit_status_1_and_cannot_steer_a_terminal(
    log, run, tmp_path, receiver
):
    """With --once; the list shows what the destination said as visible text."""
    from otlp_receiver import Answer

    await log.write(1, actor=Actor(id="\x1b]0;owned\x07", type="user"))
    await log.seal()
    (tmp_path / "streams.toml").write_text(
        f'[streams.siem]\nkind = "otlp"\nendpoint = "{receiver.url}"\n'
    )
    receiver.decide = lambda _asked: Answer(status=400, body=b"\x1b[31mno\x07")
    done = await run(*ONCE, "--from", "start", "--yes")
    assert done.exit_code == 1
    assert "some events were refused and are parked" in done.output
    listed = await run("stream", "parked", "siem")
    assert "status 400: \\u{1b}[31mno\\u{7}" in listed.output
    assert "\x1b" not in listed.output + done.output
    parked = json.loads((await run("stream", "parked", "siem", "--json")).output)
    assert (parked["leaf"], parked["reason"]) == (0, "status 400: \\u{1b}[31mno\\u{7}")


async def test_only_takes_one_of_several(log, run, tmp_path):
    """And says so where there is none of that name."""
    await log.write(1)
    await log.seal()
    (tmp_path / "streams.toml").write_text(
        '[streams.a]\nkind = "file"\npath = "out.ndjson"\n'
        '[streams.b]\nkind = "file"\npath = "b.ndjson"\n'
    )
    assert (await run(*ONCE, "--only", "a", "--from", "start", "--yes")).exit_code == 0
    assert not (tmp_path / "b.ndjson").exists()
    wrong = await run(*ONCE, "--only", "c")
    assert (wrong.exit_code, "has no stream 'c'" in wrong.output) == (2, True)


async def test_a_refused_position_is_exit_status_1(log, run, file, connection):
    """The message says what to do; a stream that runs for ever ends with it, too."""
    await log.write(2)
    await log.seal()
    assert (await run(*ONCE, "--from", "start", "--yes")).exit_code == 0
    await connection.execute("UPDATE audit.streams SET next_leaf = 50")
    done = await run(*ONCE)
    assert done.exit_code == 1
    assert "its position lies ahead" in done.output
    assert "otel-audit stream rewind siem --to-leaf LEAF" in done.output
    ended = await asyncio.to_thread(preloaded.run, *ONCE[:-1])
    assert ended.returncode == 1
    assert "its position lies ahead" in ended.stderr


async def test_sigterm_ends_it_in_order(log, run, file, tmp_path):
    """Exit status 0, and a line that says how far it was."""
    await log.write(2)
    await log.seal()
    command = [str(BIN / "otel-audit"), *ONCE[:-1], "--from", "start", "--yes", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    until = time.monotonic() + 60
    while len(events(tmp_path)) < 2:
        assert time.monotonic() < until
        await asyncio.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = await asyncio.to_thread(process.communicate, None, 60)
    assert process.returncode == 0
    said = json.loads(output)
    assert (said["stream"], said["error"]) == ("siem", None)


async def test_map_tells_a_records_place_in_the_log(log, run, administrator):
    """Nothing before it is sealed; then its leaf; and whether it is still what was sealed."""
    await log.write(2)
    await log.seal()
    (record_id,) = await log.write(1)

    async def shown():
        return json.loads((await run("map", record_id, "--to", "native", "--json")).output)

    before = await shown()
    assert (before["leaf"], before["log"]) == (None, "")
    # the look is a record, too, and sealed after it
    await log.seal()
    sealed = await shown()
    assert (sealed["leaf"], sealed["log"]) == (2, "audit.example.com/log")
    assert "is_as_sealed" not in sealed
    await administrator.does(
        "UPDATE audit.audit_logs SET recorded_at = recorded_at - interval '1 s' WHERE id = $1",
        uuid.UUID(record_id),
    )
    altered = await shown()
    assert (altered["leaf"], altered["is_as_sealed"]) == (2, False)


async def test_map_shows_encrypted_values_as_a_stream_does(log, run):
    """Their pseudonyms, and not what is decrypted with a key."""
    value = EncryptedValue(b"p" * 12, b"k" * 8, b"box").text()
    (record_id,) = await log.write(1, actor=Actor(id=value, type="user"))
    shown = json.loads((await run("map", record_id, "--to", "native", "--json")).output)
    assert shown["record"]["actor"]["id"] == value[:20]
    assert value.startswith(value[:20] + ".")


@pytest.mark.parametrize("shape", ["native", "ocsf", "ocsf-1.1.0", "ecs", "cloudevents", "fhir"])
async def test_map_shows_a_record_in_a_shape(log, run, shape):
    """As JSON, indented; with --json on one line."""
    (record_id,) = await log.write(1, actor=Actor(id="\x1b[2J", type="user"))
    shown = await run("map", record_id, "--to", shape)
    assert shown.exit_code == 0, shown.output
    assert record_id in json.dumps(json.loads(shown.output))
    assert "\x1b" not in shown.output
    line = (await run("map", record_id, "--to", shape, "--json")).output
    assert len(line.splitlines()) == 1


async def test_map_says_what_is_wrong(log, run):
    """An unknown shape, and an unknown record."""
    assert "is not a shape: one of native" in (await run("map", "x", "--to", "cef")).output
    unknown = await run("map", "01890a5d-ac96-774b-bcce-b302099a8057", "--to", "ecs")
    assert unknown.exit_code == 1
    assert "there is no record 01890a5d" in unknown.output
