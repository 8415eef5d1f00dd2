"""The demonstration as a new user runs it, the shop it audits, and its own conscience."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import pytest
from rich.console import Console
from sqlalchemy.ext.asyncio import create_async_engine

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))  # the demonstration is not installed

from demo import screen  # noqa: E402
from demo.client import Sent, ShopClient  # noqa: E402
from demo.findings import Evidence, examine, search  # noqa: E402
from demo.receiver import ReceivedSpan, Receiver  # noqa: E402
from demo.secrets_sent import SecretsSent  # noqa: E402
from demo.shop.settings import settings  # noqa: E402
from demo.store import Attempt, Row  # noqa: E402
from demo.traffic import STATUS, first_users, log_in_all, tell_story  # noqa: E402

Start = Callable[..., subprocess.Popen[str]]
FIRST_WORDS = "an audit trail without a line of code"


def test_a_table_of_eighty_columns_breaks_no_name():
    """A target may be folded; of two halves of an actor's name nobody can search for one."""
    console = Console(width=77, file=io.StringIO())
    table = screen._table(
        console, "time UTC", "actor", "event", "target", "outcome", "stat", "trace"
    )
    table.add_row(
        "12:00:01", "hank@globex", "user.password_changed", "order:0123456", "rolled_back ↺",
        "200", "● 1234",
    )  # fmt: skip
    console.print(table)
    assert "hank@globex" in console.file.getvalue()


