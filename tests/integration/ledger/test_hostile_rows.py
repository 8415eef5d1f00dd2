"""Whatever a writer may insert, sealing, verifying and reading go on, and the verdict is true."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid

import asyncpg
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_store import Administrator, Log
from otel_audit_postgres import init, migrate
from otel_audit_postgres.ledger.verify.findings import ProblemKind
from otel_audit_postgres.schema.migrations import migrations
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.cli.main import cli
from otel_audit.record import to_json

COLUMNS = {
    "action_id": "'a'", "phase": "'completed'", "occurred_at": "now()", "duration_ms": "0",
    "event_name": "'e'", "action": "'READ'", "outcome": "'success'", "actor_id": "'x'",
    "actor_type": "'user'", "transaction_outcome": "'none'", "schema_version": "'1'",
}  # fmt: skip
TEXTS = ("''", "'x'", "repeat('x', 9000)", "E'\\x1b[2J\\u202e'", "NULL")
# extremes of each type that a column has, as SQL
EXTREMES = {
    "id": (
        "'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
        "audit.uuid_at(now() + interval '90 days')", "audit.uuid_at(now() - interval '20 years')",
    ),
    "occurred_at": (
        "'10000-01-01'", "'290000-01-01'", "'0001-01-01 BC'", "'4713-01-01 BC'", "'infinity'",
        "'-infinity'", "'0001-01-01Z'", "'9999-12-31 23:59:59.999999Z'", "'1969-12-31'",
    ),
    "duration_ms": ("'NaN'", "'Infinity'", "'-Infinity'", "-1", "1e308", "5e-324"),
    "entities": (
        "'{{a},{b}}'", "'{NULL}'", "'[5:6]={a,b}'", "'{}'", "array_fill('x'::text, ARRAY[9000])",
        "'{order:1}'",
    ),
    "sequence_number": (
        "-9223372036854775808", "9223372036854775807", "0", "-1", "9007199254740992",
        "9007199254740993",
    ),
    "status_code": ("-2147483648", "2147483647"),
    "payload": (
        "'{}'", "'[]'", "'1'", "'null'", "'{\"a\": 1e10000}'", "'{\"a\": 1e400}'",
        "('{\"a\":' || repeat('[', 4000) || repeat(']', 4000) || '}')",
        "('{\"a\":' || repeat('9', 5000) || '}')", "'{\"a\": \"\\ud800\"}'", "'{\"a\": \"\\u0000\"}'",
        "'{\"record_id\": 1}'", "'{\"a\": 1, \"a\": 2}'",
    ),
    "content_hash": ("sha256('x')", "''"),
    "received_hash": ("sha256('x')", "''"),
    "tenant_id": TEXTS, "event_name": TEXTS, "actor_id": TEXTS, "producer_id": TEXTS,
    "trace_id": TEXTS, "phase": TEXTS, "outcome": TEXTS, "target_id": TEXTS, "target_type": TEXTS,
    "received_by": TEXTS, "schema_version": TEXTS, "url_path": TEXTS,
}  # fmt: skip
COMMANDS = (
    ("search",), ("search", "--json"), ("search", "--since", "3000d"), ("history", "order:1"),
    ("stats",), ("stats", "--since", "9000d", "--json"),
)  # fmt: skip

any_row = st.fixed_dictionaries(
    {}, optional={name: st.sampled_from(values) for name, values in EXTREMES.items()}
)


def statement(extremes):
    """An INSERT with these values, and fitting ones for the rest."""
    row = {"id": f"'{uuid7()}'", "payload": "'{}'", "producer_id": "'p'", **COLUMNS, **extremes}
    row.setdefault("content_hash", f"sha256(convert_to(({row['payload']})::text, 'UTF8'))")
    row["payload"] = f"({row['payload']})::json"
    return f"INSERT INTO audit.audit_logs ({', '.join(row)}) VALUES ({', '.join(row.values())})"


@pytest.fixture
async def hostile(database, postgres, tmp_path):
    """A store with roles; its log, and connections of a writer and of its superuser."""
    names = {kind: f"{kind}_{uuid.uuid4().hex[:8]}" for kind in ("writer", "reader")}
    for name in names.values():
        await postgres.execute(f"CREATE ROLE {name} LOGIN")
    await init(database, roles=True, writer=names["writer"], reader=names["reader"])
    name = database.partition("?")[0].rsplit("/", 1)[1]
    connections = {
        kind: await asyncpg.connect(postgres.dsn(name, user=user)) for kind, user in names.items()
    }
    connections["superuser"] = await asyncpg.connect(database)
    await connections["superuser"].execute("SET otel_audit.permit_ddl = 'on'")
    yield Log(database, tmp_path), connections
    for connection in connections.values():
        await connection.close()


async def insert(connection, extremes):
    """Try to; whether the store took it."""
    with contextlib.suppress(asyncpg.PostgresError):
        await connection.execute(statement(extremes))
        return True
    return False


async def run(dsn, *arguments):
    def call():
        return CliRunner().invoke(cli, [*arguments, "--dsn", dsn])

    return await asyncio.to_thread(call)


async def all_goes_on(log):
    """Seal, verify and ask; the report."""
    sealed = await run(log.dsn, "seal", "--once")
    assert sealed.exit_code == 0, sealed.output
    for command in COMMANDS:
        answer = await run(log.dsn, *command)
        assert answer.exit_code == 0, (command, answer.output)
    gaps = await run(log.dsn, "gaps")
    assert "numbers missing" in gaps.output, gaps.output
    return await log.verify(keys=[], anchors=[])


class TestWriter:
    @pytest.mark.parametrize(
        ("column", "value"),
        [(column, value) for column, values in EXTREMES.items() for value in values],
    )
    async def test_can_insert_no_extreme_that_stops_anything(
        self, audit_store, tmp_path, column, value
    ):
        """One row with one extreme: refused, or borne by every reader."""
        connection = await asyncpg.connect(audit_store)
        await insert(connection, {column: value})
        await connection.close()
        report = await all_goes_on(Log(audit_store, tmp_path))
        assert report.ok, report.problems

    @pytest.mark.slow
    @settings(
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        max_examples=20,
        deadline=None,
    )
    # many rows at a time: the commands afterwards, not the rows, are what takes long
    @given(rows=st.lists(any_row, min_size=10, max_size=40))
    async def test_can_insert_no_row_that_stops_anything(self, hostile, rows):
        """Any rows of extremes in any columns, by the role that may insert and nothing else."""
        log, connections = hostile
        for row in rows:
            await insert(connections["writer"], row)
        report = await all_goes_on(log)
        assert report.ok, report.problems

    async def test_hides_no_change_behind_malformed_rows(self, hostile, tmp_path):
        """Among 200 malformed rows the one that a superuser changed is named, and no other."""
        log, connections = hostile
        ids = await log.write(3)
        for _ in range(200):
            assert await insert(connections["writer"], {"entities": "'{order:1}'"})
        await log.seal()
        report = await log.verify()
        assert (report.ok, report.malformed_count, report.malformed_by) == (True, 200, {"p": 200})
        await Administrator(connections["superuser"]).does(
            f"UPDATE audit.audit_logs SET actor_id = 'eve' WHERE id = '{ids[1]}'"
        )
        report = await log.verify()
        assert [(found.kind, found.record_id) for found in report.problems] == [
            (ProblemKind.CHANGED, ids[1])
        ]
        assert report.malformed_count == 200
        result = await run(log.dsn, "verify", "--report", str(tmp_path / "report"))
        assert result.exit_code == 1
        assert f"record {ids[1]}" in result.output
        said = json.loads((tmp_path / "report").read_text())
        assert (len(said["malformed"]["rows"]), len(said["problems"])) == (200, 1)

    async def test_cannot_pass_a_change_for_malformed(self, hostile):
        """A malformed row whose columns are changed after it was sealed is a changed one."""
        log, connections = hostile
        assert await insert(connections["writer"], {})
        await log.seal()
        assert (await log.verify()).malformed_count == 1
        await Administrator(connections["superuser"]).does(
            "UPDATE audit.audit_logs SET actor_id = 'eve'"
        )
        report = await log.verify()
        assert report.counts == {ProblemKind.CHANGED: 1}

    async def test_inserts_a_false_column_that_is_no_tampering(self, hostile):
        """A column that its record does not tell is named as inserted so, with or without a key."""
        log, connections = hostile
        record = a_record(record_id=uuid7(), producer_id="p")
        row = {
            "id": f"'{record.record_id}'", "payload": f"'{to_json(record).decode()}'",
            "actor_id": "'bob'",
        }  # fmt: skip
        assert await insert(connections["writer"], row)
        (waiting,) = (await log.verify()).malformed
        assert (waiting.leaf, "actor_id" in waiting.detail) == (None, True)
        sealer = await log.seal()
        assert (sealer.faulty, sealer.size) == ((), 1)
        for keys in ([], [log.key.public]):
            report = await log.verify(keys=keys)
            assert report.ok
            assert [found.record_id for found in report.malformed] == [record.record_id]
        # what nobody signed is nobody's word
        await Administrator(connections["superuser"]).does(
            "UPDATE audit.ledger_flaws SET note = split_part(note, E'\n\n', 1) || E'\n\n'"
        )
        assert (await log.verify()).counts == {ProblemKind.CHANGED: 1}

    async def test_is_told_what_is_wrong(self, hostile):
        """The refusal names the row, the column, and what it must be."""
        _, connections = hostile
        with pytest.raises(asyncpg.CheckViolationError, match="occurred_at: is not within") as told:
            await connections["writer"].execute(statement({"occurred_at": "'10000-01-01'"}))
        assert told.value.constraint_name == "well_formed_occurred_at"
        assert "audit.quarantine" in told.value.hint

    async def test_cannot_take_the_place_of_a_text_in_quarantine(self, hostile):
        """A digest there is of the text, or the true text would not come in."""
        _, connections = hostile
        with pytest.raises(asyncpg.CheckViolationError):
            await connections["writer"].execute(
                "INSERT INTO audit.quarantine (content_hash, received, reason) "
                "VALUES (sha256('x'), 'y', 'z')"
            )


class TestReader:
    @pytest.mark.parametrize(
        "asked",
        [
            '\'{"a": 1e10000}\'', "'1e10000'", "'[]'", "'null'",
            "('{\"a\":' || repeat('[', 4000) || repeat(']', 4000) || '}')",
        ],
    )  # fmt: skip
    async def test_records_only_well_formed_looks(self, hostile, asked):
        """Whatever is said to have been asked, the look is recorded, sealed and verified."""
        log, connections = hostile
        await connections["reader"].fetchval(
            f"SELECT audit.record_view('search', ({asked})::jsonb, 1, 'audit_record', E'\\x1b')"
        )
        report = await all_goes_on(log)
        assert (report.ok, report.malformed_count, report.size >= 1) == (True, 0, True)

    async def test_cannot_take_the_lock_of_sealing(self, hostile):
        """Neither the advisory lock that it once was, nor the lock on the table, nor the function."""
        log, connections = hostile
        await log.write(1)
        reader = connections["reader"]
        await reader.execute("SELECT pg_advisory_lock(7301962839480014)")
        for attempt in (
            "LOCK TABLE audit.ledger_log IN SHARE UPDATE EXCLUSIVE MODE",
            "LOCK TABLE audit.ledger_log IN ROW SHARE MODE",
            "SELECT audit.try_to_lead()",
            "SELECT FROM audit.ledger_log FOR SHARE",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with reader.transaction():
                    await reader.execute(attempt)
        async with reader.transaction():
            await reader.execute(
                "LOCK TABLE audit.ledger_log, audit.ledger_blocks IN ACCESS SHARE MODE"
            )
            assert (await log.seal()).size == 1


class TestHeldLock:
    async def test_is_reported_with_who_holds_it(self, log, administrator, connection, caplog):
        """The sealer logs an error, `seal --once` and `verify` end with status 1."""
        await log.write(1)
        await administrator.does(
            "UPDATE audit.ledger_queue SET recorded_at = recorded_at - interval '1 hour'"
        )
        other = await asyncpg.connect(log.dsn, server_settings={"application_name": "holdup"})
        async with other.transaction():
            assert await other.fetchval("SELECT audit.try_to_lead()")
            sealer = log.sealer()
            done = await sealer.seal()
            await sealer.close()
            assert done.is_held_up
            assert "Nothing is sealed: rows wait for 36" in caplog.text
            assert f"process {other.get_server_pid()} of role postgres" in caplog.text
            for command in (("seal", "--once"), ("verify",)):
                result = await run(log.dsn, *command)
                assert result.exit_code == 1
                assert "application 'holdup'" in result.output
        await other.close()


class TestOldRows:
    async def test_are_borne_after_a_migration(self, database, tmp_path):
        """Rows of a store that did not look, sealed or not: all commands end, and say what is so."""
        connection = await asyncpg.connect(database)
        await connection.execute("CREATE SCHEMA audit")
        for step in migrations()[:5]:
            await connection.execute(step.sql)
            await connection.execute(
                "INSERT INTO audit.schema_version (version, name) VALUES ($1, $2)",
                step.version,
                step.name,
            )
        await connection.execute("SELECT audit.ensure_partitions()")
        taken = 0
        for column, values in EXTREMES.items():
            for value in values:
                if column != "content_hash":
                    taken += await insert(connection, {column: value})
        await migrate(database)
        await connection.close()
        report = await all_goes_on(Log(database, tmp_path))
        assert report.ok, report.problems
        assert report.malformed_count == taken > 60
