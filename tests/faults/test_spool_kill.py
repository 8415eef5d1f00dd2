"""A process that appends under load is killed: nothing whose append had returned is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from otel_audit.delivery.spool import FrameKind, adopt

CHILD = """
import os, sys, threading
from pathlib import Path
from otel_audit._util.ids import uuid7
from otel_audit.delivery.spool import FrameKind, open_spool

spool = open_spool(Path(sys.argv[1]), service="shop", fsync=sys.argv[2], segment_bytes=1 << 16)
acknowledge = sys.argv[3] == "acknowledge"

def tell(kind, record_id, payload, append=None):
    # only after the append has returned; a line this short reaches the pipe whole
    position = (append or spool.append)(kind, record_id, payload)
    os.write(1, f"{int(kind)} {record_id}\\n".encode())
    return position

def work(number):
    text = b'{"n":"' + bytes([97 + number]) * (200 * number + 50) + b'"}'
    while True:
        record_id = uuid7()
        tell(FrameKind.OPENED, record_id, text)
        answered = tell(FrameKind.ANSWERED, record_id, text)

        def end(kind, record_id, payload):
            # as a producer does: all once more where the answered frame is in another segment
            position = spool.end(record_id, b"changed", answered) if number % 2 else None
            return position or spool.append(kind, record_id, payload)

        tell(FrameKind.CLOSED, record_id, text, end)

for number in range(4):
    threading.Thread(target=work, args=(number,), daemon=True).start()
after = 0
while True:
    spool.sync()
    if acknowledge:
        for item in spool.read(after):
            # the store would have it before it is acknowledged
            os.write(1, f"0 {item.record_id}\\n".encode())
            after = item.position
            spool.acknowledge([after])
"""


def run_and_kill(home: Path, fsync: str, mode: str, lines: int) -> dict[str, int]:
    """Kill a child under load; what it had appended or delivered: the last word on each action.

    Args:
        lines: How many reports to wait for: of appends, or of deliveries if it acknowledges.
    """
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(home), fsync, mode], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    told: list[bytes] = []
    while lines > 0:
        told.append(child.stdout.readline())
        lines -= mode == "keep" or told[-1].startswith(b"0 ")
    assert adopt(home, "shop") == []
    os.kill(child.pid, signal.SIGKILL)
    told += child.stdout.read().splitlines(keepends=True)
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    last: dict[str, int] = {}
    for line in told:
        kind, _, record_id = line.decode().rstrip("\n").partition(" ")
        if line.endswith(b"\n") and last.get(record_id) != 0:
            # a delivery may be told before the append it follows: it stays the last word
            last[record_id] = 0 if kind == "0" else max(int(kind), last.get(record_id, 1))
    return last


class TestSigkillUnderLoad:
    @pytest.mark.parametrize("fsync", ["never", "interval", "always"])
    def test_everything_appended_is_found(self, tmp_path, fsync):
        """Every action whose append returned is recovered, with its latest word or a later one."""
        lines = random.Random(fsync).randint(500, 2000)
        appended = run_and_kill(tmp_path, fsync, "keep", lines)
        assert len(appended) >= lines // 3
        [adopted] = adopt(tmp_path, "shop")
        records = list(adopted.records())
        found = {item.record_id: item.kind for item in records}
        missing = {one: kind for one, kind in appended.items() if found.get(one, 0) < kind}
        assert missing == {}
        # what was closed by what had changed comes with what was known before
        assert {item.payload[:6] for item in records} == {b'{"n":"'}
        assert {item.changed for item in records} == {None, b"changed"}
        # each of the four threads had one action under way that it may not have reported
        assert len(found) <= len(appended) + 4
        assert adopted.report.clean
        assert adopted.remove()
        assert list((tmp_path / "shop").iterdir()) == [tmp_path / "shop" / "service"]

    def test_what_was_not_delivered_is_found(self, tmp_path):
        """With a worker that delivers and frees segments, each action is delivered or recovered."""
        seen = run_and_kill(tmp_path, "interval", "acknowledge", 400)
        delivered = {record_id for record_id, kind in seen.items() if not kind}
        assert len(delivered) >= 400
        [adopted] = adopt(tmp_path, "shop")
        found = {item.record_id: item.kind for item in adopted.records()}
        for record_id, kind in seen.items():
            assert record_id in delivered or found.get(record_id, 0) >= kind
        # a delivered action never comes back as unfinished
        assert all(found.get(one, FrameKind.CLOSED) is FrameKind.CLOSED for one in delivered)
        assert adopted.report.clean
        assert adopted.remove()

    def test_many_dead_processes_are_adopted_at_once(self, tmp_path):
        """Four workers killed together leave four spools, each complete."""
        code = CHILD.replace(
            "while True:\n        record_id", "for _ in range(60):\n        record_id"
        )
        children = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path), "interval", "keep"],
                stdout=subprocess.PIPE,
            )
            for _ in range(4)
        ]
        appended: set[str] = set()
        for child in children:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(4 * 60 * 3)]
            child.kill()
            child.wait()
            child.stdout.close()
            appended |= {line.decode().split()[1] for line in lines}
        assert len(appended) == 4 * 4 * 60
        adopted = adopt(tmp_path, "shop")
        assert len(adopted) == 4
        found = [item for spool in adopted for item in spool.records()]
        assert {item.record_id for item in found} == appended
        assert len(found) == len(appended)
        assert {item.kind for item in found} == {FrameKind.CLOSED}
        assert all(spool.remove() for spool in adopted)
