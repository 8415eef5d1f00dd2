"""The store stops, is killed, refuses, fails over, hangs, under load: the application goes on."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator

import asyncpg
import httpx
import otel_audit_postgres
import pytest
from faults.load import Site, settings_for
from otel_audit_postgres.query.gaps import find_gaps

LONGEST_TURN = 2.5
"""Seconds; connecting may take 40, so a loop that waits for the store shows."""


async def longest_turn(url: str) -> float:
    """How long the application's event loop was held up at the most, in seconds."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        seen = (await client.get("/lag")).json()
    assert seen["turns"] > 10
    return float(seen["longest"])


async def assert_whole(dsn: str) -> None:
    (stream,) = await find_gaps(dsn)
    assert (stream.missing, stream.ended) == ((), True)


class TestAway:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("how", "seconds"), [(signal.SIGINT, 30), (signal.SIGKILL, 3)], ids=["stopped", "killed"]
    )
    async def test_postgres_goes_and_comes_under_load(self, site, own_store, told, how, seconds):
        """The server is away: no request waits or fails, no turn of the loop is held up."""
        settings = {**settings_for(own_store.dsn), "WORK": "0.02"}
        with site.serving(settings) as server:
            async with site.load(server, clients=3).running() as load:
                await load.until_answered(50)
                await asyncio.to_thread(own_store.stop, how)
                until = time.monotonic() + seconds
                await load.until_more()
                await asyncio.sleep(until - time.monotonic())
                await asyncio.to_thread(own_store.start)
                await load.until_more(10)
            assert await longest_turn(server.url) < LONGEST_TURN
            verdict = await site.verdict(own_store.dsn, within=60)
            await asyncio.to_thread(server.stop)
        verdict.assert_sound()
        assert not load.cut_off
        assert not load.refused
        await assert_whole(own_store.dsn)
        what = "stopped" if how is signal.SIGINT else "killed (SIGKILL)"
        told(
            f"Postgres {what} and started again {seconds} s later, under load", verdict,
            "`audit.export.retries`; no request waits or fails",
        )  # fmt: skip

    async def test_connections_are_cut_under_load(self, site, audit_store, postgres, told):
        """pg_terminate_backend, again and again: each record is stored once."""
        settings = settings_for(audit_store, BATCH_INTERVAL="0.01")
        with site.serving(settings, forked=False) as server:
            async with site.load(server).running() as load:
                for _ in range(10):
                    await load.until_more(15)
                    await postgres.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE application_name = 'otel-audit'"
                    )
            await asyncio.to_thread(server.stop)
        verdict = (await site.verdict(audit_store)).assert_sound()
        await assert_whole(audit_store)
        told(
            "connections cut by `pg_terminate_backend`, ten times under load", verdict,
            "`audit.export.retries`",
        )  # fmt: skip

    async def test_a_store_that_accepts_and_never_answers(self, site, audit_store, told):
        """A black hole: the application answers as fast as ever; the next start delivers all."""
        with socket.socket() as hole:
            hole.bind(("127.0.0.1", 0))
            hole.listen(100)
            nowhere = f"postgresql://nobody:x@127.0.0.1:{hole.getsockname()[1]}/audit"
            settings = settings_for(
                nowhere, SHUTDOWN_TIMEOUT="0.2", CONNECT_TIMEOUT="60", REQUIRED="false"
            )
            with site.serving(settings) as server:
                async with site.load(server).running() as load:
                    await load.until_answered(150)
                assert await longest_turn(server.url) < LONGEST_TURN
                await asyncio.to_thread(server.stop)
        assert load.slowest < 30
        with site.serving(settings_for(audit_store)) as server:
            verdict = await site.verdict(audit_store, within=60)
            await asyncio.to_thread(server.stop)
        verdict.assert_sound()
        told(
            "a store that accepts connections and never answers, under load", verdict,
            "records are kept, the next start delivers them",
        )  # fmt: skip


