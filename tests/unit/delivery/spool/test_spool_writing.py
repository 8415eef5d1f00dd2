"""The spool of a living process: appending, reading, acknowledging, bounds."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import threading
import time
from collections import deque
from pathlib import Path

import pytest

from otel_audit._util.ids import uuid7
from otel_audit.delivery.spool import (
    START,
    FrameKind,
    Spool,
    SpoolClosedError,
    SpoolForkedError,
    SpoolFullError,
    SpoolReadError,
    SpoolWriteError,
    adopt,
    open_spool,
    reopen,
)
from otel_audit.delivery.spool import log as module
from otel_audit.delivery.spool.directory import segment_name
from otel_audit.delivery.spool.ownership import OwnDirectory
from otel_audit.errors import ConfigurationError

SEGMENT = 4096
PAYLOAD = b'{"n":"' + b"x" * 900 + b'"}'


@pytest.fixture
def spool(home: Path):
    opened = open_spool(home, service="shop", segment_bytes=SEGMENT)
    yield opened
    opened.close()


def segments(spool: Spool) -> list[str]:
    return sorted(path.name for path in spool.path.glob("*.frames"))


def close_one(spool: Spool, payload: bytes = PAYLOAD) -> int:
    return spool.append(FrameKind.CLOSED, uuid7(), payload)


def do_one(spool: Spool, payload: bytes = PAYLOAD) -> int:
    action = uuid7()
    spool.append(FrameKind.OPENED, action, b"o")
    return spool.append(FrameKind.CLOSED, action, payload)


class TestAppend:
    def test_gives_closed_records_back_in_order(self, spool):
        """The worker reads each closed action once, as it was appended, and no other frame."""
        expected = []
        for number in range(20):
            record_id = uuid7()
            spool.append(FrameKind.OPENED, record_id, b"opened")
            spool.append(FrameKind.ANSWERED, record_id, b"answered")
            position = spool.append(FrameKind.CLOSED, record_id, b"%d" % number)
            expected.append((position, record_id, b"%d" % number, None))
        assert list(spool.read()) == expected
        assert spool.pending == 20
        assert spool.open_actions == 0

    def test_reads_on_from_a_position(self, spool):
        """Whoever remembers the last position gets only what came after it."""
        positions = [close_one(spool) for _ in range(12)]
        assert [item.position for item in spool.read(positions[6])] == positions[7:]
        assert list(spool.read(positions[-1])) == []
        later = close_one(spool)
        assert [item.position for item in spool.read(positions[-1])] == [later]

    def test_positions_grow_and_compare_with_what_was_appended(self, spool):
        """A position is reached when as much was appended, and synced when as much was synced."""
        assert spool.appended == START
        first, second = close_one(spool), close_one(spool)
        assert START < first < second == spool.appended
        assert spool.synced == START
        assert spool.sync() == second == spool.synced

    def test_takes_frames_from_many_threads(self, home):
        """Threads do not mix their frames, and none is lost."""
        spool = open_spool(home, service="shop", segment_bytes=1 << 16)
        given: dict[str, bytes] = {}

        def work(number: int) -> None:
            for count in range(150):
                record_id = uuid7()
                given[record_id] = b"%d-%d" % (number, count) * 40
                spool.append(FrameKind.OPENED, record_id, b"o")
                spool.append(FrameKind.CLOSED, record_id, given[record_id])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            spool.sync()
            spool.acknowledge([])
        for thread in threads:
            thread.join()
        found = list(spool.read())
        assert {item.record_id: item.payload for item in found} == given
        assert len(found) == len(given)
        spool.acknowledge(item.position for item in found)
        assert spool.close()

    def test_a_payload_larger_than_a_segment_gets_its_own(self, spool):
        """The size of a segment bounds no payload."""
        close_one(spool)
        big = close_one(spool, b"y" * (3 * SEGMENT))
        close_one(spool)
        assert [len(item.payload) for item in spool.read() if item.position == big] == [3 * SEGMENT]
        assert len(segments(spool)) == 3

    def test_refuses_what_cannot_be_a_frame(self, spool):
        """A wrong record id and an endless payload are refused, and nothing is written."""
        with pytest.raises(ValueError, match="UUID"):
            spool.append(FrameKind.OPENED, "0123", b"")
        with pytest.raises(ValueError, match="bytes is over"):
            spool.append(FrameKind.OPENED, uuid7(), bytes(16 * 1024 * 1024 + 1))
        assert spool.appended == START

    def test_a_closed_spool_takes_nothing(self, home):
        """After its end it refuses, and closing twice is harmless."""
        spool = open_spool(home, service="shop")
        assert spool.close()
        assert spool.close()
        with pytest.raises(SpoolClosedError):
            close_one(spool)
        assert spool.sync() == START

    def test_a_closed_spool_gives_nothing(self, home):
        """What it left is its adopter's, and counts as no damage when the adopter removed it."""
        spool = open_spool(home, service="shop")
        close_one(spool)
        assert not spool.close()
        [adopted] = adopt(home, "shop")
        assert adopted.remove()
        assert list(spool.read()) == []
        assert spool.damaged == 0


