"""Checkpoints and keys: the exact bytes of C2SP's formats, and nothing looser."""

from __future__ import annotations

import base64
import contextlib
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from otel_audit_postgres.ledger.checkpoints import (
    Checkpoint,
    NoteError,
    read_checkpoint,
    read_note,
    signed,
)
from otel_audit_postgres.ledger.keys import (
    generate,
    read_key_file,
    read_public_key,
    read_signing_key,
    write_key_files,
)

from otel_audit.errors import ConfigurationError

# the example of the documentation of golang.org/x/mod/sumdb/note
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_SKEY = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngo"
    "tpRZb6KE6RyyBwJnAM=\n"
)


class TestGoExample:
    def test_verifies(self):
        """A note that Go's tools made is accepted with the key that they print."""
        key = read_public_key(GO_VKEY, "test")
        assert key.text() == GO_VKEY
        assert read_note(GO_NOTE).signed_by([key]) == [key]

    def test_is_made_again_from_its_private_key(self):
        """Ed25519 is deterministic: the same key and text are the same signature."""
        key = read_signing_key(GO_SKEY, "test")
        assert key.text() == GO_SKEY
        assert key.public.text() == GO_VKEY
        blob = base64.b64encode(key.key_id + key.sign(read_note(GO_NOTE).text.encode())).decode()
        assert GO_NOTE.endswith(f"— PeterNeumann {blob}\n")


class TestSigned:
    def test_is_exactly_these_bytes(self):
        """Origin, size, root; an empty line; an em dash, the name, the id and the signature."""
        key = read_signing_key(GO_SKEY, "test")
        note = signed(Checkpoint("example.com/log", 7, bytes(range(32))), [key])
        text = "example.com/log\n7\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
        signature = base64.b64encode(key.key_id + key.sign(text.encode())).decode()
        assert note.encode() == f"{text}\n\N{EM DASH} PeterNeumann {signature}\n".encode()

    @given(size=st.integers(0, 2**62), root=st.binary(min_size=32, max_size=32))
    def test_is_read_back(self, size, root):
        """What was said is what is read, signed or not."""
        key = generate("example.com/log")
        for signers in ([], [key], [key, generate("other")]):
            note = signed(Checkpoint("example.com/log", size, root), signers)
            assert read_checkpoint(note) == Checkpoint("example.com/log", size, root)
            assert read_note(note).signed_by([key.public]) == [key.public][: len(signers)]

    def test_does_not_hold_for_a_changed_text(self):
        """Another size under the same signature is an error, not merely unsigned."""
        key = generate("log")
        note = signed(Checkpoint("log", 7, bytes(32)), [key]).replace("\n7\n", "\n8\n")
        with pytest.raises(NoteError, match="does not hold"):
            read_note(note).signed_by([key.public])

    def test_is_nothing_to_other_keys(self):
        """Who does not know the key has no signature, also under the same name."""
        note = signed(Checkpoint("log", 7, bytes(32)), [generate("log")])
        assert read_note(note).signed_by([generate("log").public]) == []


class TestReading:
    GOOD = "log\n7\n" + base64.b64encode(bytes(32)).decode() + "\n\n"

    @pytest.mark.parametrize(
        "note",
        [
            "",
            "log\n7\n",
            GOOD[:-1],
            GOOD + "— log AAAA",
            GOOD + "— log AAAA\n",
            GOOD + "- log AAAAAAAA\n",
            GOOD + "— l+g AAAAAAAA\n",
            GOOD + "— log AAAAAAA\n",
            GOOD + "— log AAAAAAAA\n" * 101,
            GOOD.replace("7", "07"),
            GOOD.replace("7", "-7"),
            GOOD.replace("7", "7 "),
            GOOD.replace("7", "٧"),
            GOOD.replace("=", ""),
            GOOD.replace("AAA=", "AAB="),
            GOOD.replace("log", "", 1),
            GOOD.replace("\n7", "\r\n7"),
        ],
    )
    def test_refuses_what_is_no_checkpoint(self, note):
        """Each departure from the format is an error."""
        with pytest.raises(NoteError, match="not a"):
            read_checkpoint(note)

    def test_passes_over_extension_lines(self):
        """Lines after the root are allowed, and signed with the rest."""
        assert read_checkpoint(self.GOOD[:-1] + "extension\n\n").size == 7

    @given(text=st.text())
    def test_never_fails_otherwise(self, text):
        """Whatever the text is, it is a checkpoint or a NoteError."""
        with contextlib.suppress(NoteError):
            read_checkpoint(text)


class TestKeyFiles:
    def test_are_read_back(self, tmp_path):
        """The private one only its owner can read; the public one is beside it."""
        key = generate("audit.example.com")
        public = write_key_files(key, tmp_path / "key")
        assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
        assert read_key_file(tmp_path / "key", "test") == key
        assert read_public_key(public.read_text(), "test") == key.public
        assert key.text() not in repr(key)

    def test_are_never_overwritten(self, tmp_path):
        """A key that is there stays."""
        write_key_files(generate("a"), tmp_path / "key")
        with pytest.raises(ConfigurationError, match="there already"):
            write_key_files(generate("b"), tmp_path / "key")

    def test_must_be_private(self, tmp_path):
        """A key that others may read is refused, by the setting's name."""
        write_key_files(generate("a"), tmp_path / "key")
        (tmp_path / "key").chmod(0o640)
        with pytest.raises(ConfigurationError, match=r"OTEL_AUDIT_SIGNING_KEY_FILE.*chmod"):
            read_key_file(tmp_path / "key", "OTEL_AUDIT_SIGNING_KEY_FILE")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "x",
            GO_VKEY,
            GO_SKEY[:-4],
            GO_SKEY.replace("c74f", "c74e"),
            GO_SKEY.replace("+AY", "+BY"),
        ],
    )
    def test_must_hold_a_key(self, tmp_path, text):
        """What is no key is refused without being shown."""
        (tmp_path / "key").write_text(text)
        (tmp_path / "key").chmod(0o600)
        with pytest.raises(ConfigurationError, match="SETTING") as raised:
            read_key_file(tmp_path / "key", "SETTING")
        assert "FALVFGyN" not in str(raised.value)

    @pytest.mark.parametrize("text", ["", "x", GO_SKEY, GO_VKEY.replace("c7", "c8"), GO_VKEY[:-4]])
    def test_tell_a_public_key_from_others(self, text):
        """A private, damaged or foreign key is no public key."""
        with pytest.raises(ConfigurationError, match="SETTING"):
            read_public_key(text, "SETTING")

    @pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb"])
    def test_refuse_names_that_notes_cannot_carry(self, name):
        """Spaces and plus signs would break the formats."""
        with pytest.raises(ConfigurationError, match="name"):
            generate(name)

    def test_say_when_there_is_no_file(self, tmp_path):
        """A missing file is named."""
        with pytest.raises(ConfigurationError, match="cannot be read"):
            read_key_file(tmp_path / "none", "SETTING")
