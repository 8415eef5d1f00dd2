"""Adopting the spools of dead processes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_audit._util.ids import uuid7
from otel_audit.delivery.spool import AbandonedSpool, FrameKind, Recovered, adopt, locks, open_spool
from otel_audit.delivery.spool import recover as module
from otel_audit.delivery.spool.manifest import Manifest, decode_label, encode_label

SEGMENT = 4096


def leave(home: Path, frames: list[tuple[FrameKind, str, bytes]], **settings) -> Path:
    """Leave a spool as a process does that ends with undelivered records."""
    spool = open_spool(home, service="shop", segment_bytes=SEGMENT, **settings)
    for kind, record_id, payload in frames:
        spool.append(kind, record_id, payload)
    spool.append(FrameKind.OPENED, uuid7(), b"the last one")
    assert not spool.close()
    return spool.path


def recover(adopted: AbandonedSpool) -> list[tuple[FrameKind, str, bytes]]:
    found = [(item.kind, item.record_id, item.payload) for item in adopted.records()]
    assert found.pop()[2] == b"the last one"
    return found


def actions(count: int) -> list[tuple[FrameKind, str, bytes]]:
    return [(FrameKind.CLOSED, uuid7(), b"%d" % number * 300) for number in range(count)]


class TestAdopt:
    def test_finds_nothing_where_nothing_is(self, home):
        """Without a directory there is nothing to adopt."""
        assert adopt(home, "shop") == []

    def test_leaves_the_living_alone(self, home):
        """A spool is not taken while its process lives, from within it or from another one."""
        spool = open_spool(home, service="shop")
        spool.append(FrameKind.CLOSED, uuid7(), b"mine")
        code = (
            "import sys, pathlib; from otel_audit.delivery.spool import adopt;"
            "print(len(adopt(pathlib.Path(sys.argv[1]), 'shop')))"
        )
        told = subprocess.run(
            [sys.executable, "-c", code, str(home)], capture_output=True, text=True, check=True
        )
        assert told.stdout.strip() == "0"
        assert adopt(home, "shop") == []
        assert [item.payload for item in spool.read()] == [b"mine"]

    def test_gives_a_spool_to_one_adopter_only(self, home):
        """Two adopters do not share a spool; one that is given back can be taken again."""
        leave(home, actions(3))
        [first] = adopt(home, "shop")
        assert adopt(home, "shop") == []
        first.release()
        first.release()
        [second] = adopt(home, "shop")
        assert len(recover(second)) == 3
        assert second.remove()
        assert adopt(home, "shop") == []

    def test_a_spool_that_is_removed_meanwhile_is_not_taken(self, home, monkeypatch):
        """An adopter that opened the lock just before another one removed it holds nothing."""
        leave(home, actions(1))
        [first] = adopt(home, "shop")
        lock = locks._lock

        def lock_late(opened: int) -> bool:
            first.remove()
            return lock(opened)

        monkeypatch.setattr(locks, "_lock", lock_late)
        assert adopt(home, "shop") == []
        assert list((home / "shop").iterdir()) == [home / "shop" / "service"]

    def test_takes_only_spools_of_its_service(self, home):
        """What another service left is that service's business."""
        leave(home, actions(1))
        assert adopt(home, "shop-2") == []
        [adopted] = adopt(home, "shop")
        adopted.release()

    def test_oldest_first(self, home):
        """Spools come in the order in which their processes began."""
        paths = [leave(home, actions(1)) for _ in range(4)]
        adopted = adopt(home, "shop")
        assert [spool.path for spool in adopted] == paths
        assert all(spool.remove() for spool in adopted)

    def test_never_takes_one_that_is_being_made(self, home):
        """A directory whose making was cut short holds no records and is swept away later."""
        path = leave(home, actions(1)).parent
        newborn = path / ".new-0192"
        newborn.mkdir()
        assert len(adopt(home, "shop")) == 1
        os.utime(newborn, (0, 0))
        open_spool(home, service="shop").close()
        assert not newborn.exists()


