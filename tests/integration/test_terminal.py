"""Whatever others have written into the store, no command lets it steer a terminal."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import unicodedata
import uuid
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import click
import pytest
from click.testing import CliRunner, Result
from ledger_store import Administrator
from otel_audit_postgres import PostgresSink, init
from otel_audit_postgres.ledger.keys import generate, write_key_files
from strategies import a_record

from otel_audit import AuditConfig
from otel_audit._util.ids import uuid7
from otel_audit.cli import terminal
from otel_audit.cli.main import cli
from otel_audit.delivery.local_quarantine import LocalQuarantine
from otel_audit.delivery.sink import Refused

SAID = "OK: nothing was tampered with"
EVIL = (
    f"\x1b[2J\x1b[1;1H{SAID}\x1b[8m\r\n{SAID}\n\x07\x08\x7f\x85\x9b31m\u202e\u2066\u200b\u200f"
    "\ufeff\u2028\u2029\u3164[red]\U000e0041"
)
STEERING = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
COLUMNS = (
    "action_id", "parent_action_id", "phase", "event_name", "action", "outcome", "actor_id",
    "actor_type", "actor_reason", "tenant_id", "target_type", "target_id", "source_address",
    "user_agent", "http_route", "error_type", "producer_id", "transaction_outcome", "received_by",
    "schema_version",
)  # fmt: skip
APP = f"""
from fastapi import FastAPI
app = FastAPI()
evil = {EVIL!r}
app.add_api_route("/x[red]\\x1b[2J\\u202e", lambda: 1, methods=["POST"])
broken = None
"""


def problems(output: str) -> list[str]:
    """What in an output steers a terminal, or passes itself off as a line of ours."""
    found = [hex(ord(one)) for one in set(output) if one != "\n" and is_steering(one)]
    return found + [line for line in output.split("\n") if line.startswith(SAID)]


def is_steering(char: str) -> bool:
    return unicodedata.category(char) in STEERING or char == "\u3164"


def run(*arguments: str, **environment: str) -> Result:
    """Run a command; `serve` sets variables for its workers, which here would be everybody's."""
    kept = dict(os.environ)
    try:
        return CliRunner().invoke(cli, [*arguments], env=environment)
    finally:
        os.environ.clear()
        os.environ.update(kept)


@pytest.fixture
async def store(database: str, tmp_path: Path) -> str:
    """A store in which each text that somebody else can write is hostile."""
    await init(database)
    connection = await asyncpg.connect(database)
    known = {
        row[0]
        for row in await connection.fetch(
            "SELECT column_name FROM information_schema.columns "
            "WHERE table_schema = 'audit' AND table_name = 'audit_logs'"
        )
    }
    hostile = {name: EVIL for name in COLUMNS if name in known}
    payloads = (
        json.dumps({"note": EVIL}, ensure_ascii=False),
        json.dumps({"note": EVIL}),
        '{"a": 1e99, "a": "\u009b2J\u202e"}',
    )
    for number, payload in enumerate(payloads):
        row: dict[str, object] = {
            **hostile, "sequence_number": 5 * number + 3, "id": uuid.UUID(uuid7()),
            "payload": payload, "entities": [f"order:{EVIL}", "order:1"], "duration_ms": 1.0,
        }  # fmt: skip
        places = ", ".join(
            f"${place}::{'json' if name == 'payload' else _type(name)}"
            for place, name in enumerate(row, 1)
        )
        await connection.execute(
            f"INSERT INTO audit.audit_logs ({', '.join(row)}, occurred_at, content_hash) VALUES "
            f"({places}, now(), sha256(convert_to(${list(row).index('payload') + 1}::text, 'UTF8')))",
            *row.values(),
        )
    sink = PostgresSink(database)
    await sink.write([a_record(record_id=uuid7(), event_name="e" + EVIL, producer_id=EVIL)])
    await sink.quarantine([Refused(EVIL, EVIL.encode(), EVIL)])
    await sink.close()
    await connection.close()
    return database


def _type(name: str) -> str:
    return {"id": "uuid", "entities": "text[]", "sequence_number": "bigint",
            "duration_ms": "float8"}.get(name, "text")  # fmt: skip


