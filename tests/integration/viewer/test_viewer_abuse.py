"""What a tenant tries who wants to see more, or wants others to see nothing."""

from __future__ import annotations

import asyncio
import base64
import re
import time
import uuid
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import asyncpg
import jwt
import msgspec
import pytest
from otel_audit_postgres.query.grammar import parse
from otel_audit_postgres.query.pool import TrailPool
from otel_audit_postgres.query.trail import ReaderScope
from test_viewer_security import ORIGIN, PUBLIC, token
from viewer_store import ACME, AUDITOR, GLOBEX, order_record

from otel_audit.errors import ConfigurationError, StoreUnavailableError
from otel_audit.viewer import Embedding, Viewer


def period(**more: str) -> dict[str, str]:
    return {
        "from": f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%dT%H:%M:%S}",
        "to": "now",
    } | more


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


DEEP = "[" * 2_500
HEADER = encoded('{"alg":"EdDSA","typ":"otel-audit-view+jwt"}')


class TestTokens:
    @pytest.mark.parametrize(
        "bad",
        [
            lambda: f"{encoded(DEEP)}.e30.AAAA",
            lambda: f"{HEADER}.{encoded(DEEP)}.AAAA",
            lambda: f"{encoded('[]')}.e30.AAAA",
            lambda: f"{encoded('{}')}.e30.AAAA",
            lambda: "\xff\xfe.\x00.é",
            lambda: "....",
            lambda: token(exp="soon"),
            lambda: token(exp=str(int(time.time()) + 60)),
            lambda: token(exp=float("inf")),
            lambda: token(exp=float("nan")),
            lambda: token(exp=[1]),
            lambda: token(iat="x"),
            lambda: token(iat=float("-inf")),
            lambda: token(tenant={"acme": 1}),
            lambda: token(tenant=7),
            lambda: token(tenant=True),
        ],
    )  # fmt: skip
    async def test_that_are_odd_are_refused_without_an_error(self, clients, bad):
        """Nested too deeply, numbers that are none, tenants that are no text: 401, each time."""
        client = await clients(None, embedding=Embedding(PUBLIC, (ORIGIN,)))
        header = [(b"authorization", b"Bearer " + bad().encode("utf-8"))]
        assert (await client.get("/help", headers=header)).status_code == 401

    def test_odd_permissions_are_none(self):
        """What is no name of a permission permits nothing."""
        embedding = Embedding(PUBLIC, (ORIGIN,))
        viewer = embedding.viewer_of([f"Bearer {token(may=[{'a': 1}, ['b'], 'export', 3])}"])
        assert viewer is not None
        assert viewer.may == {"export"}

    async def test_that_are_refused_do_not_fall_back_on_a_login(self, clients):
        """A frame whose token has ended shows nothing, whoever is logged in; others' headers may."""
        client = await clients(AUDITOR, embedding=Embedding(PUBLIC, (ORIGIN,)))
        for bad, status in (
            (token(exp=int(time.time()) - 60), 401),
            (jwt.encode({"sub": "x"}, "k" * 32, algorithm="HS256"), 200),
            ("opaque", 200),
        ):
            answer = await client.get("/help", headers={"authorization": f"Bearer {bad}"})
            assert answer.status_code == status


class TestViewers:
    @pytest.mark.parametrize("tenants", ["acme", (1,), (None,), b"acme", ({"a"},)])
    def test_of_odd_tenants_are_refused(self, tenants):
        """The letters of a text are no tenants."""
        with pytest.raises(ConfigurationError, match="a tuple of ids"):
            Viewer("x", "tenant", tenants)

    @pytest.mark.parametrize("may", ["export", {"exports"}])
    def test_with_unknown_permissions_are_refused(self, may):
        """Not silently without them."""
        with pytest.raises(ConfigurationError, match="export, prove, tail"):
            Viewer("x", "tenant", ("acme",), may)


class TestReportsOfATenant:
    async def test_count_nothing_of_others(self, store, clients):
        """Not as gaps between its own records, not as leaves, not as sizes of checkpoints."""
        producer = uuid.uuid4().hex
        await store.add(*(
            msgspec.structs.replace(
                order_record("order.seen", tenant="acme" if n in {1, 30} else "globex"),
                producer_id=producer, sequence_number=n,
            )
            for n in range(1, 31)
        ))  # fmt: skip
        await store.seal()
        client = await clients(ACME)
        for name, query in (
            ("integrity", ""), ("integrity", "event:order.seen"), ("coverage", ""), ("disposal", ""),
            ("changes", ""), ("incident", "event:order.seen"),
        ):  # fmt: skip
            page = (await client.get(f"/reports/{name}", params=period(q=query))).text
            assert "SCOPE" in page, name
            assert "GAPS" not in page, name
            assert not re.search(r"\b(28|36) ", page), name
            assert f"{producer}: " not in page, name
        # whether there is one of this size or not
        for size in ("35", "36"):
            refused = await client.get("/reports/changes", params=period(checkpoint=size))
            assert refused.status_code == 400
            assert "leave it out" in refused.text
            assert "none has size" not in refused.text
        whole = (await (await clients(AUDITOR)).get("/reports/integrity", params=period())).text
        assert "36 leaves" in whole
        assert "GAPS" not in whole

    async def test_do_not_call_a_tenants_share_a_gap(self, store, clients):
        """An auditor's report on one tenant alone does not either."""
        await store.add(*(
            msgspec.structs.replace(
                order_record("order.seen", tenant="acme" if n in {1, 9} else "globex"),
                producer_id="p", sequence_number=n,
            )
            for n in range(1, 10)
        ))  # fmt: skip
        await store.seal()
        client = await clients(AUDITOR)
        page = (await client.get("/reports/integrity", params=period(tenant="acme"))).text
        assert "GAPS" not in page
        assert "p: 7" not in page

    async def test_are_not_loaded_as_files_by_another_site(self, store, clients):
        """A link to a report may be followed; a download that somebody else begins is none."""
        headers = {
            "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document",
        }  # fmt: skip
        await store.seal()
        client = await clients(AUDITOR)
        shown = await client.get("/reports/changes", params=period(), headers=headers)
        assert shown.status_code == 200
        taken = await client.get("/reports/changes", params=period(format="csv"), headers=headers)
        assert taken.status_code == 403


