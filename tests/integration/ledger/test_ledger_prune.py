"""A month may go: with a sealed record of it, and the log's root stays what it was."""

from __future__ import annotations

import uuid
from datetime import date

import asyncpg
import pytest
from click.testing import CliRunner
from ledger_store import Administrator
from otel_audit_postgres import init, maintain
from otel_audit_postgres.ledger import verify_evidence
from otel_audit_postgres.ledger.prove import ProofError, prove_growth, prove_record
from otel_audit_postgres.ledger.verify.findings import ProblemKind
from otel_audit_postgres.retention import collapse, drop, retire
from otel_audit_postgres.sink import PostgresSink
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.cli.main import cli
from otel_audit.errors import StoreError


@pytest.fixture
async def months(one_day, log, connection):
    """Rows of last month and of this one, sealed in blocks of either and of both; last month's name."""
    last = await connection.fetchval(
        "SELECT extract(epoch FROM date_trunc('month', now() AT TIME ZONE 'UTC') - interval '9 days')"
    )

    async def write(count, *, old):
        sink = PostgresSink(log.dsn)
        records = [
            a_record(record_id=uuid7(int(last) * 10**9 + number * 10**6) if old else uuid7())
            for number in range(count)
        ]
        await sink.write(records)
        await sink.close()

    for counts in ((5, 0), (6, 0), (3, 4), (0, 7)):
        await write(counts[0], old=True)
        await write(counts[1], old=False)
        await log.seal()
    return await connection.fetchval(
        "SELECT 'audit_logs_' || to_char(now() AT TIME ZONE 'UTC' - interval '1 month', 'YYYY_MM')"
    )


async def pruned(log, partition):
    manifest = await retire(log.dsn, partition)
    await log.seal()
    rows = await drop(log.dsn, partition, manifest)
    return rows, manifest