class TestRecords:
    def test_the_latest_word_on_each_action(self, home):
        """An action comes once: closed, else answered, else opened; discarded ones do not."""
        closed, answered, opened, discarded = (uuid7() for _ in range(4))
        everyone = (closed, answered, opened, discarded)
        frames = [(FrameKind.OPENED, action, b"o") for action in everyone]
        frames += [(FrameKind.ANSWERED, action, b"a") for action in (closed, answered)]
        frames += [(FrameKind.CLOSED, closed, b"c"), (FrameKind.DISCARDED, discarded, b"")]
        leave(home, frames)
        [adopted] = adopt(home, "shop")
        assert recover(adopted) == [
            (FrameKind.OPENED, opened, b"o"),
            (FrameKind.ANSWERED, answered, b"a"),
            (FrameKind.CLOSED, closed, b"c"),
        ]
        assert adopted.report.frames == len(frames) + 1
        assert adopted.report.clean
        adopted.release()

    def test_say_when_they_were_appended(self, home):
        """The time of the last word on an action is known."""
        leave(home, [])
        [adopted] = adopt(home, "shop")
        [last] = adopted.records()
        assert isinstance(last, Recovered)
        assert abs(time.time_ns() - last.appended_at) < 60e9
        adopted.release()

    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(st.data())
    def test_agree_with_a_plain_model(self, tmp_path_factory, data):
        """However actions interleave over segments, the model that keeps all frames agrees."""
        home = tmp_path_factory.mktemp("spools")
        steps = [FrameKind.OPENED, FrameKind.ANSWERED, FrameKind.CLOSED]
        ids = [uuid7() for _ in range(data.draw(st.integers(1, 12)))]
        progress = dict.fromkeys(ids, 0)
        frames, last = [], {}
        for _ in range(data.draw(st.integers(0, 40))):
            action = data.draw(st.sampled_from(ids))
            if progress[action] == len(steps):
                continue
            kind = data.draw(st.sampled_from(steps[progress[action] :]))
            progress[action] = steps.index(kind) + 1
            payload = b"p" * data.draw(st.integers(0, 900))
            frames.append((kind, action, payload))
            last[action] = (kind, action, payload)
        leave(home, frames)
        [adopted] = adopt(home, "shop")
        assert sorted(recover(adopted)) == sorted(last.values())
        assert adopted.remove()

    def test_can_be_read_again(self, home):
        """An adopter whose delivery failed begins anew."""
        leave(home, actions(5))
        [adopted] = adopt(home, "shop")
        assert recover(adopted) == recover(adopted)
        adopted.release()

    def test_a_large_spool_is_not_loaded(self, home):
        """Reading 20 MB of closed actions takes no more memory than a few of them."""
        spool = open_spool(home, service="shop", segment_bytes=1 << 21)
        for _ in range(2000):
            action = uuid7()
            spool.append(FrameKind.OPENED, action, b"o" * 5000)
            spool.append(FrameKind.CLOSED, action, b"c" * 5000)
        spool.close()
        [adopted] = adopt(home, "shop")
        tracemalloc.start()
        assert sum(1 for _ in adopted.records()) == 2000
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2_000_000
        assert adopted.remove()


