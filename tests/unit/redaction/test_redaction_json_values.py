from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import hashlib
import ipaddress
import json
import math
import pathlib
import uuid
from decimal import Decimal
from pathlib import Path, PurePosixPath

import asyncpg
import msgspec
import psycopg
import psycopg2.extras
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.types.json import Json, Jsonb
from psycopg.types.multirange import Int4Multirange, Multirange
from psycopg.types.range import Range as PsycopgRange
from sqlalchemy import JSON, DateTime
from sqlalchemy.dialects.postgresql import Range

from otel_audit._util.text import storable
from otel_audit.orm.column_values import column_form
from otel_audit.orm.key_spelling import key_spelling
from otel_audit.redaction import Redactor, Sensitive
from otel_audit.redaction.json_values import SCALARS, duration, json_form
from otel_audit.redaction.truncate import shorten


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


class Hours(dt.timedelta):
    """As libraries have that count days, or months, in a way of their own."""

    @property
    def days(self):
        raise RuntimeError("not to be asked")


class Loud(int):
    def __int__(self):
        raise RuntimeError("not to be asked")

    bit_length = __int__


class LoudFloat(float):
    def __float__(self):
        raise RuntimeError("not to be asked")

    __gt__ = __float__


class Status(enum.Enum):
    paid = 1


MONEY = type("Money", (), {"__module__": "shop", "__qualname__": "Money"})()
PAYLOAD = Path(__file__).parents[3] / "docs" / "payload.md"
"""Has the only table of the forms."""


ZONE = dt.timezone(dt.timedelta(hours=-5))


