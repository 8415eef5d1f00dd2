"""The commands of the ledger, as a person or a timer runs them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import time
import uuid

import asyncpg
import pytest
from click.testing import CliRunner
from ledger_store import Administrator, Log
from otel_audit_postgres.ledger.checkpoints import read_checkpoint
from otel_audit_postgres.ledger.keys import generate

from otel_audit.cli.main import cli
from otel_audit.record import Target, Tenant


@pytest.fixture
def run(audit_store, tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_AUDIT_DSN", audit_store)
    monkeypatch.setenv("OTEL_AUDIT_ANCHOR", f"file:{tmp_path / 'anchor'}")

    def call(*arguments, status=0):
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert result.exit_code == status, result.output
        return result.output

    return call


@pytest.fixture
def key(run, tmp_path, monkeypatch):
    run("keygen", tmp_path / "key", "--name", "audit.example.com/log")
    monkeypatch.setenv("OTEL_AUDIT_SIGNING_KEY_FILE", str(tmp_path / "key"))
    return tmp_path / "key"


def write(log, count):
    return asyncio.run(log.write(count))


def tamper(dsn, statement):
    async def do():
        connection = await asyncpg.connect(dsn)
        await Administrator(connection).does(statement)
        await connection.close()

    asyncio.run(do())


class TestKeygen:
    def test_makes_a_key_that_nobody_else_can_read(self, run, tmp_path):
        """The private half goes to its file alone, the public one is shown."""
        output = run("keygen", tmp_path / "key")
        private = (tmp_path / "key").read_text().strip()
        assert private not in output
        assert (tmp_path / "key.pub").read_text().strip() in output
        assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600

    def test_overwrites_nothing(self, run, key):
        """A second time is an error."""
        assert "there already" in run("keygen", key, status=1)


class TestSeal:
    def test_seals_once_and_says_so(self, run, key, log, tmp_path):
        """All that waits is sealed, signed and published."""
        write(log, 12)
        assert "sealed 12 rows; the log has 12" in run("seal", "--once")
        assert read_checkpoint((tmp_path / "anchor").read_text()).size == 12
        assert "sealed 0 rows; the log has 12" in run("seal", "--once")

    def test_is_loud_without_a_key(self, run, log):
        """Unsigned is possible, and never silent."""
        write(log, 1)
        assert "UNSIGNED" in run("seal", "--once")

    def test_refuses_in_one_line(self, run, key, log):
        """A ledger that was cut is not signed; the remedy is named."""
        write(log, 3)
        run("seal", "--once")
        tamper(log.dsn, "DELETE FROM audit.ledger_checkpoints")
        tamper(log.dsn, "DELETE FROM audit.ledger_blocks")
        assert "has seen 3 leaves, the ledger has 0" in run("seal", "--once", status=1)

    def test_tells_of_rows_changed_before(self, run, key, log):
        """Exit status 1, and the row."""
        (record_id,) = write(log, 1)
        tamper(log.dsn, "UPDATE audit.audit_logs SET actor_id = 'eve'")
        assert record_id in run("seal", "--once", status=1)

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("OTEL_AUDIT_ANCHOR", "ftp://example.com"),
            ("OTEL_AUDIT_SIGNING_KEY_FILE", "/nonexistent"),
            ("OTEL_AUDIT_SIGNING_KEY", "x"),
        ],
    )
    def test_names_the_setting_that_is_wrong(self, run, monkeypatch, variable, value):
        """Before anything is done."""
        monkeypatch.setenv(variable, value)
        assert f"{variable}:" in run("seal", "--once", status=1)

    def test_ends_on_sigterm(self, key, log, tmp_path):
        """The loop seals what comes, and SIGTERM ends it with status 0."""
        write(log, 4)
        process = subprocess.Popen(
            [sys.executable, "-c", "from otel_audit.cli import main; main()", "seal"],
            env={**os.environ, "OTEL_AUDIT_SEAL_INTERVAL": "0.05"},
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + 60
        while not (tmp_path / "anchor").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, b"")
        assert read_checkpoint((tmp_path / "anchor").read_text()).size == 4


class TestVerify:
    def test_passes_an_honest_store(self, run, key, log):
        """Exit status 0, and what was looked at."""
        write(log, 5)
        run("seal", "--once")
        output = run("verify", "--full")
        assert "5 rows sealed, 0 waiting" in output
        assert "OK: nothing was tampered with" in output
        assert "warning" not in output

    def test_says_how_much_is_not_sealed(self, run, key, log):
        """What waits for its seal proves nothing yet, and the verdict is not about it."""

        def verdict():
            return run("verify").splitlines()[-1]

        assert verdict() == "OK: there are no rows yet"
        write(log, 3)
        assert verdict() == "OK for 0 of 3 rows: nothing is sealed yet"
        run("seal", "--once")
        assert verdict() == "OK: nothing was tampered with"
        write(log, 1)
        assert verdict() == "OK for 3 rows; 1 waits for its seal"
        write(log, 1)
        assert verdict() == "OK for 3 rows; 2 wait for their seal"

    def test_takes_the_public_key_alone(self, run, key, log, monkeypatch):
        """Whoever verifies needs no private key: the text or the file of the public one."""
        write(log, 1)
        run("seal", "--once")
        monkeypatch.delenv("OTEL_AUDIT_SIGNING_KEY_FILE")
        public = key.with_name("key.pub")
        for given in (public, public.read_text().strip()):
            assert "signed up to row 1" in run("verify", "--key", given)
        assert "not signed by a given key" in run(
            "verify", "--key", generate("audit.example.com/log").public.text(), status=1
        )

    def test_names_the_first_bad_row(self, run, key, log):
        """Exit status 1; text and JSON name row and kind."""
        write(log, 6)
        run("seal", "--once")
        tamper(log.dsn, "UPDATE audit.audit_logs SET outcome = 'failure'")
        output = run("verify", status=1)
        assert "TAMPERED: 6 changed; first bad: " in output
        report = json.loads(run("verify", "--json", status=1))
        assert report["first_bad"]["kind"] == "changed"
        assert report["first_bad"]["leaf"] == 0
        assert report["first_bad"]["record_id"] in output
        assert report["counts"] == {"changed": 6}

    def test_reads_a_part(self, run, key, log):
        """Since some time ago, or a sample."""
        write(log, 6)
        run("seal", "--once")
        assert "checked 6 rows" in run("verify", "--since", "1h")
        assert "checked 0 rows" in run("verify", "--since", "2999-01-01T00:00:00Z")
        assert "checked 2 rows" in run("verify", "--sample", "2")
        assert "not a time" in run("verify", "--since", "soon", status=2)
        assert "--full excludes" in run("verify", "--full", "--sample", "2", status=2)

    def test_says_what_a_missing_key_costs(self, run, log):
        """Unsigned: a warning, not silence."""
        write(log, 1)
        run("seal", "--once")
        assert "could have rewritten" in run("verify")


class TestRoles:
    def test_sealer_and_reader_can_do_their_work(self, run, key, postgres, database, monkeypatch):
        """Neither needs more than its group; the writer cannot touch the ledger."""
        logins = {}
        for group in ("writer", "reader", "sealer"):
            logins[group] = f"{group}_{os.getpid()}_{time.monotonic_ns()}"
            asyncio.run(postgres.execute(f"CREATE ROLE {logins[group]} LOGIN"))
        options = [word for group, name in logins.items() for word in (f"--{group}", name)]
        run("init", "--dsn", database, "--roles", *options)
        name = database.partition("?")[0].rpartition("/")[2]
        dsns = {group: postgres.dsn(name, login) for group, login in logins.items()}
        store = Log.__new__(Log)
        store.dsn = dsns["writer"]
        write(store, 3)
        assert "sealed 3 rows" in run("seal", "--once", "--dsn", dsns["sealer"])
        assert "OK" in run("verify", "--dsn", dsns["reader"])
        write(store, 1)
        for question in (
            ("search",), ("history", "order:1"), ("show", str(uuid.uuid4())), ("stats",),
            ("gaps",), ("verify",), ("prove", "--entity", "order:1"),
        ):  # fmt: skip
            refused = run(*question, "--dsn", dsns["writer"], status=1)
            assert "ask as a member of otel_audit_reader" in refused
        assert "lacks the right" in run("seal", "--once", "--dsn", dsns["reader"], status=1)
        assert "lacks the right" in run("seal", "--once", "--dsn", dsns["writer"], status=1)
        for statement in (
            "UPDATE audit.ledger_blocks SET hashes = ''",
            "DELETE FROM audit.ledger_checkpoints",
            "UPDATE audit.ledger_queue SET id = id",
            "TRUNCATE audit.ledger_queue",
            "INSERT INTO audit.audit_logs (id) VALUES (gen_random_uuid())",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                asyncio.run(execute(dsns["sealer"], statement))
        for statement in (
            "DELETE FROM audit.ledger_queue",
            "INSERT INTO audit.ledger_queue (id) VALUES (gen_random_uuid())",
            "SELECT * FROM audit.ledger_queue",
            "SELECT audit.queue_for_sealing()",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                asyncio.run(execute(dsns["writer"], statement))


class TestTenants:
    def test_are_kept_apart(self, run, key, postgres, database):
        """A reader of one tenant sees its records alone, by whatever way, and cannot verify."""
        logins = {
            group: f"{group}_{os.getpid()}_{time.monotonic_ns()}"
            for group in ("all", "one", "none")
        }
        for login in logins.values():
            asyncio.run(postgres.execute(f"CREATE ROLE {login} LOGIN"))
        run("init", "--dsn", database, "--roles", "--reader", logins["all"])
        one = ("init", "--dsn", database, "--roles", "--reader", logins["one"])
        run(*one, "--tenant", "acme")
        run(*one)  # without a word about tenants nothing is widened
        asyncio.run(postgres.execute(f"GRANT otel_audit_reader TO {logins['none']}"))
        name = database.partition("?")[0].rpartition("/")[2]
        dsns = {group: postgres.dsn(name, login) for group, login in logins.items()}
        store = Log.__new__(Log)
        store.dsn = database
        order = Target(type="order", id="1")
        asyncio.run(store.write(2, tenant=Tenant(id="acme"), target=order))
        asyncio.run(store.write(3, tenant=Tenant(id="other"), target=order))
        asyncio.run(store.write(1, target=order))
        for group, expected in (("all", 6), ("one", 2), ("none", 0)):
            for query in ("audit.audit_logs", "(SELECT * FROM audit.audit_logs WHERE true) x"):
                rows = asyncio.run(fetch(dsns[group], f"SELECT tenant_id FROM {query}"))
                assert len(rows) == expected
            queued = asyncio.run(fetch(dsns[group], "SELECT * FROM audit.ledger_queue"))
            assert len(queued) == (6 if group == "all" else 0)
            others = asyncio.run(fetch(dsns[group], "SELECT * FROM audit.reader_tenants"))
            assert {row["role_name"] for row in others} <= {logins[group]}
            about = asyncio.run(fetch(dsns[group], "SELECT * FROM audit.about('order:1')"))
            assert len(about) == expected
        ids, rows = asyncio.run(as_role(database, logins["one"]))
        assert (ids, rows) == (6, 2)
        lines = run("search", "--json", "--dsn", dsns["one"]).splitlines()
        assert {json.loads(line)["tenant_id"] for line in lines} == {"acme"}
        assert "OK" in run("verify", "--dsn", dsns["all"])
        assert "some tenants only" in run("verify", "--dsn", dsns["one"], status=1)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            asyncio.run(execute(dsns["one"], "DELETE FROM audit.reader_tenants"))

    def test_need_a_reader(self, run, database):
        """A tenant without a reader is a mistake, and said to be one."""
        assert "--reader" in run("init", "--dsn", database, "--tenant", "acme", status=1)


async def as_role(dsn, role):
    """Count what a superuser sees who takes on a reader's role: ids about an order, and rows."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f"SET ROLE {role}")
        return (
            await connection.fetchval("SELECT count(*) FROM audit.about('order:1')"),
            await connection.fetchval("SELECT count(*) FROM audit.audit_logs"),
        )
    finally:
        await connection.close()


async def fetch(dsn, query):
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(query)
    finally:
        await connection.close()


async def execute(dsn, statement):
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
