"""Keys that wait on this host for the key database."""

from __future__ import annotations

import json
import os
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from otel_audit_postgres.personal.pending_keys import PendingKey, PendingKeys

from otel_audit._util import ratelimited_log


@pytest.fixture(autouse=True)
def _unlimited() -> None:
    ratelimited_log.forget()


def a_key() -> PendingKey:
    return PendingKey(
        secrets.token_bytes(8), secrets.token_bytes(32), secrets.token_bytes(60), datetime.now(UTC)
    )


def names(directory: Path) -> set[str]:
    return {file.name for file in directory.iterdir()}


def make_old(file: Path) -> None:
    """As if it was last changed two minutes ago."""
    then = time.time() - 120
    os.utime(file, (then, then))


class TestPendingKeys:
    def test_what_is_added_waits_until_it_is_discarded(self, tmp_path: Path) -> None:
        """Also for another process, in files that nobody else may read."""
        keys, made = PendingKeys(tmp_path / "keys"), [a_key(), a_key()]
        for key in made:
            keys.add(key)
        assert {file.stat().st_mode & 0o777 for file in (tmp_path / "keys").iterdir()} == {0o600}
        waiting = list(PendingKeys(tmp_path / "keys").waiting())
        assert sorted(waiting, key=str) == sorted(made, key=str)
        keys.discard(made[0])
        keys.discard(made[0])
        assert list(keys.waiting()) == [made[1]]

    def test_nobody_meets_a_part_of_a_key(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever looks while one is written sees none; so does who looks after a kill there."""
        seen: list[list[PendingKey]] = []
        monkeypatch.setattr(
            "os.fsync", lambda _: seen.append(list(PendingKeys(tmp_path).waiting()))
        )
        PendingKeys(tmp_path).add(key := a_key())
        assert seen == [[], [key]]

    def test_one_that_another_process_hands_in_is_passed_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is gone between the look at the directory and the look at the file."""
        keys = PendingKeys(tmp_path)
        keys.add(key := a_key())
        gone = tmp_path / f"{'00' * 8}.key"
        monkeypatch.setattr("pathlib.Path.glob", lambda *_: [gone, *tmp_path.iterdir()])
        assert list(keys.waiting()) == [key]

    @pytest.mark.allow_errors
    @pytest.mark.parametrize(
        "damage",
        [b"", b"\0" * 400, b"\xff", b"[]", b"{}", "half", "other id", "no zone", "subject", "type"],
    )
    def test_a_damaged_file_is_set_aside_and_named(
        self, tmp_path: Path, damage: bytes | str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As an earlier version, or a disk, can leave it: the others go on, and nothing is lost."""
        keys, whole, hit = PendingKeys(tmp_path), a_key(), a_key()
        keys.add(whole)
        keys.add(hit)
        file = tmp_path / f"{hit.key_id.hex()}.key"
        text = file.read_text()
        changed = {
            "half": text[: len(text) // 2],
            "other id": text.replace(hit.key_id.hex(), "00" * 8),
            "no zone": text.replace("+00:00", ""),
            "subject": text.replace(hit.subject.hex(), "00"),
            "type": json.dumps(json.loads(text) | {"wrapped": 7}),
        }
        found = changed[damage].encode() if isinstance(damage, str) else damage
        file.write_bytes(found)
        make_old(file)
        assert list(keys.waiting()) == [whole]
        assert str(file) in caplog.text
        assert file.with_name(f"{file.name}.damaged").read_bytes() == found
        assert list(keys.waiting()) == [whole]

    def test_one_that_is_just_being_written_stays(self, tmp_path: Path) -> None:
        """Earlier versions write in place: what is half there now is whole a moment later."""
        keys, key = PendingKeys(tmp_path), a_key()
        keys.add(key)
        file = tmp_path / f"{key.key_id.hex()}.key"
        text = file.read_text()
        for part in ("", text[: len(text) // 2]):
            file.write_text(part)
            assert not list(keys.waiting())
            assert names(tmp_path) == {file.name}
        file.write_text(text)
        assert list(keys.waiting()) == [key]

    @pytest.mark.allow_errors
    def test_one_that_cannot_be_read_now_stays(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It may be whole: it is named, holds up no other, and is tried again."""
        keys, whole = PendingKeys(tmp_path), a_key()
        keys.add(whole)
        (tmp_path / "0000.key").mkdir()
        assert list(keys.waiting()) == [whole]
        assert str(tmp_path / "0000.key") in caplog.text
        assert names(tmp_path) == {"0000.key", f"{whole.key_id.hex()}.key"}

    @pytest.mark.allow_errors
    def test_one_that_cannot_be_removed_or_renamed_holds_up_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A directory that became read-only: the database is given the key again, without harm."""
        keys, whole = PendingKeys(tmp_path), a_key()
        keys.add(whole)
        (tmp_path / "0000.key").touch()
        make_old(tmp_path / "0000.key")

        def refused(self: Path, *_: object, **__: object) -> None:
            raise PermissionError(self)

        monkeypatch.setattr("pathlib.Path.unlink", refused)
        monkeypatch.setattr("pathlib.Path.rename", refused)
        keys.discard(whole)
        assert list(keys.waiting()) == [whole]
        assert "cannot be removed" in caplog.text
        assert "cannot be renamed" in caplog.text
