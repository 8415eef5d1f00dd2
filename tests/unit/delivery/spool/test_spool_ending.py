"""Closing an action by what has changed since its answer."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from otel_audit._util.ids import uuid7
from otel_audit.delivery.spool import (
    AesGcmEncryption,
    FrameKind,
    Recovered,
    Spool,
    SpoolForkedError,
    SpoolReadError,
    adopt,
    open_spool,
)
from otel_audit.delivery.spool.format import HEADER_BYTES, MAX_PAYLOAD_BYTES, encode, scan
from otel_audit.delivery.spool.ownership import OwnDirectory

SEGMENT = 4096
KEY = AesGcmEncryption(bytes(range(32)))
KNOWN, CHANGED = b"what was known", b"what has changed"


def a_spool(home: Path, **settings) -> Spool:
    return open_spool(home, service="shop", segment_bytes=SEGMENT, **settings)


def answer(spool: Spool, *, begun: bytes = b"begun") -> tuple[str, int]:
    record_id = uuid7()
    spool.append(FrameKind.OPENED, record_id, begun)
    return record_id, spool.append(FrameKind.ANSWERED, record_id, KNOWN)


def abandoned(spool: Spool) -> list[Recovered]:
    """Leave a spool behind, and read what is in it but for an action that keeps it."""
    spool.append(FrameKind.OPENED, uuid7(), b"the last one")
    assert not spool.close()
    [adopted] = adopt(spool.settings.directory, "shop", encryption=spool.settings.encryption)
    found = list(adopted.records())
    assert found.pop().payload == b"the last one"
    adopted.release()
    return found


def spoil(spool: Spool, payload: bytes) -> None:
    """Alter a frame's payload on the disk."""
    [path] = [one for one in spool.path.glob("*.frames") if payload in one.read_bytes()]
    path.write_bytes(path.read_bytes().replace(payload, b"#" * len(payload)))


class TestEnd:
    @pytest.mark.parametrize("encryption", [None, KEY])
    def test_is_read_back_with_what_was_known(self, home, encryption):
        """The living spool and its adopter give the answered frame and what has changed since."""
        spool = a_spool(home, encryption=encryption)
        record_id, answered = answer(spool)
        position = spool.end(record_id, CHANGED, answered)
        assert list(spool.read()) == [(position, record_id, KNOWN, CHANGED)]
        assert (spool.pending, spool.open_actions) == (1, 0)
        [found] = abandoned(spool)
        assert found[:3] == (record_id, FrameKind.CLOSED, KNOWN)
        assert found.changed == CHANGED

    def test_reading_on_finds_what_stands_before(self, home):
        """Reading from a position on gives an answered frame that stands before it."""
        spool = a_spool(home)
        first, second = answer(spool), answer(spool)
        after = spool.end(first[0], CHANGED, first[1])
        position = spool.end(second[0], b"later", second[1])
        assert after is not None
        assert list(spool.read(after)) == [(position, second[0], KNOWN, b"later")]

    def test_is_acknowledged_as_any_other(self, home):
        """It keeps its segment until it is acknowledged, and no longer."""
        spool = a_spool(home)
        record_id, answered = answer(spool)
        position = spool.end(record_id, CHANGED, answered)
        spool.append(FrameKind.CLOSED, uuid7(), b"x" * (SEGMENT - HEADER_BYTES))
        files = sorted(spool.path.glob("*.frames"))
        assert position is not None
        spool.acknowledge([position])
        assert sorted(spool.path.glob("*.frames")) == files[1:]

    def test_no_other_answer_is_taken_for_it(self, home):
        """Of an unknown action, and of one that was answered again, all has to be said."""
        spool = a_spool(home)
        record_id, answered = answer(spool)
        spool.append(FrameKind.ANSWERED, record_id, b"another answer")
        assert spool.end(record_id, CHANGED, answered) is None
        assert spool.end(uuid7(), CHANGED, answered) is None
        assert spool.append(FrameKind.CLOSED, record_id, b"all") is not None
        assert spool.end(record_id, CHANGED, answered) is None
        assert [item.payload for item in spool.read()] == [b"all"]

    def test_no_other_segment_is_relied_on(self, home):
        """Where a frame would begin a new segment, or one has begun, all has to be said."""
        spool = a_spool(home)
        record_id, answered = answer(spool)
        room = SEGMENT - spool.bytes_used
        assert spool.end(record_id, b"x" * (room - HEADER_BYTES + 1), answered) is None
        spool.append(FrameKind.CLOSED, uuid7(), b"x" * (SEGMENT - HEADER_BYTES))
        assert spool.end(record_id, CHANGED, answered) is None
        assert spool.end(record_id, b"x" * (MAX_PAYLOAD_BYTES + 1), answered) is None

    def test_a_copy_of_the_answer_will_do(self, home):
        """An answered frame that was carried over to another segment is relied on there."""
        spool = a_spool(home)
        record_id, answered = answer(spool)
        done = [spool.append(FrameKind.CLOSED, uuid7(), b"x" * 3000) for _ in range(8)]
        spool.acknowledge(done)
        assert not (spool.path / "0000000001.frames").exists()
        position = spool.end(record_id, CHANGED, answered)
        assert list(spool.read()) == [(position, record_id, KNOWN, CHANGED)]
        *_, found = abandoned(spool)
        assert (found.payload, found.changed) == (KNOWN, CHANGED)

    def test_a_child_says_all(self, home):
        """A forked child has another spool: the parent's answered frame is not its own."""
        spool = a_spool(home)
        record_id, answered = answer(spool)
        spool.forked = True
        with pytest.raises(SpoolForkedError):
            spool.end(record_id, CHANGED, answered)


