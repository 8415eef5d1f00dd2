"""Questions: the right records, in order, page by page, for people and programs."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from click.testing import CliRunner
from otel_audit_postgres import PostgresSink
from otel_audit_postgres.query import queries
from otel_audit_postgres.query.queries import Criteria
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.cli.main import cli
from otel_audit.errors import ConfigurationError
from otel_audit.record import Actor, Change, Request, Target, Tenant

START = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
async def trail(audit_store):
    """Twenty records, a minute apart, each a little different; their ids."""
    records = []
    for number in range(20):
        occurred_at = int((START + timedelta(minutes=number)).timestamp()) * 10**9
        records.append(
            a_record(
                record_id=uuid7(occurred_at),
                occurred_at=occurred_at,
                event_name="order.created" if number % 2 else "order.deleted",
                outcome="failure" if number % 5 == 0 else "success",
                actor=Actor(id=f"user-{number % 3}\x1b[31m", type="user"),
                tenant=Tenant(id="acme") if number % 4 else None,
                target=Target(type="order", id=str(number)),
                request=Request(id=f"request-{number}"),
                trace_id=f"{number:032x}",
                changes=(Change(operation="update", entity="Stock", table="stock", key={"id": 7}),)
                if number in (3, 9)
                else (),
            )
        )
    connection = await asyncpg.connect(audit_store)
    # a store that is set up in another quarter has none of that month
    await connection.execute("SELECT audit.make_partition('2026-11-01')")
    await connection.close()
    sink = PostgresSink(audit_store)
    assert (await sink.write(records)).stored == 20
    await sink.close()
    return [record.record_id for record in records]


@pytest.fixture
async def reading(audit_store):
    async with queries.opened(audit_store) as connection:
        yield connection


class TestSearch:
    @pytest.mark.parametrize(
        ("criteria", "expected"),
        [
            (Criteria(), range(20)),
            (Criteria(since=START + timedelta(minutes=18)), [18, 19]),
            (Criteria(until=START + timedelta(minutes=2)), [0, 1]),
            (Criteria(event="order.created", outcome="failure"), [5, 15]),
            (Criteria(tenant=""), [0, 4, 8, 12, 16]),
            (Criteria(tenant="acme", outcome="failure"), [5, 10, 15]),
            (Criteria(target="order:7"), [7]),
            (Criteria(target="invoice"), []),
            (Criteria(entity="stock:7"), [3, 9]),
            (Criteria(request_id="request-11"), [11]),
            (Criteria(trace_id=f"{12:032x}"), [12]),
            (Criteria(actor="user-1\x1b[31m"), range(1, 20, 3)),
            (Criteria(actor="' OR true --"), []),
        ],
    )
    async def test_finds_what_is_asked_for(self, reading, trail, criteria, expected):
        """The newest first, and nothing else."""
        page = await queries.search(reading, criteria)
        found = [trail.index(str(record.id)) for record in page.records]
        assert found == sorted(expected, reverse=True)
        assert page.next is None

    async def test_finds_by_time_whatever_time_an_id_tells(self, audit_store, reading, trail):
        """A sender's ids may tell any time, or none; each record is found once, on its own page."""
        astray = {
            number: a_record(
                record_id=record_id,
                occurred_at=int((START + timedelta(minutes=5)).timestamp() * 10**9) + number,
            )
            for number, record_id in enumerate(
                (
                    "00000000-0000-0000-0000-000000000001",
                    uuid7(int((START - timedelta(days=40)).timestamp() * 10**9)),
                    uuid7(int((START + timedelta(minutes=6)).timestamp() * 10**9)),
                    uuid7(int((START + timedelta(minutes=5)).timestamp() * 10**9) + 1_000_400_000),
                    "017ac10b-58cc-4372-a567-0e02b2c3d479",
                    "018fffff-ffff-ffff-ffff-ffffffffffff",
                )
            )
        }
        sink = PostgresSink(audit_store)
        assert (await sink.write(list(astray.values()))).stored == 6
        await sink.close()
        expected = sorted([*(one.record_id for one in astray.values()), trail[5]])
        within = Criteria(since=START + timedelta(minutes=5), until=START + timedelta(minutes=6))
        for limit in (1, 2, 3, 6, 7):
            seen, after = [], None
            while not seen or after is not None:
                page = await queries.search(
                    reading, within, limit=limit, after=after, oldest_first=True
                )
                seen += [str(record.id) for record in page.records]
                after = page.next
            assert seen == expected
        later = await queries.search(reading, Criteria(since=START + timedelta(minutes=6)))
        assert [str(record.id) for record in later.records] == trail[:5:-1]
        ever = Criteria(
            since=datetime.min.replace(tzinfo=UTC), until=datetime.max.replace(tzinfo=UTC)
        )
        assert len((await queries.search(reading, ever)).records) == 26

    async def test_looks_at_no_more_than_it_must(self, reading, trail, monkeypatch):
        """Time and entity have an index each, for a reader of some tenants, too."""
        asked = []
        fetch = type(reading).fetch

        async def noted(query, *values):
            asked.append((query, values))
            return await fetch(reading, query, *values)

        monkeypatch.setattr(type(reading), "fetch", staticmethod(noted))
        await queries.history(reading, "stock:7")
        within = Criteria(since=START + timedelta(minutes=5), until=START + timedelta(minutes=6))
        await queries.search(reading, within)
        monkeypatch.undo()
        await reading.execute("SET enable_seqscan = off")
        plans = [
            "\n".join(str(row[0]) for row in await reading.fetch(f"EXPLAIN {query}", *values))
            for query, values in asked
        ]
        assert "Function Scan on about" in plans[0]
        assert "Seq Scan" not in plans[0]
        assert "occurred_at_id_idx" in plans[1]
        assert "audit_logs_2026_11_pkey" in plans[1]
        about = await reading.fetchval("SELECT prosrc FROM pg_proc WHERE proname = 'about'")
        gathering = about[about.index("SELECT l.id") :].partition(")")[0]
        looking = gathering.replace("about.entity", "'stock:7'::text")
        found = await reading.fetch(f"EXPLAIN {looking}")
        assert "entities_idx" in "\n".join(row[0] for row in found)

    @pytest.mark.parametrize("limit", [1, 7, 19, 20, 21])
    async def test_goes_on_page_by_page(self, audit_store, reading, trail, limit):
        """Every record once, also while newer ones arrive."""
        seen, after = [], None
        while True:
            page = await queries.search(reading, Criteria(), limit=limit, after=after)
            seen += [str(record.id) for record in page.records]
            after = page.next
            if after is None:
                break
            sink = PostgresSink(audit_store)
            await sink.write([a_record(record_id=uuid7())])
            await sink.close()
        assert seen == trail[::-1]

    @pytest.mark.parametrize(
        "unfit", [{"limit": 0}, {"limit": 10_001}, {"after": "x"}, {"after": "x/y"}]
    )
    async def test_refuses_what_is_unfit(self, reading, unfit):
        """The option is named."""
        with pytest.raises(ConfigurationError, match=next(iter(unfit))):
            await queries.search(reading, Criteria(), **unfit)


