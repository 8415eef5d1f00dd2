"""What left the database can be asked, proved, and brought back for some days."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import uuid
from datetime import UTC, date

import pytest
from click.testing import CliRunner
from otel_audit_postgres import PostgresSink, init, maintain
from otel_audit_postgres.archive.catalog import archived_objects
from otel_audit_postgres.archive.iceberg import register_objects
from otel_audit_postgres.archive.objects import ArchiveError, open_archive
from otel_audit_postgres.archive.prove import prove_archived
from otel_audit_postgres.archive.query import query_archives
from otel_audit_postgres.archive.restore import end_restoration, restore_month
from otel_audit_postgres.archive.search import archived_record, search_archives
from otel_audit_postgres.ledger import verify_evidence
from otel_audit_postgres.ledger.prove import write
from otel_audit_postgres.query import queries
from otel_audit_postgres.query.grammar import parse
from otel_audit_postgres.query.trail import ReaderScope, Trail
from retention_trail import APRIL, JANUARY, MARCH, ids_of
from strategies import a_record

from otel_audit.cli.main import cli
from otel_audit.errors import ConfigurationError, MissingExtraError


class TestQuery:
    @pytest.mark.parametrize(
        ("text", "count"),
        [
            ("", 64),
            ("entity:order:3", 3),
            ("event:order.*", 64),
            ("tenant:other", 9),
            ("-tenant:other", 55),
            ("actor:ada time:2025-03-01..2025-03-31", 25),
            ("time:<2025-02-01", 30),
            ("target:order:24", 2),
            ("target:order -entity:order:3", 61),
            ("acme", 55),
            ("status:5xx", 0),
            ("changed:price", 0),
            ("changed:*", 0),
            ('changed:"a\\"b"', 0),
            ("email:*", 0),
            ("path:/orders*", 0),
            ("outcome:success,failure", 64),
        ],
    )
    async def test_answers_in_the_language_of_searching(self, retained, text, count):
        """Each kind of term, over all archived months."""
        objects = await archived_objects(retained.dsn)
        found = query_archives(retained.archive, objects, parse(text), limit=1000)
        assert len(found) == count
        ids = [one.found.id for one in found]
        assert ids == sorted(ids, reverse=True)

    async def test_gives_a_record_as_the_trail_does(self, retained):
        """In short and in full, with its month and its object; a page at a time."""
        objects = await archived_objects(retained.dsn)
        (first, second) = query_archives(retained.archive, objects, parse(""), limit=2)
        assert (first.month, first.found.tenant_id) == (APRIL, "other")
        assert json.loads(first.payload)["record_id"] == str(first.found.id)
        assert first.key.startswith("2025-04/default-")
        assert first.found.recorded_at.tzinfo is first.found.occurred_at.tzinfo is UTC
        (again,) = query_archives(
            retained.archive, objects, parse(""), limit=1, before=first.found.id
        )
        assert again == second
        (alone,) = query_archives(retained.archive, objects, parse(""), record_id=second.found.id)
        assert alone == second
        never = uuid.UUID("ffffffff-ffff-4fff-bfff-ffffffffffff")
        assert query_archives(retained.archive, objects, parse(""), record_id=never) == []

    async def test_shows_no_more_tenants_than_the_trail(self, retained, postgres, connection):
        """Neither who reads one tenant, nor a service that looks on somebody's behalf."""
        role = f"reader_{uuid.uuid4().hex[:8]}"
        await postgres.execute(f"CREATE ROLE {role} LOGIN")
        await init(retained.dsn, roles=True, reader=role, tenants=["other"])
        name = retained.dsn.partition("?")[0].rpartition("/")[2]
        async with queries.opened(postgres.dsn(name, role)) as reading:
            trail = Trail(reading)
            assert len(await search_archives(trail, retained.archive, parse(""))) == 9
            (hit,) = await search_archives(trail, retained.archive, parse(""), limit=1)
            assert await archived_record(trail, retained.archive, hit.found.id) == [hit]
            theirs = uuid.UUID(ids_of(MARCH, 1)[0])
            assert await archived_record(trail, retained.archive, theirs) == []
            narrowed = Trail(reading, scope=ReaderScope(("acme",)))
            assert await search_archives(narrowed, retained.archive, parse("")) == []
            mine = Trail(reading, scope=ReaderScope(("other", "acme")))
            assert len(await search_archives(mine, retained.archive, parse(""))) == 9
        looks = await connection.fetchval(
            "SELECT count(*) FROM audit.audit_logs WHERE event_name = 'audit.viewed'"
        )
        assert looks == 6

    async def test_fetches_the_newest_months_first_and_no_more_than_it_needs(
        self, retained, monkeypatch
    ):
        """What a later month has comes before all of an earlier one; a next page begins there."""
        objects = await archived_objects(retained.dsn)
        fetched = []
        copy = retained.archive.copy

        def noted(key, sha256):
            fetched.append(key[:7])
            return copy(key, sha256)

        monkeypatch.setattr(retained.archive, "copy", noted)
        found = query_archives(retained.archive, objects, parse(""), limit=9)
        assert ({one.month for one in found}, fetched) == ({APRIL}, ["2025-04"])
        fetched.clear()
        found = query_archives(retained.archive, objects, parse("acme"), limit=20)
        assert ({one.month for one in found}, len(found)) == ({MARCH}, 20)
        fetched.clear()
        rest = query_archives(retained.archive, objects, parse(""), before=found[-1].found.id)
        assert len(rest) == 64 - 9 - 20
        assert "2025-04" not in fetched

    async def test_finds_a_text_in_any_case_and_with_any_sign(self, trail):
        """As a text in lower case has it; signs of expressions mean themselves."""
        texts = ["Straße.*", "İstanbul (1)", "a\\d+$", 'say "hi"', "x" * 300 + "END", "Ärger|[z]"]
        ids = ids_of(JANUARY, len(texts))
        sink = PostgresSink(trail.dsn)
        records = [
            a_record(record_id=one, occurred_at=1_736_500_000 * 10**9, metadata={"said": text})
            for one, text in zip(ids, texts, strict=True)
        ]
        assert (await sink.write(records)).stored == len(texts)
        await sink.close()
        await maintain(trail.dsn, months=[JANUARY])
        await trail.seal()
        await trail.retain()
        objects = await archived_objects(trail.dsn)
        for asked, record_id in zip(
            ["STRASSE.*", "straße.*", "istanbul (1)", "A\\D+$", 'SAY "HI"', "X" * 300 + "end",
             "ärger|[z]", "straße..", "aa\\d+$"],
            [None, ids[0], ids[1], ids[2], ids[3], ids[4], ids[5], None, None],
            strict=True,
        ):  # fmt: skip
            quoted = asked.replace("\\", "\\\\").replace('"', '\\"')
            found = query_archives(trail.archive, objects, parse(f'"{quoted}"'))
            assert [str(one.found.id) for one in found] == ([record_id] if record_id else []), asked

    async def test_takes_a_query_for_a_value_alone(self, retained):
        """Nothing of a query's text is SQL."""
        objects = await archived_objects(retained.dsn)
        text = 'actor:"x\' OR 1=1 --" "\'); DROP TABLE x; --"'
        assert query_archives(retained.archive, objects, parse(text)) == []

    async def test_is_recorded_and_printed(self, retained, monkeypatch, connection):
        """As a look into the trail; as a table and as JSON."""
        monkeypatch.setenv("OTEL_AUDIT_DSN", retained.dsn)
        url = f"file:{retained.archive._folder}"
        result = await asyncio.to_thread(
            CliRunner().invoke,
            cli,
            ["archive", "query", "tenant:other", "--archive", url, "--json"],
        )
        assert result.exit_code == 0, result.output
        assert result.output.count('"payload"') == 9
        looked = await connection.fetchval(
            "SELECT payload::text FROM audit.audit_logs WHERE event_name = 'audit.viewed'"
        )
        assert "archive query" in looked


