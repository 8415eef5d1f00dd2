"""Small files that are replaced by several at once, and by some that die meanwhile."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from otel_audit._util import durable_file
from otel_audit._util.durable_file import replace_durably

OLD = time.time() - 2 * 3600


@pytest.fixture(autouse=True)
def _never_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable_file, "_swept", set())


class TestReplaceDurably:
    def test_two_with_one_process_id_do_not_meet(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Threads, and containers that share a volume: each write is whole, and none fails."""
        path, sync, seen = tmp_path / "checkpoint", os.fsync, []

        def other_comes_between(opened: int) -> None:
            monkeypatch.setattr("os.fsync", sync)
            replace_durably(path, b"theirs")
            seen.append(path.read_bytes())
            sync(opened)

        monkeypatch.setattr("os.fsync", other_comes_between)
        replace_durably(path, b"ours")
        assert (seen, path.read_bytes()) == ([b"theirs"], b"ours")
        assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]

    def test_what_a_killed_process_left_is_removed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Once it is old: a younger draft may belong to a process that is still writing."""
        path = tmp_path / "checkpoint"
        with monkeypatch.context() as killed:
            killed.setattr("pathlib.Path.replace", _killed)
            killed.setattr("pathlib.Path.unlink", _killed)
            for number in range(2):
                with pytest.raises(_KilledError):
                    replace_durably(path, b"%d" % number)
        older, younger = sorted(tmp_path.iterdir())
        os.utime(older, (OLD, OLD))
        (tmp_path / ".other.draft").touch()
        os.utime(tmp_path / ".other.draft", (OLD, OLD))
        durable_file._swept.clear()
        replace_durably(path, b"whole")
        assert {file.name for file in tmp_path.iterdir()} == {
            younger.name, "checkpoint", ".other.draft"
        }  # fmt: skip


class _KilledError(BaseException):
    """The process ends here."""


def _killed(*_: object) -> None:
    raise _KilledError