class TestRefused:
    @pytest.fixture
    async def writer(self, postgres, audit_store) -> AsyncIterator[str]:
        """A role that may write the trail, and is no superuser."""
        name = f"writer_{uuid.uuid4().hex[:12]}"
        await postgres.execute(f"CREATE ROLE {name} LOGIN")
        await otel_audit_postgres.init(audit_store, roles=True, writer=name)
        yield name
        await postgres.execute(f"REVOKE otel_audit_writer FROM {name}", f"DROP ROLE {name}")

    async def test_it_lets_nobody_in(self, site, audit_store, postgres, writer, told):
        """No connection to spare, then the role locked out: everything arrives in the end."""
        dsn = postgres.dsn(audit_store.partition("?")[0].rpartition("/")[2], writer)
        with site.serving(settings_for(dsn, BATCH_INTERVAL="0.01")) as server:
            async with site.load(server).running() as load:
                for refusal in ("CONNECTION LIMIT 0", "NOLOGIN"):
                    await load.until_more()
                    await postgres.execute(
                        f"ALTER ROLE {writer} {refusal}",
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        f"WHERE usename = '{writer}'",
                    )
                    await load.until_more(100)
                    assert (await site.verdict(audit_store)).lost
                    await postgres.execute(f"ALTER ROLE {writer} LOGIN CONNECTION LIMIT -1")
            verdict = await site.verdict(audit_store, within=60)
            await asyncio.to_thread(server.stop)
            assert "Audit records wait" in server.output
        verdict.assert_sound()
        assert not load.refused
        await assert_whole(audit_store)
        told(
            "no connection to spare in the store, then its role locked out, under load", verdict,
            "`audit.export.retries`; a line in the log that says what to do",
        )  # fmt: skip

    async def test_a_changed_password(self, site, own_store, told):
        """The old one is refused; what was kept is delivered by a start with the new one."""
        connection = await asyncpg.connect(own_store.dsn)
        await connection.execute("CREATE ROLE shop LOGIN PASSWORD 'old'")
        await otel_audit_postgres.init(own_store.dsn, roles=True, writer="shop")
        rules = own_store.data / "pg_hba.conf"
        rules.write_text("local all shop scram-sha-256\n" + rules.read_text())
        await connection.execute("SELECT pg_reload_conf()")

        def dsn(password: str) -> str:
            head, _, rest = own_store.dsn.partition("://")
            return f"{head}://shop:{password}@{rest.rpartition('@')[2]}"

        with site.serving(
            settings_for(dsn("old"), BATCH_INTERVAL="0.01", SHUTDOWN_TIMEOUT="0.5")
        ) as server:
            async with site.load(server).running() as load:
                await load.until_answered(50)
                await connection.execute("ALTER ROLE shop PASSWORD 'new'")
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'shop'"
                )
                await load.until_more(100)
            await asyncio.to_thread(server.stop)
            assert "OTEL_AUDIT_DSN" in server.output
            assert server.output.count("are kept in") == 1
        await connection.close()
        assert (await site.verdict(own_store.dsn)).lost
        with site.serving(settings_for(dsn("new"))) as server:
            verdict = await site.verdict(own_store.dsn, within=60)
            await asyncio.to_thread(server.stop)
        verdict.assert_sound()
        told(
            "the store's password is changed under load", verdict,
            "an error in the log that names the setting; a start with the new one delivers",
        )  # fmt: skip


@pytest.mark.slow
async def test_failover_under_load(site: Site, own_store, standby, told):
    """The primary is killed, its synchronous standby promoted: the DSN names both hosts."""
    first = own_store.dsn.partition("host=")[2].partition("&")[0]
    second = standby.dsn.partition("host=")[2].partition("&")[0]
    both = (
        f"postgresql://postgres@/postgres?host={first},{second}&port=5432,5432"
        "&target_session_attrs=read-write"
    )
    with site.serving(settings_for(both)) as server:
        async with site.load(server).running() as load:
            await load.until_answered(100)
            await asyncio.to_thread(own_store.stop, signal.SIGKILL)
            await load.until_more()
            await asyncio.to_thread(standby.promote)
            await load.until_more()
            # the new primary has no standby of its own
            connection = await asyncpg.connect(standby.dsn)
            await connection.execute("SET synchronous_commit = local")
            await connection.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
            await connection.execute("SELECT pg_reload_conf()")
            await connection.close()
        verdict = await site.verdict(standby.dsn, within=60)
        await asyncio.to_thread(server.stop)
    verdict.assert_sound()
    assert not load.refused
    await assert_whole(standby.dsn)
    told(
        "failover to a synchronous standby under load, the DSN naming both hosts", verdict,
        "`audit.export.retries`; no request waits or fails",
    )  # fmt: skip
