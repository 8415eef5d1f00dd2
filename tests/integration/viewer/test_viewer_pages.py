"""The viewer's pages, as HTTP answers: what each kind of person finds on them."""

from __future__ import annotations

import html
import itertools
import re
import uuid
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from otel_audit_postgres.schema.migrations import latest_version, migrations
from viewer_store import ACME, AUDITOR, SUPPORT, change, order_record

from otel_audit.record import Actor, Tenant
from otel_audit.viewer import Viewer


async def get(client, path, status=200, **parameters):
    answer = await client.get(path, params=parameters)
    assert answer.status_code == status, answer.text
    return answer.text


async def looks(dsn, event="audit.viewed"):
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            "SELECT payload->'metadata'->>'question' AS question, entities, "
            "payload->'actor'->>'on_behalf_of' AS viewer, "
            "payload->'metadata'->'asked'->>'query' AS query "
            "FROM audit.audit_logs WHERE event_name = $1 ORDER BY id",
            event,
        )
    finally:
        await connection.close()
    return rows


class TestSearch:
    async def test_shows_what_fits(self, store, clients):
        """Rows, chips, facets, the histogram and the count, all in one document."""
        await store.seal()
        client = await clients(AUDITOR)
        page = await get(client, "/", q="event:order.refunded")
        assert page.count("data-row") == 2
        assert '<td role="cell" class="event">order.paid' not in page
        assert "<strong>2</strong> records" in page
        assert "Remove event:order.refunded" in page
        assert "<svg" in page
        assert page.index("data-row") < page.index("<svg"), "rows are sent before what is counted"

    async def test_pages_lead_to_all_and_repeat_none(self, store, clients):
        """Older, older, and then there is no further page."""
        await store.add(*(order_record("bulk.made", str(n)) for n in range(70)))
        client = await clients(AUDITOR)
        page = await get(client, "/", q="event:bulk.made")
        after = page.partition("after=")[2].partition('"')[0]
        second = (await client.get(f"/?q=event%3Abulk.made&after={after}")).text
        assert (page.count("data-row"), second.count("data-row")) == (50, 20)
        assert 'rel="next"' not in second

    async def test_people_and_tenants_have_their_names(self, store, clients):
        """An e-mail address and a slug in lists, facets and headlines; the id beside them."""
        ada = Actor(id="8d43d66c", type="user", email="ada.l@acme.example", verified=True)
        hidden = Actor(id="77aa", type="user", email="[REDACTED]", verified=True)
        acme = Tenant(id="fba14f4b", slug="acme-ltd")
        (named, _) = await store.add(
            order_record("order.named", actor=ada, tenant=acme),
            order_record("order.hidden", actor=hidden, tenant=acme),
        )
        await store.seal()
        client = await clients(AUDITOR)
        pages = [await get(client, "/", q="event:order.named,order.hidden")]
        pages.append(await get(client, f"/record/{named}"))
        pages.append(await get(client, "/actor", id="8d43d66c"))
        for page in pages:
            assert "ada.l@acme.example</a>" in page
            assert "acme-ltd</span>" in page
        assert '<span class="what" title="8d43d66c">ada.l@acme.example</span>' in pages[0]
        assert ">77aa</a>" in pages[0]
        assert "[REDACTED]" not in pages[0]
        assert "<h1>Actor ada.l@acme.example</h1>" in pages[2]
        assert "/sign-out" not in pages[0], "who signs in elsewhere signs out there"

    async def test_a_thing_that_is_taken_for_a_field_has_a_link(self, store, clients):
        """order:1 is no field, and what somebody who types it wants to see."""
        page = await get(await clients(AUDITOR), "/", 400, q="order:1")
        assert "/entity?e=order%3A1" in page

    async def test_the_trails_own_events_are_hidden_until_they_are_asked_for(self, store, clients):
        """Whatever is searched for; a link shows them, and what is clicked then keeps them."""
        client = await clients(AUDITOR)
        await get(client, "/", q="order")
        for query in ("", "outcome:success", "-tenant:globex"):
            page = await get(client, "/", q=query)
            assert "Hidden: audit.* events" in page
            assert f'type="search" value="{query}"' in page
            assert 'class="event">order.paid' in page
            assert 'class="event">audit.viewed' not in page
        page = await get(client, "/", q="outcome:success", audit_events="1")
        assert 'class="event">audit.viewed' in page
        assert "Hide them" in page
        assert '<input type="hidden" name="audit_events" value="1">' in page
        links = re.findall(r'href="/\?([^"]+)"', page.partition("<aside")[2])
        assert links
        assert all("audit_events=1" in link for link in links)
        asked = await get(client, "/", q="event:audit.*")
        assert 'class="event">audit.viewed' in asked
        assert "Hidden: audit.* events" not in asked
        assert "audit.* events" not in await get(await clients(ACME), "/")

    async def test_what_is_exported_is_what_is_shown(self, store, clients):
        """Without the trail's own events, where they are hidden."""
        client = await clients(AUDITOR)
        await get(client, "/", q="outcome:success")
        page = await get(client, "/", q="outcome:success")
        exported = html.unescape(page.rpartition('name="q" value="')[2].partition('"')[0])
        assert exported == "outcome:success -event:audit.*"
        found = await get(client, "/export", q=exported)
        assert "order.paid" in found
        assert ",audit." not in found

    async def test_archived_months_are_not_counted(self, store, clients, audit_store):
        """The hours of a month that was retired are left out of bars and values."""
        now = datetime.now(UTC)
        old = now.replace(day=1, hour=12) - timedelta(days=40)
        await store.seal()
        client = await clients(AUDITOR)
        connection = await asyncpg.connect(audit_store)
        await connection.execute(
            "INSERT INTO audit.rollup VALUES ($1, 'acme', 'order.old', 'success', 70), "
            "($2, 'acme', 'order.new', 'success', 3)", old, old + timedelta(days=35),
        )  # fmt: skip
        page = await get(client, "/", q="tenant:acme")
        assert "order.old" in page
        begin = old.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        end = (begin + timedelta(days=32)).replace(day=1)
        lowest, above = (uuid.UUID(int=int(edge.timestamp() * 1000) << 80) for edge in (begin, end))
        await connection.execute(
            "INSERT INTO audit.ledger_prunings (partition, manifest_id, lowest, above, rows) "
            "VALUES ($1, $2, $3, $4, 70)",
            f"audit_logs_{begin:%Y_%m}", uuid.uuid4(), lowest, above,
        )  # fmt: skip
        await connection.close()
        for viewer in (AUDITOR, ACME):
            page = await get(await clients(viewer), "/", q="tenant:acme")
            assert "order.old" not in page
            assert "order.new" in page
        assert f"Archived: the records of {begin:%Y-%m}" in await get(client, "/", q="tenant:acme")

    async def test_an_error_names_the_column_and_the_nearest_field(self, store, clients):
        """No traceback, and nothing is recorded as a look."""
        client = await clients(AUDITOR)
        page = await get(client, "/", 400, q="status:5xx actr:ada")
        assert "column 12" in page
        assert "did you mean actor" in page
        assert await get(client, "/", 400, q="time:yesterdayish")
        assert await get(client, "/", 400, q="x" * 10_000)
        assert await looks(store.dsn) == []

    async def test_is_one_look_and_so_is_its_refresh(self, store, clients):
        """Rows and what is counted beside them; the same page within a minute is not told twice."""
        client = await clients(AUDITOR)
        for _ in range(3):
            await get(client, "/", q="tenant:acme")
        (look,) = await looks(store.dsn)
        assert (look["viewer"], look["query"]) == (AUDITOR.name, "tenant:acme -event:audit.*")