class TestFiles:
    def test_are_private(self, home):
        """Nobody else may look into the directory or a file, whatever the umask."""
        before = os.umask(0)
        try:
            spool = open_spool(home, service="shop", segment_bytes=SEGMENT)
            for _ in range(8):
                close_one(spool)
        finally:
            os.umask(before)
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in home.rglob("*")}
        assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
        assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
        assert stat.S_IMODE(home.stat().st_mode) == 0o700

    def test_are_rotated(self, spool):
        """A full segment is followed by the next one, and none is longer than it may be."""
        for _ in range(20):
            close_one(spool)
        assert segments(spool) == [f"{number:010d}.frames" for number in range(1, 6)]
        assert all(path.stat().st_size <= SEGMENT for path in spool.path.glob("*.frames"))
        assert spool.bytes_used == sum(p.stat().st_size for p in spool.path.glob("*.frames"))

    def test_are_removed_when_everything_is_delivered(self, home):
        """An orderly end with nothing left leaves nothing."""
        spool = open_spool(home, service="shop")
        position = close_one(spool)
        spool.acknowledge([position])
        assert spool.close()
        assert not spool.path.exists()
        assert list(spool.path.parent.iterdir()) == [spool.path.parent / "service"]

    @pytest.mark.parametrize("kind", [FrameKind.OPENED, FrameKind.ANSWERED, FrameKind.CLOSED])
    def test_stay_when_something_is_left(self, home, kind):
        """An orderly end with an undelivered or unfinished action leaves it for adoption."""
        spool = open_spool(home, service="shop")
        spool.append(kind, uuid7(), b"left")
        assert not spool.close()
        [adopted] = adopt(home, "shop")
        assert [(item.kind, item.payload) for item in adopted.records()] == [(kind, b"left")]
        assert adopted.remove()

    def test_that_somebody_deletes_are_missed(self, home, monkeypatch):
        """When the directory is swept away under it, the spool says so rather than write to nowhere."""
        monkeypatch.setattr(module, "_LOOK_AROUND_SECONDS", 0.0)
        spool = open_spool(home, service="shop")
        close_one(spool)
        for path in spool.path.iterdir():
            path.unlink()
        spool.path.rmdir()
        with pytest.raises(SpoolWriteError, match="were removed"):
            spool.sync()
        with pytest.raises(SpoolWriteError) as caught:
            close_one(spool)
        assert caught.value.errno == errno.ENOENT
        assert list(spool.read()) == []
        assert spool.damaged == 1


