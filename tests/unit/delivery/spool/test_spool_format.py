"""The format of frames, and what a reader makes of damaged ones."""

from __future__ import annotations

import io
import os
import struct
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_audit.delivery.spool.format import (
    HEADER_BYTES,
    MARKER,
    MAX_PAYLOAD_BYTES,
    Damage,
    Frame,
    FrameKind,
    encode,
    record_key,
    record_name,
    scan,
)

KEY = bytes(range(16))


def frame(payload: bytes, key: bytes = KEY, kind: FrameKind = FrameKind.CLOSED) -> bytes:
    return encode(kind, key, payload, 1_700_000_000_000_000_000)


def read(data: bytes) -> list[Frame | Damage]:
    return list(scan(io.BytesIO(data), end=len(data)))


def payloads(found: list[Frame | Damage]) -> list[bytes]:
    return [item.payload for item in found if isinstance(item, Frame)]


def damages(found: list[Frame | Damage]) -> list[Damage]:
    return [item for item in found if isinstance(item, Damage)]


class TestRoundTrip:
    @given(
        st.lists(
            st.tuples(st.sampled_from(FrameKind), st.binary(min_size=16, max_size=16), st.binary())
        )
    )
    def test_gives_back_what_was_written(self, frames):
        """Frames come back in order, with all that they said."""
        data = b"".join(encode(kind, key, payload, 7) for kind, key, payload in frames)
        found = read(data)
        assert [(item.kind, item.record_id, item.payload) for item in found] == frames
        assert all(item.appended_at == 7 for item in found)

    def test_passes_over_other_kinds(self):
        """Only the kinds that are wanted are given."""
        data = (
            frame(b"a", kind=FrameKind.OPENED) + frame(b"b") + frame(b"c", kind=FrameKind.ANSWERED)
        )
        found = list(scan(io.BytesIO(data), end=len(data), kinds={int(FrameKind.CLOSED)}))
        assert payloads(found) == [b"b"]

    def test_begins_and_stops_where_told(self):
        """A reader may begin and stop at any frame's edge."""
        parts = [frame(b"a"), frame(b"bb"), frame(b"ccc")]
        start, end = len(parts[0]), len(parts[0] + parts[1])
        found = list(scan(io.BytesIO(b"".join(parts)), start=start, end=end))
        assert [(item.payload, item.start, item.end) for item in found] == [(b"bb", start, end)]

    def test_the_header_has_the_documented_layout(self):
        """A reader in another language finds every field where the documentation says."""
        data = encode(FrameKind.ANSWERED, KEY, b"{}", 5, encrypted=True)
        assert len(data) == HEADER_BYTES + 2
        assert data[:4] == b"\xf5\xffOA"
        assert data[4:8] == bytes((1, 2, 1, 0))
        assert struct.unpack_from("<IQ16sII", data, 8) == (
            2,
            5,
            KEY,
            crc32(b"{}"),
            crc32(data[:40]),
        )

    @given(st.uuids())
    def test_a_record_id_survives(self, identifier):
        """A record id comes back in its usual form."""
        assert record_name(record_key(str(identifier))) == str(identifier)
        assert record_key(identifier.hex) == identifier.bytes

    @pytest.mark.parametrize("wrong", ["", "secret-value", "00", "g" * 32, "0" * 34])
    def test_refuses_what_is_no_record_id(self, wrong):
        """What is no UUID is refused, and the message does not show it."""
        with pytest.raises(ValueError, match=r"UUID|fromhex") as caught:
            record_key(wrong)
        assert not wrong or wrong not in str(caught.value)


class TestTornTail:
    @pytest.mark.parametrize("left", range(len(frame(b'{"last":1}'))))
    def test_is_cut_wherever_it_tore(self, left):
        """However little of the last frame is there, all before it is read and the rest counted."""
        whole = frame(b'{"a":1}') + frame(b'{"b":2}')
        found = read(whole + frame(b'{"last":1}')[:left])
        assert payloads(found) == [b'{"a":1}', b'{"b":2}']
        torn = [Damage(len(whole), len(whole) + left, "torn")] if left else []
        assert damages(found) == torn

    def test_blocks_that_were_never_written_are_torn(self):
        """After a power loss a file may end in zeros: they are no altered frame."""
        assert damages(read(frame(b"a") + bytes(9000)))[0].reason == "torn"