class TestReasons:
    @pytest.mark.parametrize("note", ["\\u0000", "\\ud83d", "\\uDC00", "x"])
    async def test_no_payload_stops_a_search(self, reading, note):
        """An older store may hold text that the database cannot take apart; it is found all the same."""
        payload = f'{{"actor": {{"reason": "bad_signature"}}, "note": "{note}"}}'
        record_id = uuid7()
        await reading.execute("ALTER TABLE audit.audit_logs DISABLE TRIGGER queue_for_sealing")
        await reading.execute(
            "INSERT INTO audit.audit_logs (id, action_id, phase, occurred_at, duration_ms, "
            "event_name, action, outcome, actor_id, actor_type, transaction_outcome, "
            "schema_version, payload, content_hash) VALUES ($1, 'a', 'completed', now(), 0, 'e', "
            "'READ', 'success', 'anonymous', 'user', 'none', '1', $2::text::json, sha256('x'))",
            record_id,
            payload,
        )
        expected = "bad_signature" if note == "x" else None
        (found,) = (await queries.search(reading, Criteria())).records
        assert (str(found.id), found.actor_reason) == (record_id, expected)
        (shown,) = await queries.show(reading, record_id)
        assert (shown.found, shown.payload) == (found, payload)

    async def test_are_looked_up_by_id(self, reading, trail):
        """No other row is read for them."""
        await reading.execute("SET enable_seqscan = off")
        plan = await reading.fetch(f"EXPLAIN {queries._REASONS}", trail[:2])
        assert "Seq Scan" not in "\n".join(row[0] for row in plan)


