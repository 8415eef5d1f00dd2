"""A spool that somebody has edited by hand: each record is delivered, counted, or left and named."""

from __future__ import annotations

import gzip
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from otel_audit._util.ids import uuid7
from otel_audit.delivery.deliver_recovered import batches_of
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.spool import FrameKind, Spool, adopt, inspect, open_spool
from otel_audit.delivery.spool.encryption import AesGcmEncryption

RECORDS = 25
FIRST, SECOND, LAST = (f"000000000{number}.frames" for number in (1, 2, 3))
KEY = AesGcmEncryption(bytes(range(32)))


def append(file: Path, data: bytes) -> None:
    file.write_bytes(file.read_bytes() + data)


def cut_out(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:1000] + data[2000:])


def swap(spool: Path) -> None:
    (spool / FIRST).rename(spool / "aside")
    (spool / SECOND).rename(spool / FIRST)
    (spool / "aside").rename(spool / SECOND)


def concatenate(spool: Path) -> None:
    append(spool / FIRST, (spool / SECOND).read_bytes())
    (spool / SECOND).unlink()


def link(spool: Path) -> None:
    (spool / FIRST).rename(spool.parent.parent / "elsewhere")
    (spool / FIRST).symlink_to(spool.parent.parent / "elsewhere")


def become_a_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def fill(file: Path, byte: bytes) -> None:
    file.write_bytes(byte * file.stat().st_size)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    for _ in range(20):
        data[random.Random(7).randrange(len(data))] ^= 0x40
    file.write_bytes(data)


EDITS: dict[str, Callable[[Path], object]] = {
    "first emptied": lambda spool: os.truncate(spool / FIRST, 0),
    "last emptied": lambda spool: os.truncate(spool / LAST, 0),
    "all emptied": lambda spool: [os.truncate(file, 0) for file in spool.iterdir()],
    "all frames removed": lambda spool: [file.unlink() for file in spool.glob("*.frames")],
    "zeros": lambda spool: fill(spool / SECOND, b"\0"),
    "ones": lambda spool: fill(spool / SECOND, b"\xff"),
    "flipped bits": lambda spool: flip(spool / SECOND),
    "renamed later": lambda spool: (spool / SECOND).rename(spool / "0000000009.frames"),
    "renamed to no number": lambda spool: (spool / SECOND).rename(spool / "old.frames"),
    "renamed to no segment": lambda spool: (spool / SECOND).rename(spool / f"{SECOND}.bak"),
    "copied": lambda spool: shutil.copy(spool / FIRST, spool / "0000000004.frames"),
    "swapped": swap,
    "concatenated": concatenate,
    "noise behind": lambda spool: append(spool / LAST, os.urandom(3000)),
    "zeros behind": lambda spool: os.truncate(spool / LAST, 50_000),
    "a part cut out": lambda spool: cut_out(spool / FIRST),
    "saved as text": lambda spool: (spool / FIRST).write_bytes(
        (spool / FIRST).read_bytes().decode("utf-8", "replace").encode()
    ),
    "compressed": lambda spool: (spool / FIRST).write_bytes(
        gzip.compress((spool / FIRST).read_bytes())
    ),
    "a link": link,
    "a second name": lambda spool: os.link(spool / FIRST, spool.parent.parent / "second"),
    "a directory": lambda spool: become_a_directory(spool / SECOND),
    "open to all": lambda spool: (spool / SECOND).chmod(0o666),
    "lock removed": lambda spool: (spool / "lock").unlink(),
    "lock emptied": lambda spool: os.truncate(spool / "lock", 0),
    "lock of noise": lambda spool: (spool / "lock").write_bytes(os.urandom(200)),
    "lock a directory": lambda spool: become_a_directory(spool / "lock"),
    "label removed": lambda spool: (spool / "spool.json").unlink(),
    "label of noise": lambda spool: (spool / "spool.json").write_bytes(os.urandom(200)),
    "label edited": lambda spool: (spool / "spool.json").write_text(
        (spool / "spool.json").read_text().replace("shop", "shoe")
    ),
    "label a directory": lambda spool: become_a_directory(spool / "spool.json"),
    "renamed": lambda spool: spool.rename(spool.with_name(uuid7())),
    "hidden": lambda spool: spool.rename(spool.with_name(".hidden")),
    "copied as a whole": lambda spool: shutil.copytree(spool, spool.with_name(uuid7())),
    "open to all as a whole": lambda spool: spool.chmod(0o777),
    "a file beside it": lambda spool: spool.with_name("notes.txt").write_text("mine"),
    "service garbage": lambda spool: spool.with_name("service").write_bytes(b"pohs"),
    "service a directory": lambda spool: become_a_directory(spool.with_name("service")),
    "quarantine a file": lambda spool: (
        spool.with_name(".quarantine").write_text("mine"),
        flip(spool / SECOND),
    ),
}


# of all of these 25 fill three segments
def close_at_once(spool: Spool, record_id: str) -> None:
    spool.append(FrameKind.CLOSED, record_id, b"x" * 350)


def answer_and_close(spool: Spool, record_id: str) -> None:
    spool.append(FrameKind.ANSWERED, record_id, b"x" * 20)
    spool.append(FrameKind.CLOSED, record_id, b"x" * 250)


def close_by_what_has_changed(spool: Spool, record_id: str) -> None:
    answered = spool.append(FrameKind.ANSWERED, record_id, b"x" * 200)
    if spool.end(record_id, b"y" * 100, answered) is None:
        close_at_once(spool, record_id)


@pytest.mark.parametrize("close", [close_at_once, answer_and_close, close_by_what_has_changed])
@pytest.mark.parametrize("encrypted", [False, True], ids=["clear", "encrypted"])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_each_record_is_delivered_counted_or_named(
    home: Path, caplog, edit, encrypted, close
) -> None:
    """Whatever was done, the next start works, and no record is gone without a word."""
    encryption = KEY if encrypted else None
    spool = open_spool(home, service="shop", segment_bytes=4096, encryption=encryption)
    ids = {uuid7() for _ in range(RECORDS)}
    for record_id in ids:
        close(spool, record_id)
    spool.sync()
    assert not spool.close()
    edit(spool.path)

    again = open_spool(home, service="shop", segment_bytes=4096, encryption=encryption)
    counters, delivered, interrupted = Counters(), set(), 0
    for adopted in adopt(home, "shop", encryption=encryption):
        for batch in batches_of(adopted, 10, counters):
            delivered |= {found.record_id for found in batch}
            interrupted += sum(not found.whole for found in batch)
        adopted.remove()
    again.close()
    missing = len(ids - delivered)
    assert delivered <= ids
    if missing > counters.dropped:
        # what was not delivered is still there, and somebody is told where and what to do
        problems = inspect(home, "shop", encryption=encryption).problems
        assert any(str(home) in problem for problem in problems), (missing, counters.dropped)
    if counters.dropped:
        assert "is damaged" in caplog.text
        # an action that is delivered as it was answered has lost its end
        assert counters.dropped <= max(missing + interrupted, 1)
    if missing:
        assert caplog.records
