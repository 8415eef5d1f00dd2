"""Text of others is shown, and steers nothing."""

from __future__ import annotations

import json
import logging
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit._util.printable import VisibleFormatter, ascii_json, visible

STEERING = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


class TestVisible:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("order:1", "order:1"),
            ("café 日本 😀", "café 日本 😀"),
            ("\x1b[2Jx", "\\u{1b}[2Jx"),
            ("a\r\nb", "a\\u{d}\\u{a}b"),
            ("\u202egnp", "\\u{202e}gnp"),
            ("a\u200bb\ufeff", "a\\u{200b}b\\u{feff}"),
            ("\u2028\u2029\x85", "\\u{2028}\\u{2029}\\u{85}"),
            ("\x7f\x9b", "\\u{7f}\\u{9b}"),
            ("\xa0\u3164\u2800", "\\u{a0}\\u{3164}\\u{2800}"),
            ("\ud800", "\\u{d800}"),
        ],
    )
    def test_what_is_not_plainly_visible_is_its_number(self, text, shown):
        """Letters of every script stay; what moves, hides or joins is written out."""
        assert visible(text) == shown

    def test_no_character_steers(self):
        """Every character there is, by its class in the Unicode tables."""
        shown = visible("".join(map(chr, range(sys.maxunicode + 1))))
        assert not STEERING & {unicodedata.category(one) for one in set(shown)}
        assert shown.count("\\u{") > 900_000


class TestAsciiJson:
    @given(
        st.recursive(
            st.text() | st.integers(), lambda one: st.lists(one) | st.dictionaries(st.text(), one)
        )
    )
    def test_means_the_same(self, value):
        """Whatever the document is, it is read back as it was, from visible ASCII."""
        text = ascii_json(json.dumps(value, ensure_ascii=False, indent=1))
        assert json.loads(text) == value
        assert all(" " <= one <= "~" or one == "\n" for one in text)

    def test_delete_and_tabs_too(self):
        """DEL, which JSON lets stand, and a carriage return between two tokens."""
        assert ascii_json('{"a":\t\r"\x7f\x9b\ud800"}') == '{"a":  "\\u007f\\u009b\\ud800"}'


class TestFormatter:
    def test_a_line_and_its_traceback(self):
        """A message is one line; those of a traceback stay lines."""
        try:
            raise ValueError("bad\x1b[2J")
        except ValueError:
            record = logging.LogRecord("n", 40, "f", 1, "a\nb %s", ("\u202e",), sys.exc_info())
        first, *rest = VisibleFormatter("%(levelname)s %(message)s").format(record).split("\n")
        assert first == "ERROR a\\u{a}b \\u{202e}"
        assert rest[0] == "Traceback (most recent call last):"
        assert rest[-1] == "ValueError: bad\\u{1b}[2J"
