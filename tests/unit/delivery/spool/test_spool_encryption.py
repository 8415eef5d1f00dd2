"""Encryption at rest."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit._util.ids import uuid7
from otel_audit.delivery.spool import (
    AesGcmEncryption,
    EncryptionError,
    FrameKind,
    adopt,
    open_spool,
)
from otel_audit.delivery.spool.format import HEADER_BYTES, encode
from otel_audit.errors import ConfigurationError

KEY = bytes(range(32))
SECRET = b'{"actor":"alice"}'


class TestAesGcm:
    @given(st.binary(), st.binary())
    def test_gives_back_what_was_sealed(self, payload, context):
        """What is encrypted opens again in its context, and never looks the same twice."""
        cipher = AesGcmEncryption(KEY).for_spool("p")
        first, second = cipher.encrypt(payload, context), cipher.encrypt(payload, context)
        assert cipher.decrypt(first, context) == payload
        assert first != second

    def test_opens_nothing_that_was_changed_or_moved(self):
        """Every flipped byte, another context, another spool and another key are refused."""
        cipher = AesGcmEncryption(KEY).for_spool("p")
        encrypted = cipher.encrypt(SECRET, b"one")
        for at in range(len(encrypted)):
            broken = bytearray(encrypted)
            broken[at] ^= 1
            with pytest.raises(EncryptionError):
                cipher.decrypt(bytes(broken), b"one")
        for other in (
            AesGcmEncryption(KEY).for_spool("q"),
            AesGcmEncryption(KEY[::-1]).for_spool("p"),
        ):
            with pytest.raises(EncryptionError):
                other.decrypt(encrypted, b"one")
        for wrong in (encrypted[:20], b""):
            with pytest.raises(EncryptionError):
                cipher.decrypt(wrong, b"one")
        with pytest.raises(EncryptionError):
            cipher.decrypt(encrypted, b"two")

    def test_the_key_s_id_says_nothing_about_it(self):
        """Equal keys have equal ids, others have not, and no id holds key bytes."""
        assert AesGcmEncryption(KEY).key_id == AesGcmEncryption(KEY).key_id
        assert AesGcmEncryption(KEY).key_id != AesGcmEncryption(os.urandom(32)).key_id
        assert bytes.fromhex(AesGcmEncryption(KEY).key_id) not in KEY

    @pytest.mark.parametrize("length", [0, 16, 31, 33])
    def test_a_key_of_another_length_is_refused(self, length):
        """The error names the setting and not the key."""
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_SPOOL_KEY: 32 random bytes"):
            AesGcmEncryption(bytes(length))


class TestEncryptedSpool:
    def test_holds_no_payload_in_clear(self, home):
        """Living and dead it gives its records back, and its files do not show them."""
        encryption = AesGcmEncryption(KEY)
        spool = open_spool(home, service="shop", encryption=encryption)
        action = uuid7()
        spool.append(FrameKind.OPENED, action, SECRET)
        spool.append(FrameKind.CLOSED, uuid7(), SECRET)
        assert [item.payload for item in spool.read()] == [SECRET]
        spool.close()
        assert all(b"alice" not in path.read_bytes() for path in spool.path.iterdir())
        [adopted] = adopt(home, "shop", encryption=encryption)
        assert [item.payload for item in adopted.records()] == [SECRET, SECRET]
        assert adopted.report.clean
        assert adopted.remove()

    @pytest.mark.parametrize("encryption", [None, AesGcmEncryption(KEY[::-1])])
    def test_waits_for_its_key(self, home, encryption, caplog):
        """Without its key an encrypted spool is left alone, and the log says so."""
        spool = open_spool(home, service="shop", encryption=AesGcmEncryption(KEY))
        spool.append(FrameKind.CLOSED, uuid7(), SECRET)
        spool.close()
        assert adopt(home, "shop", encryption=encryption) == []
        assert "OTEL_AUDIT_SPOOL_KEY" in caplog.text
        [adopted] = adopt(home, "shop", encryption=AesGcmEncryption(KEY))
        assert len(list(adopted.records())) == 1
        adopted.release()

    def test_a_moved_payload_is_damage(self, home):
        """A payload that was cut out and put into another action's frame does not open."""
        encryption = AesGcmEncryption(KEY)
        spool = open_spool(home, service="shop", encryption=encryption)
        first = spool.append(FrameKind.CLOSED, uuid7(), b"a")
        spool.append(FrameKind.CLOSED, uuid7(), b"b")
        segment = spool.path / "0000000001.frames"
        data = bytearray(segment.read_bytes())
        moved = encode(
            3, data[first + 20 : first + 36], data[HEADER_BYTES:first], 0, encrypted=True
        )
        segment.write_bytes(bytes(data[:first] + moved))
        assert [item.payload for item in spool.read()] == [b"a"]
        assert spool.damaged == 1
        spool.close()
        [adopted] = adopt(home, "shop", encryption=encryption)
        assert [item.payload for item in adopted.records()] == [b"a"]
        assert [place.reason for place in adopted.report.damages] == ["encryption"]
        adopted.release()

    def test_clear_spools_are_adopted_after_a_key_was_set(self, home):
        """Turning encryption on does not lose what was written before."""
        spool = open_spool(home, service="shop")
        spool.append(FrameKind.CLOSED, uuid7(), b"clear")
        spool.close()
        [adopted] = adopt(home, "shop", encryption=AesGcmEncryption(KEY))
        assert [item.payload for item in adopted.records()] == [b"clear"]
        assert adopted.remove()
