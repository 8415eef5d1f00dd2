"""`otel-audit web` as a process: the link, who is let in, and what is refused at the start."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import asyncpg
import httpx
import preloaded
import pytest
from otel_audit_postgres import init

PROGRAM = str(Path(sys.executable).with_name("otel-audit"))


@pytest.fixture
async def viewer_dsn(postgres, audit_store) -> str:
    role = f"viewer_{uuid.uuid4().hex[:8]}"
    await postgres.execute(f"CREATE ROLE {role} LOGIN")
    await init(audit_store, roles=True, viewer=role)
    return postgres.dsn(audit_store.partition("?")[0].rpartition("/")[2], role)


def refused(*arguments: str) -> str:
    done = preloaded.run("web", *arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


class TestWeb:
    @pytest.mark.slow
    async def test_prints_a_link_that_works_once(self, viewer_dsn):
        """On loopback, on any free port; another host's name is refused; SIGTERM ends it."""
        command = [PROGRAM, "web", "--port", "0", "--dsn", viewer_dsn, "--name", "ada"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
            try:
                assert running.stdout is not None
                link = running.stdout.readline().strip()
                assert link.startswith("http://127.0.0.1:")
                with httpx.Client(follow_redirects=True, timeout=60) as client:
                    page = client.get(link)
                    assert page.status_code == 200
                    assert "Nothing is recorded yet" in page.text or "No record" in page.text
                    assert "server" not in page.headers
                    base = link.partition("/sign-in")[0]
                    assert client.get(base, headers={"host": "evil.example"}).status_code == 400
                assert httpx.get(link, follow_redirects=True, timeout=60).status_code == 401
                assert httpx.get(base, timeout=60).status_code == 401
            finally:
                running.send_signal(signal.SIGTERM)
                running.wait(60)

    @pytest.mark.slow
    async def test_a_store_that_does_not_fit_is_named_at_the_start(self, postgres, viewer_dsn):
        """No schema, another one, a role that may not read, one that sees all: one line each."""
        name = f"other_{uuid.uuid4().hex[:8]}"
        await postgres.execute(f"CREATE ROLE {name} LOGIN")
        await postgres.execute(f"CREATE DATABASE {name}")
        database = viewer_dsn.partition("?")[0].rpartition("/")[2]
        for dsn, more, says in (
            (postgres.dsn(name), (), "run `otel-audit init`"),
            (postgres.dsn(database, name), (), "otel-audit init --roles"),
            (postgres.dsn(database), ("--tenant", "acme"), "--viewer"),
            ("postgresql://no-one-here@127.0.0.1:1/x", ("--port", "99999"), "--port"),
        ):
            said = refused("--port", "0", "--dsn", dsn, *more)
            assert says in said, said
            assert len(said.strip().splitlines()) <= 4, said
        owner = await asyncpg.connect(postgres.dsn(database))
        try:
            await owner.execute("INSERT INTO audit.schema_version VALUES (999, 'of the future')")
        finally:
            await owner.close()
        assert "upgrade otel-audit" in refused("--port", "0", "--dsn", viewer_dsn)

    @pytest.mark.slow
    async def test_a_superuser_is_told_that_no_tenant_may_look(self, postgres, viewer_dsn):
        """An auditor sees all, as asked; one line says what else this role must not be used for."""
        database = viewer_dsn.partition("?")[0].rpartition("/")[2]
        command = [PROGRAM, "web", "--port", "0", "--dsn", postgres.dsn(database)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as running:
            try:
                assert running.stdout is not None
                assert running.stderr is not None
                link = running.stdout.readline().strip()
                assert "--viewer ROLE" in running.stderr.readline()
                assert httpx.get(link, follow_redirects=True, timeout=60).status_code == 200
            finally:
                running.send_signal(signal.SIGTERM)
                running.wait(60)

    @pytest.mark.parametrize("module", ["jinja2", "starlette", "uvicorn", "cryptography"])
    def test_a_missing_extra_is_named(self, module):
        """With the command that installs it."""
        program = (
            f"import sys; sys.modules[{module!r}] = None; sys.argv[0] = 'otel-audit'; "
            "from otel_audit.cli import main; main()"
        )
        command = [sys.executable, "-c", program, "web", "--dsn", "postgresql://x/y"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0
        assert "pip install 'otel-audit[viewer]'" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.slow
    async def test_a_port_that_is_taken_is_named(self, viewer_dsn):
        """By its number, with what to do."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            said = refused("--port", port, "--dsn", viewer_dsn)
        assert f"--port {port}" in said
        assert "--port 0" in said
        assert "Errno" not in said

    def test_other_machines_need_another_way_in(self):
        """A link that works once is for this machine."""
        assert "--auth" in refused("--host", "0.0.0.0", "--dsn", "postgresql://x/y")

    def test_mistakes_are_named(self):
        """The option, and what is expected."""
        assert "module:name" in refused("--auth", "os", "--dsn", "postgresql://x/y")
        assert "not both" in refused("--auth", "a:b", "--auth-header", "x")
        assert "needs tenants" in refused("--role", "tenant", "--dsn", "postgresql://x/y")
        assert "no-such-net" in refused(
            "--auth-header", "x-user", "--proxy", "no-such-net", "--dsn", "postgresql://x/y"
        )
