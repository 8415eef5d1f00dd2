"""The viewer while its store refuses it, goes away, and comes back."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import asyncpg
import httpx
import otel_audit_postgres
import pytest

from otel_audit.viewer import Viewer, create_app

pytestmark = pytest.mark.slow
PROGRAM = str(Path(sys.executable).with_name("otel-audit"))


@pytest.fixture
async def client(own_store):
    """A client of the viewer, as an auditor's, over a store that may be stopped."""
    connection = await asyncpg.connect(own_store.dsn)
    await connection.execute("CREATE ROLE looker LOGIN PASSWORD 'old'")
    await connection.close()
    await otel_audit_postgres.init(own_store.dsn, roles=True, viewer="looker")
    app = create_app(dsn=as_looker(own_store.dsn, "old"), authenticate=lambda _: Viewer("ada"))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://v", timeout=60) as made:
        yield made
    await app.state.site.close()


def as_looker(dsn: str, password: str) -> str:
    head, _, rest = dsn.partition("://")
    return f"{head}://looker:{password}@{rest.rpartition('@')[2]}"


async def test_a_store_that_goes_away_while_it_is_looked_at(client, own_store):
    """Each page says so and when to come back; once it is there again, all of them are."""
    pages = ("/", "/?q=actor:ada", "/actor?id=ada", "/entity?e=order:1", "/export", "/tail/events")
    assert (await client.get("/")).status_code == 200
    own_store.stop(signal.SIGINT)
    for page in pages:
        answer = await client.get(page)
        assert answer.status_code == 503, page
        assert "The audit store cannot answer now" in answer.text
        assert "Try again" in answer.text
        assert answer.headers["retry-after"]
        assert "Traceback" not in answer.text
    assert (await client.get("/help")).status_code == 200
    own_store.start()
    for page in ("/", "/?q=actor:ada", "/export"):
        assert (await client.get(page)).status_code == 200, page


async def test_a_password_that_is_refused(client, own_store):
    """At the start of the command, and on a page where it was changed meanwhile."""
    connection = await asyncpg.connect(own_store.dsn)
    rules = own_store.data / "pg_hba.conf"
    rules.write_text("local all looker scram-sha-256\n" + rules.read_text())
    await connection.execute("SELECT pg_reload_conf()")
    assert (await client.get("/")).status_code == 200
    await connection.execute("ALTER ROLE looker PASSWORD 'new'")
    await connection.execute(
        # until it has ended: it would answer once more
        "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE usename = 'looker'"
    )
    await connection.close()
    answer = await client.get("/")
    if answer.status_code == 503:  # the connection that was ended
        answer = await client.get("/")
    assert answer.status_code == 500
    assert "user or password" in answer.text, answer.text[-900:]
    assert "old" not in answer.text.partition("<main")[2].partition("</main>")[0]
    command = [PROGRAM, "web", "--port", "0", "--dsn", as_looker(own_store.dsn, "gu3ss")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "user or password" in done.stderr
    assert "gu3ss" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 4
