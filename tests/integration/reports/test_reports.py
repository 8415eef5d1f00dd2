"""Reports: golden files from a fixed store, the same bytes for a checkpoint, and honest edges.

To write the golden files anew: UPDATE_GOLDEN=1 pytest tests/integration/reports/test_reports.py
"""

from __future__ import annotations

import asyncio
import csv
import functools
import hashlib
import io
import json
import os
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import asyncpg
import pytest
from click.testing import CliRunner
from ledger_store import Administrator
from otel_audit_postgres import init, maintain
from otel_audit_postgres.ledger.anchors import FileAnchor
from otel_audit_postgres.ledger.checkpoints import signed_text
from otel_audit_postgres.ledger.keys import generate
from otel_audit_postgres.ledger.merkle import Frontier
from otel_audit_postgres.pseudonyms import EncryptedValue
from otel_audit_postgres.query import queries
from otel_audit_postgres.reports.evidence import Witnesses
from otel_audit_postgres.reports.make_report import NOBODY, checked, make_report
from otel_audit_postgres.reports.options import Options
from otel_audit_postgres.reports.registry import REPORTS, find_report
from otel_audit_postgres.reports.render import pieces
from otel_audit_postgres.reports.snapshot import utc_text
from report_store import BEGIN, END, ReportStore, fixed, records

from otel_audit.cli.main import cli
from otel_audit.errors import ConfigurationError, StoreError
from otel_audit.record import Change, Received, Target

GOLDEN = Path(__file__).parent / "golden"
WHOLE = Options(begin=BEGIN, end=END)
ASKED = {
    "incident": replace(WHOLE, query="actor:eve"),
    "subject": replace(WHOLE, subject="p-77"),
    "review": replace(WHOLE, sample=5, seed="q4"),
}


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Let this process write no file that is larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def made(
    dsn: str,
    name: str,
    options: Options | None = None,
    form: str = "json",
    witnesses: Witnesses = NOBODY,
) -> str:
    asked = options or ASKED.get(name, WHOLE)
    async with queries.opened(dsn) as connection:
        found = await make_report(connection, REPORTS[name], asked, witnesses=witnesses)
    try:
        return b"".join(pieces(found, form)).decode()
    finally:
        found.close()


def rows_of(text: str) -> list[dict]:
    told = json.loads(text)
    return [dict(zip(told["columns"], row, strict=True)) for row in told["rows"]]


class TestEachReport:
    @pytest.mark.parametrize("name", REPORTS)
    async def test_is_that_of_its_golden_files(self, store, name):
        """HTML, CSV and JSON of a fixed store, to the byte."""
        for form in ("html", "csv", "json"):
            found = (await made(store.dsn, name, form=form)).replace(
                f"otel-audit {version('otel-audit')}", "otel-audit VERSION"
            )
            golden = GOLDEN / f"{name}.{form}"
            if os.environ.get("UPDATE_GOLDEN"):
                golden.parent.mkdir(exist_ok=True)
                golden.write_bytes(found.encode())
            assert found.encode() == golden.read_bytes(), f"{golden} differs"

    async def test_on_rights_is_the_same_where_many_records_may_be_about_them(
        self, store, monkeypatch
    ):
        """Few are looked up by their ids, and many are not: either way the same rows."""
        few = await made(store.dsn, "rights")
        monkeypatch.setattr("otel_audit_postgres.reports.snapshot._MOST_SIEVED", 1)
        assert await made(store.dsn, "rights") == few

    @pytest.mark.parametrize("name", REPORTS)
    async def test_is_the_same_for_a_checkpoint_whatever_came_later(self, store, name):
        """Records that are sealed later, and records that wait, change none of its bytes."""
        asked = replace(ASKED.get(name, WHOLE), checkpoint=len(records()))
        before = await made(store.dsn, name, asked)
        late = [replace_id(one, 1_000 + n) for n, one in enumerate(records())]
        await store.add(late)
        await store.add([fixed(2_000, "order.waits")], seals=False)

        assert await made(store.dsn, name, asked) == before

    @pytest.mark.parametrize("name", REPORTS)
    async def test_that_is_empty_says_why(self, store, name):
        """That nothing was recorded is not the same as that nothing happened."""
        quiet = replace(
            ASKED.get(name, WHOLE), begin=datetime(2026, 9, 3, tzinfo=UTC),
            end=datetime(2026, 9, 4, tzinfo=UTC),
        )  # fmt: skip
        told = json.loads(await made(store.dsn, name, quiet))

        if name == "integrity":
            assert told["rows"][0][1] == 0
        elif name == "disposal":
            assert told["rows"][0][4] == 40
        else:
            assert "nothing was recorded in this period at all" in told["nothing"]
            assert "not the same as that nothing happened" in told["nothing"]

    @pytest.mark.parametrize("name", REPORTS)
    async def test_lets_no_hostile_text_become_markup_formula_or_control(self, store, name):
        """Whatever an application's users put into a record."""
        page = await made(store.dsn, name, form="html")
        table = await made(store.dsn, name, form="csv")
        for text in (page, table, await made(store.dsn, name)):
            assert "\x1b" not in text
            assert "\u202e" not in text
        assert "<script" not in page
        cells = [cell for line in csv.reader(io.StringIO(table, newline="")) for cell in line]
        assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))] == []


