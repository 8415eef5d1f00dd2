"""Who looks into the trail is in it: once a look, under the name that logged in."""

from __future__ import annotations

import json
import uuid

import asyncpg
import pytest
from click.testing import CliRunner
from otel_audit_postgres import Criteria, init, open_trail
from otel_audit_postgres.query.trail import Trail

from otel_audit.cli.main import cli
from otel_audit.errors import StoreError
from otel_audit.record import SCHEMA_VERSION, Target, Tenant


async def views(connection):
    rows = await connection.fetch(
        "SELECT *, payload::text AS text FROM audit.audit_logs WHERE event_name = 'audit.viewed' "
        "ORDER BY id"
    )
    return [{**row, "said": json.loads(row["text"])} for row in rows]


@pytest.fixture
async def reader(postgres, log):
    """A reader of tenant t1 alone, in a store with records of two tenants."""
    role = f"auditor_{uuid.uuid4().hex[:8]}"
    await postgres.execute(f"CREATE ROLE {role} LOGIN")
    await init(log.dsn, roles=True, reader=role, tenants=["t1"])
    await log.write(3, tenant=Tenant(id="t1"), target=Target(type="order", id="1"))
    await log.write(2, tenant=Tenant(id="t2"), target=Target(type="order", id="1"))
    return role, postgres.dsn(log.dsn.partition("?")[0].rpartition("/")[2], role)