class TestAcknowledge:
    def test_frees_full_segments(self, spool):
        """A segment goes when all its records are acknowledged; the one being written stays."""
        positions = [close_one(spool) for _ in range(20)]
        spool.acknowledge(positions[:3])
        assert len(segments(spool)) == 5
        spool.acknowledge(positions[3:4])
        assert len(segments(spool)) == 4
        spool.acknowledge(positions[4:])
        assert segments(spool) == ["0000000005.frames"]
        assert spool.pending == 0

    def test_in_any_order_and_twice(self, spool):
        """Order does not matter, and saying it twice frees nothing that is needed."""
        positions = [close_one(spool) for _ in range(20)]
        for position in reversed(positions[1:]):
            spool.acknowledge([position, position])
        assert len(segments(spool)) == 5
        assert [item.position for item in spool.read()] == positions[:1]
        spool.acknowledge(positions)
        assert len(segments(spool)) == 1

    def test_an_open_action_keeps_its_frame(self, home):
        """A segment with an action under way stays while there is room, and goes after its end."""
        spool = open_spool(home, service="shop", segment_bytes=SEGMENT)
        action = uuid7()
        spool.append(FrameKind.OPENED, action, PAYLOAD)
        spool.acknowledge([close_one(spool) for _ in range(6)])
        assert segments(spool)[0] == "0000000001.frames"
        last = spool.append(FrameKind.CLOSED, action, PAYLOAD)
        spool.acknowledge([])
        assert segments(spool)[0] == "0000000001.frames"
        spool.acknowledge([last])
        assert segments(spool) == ["0000000002.frames"]
        assert spool.close()

    def test_a_discarded_action_keeps_nothing(self, home):
        """What shall not be recorded after all keeps no segment and is not adopted."""
        spool = open_spool(home, service="shop", segment_bytes=SEGMENT)
        for _ in range(20):
            action = uuid7()
            spool.append(FrameKind.OPENED, action, PAYLOAD)
            spool.append(FrameKind.DISCARDED, action, b"")
        spool.acknowledge([])
        assert len(segments(spool)) == 1
        assert spool.open_actions == 0
        assert spool.close()

    def test_sync_frees_too(self, home, monkeypatch):
        """A process whose actions are all discarded does not fill its spool."""
        monkeypatch.setattr(module, "_LOOK_AROUND_SECONDS", 0.0)
        spool = open_spool(home, service="shop", segment_bytes=SEGMENT, max_bytes=4 * SEGMENT)
        for _ in range(100):
            action = uuid7()
            spool.append(FrameKind.OPENED, action, PAYLOAD)
            spool.append(FrameKind.DISCARDED, action, b"")
            spool.sync()
        assert len(segments(spool)) <= 2
        assert spool.close()

    @pytest.mark.parametrize("fsync", ["never", "interval"])
    def test_a_long_action_does_not_keep_old_segments_for_ever(self, home, fsync):
        """A websocket of a day is copied forward, found by an adopter, and delivered at its end."""
        spool = open_spool(
            home, service="shop", segment_bytes=SEGMENT, max_bytes=8 * SEGMENT, fsync=fsync
        )
        action = uuid7()
        spool.append(FrameKind.OPENED, action, b"opened")
        spool.append(FrameKind.ANSWERED, action, b"answered")
        for _ in range(400):
            spool.acknowledge([close_one(spool)])
            assert spool.bytes_used <= 4 * SEGMENT
        assert "0000000001.frames" not in segments(spool)
        assert spool.open_actions == 1
        last = spool.append(FrameKind.CLOSED, action, b"closed")
        assert [item.payload for item in spool.read()] == [b"closed"]
        spool.acknowledge([last])
        assert spool.close()

    def test_a_carried_action_is_found_by_an_adopter(self, home):
        """The copy is as good as the frame it was made from."""
        spool = open_spool(home, service="shop", segment_bytes=SEGMENT)
        action = uuid7()
        spool.append(FrameKind.OPENED, action, b"opened")
        spool.append(FrameKind.ANSWERED, action, b"answered")
        for _ in range(100):
            spool.acknowledge([close_one(spool)])
        assert not spool.close()
        [adopted] = adopt(home, "shop")
        found = {item.record_id: item for item in adopted.records()}
        assert found[action].kind is FrameKind.ANSWERED
        assert found[action].payload == b"answered"
        assert adopted.report.clean
        assert adopted.remove()

    def test_a_copy_is_on_disk_before_its_original_goes(self, home):
        """A power loss after the removal finds the copy, unless syncing is turned off."""
        spool = open_spool(home, service="shop", segment_bytes=SEGMENT, fsync="always")
        spool.append(FrameKind.OPENED, uuid7(), PAYLOAD)
        spool.sync()
        while "0000000001.frames" in segments(spool):
            assert spool.synced < 2 * SEGMENT
            spool.acknowledge([close_one(spool)])
        assert spool.synced == spool.appended
        spool.close()

    def test_freeing_while_looking_around_frees_nothing_twice(self, home, monkeypatch):
        """When a copy must be synced and it is time to look around, only spent segments go."""
        monkeypatch.setattr(module, "_LOOK_AROUND_SECONDS", 0.0)
        spool = open_spool(home, service="shop", segment_bytes=SEGMENT)
        waiting: set[int] = set()
        for number in range(300):
            if number % 7 == 0:
                spool.append(FrameKind.OPENED, uuid7(), b"long")
            waiting.add(close_one(spool))
            if len(waiting) > 5:
                oldest = min(waiting)
                waiting.discard(oldest)
                spool.acknowledge([oldest])
            assert {item.position for item in spool.read()} == waiting
        assert spool.damaged == 0
        assert not spool.close()
        [adopted] = adopt(home, "shop")
        assert sum(item.payload == b"long" for item in adopted.records()) == 43
        assert adopted.remove()

    def test_many_long_actions_are_not_copied_for_ever(self, home):
        """Copying never writes more than twice what is appended, however many actions are open."""
        spool = open_spool(home, service="shop", segment_bytes=SEGMENT, max_bytes=256 * SEGMENT)
        for _ in range(100):
            spool.append(FrameKind.OPENED, uuid7(), PAYLOAD)
        opened = spool.appended
        appended = 0
        for _ in range(1000):
            spool.acknowledge([close_one(spool)])
            appended += len(PAYLOAD) + 44
        assert spool.appended - opened <= 2.2 * appended
        assert spool.bytes_used <= 3 * opened + 4 * SEGMENT
        assert spool.open_actions == 100

    def test_refuses_a_position_that_nobody_gave(self, spool):
        """A position that is not that of a closed record is a mistake."""
        close_one(spool)
        with pytest.raises(ValueError, match="closed frame"):
            spool.acknowledge([spool.appended + 1])
        assert spool.pending == 1