class TestRecord:
    async def test_answers_the_five_questions(self, store, clients):
        """Who, what exactly, did it commit, who looked, is it proved."""
        await store.seal()
        client = await clients(AUDITOR, keys=[store.key.public])
        other = await clients(Viewer("second@example.com"), keys=[store.key.public])
        path = f"/record/{store.ids['refunded']}"
        assert "Nobody before you" in await get(other, path)
        page = await get(client, path)
        assert "ada@acme.example" in page
        assert "refunded" in page
        assert "paid" in page
        assert "committed" in page
        assert "second@example.com" in page
        assert "Verified now." in page
        assert "not loaded" in page

    async def test_redacted_and_none_are_different_things(self, store, clients):
        """Each kind of what is not there has a mark of its own."""
        client = await clients(AUDITOR)
        assert "mark is-redacted" in await get(client, f"/record/{store.ids['paid']}")
        assert "sampled away" in await get(client, f"/record/{store.ids['failed']}")

    async def test_what_was_tried_and_rolled_back_is_marked(self, store, clients):
        """With its values, or by number alone; and it is no state of the thing."""
        undone = {"outcome": "failure", "transaction": "rolled_back"}
        (tried, counted) = await store.add(
            order_record("order.voided", changes=(change("1", status=["paid", "void"]),), **undone),
            order_record("order.voided", changes_rolled_back=2, **undone),
        )
        client = await clients(AUDITOR)
        page = await get(client, f"/record/{tried}")
        assert "tried, then rolled back: it never happened" in page
        assert '<th scope="col">Tried</th>' in page
        assert ">void<" in page
        page = await get(client, f"/record/{counted}")
        assert "Nothing changed: 2 changes were tried and rolled back." in page
        state = await get(client, "/entity", e="order:1", at=tried, of="acme")
        assert "void" not in state.partition('class="state"')[2].partition("</section>")[0]

    async def test_says_that_it_waits_for_its_seal(self, store, clients):
        """Before anything is sealed, and afterwards."""
        client = await clients(AUDITOR)
        assert "Waits for its seal" in await get(client, f"/record/{store.ids['paid']}")
        await store.seal()
        assert "signature not checked" in await get(client, f"/record/{store.ids['paid']}")

    async def test_an_altered_record_is_called_tampered(self, store, clients, audit_store):
        """The text, and a column that the text does not say."""
        from ledger_store import Administrator

        await store.seal()
        connection = await asyncpg.connect(audit_store)
        for trigger in await connection.fetch("SELECT evtname FROM pg_event_trigger"):
            await connection.execute(f"ALTER EVENT TRIGGER {trigger['evtname']} DISABLE")
        administrator = Administrator(connection)
        await administrator.does(
            "UPDATE audit.audit_logs SET actor_id = 'nobody' WHERE id = $1", store.ids["paid"]
        )
        await administrator.does(
            "UPDATE audit.audit_logs SET payload = replace(payload::text, 'late', 'soon')::json "
            "WHERE id = $1",
            store.ids["refunded"],
        )
        await connection.close()
        client = await clients(AUDITOR, keys=[store.key.public])
        assert "TAMPERED" in await get(client, f"/record/{store.ids['paid']}")
        assert "TAMPERED" in await get(client, f"/record/{store.ids['refunded']}")
        assert "Verified now" in await get(client, f"/record/{store.ids['created']}")

    async def test_a_record_that_was_inserted_malformed_is_no_tampering(self, store, clients):
        """Whoever may insert could raise the alarm otherwise."""
        made = uuid.UUID(int=uuid.UUID(store.ids["created"]).int + 1)
        connection = await asyncpg.connect(store.dsn)
        await connection.execute(
            "INSERT INTO audit.audit_logs SELECT (jsonb_populate_record(l, jsonb_build_object("
            "'id', $2::text, 'outcome', 'failure'))).* FROM audit.audit_logs l WHERE id = $1",
            store.ids["created"], str(made),
        )  # fmt: skip
        await connection.close()
        await store.seal()
        for viewer in (AUDITOR, ACME):
            page = await get(await clients(viewer, keys=[store.key.public]), f"/record/{made}")
            assert "Verified now.</strong> Text, place in the log and signature hold." in page
            assert "outcome do not follow from its text" in page
            assert "TAMPERED" not in page

    async def test_unknown_ids_have_a_page(self, store, clients):
        """Not there, and no id at all."""
        client = await clients(AUDITOR)
        assert "no record" in await get(client, f"/record/{uuid.uuid4()}", 404)
        assert "is not a record" in await get(client, "/record/x", 404)
        assert "no such page" in await get(client, "/nothing", 404)

    async def test_support_sees_no_bodies(self, store, clients):
        """Nor the exact text, nor an export, nor what free text would tell of them."""
        client = await clients(SUPPORT)
        path = f"/record/{store.ids['refunded']}"
        page = await get(client, path)
        assert "body-note" not in page
        assert "body-note" in await get(await clients(AUDITOR), path)
        assert "late" in page
        assert "body-note" not in await get(client, "/entity", e="order:1")
        await get(client, "/export", 403)
        await get(client, f"{path}/evidence.json", 403)
        await get(client, "/", 400, q="body-note")