class TestIds:
    @pytest.mark.parametrize("path", ["", "/evidence.json", "/evidence.zip"])
    async def test_of_others_are_as_those_of_nobody(self, store, clients, path):
        """Status, headers and text of a foreign id are those of one that does not exist."""
        await store.seal()
        client = await clients(ACME, keys=[store.key.public])
        foreign, none = store.ids["globex"], str(uuid.uuid4())
        answers = []
        for one in (foreign, none):
            for more in ("", "?tenant=globex"):
                answer = await client.get(f"/record/{one}{path}{more}")
                text = answer.text.replace(one, "ID")
                answers.append((answer.status_code, text, answer.headers.get("content-length")))
        assert len(set(answers)) == 1
        assert answers[0][0] == 404

    async def test_of_actors_and_entities_likewise(self, store, clients):
        """Who acts for another tenant alone is nobody here."""
        client = await clients(GLOBEX)
        for path, name, foreign in (
            ("actor", "id", "ada@acme.example"),
            ("entity", "e", "order:2"),
        ):
            await store.add(order_record("order.created", "2"))
            none = foreign[:-1] + "_"
            pages = [(await client.get(f"/{path}", params={name: one})) for one in (foreign, none)]
            assert [page.status_code for page in pages] == [404, 404]
            texts = [
                page.text.replace(one, "X").replace(
                    one.replace(":", "%3A").replace("@", "%40"), "X"
                )
                for page, one in zip(pages, (foreign, none), strict=True)
            ]
            assert texts[0] == texts[1]


class TestParameters:
    @pytest.mark.parametrize(
        "path",
        [
            "/?q=a%00b", "/?q=actor:%00", "/?q=&after=%00", "/actor?id=%00", "/entity?e=order:%00",
            "/entity?e=order:1&field=%00", "/entity?e=order:1&of=%00", "/export?q=%00",
            "/tail/events?q=%00", "/reports/changes?from=1d&to=now&tenant=%00",
            "/reports/changes?from=1d&to=now&checkpoint=99999999999999999999999",
            "/reports/changes?from=1d&to=now&checkpoint=-1",
            "/reports/integrity?from=0001-01-01&to=now", "/reports/review?from=1d&to=now&sample=0",
            "/reports/subject?from=1d&to=now&subject=%00", "/actor?id=" + "x" * 1_001,
            "/entity?e=order:" + "%F0%9F%98%80" * 1_000, "/?q=" + "%F0%9F%98%80" * 2_001,
        ],
    )  # fmt: skip
    async def test_that_fit_nothing_get_a_page_that_says_so(self, store, clients, path):
        """NUL, numbers and times beyond what the store has, texts without end: 400, each time."""
        await store.seal()
        for viewer in (AUDITOR, ACME):
            answer = await (await clients(viewer)).get(path)
            assert answer.status_code == 400, answer.text
            assert "Traceback" not in answer.text

    @pytest.mark.parametrize("path", ["/?q=", "/export?q=", "/actor?id="])
    async def test_of_the_greatest_length_can_be_recorded(self, store, clients, path):
        """Four bytes a character."""
        size = 990
        answer = await (await clients(ACME)).get(path + "%F0%9F%98%80" * size)
        assert answer.status_code in {200, 404}

    async def test_of_a_record_may_not_hold_a_nul(self, store, clients):
        """Neither its id nor its tenant."""
        client = await clients(ACME)
        record = store.ids["paid"]
        assert (await client.get(f"/record/{record}?tenant=%00")).status_code == 400
        assert (await client.get("/record/%00")).status_code == 404


