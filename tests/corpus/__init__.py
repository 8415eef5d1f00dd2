"""Secrets and innocents by which redaction is measured on both sides."""

from __future__ import annotations

import json
import random
import re
import string
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

CANARY = "pw7Canary3xQ9"

_HERE = Path(__file__).parent
_ALPHABETS = {
    "x": "0123456789abcdef",
    "a": string.ascii_letters + string.digits,
    "A": string.ascii_uppercase + string.digits,
}
_PART = re.compile(r"([xaA])([0-9]+)(?![0-9A-Za-z])")


class Case(NamedTuple):
    """One document.

    Attributes:
        kind: What it is an example of.
        document: The document.
        secret: What must not be left of it; None where all of it must stay.
    """

    kind: str
    document: Any
    secret: str | None = None


def secrets() -> Iterator[Case]:
    """Give each secret in a document."""
    read = tomllib.loads((_HERE / "secrets.toml").read_text("utf-8"))
    for kind, names in read["names"].items():
        for name in names.split():
            yield Case(f"names: {kind}", {"a": [{name: CANARY}]}, CANARY)
    for kind, documents in read["documents"].items():
        for text in documents:
            filled = text.replace("§", CANARY)
            yield Case(kind, _parsed(filled), CANARY)
    for kind, numbers in read["numbers"].items():
        for number in numbers:
            yield Case(f"numbers: {kind}", [f"pay {number} now"], number)
    chance = random.Random(8)
    for shape in read["keys"]["shapes"].split():
        key = _PART.sub(lambda part: _random(chance, part[1], int(part[2])), shape)
        yield Case("keys of vendors", [f"use {key} please"], key)


def innocents() -> Iterator[Case]:
    """Give each document in which nothing is a secret."""
    read = tomllib.loads((_HERE / "innocents.toml").read_text("utf-8"))
    for kind, documents in read["documents"].items():
        yield from (Case(kind, _parsed(text)) for text in documents)
    for number in read["numbers"]["plain"]:
        yield Case("numbers", [f"see {number} there"])
    yield from _by_chance()


def _by_chance() -> Iterator[Case]:
    """Give numbers as they are given out: an EAN, a phone, a snowflake, a phone's IMEI and version."""
    chance = random.Random(9)
    for _ in range(200):
        ean = f"4{chance.randrange(10**11):011d}"
        check = -sum(int(n) * (3 if place % 2 else 1) for place, n in enumerate(ean)) % 10
        yield Case("EANs of 40 to 49", [f"{ean}{check}"])
        yield Case("mobile numbers", [f"+4917{chance.randrange(10**9):09d}"])
        yield Case("snowflakes", [str(chance.randrange(2 * 10**17, 14 * 10**17))])
        yield Case("nanoseconds", [str(1_763_000_000_000_000_000 + chance.getrandbits(56))])


def _random(chance: random.Random, alphabet: str, count: int) -> str:
    return "".join(chance.choice(_ALPHABETS[alphabet]) for _ in range(count))


def _parsed(text: str) -> Any:
    """A document, or a text in one."""
    return json.loads(text) if text[:1] in "{[" and text[1:2] in '"[' else [text]
