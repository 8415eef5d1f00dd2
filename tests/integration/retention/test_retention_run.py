"""The policy carried out: archived, read back, retired, dropped, and everything still verifies."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta

import asyncpg
import pytest
from otel_audit_postgres import init
from otel_audit_postgres.archive.manifest import read_manifest
from otel_audit_postgres.retention import drop, retire
from otel_audit_postgres.retention.holds import (
    HoldConditions,
    override_hold,
    place_hold,
    release_hold,
)
from otel_audit_postgres.retention.plan import plan
from otel_audit_postgres.retention.policy import PolicyError, read_policy
from otel_audit_postgres.retention.run import run
from retention_trail import APRIL, JANUARY, MARCH

from otel_audit.errors import StoreError, StoreUnavailableError


class TestPlan:
    async def test_tells_months_classes_and_days(self, months):
        """Rows by class, the first day on which each may go, and nothing is changed."""
        found = await plan(months.dsn, months.policy)
        january = found.months[0]
        assert (january.month, january.rows, january.first_day) == (JANUARY, 42, date(2025, 4, 2))
        assert [(one.says.name, one.rows) for one in january.classes] == [
            ("default", 30), ("sign-ins", 12),
        ]  # fmt: skip
        assert [one.month for one in found.due] == [JANUARY, MARCH, APRIL]
        assert (await months.verify()).rows_checked == 81

    async def test_names_what_waits(self, months):
        """Rows that are not sealed keep their month."""
        await months.write_in(JANUARY, 3, event="late.row", tenant="late")
        found = await plan(months.dsn, months.policy)
        assert found.months[0].blocked_by == ("3 rows wait to be sealed",)

    async def test_refuses_a_policy_that_what_is_there_contradicts(self, months):
        """Classes of one month that cannot both be satisfied are named by their rules."""
        policy = read_policy(
            "[default]\nhot = 400\narchive = 10\n"
            '[[rule]]\nname = "short"\nmatch = {event = "auth.*"}\nhot = 10\narchive = 0\nmax = 60'
        )
        with pytest.raises(PolicyError, match=r"'short'.*60.*'default'.*400"):
            await plan(months.dsn, policy)

    async def test_refuses_clocks_that_are_apart(self, months, monkeypatch):
        """A clock that jumped makes nothing due."""
        import otel_audit_postgres.retention.plan as planning

        class Jumped(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.now(tz) + timedelta(days=4000)

        monkeypatch.setattr(planning, "datetime", Jumped)
        with pytest.raises(PolicyError, match="clock"):
            await plan(months.dsn, months.policy)


class TestRun:
    async def test_moves_months_into_the_archive(self, months, connection):
        """Three months go, February has a manifest too, and store and archive verify together."""
        done = await months.retain()
        assert done.archived == {"2025-01": 42, "2025-03": 25, "2025-04": 9}
        assert done.dropped == {"2025-01": 42, "2025-03": 25, "2025-04": 9}
        await months.seal()
        report, archived = await months.check_all()
        assert report.problems == ()
        assert (archived.archived, archived.rows_read, archived.removed) == (64, 64, 12)
        assert report.dropped == 76
        rows = await connection.fetch("SELECT month, rows FROM audit.archives ORDER BY step")
        assert [(row["month"], row["rows"]) for row in rows] == [
            (JANUARY, 42), (date(2025, 2, 1), 0), (MARCH, 25), (APRIL, 9),
        ]  # fmt: skip
        assert await months.retain() is not None
        assert (await months.check_all())[0].ok

    async def test_expires_what_may_go_and_tells_so(self, retained, connection):
        """Sign-ins of January expired long ago: their object is gone, its record is there."""
        events = await connection.fetch(
            "SELECT event_name, count(*) FROM audit.audit_logs WHERE event_name LIKE 'audit.%' "
            "GROUP BY 1 ORDER BY 1"
        )
        assert [tuple(row) for row in events] == [
            ("audit.archive.removed", 1), ("audit.month.archived", 4),
            ("audit.partition.retired", 3), ("audit.retention.changed", 1),
            ("audit.retention.ran", 1),
        ]  # fmt: skip
        assert not [
            key for key in retained.archive.list_keys() if key.endswith("t") and "sign-ins" in key
        ]
        report = await retained.check()
        assert (report.ok, report.removed) == (True, 12)

    async def test_writes_the_same_bytes_again(self, months, tmp_path):
        """The same rows in the same order are the same file, whoever writes it."""
        from otel_audit_postgres.archive.write_month import write_month
        from otel_audit_postgres.ledger import ledger_queries

        digests = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            async with ledger_queries.opened(months.dsn, "test") as connection:
                written = await write_month(
                    connection, JANUARY, tmp_path / name, lambda *kind: "all"
                )
            digests.append((written.files[0].sha256, written.tree.text()))
        assert digests[0] == digests[1]

    async def test_archives_again_what_came_late(self, months):
        """A row that comes after a month was archived goes into a second archive of it."""
        late = []

        def on_step(month, step):
            if (month, step) == ("2025-01", "retire") and not late:
                late.append(step)
                raise StoreUnavailableError("cut off")

        with pytest.raises(StoreUnavailableError):
            await months.retain(on_step=on_step)
        await months.write_in(JANUARY, 2, tenant="late")
        await months.seal()
        done = await months.retain()
        assert done.dropped["2025-01"] == 44
        await months.seal()
        report, archived = await months.check_all()
        assert (report.problems, archived.archived + archived.removed) == ((), 78)

    async def test_leaves_out_what_the_policy_does_not_archive(self, months):
        """archive = 0: the rows are gone with their month, and the manifest says how many."""
        policy = read_policy(
            "[default]\nhot = 30\narchive = 9000\n"
            '[[rule]]\nname = "short"\nmatch = {event = "auth.*"}\nhot = 30\narchive = 0'
        )
        done = await months.retain(policy=policy)
        assert (done.archived["2025-01"], done.dropped["2025-01"]) == (30, 42)
        await months.seal()
        report, archived = await months.check_all()
        assert (report.problems, archived.archived) == ((), 64)

    async def test_stops_at_a_row_that_was_changed(self, months, connection):
        """What is not as it was sealed is neither archived nor dropped."""
        from ledger_store import Administrator

        await Administrator(connection).does(
            "UPDATE audit.audit_logs SET payload = replace(payload::text, 'acme', 'evil')::json "
            "WHERE id = (SELECT min(id::text)::uuid FROM audit.audit_logs)"
        )
        with pytest.raises(
            Exception, match=r"leaf \d+\) is gone, or not what was sealed.*otel-audit verify"
        ):
            await months.retain()
        assert (await plan(months.dsn, months.policy)).months[0].rows == 42
        assert not months.archive.list_keys()

    async def test_lets_only_one_run(self, months):
        """A second run that begins meanwhile is refused, and the first goes on."""
        tasks = []

        def on_step(month, step):
            if step == "write" and not tasks:
                tasks.append(asyncio.get_running_loop().create_task(months.retain()))

        done = await months.retain(on_step=on_step)
        with pytest.raises(StoreUnavailableError, match="another .* is under way"):
            await tasks[0]
        assert len(done.dropped) == 3

    async def test_waits_for_a_sealer(self, months):
        """Without one, a month stays until the next run finds its record sealed."""
        done = await months.retain(seal=None, wait=0.0)
        assert set(done.waiting) == {"2025-01", "2025-03", "2025-04"}
        assert done.dropped == {}
        await months.seal()
        done = await months.retain(seal=None, wait=0.0)
        assert len(done.dropped) == 3

    async def test_is_done_by_two_memberships(self, months, postgres):
        """A login that is a member of retention and reader does all of it, with the event trigger."""
        role = "keeper_" + months.dsn.partition("?")[0][-8:].lower()
        await postgres.execute(f"CREATE ROLE {role} LOGIN")
        await init(months.dsn, roles=True, retention=role, reader=role)
        dsn = postgres.dsn(months.dsn.partition("?")[0].rpartition("/")[2], role)
        done = await run(months.policy, months.run_options(dsn=dsn))
        assert len(done.dropped) == 3
        await months.seal()
        report, _ = await months.check_all()
        assert report.problems == ()


class TestPolicyInForce:
    async def test_keeps_an_operator_from_dropping_too_early(self, months):
        """By the functions alone nothing goes before its day."""
        today = datetime.now(UTC).date()
        days = (today - date(2025, 2, 1)).days + 10
        policy = read_policy(f"floor = {days}\n[default]\nhot = {days}\narchive = 1000")
        await months.retain(policy=policy)
        with pytest.raises(StoreError, match="by the retention policy it is kept until"):
            await retire(months.dsn, "audit_logs_2025_01")

    async def test_counts_a_rule_for_the_rows_that_are_there(self, months):
        """One class with a long min keeps the whole month from being dropped by hand."""
        policy = read_policy(
            "[default]\nhot = 5000\narchive = 5000\n"
            '[[rule]]\nname = "long"\nmatch = {event = "auth.*"}\nmin = 9000'
        )
        await months.retain(policy=policy)
        with pytest.raises(StoreError, match="kept until 2049"):
            await retire(months.dsn, "audit_logs_2025_01")
        await retire(months.dsn, "audit_logs_2025_03")


class TestHolds:
    async def test_keep_a_month_and_name_themselves(self, months):
        """What a hold applies to is archived and stays; the others go; released, it goes too."""
        hold, _ = await place_hold(months.dsn, "case 7", "a suit", HoldConditions(actor="bob"))
        done = await months.retain()
        assert f"hold {hold} (matter case 7)" in done.blocked["2025-01"]
        assert set(done.dropped) == {"2025-03", "2025-04"}
        with pytest.raises(StoreError, match=f"hold {hold}"):
            await retire(months.dsn, "audit_logs_2025_01")
        await release_hold(months.dsn, hold, "settled")
        assert set((await months.retain()).dropped) == {"2025-01"}
        await months.seal()
        assert (await months.check_all())[0].problems == ()

    @pytest.mark.parametrize(
        "conditions",
        [
            HoldConditions(tenant="acme"),
            HoldConditions(entity="order:3"),
            HoldConditions(event="order.*"),
            HoldConditions(event="order.paid", until=datetime(2025, 2, 1, tzinfo=UTC)),
            HoldConditions(
                since=datetime(2025, 1, 1, tzinfo=UTC), until=datetime(2025, 5, 1, tzinfo=UTC)
            ),
        ],
    )
    async def test_apply_by_each_condition(self, months, conditions):
        """Tenant, entity, event and time."""
        await place_hold(months.dsn, "m", "r", conditions)
        assert "2025-01" in (await months.retain()).blocked

    async def test_that_come_between_retiring_and_dropping_count(self, months):
        """A hold that is placed while a run is under way keeps the month."""
        manifest = await retire(months.dsn, "audit_logs_2025_01")
        await months.seal()
        hold, _ = await place_hold(months.dsn, "late", "r", HoldConditions(actor="ada"))
        with pytest.raises(StoreError, match=f"hold {hold}"):
            await drop(months.dsn, "audit_logs_2025_01", manifest)
        await release_hold(months.dsn, hold, "over")
        assert await drop(months.dsn, "audit_logs_2025_01", manifest) == 42

    async def test_that_are_being_placed_are_waited_for(self, months, connection):
        """A hold in a transaction that is not over yet is not overtaken."""
        manifest = await retire(months.dsn, "audit_logs_2025_01")
        await months.seal()
        transaction = connection.transaction()
        await transaction.start()
        await connection.fetchval(
            "SELECT audit.place_hold('m', 'r', NULL, 'ada', NULL, NULL, NULL, NULL)"
        )
        dropping = asyncio.create_task(drop(months.dsn, "audit_logs_2025_01", manifest))
        await until_a_lock_is_waited_for(months.dsn)
        await transaction.commit()
        with pytest.raises(StoreError, match="applies to it"):
            await dropping

    async def test_are_overridden_by_somebody_else_only(self, months, postgres):
        """Who placed it cannot override it; another role can, and a record tells."""
        await postgres.execute("CREATE ROLE second_person SUPERUSER LOGIN")
        try:
            hold, _ = await place_hold(months.dsn, "m", "r", HoldConditions(actor="bob"))
            with pytest.raises(StoreError, match="another role must"):
                await override_hold(months.dsn, hold, "audit_logs_2025_01", "why not")
            other = postgres.dsn(months.dsn.partition("?")[0].rpartition("/")[2], "second_person")
            await override_hold(other, hold, "audit_logs_2025_01", "the court said so")
            assert "2025-01" in (await months.retain()).dropped
        finally:
            await postgres.execute("DROP ROLE second_person")

    async def test_keep_objects_of_the_archive(self, months):
        """What would expire stays while a hold applies to a row in it."""
        keep = read_policy(
            "[default]\nhot = 60\narchive = 3000\n"
            '[[rule]]\nname = "sign-ins"\nmatch = {event = "auth.*"}\nhot = 60\narchive = 40'
        )
        await months.retain(date(2025, 4, 5), policy=keep)
        hold, held = await place_hold(
            months.dsn, "m", "r", HoldConditions(actor="bob"), months.archive
        )
        assert [key.split("/")[1].split("-")[0] for key in held] == ["sign"]
        done = await months.retain(policy=keep)
        assert [name for name in done.blocked if "sign-ins" in name]
        await release_hold(months.dsn, hold, "over", months.archive)
        assert len((await months.retain(policy=keep)).removed) == 1


async def until_a_lock_is_waited_for(dsn):
    connection = await asyncpg.connect(dsn)
    try:
        while not await connection.fetchval(  # noqa: ASYNC110 - a condition in the database
            "SELECT count(*) FROM pg_locks WHERE NOT granted"
        ):
            await asyncio.sleep(0.02)
    finally:
        await connection.close()


class TestManifest:
    async def test_is_signed_and_names_the_one_before(self, retained, connection):
        """Each manifest is a signed note of the ledger's key, in an order that cannot be changed."""
        notes = [
            row["manifest"]
            for row in await connection.fetch("SELECT manifest FROM audit.archives ORDER BY step")
        ]
        from otel_audit_postgres.archive.manifest import is_signed, manifest_digest

        before = None
        for note in notes:
            assert is_signed(note, [retained.key.public])
            assert read_manifest(note).previous == before
            before = manifest_digest(note)

    async def test_must_name_the_one_before(self, retained, connection):
        """The store refuses a manifest out of its order."""
        with pytest.raises(Exception, match="does not name the one before"):
            await connection.fetchval(
                "SELECT audit.record_archive('2024-01-01', E'x\\nprevious: none\\ny', 0, '[]')"
            )