class TestLookingAround:
    def test_that_fails_is_an_error_of_the_spool_and_not_the_last_sync(self, spool, monkeypatch):
        """A directory that cannot be looked at for a moment: an error in our words, then it goes on."""
        close_one(spool)
        spool._looked_around -= 2.0

        def forbidden(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        with monkeypatch.context() as locked:
            locked.setattr(OwnDirectory, "look", forbidden)
            with pytest.raises(SpoolWriteError, match="cannot be looked at"):
                spool.sync()
        assert spool.sync() == spool.appended


class TestBounds:
    def test_bytes(self, home):
        """At its bound it refuses what begins, lets end what is under way, and never exceeds it."""
        bound = 4 * SEGMENT
        spool = open_spool(home, service="shop", segment_bytes=SEGMENT, max_bytes=bound)
        under_way = [uuid7() for _ in range(3)]
        for action in under_way:
            spool.append(FrameKind.OPENED, action, b"o")
        positions = []
        with pytest.raises(SpoolFullError, match=r"of this service together.*SPOOL_MAX_BYTES"):
            positions.extend(do_one(spool) for _ in range(99))
        positions += [spool.append(FrameKind.CLOSED, action, PAYLOAD) for action in under_way]
        assert bound - 2 * SEGMENT < spool.bytes_used <= bound
        spool.acknowledge(positions)
        assert do_one(spool)

    @pytest.mark.parametrize("apart", [True, False])
    def test_leave_other_destinations_out_where_these_are_other_applications(self, home, apart):
        """A full spool that nobody here may adopt does not refuse what comes, or it would for ever."""
        settings = {
            "service": "unknown_service",
            "segment_bytes": SEGMENT,
            "max_bytes": 4 * SEGMENT,
        }
        left = open_spool(home, **settings, destination="a" * 16)
        with pytest.raises(SpoolFullError):
            deque(close_one(left) for _ in range(99))
        left.close()
        spool = open_spool(home, **settings, destination="b" * 16, apart=apart)
        if apart:
            assert do_one(spool)
        else:
            with pytest.raises(SpoolFullError):
                do_one(spool)

    def test_let_in_what_is_over_and_was_not_opened(self, home):
        """What is worth a record only because of its answer is kept while there is room at all."""
        spool = open_spool(home, service="shop", segment_bytes=SEGMENT, max_bytes=4 * SEGMENT)
        with pytest.raises(SpoolFullError):
            deque(spool.append(FrameKind.OPENED, uuid7(), PAYLOAD) for _ in range(99))
        before = spool.bytes_used
        with pytest.raises(SpoolFullError):
            deque(close_one(spool) for _ in range(99))
        assert before + SEGMENT / 2 < spool.bytes_used <= 4 * SEGMENT

    def test_are_hard_for_what_is_under_way_too(self, home):
        """The room kept for actions under way is bounded as well."""
        spool = open_spool(home, service="shop", segment_bytes=SEGMENT, max_bytes=4 * SEGMENT)
        action = uuid7()
        spool.append(FrameKind.OPENED, action, b"o")
        with pytest.raises(SpoolFullError):
            deque(spool.append(FrameKind.ANSWERED, action, PAYLOAD) for _ in range(99))
        assert 3 * SEGMENT < spool.bytes_used <= 4 * SEGMENT

    def test_count_the_other_spools_of_the_service(self, home):
        """What dead processes left counts, and counts no more when it was delivered."""
        dead = open_spool(home, service="shop", segment_bytes=SEGMENT)
        close_one(dead, b"d" * (3 * SEGMENT))
        dead.close()
        spool = open_spool(home, service="shop", segment_bytes=SEGMENT, max_bytes=5 * SEGMENT)
        assert spool.bytes_used + spool._quota.others == 3 * SEGMENT + 44
        with pytest.raises(SpoolFullError):
            spool.append(FrameKind.OPENED, uuid7(), b"x" * SEGMENT)
        [adopted] = adopt(home, "shop")
        assert adopted.remove()
        spool._quota._counted -= 2.0
        assert do_one(spool, b"x" * SEGMENT)

    def test_age(self, home):
        """Nothing begins while a record waits longer than it may; what is under way ends."""
        spool = open_spool(home, service="shop", max_age=0.5)
        action = uuid7()
        spool.append(FrameKind.OPENED, action, b"o")
        waiting = close_one(spool)
        time.sleep(0.51)
        assert spool.oldest_age > 0.5
        with pytest.raises(SpoolFullError, match="OTEL_AUDIT_SPOOL_MAX_AGE"):
            do_one(spool)
        over = [close_one(spool), spool.append(FrameKind.CLOSED, action, b"c")]
        spool.acknowledge([waiting, *over])
        assert spool.oldest_age == 0.0
        assert do_one(spool)

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"max_bytes": 3 * SEGMENT, "segment_bytes": SEGMENT}, "MAX_BYTES"),
            ({"max_bytes": -1}, "MAX_BYTES"),
            ({"segment_bytes": 100}, "SEGMENT_BYTES"),
            ({"segment_bytes": 1 << 40, "max_bytes": 1 << 50}, "SEGMENT_BYTES"),
            ({"max_age": 0}, "MAX_AGE"),
            ({"fsync": "sometimes"}, "FSYNC"),
        ],
    )
    def test_that_are_impossible_are_refused_at_the_start(self, home, settings, named):
        """An impossible bound stops the start, names its setting, and leaves no directory."""
        with pytest.raises(ConfigurationError, match=f"OTEL_AUDIT_SPOOL_{named}"):
            open_spool(home, service="shop", **settings)
        assert not home.exists()


