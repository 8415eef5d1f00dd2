"""Reports in the viewer: listed, shown, taken away, and each look recorded."""

from __future__ import annotations

import asyncio
import html
import json
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from otel_audit_postgres.query import counts
from otel_audit_postgres.reports.registry import REPORTS
from viewer_store import ACME, AUDITOR, SUPPORT, order_record

_IS_WAITED_FOR = """
SELECT EXISTS (SELECT FROM pg_locks
               WHERE NOT granted AND relation = 'audit.ledger_prunings'::regclass)
"""
HOSTILE = "<script>alert(1)</script>\u202e"


def period() -> dict[str, str]:
    now = datetime.now(UTC)
    return {"from": f"{now - timedelta(days=1):%Y-%m-%dT%H:%M:%S}", "to": "now"}


class TestReports:
    async def test_are_listed_each_with_a_form(self, store, clients):
        """All eleven, and where the menu leads to them."""
        client = await clients(AUDITOR)
        page = (await client.get("/reports")).text

        assert all(f'action="/reports/{name}"' in page for name in REPORTS)
        assert 'href="/reports"' in (await client.get("/help")).text

    @pytest.mark.parametrize("name", REPORTS)
    async def test_are_shown_and_given_as_files(self, store, clients, name):
        """As HTML within the viewer, and as a file of each form."""
        await store.seal()
        client = await clients(AUDITOR)
        asked = {**period(), "subject": "1", "q": "actor:ada@acme.example"}
        shown = await client.get(f"/reports/{name}", params=asked)

        assert shown.status_code == 200
        assert f"<h1>{html.escape(REPORTS[name].title)}</h1>" in shown.text
        for form in ("html", "csv", "json"):
            file = await client.get(f"/reports/{name}", params={**asked, "format": form})
            assert file.headers["content-disposition"].endswith(f'.{form}"')
        assert json.loads(file.text)["columns"] == list(REPORTS[name].columns)

    async def test_show_a_tenant_its_own_records_only(self, store, clients):
        """And say what is hidden."""
        await store.seal()
        client = await clients(ACME)
        page = (await client.get("/reports/changes", params=period())).text

        assert "order:1" in page
        assert "secret_column" not in page
        assert "SCOPE: who made this sees records of these tenants only: acme" in page

    async def test_that_waits_for_the_store_blocks_nobody(
        self, store, clients, audit_store, monkeypatch
    ):
        """Neither pages nor other reports: it has a connection of its own, and half of them at most."""
        # a page gives up its counts soon, which other tests wait for: they ask that table, too
        monkeypatch.setattr(counts, "LEAST_MS", 50)
        await store.seal()
        client = await clients(AUDITOR)
        blocking = await asyncpg.connect(audit_store)
        try:
            async with blocking.transaction():
                # every report asks this table which months were dropped
                await blocking.execute("LOCK TABLE audit.ledger_prunings IN ACCESS EXCLUSIVE MODE")
                waiting = asyncio.create_task(client.get("/reports/coverage", params=period()))
                while not await blocking.fetchval(_IS_WAITED_FOR):  # noqa: ASYNC110 - another process waits
                    await asyncio.sleep(0.01)
                assert (await client.get("/reports")).status_code == 200
                assert (
                    await client.get("/", params={"q": "actor:ada@acme.example"})
                ).status_code == 200
                assert not waiting.done()
            assert (await waiting).status_code == 200
        finally:
            await blocking.close()

    async def test_ask_the_anchors_of_the_viewer(self, store, clients):
        """Integrity says what they know."""
        await store.seal()
        client = await clients(AUDITOR, anchors=[store.anchor], keys=[store.key.public])
        page = (await client.get("/reports/integrity", params=period())).text

        assert ": agrees" in page
        assert ", checked" in page

    async def test_are_not_for_who_sees_no_bodies(self, store, clients):
        """Reports show values of records."""
        client = await clients(SUPPORT)

        assert (await client.get("/reports")).status_code == 403
        assert (await client.get("/reports/changes", params=period())).status_code == 403

    async def test_are_recorded_as_looks(self, store, clients, audit_store):
        """Who, and which report of what."""
        await store.seal()
        await (await clients(AUDITOR)).get("/reports/rights", params=period())
        connection = await asyncpg.connect(audit_store)
        row = await connection.fetchrow(
            "SELECT payload::text AS text FROM audit.audit_logs WHERE event_name = 'audit.viewed'"
        )
        await connection.close()
        told = json.loads(row["text"])
        assert told["actor"]["on_behalf_of"] == AUDITOR.name
        assert told["metadata"]["asked"]["report"] == "rights"

    async def test_escape_what_somebody_wrote(self, store, clients):
        """Within the viewer, too."""
        await store.add(order_record("note.added", actor=HOSTILE))
        await store.seal()
        page = (await (await clients(AUDITOR)).get(
            "/reports/incident", params={**period(), "q": "event:note.added"}
        )).text  # fmt: skip

        assert HOSTILE not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "\u202e" not in page

    @pytest.mark.parametrize(
        ("name", "asked", "says"),
        [
            ("rigths", {}, "did you mean rights?"),
            ("rights", {"from": "soon"}, "is not a time"),
            ("rights", {"to": "2999-01-01"}, "ends in the future"),
            ("rights", {"q": "colour:red"}, "column 1"),
            ("rights", {"checkpoint": "99999"}, "none has size 99999"),
            ("subject", {}, "needs --subject"),
        ],
    )
    async def test_refuse_what_cannot_be_done(self, store, clients, name, asked, says):
        """With a page that says what, and what to do."""
        await store.seal()
        client = await clients(AUDITOR)
        answer = await client.get(f"/reports/{name}", params={**period(), **asked})

        assert answer.status_code == 400
        assert says in answer.text
