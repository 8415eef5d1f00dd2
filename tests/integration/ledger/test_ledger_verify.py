"""Verifying: an honest store passes, and whatever is done to it is found and named."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_store import Administrator, Log
from otel_audit_postgres.ledger.anchors import FileAnchor
from otel_audit_postgres.ledger.checkpoints import Checkpoint, signed
from otel_audit_postgres.ledger.keys import generate
from otel_audit_postgres.ledger.merkle import Frontier
from otel_audit_postgres.ledger.publish_anchors import begin_anchor
from otel_audit_postgres.ledger.verify.findings import ProblemKind
from otel_audit_postgres.ledger.verify.verify import verify

ROW = "(SELECT id FROM audit.audit_logs ORDER BY recorded_at, id OFFSET {} LIMIT 1)"
BLOCK_SWAP = (
    "UPDATE audit.ledger_blocks SET "
    "ids = substr(ids, 17, 16) || substr(ids, 1, 16) || substr(ids, 33), "
    "hashes = substr(hashes, 33, 32) || substr(hashes, 1, 32) || substr(hashes, 65) "
    "WHERE first = 0"
)
OLD_COPY = (
    "DELETE FROM audit.ledger_checkpoints WHERE size > 11",
    "DELETE FROM audit.ledger_blocks WHERE first >= 11",
    (
        "DELETE FROM audit.audit_logs WHERE id NOT IN "
        "(SELECT id FROM audit.audit_logs ORDER BY recorded_at, id LIMIT 11)"
    ),
)


class TestHonestStore:
    async def test_passes(self, sealed):
        """Nothing was done to it: no problem, no warning, everything was looked at."""
        report = await sealed.verify()
        assert report.problems == ()
        assert report.warnings == ()
        assert (report.size, report.rows_checked, report.waiting) == (23, 23, 0)
        assert (report.checkpoints, report.signed_size) == (3, 23)
        assert report.as_json()["ok"] is True

    async def test_passes_while_rows_wait(self, sealed):
        """Rows that are not sealed yet are counted, not suspected."""
        await sealed.write(4)
        report = await sealed.verify()
        assert (report.problems, report.waiting) == ((), 4)

    async def test_passes_empty(self, log):
        """A store without rows has nothing to hide."""
        assert (await log.verify()).ok

    async def test_is_not_changed(self, sealed, connection):
        """Looking leaves no trace."""
        before = await connection.fetch("SELECT * FROM audit.ledger_checkpoints ORDER BY size")
        await sealed.verify()
        after = await connection.fetch("SELECT * FROM audit.ledger_checkpoints ORDER BY size")
        assert before == after

    async def test_is_known_by_less_without_key_and_anchor(self, sealed):
        """What was not checked is said."""
        report = await sealed.verify(keys=[], anchors=[])
        assert report.ok
        assert any("signatures were not checked" in warning for warning in report.warnings)
        assert any("no anchor was asked" in warning for warning in report.warnings)

    async def test_can_be_verified_while_its_first_rows_are_sealed(self, log):
        """The anchor is told the log's name before the store has it: no alarm, and it is said."""
        await log.write(1)
        begins = signed(Checkpoint(log.key.name, 0, Frontier().root()), [log.key])
        await begin_anchor(log.anchor, begins)
        report = await log.verify()
        assert report.problems == ()
        assert any("nothing is sealed here yet" in warning for warning in report.warnings)
        await log.seal()
        assert (await log.verify()).warnings == ()

    async def test_of_another_name_than_its_anchor_knows_is_found(self, log):
        """A log that begins anew beside an anchor that knows another one is not the original."""
        other = generate("audit.example.com/other")
        begins = signed(Checkpoint(other.name, 0, Frontier().root()), [other])
        await begin_anchor(log.anchor, begins)
        await log.write(1)
        await log.seal(anchors=[])
        report = await log.verify(keys=[log.key.public, other.public])
        assert set(report.counts) == {ProblemKind.RESTORED_OLD_COPY}

    async def test_can_be_verified_while_it_is_sealed(self, log):
        """Writers and a sealer at work give no false alarm."""
        stop, sealer = asyncio.Event(), log.sealer(batch=7)
        running = asyncio.create_task(sealer.run(stop, interval=0.001))
        for _ in range(5):
            _, report = await asyncio.gather(log.write(20), log.verify())
            assert report.problems == ()
        stop.set()
        await running
        await sealer.close()

    async def test_shows_gaps_of_a_producer(self, log):
        """A number that never arrived is a warning: a loss, no tampering."""
        for number in (1, 2, 4, 5):
            await log.write(1, producer_id="p", sequence_number=number)
        report = await log.verify()
        assert report.ok
        assert "producer p: 1 sequence numbers up to 5 are not in the store" in report.warnings

    async def test_reports_progress(self, sealed):
        """Whoever waits sees how far it is."""
        seen = []
        await sealed.verify(progress=lambda done, total: seen.append((done, total)))
        assert seen[-1] == (23, 23)


