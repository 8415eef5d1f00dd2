"""The tables of names and shapes, read from the package's own files, which name their sources."""

from __future__ import annotations

import csv
import tomllib
from functools import cache
from importlib.resources import files
from typing import Any, Final, NamedTuple

_DATA: Final = files("otel_audit.redaction") / "data"


class NameTable(NamedTuple):
    """The lists of ``names.toml``, in the spelling of the file.

    Attributes:
        anywhere: Sensitive anywhere in a name.
        aligned: Sensitive as whole words of a name.
        whole: Sensitive as the whole name, or the last part of a path of names.
        opaque: Sensitive if the value looks like a generated identifier.
        owners: Words that a user glues before a short name (``userssn``).
        link_secrets, link_opaque: As `whole` and `opaque`, for parameters of URLs.
        link_words: Segments of a URL that a credential follows.
        about: Last words of names that describe a secret.
        events: The same, if the name is a value.
        about_last: The same of its last two words.
        about_done, about_moments: Words that are the same together: ``rotated`` and ``at``.
        about_together, wholly_about, unrelated: Ends of names, names, and parts of names that are
            none of secrets.
        counts: First or last words of names that count.
        countable, counted: Words of which several are counted, and of which one is.
        asserts: First or last words of names that ask yes or no.
        asserting: Names that ask so by themselves.
        answers: What is answered, and so is no secret; an empty text is such an answer.
        headers: Headers that carry credentials by their nature.
        types, functions: Patterns of the names of column types that encrypt, and of SQL functions
            whose arguments are secrets.
    """

    anywhere: tuple[str, ...]
    aligned: tuple[str, ...]
    whole: tuple[str, ...]
    opaque: tuple[str, ...]
    owners: tuple[str, ...]
    link_secrets: tuple[str, ...]
    link_opaque: tuple[str, ...]
    link_words: frozenset[str]
    about: frozenset[str]
    events: frozenset[str]
    about_last: frozenset[str]
    about_done: tuple[str, ...]
    about_moments: tuple[str, ...]
    about_together: frozenset[str]
    wholly_about: frozenset[str]
    unrelated: tuple[str, ...]
    counts: frozenset[str]
    countable: frozenset[str]
    counted: frozenset[str]
    asserts: frozenset[str]
    asserting: frozenset[str]
    answers: frozenset[str]
    headers: frozenset[str]
    types: tuple[str, ...]
    functions: tuple[str, ...]


class KeyShape(NamedTuple):
    """One shape of a vendor's key.

    Attributes:
        vendor: Whose it is.
        pattern: In RE2's syntax, without groups that capture.
        hint: A pattern that matches wherever the other does, regardless of case, for the search.
        source: Where the shape is documented.
    """

    vendor: str
    pattern: str
    hint: str
    source: str


class QuotedValue(NamedTuple):
    """One form in which a message quotes a value without the name that it goes by.

    Attributes:
        rule: As findings name it.
        pattern: In RE2's syntax; its first group is the value.
        hint: Texts in lower case, one of which is there where the pattern matches.
        source: Who says it.
    """

    rule: str
    pattern: str
    hint: str
    source: str


class CardNetwork(NamedTuple):
    """Card numbers that a network issues: first digits from ``low`` to ``high``."""

    low: int
    high: int
    lengths: frozenset[int]


@cache
def name_table() -> NameTable:
    """Read the names."""
    read = tomllib.loads((_DATA / "names.toml").read_text("utf-8"))
    codes, owners, links, about = (read[key] for key in ("codes", "owners", "links", "about"))
    counting, asserting = read["counting"], read["asserting"]
    made_codes = (f"{of}_{end}" for of in codes["of"].split() for end in codes["ends"].split())
    return NameTable(
        anywhere=_gathered(read["anywhere"]),
        aligned=(*_gathered(read["aligned"]), *made_codes),
        whole=(
            *_gathered(read["whole"]),
            *(f"{owner}_pass" for owner in owners["pass"].split()),
            *(f"{owner}_pin" for owner in owners["pin"].split()),
        ),
        opaque=_gathered(read["opaque"]),
        owners=tuple(dict.fromkeys((*owners["glued"].split(), *owners["pass"].split()))),
        link_secrets=tuple(links["secret"].split()),
        link_opaque=tuple(links["opaque"].split()),
        link_words=frozenset(links["words"].split()),
        about=frozenset(about["words"].split()),
        events=frozenset(about["events"].split()),
        about_last=frozenset(about["last"].split()),
        about_done=tuple(about["done"].split()),
        about_moments=tuple(about["moments"].split()),
        about_together=frozenset(about["together"].split()),
        wholly_about=frozenset(about["wholly"].split()),
        unrelated=tuple(about["unrelated"].split()),
        counts=frozenset(counting["words"].split()),
        countable=frozenset(counting["several"].split()),
        counted=frozenset(counting["one"].split()),
        asserts=frozenset(asserting["words"].split()),
        asserting=frozenset(asserting["names"].split()),
        answers=frozenset(("", *asserting["answers"].split())),
        headers=frozenset(read["headers"]["names"].split()),
        types=tuple(read["code"]["types"].split()),
        functions=tuple(read["code"]["functions"].split()),
    )


@cache
def key_shapes() -> tuple[KeyShape, ...]:
    """Read the shapes of vendors' keys."""
    return tuple(
        KeyShape(row["vendor"], row["pattern"], row["hint"], row["source"])
        for row in _rows("vendor_keys.csv")
    )


@cache
def quoted_values() -> tuple[QuotedValue, ...]:
    """Read how databases, parsers and command lines quote values."""
    return tuple(QuotedValue(**row) for row in _rows("quoted_values.csv"))


@cache
def networks() -> tuple[CardNetwork, ...]:
    """Read which card numbers are issued."""
    return tuple(
        CardNetwork(int(row["low"]), int(row["high"]), frozenset(map(int, row["lengths"].split())))
        for row in _rows("card_networks.csv")
    )


def _gathered(tables: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for table in tables for name in table["names"].split()))


def _rows(file: str) -> list[dict[str, str]]:
    return list(csv.DictReader((_DATA / file).read_text("utf-8").splitlines()))
