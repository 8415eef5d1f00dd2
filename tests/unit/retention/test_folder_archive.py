"""An archive in a folder: what is said to be there survives a power loss."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from otel_audit_postgres.archive.objects import FolderArchive, digest_of


class TestFolderArchive:
    @pytest.mark.parametrize("is_there", [False, True])
    def test_an_objects_name_is_on_disk_when_it_is_put(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
    ) -> None:
        """Also where a process put it that was killed before it could sync the folders."""
        file, synced, sync = tmp_path / "rows", set[str](), os.fsync
        file.write_bytes(b"rows")
        archive = FolderArchive(tmp_path / "archive")
        if is_there:
            archive.put("2026/01/rows", file, digest_of(file), None)

        def note(opened: int) -> None:
            synced.add(str(Path(f"/proc/self/fd/{opened}").readlink()))
            sync(opened)

        monkeypatch.setattr("os.fsync", note)
        archive.put("2026/01/rows", file, digest_of(file), None)
        folder = tmp_path / "archive"
        assert {str(folder / "2026" / "01"), str(folder / "2026"), str(folder)} <= synced
        assert (folder / "2026" / "01" / "rows").read_bytes() == b"rows"