def replace_id(record, number: int):
    import msgspec

    fresh = fixed(number, record.event_name)
    return msgspec.structs.replace(
        record, record_id=fresh.record_id, action_id=fresh.record_id, sequence_number=None,
        producer_id=None,
    )  # fmt: skip


_COLLAPSED = (
    """
    INSERT INTO audit.ledger_pruned (first, leaves, hash)
    SELECT 0, 16, decode(split_part(note, E'\\n', 3), 'base64') FROM audit.ledger_checkpoints
    WHERE size = 16
    """,
    "DELETE FROM audit.ledger_blocks WHERE first < 16",
    "DELETE FROM audit.audit_logs WHERE id < audit.uuid_at('2026-10-01T17:30Z')",
)
_DROPPED = """
INSERT INTO audit.ledger_prunings (partition, manifest_id, lowest, above, rows)
VALUES ('audit_logs_{month}', '{id}', '{lowest}', '{above}', {rows})
"""


class TestWhatItSays:
    async def test_gaps_are_in_every_head(self, store):
        """The numbers 16 and 17 of a producer are missing."""
        told = json.loads(await made(store.dsn, "coverage"))

        assert any(note.startswith("GAPS: 2 numbers are missing") for note in told["notes"])

    async def test_what_the_checkpoint_does_not_cover(self, store):
        """A period that goes on after it."""
        asked = replace(WHOLE, end=datetime(2026, 11, 20, tzinfo=UTC))
        told = json.loads(await made(store.dsn, "coverage", asked))

        assert any(note.startswith("NOT COVERED") for note in told["notes"])

    async def test_which_months_of_the_period_were_dropped(self, store):
        """And nothing of it is taken for tampering: what was dropped in order is accounted for."""
        connection = await asyncpg.connect(store.dsn)
        lowest, above = await connection.fetchrow(
            "SELECT audit.uuid_at('2026-09-01Z')::text, audit.uuid_at('2026-10-01Z')::text"
        )
        await connection.close()
        said = {"partition": "audit_logs_2026_09", "rows": 0, "lowest": lowest, "above": above}
        manifest = fixed(30, "audit.partition.retired", tenant=None, metadata=said)
        await store.add([manifest])
        await tamper(store.dsn, _DROPPED.format(month="2026_09", id=manifest.record_id, **said))
        for name in ("coverage", "integrity", "disposal"):
            asked = replace(WHOLE, begin=datetime(2026, 9, 1, tzinfo=UTC))
            notes = json.loads(await made(store.dsn, name, asked))["notes"]
            assert "NOT HERE: records of 2026-09 were dropped; see the archive" in notes
            assert [note for note in notes if note.startswith("TAMPERED")] == []

    async def test_a_checkpoint_within_what_was_dropped_is_no_tampering(
        self, audit_store, tmp_path
    ):
        """Its leaves are collapsed: there is nothing to compare, and a later one can be compared."""
        store = ReportStore(audit_store, tmp_path)
        await maintain(store.dsn, months=[date(2026, 10, 1)])
        said = {
            "partition": "audit_logs_2026_09", "rows": 16,
            "lowest": "01a0f4c2-c400-0000-0000-000000000000", "above": records()[15].record_id[:-1] + "f",
        }  # fmt: skip
        manifest = fixed(30, "audit.partition.retired", tenant=None, metadata=said)
        for found in (records()[:8], records()[8:16], [*records()[16:], manifest]):
            await store.add(found)
        await tamper(store.dsn, _DROPPED.format(month="2026_09", id=manifest.record_id, **said))
        for statement in _COLLAPSED:
            await tamper(store.dsn, statement)

        for name in ("integrity", "coverage"):
            within = json.loads(await made(store.dsn, name, replace(WHOLE, checkpoint=8)))
            assert within["head"]["evidence"].startswith("not available"), name
            assert [note for note in within["notes"] if note.startswith("TAMPERED")] == []
        whole = json.loads(await made(store.dsn, "coverage"))
        assert whole["head"]["evidence"].endswith("the leaves make up the root")

    async def test_what_the_readers_scope_hides(self, store, postgres):
        """Whoever sees one tenant gets no other's records, and the head says so."""
        connection = await asyncpg.connect(store.dsn)
        database = await connection.fetchval("SELECT current_database()")
        role = f"only_{database}"
        await connection.execute(f"CREATE ROLE {role} LOGIN")
        try:
            await init(store.dsn, roles=True, reader=role)
            await connection.execute("DELETE FROM audit.reader_tenants WHERE role_name = $1", role)
            await connection.execute("INSERT INTO audit.reader_tenants VALUES ($1, 'clinic')", role)
            await connection.execute("SELECT audit.open_stream('siem', '{}', 0)")
            narrow = postgres.dsn(database, role)
            told = json.loads(await made(narrow, "sensitive-access"))
            hidden = json.loads(await made(narrow, "rights"))
            (integrity,) = rows_of(await made(narrow, "integrity"))
            disposal = rows_of(await made(narrow, "disposal"))
            async with queries.opened(narrow) as reader:
                streams = await reader.fetchval("SELECT count(*) FROM audit.streams")
                parked = await reader.fetchval("SELECT count(*) FROM audit.stream_parked")
        finally:
            await connection.execute(f"DROP OWNED BY {role}")
            await connection.execute(f"DROP ROLE {role}")
            await connection.close()

        assert len(told["rows"]) == 2
        assert hidden["rows"] == []
        assert any("clinic" in note and "hidden" in note for note in told["notes"])
        # records of others between its own would be taken for gaps, and be counted by that
        assert not any(note.startswith("GAPS") for note in told["notes"])
        for column in ("gaps by producer", "losses", "quarantined", "guards changed"):
            assert integrity[column] == "not shown: counts the whole store"
        for row in disposal:
            for column in ("archived", "dropped", "holds", "erasures", "policy version", "overdue"):
                assert row[column] == "not shown: counts the whole store"
        assert (streams, parked) == (0, 0)

    async def test_of_one_tenant_counts_no_others(self, store):
        """For whoever sees all of them, too: the report may be handed to that tenant."""
        told = json.loads(await made(store.dsn, "coverage", replace(WHOLE, tenant="clinic")))
        (integrity,) = rows_of(await made(store.dsn, "integrity", replace(WHOLE, tenant="clinic")))

        assert not any(note.startswith("GAPS") for note in told["notes"])
        assert integrity["gaps by producer"] == "not shown: counts the whole store"

    async def test_a_persons_file_tells_which_records_were_erased(self, store):
        """By the keys that were destroyed, and not by whether anything was ever erased."""
        values = {key: EncryptedValue(b"p" * 12, bytes([key]) * 8, b"box").text() for key in (1, 2)}
        target = Target(type="patient", id="p-99")
        await store.add([
            fixed(40, "visit.noted", target=target, metadata={"note": values[1]}),
            fixed(41, "visit.noted", target=target, metadata={"note": values[2]}),
            fixed(42, "visit.noted", target=target, metadata={"note": [values[1], values[2]]}),
            fixed(43, "visit.noted", target=target),
            fixed(44, "audit.subject.erased", tenant=None, metadata={"keys": ["01" * 8]}),
        ])  # fmt: skip

        rows = rows_of(await made(store.dsn, "subject", replace(WHOLE, subject="p-99")))

        assert [row["erased"] for row in rows] == ["yes", "no", "in part", "no"]

    async def test_no_sender_signs_off(self, store):
        """A sign-off is what the store recorded, and not a record that came in from somewhere."""
        asked = {
            "begin": utc_text(BEGIN), "end": utc_text(END), "seed": "q4", "sample": 5,
            "finding": "nothing strange",
        }  # fmt: skip
        forged = fixed(
            3_000, "audit.viewed", target=Target(type="audit_review", id="q4"),
            metadata={"asked": asked}, received=Received(by="a sender", hash="0" * 64),
        )  # fmt: skip
        await store.add([forged])

        assert {row["finding"] for row in rows_of(await made(store.dsn, "review"))} == {None}

    async def test_changes_names_who_approved_what_they_made(self, store):
        """The same person made and approved order 1; order 2 has two persons."""
        rows = rows_of(await made(store.dsn, "changes"))
        said = {
            row["entity"]: row["same actor created and approved"]
            for row in rows
            if row["same actor created and approved"]
        }

        assert said == {"order:1": "YES", "order:2": "no"}

    async def test_sign_ins_count_a_success_after_failures(self, store):
        """Three failures and then a success."""
        rows = {row["actor"]: row for row in rows_of(await made(store.dsn, "sign-ins"))}

        assert (rows["eve"]["failures"], rows["eve"]["successes after failures"]) == (3, 1)
        assert (rows["eve"]["401"], rows["ada"]["403"]) == (3, 1)

    async def test_a_sign_off_is_a_record_and_in_the_next_report(self, store):
        """Who signed, and what was found."""
        options = ASKED["review"]
        arguments = [
            "report", "review", "--from", "2026-10-01", "--to", "2026-11-01", "--seed", "q4",
            "--sample", "5", "--sign-off", "nothing strange",
        ]  # fmt: skip
        invoke = functools.partial(
            CliRunner().invoke, cli, arguments, env={"OTEL_AUDIT_DSN": store.dsn}
        )
        done = await asyncio.to_thread(invoke)
        assert done.exit_code == 0, done.output
        await store.seal()

        rows = rows_of(await made(store.dsn, "review", options))
        assert {row["finding"] for row in rows} == {"nothing strange"}
        assert {row["reviewer"] for row in rows} != {None}