class TestDamage:
    def test_a_damaged_answer_leaves_beginning_and_end(self, home, caplog):
        """What was written down when it began, and the end, are given; the file is kept."""
        spool = a_spool(home)
        record_id, answered = answer(spool)
        position = spool.end(record_id, CHANGED, answered)
        spoil(spool, KNOWN)
        assert list(spool.read()) == [(position, record_id, b"begun", CHANGED)]
        assert "description of a record was damaged" in caplog.text
        assert spool._segments.first.damaged
        [found] = abandoned(spool)
        assert found[:3] == (record_id, FrameKind.ENDED, b"begun")
        assert found.changed == CHANGED

    def test_an_end_alone_is_given(self, home):
        """Where nothing else can be read, what has changed is still there."""
        spool = a_spool(home)
        record_id, answered = answer(spool)
        position = spool.end(record_id, CHANGED, answered)
        spoil(spool, b"begun")
        spoil(spool, KNOWN)
        assert list(spool.read()) == [(position, record_id, b"", CHANGED)]
        [found] = abandoned(spool)
        assert (found.kind, found.payload, found.changed) == (FrameKind.ENDED, b"", CHANGED)

    def test_an_end_that_was_cut_off_is_an_answer(self, home):
        """A kill in the middle of the last write leaves the action as it was answered."""
        spool = a_spool(home)
        record_id, answered = answer(spool)
        spool.end(record_id, CHANGED, answered)
        spool.close()
        path = spool.path / "0000000001.frames"
        os.truncate(path, path.stat().st_size - 1)
        [adopted] = adopt(home, "shop")
        [found] = adopted.records()
        adopted.release()
        assert (found.kind, found.payload, found.changed) == (FrameKind.ANSWERED, KNOWN, None)

    def test_a_damaged_end_is_an_answer_and_a_loss(self, home):
        """The action is given as it was answered, and the damage is named."""
        spool = a_spool(home)
        record_id, answered = answer(spool)
        spool.end(record_id, CHANGED, answered)
        spoil(spool, CHANGED)
        spool.append(FrameKind.OPENED, uuid7(), b"the last one")
        assert not spool.close()
        [adopted] = adopt(home, "shop")
        found = [item for item in adopted.records() if item.record_id == record_id]
        assert [(item.kind, item.payload) for item in found] == [(FrameKind.ANSWERED, KNOWN)]
        assert (adopted.report.damaged_frames, adopted.report.clean) == (1, False)
        adopted.release()

    @pytest.mark.parametrize(("encryption", "forged"), [(None, False), (KEY, False), (KEY, True)])
    def test_the_beginning_may_stand_in_an_earlier_segment(self, home, encryption, forged, caplog):
        """Where the answer is damaged, living spool and adopter find it in another file."""
        spool = a_spool(home, encryption=encryption)
        record_id = uuid7()
        spool.append(FrameKind.OPENED, record_id, b"begun")
        room = SEGMENT - spool.bytes_used
        filling = spool.append(FrameKind.CLOSED, uuid7(), b"x" * (room - 2 * HEADER_BYTES))
        answered = spool.append(FrameKind.ANSWERED, record_id, KNOWN)
        position = spool.end(record_id, CHANGED, answered)
        _, second = sorted(spool.path.glob("*.frames"))
        content = bytearray(second.read_bytes())
        content[HEADER_BYTES] ^= 1
        if forged:
            size = int.from_bytes(content[8:12], "little")
            payload = bytes(content[HEADER_BYTES : HEADER_BYTES + size])
            key = bytes(content[20:36])
            frame = encode(FrameKind.ANSWERED, key, payload, 1, encrypted=True)
            content[: len(frame)] = frame
        second.write_bytes(content)
        spool.acknowledge([filling])
        assert list(spool.read()) == [(position, record_id, b"begun", CHANGED)]
        assert list(spool.read(filling)) == [(position, record_id, b"begun", CHANGED)]
        assert "description of a record was damaged" in caplog.text
        assert [one.damaged for one in spool._segments.extents(0)] == [False, True]
        *_, found = abandoned(spool)
        assert found[:3] == (record_id, FrameKind.ENDED, b"begun")
        assert found.changed == CHANGED

    def test_a_beginning_that_cannot_be_read_now_is_read_later(self, home, monkeypatch):
        """Too many open files cost no description; a file that is gone costs it at once."""
        spool = a_spool(home)
        record_id = uuid7()
        spool.append(FrameKind.OPENED, record_id, b"begun")
        spool.append(FrameKind.CLOSED, uuid7(), b"x" * (SEGMENT - 2 * HEADER_BYTES))
        answered = spool.append(FrameKind.ANSWERED, record_id, KNOWN)
        position = spool.end(record_id, CHANGED, answered)
        spoil(spool, KNOWN)
        after = spool._segments.last.base
        first = min(spool.path.glob("*.frames"))
        reading = OwnDirectory.reading

        def refuse(place: OwnDirectory, name: str, **how):
            if name == first.name:
                raise OSError(errno.EMFILE, "Too many open files")
            return reading(place, name, **how)

        with monkeypatch.context() as patched:
            patched.setattr(OwnDirectory, "reading", refuse)
            with pytest.raises(SpoolReadError, match="Too many open files"):
                list(spool.read(after))
        assert list(spool.read(after)) == [(position, record_id, b"begun", CHANGED)]
        first.unlink()
        assert list(spool.read(after)) == [(position, record_id, b"", CHANGED)]

    @pytest.mark.parametrize("notes", [True, False])
    @pytest.mark.parametrize("end", [FrameKind.ENDED, FrameKind.CLOSED])
    @pytest.mark.parametrize("damaged", [b"begun", KNOWN])
    def test_what_a_later_frame_says_again_is_no_lost_record(self, home, end, damaged, notes):
        """The damage is named, and a record that is delivered all the same is not counted."""
        spool = a_spool(home)
        record_id, answered = answer(spool)
        if end is FrameKind.ENDED:
            spool.end(record_id, CHANGED, answered)
        else:
            spool.append(end, record_id, b"all")
        spoil(spool, damaged)
        assert [found.record_id for found in abandoned(spool)] == [record_id]
        if not notes:
            os.truncate(spool.path / "lock", 0)
            (spool.path / "spool.json").unlink()
        [adopted] = adopt(home, "shop")
        assert (adopted.report.damaged_frames, adopted.report.lost) == (1, 0)
        adopted.release()

    def test_nor_is_one_whose_header_is_damaged(self, home):
        """Whichever byte is altered: only where kind, length or id are, nobody can say whose it was."""
        spool = a_spool(home)
        record_id, answered = answer(spool)
        spool.end(record_id, CHANGED, answered)
        assert [found.record_id for found in abandoned(spool)] == [record_id]
        [path] = spool.path.glob("*.frames")
        whole = path.read_bytes()
        start = whole.index(KNOWN) - HEADER_BYTES
        counted = set()
        for at in range(HEADER_BYTES + len(KNOWN)):
            broken = bytearray(whole)
            broken[start + at] ^= 0x20
            path.write_bytes(broken)
            [adopted] = adopt(home, "shop")
            assert adopted.report.damaged_frames == 1
            counted |= {at} if adopted.report.lost else set()
            adopted.release()
        assert counted == {5, *range(8, 12), *range(20, 36)}

    def test_a_damaged_word_without_a_later_one_is_counted(self, home):
        """Of two answers that are damaged, the one whose action has no end counts."""
        spool = a_spool(home)
        for is_over in (True, False):
            record_id, answered = answer(spool)
            if is_over:
                spool.end(record_id, CHANGED, answered)
        spoil(spool, KNOWN)
        abandoned(spool)
        [adopted] = adopt(home, "shop")
        assert (adopted.report.damaged_frames, adopted.report.lost) == (2, 1)
        adopted.release()