class TestEntity:
    async def test_tells_its_history_and_its_state_as_of_a_record(self, store, clients):
        """Of one tenant: another one has an order 1, too."""
        client = await clients(AUDITOR)
        page = await get(client, "/entity", e="order:1")
        assert page.count("state then") == 4
        state = await get(client, "/entity", e="order:1", at=store.ids["paid"], of="acme")
        shown = state.partition('class="state"')[2].partition("</section>")[0]
        assert "paid" in shown
        assert "129.00" in shown
        assert "refunded" not in shown

    async def test_a_state_of_many_records_is_of_the_newest(self, store, clients, monkeypatch):
        """Never of the oldest alone; and the page says that those before were not read."""
        monkeypatch.setattr("otel_audit.viewer.pages._MOST_STATES", 3)
        monkeypatch.setattr("otel_audit.viewer.pages._STATE_PAGE", 2)
        states = ["refunded", *(f"state-{number}" for number in range(5))]
        ids = [
            (await store.add(order_record("order.moved", changes=(change("1", status=[old, new]),))))[0]
            for old, new in itertools.pairwise(states)
        ]  # fmt: skip
        # what another tenant does with a thing of this name takes no place
        await store.add(*(order_record("secret.seen", tenant="globex") for _ in range(4)))
        client = await clients(AUDITOR)

        async def state(record_id):
            page = await get(client, "/entity", e="order:1", at=record_id, of="acme")
            return page.partition('class="state"')[2].partition("</section>")[0]

        for record_id, status in zip(ids, states[1:], strict=True):
            shown = await state(record_id)
            assert status in shown
            assert "The newest 3 records" in shown
            assert "129.00" not in shown
        first = await state(store.ids["refunded"])
        assert "129.00" in first
        assert "The newest" not in first
        # nothing of it in the newest records is not "nothing was recorded"
        seen = (await store.add(*(order_record("order.seen") for _ in range(3))))[-1]
        assert "the newest 3 records until then say nothing" in await state(seen)

    async def test_only_who_has_the_thing_has_a_state_of_it(self, store, clients):
        """What another tenant tried with a thing of this name is told, without a state."""
        page = await get(await clients(AUDITOR), "/entity", e="order:1")
        (foreign,) = (row for row in page.split("<li data-row>") if "secret.closed" in row)
        assert "state then" not in foreign

    async def test_can_be_narrowed_to_one_column(self, store, clients):
        """Only records that changed it."""
        client = await clients(AUDITOR)
        page = await get(client, "/entity", e="order:1", field="note")
        assert page.count("state then") == 1

    async def test_a_deleted_thing_is_said_to_be(self, store, clients):
        """Its state after that is none."""
        (gone,) = await store.add(
            order_record(
                "order.deleted", changes=(change("1", "delete", status=["refunded", None]),)
            )
        )
        client = await clients(AUDITOR)
        assert "Deleted" in await get(client, "/entity", e="order:1", at=gone, of="acme")


