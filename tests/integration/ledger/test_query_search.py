"""Queries as text, against the store: each finds what a reader of the records would pick."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from otel_audit_postgres import PostgresSink
from otel_audit_postgres.query import queries
from otel_audit_postgres.query.counts import overview
from otel_audit_postgres.query.grammar import Query, parse
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.record import Actor, Change, Request, Response, Source, Target, Tenant
from otel_audit.testing.store import AuditStore

COUNT = 60


def some(number, now):
    """A record; each of its parts goes by another remainder of its number."""
    moment = now - timedelta(hours=COUNT - number - 0.5)
    occurred_at = int(moment.timestamp()) * 10**9
    return a_record(
        record_id=uuid7(occurred_at),
        occurred_at=occurred_at,
        phase="completed",
        event_name=("order.created", "order.refunded", "user.logged_in")[number % 3],
        outcome="failure" if number % 5 == 0 else "success",
        level="changes" if number % 4 == 0 else "metadata",
        actor=Actor(
            id=f"user-{number % 7}",
            type="user",
            email=f"u{number % 7}@example.com" if number % 2 else None,
            on_behalf_of="boss" if number % 11 == 0 else None,
        ),
        tenant=Tenant(id="acme") if number % 4 else None,
        target=Target(type="order", id=str(number)) if number % 3 != 2 else None,
        source=Source(address=f"192.0.2.{number % 9}", session_id=f"s-{number % 6}"),
        request=Request(
            id=f"r-{number}", method="POST", route="/orders/{id}", path=f"/orders/{number}"
        ),
        response=Response(status_code=(200, 201, 404, 500, 503)[number % 5]),
        changes=(
            Change(
                operation="update", entity="Order", table="orders", key={"id": number},
                values={"status" if number % 2 else "note": ["open", 'said "hi"\n']},
            ),
        ) if number % 3 == 0 else (),
        trace_id=f"{number + 1:032x}",
        resource={"service.name": "shop" if number % 2 else "billing"},
        metadata={"note": "Straße 7" if number % 10 == 3 else "nothing"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def trail():
    """A record each hour, the last one half an hour ago."""
    now = datetime.now(UTC)
    return [some(number, now) for number in range(COUNT)]


@pytest.fixture(scope="module")
def filled(audit_server, trail):
    with audit_server.database() as dsn:
        assert AuditStore(dsn).write(trail) == COUNT
        yield dsn


@pytest.fixture
async def reading(filled):
    async with queries.opened(filled) as connection:
        yield connection


# what is asked: and who fits, by number
ASKED = {
    "actor:user-3": lambda n: n % 7 == 3,
    "actor:u3@example.com": lambda n: n % 7 == 3 and n % 2,
    "email:u3@example.com": lambda n: n % 7 == 3 and n % 2,
    "email:*": lambda n: n % 2,
    "-email:*": lambda n: n % 2 == 0,
    "on_behalf_of:boss": lambda n: n % 11 == 0,
    "tenant:acme": lambda n: n % 4,
    'tenant:""': lambda n: n % 4 == 0,
    "tenant:*": lambda n: n % 4,
    "event:order.*": lambda n: n % 3 != 2,
    "event:order.created,user.logged_in": lambda n: n % 3 != 1,
    "-event:order.created": lambda n: n % 3,
    "outcome:failure": lambda n: n % 5 == 0,
    "status:5xx": lambda n: n % 5 >= 3,
    "status:404": lambda n: n % 5 == 2,
    "status:>=404": lambda n: n % 5 >= 2,
    "status:>4xx": lambda n: n % 5 >= 3,
    "status:<=2xx": lambda n: n % 5 < 2,
    "status:201..404": lambda n: n % 5 in {1, 2},
    "status:..404": lambda n: n % 5 <= 2,
    "status:2xx,503": lambda n: n % 5 in {0, 1, 4},
    "-status:2xx": lambda n: n % 5 > 1,
    "target:order": lambda n: n % 3 != 2,
    "target:order:7": lambda n: n == 7,
    "-target:*": lambda n: n % 3 == 2,
    "entity:order:9": lambda n: n == 9,
    "changed:status": lambda n: n % 3 == 0 and n % 2,
    "changed:*": lambda n: n % 3 == 0,
    "-changed:*": lambda n: n % 3,
    "ip:192.0.2.4": lambda n: n % 9 == 4,
    "session:s-2": lambda n: n % 6 == 2,
    "method:POST path:/orders/1*": lambda n: str(n).startswith("1"),
    'path:"/orders/{id}"': lambda n: True,
    "request:r-12": lambda n: n == 12,
    f"trace:{13:032x}": lambda n: n == 12,
    "service:shop": lambda n: n % 2,
    "level:changes": lambda n: n % 4 == 0,
    "time:10h": lambda n: n >= COUNT - 10,
    "time:20h..10h": lambda n: COUNT - 20 <= n < COUNT - 10,
    "time:<10h": lambda n: n < COUNT - 10,
    "straße": lambda n: n % 10 == 3,
    '"said \\"hi\\""': lambda n: n % 3 == 0,
    "-straße": lambda n: n % 10 != 3,
    "actor:\"' OR true --\"": lambda n: False,
    "": lambda n: True,
}  # fmt: skip


async def found(store, query, **options):
    """All pages of a query, with the number of pages."""
    ids, after, pages = [], None, 0
    while True:
        page = await queries.search(store, query, after=after, **options)
        ids += [str(one.id) for one in page.records]
        pages += 1
        if page.next is None:
            return ids, pages
        assert page.next != after
        after = page.next


class TestEachField:
    @pytest.mark.parametrize("text", ASKED)
    async def test_finds_what_fits(self, reading, trail, text):
        """The newest first."""
        ids, _ = await found(reading, parse(text), limit=50)
        assert ids == [trail[n].record_id for n in reversed(range(COUNT)) if ASKED[text](n)]


class TestTogether:
    @settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
    @given(
        chosen=st.lists(st.sampled_from(sorted(ASKED)), max_size=4),
        bounds=st.tuples(st.integers(1, 20), st.integers(1, 70)),
        oldest_first=st.booleans(),
    )
    async def test_all_terms_must_hold_on_every_page(
        self, reading, trail, *, chosen, bounds, oldest_first
    ):
        """However few records a page shows or reads, all pages together are the answer."""
        limit, window = bounds
        query = Query(tuple(one for text in chosen for one in parse(text).terms))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(queries, "WINDOW", window)
            ids, _ = await found(reading, query, limit=limit, oldest_first=oldest_first)
        numbers = range(COUNT) if oldest_first else reversed(range(COUNT))
        fits = [n for n in numbers if all(ASKED[text](n) for text in chosen)]
        assert ids == [trail[n].record_id for n in fits]


class TestWindow:
    async def test_a_page_that_stopped_says_where(self, reading, trail, monkeypatch):
        """Free text reads so many records, and tells how far that came."""
        monkeypatch.setattr(queries, "WINDOW", 20)
        page = await queries.search(reading, parse("straße"), limit=50)
        assert page.searched_to is not None
        assert page.searched_to.timestamp() * 10**9 == trail[-20].occurred_at
        whole = await queries.search(reading, parse("straße time:15h"), limit=50)
        assert (whole.searched_to, whole.next) == (None, None)

    async def test_columns_are_asked_without_a_window(self, reading, monkeypatch):
        """What an index may serve reads no record whole."""
        monkeypatch.setattr(queries, "WINDOW", 1)
        page = await queries.search(reading, parse("service:shop"), limit=100)
        assert (len(page.records), page.searched_to) == (COUNT // 2, None)


async def test_an_address_that_is_an_id_is_one(audit_store):
    """An actor's id has an index, an e-mail has none; the reader is told which it was."""
    sink = PostgresSink(audit_store)
    records = [
        a_record(record_id=uuid7(), actor=Actor(id="a@x.example", type="user")),
        a_record(record_id=uuid7(), actor=Actor(id="7", type="user", email="a@x.example")),
    ]
    await sink.write(records)
    await sink.close()
    async with queries.opened(audit_store) as connection:
        page = await queries.search(connection, parse("actor:a@x.example"))
        assert [str(one.id) for one in page.records] == [records[0].record_id]
        assert "ask email:" in page.notice
        page = await queries.search(connection, parse("email:a@x.example"))
        assert [str(one.id) for one in page.records] == [records[1].record_id]


