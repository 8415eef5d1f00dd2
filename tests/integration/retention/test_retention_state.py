"""What retention did is a record; how it is doing is told; who keeps less needs a second person."""

from __future__ import annotations

import json
import uuid

import asyncpg
import pytest
from click.testing import CliRunner
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from otel_audit_postgres import init
from otel_audit_postgres.archive.catalog import record_verification
from otel_audit_postgres.retention import metrics
from otel_audit_postgres.retention.holds import HoldConditions, place_hold
from otel_audit_postgres.retention.metrics import RetentionWatch, publish, retention_state
from otel_audit_postgres.retention.policy import PolicyError, read_policy
from otel_audit_postgres.retention.run import approve, run
from retention_trail import APRIL, POLICY

from otel_audit.cli.main import cli
from otel_audit.errors import StoreError

TWO_PERSONS = f"two_persons = true\n{POLICY}"


def metrics_of(watch):
    reader = InMemoryMetricReader()
    publish(MeterProvider([reader]).get_meter("test"), watch)
    found = reader.get_metrics_data()
    if found is None:
        return {}
    return {
        metric.name: metric.data.data_points[0].value
        for resource in found.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.data.data_points
    }


async def role_of(postgres, dsn, **memberships):
    role = f"person_{uuid.uuid4().hex[:8]}"
    await postgres.execute(f"CREATE ROLE {role} LOGIN")
    await init(dsn, roles=True, **dict.fromkeys(memberships, role))
    return postgres.dsn(dsn.partition("?")[0].rpartition("/")[2], role)


class TestState:
    async def test_tells_what_is_overdue_held_archived_and_verified(self, months, connection):
        """Before anything, with a hold that keeps a month, and after it all."""
        watch = RetentionWatch(months.dsn)
        assert metrics_of(watch) == {}
        await watch.refresh()
        told = metrics_of(watch)
        assert (told["audit.retention.lag"], told["audit.archive.rows"]) == (0, 0)
        assert "audit.retention.last_run.age" not in told
        await months.retain(seal=None, wait=0)
        await watch.refresh()
        told = metrics_of(watch)
        # January was to go 60 days after its end, and the sealer does not work
        assert told["audit.retention.lag"] > 86_400
        assert told["audit.retention.waiting"] == 3
        await months.seal()
        await place_hold(months.dsn, "case 7", "letter", HoldConditions(tenant="other"))
        await months.retain()
        await months.seal()
        await record_verification(months.dsn, months=4, rows=67, problems=0, deep=True)
        await watch.refresh()
        told = metrics_of(watch)
        # April is held, so it is not late
        assert (told["audit.retention.lag"], told["audit.retention.waiting"]) == (0, 0)
        assert (told["audit.retention.blocked"], told["audit.hold.active"]) == (1, 1)
        # what is held was archived before the hold, and stays here, too
        assert told["audit.archive.rows"] == 76
        assert 0 <= told["audit.archive.verification.age"] < 3600
        assert told["audit.archive.verification.problems"] == 0
        assert 0 <= told["audit.retention.last_run.age"] < 3600
        events = await connection.fetch(
            "SELECT event_name, payload -> 'metadata' AS told FROM audit.audit_logs "
            "WHERE event_name IN ('audit.retention.ran', 'audit.archive.verified') ORDER BY id"
        )
        _, ran, verified = (json.loads(row["told"]) for row in events)
        assert set(ran["blocked"]) == {"2025-04"}
        assert sum(ran["dropped"].values()) == 67
        assert verified == {"deep": True, "months": 4, "problems": 0, "rows": 67}

    async def test_a_month_is_late_if_it_is_no_hold_that_keeps_it(self, months):
        """A sealer that is dead keeps each month, and nobody may overlook that."""
        await months.write_in(APRIL, 2, tenant="late")
        report = await months.retain()
        assert (set(report.dropped), report.held_months) == ({"2025-01", "2025-03"}, [])
        assert report.blocked == {"2025-04": "2 rows wait to be sealed"}
        state = await retention_state(months.dsn)
        assert (state.blocked, state.waiting) == (1, 0)
        assert state.lag > 86_400
        # a hold keeps it as well, so it is not late whatever the sealer does
        await months.write_in(APRIL, 2, tenant="later")
        await place_hold(months.dsn, "case 7", "letter", HoldConditions(tenant="other"))
        report = await months.retain(seal=None, wait=0)
        assert report.held_months == ["2025-04"]
        assert "wait to be sealed; hold" in report.blocked["2025-04"]
        assert (await retention_state(months.dsn)).lag == 0

    async def test_keeps_what_it_knew_where_it_cannot_ask(self, months):
        """Reading metrics never fails, and a store that is away tells nothing new."""
        watch = RetentionWatch("postgresql://nobody@127.0.0.1:1/nowhere")
        await watch.refresh()
        assert metrics_of(watch) == {}

    @pytest.mark.allow_errors
    async def test_goes_on_after_a_defect(self, monkeypatch, caplog):
        """It is logged with its place; the task that asks each minute does not end."""

        async def broken(_dsn):
            raise ZeroDivisionError

        monkeypatch.setattr(metrics, "retention_state", broken)
        await RetentionWatch("postgresql://nobody@127.0.0.1:1/nowhere").refresh()
        assert "Retention cannot be asked about [ZeroDivisionError" in caplog.text

    async def test_takes_no_word_of_who_sees_some_tenants_only(self, retained, postgres):
        """Whoever cannot see all archives cannot say that they were verified."""
        role = f"reader_{uuid.uuid4().hex[:8]}"
        await postgres.execute(f"CREATE ROLE {role} LOGIN")
        await init(retained.dsn, roles=True, reader=role, tenants=["other"])
        dsn = postgres.dsn(retained.dsn.partition("?")[0].rpartition("/")[2], role)
        assert (await retention_state(dsn)).archived_rows == 76
        with pytest.raises(StoreError):
            await record_verification(dsn, months=1, rows=1, problems=0, deep=True)

    async def test_is_printed_and_written_as_json(self, retained, monkeypatch):
        """The commands that look at it, and the one that verifies and says so."""
        monkeypatch.setenv("OTEL_AUDIT_DSN", retained.dsn)
        url = f"file:{retained.archive._folder}"
        invoke = CliRunner().invoke

        def commands():
            first = invoke(cli, ["archive", "verify", "--deep", "--archive", url, "--json"])
            return first, invoke(cli, ["retention", "status"]), invoke(
                cli, ["retention", "status", "--json"]
            )  # fmt: skip

        import asyncio

        verified, shown, told = await asyncio.to_thread(commands)
        assert (verified.exit_code, json.loads(verified.stdout)["recorded"]) == (0, True)
        assert "0 problems" in shown.output
        state = json.loads(told.stdout)
        assert (state["archived_rows"], state["problems"], state["lag"]) == (76, 0, 0)


