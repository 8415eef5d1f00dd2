"""The command line as people use it: tables that fit, panels, forms, short ids, and following."""

from __future__ import annotations

import asyncio
import csv
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result
from ledger_store import Log
from otel_audit_postgres import PostgresSink
from otel_audit_postgres.query.grammar import parse

from otel_audit._util.ids import uuid7
from otel_audit.cli import terminal
from otel_audit.cli.follow import Tail
from otel_audit.cli.main import cli
from otel_audit.record import Actor, AuditRecord, Change, Request, Response, Source
from otel_audit.testing import make_record

PLACED = "2026-11-20T10:00:00Z"
START = 1_795_168_800 * 10**9
"""The same in nanoseconds."""
ADA = Actor(
    id="0a68df04-5b86-480e-a59c-656204a36782", type="user", email="ada@acme.example",
    verified=True, source="jwt",
)  # fmt: skip

Run = Callable[..., Result]


def record(number: int, event: str, **fields: object) -> AuditRecord:
    """A record of one request, so many seconds after the start; ids are fixed."""
    at = START + number * 10**9
    identity = f"{at // 10**6 >> 16:08x}-{at // 10**6 & 0xFFFF:04x}-7000-8000-{number:012x}"
    plain: dict[str, object] = {
        "record_id": identity, "action_id": identity, "occurred_at": at, "actor": ADA,
        "tenant": "acme", "target": "order:7", "resource": {"service.name": "shop"},
        "source": Source(address="192.0.2.7", session_id="s-1"),
        "request": Request(id=f"request-{number}", method="POST", path="/orders/7/pay"),
        "response": Response(status_code=200),
    }  # fmt: skip
    return make_record(event, **{**plain, **fields})


def paid(before: str, after: str) -> Change:
    return Change(
        operation="update", entity="Order", table="orders", key={"id": 7},
        values={"state": [before, after]},
    )  # fmt: skip


RECORDS = (
    record(1, "order.created"),
    record(2, "order.paid", phase="intent", outcome="unknown", response=None),
    record(3, "order.paid", action_id=record(2, "x").record_id, changes=(paid("open", "paid"),),
           transaction="committed"),
    record(4, "order.cancelled", outcome="failure", response=Response(status_code=503)),
    record(5, "stock.counted", target="stock:1", resource={"service.name": "depot"},
           request=Request(method="GET", path="/stock"), source=None),
    record(6, "audit.process.started", actor="shop", target=None, request=None, source=None,
           response=None),
)  # fmt: skip
EVENTS = [one.event_name for one in RECORDS]


async def write(dsn: str, *records: AuditRecord) -> None:
    sink = PostgresSink(dsn)
    try:
        assert (await sink.write(list(records))).stored == len(records)
    finally:
        await sink.close()


@pytest.fixture
async def shop(audit_store: str) -> str:
    await write(audit_store, *RECORDS)
    return audit_store


