from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import math
import uuid
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import JSON
from sqlalchemy.dialects.postgresql import Range

from otel_audit.orm.json_values import bounded, clean_text, portable


class Colour(enum.Enum):
    RED = "#f00"


class Kind(str, enum.Enum):  # noqa: UP042 - this very kind is meant
    FIRST = "first"


class Level(enum.IntEnum):
    HIGH = 3


class Opaque:
    def __repr__(self):
        raise RuntimeError("not to be asked")


class Vector:
    """As numpy's and pgvector's."""

    def tolist(self):
        return [1.0, 2.5]


ZONE = dt.timezone(dt.timedelta(hours=-5))


class TestPortable:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (None, None),
            (True, True),
            (7, 7),
            (2**63 - 1, 2**63 - 1),
            (2**63, str(2**63)),
            (-(2**63) - 1, str(-(2**63) - 1)),
            (1.5, 1.5),
            (math.nan, "NaN"),
            (math.inf, "Infinity"),
            (-math.inf, "-Infinity"),
            (Decimal("12.30"), "12.30"),
            (Decimal("NaN"), "NaN"),
            (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
            (dt.datetime(2024, 1, 2, 3), "2024-01-02T03:00:00"),
            (dt.datetime(2024, 1, 2, 3, tzinfo=ZONE), "2024-01-02T08:00:00+00:00"),
            (dt.datetime(9999, 12, 31, 23, tzinfo=ZONE), "9999-12-31T23:00:00-05:00"),
            (dt.date(2024, 1, 2), "2024-01-02"),
            (dt.time(3, 4), "03:04:00"),
            (dt.timedelta(days=1, hours=2), "P1DT7200S"),
            (Colour.RED, "RED"),
            (Level.HIGH, 3),
            (Kind.FIRST, "first"),
            (JSON.NULL, None),
            ({"a": [JSON.NULL, Kind.FIRST]}, {"a": [None, "first"]}),
            (b"abc", {"bytes": 3}),
            (bytearray(b"abc"), {"bytes": 3}),
            (memoryview(b"abc"), {"bytes": 3}),
            (Range(1, 10), "[1,10)"),
            (Range(1, None, bounds="(]"), "(1,]"),
            (Range(empty=True), "empty"),
            (Range(dt.date(2024, 1, 2), None), "[2024-01-02,)"),
            (ipaddress.ip_address("::1"), "::1"),
            (ipaddress.ip_network("10.0.0.0/8"), "10.0.0.0/8"),
            (Vector(), [1.0, 2.5]),
            ({3, 1, 2}, [1, 2, 3]),
            ((1, (2,)), [1, [2]]),
            ({1: "a", "b": 2}, {"1": "a", "b": 2}),
            ("a\x00b\ud800", "a\ufffdb\ufffd"),
            (Opaque, {"type": "builtins.type"}),
        ],
    )
    def test_table(self, value, expected):
        """Every kind of value has the JSON form that the table promises."""
        assert portable(value) == expected

    def test_numbers_too_long_for_decimal_text(self):
        """A number that the interpreter will not spell in decimals is spelt otherwise."""
        assert portable(10**5000) == hex(10**5000)

    def test_long_bytes_have_a_hash(self):
        """From 64 bytes on the hash is given: a shorter one could be guessed."""
        assert set(portable(b"a" * 63)) == {"bytes"}
        assert set(portable(b"a" * 64)) == {"bytes", "sha256"}

    def test_unknown_types_are_only_named(self):
        """Of an unknown type nothing is asked that might raise or leak."""
        assert portable(Opaque())["type"].endswith("Opaque")

    def test_depth(self):
        """What is nested beyond reason ends in a note, not in a crash."""
        value: list = []
        for _ in range(10_000):
            value = [value]
        assert b"nested too deeply" in msgspec.json.encode(portable(value))

    def test_copies(self):
        """The form shares nothing mutable with the value."""
        value = {"a": [1]}
        form = portable(value)
        value["a"].append(2)
        assert form == {"a": [1]}

    @given(
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text(st.characters())
            | st.binary()
            | st.decimals()
            | st.datetimes(timezones=st.none() | st.timezones())
            | st.timedeltas()
            | st.uuids(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
            max_leaves=20,
        )
    )
    def test_always_encodes(self, value):
        """Whatever the value, its form is JSON that PostgreSQL can store, and stays as it is."""
        form = portable(value)
        text = msgspec.json.encode(form)
        assert b"\\u0000" not in text
        assert msgspec.json.decode(text) == form
        assert portable(form) == form


class TestBounded:
    def test_short_values_stay(self):
        """A value within the bound is not touched."""
        assert bounded({"a": 1}, 7) == {"a": 1}
        assert bounded("abc", 3) == "abc"

    def test_long_values_are_cut(self):
        """A longer one is cut, and says its size in bytes and its hash."""
        cut = bounded("é" * 1000, 999)
        assert cut["size"] == 2000
        assert cut["cut"] == "é" * 256
        assert len(cut["sha256"]) == 64

    def test_long_documents_are_cut(self):
        """So is a document, by its JSON text."""
        assert bounded(["a" * 50], 50)["size"] == 54


class TestCleanText:
    @given(st.text(st.characters()))
    def test_clean_is_utf8(self, text):
        """Clean text can be spelled in UTF-8 and holds no NUL; clean text stays."""
        clean = clean_text(text)
        assert "\x00" not in clean
        assert clean_text(clean) == clean
        assert len(clean) == len(text)
        clean.encode()