class TestFlippedBit:
    def test_costs_the_frame_it_is_in_and_no_other(self):
        """Whichever bit is flipped, the other frames are read and the damage is placed."""
        parts = [frame(b'{"first":1}'), frame(b'{"second":22}'), frame(b'{"third":333}')]
        data, texts = b"".join(parts), [part[HEADER_BYTES:] for part in parts]
        start, end = len(parts[0]), len(parts[0] + parts[1])
        for at in range(start, end):
            for bit in range(8):
                broken = bytearray(data)
                broken[at] ^= 1 << bit
                found = read(bytes(broken))
                assert payloads(found) == [texts[0], texts[2]], (at, bit)
                assert [(item.start, item.end) for item in damages(found)] == [(start, end)]
                assert damages(found)[0].reason in ("header", "checksum")

    def test_in_the_last_frame_is_not_called_torn(self):
        """An altered last frame is a loss, not the ordinary trace of a kill."""
        whole = frame(b"a")
        for at in range(len(frame(b"bb"))):
            broken = bytearray(whole + frame(b"bb"))
            broken[len(whole) + at] ^= 0x10
            assert damages(read(bytes(broken)))[0].reason != "torn"

    @settings(max_examples=150)
    @given(st.data())
    def test_any_damage_leaves_only_true_frames(self, data):
        """Whatever is overwritten, cut or inserted, no frame is read that was not written."""
        written = [os.urandom(4).hex().encode() * n for n in (1, 40, 3, 200)]
        image = bytearray(b"".join(frame(text) for text in written))
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(image)))
            count = data.draw(st.integers(0, 60))
            image[at : at + count] = data.draw(st.binary(max_size=60))
        found = read(bytes(image))
        assert set(payloads(found)) <= set(written)
        edges = [0, *(item.end for item in found)]
        assert [item.start for item in found] == edges[:-1]
        assert edges[-1] == len(image)


class TestForeignBytes:
    def test_a_frame_inside_a_payload_is_not_read(self):
        """A payload that looks like a frame stays a payload while its own frame is whole."""
        inner = frame(b"inner")
        assert payloads(read(frame(inner))) == [inner]

    def test_finds_a_marker_across_the_reader_s_chunks(self):
        """The next frame is found wherever the reader's chunks end."""
        for gap in range(256 * 1024 - 6, 256 * 1024 + 3):
            found = read(b"\x01" * gap + frame(b"behind"))
            assert payloads(found) == [b"behind"]
            assert damages(found) == [Damage(0, gap, "header")]

    def test_an_impossible_length_is_damage(self):
        """A header with a right checksum and an impossible length is not believed."""
        head = struct.pack("<4s4BIQ16sI", MARKER, 1, 3, 0, 0, MAX_PAYLOAD_BYTES + 1, 0, KEY, 0)
        head += struct.pack("<I", crc32(head))
        assert damages(read(head + frame(b"next")))[0].reason == "header"
        assert payloads(read(head + frame(b"next"))) == [b"next"]

    @pytest.mark.parametrize(("version", "kind"), [(2, 3), (1, 9)])
    def test_a_frame_of_a_later_version_is_passed_over(self, version, kind):
        """What a later version wrote is reported, and what follows is read."""
        head = struct.pack("<4s4BIQ16sI", MARKER, version, kind, 0, 0, 3, 0, KEY, crc32(b"new"))
        head += struct.pack("<I", crc32(head))
        found = read(head + b"new" + frame(b"old"))
        assert damages(found) == [Damage(0, HEADER_BYTES + 3, "version")]
        assert payloads(found) == [b"old"]

    def test_a_file_that_shrinks_is_an_error(self):
        """A reader that was promised more bytes than there are says so."""
        with pytest.raises(EOFError):
            list(scan(io.BytesIO(frame(b"a")), end=1000))