_FORGED = """
INSERT INTO audit.audit_logs SELECT (jsonb_populate_record(l, '{"id":
    "01a0f4c2-c400-7000-80b6-3dd0069e8dce", "event_name": "user.role_changed"}')).*
FROM audit.audit_logs l WHERE event_name = 'order.paid'
"""
TAMPERED = {
    "text": (
        ("UPDATE audit.audit_logs SET payload = replace(payload::text, 'order', 'offer')::json "
        "WHERE event_name = 'order.paid'"),
        "1 records were changed",
    ),
    "column": (
        "UPDATE audit.audit_logs SET actor_id = 'mallory' WHERE event_name = 'order.paid'",
        "columns that do not follow from the payload: actor_id",
    ),
    "time": (
        ("UPDATE audit.audit_logs SET occurred_at = occurred_at - interval '1 minute' "
        "WHERE event_name = 'order.paid'"),
        "columns that do not follow from the payload: occurred_at",
    ),
    "sender": (
        "UPDATE audit.audit_logs SET received_by = 'a sender' WHERE event_name = 'audit.viewed'",
        "columns that do not follow from the payload: received_by",
    ),
    "agent": (
        "UPDATE audit.audit_logs SET user_agent = 'another' WHERE event_name = 'order.paid'",
        "columns that do not follow from the payload: user_agent",
    ),
    "hash": (
        "UPDATE audit.audit_logs SET content_hash = sha256('x') WHERE event_name = 'order.paid'",
        "1 records are not as they were sealed",
    ),
    "record": (
        "DELETE FROM audit.audit_logs WHERE event_name = 'order.paid'",
        "1 sealed records are gone",
    ),
    "leaf": (
        "UPDATE audit.ledger_blocks SET hashes = overlay(hashes PLACING sha256('x') FROM 1 FOR 32)",
        "do not make up the checkpoint's root",
    ),
}  # fmt: skip
"""What a person with every right does to a sealed trail, and what the report on it says."""
OF_COLUMNS = frozenset({"column", "time", "sender", "agent"})