class TestHistory:
    async def test_tells_what_happened_the_oldest_first(self, reading, trail):
        """By target or by a change."""
        page = await queries.history(reading, "stock:7", limit=1)
        assert [trail.index(str(record.id)) for record in page.records] == [3]
        page = await queries.history(reading, "stock:7", limit=1, after=page.next)
        assert [trail.index(str(record.id)) for record in page.records] == [9]
        assert page.next is None


class TestStats:
    async def test_count_by_day_and_event(self, reading, trail):
        """Each day, the most frequent first."""
        found = await queries.volume(reading, START)
        assert [(row.day, row.event_name, row.records) for row in found] == [
            ("2026-11-01", "order.created", 10),
            ("2026-11-01", "order.deleted", 10),
        ]

    async def test_measure_tables_and_indexes(self, reading, trail):
        """Every table of the store has a size."""
        found = {row.name: row for row in await queries.sizes(reading)}
        assert found["audit_logs_2026_11"].table_bytes > 0
        assert found["audit_logs_2026_11"].index_bytes > 0
        assert "ledger_blocks" in found

    async def test_estimate_nothing_where_the_database_does_not(self, reading, trail):
        """Rows of a table that was never analyzed are not known; an empty one has none."""

        async def rows():
            found = {size.name: size.rows for size in await queries.sizes(reading)}
            return found["audit_logs_2026_11"], found["quarantine"]

        assert await rows() == (None, 0)
        await reading.execute("ANALYZE audit.audit_logs_2026_11")
        assert await rows() == (20, 0)