class TestSelection:
    async def test_by_time_reads_what_was_sealed_since(self, sealed, connection):
        """Rows sealed earlier are not read again, and the whole tree is."""
        moment = await connection.fetchval(
            "SELECT recorded_at FROM audit.ledger_blocks WHERE first = 11"
        )
        report = await sealed.verify(since=moment)
        assert (report.ok, report.size, report.rows_checked) == (True, 23, 12)
        report = await sealed.verify(since=datetime.now(UTC) + timedelta(hours=1))
        assert (report.ok, report.rows_checked) == (True, 0)

    async def test_by_sample_reads_so_many(self, sealed):
        """Some rows, chosen at random; more than there are is all."""
        assert (await sealed.verify(sample=5)).rows_checked == 5
        assert (await sealed.verify(sample=500)).rows_checked == 23

    @pytest.mark.parametrize(
        ("tampering", "kind"),
        [
            (f"DELETE FROM audit.audit_logs WHERE id = {ROW.format(3)}", ProblemKind.DELETED),
            (
                (
                    "INSERT INTO audit.audit_logs SELECT (jsonb_populate_record(a, jsonb_build_object("
                    f"'id', gen_random_uuid()))).* FROM audit.audit_logs a WHERE id = {ROW.format(3)}"
                ),
                ProblemKind.INSERTED,
            ),
        ],
    )
    async def test_still_counts_the_rows(self, sealed, administrator, tampering, kind):
        """Also where no row is read, one too few or too many shows."""
        await administrator.does(tampering)
        report = await sealed.verify(since=datetime.now(UTC) + timedelta(hours=1))
        assert set(report.counts) == {kind}