async def tamper(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await Administrator(connection).does(statement)
    finally:
        await connection.close()


class TestEvidence:
    @pytest.mark.parametrize("kind", TAMPERED)
    async def test_integrity_names_what_was_tampered_with(self, store, kind):
        """A text, a column, a time, a hash, a record, a leaf: each shows, and says which."""
        statement, says = TAMPERED[kind]
        await tamper(store.dsn, statement)
        told = json.loads(await made(store.dsn, "integrity"))
        (row,) = rows_of(json.dumps(told))

        assert row["verdict"].startswith("TAMPERED: ")
        assert says in row["verdict"]
        assert told["head"]["evidence"].startswith("TAMPERED")

    @pytest.mark.parametrize("name", ["coverage", "rights", "subject"])
    @pytest.mark.parametrize("kind", [one for one in TAMPERED if one not in OF_COLUMNS])
    async def test_every_report_says_that_records_are_not_those_that_were_sealed(
        self, store, name, kind
    ):
        """As far as ids, times, texts and hashes tell, whatever the report is about."""
        statement, says = TAMPERED[kind]
        await tamper(store.dsn, statement)
        told = json.loads(await made(store.dsn, name))

        assert any(note.startswith("TAMPERED: ") and says in note for note in told["notes"])

    @pytest.mark.parametrize("name", [name for name in REPORTS if name != "incident"])
    async def test_an_edited_text_is_told_by_each_report_of_a_tenant(self, store, name):
        """A writer to the table who leaves the hash as it was is found in the part that is shown."""
        statement, says = TAMPERED["text"]
        await tamper(store.dsn, statement)
        for tenant, is_told in (("acme", True), ("clinic", False)):
            told = json.loads(
                await made(store.dsn, name, replace(ASKED.get(name, WHOLE), tenant=tenant))
            )
            assert any(says in note for note in told["notes"]) == is_told, tenant

    async def test_a_record_that_was_put_in_behind_the_ledger_is_told(self, store):
        """Whoever keeps a trigger from queueing it: it is in no report without a warning."""
        connection = await asyncpg.connect(store.dsn)
        await Administrator(connection).does(_FORGED)
        await Administrator(connection).does("DELETE FROM audit.ledger_queue")
        await connection.close()

        for name in ("rights", "integrity"):
            told = json.loads(await made(store.dsn, name))
            says = "1 records were never sealed, and do not wait for it"
            assert any(says in note for note in told["notes"]), name

    async def test_a_month_that_was_dropped_without_a_sealed_record_of_it_is_told(self, store):
        """Whoever deletes records could say that they were dropped in order."""
        await tamper(store.dsn, TAMPERED["record"][0])
        bounds = {"lowest": "01a0f000-0000-7000-8000-000000000000", "above": "f" * 32}
        forged = _DROPPED.format(month="2026_10", id=records()[0].record_id, rows=1, **bounds)
        await tamper(store.dsn, forged)

        notes = json.loads(await made(store.dsn, "rights"))["notes"]
        assert any("was dropped without a sealed record of it" in note for note in notes)
        assert any("1 sealed records are gone" in note for note in notes)

    @pytest.mark.parametrize("first", [8, 16])
    async def test_leaves_that_were_collapsed_though_no_month_was_dropped_are_told(
        self, audit_store, tmp_path, first
    ):
        """A collapsed leaf names no record: whoever deletes some could collapse theirs."""
        store = ReportStore(audit_store, tmp_path)
        await maintain(store.dsn, months=[date(2026, 10, 1)])
        for begin, end in ((0, 8), (8, 16), (16, 23)):
            await store.add(records()[begin:end])
        deleted = [one.record_id for one in records()[first : first + 8]]
        connection = await asyncpg.connect(store.dsn)
        hashes = await connection.fetchval(
            "SELECT hashes FROM audit.ledger_blocks WHERE first = $1", first
        )
        leaves = [hashes[at : at + 32] for at in range(0, len(hashes), 32)]
        does = Administrator(connection).does
        await does("DELETE FROM audit.audit_logs WHERE id = ANY($1::uuid[])", deleted)
        await does("DELETE FROM audit.ledger_blocks WHERE first = $1", first)
        await does(
            "INSERT INTO audit.ledger_pruned (first, leaves, hash) VALUES ($1, 8, $2)",
            first, Frontier().extended(leaves).root(),
        )  # fmt: skip
        await connection.close()

        for name in ("changes", "integrity"):
            notes = json.loads(await made(store.dsn, name))["notes"]
            says = "TAMPERED: 0 records were dropped with their months, as sealed; 8 are gone"
            assert says in notes, name
            # leaves that end behind the log's last checkpoint can lead to no root
            is_told = any("do not make up the last checkpoint's root" in note for note in notes)
            assert is_told == (first == 16), name

    @pytest.mark.parametrize("name", ["coverage", "integrity"])
    async def test_a_record_that_came_after_its_month_was_dropped_is_no_tampering(
        self, store, name
    ):
        """It is compared by itself; and if it is changed, that is told."""
        said = {
            "partition": "audit_logs_2026_09", "rows": 7,
            "lowest": "01a0f4c2-c400-0000-0000-000000000000",
            "above": records()[6].record_id[:-1] + "f",
        }  # fmt: skip
        manifest = fixed(30, "audit.partition.retired", tenant=None, metadata=said)
        late = fixed(3, "order.late")
        await store.add([manifest])
        await tamper(
            store.dsn, f"DELETE FROM audit.audit_logs WHERE id <= '{records()[6].record_id}'"
        )
        await tamper(store.dsn, _DROPPED.format(month="2026_09", id=manifest.record_id, **said))
        await store.add([late])
        told = json.loads(await made(store.dsn, name))
        assert [note for note in told["notes"] if note.startswith("TAMPERED")] == []

        await tamper(
            store.dsn,
            f"UPDATE audit.audit_logs SET content_hash = sha256('x') WHERE id = '{late.record_id}'",
        )
        notes = json.loads(await made(store.dsn, name))["notes"]
        assert any("1 records are not as they were sealed" in note for note in notes)

    @pytest.mark.parametrize("name", ["changes", "integrity"])
    async def test_a_record_of_another_tenant_under_the_same_id_hides_none(self, store, name):
        """A writer can insert one: what waits, or was sealed later, is left out by its own leaf."""
        sealed = replace(WHOLE, checkpoint=len(records()))
        before = await made(store.dsn, name, sealed)
        own = await made(store.dsn, name, replace(sealed, tenant="acme"))
        connection = await asyncpg.connect(store.dsn)
        columns = await connection.fetchval(
            "SELECT string_agg(attname, ', ') FROM pg_attribute WHERE attnum > 0 "
            "AND attrelid = 'audit.audit_logs'::regclass AND attname <> 'recorded_at'"
        )
        await connection.execute(
            f"INSERT INTO audit.audit_logs ({columns}) SELECT {columns} FROM jsonb_populate_record("
            '(SELECT l FROM audit.audit_logs l WHERE id = $1), \'{"tenant_id": "evil"}\')',
            records()[0].record_id,
        )
        await connection.close()

        assert await made(store.dsn, name, sealed) == before
        assert await made(store.dsn, name, replace(sealed, tenant="acme")) == own
        await store.seal()
        assert await made(store.dsn, name, sealed) == before
        assert await made(store.dsn, name, replace(sealed, tenant="acme")) == own

    async def test_a_sealed_record_that_is_said_to_wait_is_in_the_report(self, store):
        """Whoever writes to the queue takes nothing out of a tenant's report."""
        acme = replace(WHOLE, tenant="acme")
        before = await made(store.dsn, "changes", acme)
        await tamper(
            store.dsn,
            "INSERT INTO audit.ledger_queue (id, tenant_id, content_hash, recorded_at) "
            "SELECT id, tenant_id, content_hash, recorded_at FROM audit.audit_logs "
            "WHERE event_name = 'order.paid'",
        )
        assert await made(store.dsn, "changes", acme) == before

    async def test_a_record_that_was_moved_from_another_month_is_told(self, store):
        """Its id is of another time, so its leaf is not among those of the period."""
        await store.add([fixed(900, "order.november")])
        await tamper(
            store.dsn,
            "UPDATE audit.audit_logs SET occurred_at = '2026-10-20Z', actor_id = 'mallory' "
            "WHERE event_name = 'order.november'",
        )
        (row,) = rows_of(await made(store.dsn, "integrity"))
        assert "actor_id" in row["verdict"]

    async def test_integrity_asks_the_anchors_and_checks_the_signature(self, store):
        """And says so where there is nobody to ask."""
        witnesses = Witnesses((store.key.public,), (store.anchor,))
        (row,) = rows_of(await made(store.dsn, "integrity", witnesses=witnesses))
        (alone,) = rows_of(await made(store.dsn, "integrity"))

        assert row["anchors asked"] == f"{store.anchor.name}: agrees"
        assert row["key"] == f"{store.key.name}, checked"
        assert alone["anchors asked"].startswith("no anchor was asked")
        assert alone["key"].endswith("not checked: no public key was given")

    async def test_an_anchor_that_saw_another_trail_is_told(self, store, tmp_path):
        """An old copy of the whole store, or one that was rewritten, holds by itself alone."""
        other = FileAnchor(tmp_path / "other", directory=False)
        note = (tmp_path / "anchor").read_text()
        lines = note.splitlines()
        forged = signed_text(f"{lines[0]}\n99\n{lines[2]}\n", [store.key])
        await other.publish(forged)
        witnesses = Witnesses((store.key.public,), (other,))
        (row,) = rows_of(await made(store.dsn, "integrity", witnesses=witnesses))

        assert "has seen 99 leaves" in row["anchors asked"]
        assert row["verdict"].startswith("TAMPERED: an anchor contradicts the store")

    async def test_a_key_that_has_not_signed_is_told(self, store):
        """Whoever owns the database can sign with a key of his own."""
        witnesses = Witnesses((generate("audit.example.com/log").public,), ())
        (row,) = rows_of(await made(store.dsn, "integrity", witnesses=witnesses))

        assert "none of the given keys has signed" in row["verdict"]

    async def test_a_record_whose_id_is_of_another_time_is_no_forgery(self, store):
        """It came late, or under an id of its own; its leaf is where it was sealed."""
        late = fixed(5_000, "order.paid", occurred_at=int(BEGIN.timestamp()) * 10**9 + 10**12)
        await store.add([late])
        told = json.loads(await made(store.dsn, "integrity"))

        assert [note for note in told["notes"] if note.startswith("TAMPERED")] == []
        assert rows_of(json.dumps(told))[0]["rows"] == len(records()) + 1

    async def test_of_one_tenant_it_is_about_the_own_records_alone(self, store):
        """Neither a number of others, nor the size of the whole log, nor the signed note."""
        await tamper(store.dsn, TAMPERED["record"][0])
        clinic = replace(WHOLE, tenant="clinic")
        for name in REPORTS:
            asked = replace(ASKED.get(name, WHOLE), tenant="clinic")
            witnesses = Witnesses((store.key.public,), (store.anchor,))
            text = await made(store.dsn, name, asked, witnesses=witnesses)
            told = json.loads(text)
            assert store.anchor.name not in text
            assert not any(note.startswith("TAMPERED") for note in told["notes"]), name
            assert "23 leaves" not in text
            assert "--checkpoint 23" not in text
            assert told["checkpoint"] is None
            assert "acme" not in text
        await tamper(
            store.dsn,
            "UPDATE audit.audit_logs SET content_hash = sha256('x') WHERE action = 'READ'",
        )
        told = json.loads(await made(store.dsn, "integrity", clinic))
        (row,) = rows_of(json.dumps(told))
        assert "1 records are not as they were sealed" in row["verdict"]
        assert row["longest seal lag"] == "not shown: counts the whole store"

    async def test_the_rows_are_hashed_as_the_file_has_them(self, store):
        """What the section on checks says: each row of the JSON file is a line that was hashed."""
        odd = "\x7f \u2028 \x85 \U0001f600 \\ / \x01"
        await store.add([fixed(40, "order.read", target=Target(type="order", id=odd), changes=(
            Change(operation="update", entity="Note", table="notes", key={"id": odd}, values={odd: [odd, 1.5]}),
        ))])  # fmt: skip
        for name in REPORTS:
            told = json.loads(await made(store.dsn, name))
            # as jq writes it: the one character beyond JSON's own that has an escape is DEL
            lines = "".join(
                json.dumps(row, separators=(",", ":"), ensure_ascii=False) + "\n"
                for row in told["rows"]
            ).replace("\x7f", "\\u007f")
            digest = hashlib.sha256(lines.encode()).hexdigest()
            assert digest == told["head"]["SHA-256 of the rows"], name


class TestTheCommand:
    async def run(self, store, *arguments: str, env: dict[str, str] | None = None):
        environment = {"OTEL_AUDIT_DSN": store.dsn, **(env or {})}
        invoke = functools.partial(CliRunner().invoke, cli, ["report", *arguments], env=environment)
        return await asyncio.to_thread(invoke)

    PERIOD = ("--from", "2026-10-01", "--to", "2026-11-01")

    async def test_writes_the_forms_and_records_the_look(self, store, tmp_path):
        """Three files of one reading, and a record of the look."""
        out = str(tmp_path)
        done = await self.run(
            store, "rights", *self.PERIOD, "--format", "html,csv,json", "--out", out
        )
        assert done.exit_code == 0, done.output
        names = {f"rights-20261001-20261101.{form}" for form in ("html", "csv", "json")}
        assert {one.name for one in tmp_path.iterdir() if one.name.startswith("rights")} == names
        connection = await asyncpg.connect(store.dsn)
        row = await connection.fetchrow(
            "SELECT payload::text AS text FROM audit.audit_logs WHERE event_name = 'audit.viewed' "
            "ORDER BY id DESC LIMIT 1"
        )
        await connection.close()
        told = json.loads(row["text"])["metadata"]
        assert (told["question"], told["asked"]["report"]) == ("report", "rights")

    async def test_ends_now_by_default(self, store, tmp_path):
        """Without --to the period ends at the present time."""
        begun = datetime.now(UTC)
        options = ("--from", "2026-10-01", "--format", "json", "--out", str(tmp_path))
        done = await self.run(store, "rights", *options)
        assert done.exit_code == 0, done.output
        (file,) = tmp_path.glob("rights-*.json")
        period = json.loads(file.read_text())["head"]["period"]
        end = datetime.fromisoformat(re.findall(r"\d{4}-\d\d-\d\dT[\d:.]+Z", period)[-1])
        assert begun - timedelta(seconds=1) < end <= datetime.now(UTC)

    async def test_lists_the_reports(self, store):
        """Each with what it shows."""
        found = await self.run(store)
        assert all(name in found.output for name in REPORTS)

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("rigths", *PERIOD), "did you mean rights?"),
            (("rights",), "--from is needed"),
            (("rights", "--from", "2999-01-01", "--to", "2999-02-01"), "ends in the future"),
            (("rights", "--from", "2026-11-01", "--to", "2026-10-01"), "the period is empty"),
            (("rights", "--from", "soon", "--to", "2026-11-01"), "is not a time"),
            (("rights", *PERIOD, "--query", "actor:"), "column"),
            (("rights", *PERIOD, "--query", "colour:red"), "column 1"),
            (("rights", *PERIOD, "--format", "pdf"), "'pdf' is none of"),
            (("rights", *PERIOD, "--out", "{}/none"), "cannot be written"),
            (("rights", *PERIOD, "--checkpoint", "7"), "none has size 7; near are 23"),
            (("subject", *PERIOD), "needs --subject"),
            (("rights", *PERIOD, "--subject", "7"), "--subject goes with"),
            (("incident", *PERIOD), "needs --query"),
            (("review", *PERIOD, "--sample", "0"), "--sample: from 1"),
            (("rights", *PERIOD, "--sign-off", "x"), "goes with the report review"),
        ],
    )  # fmt: skip
    async def test_refuses_what_cannot_be_done(self, store, tmp_path, arguments, says):
        """What, where, what to do; and nothing half written is left."""
        out = tmp_path / "out"
        out.mkdir()
        told = [one.format(tmp_path) for one in arguments]
        more = [] if "--out" in told else ["--out", str(out)]
        found = await self.run(store, *told, *more)

        assert found.exit_code != 0
        assert says in found.output
        assert list(out.iterdir()) == []

    async def test_replaces_a_file_only_where_it_is_told_to(self, store, tmp_path):
        """One line, and what was there stays; --force replaces it."""
        told = ("rights", *self.PERIOD, "--out", str(tmp_path))
        file = tmp_path / "rights-20261001-20261101.html"
        file.write_text("somebody's")
        found = await self.run(store, *told)
        assert found.exit_code == 1
        assert "is there already; give another --out, or --force" in found.output
        assert file.read_text() == "somebody's"

        assert (await self.run(store, *told, "--force")).exit_code == 0
        assert file.read_text() != "somebody's"

    async def test_leaves_nothing_where_the_disk_is_full(self, store, tmp_path):
        """One line says so; a limit of the file's size fails as a full disk does."""
        with at_most(2_000):
            found = await self.run(store, "rights", *self.PERIOD, "--out", str(tmp_path))

        assert found.exit_code == 1
        assert "the report cannot be written to" in found.output
        assert "File too large; nothing is left there" in " ".join(found.output.split())
        assert [one for one in tmp_path.iterdir() if "rights" in one.name] == []

    async def test_fails_where_records_are_not_as_they_were_sealed(self, store, tmp_path):
        """The file is there all the same: it says what was found."""
        told = ("rights", *self.PERIOD, "--out", str(tmp_path))
        await tamper(store.dsn, TAMPERED["record"][0])
        found = await self.run(store, *told)

        assert found.exit_code == 1
        assert "TAMPERED: 1 sealed records are gone" in found.output
        assert "TAMPERED" in (tmp_path / "rights-20261001-20261101.html").read_text()

    async def test_asks_the_anchors_that_the_settings_name(self, store, tmp_path):
        """And checks by the key that they name."""
        (tmp_path / "ledger.pub").write_text(store.key.public.text())
        environment = {
            "OTEL_AUDIT_ANCHOR": f"file:{tmp_path / 'anchor'}",
            "OTEL_AUDIT_VERIFY_KEYS": str(tmp_path / "ledger.pub"),
        }
        told = ("integrity", *self.PERIOD, "--out", str(tmp_path), "--format", "json")
        found = await self.run(store, *told, env=environment)
        assert found.exit_code == 0, found.output

        (row,) = rows_of((tmp_path / "integrity-20261001-20261101.json").read_text())
        assert row["anchors asked"].endswith(": agrees")
        assert row["key"].endswith(", checked")

    async def test_of_a_store_without_a_checkpoint_is_refused(self, audit_store):
        """There is nothing to report as of."""
        with pytest.raises(StoreError, match="nothing was ever sealed"):
            await made(audit_store, "rights")