class TestCommands:
    @pytest.fixture
    def run(self, audit_store, trail, monkeypatch):
        monkeypatch.setenv("OTEL_AUDIT_DSN", audit_store)
        monkeypatch.setenv("OTEL_AUDIT_RECORD_VIEWS", "off")

        def call(*arguments, status=0):
            result = CliRunner().invoke(cli, arguments)
            assert result.exit_code == status, result.output
            return result

        return call

    def test_search_prints_a_table(self, run, trail):
        """A line each, without letting a value write to the terminal; then where to go on."""
        output = run("search", "--limit", "3", "--event", "order.created").output
        assert trail[19] in output
        assert "\x1b[31m" not in output
        assert "more: --after" in output

    def test_search_reads_a_query(self, run, trail):
        """Terms as arguments, one behind a minus too; repeated options mean any of."""
        asked = ("search", "--json", "event:order.*", "-outcome:failure", "target:order:7,order:5")
        lines = run(*asked).stdout.splitlines()
        assert [json.loads(line)["id"] for line in lines] == [trail[7]]
        lines = run("search", "--target", "order:7", "--target", "order:8", "--json").stdout
        assert [json.loads(line)["id"] for line in lines.splitlines()] == [trail[8], trail[7]]
        assert "did you mean actor:?" in run("search", "acter:x", status=2).output
        assert "No such option" in run("search", "--limt", "3", status=2).output

    def test_stats_count_a_query(self, run):
        """Over time and by values, for people and as JSON."""
        asked = ("stats", "--since", "2026-10-01", "--by", "outcome", "event:order.created")
        assert "success" in run(*asked).output
        found = json.loads(run(*asked, "--json").stdout)
        (facet,) = found["facets"]
        assert facet["values"] == [["success", 8], ["failure", 2]]
        assert sum(sum(bar["outcomes"].values()) for bar in found["bars"]) == 10
        assert "is not one of event" in run("stats", "--by", "colour", status=1).output

    def test_search_prints_json(self, run, trail):
        """One object a line."""
        lines = run("search", "--target", "order:7", "--json").stdout.splitlines()
        assert [json.loads(line)["id"] for line in lines] == [trail[7]]

    def test_history_prints_the_oldest_first(self, run, trail):
        """As for search."""
        lines = run("history", "stock:7", "--json").stdout.splitlines()
        assert [json.loads(line)["id"] for line in lines] == [trail[3], trail[9]]

    async def test_anonymous_says_why(self, audit_store, run):
        """Who could not be identified is not merely nobody: the reason stands beside."""
        sink = PostgresSink(audit_store)
        refused = Actor(id="anonymous", type="user", reason="bad_signature")
        nobody = Actor(id="anonymous", type="user")
        target = Target(type="invoice", id="1")
        await sink.write([a_record(record_id=uuid7(), actor=refused, target=target)])
        await sink.write([a_record(record_id=uuid7(), actor=nobody, target=target)])
        await sink.close()

        def asked(*arguments):
            return asyncio.to_thread(run, *arguments)

        for question in (("search", "--target", "invoice:1"), ("history", "invoice:1")):
            lines = (await asked(*question)).output.splitlines()[1:]
            assert sorted("anonymous (bad_signature)  " in line for line in lines) == [False, True]
            assert all("anonymous  " in line or "bad_signature" in line for line in lines)
            found = map(json.loads, (await asked(*question, "--json")).output.splitlines())
            assert {record["actor_reason"] for record in found} == {"bad_signature", None}

    def test_nothing_found_is_said(self, run):
        """In a sentence for people, and as no line of JSON."""
        about = run("history", "stock:8").output
        assert "recorded about stock:8;" in about
        assert "order_row:123" in about
        assert "No matching records" in run("search", "--target", "invoice").output
        assert run("history", "stock:8", "--json").output == ""
        assert run("search", "--target", "invoice", "--json").output == ""

    @pytest.mark.parametrize("entity", ["stock", "stock:", ":7", ""])
    def test_history_refuses_what_names_no_entity(self, run, entity):
        """Wrong use is no empty answer: status 2, and how an entity is written."""
        assert "such as order:123" in run("history", entity, status=2).output

    def test_show_prints_the_whole_record(self, run, trail):
        """The record's text, and its hash beside it."""
        result = run("show", trail[7], "--json")
        assert json.loads(result.stdout)["record_id"] == trail[7]
        assert "content hash" in result.stderr

    def test_show_says_what_is_not_there(self, run):
        """An unknown id and what is no id."""
        assert "no record" in run("show", uuid7(), status=1).output
        assert "not a record's id" in run("show", "x", status=2).output

    def test_stats_print_both(self, run):
        """Volume and sizes, as a table and as JSON."""
        assert "order.created" in run("stats", "--since", "2026-10-01").output
        found = json.loads(run("stats", "--since", "2026-10-01", "--json").output)
        assert len(found["volume"]) == 2
        unknown = [size["name"] for size in found["sizes"] if size["rows"] is None]
        assert "audit_logs_2026_11" in unknown
        (line,) = (
            line
            for line in run("stats").output.splitlines()
            if line.startswith("audit_logs_2026_11")
        )
        assert line.split()[1] == "-"