class TestDropping:
    async def test_is_refused_without_a_sealed_manifest(self, log, months):
        """No record, one that waits, one of something else: each is refused, and nothing goes."""
        with pytest.raises(StoreError, match="manifest .* is not sealed"):
            await drop(log.dsn, months, str(uuid.uuid4()))
        manifest = await retire(log.dsn, months)
        with pytest.raises(StoreError, match="is not sealed"):
            await drop(log.dsn, months, manifest)
        (other,) = await log.write(1)
        await log.seal()
        with pytest.raises(StoreError, match="is not sealed"):
            await drop(log.dsn, months, other)
        assert (await log.verify()).ok

    async def test_is_refused_if_it_holds_something_else(self, log, months, connection):
        """A row that came after the manifest is not dropped unsaid."""
        manifest = await retire(log.dsn, months)
        await log.seal()
        late = await connection.fetchval(f"SELECT max(id::text) FROM audit.{months}")
        await connection.execute(
            "INSERT INTO audit.audit_logs SELECT (jsonb_populate_record(a, jsonb_build_object("
            "'tenant_id', 'late'))).* FROM audit.audit_logs a WHERE id = $1", late,
        )  # fmt: skip
        with pytest.raises(StoreError, match="does not hold what manifest"):
            await drop(log.dsn, months, manifest)

    async def test_is_refused_for_what_is_no_month(self, log, months):
        """Neither the default partition, nor another table, nor SQL in a name."""
        for name in ("audit_logs_default", "quarantine", "audit_logs_1999_01", "x; DROP TABLE y"):
            with pytest.raises(StoreError, match="is no partition of audit.audit_logs"):
                await retire(log.dsn, name)

    async def test_is_refused_for_its_own_month(self, log, months, connection):
        """This month holds its own manifest, which must stay."""
        name = await connection.fetchval(
            "SELECT 'audit_logs_' || to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')"
        )
        manifest = await retire(log.dsn, name)
        await log.seal()
        with pytest.raises(StoreError, match=r"refused"):
            await drop(log.dsn, name, manifest)

    async def test_lets_the_rest_verify(self, log, months, connection):
        """The rows are gone, and the verification says so without alarm."""
        assert (await pruned(log, months))[0] == 14
        assert await connection.fetchval("SELECT count(*) FROM audit.audit_logs") == 12
        report = await log.verify()
        assert report.problems == ()
        assert (report.dropped, report.rows_checked, report.size) == (14, 12, 26)
        assert (await log.verify(sample=3)).ok

    async def test_makes_no_such_partition_again(self, log, months, connection):
        """What comes late for a dropped month is kept in the default partition."""
        await pruned(log, months)
        states = await connection.fetch("SELECT * FROM audit.ensure_partitions()")
        assert states[0]["state"] == "dropped"
        sink = PostgresSink(log.dsn)
        moment = await connection.fetchval(
            "SELECT extract(epoch FROM date_trunc('month', now(), 'UTC') - interval '8 days')::bigint"
        )
        await sink.write([a_record(record_id=uuid7(moment * 10**9))])
        await sink.close()
        await log.seal()
        assert (await log.verify()).ok
        await collapse(log.dsn)
        assert (await log.verify()).ok

    async def test_can_be_done_by_the_retention_role_alone(self, postgres, log, months):
        """It may drop in order, and nothing else: not even read."""
        role = f"retention_{uuid.uuid4().hex[:8]}"
        await postgres.execute(f"CREATE ROLE {role} LOGIN")
        await init(log.dsn, roles=True, retention=role)
        dsn = postgres.dsn(log.dsn.partition("?")[0].rpartition("/")[2], role)
        manifest = await retire(dsn, months)
        await log.seal()
        assert await drop(dsn, months, manifest) == 14
        assert await collapse(dsn) == 11
        assert (await log.verify()).ok
        connection = await asyncpg.connect(dsn)
        for refused in (
            "SELECT payload FROM audit.audit_logs",
            "DELETE FROM audit.ledger_blocks",
            "INSERT INTO audit.ledger_prunings VALUES ('x')",
            "DROP TABLE audit.audit_logs_default",
            "SELECT audit.record_event('x', 'x', '', '', '{}'::jsonb, '')",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(refused)
        await connection.close()


class TestCollapsing:
    async def test_keeps_the_root(self, log, months, connection):
        """Whole blocks of dropped rows become subtree hashes; mixed blocks stay."""
        await pruned(log, months)
        before = await log.anchor.last()
        assert await collapse(log.dsn) == 11
        assert await collapse(log.dsn) == 0
        kept = await connection.fetch(
            "SELECT first, leaves FROM audit.ledger_pruned ORDER BY first"
        )
        assert [tuple(row.values()) for row in kept] == [(0, 8), (8, 2), (10, 1)]
        assert [
            row[0]
            for row in await connection.fetch("SELECT first FROM audit.ledger_blocks ORDER BY 1")
        ] == [11, 18, 25]
        report = await log.verify()
        assert report.problems == ()
        assert await log.anchor.last() == before
        assert report.signed_size == 26

    async def test_lets_sealing_go_on(self, log, months):
        """A new sealer builds the tree from what is left, and appends to it."""
        await pruned(log, months)
        await collapse(log.dsn)
        await log.write(3)
        assert (await log.seal()).size == 29
        assert (await log.verify()).problems == ()

    async def test_lets_what_is_left_be_proved(self, log, months, connection):
        """Inclusion of rows that stayed, growth from checkpoints that still stand for themselves."""
        early = await connection.fetchval(
            "SELECT note FROM audit.ledger_checkpoints WHERE size = 5"
        )
        later = await connection.fetchval(
            "SELECT note FROM audit.ledger_checkpoints WHERE size = 18"
        )
        await pruned(log, months)
        await collapse(log.dsn)
        for row in await connection.fetch("SELECT id FROM audit.audit_logs"):
            bundle = await prove_record(log.dsn, str(row["id"]), [log.key.public])
            assert verify_evidence.check(dict(bundle), [])
        assert verify_evidence.check(dict(await prove_growth(log.dsn, later, [log.key.public])), [])
        with pytest.raises(ProofError, match="pruned"):
            await prove_growth(log.dsn, early, [])

    async def test_is_refused_for_live_leaves(self, log, months, connection):
        """Leaves whose rows are there are never collapsed."""
        await pruned(log, months)
        for leaves in ((11, 18), (18, 25), (0, 7), (0, 4), (5, 5), (0, 26)):
            with pytest.raises(asyncpg.PostgresError, match=r"not whole blocks|not all of dropped"):
                await connection.execute("SELECT audit.collapse_leaves($1, $2)", *leaves)
        assert (await log.verify()).ok

    async def test_can_be_asked_of_an_anchor_of_before(self, log, months, connection):
        """A checkpoint within pruned leaves cannot be compared any more, and that is said."""
        note = await connection.fetchval("SELECT note FROM audit.ledger_checkpoints WHERE size = 5")
        await pruned(log, months)
        await collapse(log.dsn)
        await log.anchor.publish(note)
        report = await log.verify()
        assert report.ok
        assert any("pruned" in warning for warning in report.warnings)


class TestTampering:
    @pytest.mark.parametrize(
        ("tampering", "kind"),
        [
            (
                "UPDATE audit.ledger_pruned SET hash = sha256(hash) WHERE first = 8",
                ProblemKind.CHANGED,
            ),
            ("DELETE FROM audit.ledger_pruned WHERE first = 8", ProblemKind.DELETED),
            ("DELETE FROM audit.ledger_prunings", ProblemKind.DELETED),
            ("UPDATE audit.ledger_prunings SET rows = rows + 1", ProblemKind.DELETED),
            (
                "UPDATE audit.ledger_prunings SET above = audit.uuid_at(now() + interval '1 year')",
                ProblemKind.DELETED,
            ),
            (
                "DELETE FROM audit.audit_logs WHERE id = (SELECT id FROM audit.audit_logs ORDER BY id LIMIT 1)",
                ProblemKind.DELETED,
            ),
            (
                "DELETE FROM audit.audit_logs WHERE event_name = 'audit.partition.retired'",
                ProblemKind.DELETED,
            ),
        ],
    )
    async def test_shows(self, log, months, connection, tampering, kind):
        """Whoever abuses pruning to hide rows is found."""
        await pruned(log, months)
        await collapse(log.dsn)
        for table in ("ledger_pruned", "ledger_prunings", "audit_logs"):
            await connection.execute(f"ALTER TABLE audit.{table} DISABLE TRIGGER USER")
        assert not (await connection.execute(tampering)).endswith(" 0")
        for table in ("ledger_pruned", "ledger_prunings"):
            await connection.execute(
                f"ALTER TABLE audit.{table} ENABLE ALWAYS TRIGGER refuse_change"
            )
        await Administrator(connection).does("SELECT 1")
        report = await log.verify()
        assert report.counts.get(kind, 0) >= 1
        assert ProblemKind.GUARD_REMOVED not in report.counts

    async def test_by_dropping_past_the_function_shows(self, log, months, connection):
        """A partition that was simply dropped is no retention."""
        await connection.execute(f"DROP TABLE audit.{months}")
        report = await log.verify()
        assert report.counts[ProblemKind.DELETED] == 14


class TestWrongClock:
    async def test_does_not_keep_a_month_for_ever(self, log, connection):
        """Rows of a clock of 2015: sealed, moved into a month of their own, retired, verified."""
        sink = PostgresSink(log.dsn)
        then = 1_434_000_000 * 10**9  # June 2015
        records = [a_record(record_id=uuid7(then + number * 10**6)) for number in range(7)]
        await sink.write(records)
        await sink.close()
        await log.write(2)
        await log.seal()
        assert (await maintain(log.dsn)).in_default == {"2015-06": 7}
        done = await maintain(log.dsn, months=[date(2015, 6, 1)])
        assert (done.in_default, done.partitions[-1].state) == ({}, "made")
        report = await log.verify()
        assert (report.ok, report.rows_checked) == (True, 9)
        rows, _ = await pruned(log, "audit_logs_2015_06")
        assert rows == 7
        assert await collapse(log.dsn) >= 0
        report = await log.verify()
        assert (report.ok, report.dropped) == (True, 7)

    async def test_also_by_the_roles_that_may(self, database, postgres):
        """With roles and the event trigger: the writer moves few in passing, retention a month."""
        names = {kind: f"{kind}_{uuid.uuid4().hex[:8]}" for kind in ("writer", "retention")}
        for name in names.values():
            await postgres.execute(f"CREATE ROLE {name} LOGIN")
        await init(database, roles=True, **names)
        name = database.partition("?")[0].rpartition("/")[2]
        told = []
        sink = PostgresSink(postgres.dsn(name, names["writer"]), on_default_rows=told.append)
        await sink.write([a_record(record_id=uuid7(1_434_000_000 * 10**9))])
        await sink.close()
        with pytest.raises(StoreError):
            await maintain(postgres.dsn(name, names["writer"]), months=[date(2015, 6, 1)])
        done = await maintain(postgres.dsn(name, names["retention"]), months=[date(2015, 6, 1)])
        assert (done.in_default, done.partitions[-1].state) == ({}, "made")
        assert told == [0]


class TestReport:
    def test_says_what_was_dropped(self, log, audit_store, monkeypatch):
        """A person and a program both read how many rows went."""
        monkeypatch.setenv("OTEL_AUDIT_DSN", audit_store)
        result = CliRunner().invoke(cli, ["verify", "--json"])
        assert '"dropped": 0' in result.output