async def tamper(dsn: str) -> str:
    """Change a sealed row; give its id."""
    connection = await asyncpg.connect(dsn)
    found = await connection.fetchval(
        "SELECT id FROM audit.audit_logs WHERE producer_id = $1 ORDER BY id LIMIT 1", EVIL
    )
    await Administrator(connection).does(
        "UPDATE audit.audit_logs SET actor_id = $2, event_name = $2 WHERE id = $1",
        found, EVIL + "!",
    )  # fmt: skip
    await connection.close()
    return str(found)


def names_of(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from names_of(inner, (*path, name))
        if command.invoke_without_command:
            yield " ".join(path)
    else:
        yield " ".join(path)


class TestEveryCommand:
    async def test_shows_what_others_wrote_and_obeys_none_of_it(self, store, tmp_path, monkeypatch):
        """Each command over a hostile store, as text and as JSON, and its errors."""
        monkeypatch.setenv("OTEL_AUDIT_DSN", store)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "shop_with_evil_routes.py").write_text(APP)
        (tmp_path / "doc.json").write_text(json.dumps({"a" + EVIL: EVIL, "password": EVIL}))
        (tmp_path / "streams.toml").write_text('[streams.siem]\nkind = "file"\npath = "out"\n')
        (tmp_path / "evil.toml").write_text(f"[streams.siem]\nkind = {json.dumps(EVIL)}\n")
        write_key_files(generate("log"), tmp_path / "key")
        config = AuditConfig()
        LocalQuarantine(config.spool_path, EVIL[:9], max_bytes=10**6).keep(
            [Refused(EVIL, EVIL.encode(), EVIL), Refused("id-1", b'{"a": "\xc2\x9b"}', EVIL)]
        )

        def everything(record: str) -> list[tuple[str, ...]]:
            return [
                ("search",), ("search", "--json"), ("search", "--event", EVIL), ("stats",),
                ("search", "--after", EVIL), ("stats", "--json"), ("history", "order:1"),
                ("search", "--all"), ("search", "--all", "--format", "json"),
                ("search", "--format", "csv"), ("search", "--local", "--audit-events"),
                ("search", "--oldest-first", "--limit", "2"), ("search", "--follow", "--all"),
                ("search", "--email", EVIL, "--service", EVIL, "--path", EVIL, "--method", EVIL),
                ("search", "--session", EVIL, "--phase", EVIL, "--ip", EVIL, "--error", EVIL),
                ("search", "--status", EVIL), ("search", "--outcome", EVIL), ("search", "--until", EVIL),
                ("search", "--request-id", EVIL, "--trace-id", EVIL, "--changed", EVIL, "--role", EVIL),
                ("history", "order:1", "--format", "csv"), ("history", "order:1", "--all", "--local"),
                ("show", record, "--json"), ("show", record[:13]), ("show", record, "--local"),
                ("show", record[:8]),
                ("history", f"order:{EVIL}"), ("history", "order:1", "--json"), ("history", EVIL),
                ("show", record), ("show", EVIL), ("gaps",), ("gaps", "--since", EVIL),
                ("verify",), ("verify", "--json"), ("verify", "--since", EVIL),
                ("verify", "--report", "report.json"), ("verify", "--key", EVIL),
                ("doctor",), ("doctor", "--app", EVIL), ("doctor", "--app", "shop_with_evil_routes:broken"),
                ("quarantine",), ("quarantine", "--show", EVIL), ("quarantine", "--show", "id-1"),
                ("quarantine", "--service", EVIL), ("quarantine", "--retry"),
                ("prove", record), ("prove", EVIL), ("prove", "--entity", EVIL),
                ("prove", "--entity", "order:1"),
                ("policy", "explain", "POST", "/" + EVIL), ("policy", "routes", EVIL),
                ("policy", "explain", EVIL, "/x", "--actor", EVIL, "--tenant", EVIL),
                ("policy", "routes", "shop_with_evil_routes:app"),
                ("redact", "doc.json"), ("redact", "--explain", "doc.json"), ("redact", EVIL),
                ("redact", "--hash", "doc.json"), ("subject", "pseudonym", EVIL, EVIL, "doc.json"),
                ("relay",), ("relay", "--outbox-dsn", EVIL),
                ("seal", "--once"), ("seal", "--once", "--key-file", EVIL),
                ("seal", "--once", "--anchor", EVIL), ("keygen", "k1", "--name", EVIL),
                ("begin-anchor", EVIL), ("moved",), ("moved", EVIL), ("search", EVIL), ("stats", EVIL),
                ("keygen", EVIL + "/x"), ("init",), ("init", "--dsn", EVIL), ("init", "--sql"),
                ("uninstall", "--dsn", EVIL), ("migrate", "--check"), ("init", "--create", "--dsn", EVIL),
                ("migrate",), ("migrate", "--sql"), ("maintain",), ("maintain", "--ahead", EVIL),
                ("maintain", "--month", EVIL), ("begin-anchor", EVIL),
                ("begin-anchor", "dir:" + EVIL), ("moved",),
                ("serve", "--host", EVIL), ("serve", "--tokens", EVIL),
                ("serve", "token", "new", "n" + EVIL, "--tenant", EVIL, "--service", EVIL),
                ("serve", "token", "new", EVIL, "--file", EVIL + "/x"),
                ("hold", "place", "--matter", EVIL, "--reason", EVIL, "--entity", EVIL),
                ("hold", "place", "--matter", "m", "--reason", EVIL, "--entity", "order:1"),
                ("hold", "list"), ("hold", "list", "--json"), ("hold", "release", EVIL),
                ("hold", "override", EVIL, EVIL), ("hold", "override", record, EVIL),
                ("retention", "plan"), ("retention", "plan", "--file", EVIL),
                ("retention", "run", "--yes"), ("retention", "run", "--archive", EVIL, "--yes"),
                ("retention", "explain", EVIL), ("retention", "explain", record),
                ("retention", "status"), ("retention", "status", "--json"),
                ("retention", "approve", "--file", EVIL, "--yes"),
                ("archive", "list"), ("archive", "list", "--json"), ("archive", "query", EVIL),
                ("archive", "query", "--archive", "file:" + EVIL, "order"),
                ("archive", "register", EVIL), ("archive", "register", "a.b", "--property", EVIL),
                ("archive", "verify"), ("archive", "verify", "--archive", "file:" + EVIL),
                ("archive", "prove", EVIL), ("archive", "prove", record, "--archive", "file:" + EVIL),
                ("archive", "restore", EVIL, "--yes"), ("archive", "restore", "2026-01", "--yes"),
                ("subject", "init", "--kek-file", EVIL + "/x"), ("subject", "replay"),
                ("subject", "export", EVIL), ("subject", "export", "order:1"),
                ("subject", "erase", EVIL, "--basis", EVIL, "--reason", EVIL, "--yes"),
                ("web", "--auth", EVIL), ("web", "--proxy", EVIL, "--auth-header", EVIL),
                ("dev", EVIL), ("dev", "--service", EVIL, EVIL),
                ("run", EVIL), ("run", "--" + EVIL, "x"), ("run", "--service", EVIL, EVIL),
                (EVIL,), ("--" + EVIL,), ("search", "--" + EVIL),
                ("gaps", "--json"), ("gaps", "--quiet-after", EVIL), ("doctor", "--json"),
                ("quarantine", "--json"), ("prove", record, "--json"), ("maintain", "--json"),
                ("prove", record[:13]), ("migrate", "--json"), ("moved", "--json"),
                ("policy", "routes", "shop_with_evil_routes:app", "--json"),
                ("policy", "explain", EVIL, "/x", "--actor", EVIL, "--json"),
                ("redact", "--explain", "--json", "doc.json"), ("seal", "--once", "--json"),
                ("keygen", "k2", "--name", EVIL, "--json"), ("keygen", "k3", "--json"),
                ("serve", "token", "new", "n" + EVIL, "--tenant", EVIL, "--json"),
                ("hold", "override", record, EVIL, "--json"), ("begin-anchor", EVIL, "--json"),
                ("archive", "restore", EVIL, "--json"), ("archive", "prove", record, "--json"),
                ("relay", "--json"), ("subject", "replay", "--json"),
                ("stream", "run", "--config", EVIL), ("stream", "run", "--config", "evil.toml"),
                ("stream", "run", "--config", "streams.toml", "--once", "--only", EVIL),
                ("stream", "run", "--config", "streams.toml", "--once", "--from", EVIL),
                ("stream", "run", "--config", "streams.toml", "--once", "--from", "start", "--yes",
                 "--state", "state"),
                ("stream", "status"), ("stream", "status", "--json"), ("stream", "parked", "siem"),
                ("stream", "parked", EVIL), ("stream", "parked", "siem", "--json"),
                ("stream", "pause", EVIL), ("stream", "pause", "siem"), ("stream", "resume", "siem"),
                ("stream", "resume", EVIL, "--json"), ("stream", "test", EVIL),
                ("stream", "test", "siem", "--json"),
                ("stream", "rewind", EVIL, "--to-leaf", "0", "--reason", EVIL, "--yes"),
                ("stream", "rewind", "siem", "--to-leaf", "0", "--reason", EVIL, "--yes"),
                ("map", record, "--to", "ecs"), ("map", record, "--to", "fhir", "--json"),
                ("map", EVIL, "--to", "ocsf"), ("map", record, "--to", EVIL),
                ("export", EVIL, "--format", "csv", "--out", "x.csv"), ("verify", EVIL),
                ("export", "--format", "ndjson", "--out", EVIL + "/x"),
                ("export", "--format", "json", "--out", "x.json", "--force", "--json"),
                ("report",), ("report", "--json"), ("report", EVIL),
                ("report", "rights", "--from", EVIL, "--to", EVIL),
                ("report", "changes", "--from", "1d", "--to", "now", "--force", "--json"),
                ("report", "incident", "--from", "1d", "--to", "now", "--query", EVIL),
                ("report", "subject", "--from", "1d", "--to", "now", "--subject", EVIL, "--force"),
                ("report", "rights", "--from", "1d", "--to", "now", "--tenant", EVIL, "--out", EVIL),
            ]  # fmt: skip

        def walk(record: str, seen: dict[str, int]) -> None:
            for arguments in everything(record):
                done = run(*arguments)
                assert done.exception is None or isinstance(done.exception, SystemExit), arguments
                assert "defect of otel-audit" not in done.output, (arguments, done.output)
                mine = [one for one in done.output.split("\n") if not _is_verdict(arguments, one)]
                assert problems("\n".join(mine)) == [], (arguments, done.output)
                if "--json" in arguments:
                    assert done.stdout.isascii()
                for name in names_of(cli):
                    if " ".join(arguments).startswith(name):
                        seen[name] = seen.get(name, 0) + (SAID in done.output)

        def on_a_screen(record: str) -> None:
            with monkeypatch.context() as patched:
                patched.setattr(terminal, "screen_width", lambda: 80)
                for arguments in (("search",), ("search", "--all"), ("history", "order:1"),
                                  ("history", f"order:{EVIL}"), ("show", record)):  # fmt: skip
                    done = run(*arguments)
                    assert done.exit_code == 0, done.output
                    assert problems(done.output) == [], (arguments, done.output)

        seen: dict[str, int] = {}
        record = str(uuid7())
        await asyncio.to_thread(walk, record, seen)
        record = await tamper(store)
        await asyncio.to_thread(walk, record, seen)
        await asyncio.to_thread(on_a_screen, record)
        assert set(seen) == set(names_of(cli)), "a command is not walked"
        for name in ("search", "show", "gaps", "verify", "quarantine", "history", "prove"):
            assert seen[name], f"{name} has shown nothing hostile"


def _is_verdict(arguments: tuple[str, ...], line: str) -> bool:
    """The line that ends a verification of an untouched store is ours."""
    return arguments[0] == "verify" and line == SAID


class TestOneWayOut:
    def test_no_command_prints_by_itself(self):
        """Everything goes through `otel_audit.cli.terminal`, so that nothing can be forgotten."""
        ways = {"echo", "secho", "style", "echo_via_pager", "print", "write", "basicConfig"}
        for file in Path(terminal.__file__).parent.glob("*.py"):
            if file.name == "terminal.py":
                continue
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call):
                    called = node.func
                    outside = isinstance(called, ast.Attribute) and ast.unparse(called.value) in {
                        "click", "sys.stdout", "sys.stderr", "logging", "console",
                    }  # fmt: skip
                    name = called.attr if isinstance(called, ast.Attribute) else ast.unparse(called)
                    assert not (outside and name in ways), f"{file.name}:{node.lineno}"
                    assert name != "print", f"{file.name}:{node.lineno}"
