"""Full disks and interrupted holds: a clear error, nothing dropped, and the next run goes on."""

from __future__ import annotations

import os
import subprocess
import tempfile

import pytest
from otel_audit_postgres.archive.objects import ArchiveError, FolderArchive
from otel_audit_postgres.retention.holds import HoldConditions, place_hold, release_hold

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="mounting a small file system needs root: run the tests as root"
)


@pytest.fixture
def full(tmp_path):
    """A disk on which next to nothing fits; `make_room` lets it grow."""
    point = tmp_path / "disk"
    point.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(point)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"this container may not mount: {done.stderr.strip()}")
    yield point
    subprocess.run(["umount", "-l", str(point)], check=True)


def make_room(point):
    subprocess.run(["mount", "-o", "remount,size=64m", str(point)], check=True)


@needs_root
class TestFullDisk:
    async def test_of_the_archive(self, months, full, connection):
        """Nothing is dropped and nothing half written is left; with room it goes on."""
        months.archive = FolderArchive(full / "archive")
        with pytest.raises(ArchiveError, match="cannot be written.*No space"):
            await months.retain()
        assert await connection.fetchval("SELECT count(*) FROM audit.ledger_prunings") == 0
        assert not [*full.rglob(".part-*")]
        make_room(full)
        assert len((await months.retain()).dropped) == 3
        await months.seal()
        assert (await months.check_all())[0].problems == ()

    async def test_of_temporary_files(self, months, full, connection, monkeypatch):
        """The error names the directory and the setting that gives another one."""
        monkeypatch.setattr(tempfile, "tempdir", str(full))
        with pytest.raises(ArchiveError, match="TMPDIR"):
            await months.retain()
        assert await connection.fetchval("SELECT count(*) FROM audit.ledger_prunings") == 0
        assert not [*full.iterdir()]
        make_room(full)
        assert len((await months.retain()).dropped) == 3


class Recording(FolderArchive):
    """A folder that knows legal holds, as S3 does, and can be cut off."""

    def __init__(self, folder):
        super().__init__(folder)
        self.held, self.left = set(), None

    def hold(self, key, *, on):
        if self.left is not None:
            if not self.left:
                raise ArchiveError("cut off")
            self.left -= 1
        (self.held.add if on else self.held.discard)(key)


@pytest.fixture
def archive(tmp_path):
    return Recording(tmp_path / "archive")


class TestHoldsOnObjects:
    async def test_that_were_cut_off_are_put_by_the_next_run(self, months, archive):
        """Placed in the database, and on the first object alone."""
        months.archive = archive
        await months.retain()
        await months.seal()
        archive.left = 1
        with pytest.raises(ArchiveError, match="cut off"):
            await place_hold(months.dsn, "case 7", "letter", HoldConditions(tenant="acme"), archive)
        assert len(archive.held) == 1
        archive.left = None
        done = await months.retain()
        assert archive.held == set(done.held)
        assert len(archive.held) == 2

    async def test_that_were_released_are_taken_off_by_the_next_run(self, months, archive):
        """All but those to which another hold applies."""
        months.archive = archive
        await months.retain()
        await months.seal()
        first, held = await place_hold(
            months.dsn, "case 7", "letter", HoldConditions(tenant="acme"), archive
        )
        _, kept = await place_hold(
            months.dsn, "case 8", "letter", HoldConditions(actor="ada", tenant="acme"), archive
        )
        assert (len(held), set(kept)) == (2, set(held))
        other, more = await place_hold(
            months.dsn, "case 9", "letter", HoldConditions(tenant="other"), archive
        )
        archive.left = 0
        with pytest.raises(ArchiveError):
            await release_hold(months.dsn, other, "settled", archive)
        assert set(more) <= archive.held
        archive.left = None
        await release_hold(months.dsn, first, "settled", archive)
        assert archive.held == {*held, *more}
        await months.retain()
        assert archive.held == set(held)

    async def test_that_no_archive_was_named_for_are_put_by_the_next_run(self, months, archive):
        """And on months that are archived only because a later one is."""
        months.archive = archive
        await place_hold(months.dsn, "case 7", "letter", HoldConditions(tenant="acme", actor="bob"))
        done = await months.retain()
        assert "2025-01" in done.blocked
        assert len(done.held) == 1
        assert archive.held == set(done.held)