class TestLooks:
    @pytest.mark.allow_errors
    async def test_one_that_is_not_recorded_is_tried_again(self, viewer_role, store, connection):
        """With `tried` a page is shown all the same, but loading it again is no repetition."""
        pool = TrailPool(viewer_role, views="tried")
        record = "audit.record_view(text, jsonb, bigint, text, text, text)"
        groups = "otel_audit_reader"

        async def looks() -> int:
            async with pool.trail("ada", ReaderScope(None)) as trail:
                await trail.search(parse("event:order.paid"))
            return await connection.fetchval(
                "SELECT count(*) FROM audit.audit_logs WHERE event_name = 'audit.viewed'"
            )

        try:
            await connection.execute(f"REVOKE EXECUTE ON FUNCTION {record} FROM {groups}")
            assert await looks() == 0
            await connection.execute(f"GRANT EXECUTE ON FUNCTION {record} TO {groups}")
            assert await looks() == 1
            assert await looks() == 1
        finally:
            await pool.close()


class TestLongWork:
    async def test_leaves_connections_for_those_who_look(self, viewer_role, store):
        """Exports and reports, however many, have half of them."""
        pool = TrailPool(viewer_role, size=4, statement_timeout=5.0)
        try:
            async with pool.connection(is_long=True), pool.connection(is_long=True):
                with pytest.raises(StoreUnavailableError):
                    async with pool.connection(is_long=True):
                        pass
                async with pool.connection(), pool.connection() as last:
                    assert await last.fetchval("SELECT 1") == 1
            async with asyncio.timeout(30), pool.connection(is_long=True) as again:
                assert await again.fetchval("SELECT 1") == 1
        finally:
            await pool.close()

    async def test_one_person_has_half_of_the_connections(self, viewer_role):
        """Whoever opens many pages, or takes exports slowly, waits for his own."""
        pool = TrailPool(viewer_role, size=4, statement_timeout=1.0)
        async with pool.connection(viewer="a"), pool.connection(viewer="a"):
            with pytest.raises(StoreUnavailableError, match="in use"):
                async with pool.connection(viewer="a"):
                    pass
            async with pool.connection(viewer="b"), pool.connection(viewer="b"):
                pass
        async with pool.connection(viewer="a", is_long=True):
            with pytest.raises(StoreUnavailableError, match="in use"):
                async with pool.connection(viewer="a", is_long=True):
                    pass
            async with pool.connection(viewer="b", is_long=True):
                pass
        async with pool.connection(viewer="a"), pool.connection(viewer="a"):
            pass
        assert not pool._shares
        await pool.close()

    async def test_one_person_has_no_more_with_an_export(self, viewer_role):
        """It counts in the half; who has that half is told so, and not to make it larger for all."""
        pool = TrailPool(viewer_role, size=4, statement_timeout=0.5)
        own = "in use, by your own pages, exports and reports"
        async with pool.connection(viewer="a", is_long=True), pool.connection(viewer="a"):
            with pytest.raises(StoreUnavailableError, match=own):
                async with pool.connection(viewer="a"):
                    pass
        async with pool.connection(viewer="a"), pool.connection(viewer="a"):
            with pytest.raises(StoreUnavailableError, match=own):
                async with pool.connection(viewer="a", is_long=True):
                    pass
        async with pool.connection(viewer="a", is_long=True):
            with pytest.raises(StoreUnavailableError, match=own):
                async with pool.connection(viewer="a", is_long=True):
                    pass
        async with AsyncExitStack() as taken:
            for viewer in "aabb":
                await taken.enter_async_context(pool.connection(viewer=viewer))
            with pytest.raises(StoreUnavailableError, match="let there be more"):
                async with pool.connection(viewer="c"):
                    pass
        assert not pool._shares
        await pool.close()

    async def test_many_pages_of_one_person_starve_nobody(self, viewer_role):
        """They are more than there are connections, and all of them wait."""
        pool = TrailPool(viewer_role, size=4, statement_timeout=5.0)
        stop = asyncio.Event()

        async def greedy():
            async with pool.connection(viewer="a"):
                await stop.wait()

        pages = [asyncio.create_task(greedy()) for _ in range(16)]
        try:
            await asyncio.sleep(0.1)
            for _ in range(3):
                async with pool.connection(viewer="b"):
                    pass
        finally:
            stop.set()
            await asyncio.gather(*pages, return_exceptions=True)
        await pool.close()

    async def test_that_is_given_up_leaves_no_connection_open(self, viewer_role, store, postgres):
        """Whoever goes away while a connection is looked after, or in the middle of a query."""
        pool = TrailPool(viewer_role, size=2)
        role = viewer_role.partition("://")[2].partition("@")[0]
        async with pool.connection():
            pass
        for delay in (0, 0, 0, 0.001, 0.005, 0.02):

            async def look() -> None:
                async with pool.connection() as connection, connection.transaction():
                    await connection.fetchval("SELECT pg_sleep(10)")

            task = asyncio.create_task(look())
            await asyncio.sleep(delay)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await pool.close()
        admin = await asyncpg.connect(postgres.dsn("postgres"))
        try:
            async with asyncio.timeout(30):
                while await admin.fetchval(  # noqa: ASYNC110 - it has no event to wait for
                    "SELECT count(*) FROM pg_stat_activity WHERE usename = $1", role
                ):
                    await asyncio.sleep(0.05)
        finally:
            await admin.close()