class TestProve:
    async def test_an_archived_record_offline(self, retained, tmp_path):
        """From the archive alone, checked by the program in the bundle, also beside what expired."""
        for month in (JANUARY, MARCH):
            objects = [one for one in await archived_objects(retained.dsn) if one.month == month]
            found = query_archives(retained.archive, objects, parse(""), limit=1000)
            for row in (found[0], found[-1]):
                record_id = row.found.id
                bundle = prove_archived(retained.archive, record_id, [retained.key.public])
                assert verify_evidence.check(dict(bundle), [])
        write(bundle, tmp_path / "evidence")
        checked = subprocess.run(
            [sys.executable, "verify.py"], cwd=tmp_path / "evidence", check=False,
            capture_output=True,
        )  # fmt: skip
        assert checked.returncode == 0, checked.stdout + checked.stderr

    async def test_says_what_is_not_there(self, retained):
        """A record of another moment of the month, and ids that none can have."""
        never = ("ffffffff-ffff-4fff-bfff-ffffffffffff", "00000000-0000-4000-8000-000000000000")
        for record_id in (ids_of(MARCH, 1)[0], *never):
            with pytest.raises(ArchiveError, match="no record"):
                prove_archived(retained.archive, uuid.UUID(record_id), [])


class TestRestore:
    async def test_brings_a_month_back_for_some_days(self, retained, connection):
        """The same text and columns, recorded; gone when its time is over."""
        assert await restore_month(retained.dsn, retained.archive, MARCH, 3) == 25
        assert await restore_month(retained.dsn, retained.archive, MARCH, 3) == 25
        rows = await connection.fetch(
            "SELECT payload::text AS payload, content_hash, month FROM audit.restored_logs"
        )
        assert {row["month"] for row in rows} == {MARCH}
        hashed = await connection.fetchval(
            "SELECT bool_and(sha256(convert_to(payload::text, 'UTF8')) = content_hash) "
            "FROM audit.restored_logs"
        )
        assert (len(rows), hashed) == (25, True)
        assert await connection.fetchval(
            "SELECT count(*) FROM audit.audit_logs WHERE event_name = 'audit.month.restored'"
        ) == 2  # fmt: skip
        assert await end_restoration(retained.dsn, MARCH) == 25
        await retained.seal()
        assert (await retained.check_all())[0].problems == ()

    async def test_is_under_the_same_row_level_security(self, retained, postgres):
        """A reader of one tenant sees of it what he sees of the trail."""
        import asyncpg

        role = f"reader_{uuid.uuid4().hex[:8]}"
        await postgres.execute(f"CREATE ROLE {role} LOGIN")
        await init(retained.dsn, roles=True, reader=role, tenants=["other"])
        await restore_month(retained.dsn, retained.archive, MARCH, 3)
        await restore_month(retained.dsn, retained.archive, date(2025, 4, 1), 3)
        name = retained.dsn.partition("?")[0].rpartition("/")[2]
        connection = await asyncpg.connect(postgres.dsn(name, role))
        assert await connection.fetchval("SELECT count(*) FROM audit.restored_logs") == 9
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("DELETE FROM audit.restored_logs")
        await connection.close()

    async def test_refuses_what_is_not_archived_or_not_whole(self, retained):
        """A month that is here, and a file with a changed byte."""
        with pytest.raises(ArchiveError, match="is not archived"):
            await restore_month(retained.dsn, retained.archive, date(2024, 4, 1), 3)
        (one,) = [one for one in await archived_objects(retained.dsn) if one.month == MARCH]
        path = retained.archive._folder / one.entry.key
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        with pytest.raises(ArchiveError, match="nothing restored"):
            await restore_month(retained.dsn, retained.archive, MARCH, 3)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("ftp://x", "expected file:PATH or s3"),
        ("file:", "expected"),
        ("s3://", "expected"),
        ("s3://bucket?colour=red", "unknown option 'colour'"),
        ("s3://bucket?mode=NONE", "COMPLIANCE or GOVERNANCE"),
    ],
)
def test_a_place_that_is_none_is_refused(url, problem):
    """The setting is named, with what is expected."""
    with pytest.raises(ConfigurationError, match=problem):
        open_archive(url)