class TestTampering:
    @pytest.mark.parametrize(
        ("tampering", "kind", "leaf"),
        [
            (f"UPDATE audit.audit_logs SET actor_id = 'eve' WHERE id = {ROW.format(4)}", ProblemKind.CHANGED, 4),
            (
                ("UPDATE audit.audit_logs SET payload = replace(payload::text, 'user-1', 'user-2')::json "
                f"WHERE id = {ROW.format(12)}"), ProblemKind.CHANGED, 12,
            ),
            (
                ("UPDATE audit.audit_logs SET payload = replace(payload::text, 'user-1', 'user-2')::json, "
                "actor_id = 'user-2', content_hash = sha256(convert_to("
                "replace(payload::text, 'user-1', 'user-2'), 'UTF8')) "
                f"WHERE id = {ROW.format(22)}"), ProblemKind.CHANGED, 22,
            ),
            (
                ("UPDATE audit.audit_logs SET recorded_at = recorded_at - interval '1 microsecond' "
                f"WHERE id = {ROW.format(0)}"), ProblemKind.CHANGED, 0,
            ),
            (f"UPDATE audit.audit_logs SET recorded_at = 'infinity' WHERE id = {ROW.format(0)}", ProblemKind.CHANGED, 0),
            (f"DELETE FROM audit.audit_logs WHERE id = {ROW.format(7)}", ProblemKind.DELETED, 7),
            (
                ("DELETE FROM audit.audit_logs WHERE id IN "
                "(SELECT id FROM audit.audit_logs ORDER BY recorded_at DESC, id DESC LIMIT 5)"),
                ProblemKind.TRUNCATED_TAIL, 18,
            ),
            ("DELETE FROM audit.audit_logs", ProblemKind.TRUNCATED_TAIL, 0),
            (BLOCK_SWAP, ProblemKind.REORDERED, 0),
            ("DELETE FROM audit.ledger_blocks WHERE first = 10", ProblemKind.DELETED, 10),
            ("DELETE FROM audit.ledger_checkpoints WHERE size = 10", ProblemKind.DELETED, 0),
            ("DELETE FROM audit.ledger_blocks WHERE first = 11", ProblemKind.TRUNCATED_TAIL, 11),
            (
                ("UPDATE audit.ledger_checkpoints SET note = replace(note, E'\\n23\\n', E'\\n24\\n') "
                "WHERE size = 23"), ProblemKind.FORGED_SIGNATURE, None,
            ),
            ("UPDATE audit.ledger_checkpoints SET note = '' WHERE size = 10", ProblemKind.FORGED_SIGNATURE, None),
            ("UPDATE audit.ledger_log SET origin = 'another'", ProblemKind.FORGED_SIGNATURE, None),
            (
                ("UPDATE audit.ledger_blocks SET hashes = set_byte(hashes, 5, "
                "get_byte(hashes, 5) # 1) WHERE first = 10"), ProblemKind.CHANGED, 10,
            ),
            ("UPDATE audit.ledger_blocks SET ids = substr(ids, 2) WHERE first = 10", ProblemKind.CHANGED, 10),
        ],
    )  # fmt: skip
    async def test_is_named(self, sealed, administrator, tampering, kind, leaf):
        """The kind is right, and so is the first place."""
        assert not (await administrator.does(tampering)).endswith(" 0")
        report = await sealed.verify()
        assert report.counts[kind] >= 1
        assert leaf in [problem.leaf for problem in report.problems if problem.kind == kind]

    async def test_by_rewriting_row_and_leaf_is_found_by_the_root(self, sealed, administrator):
        """A row changed together with its leaf does not fit the signed root."""
        change = "replace(payload::text, 'user-1', 'user-2')"
        await administrator.does(
            f"UPDATE audit.audit_logs SET payload = ({change})::json, actor_id = 'user-2', "
            f"content_hash = sha256(convert_to({change}, 'UTF8')) WHERE id = {ROW.format(10)}"
        )
        row = await administrator.connection.fetchrow(
            "SELECT id, content_hash, (extract(epoch FROM recorded_at) * 1000000)::bigint AS us "
            f"FROM audit.audit_logs WHERE id = {ROW.format(10)}"
        )
        from otel_audit_postgres.ledger.leaves import Leaf

        leaf = Leaf(row["us"], row["id"].bytes, row["content_hash"]).hash()
        await administrator.does(
            "UPDATE audit.ledger_blocks SET hashes = $1 WHERE first = 10", leaf
        )
        report = await sealed.verify()
        assert report.counts == {ProblemKind.CHANGED: 1}
        assert report.first_bad.leaf == 10
        assert report.first_bad.record_id == str(row["id"])

    async def test_by_inserting_past_the_queue_is_named(self, sealed, administrator):
        """A row that was put in with the trigger off is named."""
        fake = uuid.uuid4()
        await administrator.does(
            "INSERT INTO audit.audit_logs SELECT (jsonb_populate_record(a, jsonb_build_object("
            f"'id', '{fake}'))).* FROM audit.audit_logs a WHERE id = {ROW.format(0)}"
        )
        report = await sealed.verify()
        assert [(p.kind, p.record_id) for p in report.problems] == [
            (ProblemKind.INSERTED, str(fake))
        ]

    async def test_by_a_second_row_of_one_id_is_named(self, sealed, administrator):
        """Another tenant's row under a sealed id is an insertion."""
        await administrator.does(
            "INSERT INTO audit.audit_logs SELECT (jsonb_populate_record(a, jsonb_build_object("
            f"'tenant_id', 'eve'))).* FROM audit.audit_logs a WHERE id = {ROW.format(0)}"
        )
        assert set((await sealed.verify()).counts) == {ProblemKind.INSERTED}

    async def test_with_an_old_copy_is_found_by_the_anchor(self, sealed, administrator):
        """A consistent older state differs from nothing but the anchor."""
        for statement in OLD_COPY:
            await administrator.does(statement)
        assert (await sealed.verify(anchors=[])).ok
        report = await sealed.verify()
        assert set(report.counts) == {ProblemKind.RESTORED_OLD_COPY}

    async def test_with_an_old_copy_that_went_on_is_found_by_the_anchor(
        self, sealed, administrator
    ):
        """Sealing past the anchored size does not hide that the history is another."""
        for statement in OLD_COPY:
            await administrator.does(statement)
        await sealed.write(20)
        await sealed.seal(anchors=[])
        assert (await sealed.verify(anchors=[])).ok
        assert set((await sealed.verify()).counts) == {ProblemKind.RESTORED_OLD_COPY}

    async def test_with_another_key_is_found(self, sealed, administrator):
        """A history that was sealed anew with another key has no valid signature."""
        await administrator.does("TRUNCATE audit.ledger_blocks, audit.ledger_checkpoints")
        await administrator.does(
            "INSERT INTO audit.ledger_queue (id, tenant_id, content_hash, recorded_at) "
            "SELECT id, tenant_id, content_hash, recorded_at FROM audit.audit_logs"
        )
        await sealed.seal(signer=generate(sealed.key.name), anchors=[])
        assert set((await sealed.verify(anchors=[])).counts) == {ProblemKind.FORGED_SIGNATURE}
        await sealed.seal(signer=None, anchors=[])

    async def test_of_the_anchor_is_found(self, sealed):
        """An anchor whose note was changed is forged."""
        note = await sealed.anchor.last()
        await sealed.anchor.publish(note.replace("\n23\n", "\n11\n"))
        assert set((await sealed.verify()).counts) == {ProblemKind.FORGED_SIGNATURE}

    async def test_before_sealing_is_named(self, sealed, administrator):
        """Rows that wait are compared with what was queued."""
        first, second = await sealed.write(2)
        await administrator.does("DELETE FROM audit.audit_logs WHERE id = $1", first)
        await administrator.does("UPDATE audit.audit_logs SET actor_id = '' WHERE id = $1", second)
        found = {(p.kind, p.record_id) for p in (await sealed.verify()).problems}
        assert found == {(ProblemKind.DELETED, first), (ProblemKind.CHANGED, second)}

    async def test_with_the_queue_is_named(self, sealed, administrator):
        """A row taken out of the queue stands outside of everything."""
        (record_id,) = await sealed.write(1)
        await administrator.does("DELETE FROM audit.ledger_queue")
        found = [(p.kind, p.record_id) for p in (await sealed.verify()).problems]
        assert found == [(ProblemKind.INSERTED, record_id)]

    @pytest.mark.parametrize(
        "removal",
        [
            "ALTER TABLE audit.audit_logs DISABLE TRIGGER refuse_change",
            "ALTER TABLE audit.audit_logs ENABLE TRIGGER queue_for_sealing",
            "ALTER TABLE audit.ledger_blocks DISABLE TRIGGER refuse_change",
            "DROP TRIGGER refuse_change ON audit.ledger_checkpoints",
            "DROP TRIGGER queue_for_sealing ON audit.audit_logs",
            "DROP TRIGGER refuse_change ON audit.audit_logs_default",
            (
                "CREATE OR REPLACE FUNCTION audit.queue_for_sealing() RETURNS trigger "
                "LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
            ),
            "CREATE RULE swallow AS ON INSERT TO audit.audit_logs DO INSTEAD NOTHING",
        ],
    )
    async def test_with_a_guard_is_named(self, sealed, connection, removal):
        """A guard that is off, gone or replaced."""
        await connection.execute(removal)
        assert set((await sealed.verify()).counts) == {ProblemKind.GUARD_REMOVED}


