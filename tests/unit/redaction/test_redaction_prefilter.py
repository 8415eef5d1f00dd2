from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_audit.config import AuditConfig
from otel_audit.redaction import Redactor
from otel_audit.redaction.prefilter import is_plain, is_plain_path
from otel_audit.redaction.urls import redact_path

WORDS = st.text(string.ascii_letters + string.digits, max_size=8)
PLAIN = (
    st.booleans()
    | st.integers(-(10**9) + 1, 10**9 - 1)
    | WORDS
    | st.decimals(-9_999_999, 9_999_999, places=2).map(str)
    | st.datetimes(timezones=st.none() | st.timezones()).map(lambda when: when.isoformat())
    | st.dates().map(lambda day: day.isoformat())
)
STRICTEST = Redactor.from_config(AuditConfig(redact_emails=True))


class TestIsPlain:
    @settings(max_examples=500)
    @given(PLAIN)
    def test_what_is_plain_passes_the_full_look_too(self, value):
        """The glance never lets pass what the rules would take out."""
        if is_plain(value):
            assert STRICTEST.document([value]) == [value]

    @pytest.mark.parametrize("value", ["open", "129.00", "2026-11-21T22:48:24.840063", 17, True])
    def test_ordinary_values_are_plain(self, value):
        """What most columns hold is seen at a glance."""
        assert is_plain(value)

    @pytest.mark.parametrize(
        "value",
        ["4111111111111111", 4111111111111111, "hunter2=x", "078-05-1120", "Bearer abc", 1.5, None,
         "a@b.c", "2026-11-21 4111", "1234567890123", "pwd:x"],
    )  # fmt: skip
    def test_everything_else_is_looked_at(self, value):
        """What might match a rule is not plain."""
        assert not is_plain(value)


SEGMENTS = (
    st.text(string.ascii_letters, max_size=24)
    | WORDS
    | st.integers(0, 10**9).map(str)
    | st.sampled_from(
        ["api", "v1", "orders", "bearer", "basic", "password", "token", "GB29", "4111"]
    )
)


class TestIsPlainPath:
    @settings(max_examples=500)
    @given(st.lists(SEGMENTS, max_size=8).map(lambda segments: "/" + "/".join(segments)))
    def test_what_is_plain_passes_the_full_look_too(self, path):
        """The glance never lets pass what the rules would take out."""
        if is_plain_path(path):
            assert redact_path(STRICTEST._rules, path) == path

    @pytest.mark.parametrize("path", ["/", "/orders", "/api/v1/orders/1234567", "/a1b2c3/items/"])
    def test_ordinary_paths_are_plain(self, path):
        """What most applications are asked for is seen at a glance."""
        assert is_plain_path(path)

    @pytest.mark.parametrize(
        "path",
        ["/4111/1111/1111/1111", "/078-05-1120", "/a@b.example", "/hf_abc", "/x%41", "orders",
         "/eyJhbGciOiJIUzI1NiJ9", "/1234567/89", "/files/AKIAIOSFODNNQEXAMPLE"],
    )  # fmt: skip
    def test_everything_else_is_looked_at(self, path):
        """What might match a rule is not plain."""
        assert not is_plain_path(path)


def test_a_key_of_letters_alone_is_taken_out_of_a_path():
    """What looks like a long word may be a vendor's key."""
    assert STRICTEST.path("/files/AKIAIOSFODNNQEXAMPLE") == "/files/[REDACTED]"


class TestField:
    @pytest.mark.parametrize("value", ["open", 17, "129.00"])
    def test_a_sensitive_name_redacts_plain_values_too(self, value):
        """The glance is about the value; the name is judged as ever."""
        assert STRICTEST.field("password", value) == "[REDACTED]"
        assert STRICTEST.field("status", value) == value

    def test_a_path_rule_redacts_plain_values_too(self):
        """Path rules are not passed by."""
        redactor = Redactor.from_config(AuditConfig(redact_paths=["status"]))
        assert redactor.field("status", "open") == "[REDACTED]"


class TestIsPlainPathTime:
    def test_short_segments_are_read_once(self) -> None:
        """A path whose last segment does not fit has one reading, not two for each segment."""
        assert not is_plain_path("/a" * 2_000 + "/[")
        assert is_plain_path("/a" * 2_000)


class TestAssignmentsInARow:
    def test_each_is_taken_out(self) -> None:
        """A value before the next name is not taken for a word of that name."""
        assert Redactor().text("password=aaa password=bbb pin=1") == (
            "password=[REDACTED] password=[REDACTED] pin=[REDACTED]"
        )