async def test_a_list_of_actors_may_name_some_by_id_and_others_by_address(audit_store):
    """Each of them is found, and what is counted is what is shown."""
    sink = PostgresSink(audit_store)
    records = [
        a_record(record_id=uuid7(), actor=Actor(id="7", type="user", email="a@x.example")),
        a_record(record_id=uuid7(), actor=Actor(id="8", type="user")),
        a_record(record_id=uuid7(), actor=Actor(id="b@x.example", type="user")),
        a_record(record_id=uuid7(), actor=Actor(id="9", type="user", email="c@x.example")),
    ]
    await sink.write(records)
    await sink.close()
    cases = {
        "actor:a@x.example": [0],
        "actor:a@x.example,8": [0, 1],
        "actor:a@x.example,b@x.example": [0, 2],
        "actor:a@x.example,c@x.example": [0, 3],
        "actor:8,b@x.example": [1, 2],
        "-actor:a@x.example,8": [2, 3],
        "actor:a@x.example,b@*": [0, 2],
    }
    async with queries.opened(audit_store) as connection:
        for text, places in cases.items():
            page = await queries.search(connection, parse(text), oldest_first=True)
            assert [str(one.id) for one in page.records] == [
                records[place].record_id for place in places
            ], text
            counted = await overview(connection, parse(text), ("actor",))
            assert counted.total == len(places)
            assert sum(number for _, number in counted.facets[0].values) == len(places)