def test_an_unknown_report_has_no_long_name_in_its_error():
    """What somebody typed is shown in part."""
    with pytest.raises(ConfigurationError) as raised:
        find_report("x" * 5_000)
    assert len(str(raised.value)) < 400


def test_a_period_that_ends_now_is_over():
    """What is not over cannot be reported."""
    now = datetime(2026, 11, 29, tzinfo=UTC)
    options = Options(begin=now - timedelta(days=1), end=now)

    checked(REPORTS["rights"], options, now)
    with pytest.raises(ConfigurationError):
        checked(REPORTS["rights"], replace(options, end=now + timedelta(seconds=1)), now)


@pytest.mark.slow
class TestPrinted:
    @pytest.mark.parametrize("name", REPORTS)
    async def test_chromium_prints_it_to_pdf(self, store, tmp_path, name):
        """A4, with its head, and no script."""
        program = shutil.which("chromium")
        if program is None:
            pytest.skip("needs Chromium: apt-get install chromium")
        page, printed = tmp_path / f"{name}.html", tmp_path / f"{name}.pdf"
        page.write_text(await made(store.dsn, name, form="html"))
        playwright = pytest.importorskip("playwright.async_api", reason="pip install playwright")
        async with playwright.async_playwright() as started:
            browser = await started.chromium.launch(executable_path=program, args=["--no-sandbox"])
            try:
                opened = await browser.new_page()
                complaints: list[str] = []
                opened.on("console", lambda message: complaints.append(message.text))
                await opened.goto(page.as_uri())
                assert await opened.locator("h1").inner_text() == REPORTS[name].title
                fits = "document.documentElement.scrollWidth <= window.innerWidth"
                assert await opened.evaluate(fits)
                await opened.pdf(path=printed, prefer_css_page_size=True)
            finally:
                await browser.close()
        content = printed.read_bytes()
        assert content.startswith(b"%PDF-")
        # A4 landscape in points
        assert b"/MediaBox [0 0 841.91998 594.95996]" in content or b"/MediaBox [0 0 842" in content
        assert complaints == []
        if folder := os.environ.get("REPORT_PDFS"):
            shutil.copy(printed, folder)
