"""A fault of the store is no fault of a record: what it refuses for a reason of its own waits."""

from __future__ import annotations

import asyncio
import time

import pytest
from otel_audit_postgres import PostgresSink
from otel_audit_postgres.checks.inspect import inspect
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.delivery.delivery import Delivery, DeliveryOptions
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.sink import Written
from otel_audit.errors import StoreError
from otel_audit.record import Actor, Tenant
from otel_audit.server.errors import RequestError
from otel_audit.server.intake import Intake

FAILING = """
CREATE TABLE public.other (id int CONSTRAINT other_pkey PRIMARY KEY);
INSERT INTO public.other VALUES (1);
CREATE FUNCTION public.count_in_other() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO public.other VALUES (1); RETURN NULL; END $$;
CREATE TRIGGER mine AFTER INSERT ON audit.audit_logs
    FOR EACH ROW EXECUTE FUNCTION public.count_in_other();
"""
DIVIDING = """
CREATE FUNCTION public.divide() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM 1 / 0; RETURN NULL; END $$;
CREATE TRIGGER mine AFTER INSERT ON audit.audit_logs
    FOR EACH ROW EXECUTE FUNCTION public.divide();
"""
DETACHING = """
DO $$ DECLARE one text; BEGIN
    FOR one IN SELECT inhrelid::regclass::text FROM pg_inherits
               WHERE inhparent = 'audit.audit_logs'::regclass LOOP
        EXECUTE 'ALTER TABLE audit.audit_logs DETACH PARTITION ' || one;
    END LOOP;
END $$
"""
OVERTAKING = """
INSERT INTO audit.ledger_queue (position, id, tenant_id, content_hash, recorded_at)
SELECT n, gen_random_uuid(), '', sha256('x'), now()
FROM generate_series(1, 500) n
"""
CHANGING = """
CREATE OR REPLACE FUNCTION audit.queue_for_sealing() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN PERFORM 'no number'::int; RETURN NULL; END $$
"""
FAULTS = {
    "a partition is missing": (
        DETACHING,
        None,
    ),
    "a constraint was added": (
        "ALTER TABLE audit.audit_logs ADD CONSTRAINT only_acme CHECK (tenant_id = 'acme') NOT VALID",
        "ALTER TABLE audit.audit_logs DROP CONSTRAINT only_acme",
    ),
    "a trigger meets a key of its own": (FAILING, "DROP TRIGGER mine ON audit.audit_logs"),
    "a trigger divides by zero": (DIVIDING, "DROP TRIGGER mine ON audit.audit_logs"),
    "a function of ours was changed": (
        CHANGING,
        None,
    ),
    "a check of ours refuses everything": (
        "ALTER TABLE audit.audit_logs ADD CONSTRAINT well_formed_never CHECK (false) NOT VALID",
        "ALTER TABLE audit.audit_logs DROP CONSTRAINT well_formed_never",
    ),
    "the queue's sequence is behind": (
        OVERTAKING,
        "SELECT setval('audit.ledger_position', 500)",
    ),
}


@pytest.fixture
async def sink(audit_store):
    sink = PostgresSink(audit_store)
    yield sink
    await sink.close()


def records(count: int, **fields) -> list:
    return [a_record(record_id=uuid7(), **fields) for _ in range(count)]


def unflushed_down_to(delivery: Delivery, depth: int) -> None:
    """Wait until so few records are left; flushing never succeeds."""
    until = time.monotonic() + 60
    assert not delivery.flush(0.1)
    while delivery.depth > depth and time.monotonic() < until:
        assert not delivery.flush(0.1)


async def in_quarantine(admin) -> int:
    return await admin.fetchval("SELECT count(*) FROM audit.quarantine")


@pytest.mark.parametrize("size", [1, 5, 22, 300])
@pytest.mark.parametrize("fault", FAULTS)
async def test_nothing_of_it_is_put_aside(sink, admin, fault, size):
    """Whatever the fault and the size of the batch: records are postponed, and stored once it is mended."""
    breaking, mending = FAULTS[fault]
    await sink.check()
    await admin.execute(breaking)
    batch = records(size)
    written = await sink.write(batch)
    assert written.quarantined == 0
    assert await in_quarantine(admin) == 0
    assert len(written.postponed) + written.stored == size
    assert written.postponed
    assert "otel-audit doctor" in written.why_postponed
    if mending is None:
        return
    await admin.execute(mending)
    assert await sink.write(batch) == Written(stored=size)
    assert await admin.fetchval("SELECT count(*) FROM audit.audit_logs") == size