class TestDamage:
    def test_a_torn_tail_is_cut_at_every_byte(self, home):
        """However much of the last frame is missing, all before it is recovered, and it is counted."""
        path = leave(home, [(FrameKind.CLOSED, uuid7(), b"whole")])
        segment = path / "0000000001.frames"
        size = segment.stat().st_size
        first = 44 + len(b"whole")
        for left in range(first, size):
            os.truncate(segment, left)
            segment_bytes = segment.read_bytes()
            [adopted] = adopt(home, "shop")
            assert [item.payload for item in adopted.records()] == [b"whole"]
            torn = [damage.size for damage in adopted.report.damages]
            assert torn == [left - first] * (left > first)
            assert adopted.report.clean
            adopted.release()
            segment.write_bytes(segment_bytes + bytes(size - left))

    def test_a_flipped_bit_is_skipped_at_every_byte(self, home):
        """Whichever byte is altered, the other actions are recovered and the place is reported."""
        ids = [uuid7() for _ in range(3)]
        path = leave(home, [(FrameKind.CLOSED, action, b"payload") for action in ids])
        segment = path / "0000000001.frames"
        whole, each = segment.read_bytes(), 44 + len(b"payload")
        for at in range(len(whole)):
            broken = bytearray(whole)
            broken[at] ^= 0x20
            segment.write_bytes(bytes(broken))
            [adopted] = adopt(home, "shop")
            found = {item.record_id for item in adopted.records()}
            hit = at // each
            assert {action for action in ids if action not in found} == set(ids[hit : hit + 1])
            assert adopted.report.damaged_frames == 1
            assert not adopted.report.clean
            [place] = adopted.report.damages
            assert (place.file, place.offset) == ("0000000001.frames", min(hit, 3) * each)
            adopted.release()

    def test_a_damaged_last_word_leaves_the_one_before(self, home):
        """When an action's closed frame is altered, its answered one speaks for it."""
        action = uuid7()
        path = leave(
            home, [(FrameKind.ANSWERED, action, b"answered"), (FrameKind.CLOSED, action, b"closed")]
        )
        segment = path / "0000000001.frames"
        segment.write_bytes(segment.read_bytes().replace(b"closed", b"cl0sed"))
        [adopted] = adopt(home, "shop")
        assert recover(adopted) == [(FrameKind.ANSWERED, action, b"answered")]
        adopted.release()

    @pytest.mark.parametrize("spoil", ["missing", "empty", "flipped"])
    def test_a_spoilt_label_does_not_hide_the_records(self, home, spoil):
        """The frames speak for themselves when the label is lost."""
        frames = actions(3)
        label = leave(home, frames) / "spool.json"
        text = bytearray(label.read_bytes())
        text[10] ^= 1
        label.unlink() if spoil == "missing" else label.write_bytes(
            b"" if spoil == "empty" else bytes(text)
        )
        [adopted] = adopt(home, "shop")
        assert adopted.label is None
        assert recover(adopted) == frames
        assert adopted.remove()

    def test_what_cannot_be_read_is_reported_and_kept(self, home, caplog):
        """A segment that cannot be opened does not hide the others, and is never removed unread."""
        frames = actions(30)
        path = leave(home, frames)
        second = path / "0000000002.frames"
        hidden = second.read_bytes()
        second.unlink()
        second.mkdir()
        [adopted] = adopt(home, "shop")
        assert 0 < len(recover(adopted)) < 30
        assert adopted.report.foreign == ["0000000002.frames"]
        assert not adopted.report.clean
        assert not adopted.remove()
        assert [entry.name for entry in path.glob("*.frames")] == ["0000000002.frames"]
        second.rmdir()
        second.write_bytes(hidden)
        [again] = adopt(home, "shop")
        assert 0 < len([item for item in again.records() if item.kind is FrameKind.CLOSED]) < 30
        assert again.remove()
        assert "is left alone" in caplog.text

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"format": 99}, "has format 99"),
            ({"service": "Shop"}, "another service's"),
            ({"key_id": "0123456789abcdef"}, "OTEL_AUDIT_SPOOL_KEY"),
        ],
    )
    def test_a_spool_of_another_kind_is_left_alone(self, home, caplog, changes, said):
        """What this version or key cannot read stays as it is, and the log says why."""
        path = leave(home, actions(2))
        label = json.loads((path / "spool.json").read_text().splitlines()[0])
        (path / "spool.json").write_bytes(encode_label(Manifest(**{**label, **changes})))
        before = {entry: entry.read_bytes() for entry in path.iterdir()}
        assert adopt(home, "shop") == []
        assert {entry: entry.read_bytes() for entry in path.iterdir()} == before
        assert adopt(home, "shop") == []
        assert caplog.text.count(said) == 1

    def test_a_spool_of_another_destination_waits(self, home, caplog):
        """It is left to those who deliver there; one line says so, however many they are."""
        theirs = [leave(home, actions(1), destination="b" * 16) for _ in range(3)]
        ours = leave(home, actions(1), destination="a" * 16)
        old = leave(home, actions(1))
        for _ in range(2):
            found = adopt(home, "shop", destination="a" * 16)
            assert [spool.path for spool in found] == [ours, old]
            for spool in found:
                spool.release()
        (told,) = [line for line in caplog.messages if "another destination" in line]
        assert str(ours.parent) in told
        assert "OTEL_SERVICE_NAME" in told
        assert [spool.path for spool in adopt(home, "shop", destination="b" * 16)] == [*theirs, old]

    def test_a_spool_whose_store_has_moved_is_adopted_without_its_label(self, home):
        """What the log says to do: the label is removed, and any process of the service takes it."""
        path = leave(home, actions(3), destination="b" * 16)
        (path / "spool.json").unlink()
        [adopted] = adopt(home, "shop", destination="a" * 16)
        assert len(recover(adopted)) == 3
        assert adopted.remove()

    def test_a_label_from_before_destinations_were_told(self, home):
        """It lacks the word, and says nothing against adoption."""
        path = leave(home, actions(1), destination="b" * 16)
        label = json.loads((path / "spool.json").read_text().splitlines()[0])
        del label["destination"]
        body = json.dumps(label).encode()
        (path / "spool.json").write_bytes(body + f"\n{crc32(body):08x}\n".encode())
        [adopted] = adopt(home, "shop", destination="a" * 16)
        assert adopted.label is not None
        assert adopted.label.service == "shop"
        adopted.release()

    def test_a_label_of_a_later_version_may_say_anything(self, home):
        """Unknown and changed fields of another version do not hide its number."""
        body = b'{"format": 7, "service": ["a", "b"], "more": 1}'
        label = decode_label(body + f"\n{crc32(body):08x}\n".encode())
        assert label == Manifest(format=7)
        assert decode_label(b"[]\n" + f"{crc32(b'[]'):08x}\n".encode()) is None

    def test_of_another_host_is_left_alone_where_locks_may_not_reach(self, home, monkeypatch):
        """On a shared file system of unknown locks, only the same host's dead are known as dead."""
        path = leave(home, actions(1))
        shared = module.file_system(path).__class__(kind="9p")
        monkeypatch.setattr(module, "file_system", lambda _: shared)
        label = Manifest(format=1, service="shop", host="elsewhere", boot_id="another")
        assert "elsewhere" in (module.obstacle_to_adoption(path, label, "shop", None) or "")
        [adopted] = adopt(home, "shop")
        adopted.release()

    def test_a_directory_that_cannot_be_listed_is_logged(self, home, caplog, monkeypatch):
        """Trouble with the directory never reaches the caller."""
        leave(home, actions(1))

        def fail(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(module, "spools_in", fail)
        assert adopt(home, "shop") == []
        assert "cannot be listed" in caplog.text