class TestTwoPersons:
    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("floor = 45", "floor = 44"),
            ("min = 90", "min = 89"),
            ("archive = 40", "archive = 39"),
            ("two_persons = true", ""),
            ('match = { event = "auth.*" }', 'match = { event = "auth.x*" }'),
            ("min = 90\n", ""),
            ("archive = 40", "archive = 40\nmax = 200"),
        ],
    )
    async def test_must_want_what_may_keep_less(self, months, postgres, old, new):
        """Not the one who runs it, and not for another policy than the one that is approved."""
        before = read_policy(TWO_PERSONS)
        await months.retain(policy=before)
        lower = read_policy(TWO_PERSONS.replace(old, new))
        with pytest.raises(PolicyError, match="two_persons"):
            await months.retain(policy=lower)
        await approve(months.dsn, lower)
        with pytest.raises(PolicyError, match="two_persons"):
            await months.retain(policy=lower)
        other = await role_of(postgres, months.dsn, retention=True, reader=True)
        await approve(other, read_policy(TWO_PERSONS.replace("hot = 60", "hot = 59")))
        with pytest.raises(PolicyError, match="two_persons"):
            await months.retain(policy=lower)
        await approve(other, lower)
        await months.retain(policy=lower)

    async def test_are_not_got_around_by_the_function_itself(self, months, connection):
        """Whoever may call it gives it what no file can say."""
        await months.retain(policy=read_policy(TWO_PERSONS))
        plain = read_policy(TWO_PERSONS).as_plain()
        for rule in (
            {"min": None}, {"min": "89"}, {"min": 89.5}, {"hot": None}, {"tenant": "acme"},
        ):  # fmt: skip
            changed = {**plain, "rules": [{**plain["rules"][0], **rule}, *plain["rules"][1:]]}
            with pytest.raises(asyncpg.PostgresError, match="two_persons"):
                await connection.fetchval(
                    "SELECT audit.set_retention_policy($1::text::jsonb)", json.dumps(changed)
                )

    async def test_must_want_an_earlier_end(self, months):
        """`max` is a number like the others: raising it needs nobody, lowering it a second role."""
        limited = TWO_PERSONS.replace("archive = 40", "archive = 40\nmax = 300")
        await months.retain(policy=read_policy(limited))
        await months.retain(policy=read_policy(limited.replace("max = 300", "max = 310")))
        with pytest.raises(PolicyError, match="two_persons"):
            await months.retain(policy=read_policy(limited))

    async def test_are_not_needed_to_keep_more(self, months, connection):
        """Numbers that grow alone; and a policy that does not say so needs nobody."""
        await months.retain(policy=read_policy(TWO_PERSONS))
        more = TWO_PERSONS.replace("floor = 45", "floor = 46").replace("min = 90", "min = 91")
        await months.retain(policy=read_policy(more))
        assert await connection.fetchval(
            "SELECT count(*) FROM audit.audit_logs WHERE event_name = 'audit.retention.changed'"
        ) == 2  # fmt: skip

    async def test_approve_once_for_the_policy_that_follows(self, months, postgres):
        """An approval is worth nothing after another change."""
        await months.retain(policy=read_policy(TWO_PERSONS))
        lower = read_policy(TWO_PERSONS.replace("floor = 45", "floor = 10"))
        other = await role_of(postgres, months.dsn, retention=True, reader=True)
        await approve(other, lower)
        await months.retain(policy=read_policy(TWO_PERSONS.replace("floor = 45", "floor = 55")))
        with pytest.raises(PolicyError, match="two_persons"):
            await run(lower, months.run_options())
        with pytest.raises(StoreError, match="nothing to approve"):
            await approve(other, read_policy(TWO_PERSONS.replace("floor = 45", "floor = 55")))