async def test_records_that_the_fault_does_not_touch_are_stored(sink, admin):
    """One tenant's are refused by a constraint that was added, all others' are stored."""
    await sink.check()
    await admin.execute(
        "ALTER TABLE audit.audit_logs ADD CONSTRAINT not_acme CHECK (tenant_id <> 'acme')"
    )
    postponed, sound = records(3, tenant=Tenant(id="acme")), records(30, tenant=Tenant(id="other"))
    written = await sink.write([*postponed[:2], *sound, postponed[2]])
    assert written.stored == 30
    assert set(written.postponed) == {record.record_id for record in postponed}
    assert "not_acme" in written.why_postponed


async def test_a_key_of_others_is_no_conflict_of_ids(one_day, sink, admin):
    """A record that a unique index keeps out is neither stored, nor in conflict with another."""
    await sink.check()
    month = await admin.fetchval(
        "SELECT 'audit.audit_logs_' || to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')"
    )
    await admin.execute(f"CREATE UNIQUE INDEX mine ON {month} (actor_id)")
    (first, second) = records(2, actor=Actor(id="u-1", type="user"))
    assert await sink.write([first]) == Written(stored=1)
    written = await sink.write([second])
    assert (written.stored, written.quarantined, written.conflicts) == (0, 0, 0)
    assert written.postponed == (second.record_id,)
    assert await in_quarantine(admin) == 0


async def test_a_malformed_record_is_put_aside_and_holds_up_no_other(sink, admin):
    """By a check of ours: that record alone, whatever else is wrong with the store."""
    await sink.check()
    await admin.execute(
        "ALTER TABLE audit.audit_logs ADD CONSTRAINT not_acme CHECK (tenant_id <> 'acme')"
    )
    bad = records(2, occurred_at=-(2**62))
    postponed, sound = records(2, tenant=Tenant(id="acme")), records(12)
    written = await sink.accept([*bad, *postponed, *sound])
    assert written.postponed == {record.record_id for record in postponed}
    stored = await admin.fetchval("SELECT count(*) FROM audit.audit_logs")
    assert stored + await in_quarantine(admin) == 14


async def test_the_doctor_names_it(audit_store, sink, admin):
    """What was added, and that a record would not be taken now."""
    await sink.check()
    await admin.execute(
        "ALTER TABLE audit.audit_logs ADD CONSTRAINT only_acme CHECK (tenant_id = 'acme')"
    )
    found = {finding.name: finding for finding in await inspect(audit_store)}
    assert found["additions"].ok is None
    assert "only_acme" in found["additions"].detail
    assert found["takes_records"].ok is False
    assert "only_acme" in found["takes_records"].detail
    await admin.execute("ALTER TABLE audit.audit_logs DROP CONSTRAINT only_acme")
    found = {finding.name: finding for finding in await inspect(audit_store)}
    assert found["additions"].ok
    assert found["takes_records"].ok
    assert await admin.fetchval("SELECT count(*) FROM audit.audit_logs") == 0


async def test_delivery_waits_loudly_and_goes_on(audit_store, admin, caplog):
    """Held records stay, others pass, health fails; all is delivered once it is mended."""
    await admin.execute(
        "ALTER TABLE audit.audit_logs ADD CONSTRAINT not_acme CHECK (tenant_id <> 'acme')"
    )
    counters = Counters()
    delivery = Delivery(
        lambda: PostgresSink(audit_store), counters,
        DeliveryOptions(batch_interval=0.01, first_pause=0.05, longest_pause=0.2),
    )  # fmt: skip
    try:
        for record in (*records(3, tenant=Tenant(id="acme")), *records(50)):
            delivery.submit(record)
        unflushed_down_to(delivery, 3)
        assert delivery.depth == 3
        assert delivery.failing_for > 0
        assert counters.snapshot()["exported"] == 50
        assert "not_acme" in caplog.text
        for record in records(20):
            delivery.submit(record)
        unflushed_down_to(delivery, 3)
        assert delivery.depth == 3
        assert delivery.failing_for > 0
        await admin.execute("ALTER TABLE audit.audit_logs DROP CONSTRAINT not_acme")
        assert delivery.flush(30)
        assert delivery.failing_for == 0
    finally:
        delivery.close(1)
    assert await admin.fetchval("SELECT count(*) FROM audit.audit_logs") == 73
    assert counters.snapshot()["quarantined"] == 0