@pytest.fixture
def run(shop: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("OTEL_AUDIT_DSN", shop)
    monkeypatch.setenv("OTEL_AUDIT_RECORD_VIEWS", "off")

    def call(*arguments: str, status: int = 0) -> Result:
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == status, done.output
        return done

    return call


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody looks at a screen of 80 columns."""
    monkeypatch.setattr(terminal, "screen_width", lambda: 80)


def events(run: Run, *arguments: str) -> list[str]:
    found = run("search", "--oldest-first", "--json", *arguments).stdout.splitlines()
    return [json.loads(line)["event_name"] for line in found]


class TestWrongUse:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("search", "actr:x"), "did you mean actor:?"),
            (("search", "--status", "many"), "is not a status"),
            (("search", "--after", "x"), "not a place that a page before gave"),
            (("stats", "actr:x"), "did you mean actor:?"),
            (("show", "01a2"), "01a2 is not a record's id"),
            (("prove", "01a2"), "01a2 is not a record's id"),
        ],
    )
    def test_ends_with_status_2(self, run, arguments, message):
        """A query or an id that cannot be read is wrong use, not a missing store."""
        assert message in run(*arguments, status=2).output

    def test_an_error_names_the_option_that_was_given(self, run):
        """The DSN came with --dsn, so that is what to correct."""
        nowhere = "postgresql://postgres@127.0.0.1:1/x"
        output = run("search", "--dsn", nowhere, status=1).output
        assert "--dsn" in output
        assert "OTEL_AUDIT_DSN" not in output


class TestSearch:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ((), EVENTS[:5]),
            (("--audit-events",), EVENTS),
            (("event:audit.*",), EVENTS[5:]),
            (("--event", "audit.process.started"), EVENTS[5:]),
            (("--email", "ada@acme.example", "--service", "depot"), ["stock.counted"]),
            (("--service", "depot", "--service", "shop"), EVENTS[:5]),
            (("--status", "5xx"), ["order.cancelled"]),
            (("--status", ">=500", "--status", "404"), ["order.cancelled"]),
            (("--event", "order.*", "--phase", "intent"), ["order.paid"]),
            (("--method", "GET"), ["stock.counted"]),
            (("--path", "/stock*"), ["stock.counted"]),
            (("--session", "s-1", "--outcome", "failure"), ["order.cancelled"]),
            (("--changed", "state"), ["order.paid"]),
            (("--request-id", "request-4"), ["order.cancelled"]),
            (("/orders/7/pay", "-event:order.paid"), ["order.created", "order.cancelled"]),
            (("--since", PLACED, "--until", "2026-11-20T10:00:02Z"), ["order.created"]),
        ],
    )
    def test_finds_by_every_field_that_people_know(self, run, arguments, expected):
        """Options, repeated ones as any of; our own events only if they are asked for."""
        assert events(run, *arguments) == expected

    def test_wrong_values_are_wrong_use(self, run):
        """A status and a time that are none, and options that exclude each other."""
        assert "not a status" in run("search", "--status", "9yy", status=2).output
        assert "not a time" in run("search", "--since", "soon", status=2).output
        assert "--follow goes with" in run("search", "--follow", "--all", status=2).output

    def test_all_pages_are_shown_on_request(self, run):
        """Page after page, without being told where each begins."""
        assert len(run("search", "--limit", "2", "--json").stdout.splitlines()) == 2
        assert len(run("search", "--all", "--json").stdout.splitlines()) == 5

    def test_every_form_has_the_same_records(self, run):
        """One list, an object a line, and CSV with a heading."""
        listed = json.loads(run("search", "--format", "json").stdout)
        lines = run("search", "--format", "ndjson").stdout.splitlines()
        rows = list(csv.DictReader(io.StringIO(run("search", "--format", "csv").stdout)))
        assert [json.loads(line) for line in lines] == listed
        assert [row["id"] for row in rows] == [one["id"] for one in listed]
        assert rows[0]["actor_email"] == "ada@acme.example"
        assert json.loads(run("search", "--event", "no.such", "--format", "json").stdout) == []

    def test_a_cell_is_no_formula(self, run, shop):
        """A spreadsheet that opens the CSV runs nothing."""
        evil = record(7, "order.seen", actor=Actor(id="=1+1", type="user"))
        asyncio.run(write(shop, evil))
        rows = run("search", "--event", "order.seen", "--format", "csv").stdout
        assert ",'=1+1," in rows

    def test_a_table_fits_the_screen(self, run, screen):
        """Within 80 columns, with short ids, e-mails, days apart, and one line for an action."""
        lines = run("search").output.splitlines()
        assert max(map(len, lines)) <= 80
        assert lines[1] == "2026-11-20 UTC"
        (line,) = (line for line in lines if "order.paid" in line)
        assert "+intent" in line
        assert "ada@acme" in line
        assert "failed 503" in next(line for line in lines if "order.cancelled" in line)
        assert str(RECORDS[0].record_id) not in "".join(lines)

    def test_an_intent_alone_says_so(self, run, screen):
        """What was begun, and of whose end nothing is known."""
        assert "unknown intent" in run("search", "--phase", "intent").output

    def test_elsewhere_nothing_is_cut(self, run):
        """In a pipe ids and times are whole."""
        output = run("search").output
        assert str(RECORDS[0].record_id) in output
        assert "2026-11-20T10:00:01.000Z" in output

    def test_times_are_local_on_request(self, run, monkeypatch):
        """With their offset."""
        monkeypatch.setenv("TZ", "Asia/Kathmandu")
        time.tzset()
        try:
            output = run("search", "--local").output
        finally:
            monkeypatch.undo()
            time.tzset()
        assert "2026-11-20T15:45:01.000+05:45" in output


class TestShow:
    def test_is_a_panel(self, run, screen):
        """Who, when in ISO 8601, what, before -> after, and the other records of the action."""
        output = run("show", RECORDS[2].record_id).output
        assert max(map(len, output.splitlines())) <= 80
        assert "ada@acme.example" in output
        assert "2026-11-20T10:00:03.000Z" in output
        assert "update order:7  state open -> paid" in output
        assert f"intent {RECORDS[1].record_id}" in " ".join(re.sub("[│\n ]+", " ", output).split())

    def test_takes_the_beginning_of_an_id(self, run):
        """As search shows it; one that several records have names them."""
        whole = RECORDS[3].record_id
        assert whole in run("show", whole[:13]).output
        assert whole in run("show", whole.replace("-", "")[:20].upper()).output
        many = run("show", whole[:8], status=1).output
        assert "several records" in many
        assert whole in many
        assert "begins with ffffffff" in run("show", "ffffffff", status=1).output
        assert "not a record's id" in run("show", whole[:7], status=2).output

    def test_json_is_the_exact_text(self, run):
        """With the hash beside it."""
        done = run("show", RECORDS[2].record_id, "--json")
        assert json.loads(done.stdout)["changes"][0]["values"] == {"state": ["open", "paid"]}
        assert "content hash" in done.stderr


class TestHistory:
    def test_tells_what_changed(self, run):
        """Below each record, before -> after."""
        lines = run("history", "order:7").output.splitlines()
        (place,) = (place for place, line in enumerate(lines) if "update" in line)
        assert lines[place] == "    update  state open -> paid"
        assert "order.paid" in lines[place - 1]

    def test_json_has_the_exact_text(self, run):
        """As payload, beside the record in short."""
        lines = run("history", "order:7", "--json").stdout.splitlines()
        found = [json.loads(line) for line in lines]
        assert [one["event_name"] for one in found] == EVENTS[:4]
        assert found[2]["payload"]["record_id"] == found[2]["id"]


class TestStats:
    def test_actors_have_names(self, run):
        """By e-mail, where their records say it."""
        output = run("stats", "--since", PLACED, "--by", "actor").output
        assert f"{ADA.id} (ada@acme.example)  5" in output
        found = json.loads(run("stats", "--since", PLACED, "--by", "actor", "--json").output)
        assert found["emails"] == {ADA.id: "ada@acme.example"}


class TestLooks:
    async def test_a_question_about_a_thing_is_found_by_the_thing(self, log, monkeypatch, tmp_path):
        """Whichever way it was put: history, search, all pages, evidence."""
        await write(log.dsn, *RECORDS[:2])
        await log.seal()
        monkeypatch.setenv("OTEL_AUDIT_DSN", log.dsn)
        monkeypatch.chdir(tmp_path)

        def ask() -> tuple[list[str], list[str]]:
            for arguments in (
                ("history", "order:7"), ("search", "--target", "order:7", "--all"),
                ("search", "entity:order:7"), ("prove", "--entity", "order:7"),
                ("prove", RECORDS[0].record_id),
            ):  # fmt: skip
                done = CliRunner().invoke(cli, arguments)
                assert done.exit_code == 0, done.output
            found = []
            for about in ("audit_history:order:7", f"audit_record:{RECORDS[0].record_id}"):
                done = CliRunner().invoke(cli, ["search", "--target", about, "--json"])
                found.append([json.loads(line)["id"] for line in done.stdout.splitlines()])
            return found[0], found[1]

        of_thing, of_record = await asyncio.to_thread(ask)
        assert (len(of_thing), len(of_record)) == (4, 1)


def now(event: str) -> AuditRecord:
    return make_record(event, record_id=uuid7(), occurred_at=time.time_ns())


def following(dsn: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "otel_audit", "search", "--follow", "--json", *arguments],
        env={**os.environ, "OTEL_AUDIT_DSN": dsn, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class TestTail:
    async def test_begins_with_all_of_the_past(self, log: Log, connection, monkeypatch):
        """However many records that is, the oldest first; what comes meanwhile is shown once."""
        monkeypatch.setattr("otel_audit.cli.follow._MOST", 4)
        ids = [one.record_id for one in RECORDS[:5]]
        await write(log.dsn, *RECORDS[:5])
        tail = Tail(parse(f"time:>={PLACED} -event:audit.*"))
        await tail.begin(connection)
        shown = []
        async for lines in tail.past(connection):
            shown += [str(line.found.id) for line in lines]
            if len(shown) == 4:
                late = now("order.late")
                await write(log.dsn, late)
        assert shown == [*sorted(ids), late.record_id]
        await log.seal()
        newest = now("order.newest")
        await write(log.dsn, newest)
        shown = []
        while not shown or tail.is_behind:
            shown += [str(line.found.id) for line in await tail.read(connection)]
        assert newest.record_id in shown
        assert not {*ids, late.record_id} & {*shown}
        looks = await connection.fetch(
            "SELECT payload -> 'metadata' ->> 'records' AS n FROM audit.audit_logs "
            "WHERE event_name = 'audit.viewed' ORDER BY id"
        )
        assert [look["n"] for look in looks] == ["4", "2"]


@pytest.mark.slow
class TestFollow:
    async def test_shows_what_is_stored_and_what_comes(self, log: Log):
        """Each record once, sealed meanwhile or not; one look for all; Ctrl-C is no failure."""
        await write(log.dsn, *RECORDS[:5])
        process = following(log.dsn, "--since", PLACED, "--event", "order.*")
        assert process.stdout is not None

        async def shown(count: int) -> list[str]:
            async with asyncio.timeout(60):
                lines = [await asyncio.to_thread(process.stdout.readline) for _ in range(count)]
            return [json.loads(line)["event_name"] for line in lines]

        try:
            assert await shown(4) == EVENTS[:4]
            await write(log.dsn, now("order.seen"))
            assert await shown(1) == ["order.seen"]
            await write(log.dsn, now("stock.seen"))
            await write(log.dsn, now("order.sealed"))
            await log.seal()
            await write(log.dsn, now("order.last"))
            assert await shown(2) == ["order.sealed", "order.last"]
        finally:
            process.send_signal(signal.SIGINT)
            rest, said = await asyncio.to_thread(process.communicate, timeout=60)
        assert (process.returncode, rest) == (0, ""), said
        done = await asyncio.to_thread(
            CliRunner().invoke, cli, ["search", "event:audit.viewed", "--json"],
            env={"OTEL_AUDIT_DSN": log.dsn},
        )  # fmt: skip
        assert len(done.stdout.splitlines()) == 1


@pytest.mark.slow
class TestTerminal:
    def test_what_was_rolled_back_is_marked(self, shop):
        """A 200 whose COMMIT failed is a failure, and the list shows why."""
        undone = record(7, "order.paid", outcome="failure", transaction="rolled_back")
        asyncio.run(write(shop, undone))
        output = typed(shop, "search", "outcome:failure")
        assert "failed 200 ↺" in output
        assert "failed 503 ↺" not in output

    def test_a_real_one_has_colours_and_is_not_overrun(self, shop):
        """80 columns wide."""
        output = typed(shop, "search", "--outcome", "failure")
        assert "\x1b[31mfailed 503\x1b[0m" in output
        plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
        assert max(map(len, plain.splitlines())) <= 80

    def test_an_encoding_that_lacks_a_character_is_no_failure(self, shop):
        """What cannot be shown is shown by its number."""
        asyncio.run(write(shop, record(8, "order.seen", target="order:\u0142\u00f3d\u017a")))
        done = subprocess.run(
            [sys.executable, "-m", "otel_audit", "search", "--event", "order.seen"],
            env={**os.environ, "OTEL_AUDIT_DSN": shop, "PYTHONIOENCODING": "latin-1"},
            capture_output=True, encoding="latin-1", check=True,
        )  # fmt: skip
        assert "order:\\u0142\u00f3d\\u017a" in done.stdout


def typed(dsn: str, *arguments: str) -> str:
    """What a terminal of 80 columns gets."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "otel_audit", *arguments],
        env={**environment, "OTEL_AUDIT_DSN": dsn, "TERM": "xterm"},
        stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs)
    output = b""
    try:
        while chunk := os.read(ours, 65536):
            output += chunk
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(ours)
        assert process.wait(60) == 0
    return output.decode().replace("\r\n", "\n")
