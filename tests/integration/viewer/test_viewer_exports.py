"""What is taken away: files of what a query finds, evidence, and the live tail."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
import zipfile

import asyncpg
import httpx
import pytest
from otel_audit_postgres.retention import collapse, drop, retire
from viewer_store import ACME, AUDITOR, order_record

from otel_audit._util.ids import uuid7
from otel_audit.viewer import Viewer, create_app


class TestExports:
    async def test_hold_everything_in_every_form(self, store, clients, caplog):
        """CSV, NDJSON and JSON of one query have the same records, texts to the byte."""
        await store.add(*(order_record("bulk.made", str(n)) for n in range(2_100)))
        client = await clients(AUDITOR)
        found = {}
        for form in ("csv", "ndjson", "json"):
            answer = await client.get("/export", params={"q": "event:bulk.made", "format": form})
            assert answer.headers["content-disposition"].startswith('attachment; filename="audit-')
            found[form] = answer.text
        rows = list(csv.DictReader(io.StringIO(found["csv"])))
        lines = found["ndjson"].splitlines()
        assert len({row["id"] for row in rows}) == len(lines) == 2_100
        assert [json.loads(line)["record_id"] for line in lines] == [row["id"] for row in rows]
        assert [one["record_id"] for one in json.loads(found["json"])] == [
            row["id"] for row in rows
        ]
        assert hashlib.sha256(lines[0].encode()).hexdigest() == rows[0]["content_hash"]
        ours = ("otel_audit.viewer", "otel_audit_postgres")
        assert [line for line in caplog.records if line.name.startswith(ours)] == []

    async def test_come_with_a_manifest(self, store, clients):
        """Query, checkpoint, rows, digest, who."""
        await store.seal()
        client = await clients(AUDITOR)
        answer = await client.get("/export", params={"q": "tenant:acme", "manifest": "1"})
        archive = zipfile.ZipFile(io.BytesIO(answer.content))
        manifest = json.loads(archive.read("manifest.json"))
        content = archive.read(manifest["file"])
        assert manifest["sha256"] == hashlib.sha256(content).hexdigest()
        assert (manifest["rows"], manifest["bytes"]) == (4, len(content))
        assert manifest["exported_by"] == AUDITOR.name
        assert manifest["query"] == "tenant:acme"
        assert manifest["checkpoint"].startswith("audit.example.com/log\n6\n")

    async def test_are_recorded_before_the_first_byte(self, store, clients, audit_store):
        """Who, and what was asked for."""
        await (await clients(ACME)).get("/export", params={"q": "order", "format": "json"})
        connection = await asyncpg.connect(audit_store)
        (row,) = await connection.fetch(
            "SELECT payload::text AS text FROM audit.audit_logs WHERE event_name = 'audit.exported'"
        )
        await connection.close()
        told = json.loads(row["text"])
        assert told["actor"]["on_behalf_of"] == ACME.name
        assert told["metadata"]["asked"] == {"query": "order", "format": "json", "tenants": "acme"}

    @pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\uff1d"])
    async def test_cells_are_no_formulas(self, store, clients, start):
        """A spreadsheet takes them for texts."""
        await store.add(order_record("cell.made", actor=f"{start}HYPERLINK(1)"))
        client = await clients(AUDITOR)
        answer = await client.get("/export", params={"q": "event:cell.made"})
        (row,) = csv.DictReader(io.StringIO(answer.text, newline=""))
        assert row["actor_id"].startswith("'")

    async def test_of_nothing_are_files_too(self, store, clients):
        """Empty, but what they say they are."""
        client = await clients(AUDITOR)
        for form, text in (("ndjson", ""), ("json", "[\n]\n")):
            answer = await client.get("/export", params={"q": "event:none.such", "format": form})
            assert answer.text == text

    async def test_may_be_forbidden(self, store, clients):
        """For this person."""
        client = await clients(Viewer("x", may=frozenset()))
        assert (await client.get("/export")).status_code == 403


class TestEvidence:
    async def test_holds_without_the_store(self, store, clients, tmp_path):
        """The program in the archive says so; after one letter was changed, it does not."""
        await store.add(*(order_record("bulk.made", str(n)) for n in range(300)))
        await store.seal()
        client = await clients(AUDITOR, keys=[store.key.public])
        answer = await client.get(f"/record/{store.ids['refunded']}/evidence.zip")
        zipfile.ZipFile(io.BytesIO(answer.content)).extractall(tmp_path)
        (directory,) = (one for one in tmp_path.iterdir() if one.name.startswith("evidence-"))
        command = [sys.executable, "verify.py", "evidence.json", store.key.public.text()]
        assert subprocess.run(command, cwd=directory, check=False).returncode == 0
        evidence = directory / "evidence.json"
        evidence.write_text(evidence.read_text().replace("late", "soon"))
        assert subprocess.run(command, cwd=directory, check=False).returncode == 1

    async def test_is_that_of_prove_as_the_log_grows(self, store, clients):
        """Each record's path, in logs of many sizes, is what the whole tree would give."""
        from otel_audit_postgres.ledger.prove import prove_record

        client = await clients(AUDITOR, keys=[store.key.public])
        ids = [store.ids["created"]]
        for count in (1, 250, 3, 260, 1):
            ids += (await store.add(*(order_record("b.made") for _ in range(count))))[:1]
            await store.seal()
            for record_id in ids:
                answer = await client.get(f"/record/{record_id}/evidence.json")
                assert answer.json() == await prove_record(store.dsn, record_id, [store.key.public])


