"""Counts: over time, by values, in all; as whoever asks may see."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from otel_audit_postgres import PostgresSink, init
from otel_audit_postgres.query import counts, queries
from otel_audit_postgres.query.counts import FACETS, count, facet, histogram, overview
from otel_audit_postgres.query.grammar import parse
from otel_audit_postgres.schema.migrations import migrations
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.record import Actor, Response, Target, Tenant

HOUR = timedelta(hours=1)
NOW = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
DAYS = 20
EVENTS = ("order.created", "order.refunded", "user.logged_in")
STATUSES = (200, 404, 503)


def some(number):
    """One record each eight hours."""
    occurred_at = int((NOW - (DAYS * 3 - number) * 8 * HOUR).timestamp()) * 10**9
    return a_record(
        record_id=uuid7(occurred_at),
        occurred_at=occurred_at,
        event_name=EVENTS[number % 3],
        outcome="failure" if number % 5 == 0 else "success",
        actor=Actor(id=f"user-{number % 13}", type="user"),
        tenant=Tenant(id="acme") if number % 2 else Tenant(id="globex"),
        target=Target(type="order", id=str(number)),
        response=Response(status_code=STATUSES[number % 3]),
        resource={"service.name": "shop"},
        metadata={"note": "special" if number % 10 == 0 else "usual"},
    )


RECORDS = [some(number) for number in range(DAYS * 3)]


@pytest.fixture
async def reading(log):
    sink = PostgresSink(log.dsn)
    await sink.write(RECORDS)
    await sink.close()
    sealer = log.sealer(batch=7)
    while (await sealer.seal()).rows:
        pass
    await sealer.close()
    async with queries.opened(log.dsn) as connection:
        yield connection


def told(found):
    """Records by day and outcome."""
    days = Counter()
    for bar in found.bars:
        for outcome, records in bar.outcomes.items():
            days[bar.begin.date(), outcome] += records
    return days


def expected(fits):
    days = Counter()
    for number, record in enumerate(RECORDS):
        if fits(number):
            day = datetime.fromtimestamp(record.occurred_at // 10**9, UTC).date()
            days[day, record.outcome] += 1
    return days


class TestHistogram:
    @pytest.mark.parametrize(
        ("text", "fits"),
        [
            ("", lambda _: True),
            ("event:order.*", lambda n: n % 3 < 2),
            ("-outcome:failure tenant:acme", lambda n: n % 5 and n % 2),
        ],
    )
    async def test_is_read_from_the_counts_by_the_hour(self, reading, monkeypatch, text, fits):
        """All records, though no record may be read."""
        monkeypatch.setattr(counts, "newest", None)
        found = await histogram(reading, parse(text))
        assert (found.width, found.counted) == (timedelta(hours=6), None)
        assert sum(told(found).values()) == sum(map(bool, map(fits, range(len(RECORDS)))))
        whole = await histogram(reading, parse(f"{text} time:>=30d"))
        assert (whole.width, told(whole)) == (timedelta(hours=12), expected(fits))

    @pytest.mark.parametrize(
        ("text", "fits", "counted"),
        [
            ("actor:user-3", lambda n: n % 13 == 3, None),
            ("status:5xx time:>=30d", lambda n: n % 3 == 2, None),
            ("special", lambda n: n % 10 == 0, 6),
        ],
    )
    async def test_counts_records_where_it_must(self, reading, text, fits, counted):
        """By fields that the hours do not know; free text says of how many."""
        found = await histogram(reading, parse(text))
        assert sum(told(found).values()) == sum(map(fits, range(len(RECORDS))))
        assert found.counted == counted

    async def test_a_short_span_has_short_bars(self, reading):
        """Of two days and less, records are counted: hours would say too little."""
        # the last record is eight hours before the hour in which the tests began
        minutes = (datetime.now(UTC) - NOW) // timedelta(minutes=1) + 9 * 60
        found = await histogram(reading, parse(f"time:{minutes}m"))
        assert found.width == timedelta(minutes=15)
        assert sum(told(found).values()) == 1

    async def test_a_young_store_has_short_bars(self, log):
        """Of a trail of less than two days records are counted, and facets from the hours stand."""
        await log.write(5, occurred_at=time.time_ns())
        await log.seal()
        async with queries.opened(log.dsn) as connection:
            found = await overview(connection, parse(""), ("event", "actor"))
        assert found.histogram.width < HOUR
        assert sum(told(found.histogram).values()) == 5
        assert [sum(n for _, n in one.values) for one in found.facets] == [5, 5]

    async def test_never_has_more_bars_than_fit(self, reading):
        """However long the span."""
        for text in ("", "time:1h", "time:50h", "time:1990-01-01..now", "actor:user-1 time:>1971"):
            found = await histogram(reading, parse(text.replace(">1971", ">1971-01-01")))
            assert len(found.bars) <= counts.MOST_BARS

    async def test_what_waits_is_said(self, reading, log):
        """Records that are not sealed yet are not counted, and their number is told."""
        await log.write(3)
        assert (await histogram(reading, parse(""))).waiting == 3

    async def test_without_a_seal_records_are_counted(self, log):
        """A store that nobody seals has a histogram, too."""
        await log.write(4)
        async with queries.opened(log.dsn) as connection:
            found = await histogram(connection, parse(""))
        assert sum(told(found).values()) == 4


class TestFacets:
    async def test_the_most_frequent_values(self, reading):
        """Of each field, with the number of the others."""
        found = {name: await facet(reading, parse(""), name) for name in FACETS}
        assert found["event"].values == tuple((name, 20) for name in EVENTS)
        assert dict(found["status"].values) == {"2xx": 20, "4xx": 20, "5xx": 20}
        assert len(found["actor"].values) == 10
        assert found["actor"].others == 60 - sum(number for _, number in found["actor"].values)
        assert found["target"].values == (("order", 60),)
        assert not any(one.timed_out for one in found.values())

    async def test_of_a_query(self, reading):
        """Only what fits is counted."""
        found = await facet(reading, parse("tenant:acme actor:user-3"), "outcome")
        numbers = [n for n in range(60) if n % 2 and n % 13 == 3]
        failures = sum(n % 5 == 0 for n in numbers)
        assert dict(found.values) == Counter(success=len(numbers) - failures, failure=failures)

    async def test_one_that_takes_too_long_says_so(self, reading, monkeypatch):
        """And the others stand: the transaction goes on."""
        monkeypatch.setattr(counts, "LEAST_MS", 50)
        monkeypatch.setattr(counts, "_COLUMNS", {**counts._COLUMNS, "action": "slow_action"})
        await reading.execute(
            "CREATE VIEW pg_temp.slow AS SELECT *, pg_sleep(1)::text AS slow_action "
            "FROM audit.audit_logs"
        )
        monkeypatch.setattr(counts, "newest", lambda *_: "SELECT * FROM pg_temp.slow")
        async with reading.transaction():
            assert (await facet(reading, parse(""), "action")).timed_out
            assert await reading.fetchval("SELECT 1") == 1


class TestCount:
    async def test_everything_of_one_reading_agrees(self, reading):
        """Total, bars and facets, of what the hours know and of what has to be read."""
        for text in ("", "tenant:acme", "actor:user-3", "special", "status:5xx time:>=30d"):
            query = parse(text)
            found = await overview(reading, query, FACETS)
            assert found.total == await count(reading, query)
            assert found.histogram == await histogram(reading, query)
            assert found.total == sum(told(found.histogram).values())
            assert [one.field for one in found.facets] == list(FACETS)
            for one in found.facets:
                assert sum(n for _, n in one.values) + one.others in (found.total, 0)

    async def test_beyond_the_bound_the_newest_are_counted(self, reading, monkeypatch):
        """And how many these are is said, of bars and facets alike."""
        monkeypatch.setattr(counts, "COUNTED", 10)
        found = await overview(reading, parse("phase:* -actor:nobody"), ("actor", "outcome"))
        assert found.total == 11
        assert found.histogram.counted == 10
        assert sum(told(found.histogram).values()) == 10
        newest = [number for number, _ in enumerate(RECORDS)][-10:]
        failures = sum(number % 5 == 0 for number in newest)
        (_, outcome) = found.facets
        assert dict(outcome.values) == {"success": 10 - failures, "failure": failures}
        assert outcome.counted == 10

    async def test_is_exact_up_to_a_bound(self, reading, monkeypatch):
        """Beyond, one more is told."""
        assert await count(reading, parse("tenant:acme")) == 30
        assert await count(reading, parse("special")) == 6
        monkeypatch.setattr(counts, "COUNTED", 20)
        assert await count(reading, parse("tenant:acme")) == 21


class TestWhoSeesWhat:
    async def test_a_tenants_reader_sees_no_other_count(self, reading, log, postgres):
        """Neither in bars nor in facets, sealed or read."""
        name = log.dsn.partition("?")[0].rpartition("/")[2]
        role = f"reader_{name}"
        await init(log.dsn, roles=True)
        await reading.execute(f"CREATE ROLE {role} LOGIN; GRANT otel_audit_reader TO {role}")
        await reading.execute("INSERT INTO audit.reader_tenants VALUES ($1, 'acme')", role)
        try:
            async with queries.opened(postgres.dsn(name, role)) as connection:
                rolled = await histogram(connection, parse(""))
                assert sum(told(rolled).values()) == 30
                assert (await facet(connection, parse(""), "tenant")).values == (("acme", 30),)
                read = await histogram(connection, parse("path:* -actor:nobody"))
                assert not any("globex" in str(bar) for bar in read.bars)
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute("SELECT audit.roll_up('{1}')")
        finally:
            await reading.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_an_earlier_store_is_counted_when_it_is_migrated(reading):
    """What the migration counts is what the sealer has counted."""
    kept = await reading.fetch("SELECT * FROM audit.rollup ORDER BY 1, 2, 3, 4")
    assert len(kept) == len(RECORDS)
    (step,) = (one for one in migrations() if one.name == "rollup")
    await reading.execute("DROP TABLE audit.rollup; DROP FUNCTION audit.roll_up(bigint[])")
    await reading.execute(step.sql)
    assert await reading.fetch("SELECT * FROM audit.rollup ORDER BY 1, 2, 3, 4") == kept
