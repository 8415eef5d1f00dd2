"""`verify --jobs`: its processes see one moment, and none outlives it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from ledger_store import Log
from otel_audit_postgres.ledger.verify import row_pass

from otel_audit.errors import StoreError

PROGRAM = """
import sys
from otel_audit_postgres.ledger.verify import row_pass
from otel_audit.cli.main import cli

row_pass.LEAVES_AT_ONCE = 10
row_pass._depend_on = slow = __import__("verify_slowly").depend
if __name__ == "__main__":
    cli(["verify", "--jobs", "2"])
"""
SLOWLY = """
import os
import time
from pathlib import Path
from otel_audit_postgres.ledger.verify import row_pass

depend_on = row_pass._depend_on

def depend(lifeline):
    depend_on(lifeline)
    Path(__file__).with_name(f"begun-{os.getpid()}").touch()
    time.sleep(600)
"""


def alive(session: int) -> list[int]:
    """The processes of a session that live, without those that are only not yet buried."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def until(condition, seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.fixture
async def verifying(audit_store, tmp_path) -> Iterator[subprocess.Popen[str]]:
    """A verification whose processes read on and on."""
    log = Log(audit_store, tmp_path)
    for _ in range(4):
        await log.write(20)
        await log.seal()
    (tmp_path / "verify_slowly.py").write_text(SLOWLY)
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "program.py"],
        env={**os.environ, "OTEL_AUDIT_DSN": audit_store, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        # the command, multiprocessing's own, and two that read
        until(lambda: len(alive(process.pid)) >= 4 and len(list(tmp_path.glob("begun-*"))) == 2)
        yield process
    finally:
        for one in alive(process.pid):
            os.kill(one, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
class TestEnd:
    @pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
    def test_of_the_command_is_that_of_its_processes(self, verifying, how):
        """Told to stop, or killed: nothing is left that reads the store."""
        verifying.send_signal(how)
        verifying.wait(60)
        until(lambda: not alive(verifying.pid))

    def test_by_ctrl_c_is_one_line(self, verifying):
        """The terminal's SIGINT reaches all: one line, status 130, nothing left."""
        os.killpg(verifying.pid, signal.SIGINT)
        _, errors = verifying.communicate(timeout=60)
        assert (verifying.returncode, errors.strip().split("\n")) == (130, ["interrupted"])
        until(lambda: not alive(verifying.pid))


class TestLimits:
    async def test_of_idle_transactions_do_not_end_it(self, sealed, connection):
        """The role's and the server's limits are for others: 0.5 seconds of idleness are taken."""
        name = await connection.fetchval("SELECT current_database()")
        for limit in ("idle_in_transaction_session_timeout", "idle_session_timeout"):
            await connection.execute(f"ALTER DATABASE {name} SET {limit} = '500ms'")
        report = await sealed.verify(jobs=2)
        assert (report.ok, report.rows_checked) == (True, 23)

    async def test_a_snapshot_that_is_gone_is_said(self, sealed, monkeypatch):
        """Somebody ends the connection that holds it: one error of ours, with the right remedy."""

        async def end_all(dsn: str) -> None:
            other = await asyncpg.connect(dsn)
            await other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'otel-audit' AND datname = current_database()"
            )
            await other.close()

        exported = row_pass.ledger_queries.exported_snapshot

        async def export(one):
            found = await exported(one)
            await end_all(sealed.dsn)
            return found

        monkeypatch.setattr(row_pass.ledger_queries, "exported_snapshot", export)
        with pytest.raises(StoreError) as raised:
            await sealed.verify(jobs=2)
        assert "otel-audit init" not in str(raised.value)
        assert "cut off" in str(raised.value)