class TestIceberg:
    async def test_registers_the_files_where_they_lie(self, retained, tmp_path, monkeypatch):
        """Once, by the command; the table has the rows, and what expired is in it no more."""
        pytest.importorskip("pyiceberg")
        from pyiceberg.catalog import load_catalog

        catalog = {
            "type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db",
            "warehouse": f"file://{tmp_path}/warehouse",
        }  # fmt: skip
        (tmp_path / "warehouse").mkdir()
        monkeypatch.setenv("OTEL_AUDIT_DSN", retained.dsn)
        url = f"file:{retained.archive._folder}"
        options = ["--archive", url, "--json"]
        options += [word for name, value in catalog.items()
                    for word in ("--property", f"{name}={value}")]  # fmt: skip

        async def register(*more):
            done = await asyncio.to_thread(
                CliRunner().invoke, cli, ["archive", "register", "audit.records", *options, *more]
            )
            return done.exit_code, done.stdout

        before = retained.archive.list_keys()
        code, told = await register("--dry-run")
        assert (code, len(json.loads(told)["added"])) == (0, 3)
        assert (await register())[0] == 2  # it asks, and JSON is wanted
        code, told = await register("--yes")
        assert (code, json.loads(told)["rows"]) == (0, 64)
        code, told = await register("--yes")
        assert (code, json.loads(told)["added"]) == (0, [])
        table = load_catalog("default", **catalog).load_table("audit.records")
        rows = table.scan(row_filter="actor_id = 'ada'", selected_fields=("payload",)).to_arrow()
        assert rows.num_rows == 64
        assert all(json.loads(text)["actor"]["id"] == "ada" for text in rows["payload"].to_pylist())
        assert table.properties["gc.enabled"] == "false"
        objects = [one._replace(is_removed=one.is_removed or one.month == MARCH)
                   for one in await archived_objects(retained.dsn)]  # fmt: skip
        done = register_objects(retained.archive, objects, "audit.records", properties=catalog)
        assert (len(done.added), len(done.removed)) == (0, 1)
        table.refresh()
        assert table.scan().to_arrow().num_rows == 39
        # nothing of the archive was changed, and what is there verifies
        assert retained.archive.list_keys() == before
        await retained.seal()
        assert (await retained.check_all())[0].problems == ()

    async def test_says_which_extra_is_missing(self, retained, monkeypatch):
        """And what a catalog that cannot be reached says."""
        pytest.importorskip("pyiceberg")
        with pytest.raises(ArchiveError, match="Iceberg catalog 'default'"):
            register_objects(retained.archive, [], "a.b", properties={"type": "nothing"})
        monkeypatch.setitem(sys.modules, "pyiceberg.catalog", None)
        with pytest.raises(MissingExtraError, match=r"otel-audit\[iceberg\]"):
            register_objects(retained.archive, [], "a.b")