async def test_the_first_records_that_are_held_are_no_success(audit_store, admin, caplog):
    """Health fails from the first refusal on; nothing says that records are taken."""
    await admin.execute(
        "ALTER TABLE audit.audit_logs ADD CONSTRAINT not_acme CHECK (tenant_id <> 'acme')"
    )
    delivery = Delivery(
        lambda: PostgresSink(audit_store), Counters(),
        # they are not tried again while this test runs
        DeliveryOptions(batch_interval=0.01, first_pause=0.05, longest_pause=3600.0),
    )  # fmt: skip
    try:
        for record in records(2, tenant=Tenant(id="acme")):
            delivery.submit(record)
        until = time.monotonic() + 30
        while "not_acme" not in caplog.text and time.monotonic() < until:
            assert not delivery.flush(0.1)
        # another batch passes, and does not say otherwise
        for record in records(5):
            delivery.submit(record)
        unflushed_down_to(delivery, 2)
        assert delivery.depth == 2
        assert delivery.failing_for > 0
        assert "takes records again" not in caplog.text
    finally:
        delivery.close(1)


async def test_a_failing_trigger_of_any_class_waits(sink, admin):
    """What a trigger raises by itself is an error of the store, with the doctor as the remedy."""
    await sink.check()
    await admin.execute(
        "CREATE FUNCTION public.no() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'nein'; END $$",
    )
    await admin.execute(
        "CREATE TRIGGER mine AFTER INSERT ON audit.audit_logs "
        "FOR EACH ROW EXECUTE FUNCTION public.no()"
    )
    with pytest.raises(StoreError, match="otel-audit doctor"):
        await sink.write(records(12))
    assert await in_quarantine(admin) == 0


async def test_serve_sends_away_only_those_whose_records_are_held(audit_store, admin):
    """Requests that are stored together are answered apart."""
    await admin.execute(
        "ALTER TABLE audit.audit_logs ADD CONSTRAINT not_acme CHECK (tenant_id <> 'acme')"
    )
    intake = Intake(lambda: PostgresSink(audit_store), writers=1)
    (postponed,), sound = records(1, tenant=Tenant(id="acme")), records(3)
    waiting = [asyncio.create_task(intake.store([one], [])) for one in (*sound, postponed)]
    await asyncio.sleep(0)
    intake.start()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    await intake.stop(10)
    assert [isinstance(answer, RequestError) for answer in answers] == [False, False, False, True]
    assert await admin.fetchval("SELECT count(*) FROM audit.audit_logs") == 3
    assert await in_quarantine(admin) == 0


SETTINGS = {
    "standard_conforming_strings": "off", "backslash_quote": "off", "bytea_output": "escape",
    "datestyle": "German", "intervalstyle": "sql_standard", "timezone": "Asia/Kathmandu",
    "array_nulls": "off", "transform_null_equals": "on", "extra_float_digits": "-15",
    "client_encoding": "LATIN1", "search_path": "", "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on", "row_security": "off", "quote_all_identifiers": "on",
    "plan_cache_mode": "force_generic_plan", "xmloption": "document", "lc_numeric": "C",
}  # fmt: skip


async def test_no_setting_of_a_role_makes_a_record_unfit(audit_store, admin):
    """Whatever a role's or a database's defaults are, what is sound is stored, and well-formed."""
    name = audit_store.partition("?")[0].rpartition("/")[2]
    for setting, value in SETTINGS.items():
        await admin.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'")
        sink = PostgresSink(audit_store)
        try:
            assert await sink.write(records(3)) == Written(stored=3), setting
        finally:
            await sink.close()
            await admin.execute(f"ALTER DATABASE {name} RESET {setting}")
    assert await in_quarantine(admin) == 0
