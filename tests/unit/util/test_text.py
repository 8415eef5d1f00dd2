"""Text made fit for what takes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit._util.text import storable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"), ("größer", "größer"), ("a\0b", "a\ufffdb"), ("a\ud800b", "a\ufffdb"),
        ("\ud83d\ude00", "\U0001f600"), ("\0ä\udfff", "\ufffdä\ufffd"),
    ],
)  # fmt: skip
def test_what_no_store_takes_is_replaced(text: str, expected: str) -> None:
    """NUL and half a pair become U+FFFD; a whole pair is the character that it means."""
    assert storable(text) == expected


@given(st.text(st.characters(), max_size=30))
def test_the_result_is_utf8_without_nul(text: str) -> None:
    """Whatever came, the result can be encoded, and is its own result."""
    found = storable(text)
    assert b"\0" not in found.encode()
    assert storable(found) == found