class TestActor:
    async def test_tells_where_and_when_and_what_failed(self, store, clients):
        """Addresses, sessions, tenants, failures; the look names whom it is about."""
        client = await clients(AUDITOR)
        page = await get(client, "/actor", id="ada@acme.example")
        for text in ("192.0.2.7", "s-1", "Newest failures", "acme"):
            assert text in page
        (look,) = await looks(store.dsn)
        assert look["entities"] == ["audit_actor:ada@acme.example"]


class TestProblems:
    async def test_a_store_that_is_away_has_a_page(self, clients):
        """What happened and what to do; no traceback."""
        clients.dsn = "postgresql://nobody@127.0.0.1:9/none"
        client = await clients(AUDITOR)
        answer = await client.get("/")
        assert answer.status_code == 503
        assert "Try again" in answer.text
        assert answer.headers["retry-after"]

    async def test_a_database_without_a_store_has_a_page(self, database, clients):
        """It says that the schema is missing, and the command that makes it."""
        clients.dsn = database
        answer = await (await clients(AUDITOR)).get("/")
        assert answer.status_code == 500
        assert "otel-audit" in answer.text

    async def test_a_statement_that_takes_too_long_has_a_page(self, store, clients):
        """The store says so, and the next question is answered."""
        await store.add(*(order_record("slow.made", str(n)) for n in range(200)))
        client = await clients(AUDITOR, statement_timeout=0.001)
        answer = await client.get("/", params={"q": '"zzzz zzzz" "yyyy"'})
        assert answer.status_code == 503
        assert "This takes too long" in answer.text
        assert "ask for less, such as time:7d" in answer.text
        assert "Try again" not in answer.text
        client = await clients(AUDITOR)
        assert (await client.get("/", params={"q": "event:slow.made"})).status_code == 200

    @pytest.mark.allow_errors
    async def test_a_store_that_is_read_only_has_a_page(self, store, clients, postgres):
        """Nothing is shown that cannot be recorded, unless it was said that it need not be."""
        role = clients.dsn.partition("://")[2].partition("@")[0]
        await postgres.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on")
        answer = await (await clients(AUDITOR)).get("/")
        assert answer.status_code == 500
        assert "the server is read-only, as a standby is: name the primary" in answer.text
        assert "order.paid" not in answer.text
        export = await (await clients(AUDITOR)).get("/export", params={"q": "tenant:acme"})
        assert export.status_code == 503
        assert "read-only" in export.text
        tried = await clients(AUDITOR, record_views="tried")
        assert "order.paid" in (await tried.get("/")).text
        assert "order.paid" in (await tried.get("/export", params={"q": "tenant:acme"})).text

    async def test_a_store_of_an_older_version_has_a_page(self, database, clients):
        """It names both versions and the command."""
        connection = await asyncpg.connect(database)
        await connection.execute("CREATE SCHEMA audit")
        for step in migrations()[:8]:
            await connection.execute(step.sql)
            await connection.execute(
                "INSERT INTO audit.schema_version (version, name) VALUES ($1, $2)",
                step.version, step.name,
            )  # fmt: skip
        await connection.close()
        clients.dsn = database
        answer = await (await clients(AUDITOR)).get("/")
        assert answer.status_code == 500
        assert f"its schema is at 8, and {latest_version()} is needed here" in answer.text
        assert "otel-audit migrate" in answer.text

    async def test_nobody_is_let_in_without_a_name(self, store, clients):
        """Every page asks; only the style sheet does not."""
        client = await clients(None)
        for path in (
            "/",
            "/record/x",
            "/entity",
            "/actor",
            "/export",
            "/tail",
            "/tail/events",
            "/help",
        ):
            assert (await client.get(path)).status_code == 401
        assert (await client.get("/static/viewer.css")).status_code == 200
        assert (await client.get("/static/../app.py")).status_code == 404

    async def test_a_tenant_is_shown_nothing_where_row_security_is_off(self, store, clients):
        """The owner's connection sees everything, so no tenant may look through it."""
        clients.dsn = store.dsn
        answer = await (await clients(ACME)).get("/")
        assert answer.status_code == 500
        assert "--viewer" in answer.text
        assert "order.paid" not in answer.text