CELLS = st.sampled_from(
    [
        ("audit_logs", column)
        for column in (
            "id", "action_id", "phase", "tenant_id", "recorded_at", "occurred_at", "duration_ms",
            "event_name", "action", "outcome", "actor_id", "actor_type", "actor_role",
            "target_type", "target_id", "source_address", "user_agent", "session_id",
            "error_type", "service_name", "http_method", "http_route", "url_path", "status_code",
            "request_id", "trace_id", "span_id", "transaction_outcome", "entities",
            "producer_id", "sequence_number", "schema_version", "payload", "content_hash", "received_by",
        )
    ]
    + [("ledger_blocks", "first"), ("ledger_blocks", "ids"), ("ledger_blocks", "hashes")]
    + [("ledger_checkpoints", "size"), ("ledger_checkpoints", "note"), ("ledger_log", "origin")]
)  # fmt: skip
OTHER_VALUES = {
    "uuid": "gen_random_uuid()",
    "text": "coalesce({column}, '') || 'x'",
    "timestamp with time zone": "{column} + interval '1 microsecond'",
    "double precision": "{column} + 0.001",
    "integer": "coalesce({column}, 0) + 1",
    "bigint": "coalesce({column}, 0) + 1",
    "text[]": "{column} || 'x'::text",
    "json": "({column}::text || ' ')::json",
    "bytea": "set_byte({column}, {byte} % length({column}), "
    "get_byte({column}, {byte} % length({column})) # {mask})",
}
DEEDS = st.one_of(
    st.tuples(st.just("flip"), CELLS, st.integers(0, 22), st.integers(0, 10**6), st.integers(1, 255)),
    st.tuples(st.just("delete"), st.sets(st.integers(0, 22), min_size=1, max_size=5)),
    st.tuples(st.just("insert"), st.integers(0, 22)),
    st.tuples(st.just("swap"), st.sets(st.integers(0, 22), min_size=2, max_size=2)),
    st.tuples(st.just("cut"), st.integers(0, 22)),
    st.tuples(
        st.just("drop"),
        st.sampled_from(["ledger_blocks", "ledger_checkpoints", "ledger_log", "audit_logs"]),
        st.integers(0, 22),
    ),
    st.tuples(st.just("old copy"), st.sampled_from([10, 11])),
)  # fmt: skip