class TestColumnForm:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (None, None),
            (True, True),
            (7, 7),
            (2**63 - 1, 2**63 - 1),
            (2**63, 2**63),
            (-(2**70), -(2**70)),
            (1.5, 1.5),
            (math.nan, "NaN"),
            (math.inf, "Infinity"),
            (-math.inf, "-Infinity"),
            (Decimal("12.30"), "12.30"),
            (Decimal("NaN"), "NaN"),
            (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
            (dt.datetime(2024, 1, 2, 3), "2024-01-02T03:00:00"),
            (dt.datetime(2024, 1, 2, 3, tzinfo=ZONE), "2024-01-02T03:00:00-05:00"),
            (dt.datetime(9999, 12, 31, 23, tzinfo=ZONE), "9999-12-31T23:00:00-05:00"),
            (dt.date(2024, 1, 2), "2024-01-02"),
            (dt.time(3, 4), "03:04:00"),
            (dt.timedelta(days=1, hours=2), "P1DT2H"),
            (Colour.RED, "RED"),
            (Level.HIGH, 3),
            (Kind.FIRST, "first"),
            (JSON.NULL, None),
            ({"a": [JSON.NULL, Kind.FIRST]}, {"a": [None, "first"]}),
            (b"abc", {"_binary": True, "_size": 3}),
            (bytearray(b"abc"), {"_binary": True, "_size": 3}),
            (memoryview(b"abc"), {"_binary": True, "_size": 3}),
            (Range(1, 10), "[1,10)"),
            (Range(1, None, bounds="(]"), "(1,]"),
            (Range(empty=True), "empty"),
            (Range(dt.date(2024, 1, 2), None), "[2024-01-02,)"),
            (ipaddress.ip_address("::1"), "::1"),
            (ipaddress.ip_network("10.0.0.0/8"), "10.0.0.0/8"),
            (ipaddress.ip_interface("10.1.2.3/24"), "10.1.2.3/24"),
            (ipaddress.ip_interface("fe80::1%eth0/64"), "fe80::1%eth0/64"),
            ({ipaddress.ip_interface("10.1.2.3/24"): 1}, {"10.1.2.3/24": 1}),
            (Hours(days=-1, hours=2), "-PT22H"),
            (Loud(3), 3),
            (LoudFloat("inf"), "Infinity"),
            (asyncpg.BitString("010110101"), "010110101"),
            (asyncpg.Point(1, 2), [1.0, 2.0]),
            (asyncpg.Box(asyncpg.Point(3, 4), asyncpg.Point(1, 2)), [[3.0, 4.0], [1.0, 2.0]]),
            (asyncpg.Line(1, 2, 3), [1, 2, 3]),
            (asyncpg.LineSegment((1, 2), (3, 4)), [[1.0, 2.0], [3.0, 4.0]]),
            (asyncpg.Circle((1, 2), 3), [[1.0, 2.0], 3]),
            (asyncpg.Polygon((1, 2), (3, 4)), [[1.0, 2.0], [3.0, 4.0]]),
            (
                asyncpg.Path((1, 2), (3, 4), is_closed=True),
                {"points": [[1.0, 2.0], [3.0, 4.0]], "is_closed": True},
            ),
            (asyncpg.Path((1, 2)), {"points": [[1.0, 2.0]], "is_closed": False}),
            (Int4Multirange([PsycopgRange(1, 3), PsycopgRange(5, None)]), ["[1,3)", "[5,)"]),
            (Multirange(), []),
            (Json({"a": [1, None]}), {"a": [1, None]}),
            (Jsonb(None), None),
            (psycopg2.extras.Json(["a"]), ["a"]),
            (psycopg.Binary(b"abc"), {"_binary": True, "_size": 3}),
            (psycopg2.Binary(b"abc"), {"_binary": True, "_size": 3}),
            ([Jsonb(Jsonb(1)), asyncpg.Polygon((1, 2))], [1, [[1.0, 2.0]]]),
            (Vector(), [1.0, 2.5]),
            ({3, 1, 2}, [1, 2, 3]),
            ((1, (2,)), [1, [2]]),
            ({1: "a", "b": 2}, {"1": "a", "b": 2}),
            ("a\x00b\ud800", "a\ufffdb\ufffd"),
            (Opaque, {"_type": "builtins.type"}),
        ],
    )
    def test_table(self, value, expected):
        """Every kind of value has the JSON form that the table promises."""
        assert column_form(value) == expected

    def test_documented_table(self):
        """Each row of the documentation has an example that such a value really gives."""
        text = PAYLOAD.read_text().partition("| value | JSON | example |\n")[2].partition("\n\n")[0]
        examples = [
            json.loads(row.rpartition(" | ")[2].strip(" |`"))
            for row in text.splitlines()[1:]
            if not row.startswith("| uploaded file")  # is no value of the application's
        ]
        moment = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.timezone(dt.timedelta(hours=2)))
        assert examples == [
            column_form(value)
            for value in (
                "tea",
                9007199254740993,
                2.5,
                Decimal("12.30"),
                ipaddress.ip_network("10.0.0.0/8"),
                moment,
                dt.timedelta(days=1, hours=2),
                Status.paid,
                b"abc",
                (1, 2),
                {2, 1},
                {"a": 1},
                Range(1, 10),
                asyncpg.BitString("0101"),
                asyncpg.Polygon((0, 0), (1, 0), (1, 1)),
                asyncpg.Path((0, 0), (1, 0)),
                Jsonb({"a": 1}),
                MONEY,
            )
        ]

    def test_classes_stand_before_those_that_they_derive_from(self):
        """What is looked up first is the nearest class: an address with a mask is an address."""
        for place, kind in enumerate(SCALARS):
            assert not any(issubclass(later, kind) for later in SCALARS[place + 1 :]), kind

    def test_classes_with_a_text_of_their_own(self):
        """A class that spells itself in another way than the one it derives from is in the table."""
        modules = (ipaddress, dt, decimal, uuid, pathlib)
        kinds = [kind for module in modules for kind in vars(module).values()]
        derived = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, SCALARS)]
        assert [kind for kind in derived if "__str__" in vars(kind) and kind not in SCALARS] == []

    def test_numbers_too_long_for_decimal_text(self):
        """An enormous number is not worth its conversion."""
        assert column_form(10**5000) == "[WITHHELD]"

    def test_long_bytes_have_a_hash(self):
        """From 64 bytes on the hash is given: a shorter one could be guessed."""
        assert set(column_form(b"a" * 63)) == {"_binary", "_size"}
        assert set(column_form(b"a" * 64)) == {"_binary", "_size", "_sha256"}

    def test_unknown_types_are_only_named(self):
        """Of an unknown type nothing is asked that might raise or leak."""
        assert column_form(Opaque())["_type"].endswith("Opaque")

    def test_depth(self):
        """What is nested beyond reason ends in a note, not in a crash."""
        value: list = []
        for _ in range(10_000):
            value = [value]
        assert b"[WITHHELD]" in msgspec.json.encode(column_form(value))

    def test_copies(self):
        """The form shares nothing mutable with the value."""
        value = {"a": [1]}
        form = column_form(value)
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
        form = column_form(value)
        text = msgspec.json.encode(form)
        assert b"\\u0000" not in text
        assert msgspec.json.decode(text) == form
        assert column_form(form) == form


@dataclasses.dataclass(frozen=True)
class Card:
    holder: str
    number: Sensitive = dataclasses.field(default="x", metadata={"audit": "redact"})
    memo: str = dataclasses.field(default="x", metadata={"audit": "omit"})


class Lazy(type):
    """Makes attributes that run code when they are read."""

    def __new__(cls, name, bases, names):
        made = dataclasses.dataclass(super().__new__(cls, name, bases, names))
        made.total = property(lambda _: pytest.fail("an attribute was asked for"))
        return made


class Row(metaclass=Lazy):
    number: int
    total: int = 0

    def __init__(self, number: int) -> None:
        self.number = number


@dataclasses.dataclass(slots=True)
class Slim:
    number: int