class Listening:
    """Reads events of a running viewer's tail."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.position = ""

    async def ids(self, count: int, query: str = "") -> list[str]:
        """The next records, until so many came; or until the first event, for none."""
        found: list[str] = []
        headers = {"last-event-id": self.position} if self.position else {}
        async with (
            httpx.AsyncClient(timeout=30) as client,
            client.stream(
                "GET", f"{self.url}/tail/events", params={"q": query}, headers=headers
            ) as answer,
        ):
            assert answer.headers["x-accel-buffering"] == "no"
            async for line in answer.aiter_lines():
                if line.startswith("id: "):
                    self.position = line[4:]
                if line.startswith("data: "):
                    records = json.loads(line[6:]).get("records", ())
                    found += [one["href"].rpartition("/")[2] for one in records]
                if line == "" and len(found) >= count and self.position:
                    return found
        return found


class TestTail:
    async def test_resumes_without_loss_or_repeat(self, store, running):
        """What was sealed while nobody listened comes then, once, in the log's order."""
        listening = Listening(running)
        await listening.ids(0)
        written = []
        for _ in range(3):
            ids = await store.add(*(order_record("live.made", str(n)) for n in range(5)))
            await store.seal()
            seen = await listening.ids(5, "event:live.made")
            assert sorted(seen) == sorted(ids)
            written += ids
        listening.position = "6"
        assert sorted(await listening.ids(15, "event:live.made")) == sorted(written)

    @pytest.mark.parametrize("batch", [3, 200])
    async def test_passes_a_month_that_was_dropped(  # noqa: PLR0917 - each a fixture
        self, one_day, store, connection, viewer_role, serve, monkeypatch, batch
    ):
        """Collapsed leaves have no ids: the tail goes on behind them, and repeats nothing."""
        monkeypatch.setattr("otel_audit.viewer.tail._BATCH", batch)
        month, old = await connection.fetchrow(
            "SELECT 'audit_logs_' || to_char(t, 'YYYY_MM'), extract(epoch FROM t)::bigint FROM "
            "(SELECT date_trunc('month', now() AT TIME ZONE 'UTC') - interval '9 days' AS t) AS ago"
        )
        times = [old * 10**9 + number * 10**6 for number in range(9)]
        before = await store.add(order_record("live.made"))
        await store.seal()
        await store.add(
            *(order_record("live.made", record_id=uuid7(at), occurred_at=at) for at in times)
        )
        await store.seal()
        after = [*before, *await store.add(*(order_record("live.made") for _ in range(7)))]
        await store.seal()
        manifest = await retire(store.dsn, month)
        await store.seal()
        assert await drop(store.dsn, month, manifest) == len(times)
        assert await collapse(store.dsn) == len(times)
        viewer = create_app(dsn=viewer_role, authenticate=lambda _: AUDITOR)
        async with serve(viewer) as address, asyncio.timeout(30):
            listening = Listening(address)
            listening.position = "0"
            seen = await listening.ids(len(after), "event:live.made")
            last = await store.add(order_record("live.made"))
            await store.seal()
            seen += await listening.ids(1, "event:live.made")
        assert sorted(seen) == sorted([*after, *last])

    async def test_of_a_tenant_tells_no_position(self, store, viewer_role, serve):
        """Its ids are encrypted; another process goes on behind the last record that was shown."""
        await store.seal()
        viewers = [create_app(dsn=viewer_role, authenticate=lambda _: ACME) for _ in range(2)]
        async with serve(viewers[0]) as first, serve(viewers[1]) as second:
            listening = Listening(first)
            await listening.ids(0)
            ids = await store.add(*(order_record("live.made", str(n)) for n in range(3)))
            await store.seal()
            assert sorted(await listening.ids(3)) == sorted(ids)
            assert not re.search(r"(?<![\w-])(6|9)(?![\w-])", listening.position)
            more = await store.add(order_record("live.made"), order_record("x", tenant="globex"))
            await store.seal()
            listening.url = second
            assert await listening.ids(1) == more[:1]
            foreign = {"last-event-id": f"x.{store.ids['globex']}"}
            async with (
                httpx.AsyncClient(timeout=30) as client,
                client.stream("GET", f"{second}/tail/events", headers=foreign) as answer,
            ):
                async for line in answer.aiter_lines():
                    if line.startswith("data: "):
                        assert "was restarted" in line
                        break

    async def test_ends_with_what_allowed_it(self, store, viewer_role, serve, monkeypatch):
        """A token that is revoked, or a session that has ended, shows nothing more."""
        monkeypatch.setattr("otel_audit.viewer.tail._ASKED_EVERY", 0.05)
        monkeypatch.setattr("otel_audit.viewer.tail._EVERY", 0.01)
        known = [True]
        viewer = create_app(dsn=viewer_role, authenticate=lambda _: ACME if known[0] else None)
        async with (
            serve(viewer) as address,
            httpx.AsyncClient(timeout=20) as client,
            client.stream("GET", f"{address}/tail/events") as answer,
        ):
            lines = answer.aiter_lines()
            assert await anext(lines) == "retry: 2000"
            known[0] = False
            async for _ in lines:
                pass
        assert viewer.state.site.tails == 0

    async def test_is_kept_open_by_heartbeats(self, running, monkeypatch):
        """Where nothing is sealed there is a comment now and then, for proxies that wait."""
        monkeypatch.setattr("otel_audit.viewer.tail._HEARTBEAT", 0.02)
        monkeypatch.setattr("otel_audit.viewer.tail._EVERY", 0.01)
        url = f"{running}/tail/events?q=event:none"
        async with httpx.AsyncClient(timeout=30) as client, client.stream("GET", url) as answer:
            lines = []
            async for line in answer.aiter_lines():
                lines.append(line)
                if lines.count(": still here") == 3:
                    break
        assert "event: begin" in lines
        assert not any("records" in line for line in lines)

    async def test_there_are_twenty_at_most(self, running, monkeypatch):
        """The next one is told to come later."""
        monkeypatch.setattr("otel_audit.viewer.tail.MOST", 0)
        async with httpx.AsyncClient(timeout=30) as client:
            answer = await client.get(f"{running}/tail/events")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