async def do(administrator, deed):  # noqa: PLR0911
    """Tamper; tell whether anything was changed."""
    kind, *what = deed
    connection = administrator.connection
    if kind == "flip":
        (table, column), number, byte, mask = what
        type_name = await connection.fetchval(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute "
            f"WHERE attrelid = 'audit.{table}'::regclass AND attname = '{column}'"
        )
        other = OTHER_VALUES[type_name].format(column=column, byte=byte, mask=mask)
        place = "(SELECT (tableoid, ctid)::text FROM audit.{0} ORDER BY (tableoid, ctid)::text OFFSET {1} % (SELECT count(*) FROM audit.{0}) LIMIT 1)"
        return await administrator.does(
            f"UPDATE audit.{table} t SET {column} = {other} "
            f"WHERE (t.tableoid, t.ctid)::text = {place.format(table, number)}"
        )
    if kind == "delete":
        ids = ", ".join(ROW.format(number) for number in what[0])
        return await administrator.does(f"DELETE FROM audit.audit_logs WHERE id IN ({ids})")
    if kind == "insert":
        return await administrator.does(
            "INSERT INTO audit.audit_logs SELECT (jsonb_populate_record(a, jsonb_build_object("
            "'id', gen_random_uuid()))).* FROM audit.audit_logs a "
            f"WHERE id = {ROW.format(what[0])}"
        )
    if kind == "swap":
        first, second = (ROW.format(number) for number in what[0])
        return await administrator.does(
            "UPDATE audit.audit_logs a SET recorded_at = b.recorded_at FROM audit.audit_logs b "
            f"WHERE a.id = {first} AND b.id = {second}"
        )
    if kind == "cut":
        return await administrator.does(
            "DELETE FROM audit.audit_logs WHERE id IN (SELECT id FROM audit.audit_logs "
            f"ORDER BY recorded_at, id OFFSET {what[0]})"
        )
    if kind == "drop":
        table, number = what
        return await administrator.does(
            f"DELETE FROM audit.{table} t WHERE (t.tableoid, t.ctid)::text IN "
            f"(SELECT (tableoid, ctid)::text FROM audit.{table} ORDER BY 1 "
            f"OFFSET {number} % (SELECT count(*) FROM audit.{table}))"
        )
    for statement in OLD_COPY:
        await administrator.does(statement.replace("11", str(what[0])))
    return "DELETE 1"


class TestAnyTampering:
    @pytest.mark.slow
    @settings(
        max_examples=25,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        deadline=None,
    )
    @given(deed=DEEDS)
    async def test_is_found(self, postgres, sealed, deed):
        """Flip, delete, insert, swap, cut, drop or restore: any row, any table, it shows."""
        template = sealed.dsn.partition("?")[0].rpartition("/")[2]
        name = f"tampered_{uuid.uuid4().hex[:12]}"
        await postgres.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            copy = Log.__new__(Log)
            copy.dsn, copy.key, copy.anchor = postgres.dsn(name), sealed.key, sealed.anchor
            assert (await copy.verify()).ok
            connection = await asyncpg.connect(copy.dsn)
            try:
                status = await do(Administrator(connection), deed)
            except asyncpg.IntegrityConstraintViolationError:
                return
            finally:
                await connection.close()
            report = await copy.verify()
            assert not report.ok or status.endswith(" 0")
        finally:
            await postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


class TestWithoutLedger:
    async def test_the_remedy_is_named(self, database):
        """A store that is no store says what to do."""
        from otel_audit.errors import StoreError

        with pytest.raises(StoreError, match="otel-audit init"):
            await verify(database)

    async def test_an_anchor_that_is_away_is_a_warning(self, sealed, tmp_path):
        """What cannot be asked is said, and is no tampering."""
        (tmp_path / "file").write_text("")
        away = FileAnchor(tmp_path / "file" / "below", directory=False)
        report = await sealed.verify(anchors=[away])
        assert report.ok
        assert any("not checked" in warning for warning in report.warnings)