ALIKE = [
    *(None, True, 7, 2**80, -(2**63) - 1, 1.5, 1e22, math.nan, -math.inf, "tea", "a\x00b\ud800"),
    *(Decimal("12.30"), Decimal("1E+9"), uuid.UUID(int=1), PurePosixPath("/a/b")),
    *(dt.datetime(2024, 1, 2, 3), dt.datetime(2024, 1, 2, 3, tzinfo=ZONE), dt.date(2024, 1, 2)),
    *(dt.time(3, 4), dt.time(3, 4, tzinfo=dt.UTC), dt.timedelta(days=1, hours=2)),
    *(Kind.FIRST, Level.HIGH, b"abc", b"a" * 64, bytearray(b"abc"), memoryview(b"abc")),
    *({3, 1, 2}, frozenset({"b", "a"}), (1, (2,)), {1: "a", None: 2, dt.date(2024, 1, 2): 3}),
    *({"a": [Opaque()], "b": Opaque}, Card("Ann"), Row(4), Slim(5), [Card("Bob")]),
    *(ipaddress.ip_interface("10.0.0.1/8"), 10**5000),
]


class TestOneForm:
    @pytest.mark.parametrize("value", ALIKE, ids=lambda value: type(value).__name__)
    def test_metadata_and_columns_have_one_form(self, value):
        """What redaction makes of a value and what a change holds of it are the same JSON."""
        metadata = Redactor().document({"note": value})["note"]
        assert metadata == Redactor().field("note", column_form(value))
        assert msgspec.json.encode(metadata) == msgspec.json.encode(column_form(value))

    def test_an_enum_is_stored_as_its_value_but_in_a_column(self):
        """Outside of a column a member is its value, which is what programs put into JSON."""
        assert Redactor().document({"colour": Colour.RED}) == {"colour": "#f00"}
        assert json_form(Colour.RED, [1]) == "#f00"

    def test_marks_of_a_model_count(self):
        """A field that its model marks is redacted or left out, in a column, too."""
        assert column_form(Card("Ann")) == {"holder": "Ann", "number": "[REDACTED]"}

    def test_nothing_lazy_is_asked(self):
        """Of an object only what it holds is read: no property, no attribute that loads."""
        assert column_form(Row(4)) == {"number": 4, "total": None}

    def test_at_most_so_many_are_read(self):
        """Beyond the budget the rest is counted, not read."""
        assert json_form([1, 2, 3], [2]) == [1, 2, "[WITHHELD]"]
        assert json_form({"a": 1, "b": 2, "c": 3}, [1]) == {"a": 1, "[WITHHELD]": 2}

    @given(st.timedeltas())
    def test_durations_are_iso_8601(self, value):
        """Another reader of ISO 8601 finds the same duration."""
        assert msgspec.convert(duration(value), dt.timedelta) == value

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (dt.timedelta(), "PT0S"),
            (dt.timedelta(seconds=1.5), "PT1.5S"),
            (dt.timedelta(days=-1), "-P1D"),
            (dt.timedelta(hours=-1, microseconds=-1), "-PT1H0.000001S"),
            (dt.timedelta(weeks=1, minutes=5), "P7DT5M"),
        ],
    )
    def test_durations(self, value, expected):
        """The shortest spelling of days, hours, minutes and seconds."""
        assert duration(value) == expected

    def test_times_of_keys_are_in_utc(self):
        """A row has one reference, whatever offset its key was given in."""
        spell = key_spelling(DateTime(timezone=True))
        assert spell is not None
        assert spell(dt.datetime(2024, 1, 2, 3, tzinfo=ZONE)) == dt.datetime(
            2024, 1, 2, 8, tzinfo=dt.UTC
        )
        assert spell(dt.datetime(2024, 1, 2, 3, tzinfo=ZONE)).isoformat().endswith("+00:00")
        far = dt.datetime(9999, 12, 31, 23, tzinfo=ZONE)
        assert spell(far) is far
        assert spell(dt.datetime(2024, 1, 2, 3)).tzinfo is None


class TestShorten:
    def test_short_values_stay(self):
        """A value within the bound is not touched."""
        assert shorten({"a": 1}, 7) == {"a": 1}
        assert shorten("abc", 3) == "abc"

    def test_long_values_are_cut(self):
        """A longer one is cut, and says its size in bytes and its hash."""
        cut = shorten("é" * 1000, 999)
        assert cut["_original_size"] == 2000
        assert cut["_head"] == "é" * 256
        assert len(cut["_sha256"]) == 64

    def test_long_documents_are_cut(self):
        """So is a document, by its JSON text."""
        assert shorten(["a", "b" * 500], 50) == {
            "_truncated": True,
            "_original_size": 508,
            "_head": ["a"],
            "_sha256": hashlib.sha256(b'["a","' + b"b" * 500 + b'"]').hexdigest(),
        }


class TestStorable:
    @given(st.text(st.characters()))
    def test_clean_is_utf8(self, text):
        """Clean text can be spelled in UTF-8 and holds no NUL; clean text stays."""
        clean = storable(text)
        assert "\x00" not in clean
        assert storable(clean) == clean
        assert (
            len(clean.encode("utf-16-le"))
            == 2 * len(text.encode("utf-16-le", "surrogatepass")) // 2
        )
        clean.encode()
