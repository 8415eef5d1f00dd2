"""Rows in the ledger's order: every one once, none before it is sealed, none that may not be seen."""

from __future__ import annotations

import uuid

import asyncpg
import pytest
from otel_audit_postgres.ledger import sealed_rows
from otel_audit_postgres.ledger.sealed_rows import horizon, leaf_hash_at, read_page
from otel_audit_postgres.query.grammar import parse
from otel_audit_postgres.query.queries import opened
from otel_audit_postgres.rows import COLUMNS, to_row
from otel_audit_postgres.schema.install import init
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.errors import ConfigurationError, StoreError
from otel_audit.record import Tenant


async def read_all(connection, start=0, *, upto=None, **options):
    """Read page after page up to the horizon, also pages without a row."""
    while True:
        page = await read_page(connection, start, upto=upto, **options)
        if page.next > start or page.rows:
            yield page
        if page.is_last or page.next >= (page.horizon.size if upto is None else upto):
            return
        start = page.next


async def _leaves(connection, start=0, **options):
    return [
        (row.leaf, str(row.id))
        async for page in read_all(connection, start, **options)
        for row in page.rows
    ]


async def test_every_sealed_row_comes_once_in_the_order_of_the_leaves(sealed, connection):
    """Whatever the size of the pages and wherever they begin, blocks do not show."""
    everything = await _leaves(connection)
    assert [leaf for leaf, _ in everything] == list(range(23))
    assert len({record_id for _, record_id in everything}) == 23
    for limit in (1, 2, 7, 10, 11, 23, 500):
        for start in (0, 1, 9, 10, 11, 22, 23):
            assert await _leaves(connection, start, limit=limit) == everything[start:]


async def test_what_is_not_sealed_is_not_read(sealed, connection):
    """The horizon is the latest checkpoint; a row that waits in the queue comes after its seal."""
    waiting = await sealed.write(1)
    page = await read_page(connection, 20)
    assert (page.next, page.horizon.size, page.is_last, page.absent) == (23, 23, True, 0)
    await sealed.seal()
    assert [(row.leaf, str(row.id)) for row in (await read_page(connection, 23)).rows] == [
        (23, waiting[0])
    ]


async def test_a_late_commit_is_read_after_those_that_overtook_it(log, connection):
    """A row with an early id that commits late is sealed late, and a reader who went on meets it."""
    early = await log.write(1)
    late_id = uuid7()
    late = await asyncpg.connect(log.dsn)
    try:
        held = late.transaction()
        await held.start()
        await late.execute(*_insert(a_record(record_id=late_id)))
        overtaking = await log.write(2)
        await log.seal()
        page = await read_page(connection, 0)
        assert [str(row.id) for row in page.rows] == [*early, *overtaking]
        await held.commit()
        await log.seal()
        assert [str(row.id) for row in (await read_page(connection, page.next)).rows] == [late_id]
    finally:
        await late.close()


async def test_a_bound_stops_before_its_leaf(sealed, connection):
    """A report as of an older checkpoint reads up to its size, whatever was sealed since."""
    assert [leaf for leaf, _ in await _leaves(connection, 5, upto=11, limit=4)] == [*range(5, 11)]
    page = await read_page(connection, 12, upto=11)
    assert (page.rows, page.next) == ((), 12)
    assert (await read_page(connection, 0, upto=0)).rows == ()


async def test_a_query_leaves_rows_out_and_the_way_goes_on(log, connection):
    """A page without a row that fits leads on all the same; nothing is said to be absent."""
    await log.write(9, event_name="order.created")
    await log.write(1, event_name="order.deleted")
    await log.write(3, event_name="order.created")
    await log.seal()
    pages = [
        page
        async for page in read_all(
            connection, 0, query=parse("event:order.deleted"), limit=4, columns=("event_name",)
        )
    ]
    assert [page.next for page in pages] == [4, 8, 12, 13]
    assert [page.absent for page in pages] == [0, 0, 0, 0]
    rows = [row for page in pages for row in page.rows]
    assert [row.columns for row in rows] == [{"event_name": "order.deleted"}]