def fill_at_random(spool: Spool, chance: random.Random) -> None:
    """Begin, answer, end and take back actions, in any order, over several segments."""
    answers: dict[str, int | None] = {}
    for _ in range(60):
        step = chance.random()
        if step < 0.4 or not answers:
            record_id = uuid7()
            spool.append(FrameKind.OPENED, record_id, b"begun" + bytes(chance.randrange(200)))
            answers[record_id] = None
            continue
        record_id = chance.choice(list(answers))
        if step < 0.7:
            known = KNOWN + bytes(chance.randrange(600))
            if answers[record_id] is None:
                answers[record_id] = spool.append(FrameKind.ANSWERED, record_id, known)
            continue
        answered = answers.pop(record_id)
        if step > 0.95:
            spool.append(FrameKind.DISCARDED, record_id, b"")
        elif answered is None or spool.end(record_id, CHANGED, answered) is None:
            spool.append(FrameKind.CLOSED, record_id, b"all")


def flip_bits(spool: Spool, chance: random.Random) -> None:
    """Alter one frame of five."""
    for path in spool.path.glob("*.frames"):
        content = bytearray(path.read_bytes())
        with path.open("rb") as file:
            for frame in list(scan(file, end=len(content))):
                if chance.random() < 0.2:
                    content[chance.randrange(frame.start, frame.end)] ^= 0x10
        path.write_bytes(content)


@pytest.mark.parametrize("encryption", [None, KEY])
def test_a_living_spool_reads_back_what_its_adopter_finds(tmp_path, encryption):
    """Whatever is damaged, both give the same of each action that is over."""
    known: set[bytes] = set()
    for seed in range(20):
        chance = random.Random(seed)
        spool = a_spool(tmp_path / str(seed), encryption=encryption, fsync="never")
        fill_at_random(spool, chance)
        flip_bits(spool, chance)
        living = {(one.record_id, one.payload, one.changed) for one in spool.read()}
        found = {
            (one.record_id, one.payload, one.changed)
            for one in abandoned(spool)
            if one.kind in (FrameKind.CLOSED, FrameKind.ENDED)
        }
        assert living == found
        known |= {payload[:5] for _, payload, changed in living if changed is not None}
    assert known >= {b"begun", KNOWN[:5]}
