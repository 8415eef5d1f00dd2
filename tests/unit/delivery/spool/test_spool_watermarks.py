"""What is gone from a spool is missed: emptied, zeroed, cut short or removed is not called torn."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from otel_audit._util.ids import uuid7
from otel_audit.cli.main import cli
from otel_audit.delivery.deliver_recovered import batches_of
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.spool import FrameKind, adopt, inspect, open_spool
from otel_audit.delivery.spool.damaged import damaged_files

SEGMENT = 4096


def leave(home: Path, records: int, *, acknowledged: int = 0) -> Path:
    """Leave a spool of closed records, about ten in a segment."""
    spool = open_spool(home, service="shop", segment_bytes=SEGMENT)
    positions = [spool.append(FrameKind.CLOSED, uuid7(), b"x" * 350) for _ in range(records)]
    spool.sync()
    spool.acknowledge(positions[:acknowledged])
    spool.close()
    return spool.path


def lost(home: Path, delivered: list[str] | None = None) -> int:
    """Adopt what was left, deliver what can be read, and tell how many were counted as lost."""
    counters = Counters()
    [adopted] = adopt(home, "shop")
    for batch in batches_of(adopted, 512, counters):
        if delivered is not None:
            delivered += [found.record_id for found in batch]
    adopted.remove()
    return counters.dropped


def zero(file: Path, start: int = 0) -> None:
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.seek(start)
        opened.write(bytes(size - start))


SPOILS: dict[str, Callable[[Path], None]] = {
    "emptied": lambda file: os.truncate(file, 0),
    "zeroed": zero,
    "zeroed, and longer": lambda file: (zero(file), os.truncate(file, 9000))[0],
    "removed": lambda file: file.unlink(),
    "noise": lambda file: file.write_bytes(os.urandom(file.stat().st_size)),
    "of another": lambda file: file.write_bytes(b"nothing of ours\n" * 100),
}


class TestMissing:
    @pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
    @pytest.mark.parametrize("which", ["first", "last"])
    def test_each_record_of_a_segment_counts(self, home, caplog, spoil, which) -> None:
        """However a segment is spoilt, what is delivered and what is counted as lost are all."""
        path = leave(home, 25)
        files = sorted(path.glob("*.frames"))
        assert len(files) == 3
        spoil(files[0] if which == "first" else files[-1])
        delivered: list[str] = []
        dropped = lost(home, delivered)
        assert len(delivered) < 25
        assert len(delivered) + dropped == 25
        assert f"{dropped} records there are lost" in caplog.text
        assert any(entry.levelno == logging.CRITICAL for entry in caplog.records)

    def test_a_hole_at_the_end_of_a_file_counts(self, home) -> None:
        """Zeros from the middle of a noted file to its end are no torn tail."""
        file = leave(home, 8) / "0000000001.frames"
        zero(file, start=file.stat().st_size // 2)
        delivered: list[str] = []
        assert lost(home, delivered) == 8 - len(delivered) == 4

    def test_all_of_it_emptied_counts(self, home) -> None:
        """Segment and label emptied: the notes in the lock's file tell."""
        path = leave(home, 8)
        for name in ("0000000001.frames", "spool.json"):
            os.truncate(path / name, 0)
        assert lost(home) == 8

    def test_everything_emptied_is_said(self, home, caplog) -> None:
        """Where the notes are gone, too, nobody knows how many; that something is, is counted."""
        path = leave(home, 8)
        for name in ("0000000001.frames", "spool.json", "lock"):
            os.truncate(path / name, 0)
        assert lost(home) == 1
        assert "its spool.json is damaged" in caplog.text

    def test_notes_of_zeros_are_said(self, home, caplog) -> None:
        """A lock's file full of zeros costs nothing but a line, where all frames are there."""
        path = leave(home, 8)
        zero(path / "lock")
        delivered: list[str] = []
        assert lost(home, delivered) == 0
        assert len(delivered) == 8
        assert "damaged notes" in caplog.text

    def test_what_was_stored_is_not_missed(self, home) -> None:
        """An acknowledged record that is gone is no loss."""
        path = leave(home, 8, acknowledged=5)
        os.truncate(path / "0000000001.frames", 0)
        assert lost(home) == 3

    def test_a_spool_without_notes_is_as_before(self, home) -> None:
        """An earlier version's, whose lock is empty and whose label promises nothing."""
        path = leave(home, 8)
        os.truncate(path / "lock", 0)
        label = path / "spool.json"
        label.unlink()
        os.truncate(path / "0000000001.frames", 0)
        assert lost(home) == 0

    def test_a_removal_that_was_cut_off_alarms_nobody(self, home, monkeypatch) -> None:
        """An adopter that dies while it removes what it has delivered leaves no false alarm."""
        path = leave(home, 25)
        [adopted] = adopt(home, "shop")
        assert len(list(adopted.records())) == 25
        unlink = os.unlink

        def dies(name: str, **options: int) -> None:
            if name == "0000000002.frames":
                raise OSError(5, "gone")
            unlink(name, **options)

        with monkeypatch.context() as patched:
            patched.setattr(os, "unlink", dies)
            assert not adopted.remove()
        assert not (path / "0000000001.frames").exists()
        assert lost(home) == 0

    def test_freed_segments_are_not_missed(self, home) -> None:
        """What was acknowledged and freed before the end is nobody's loss."""
        path = leave(home, 95, acknowledged=60)
        assert not (path / "0000000001.frames").exists()
        delivered: list[str] = []
        assert lost(home, delivered) == 0
        assert len(delivered) >= 35


class TestKept:
    def test_the_damaged_file_is_kept_and_named(self, home) -> None:
        """Its bytes are in the quarantine, `inspect` names it, and the other files are gone."""
        path = leave(home, 25)
        second = path / "0000000002.frames"
        content = bytearray(second.read_bytes())
        content[100] ^= 1
        second.write_bytes(content)
        assert lost(home) == 1
        [kept] = damaged_files(home, "shop")
        assert kept.read_bytes() == content
        assert not path.exists()
        told = CliRunner().invoke(cli, ["quarantine", "--spool-dir", str(home)], env={})
        assert f"{kept}: damaged spool file" in told.output.replace("\n", "")
        assert any(str(kept.parent) in problem for problem in inspect(home, "shop").problems)

    def test_a_living_spool_keeps_it_too(self, home) -> None:
        """What cannot be read back is counted, and its file is kept when it is freed."""
        spool = open_spool(home, service="shop", segment_bytes=SEGMENT)
        for _ in range(25):
            spool.append(FrameKind.CLOSED, uuid7(), b"x" * 350)
        zero(spool.path / "0000000001.frames")
        found = list(spool.read())
        assert len(found) + spool.damaged == 25
        spool.acknowledge([one.position for one in found])
        assert spool.close()
        assert len(damaged_files(home, "shop")) == 1