class TestLooks:
    async def test_are_recorded_before_they_are_answered(self, reader, connection):
        """Who, what was asked, how many records; nobody but the database says who it was."""
        role, dsn = reader
        async with open_trail(dsn, viewer="alice@example.com") as trail:
            page = await trail.search(Criteria(target="order:1"), limit=2)
            (view,) = await views(connection)
            assert len(page.records) == 2
            assert (view["actor_id"], view["action"], view["outcome"]) == (role, "READ", "success")
            assert view["said"]["actor"]["on_behalf_of"] == "alice@example.com"
            assert view["said"]["actor"]["verified"] is True
            assert view["said"]["schema_version"] == view["schema_version"] == SCHEMA_VERSION
            assert view["said"]["metadata"] == {
                "question": "search", "records": 2,
                "asked": {"target": "order:1", "limit": 2, "oldest_first": False},
            }  # fmt: skip

    async def test_name_what_was_looked_at(self, reader, connection, log):
        """A record, a history: who has looked at this is one look-up."""
        _, dsn = reader
        async with open_trail(dsn) as trail:
            (first, *_) = (await trail.history("order:1")).records
            await trail.show(str(first.id))
            await trail.volume(first.recorded_at)
            await trail.sizes()
        seen = await views(connection)
        assert [view["said"]["metadata"]["question"] for view in seen] == [
            "history",
            "show",
            "stats",
        ]
        assert [view["entities"] for view in seen] == [
            ["audit_history:order:1"], [f"audit_record:{first.id}"], [],
        ]  # fmt: skip

    async def test_show_nothing_of_other_tenants(self, reader, connection):
        """Row-level security holds for the questions; and the count that is recorded is theirs."""
        _, dsn = reader
        async with open_trail(dsn) as trail:
            assert len((await trail.search(Criteria())).records) == 3
        assert (await views(connection))[0]["said"]["metadata"]["records"] == 3

    async def test_are_records_like_others(self, reader, connection, log):
        """They are sealed and verified, and their columns follow from their text."""
        _, dsn = reader
        async with open_trail(dsn) as trail:
            for entity in ("order:1", "order:" + "9" * 300, 'a"b\\c\u00fc', "'); DROP TABLE x --"):
                await trail.history(entity)
                await trail.search(Criteria(actor=entity))
        await log.seal()
        report = await log.verify()
        assert report.problems == ()
        assert report.rows_checked == 13

    async def test_breed_no_further_looks(self, reader, connection, log):
        """To look at the looks is one look."""
        async with open_trail(log.dsn) as trail:
            for _ in range(3):
                await trail.search(Criteria(event="audit.viewed"))
        assert len(await views(connection)) == 3

    async def test_can_be_paged(self, reader, connection):
        """Every page is a look; together they are what there is."""
        _, dsn = reader
        async with open_trail(dsn) as trail:
            found = [record.id async for record in trail.pages(Criteria(), page_size=2)]
        assert len(set(found)) == 3
        assert len(await views(connection)) == 2

    async def test_that_fail_are_not_recorded(self, reader, connection):
        """A question that has no answer shows nothing."""
        _, dsn = reader
        async with open_trail(dsn) as trail:
            with pytest.raises(Exception, match="limit"):
                await trail.search(Criteria(), limit=0)
        assert await views(connection) == []

    async def test_cannot_be_made_up_as_anything_else(self, reader, connection):
        """A reader makes no record but one of a look of its own."""
        _, dsn = reader
        own = await asyncpg.connect(dsn)
        for refused in (
            "SELECT audit.record_event('order.paid', 'UPDATE', 'order', '1', '{}'::jsonb, NULL)",
            "INSERT INTO audit.audit_logs (id) VALUES (gen_random_uuid())",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await own.execute(refused)
        with pytest.raises(asyncpg.PostgresError, match="no view"):
            await own.execute("SELECT audit.record_view('show', '{}'::jsonb, 1, 'order', '1')")
        with pytest.raises(asyncpg.PostgresError, match="no view"):
            await own.execute(
                "SELECT audit.record_view('show', jsonb_build_object('x', repeat('y', 20000)), 1)"
            )
        await own.close()


class TestWithoutTheRight:
    @pytest.fixture
    async def barred(self, reader, connection):
        await connection.execute(
            "REVOKE EXECUTE ON FUNCTION audit.record_view(text, jsonb, bigint, text, text, text) "
            "FROM otel_audit_reader"
        )
        return reader[1]

    async def test_a_standby_is_named_as_such(self, reader):
        """On a read-only server no right helps; the primary takes the note."""
        dsn = reader[1]
        joint = "&" if "?" in dsn else "?"
        async with open_trail(f"{dsn}{joint}default_transaction_read_only=on") as trail:
            with pytest.raises(StoreError, match="nothing is shown.*name the primary"):
                await trail.search(Criteria())

    async def test_nothing_is_shown(self, barred):
        """By default no look goes unrecorded; the error says what to do."""
        async with open_trail(barred) as trail:
            with pytest.raises(StoreError, match="nothing is shown.*OTEL_AUDIT_RECORD_VIEWS"):
                await trail.search(Criteria())

    @pytest.mark.allow_errors
    async def test_it_is_said_where_that_is_wanted(self, barred, caplog):
        """With tried the answer comes, and the log says that the look is not recorded."""
        async with open_trail(barred, views="tried") as trail:
            assert len((await trail.search(Criteria())).records) == 3
        assert "not recorded" in caplog.text

    async def test_nothing_is_tried_where_it_is_off(self, barred, caplog):
        """Off is off."""
        async with open_trail(barred, views="off") as trail:
            assert len((await trail.search(Criteria())).records) == 3
        assert [
            line for line in caplog.records if line.name.startswith("otel_audit_postgres")
        ] == []


class TestCommands:
    def test_record_that_they_were_used(self, log, monkeypatch, tmp_path):
        """search, show, history, stats and prove leave one record each."""
        import asyncio

        monkeypatch.setenv("OTEL_AUDIT_DSN", log.dsn)
        monkeypatch.chdir(tmp_path)
        (record_id,) = asyncio.run(log.write(1, target=Target(type="order", id="1")))
        asyncio.run(log.seal())

        def run(*arguments):
            result = CliRunner().invoke(cli, arguments)
            assert result.exit_code == 0, result.output
            return result.output

        run("search")
        run("show", record_id)
        run("history", "order:1")
        run("stats")
        run("prove", record_id)
        shown = run("search", "--event", "audit.viewed", "--json")
        assert len(shown.strip().splitlines()) == 5
        monkeypatch.setenv("OTEL_AUDIT_RECORD_VIEWS", "off")
        assert len(run("search", "--event", "audit.viewed", "--json").strip().splitlines()) == 6

    def test_are_typed(self):
        """Every question of the public class says what it takes and gives."""
        for name in ("search", "history", "show", "volume", "sizes", "pages"):
            assert "return" in getattr(Trail, name).__annotations__