async def test_a_position_ahead_of_the_log_is_refused(sealed, connection):
    """So it is after a backup was restored: the error says so."""
    with pytest.raises(StoreError, match="leaf 24 lies ahead of the log, which has 23 leaves"):
        await read_page(connection, 24)
    assert (await read_page(connection, 23)).rows == ()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit": 0}, "limit: from 1 to"),
        ({"limit": 5_001}, "limit: from 1 to"),
        ({"start": -1}, "start: a leaf's number, not -1"),
        ({"columns": ("payload; DROP TABLE",)}, "columns: no payload; DROP TABLE"),
    ],
)
async def test_an_unfit_request_is_refused_by_name(sealed, connection, options, said):
    """Each error names the argument."""
    with pytest.raises(ConfigurationError, match=said):
        await read_page(connection, options.pop("start", 0), **options)


async def test_a_changed_row_comes_and_is_said_to_be_changed(sealed, connection, administrator):
    """What leaves the trail is compared with its leaf; a deleted row is counted as absent."""
    rows = (await read_page(connection, 0)).rows
    await administrator.does(
        "UPDATE audit.audit_logs SET recorded_at = recorded_at + interval '1 s' WHERE id = $1",
        rows[3].id,
    )
    await administrator.does("DELETE FROM audit.audit_logs WHERE id = $1", rows[5].id)
    page = await read_page(connection, 0)
    assert [row.leaf for row in page.rows if not row.is_as_sealed] == [3]
    assert page.absent == 1
    assert [row.leaf for row in page.rows] == [n for n in range(23) if n != 5]


async def test_large_rows_make_shorter_pages(sealed, connection, monkeypatch):
    """What is held at a time is bounded in bytes; nothing is left out for it."""
    everything = await _leaves(connection)
    size = max(len(row.payload) for row in (await read_page(connection, 0)).rows)
    monkeypatch.setattr(sealed_rows, "BYTES_AT_ONCE", size * 3)
    page = await read_page(connection, 0)
    assert 1 <= len(page.rows) <= 4
    assert await _leaves(connection) == everything
    monkeypatch.setattr(sealed_rows, "BYTES_AT_ONCE", 1)
    assert await _leaves(connection) == everything


async def test_the_hash_of_a_leaf_tells_one_log_from_another(sealed, connection):
    """A position keeps it, so that a log that was begun anew is not taken for the old one."""
    page = await read_page(connection, 3, limit=7)
    assert page.leaf_hash == await leaf_hash_at(connection, page.next - 1)
    assert page.leaf_hash != await leaf_hash_at(connection, page.next)
    assert await leaf_hash_at(connection, 23) is None
    assert (await horizon(connection)).origin == "audit.example.com/log"


async def test_an_empty_log_has_nothing(audit_store, connection):
    """Where nothing was ever sealed there is no page but the first, which is empty."""
    page = await read_page(connection, 0)
    assert (page.rows, page.next, page.horizon.size, page.is_last) == ((), 0, 0, True)


async def test_a_reader_of_one_tenant_gets_no_other(log, postgres, connection):
    """Row-level security holds: leaves of other tenants are absent, also where they share an id."""
    name = f"reader_{uuid.uuid4().hex[:8]}"
    await postgres.execute(f"CREATE ROLE {name} LOGIN")
    await init(log.dsn, roles=True, reader=name, tenants=["acme"])
    expected = []
    for tenant in ("acme", "rival", "rival", "acme", "acme", "rival"):
        ids = await log.write(2, tenant=Tenant(id=tenant))
        expected += ids if tenant == "acme" else []
    # a row of both tenants under one id
    both = uuid7()
    for tenant in ("rival", "acme"):
        await connection.execute(*_insert(a_record(record_id=both, tenant=Tenant(id=tenant))))
    await log.seal(batch=3)
    async with opened(_as(log.dsn, name)) as narrow:
        for limit in (1, 4, 100):
            assert sorted(one for _, one in await _leaves(narrow, limit=limit)) == sorted(
                [*expected, both]
            )
        page = await read_page(narrow, 0)
    assert {row.tenant_id for row in page.rows} == {"acme"}
    assert all(row.is_as_sealed for row in page.rows)
    assert page.absent == 14 - len(page.rows) == 7


def _as(dsn, user):
    scheme, _, rest = dsn.partition("://")
    return f"{scheme}://{user}@{rest.partition('@')[2]}"


def _insert(record):
    values = to_row(record).values
    names = ", ".join(name for name, _ in COLUMNS)
    numbers = ", ".join(f"${number}" for number in range(1, len(COLUMNS) + 1))
    given = [
        value.decode() if name == "payload" else value
        for (name, _), value in zip(COLUMNS, values, strict=True)
    ]
    return f"INSERT INTO audit.audit_logs ({names}) VALUES ({numbers})", *given