@pytest.mark.timeout(300)
class TestDemonstration:
    @pytest.fixture
    def start(self) -> Iterator[Start]:
        """Starts it with its files in one place; afterwards no file and no process is left."""
        # not tmp_path: each run of pytest closes that to the user that PostgreSQL runs as
        directory = Path(tempfile.mkdtemp(prefix="demo-test-"))
        started: list[subprocess.Popen[str]] = []

        def start(**environment: str) -> subprocess.Popen[str]:
            started.append(_start(directory, **environment))
            return started[-1]

        yield start
        for process in started:
            with process:  # closes its pipe
                process.terminate()
                process.wait(timeout=60)
        left = list(directory.glob("otel-audit-demo-*"))
        shutil.rmtree(directory)
        assert left == []
        assert _processes_in(directory) == []

    @pytest.mark.slow
    def test_shows_the_trail_and_ends_well(self, start: Start):
        """One command shows rows, a diff, refusals, no secrets, and the counts; then it ends."""
        ended = start(LC_ALL="C.UTF-8")
        output, _ = ended.communicate(timeout=250)

        assert ended.returncode == 0, output
        for part in (
            FIRST_WORDS,
            "order.refunded",
            "status open → paid",
            "[REDACTED]",
            "failure ↺",
            "refused",
            "Everything that happened to order:1",
            "No secrets inside",
            "server spans in the trace backend",
            "What to try next",
        ):
            assert part in output, part
        assert re.search(r"rows in the audit store +(\d+) +of \1 audited requests", output)
        assert "\x1b[" not in output
        assert max(map(len, output.splitlines())) <= 80

    @pytest.mark.slow
    def test_leaves_nothing_behind_when_interrupted(self, start: Start):
        """Ctrl-C in the middle stops everything that was started."""
        running = start()
        assert running.stdout is not None
        for line in running.stdout:
            if "opentelemetry-instrument uvicorn" in line:
                break
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=100)

        assert running.returncode == 130, output

    @pytest.mark.slow
    def test_keeps_running_when_asked_to(self, start: Start):
        """With KEEP=1 the shop answers until SIGTERM, and commands are shown that can be pasted.

        In a POSIX locale all of it is ASCII.
        """
        running = start(KEEP="1", LC_ALL="POSIX")
        assert running.stdout is not None
        shown = []
        for line in running.stdout:
            shown.append(line)
            if line.startswith("  the shop's log"):
                break
        output = "".join(shown)
        url = re.search(r"http://127\.0\.0\.1:\d+(?=/docs)", output)
        token = re.search(r"Bearer ([\w.-]+)", output)
        psql = re.search(r"\S+/psql -h \S+ -U auditor audit(?= -c)", output)
        assert url, output
        assert token, output
        assert psql, output

        assert output.isascii()
        hints = re.findall(
            r"^    (export .*|\S+/otel-audit \S+(?: order:\d+)?)$", output, re.MULTILINE
        )
        pasted = subprocess.run(
            ["sh", "-e", "-c", "\n".join(hints)],
            cwd=PROJECT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert len(hints) == 3
        assert "status open -> paid" in pasted.stdout
        answer = httpx.patch(
            f"{url[0]}/customers/2",
            json={"city": "Turin"},
            headers={"Authorization": f"Bearer {token[1]}", "X-Request-ID": "from-the-test"},
            timeout=60,
        )
        assert answer.status_code == 200
        link = re.search(r"http://127\.0\.0\.1:\d+/sign-in\?link=\S+", output)
        assert link, output
        with httpx.Client(follow_redirects=True, timeout=60) as browser:
            assert browser.get(link[0]).status_code == 200
            viewer = link[0].partition("/sign-in")[0]
            page = browser.get(viewer, params={"q": "event:order.refunded"})
        assert "data-row" in page.text, page.text
        product = re.search(
            r"a frame of the product's page.*\n\s+(http://127\.0\.0\.1:\d+)", output
        )
        assert product, output
        with httpx.Client(base_url=product[1], timeout=60) as tenant:
            assert "otel-audit-viewer" in tenant.get("/").text
            bearer = {"Authorization": f"Bearer {tenant.get('/my-audit-token').json()['token']}"}
            assert "data-row" in tenant.get("/audit/", headers=bearer).text
            assert tenant.get("/audit/").status_code == 401
        query = "SELECT count(*) FROM audit.audit_logs WHERE request_id = 'from-the-test'"
        assert _eventually("1", [*psql[0].split(), "-A", "-t", "-c", query])


class TestShop:
    @pytest.fixture
    async def shop(
        self, database: str, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[ShopClient]:
        """The shop over a fresh database, unaudited."""
        from demo.shop.app import app
        from demo.shop.seed import seed

        url = database.replace("postgresql://", "postgresql+asyncpg://")
        monkeypatch.setenv("SHOP_DATABASE_URL", url)
        monkeypatch.setenv("SHOP_JWT_KEY", "a key for one test")
        settings.cache_clear()
        self.secrets = SecretsSent()
        self.users = first_users(self.secrets)
        engine = create_async_engine(url)
        await seed(engine, self.users)
        await engine.dispose()
        # an exception after the response is uvicorn's to log, and no answer to the client
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://shop") as http,
        ):
            yield ShopClient(http)

    async def test_lives_through_the_story(self, shop: ShopClient):
        """Every request of the story is answered as the story says."""
        staff = await log_in_all(shop, self.users, self.secrets)
        await tell_story(shop, staff, self.users, self.secrets)

        answered = {sent.label: sent.status for sent in shop.sent if sent.label}
        assert answered == STATUS

    async def test_promises_a_change_that_the_database_refuses(self, shop: ShopClient):
        """The commit comes after the answer: a refusal at COMMIT leaves a 200 without a change."""
        grace = await shop.log_in(self.users[3].email, self.users[3].password)
        answer = await shop.call(grace, "PATCH", "/products/5", json={"sku": "DRL-18"})
        found = await shop.call(grace, "GET", "/products")

        assert answer.status_code == 200
        assert answer.json()["sku"] == "DRL-18"
        assert [product["sku"] for product in found.json()][:2] == ["SAW-01", "DRL-18"]

    def test_knows_nothing_of_what_observes_it(self):
        """There is no word of auditing or telemetry in the shop's code."""
        code = [file.read_text().lower() for file in (PROJECT / "demo/shop").rglob("*.py")]

        assert len(code) > 8
        assert not [text for text in code if "audit" in text or "telemetry" in text]


class TestExamine:
    """Each test spoils one thing in evidence that is otherwise as it must be."""

    def test_is_content_with_what_is_right(self):
        """Evidence as it must be gives no complaint."""
        assert examine(_evidence()) == []

    def test_misses_a_row(self):
        """A request without its row is named."""
        evidence = _evidence()
        spoiled = dataclasses.replace(evidence, rows=evidence.rows[1:])

        assert any("0 audit rows, not 1" in line for line in examine(spoiled))

    def test_notices_a_gap_in_the_sequence(self):
        """A number that is missing from the stream is noticed though every request has a row."""
        evidence = _evidence()
        rows = [*evidence.rows[:-1], dataclasses.replace(evidence.rows[-1], sequence_number=999)]

        assert any("unbroken" in line for line in examine(dataclasses.replace(evidence, rows=rows)))

    def test_notices_a_wrong_actor(self):
        """A row that names somebody else is a complaint."""
        evidence = _evidence()
        rows = [dataclasses.replace(evidence.rows[0], actor_id="mallory"), *evidence.rows[1:]]

        assert any("actor" in line for line in examine(dataclasses.replace(evidence, rows=rows)))

    def test_notices_a_secret(self):
        """A secret in a place that was searched is a complaint, and is not shown in it."""
        secrets = SecretsSent()
        card = secrets.card(separator=" ")
        found = search("the store", f"paid with {card.replace(' ', '')}".encode(), secrets)
        complaints = examine(dataclasses.replace(_evidence(), searches=[found]))

        assert complaints == ["1 secrets of kind 'card number' found in the store"]

    def test_notices_a_blind_search(self):
        """A search that finds not even what is there is a complaint."""
        spoiled = dataclasses.replace(_evidence(), control_found=False)

        assert any("did not find even" in line for line in examine(spoiled))

    def test_notices_that_history_can_be_changed(self):
        """An attempt that succeeded is a complaint."""
        attempts = [Attempt("superuser", "DELETE", None)]
        spoiled = dataclasses.replace(_evidence(), attempts=attempts)

        assert examine(spoiled) == ["DELETE by the superuser was not refused"]


class TestSecretsSent:
    def test_makes_numbers_that_pass_their_checks(self):
        """Card numbers and IBANs are such that a check of their digits accepts them."""
        secrets = SecretsSent()
        card, iban = secrets.card(), secrets.iban()
        doubled = [
            sum(divmod(int(digit) * (2 - place % 2), 10)) for place, digit in enumerate(card)
        ]

        assert sum(doubled) % 10 == 0
        assert int(iban[4:] + "1314" + iban[2:4]) % 97 == 1

    def test_finds_a_secret_however_it_is_written(self):
        """In clear, without separators, and plainly hashed."""
        secrets = SecretsSent()
        secret = secrets.password()

        assert secrets.found_in(secret.encode()) == ["password"]
        assert secrets.found_in(secret.encode().hex().encode()) == ["password"]
        assert secrets.found_in(b"nothing of the kind") == []


def _start(directory: Path, **environment: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if name != "KEEP"}
    return subprocess.Popen(
        [sys.executable, "-m", "demo"],
        cwd=PROJECT,
        env={**kept, "TMPDIR": str(directory), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _processes_in(directory: Path) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        known = [*(process.info["cmdline"] or ()), *(process.info["environ"] or {}).values()]
        if any(str(directory) in text for text in known):
            found.append(str(process))
    return found


def _eventually(wanted: str, command: list[str]) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            == wanted
        ):
            return True
        time.sleep(0.1)
    return False


def _evidence() -> Evidence:
    sent = [_sent(label, status) for label, status in STATUS.items()]
    sent += [_sent(None, 200, method="GET") for _ in range(20)]
    audited = [request for request in sent if request.audited]
    rows = [_row(request, number) for number, request in enumerate(audited, start=1)]
    span = ReceivedSpan(
        "POST /orders",
        rows[0].trace_id or "",
        rows[0].span_id or "",
        True,
        frozenset({"audit.actor.id"}),
    )
    return Evidence(
        sent=sent,
        rows=rows,
        history=rows,
        attempts=[Attempt("superuser", "DELETE", "audit rows cannot be deleted")],
        rows_after=rows,
        searches=[search("the store", b"", SecretsSent())],
        control_found=True,
        receiver=Receiver(spans=[span]),
    )


def _sent(label: str | None, status: int, method: str = "POST") -> Sent:
    return Sent(
        request_id=uuid.uuid4().hex,
        method=method,
        path="/orders",
        status=status,
        label=label,
        actor_id="bob",
        tenant_id="acme",
        kept=label != "lost",
    )


def _row(sent: Sent, number: int) -> Row:
    changes = [{"entity": "Order", "values": {"status": ["open", "paid"]}}]
    return Row(
        id=str(uuid.uuid4()),
        phase="completed",
        occurred_at=datetime.now(UTC),
        duration_ms=1.0,
        event_name="order.paid",
        action="UPDATE",
        outcome=sent.outcome,
        actor_id=sent.actor_id,
        tenant_id=sent.tenant_id or "",
        target_type="order",
        target_id="1",
        status_code=sent.status,
        request_id=sent.request_id,
        trace_id=uuid.uuid4().hex,
        span_id="0" * 16,
        transaction_outcome="committed" if sent.kept else "rolled_back",
        producer_id="one",
        sequence_number=number,
        payload={"trace_sampled": True, "changes": changes if sent.kept else []},
        content_hash=b"",
    )
