"""Two tenants, every route, random queries: no foreign row, no foreign count; by the database."""

from __future__ import annotations

import random
import re
from urllib.parse import quote_plus

import asyncpg
import pytest
from otel_audit_postgres.reports.registry import REPORTS
from viewer_store import ACME, AUDITOR, GLOBEX, order_record

FOREIGN = {
    "acme": re.compile(r"secret|hank|globex|198\.51"),
    "globex": re.compile(r"ada@acme|paid|192\.0\.2|>acme"),
}
FRAGMENTS = (
    "tenant:acme", "tenant:globex", "tenant:acme,globex", "-tenant:acme", "tenant:*", "outcome:failure",
    "status:2xx", "time:30d", "entity:order:1", "target:order", "changed:status", "changed:secret_column",
    "actor:hank@globex.example", "actor:ada@acme.example", "event:*", "-outcome:success", "order", "ip:198.51.100.9",
    "-level:x", "role:clerk", '"secret_column"', "service:globex-shop",
)  # fmt: skip


def queries(seed, count):
    rng = random.Random(seed)
    return [
        " ".join(rng.sample(FRAGMENTS, rng.randint(0, 3))).replace(
            "event:*", "event:order.*,secret.*"
        )
        for _ in range(count)
    ]


def stripped(page, asked):
    """A page without the words that the question itself brought."""
    words = {
        word for value in asked.values() for word in re.split(r"[\s,:\"]+", str(value)) if word
    }
    for word in sorted(words, key=len, reverse=True):
        page = page.replace(word, "").replace(quote_plus(word), "")
    return page


class TestTenants:
    @pytest.mark.slow
    @pytest.mark.parametrize("viewer", [ACME, GLOBEX], ids=["acme", "globex"])
    async def test_see_nothing_of_each_other(self, store, clients, viewer):
        """Rows, facets, histograms, exports, histories, actors, proofs."""
        await store.add(*(order_record("order.paid", str(n)) for n in range(30)))
        await store.seal()
        client = await clients(viewer, keys=[store.key.public])
        own = viewer.tenants[0]
        foreign = FOREIGN[own]
        asked = [("/", {"q": q}) for q in queries(own, 40)]
        asked += [
            ("/export", {"q": q, "format": f})
            for q in queries(own, 8)
            for f in ("csv", "ndjson", "json")
        ]
        asked += [("/actor", {"id": i}) for i in ("ada@acme.example", "hank@globex.example")]
        asked += [("/entity", {"e": e}) for e in ("order:1", "order:77", "audit_record:1")]
        asked += [
            ("/entity", {"e": "order:1", "at": i, "of": t})
            for i in store.ids.values()
            for t in ("acme", "globex")
        ]
        asked += [("/tail", {"q": q}) for q in queries(own, 3)]
        period = {"from": "1d", "to": "now"}
        asked += [
            (f"/reports/{name}", {**period, "q": "time:1d", "subject": "hank@globex.example"})
            for name in REPORTS
        ]
        for path, parameters in asked:
            answer = await client.get(path, params=parameters)
            assert answer.status_code in {200, 404}, (path, parameters, answer.text)
            found = foreign.search(stripped(answer.text, parameters))
            assert found is None, (path, parameters, found)
        for name, record_id in store.ids.items():
            is_own = name.startswith("globex") == (own == "globex")
            for path in ("", "/evidence.json", "/evidence.zip"):
                answer = await client.get(f"/record/{record_id}{path}")
                assert answer.status_code == (200 if is_own else 404), (name, path)

    async def test_are_counted_apart(self, store, clients):
        """The count, the facets and the bars of one tenant add up to its own records."""
        await store.add(*(order_record("order.paid", str(n)) for n in range(30)))
        await store.seal()
        for viewer, own in ((ACME, 34), (GLOBEX, 2)):
            page = (await (await clients(viewer)).get("/", params={"q": ""})).text
            assert f"<strong>{own}</strong> records" in page
            assert f"{own} records, " in page
            assert "wait for their seal" not in page
        page = (
            await (await clients(AUDITOR)).get("/", params={"q": "event:order.*,secret.*"})
        ).text
        assert "<strong>36</strong> records" in page

    async def test_do_not_see_who_looked(self, store, clients):
        """Looks are the auditor's."""
        await (await clients(AUDITOR)).get(f"/record/{store.ids['paid']}")
        page = (await (await clients(ACME)).get(f"/record/{store.ids['paid']}")).text
        assert "auditor@example.com" not in page


class TestScopes:
    """The same on the viewer's own connection, whatever SQL is run there."""

    async def test_without_one_there_is_nothing(self, store, viewer_role):
        """Not in the trail, not in the counts, not in the queue."""
        connection = await asyncpg.connect(viewer_role)
        for table in ("audit_logs", "rollup", "ledger_queue"):
            assert await connection.fetchval(f"SELECT count(*) FROM audit.{table}") == 0
        await connection.close()

    async def test_holds_for_one_transaction_and_cannot_be_widened(self, store, viewer_role):
        """Not by saying it again, nor by the setting, nor by one kept from another transaction."""
        connection = await asyncpg.connect(viewer_role)
        count = "SELECT count(*) FROM audit.audit_logs"
        async with connection.transaction():
            await connection.execute("SELECT audit.look_as(NULL)")
            assert await connection.fetchval(count) == 6
            kept = await connection.fetchval("SELECT current_setting('otel_audit.scope')")
        assert await connection.fetchval(count) == 0
        async with connection.transaction():
            await connection.execute("SELECT audit.look_as(ARRAY['globex'])")
            assert await connection.fetchval(count) == 2
            for setting in ("", kept, "null", "0" * 64 + "null", kept[:64] + '["acme"]'):
                await connection.execute("SELECT set_config('otel_audit.scope', $1, true)", setting)
                assert await connection.fetchval(count) == 0
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="said already"):
                async with connection.transaction():
                    await connection.execute("SELECT audit.look_as(NULL)")
        for refused in ("SELECT * FROM audit.scope_key", "SELECT audit.scope_mac('null')"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(refused)
        await connection.close()