class TestDamageOnDisk:
    def test_a_record_that_cannot_be_read_back_is_counted(self, spool, caplog):
        """The others are read, the damaged one is counted, logged, and does not hold up its file."""
        positions = [close_one(spool) for _ in range(5)]
        first = spool.path / "0000000001.frames"
        with first.open("r+b") as file:
            file.seek(44 + 10)
            file.write(b"\x00")
        assert [item.position for item in spool.read()] == positions[1:]
        assert spool.damaged == 1
        assert spool.pending == 4
        assert "1 records were damaged" in caplog.text
        spool.acknowledge(positions[1:])
        assert len(segments(spool)) == 1

    def test_a_deleted_segment_loses_only_its_own_records(self, spool):
        """What was in a file that somebody deleted is counted, the rest is delivered."""
        positions = [close_one(spool) for _ in range(12)]
        (spool.path / "0000000002.frames").unlink()
        assert [item.position for item in spool.read()] == positions[:4] + positions[8:]
        assert spool.damaged == 4

    def test_what_was_read_before_is_not_counted_as_lost(self, spool):
        """A file that is cut short loses what was behind the cut, not what is being delivered."""
        positions = [close_one(spool) for _ in range(4)]
        reader = spool.read()
        assert [next(reader).position, next(reader).position] == positions[:2]
        os.truncate(spool.path / "0000000001.frames", positions[1] + 10)
        assert [item.position for item in spool.read(positions[1])] == []
        assert spool.damaged == 2
        assert spool.pending == 2

    def test_a_passing_trouble_loses_nothing(self, spool):
        """Too many open files are no damage: reading fails now and succeeds later."""
        positions = [close_one(spool) for _ in range(3)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            with pytest.raises(SpoolReadError, match="cannot be read"):
                list(spool.read())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert spool.damaged == 0
        assert [item.position for item in spool.read()] == positions


class TestFailingDisk:
    def test_a_file_size_limit_leaves_no_partial_frame(self, home):
        """When the system takes only a part of a frame, that part is cut off again."""
        spool = open_spool(home, service="shop", segment_bytes=1 << 20)
        before = [close_one(spool) for _ in range(3)]
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        handled = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (spool.bytes_used + 100, hard))
        try:
            with pytest.raises(SpoolWriteError) as caught:
                close_one(spool)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handled)
        assert caught.value.errno == errno.EFBIG
        assert spool.appended == before[-1] == (spool.path / segments(spool)[0]).stat().st_size
        after = close_one(spool)
        assert [item.position for item in spool.read()] == [*before, after]
        assert spool.pending == 4
        spool.close()
        [adopted] = adopt(home, "shop")
        assert len(list(adopted.records())) == 4
        assert adopted.report.clean
        assert not adopted.report.damages
        adopted.remove()

    def test_an_interrupted_append_does_not_spoil_the_next(self, spool, monkeypatch):
        """A signal handler that raises between the write and its accounting costs a new segment."""
        close_one(spool)

        def interrupt(position: int, at: float) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(module.UnackedFrames, "add", lambda self, *args: interrupt(*args))
            with pytest.raises(KeyboardInterrupt):
                close_one(spool)
        after = close_one(spool)
        assert len(segments(spool)) == 2
        assert [item.position for item in spool.read()][-1] == after
        assert spool.bytes_used == sum(p.stat().st_size for p in spool.path.glob("*.frames"))

    def test_a_failed_sync_is_not_forgotten(self, spool, monkeypatch):
        """What a sync failed on counts as synced only when it is acknowledged, later frames wait."""
        close_one(spool)
        spool.sync()

        def fail(file: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        synced = spool.synced
        lost = close_one(spool)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fail)
            with pytest.raises(SpoolWriteError) as caught:
                spool.sync()
        assert caught.value.errno == errno.EIO
        later = close_one(spool)
        assert len(segments(spool)) == 2
        assert spool.sync() == synced
        spool.acknowledge([item.position for item in spool.read() if item.position <= lost])
        assert spool.sync() == later


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
class TestFork:
    def test_a_child_cannot_touch_its_parent_s_spool(self, home):
        """The child is refused, opens its own, and the parent's files are as they were."""
        spool = open_spool(home, service="shop", segment_bytes=SEGMENT)
        position = close_one(spool)
        content = (spool.path / segments(spool)[0]).read_bytes()
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                refused = 0
                for call in (
                    lambda: close_one(spool),
                    spool.sync,
                    lambda: list(spool.read()),
                    lambda: spool.acknowledge([position]),
                ):
                    try:
                        call()
                    except SpoolForkedError:
                        refused += 1
                spool.close()
                own = reopen(spool)
                close_one(own)
                os.write(writer, f"{refused} {spool.forked} {own.path.name}".encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(writer)
        with os.fdopen(reader) as told:
            refused, forked, name = told.read().split()
        assert (refused, forked) == ("4", "True")
        assert not spool.forked
        assert (spool.path / segments(spool)[0]).read_bytes() == content
        [adopted] = adopt(home, "shop")
        assert adopted.producer_id == name != spool.producer_id
        assert adopted.remove()
        spool.acknowledge([position])
        assert spool.close()

    def test_a_child_that_lives_on_does_not_keep_a_dead_parent_s_spool(self, home):
        """The lock dies with the process that opened the spool, not with its children."""
        started, start = os.pipe()
        end, ended = os.pipe()
        parent = os.fork()
        if not parent:
            spool = open_spool(home, service="shop")
            close_one(spool, b"of the dead")
            if not os.fork():
                os.close(ended)
                os.write(start, b"x")
                os.read(end, 1)
            os._exit(0)
        os.waitpid(parent, 0)
        os.read(started, 1)
        try:
            [adopted] = adopt(home, "shop")
            assert [item.payload for item in adopted.records()] == [b"of the dead"]
            assert adopted.remove()
        finally:
            for file in (started, start, end, ended):
                os.close(file)


class TestDelivered:
    @pytest.fixture(autouse=True)
    def at_once(self, monkeypatch):
        """No file is young any more, and each sync looks around."""
        monkeypatch.setattr(module, "DELIVERED_STAYS", 0)
        monkeypatch.setattr(module, "_LOOK_AROUND_SECONDS", 0)

    def test_does_not_stay_in_a_file_that_is_not_full(self, spool):
        """The file goes although the process lives and writes nothing more; then it goes on."""
        spool.acknowledge([do_one(spool)])
        assert segments(spool) == [segment_name(1)]
        spool.sync()
        spool.sync()
        assert segments(spool) == [segment_name(2)]
        assert spool.bytes_used == 0
        spool.sync()
        assert segments(spool) == [segment_name(2)]
        position = do_one(spool, b"later")
        assert [one.payload for one in spool.read()] == [b"later"]
        spool.acknowledge([position])
        assert spool.close()

    def test_stays_while_something_beside_it_is_needed(self, spool, home):
        """An action under way, or a record that is not acknowledged; adopted, nothing is missing."""
        first = do_one(spool)
        waiting = do_one(spool, b"waits")
        spool.append(FrameKind.OPENED, uuid7(), b"under way")
        spool.acknowledge([first])
        for _ in range(3):
            spool.sync()
        assert segments(spool) == [segment_name(1)]
        spool.acknowledge([waiting])
        for _ in range(3):
            spool.sync()
        assert segments(spool) == [segment_name(1)]
        assert not spool.close()
        (left,) = adopt(home, "shop")
        assert b"under way" in [record.payload for record in left.records()]
        left.release()
