"""What is not there, and why: encrypted, erased, archived."""

from __future__ import annotations

import secrets
import uuid

import pytest
from otel_audit_postgres.personal.key_store import FileWrapper, KeyStore, Subject
from otel_audit_postgres.personal.protect import Protector, read_fields
from otel_audit_postgres.retention.subject import erase
from otel_audit_postgres.sink import PostgresSink
from retention_trail import APRIL, JANUARY, Trail
from viewer_store import ACME, AUDITOR, GLOBEX, change, order_record

from otel_audit.record import Actor

EMAIL = "ann.person@example.com"
ADDRESS = "192.0.2.7"
FIELDS = read_fields(
    ["actor.email", "source.address", "source.session_id", "request.body", "changes.Order.note"]
)
ANN = Actor(id="ann", type="user", email=EMAIL, verified=True)


@pytest.fixture
async def keys(database, tmp_path):
    """A database of keys."""
    wrapper = FileWrapper(secrets.token_bytes(32))
    made = KeyStore(database, wrapper, pending=tmp_path / "pending")
    await made.init()
    yield made
    await made.close()


@pytest.fixture
async def personal(store, keys):
    """The id of a record of ann, whose personal values are encrypted."""
    record = order_record(
        "order.noted", actor=ANN, changes=(change("1", note=["old", "her-note"]),)
    )
    sink = PostgresSink(store.dsn, protector=Protector(keys, FIELDS))
    assert (await sink.write([record])).stored == 1
    await sink.close()
    await store.seal()
    return record.record_id


async def page_of(client, path, status=200, **asked):
    answer = await client.get(path, params=asked)
    assert answer.status_code == status, answer.text
    return answer.text


def without_exact_text(page):
    return page.partition('<section aria-labelledby="exact">')[0]


class TestPersonalValues:
    async def test_are_encrypted_to_who_has_no_keys(self, store, clients, personal):
        """A mark, and no cipher text among the facts; the proof holds."""
        page = await page_of(await clients(AUDITOR, keys=[store.key.public]), f"/record/{personal}")
        told = without_exact_text(page)
        assert "Verified now" in told
        assert told.count("mark is-encrypted") >= 4
        assert "~p1." not in told.replace("session%3A~p1.", "")
        assert EMAIL not in page
        assert ADDRESS not in page
        assert "her-note" not in page

    async def test_are_shown_to_who_has_the_keys(self, store, clients, personal, keys):
        """Read as they were; the exact text stays what was sealed, and so does the proof."""
        client = await clients(AUDITOR, keys=[store.key.public], personal_keys=keys)
        page = await page_of(client, f"/record/{personal}")
        told = without_exact_text(page)
        for text in (EMAIL, ADDRESS, "her-note", "body-note", "Verified now"):
            assert text in told
        assert "~p1." in page.removeprefix(told)
        assert "her-note" in await page_of(client, "/entity", e="order:1")
        session = told.partition("session%3A")[2].partition('"')[0]
        assert personal in await page_of(client, f"/?q=session%3A{session}")

    async def test_are_erased_once_the_key_is_destroyed(self, store, clients, personal, keys):
        """Erased is told from redacted and from not loaded; nothing else of the record is gone."""
        subject = Subject("acme", "ann")
        assert await erase(store.dsn, keys, subject, "GDPR 17", "a demand")
        assert await erase(store.dsn, keys, Subject("acme", "order:1"), "GDPR 17", "a demand")
        client = await clients(AUDITOR, keys=[store.key.public], personal_keys=keys)
        told = without_exact_text(await page_of(client, f"/record/{personal}"))
        assert told.count("mark is-erased") >= 3
        assert "Values in it were erased" in told
        assert "Verified now" in told
        assert "order.noted" in told
        for text in (EMAIL, ADDRESS, "her-note", "body-note"):
            assert text not in told
        other = without_exact_text(await page_of(client, f"/record/{store.ids['refunded']}"))
        assert "mark is-unknown" in other
        assert "mark is-erased" not in other

    async def test_keys_that_are_away_leave_the_page(self, store, clients, personal):
        """The record is shown with its values as encrypted."""
        away = KeyStore("postgresql://nobody@127.0.0.1:9/none", FileWrapper(bytes(32)), timeout=1)
        client = await clients(AUDITOR, personal_keys=away)
        told = without_exact_text(await page_of(client, f"/record/{personal}"))
        assert "mark is-encrypted" in told


class TestArchivedMonths:
    async def test_are_said_to_be(self, audit_store, viewer_role, clients, tmp_path):
        """On a record's page, and beside a search that finds nothing; a tenant is told nothing."""
        trail = Trail(audit_store, tmp_path)
        ids = await trail.write_in(JANUARY, 5)
        await trail.write_in(APRIL, 5)
        await trail.write(3)
        await trail.seal()
        await trail.retain()
        await trail.seal()
        auditor = await clients(AUDITOR)
        page = await page_of(auditor, f"/record/{ids[0]}", 404)
        assert "Archived: its month, audit_logs_2025_01, was retired" in page
        page = await page_of(auditor, "/", q="time:2025-01-01..2025-01-31")
        assert "Archived: the records of 2025-01 to 2025-04." in page
        reads = await clients(AUDITOR, archive=trail.archive)
        page = await page_of(reads, f"/record/{ids[0]}")
        assert "<strong>Archived.</strong> Read from the archive of 2025-01." in page
        assert "order.paid" in page
        assert "Verified" not in page
        assert "no record" in await page_of(reads, f"/record/{uuid.uuid4()}", 404)
        own = await clients(ACME, archive=trail.archive)
        assert "order.paid" in await page_of(own, f"/record/{ids[0]}")
        globex = await clients(GLOBEX, archive=trail.archive)
        assert "order.paid" not in await page_of(globex, f"/record/{ids[0]}", 404)
        tenant = await clients(ACME)
        assert "Archived" not in await page_of(tenant, f"/record/{ids[0]}", 404)
        assert "Archived" not in await page_of(tenant, "/", q="time:2025-01-01..2025-01-31")
