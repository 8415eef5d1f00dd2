"""Texts that come again and again are turned into something once."""

from __future__ import annotations

import pytest
from otel_audit_postgres.cache import LONGEST, MOST, TextCache


def counting():
    made = []

    def make(text):
        made.append(text)
        return f"<{text}>"

    return TextCache(make), made


def test_makes_each_once():
    """None is a text like any other here."""
    remembered, made = counting()
    assert [remembered[text] for text in ("a", None, "a", None)] == ["<a>", "<None>"] * 2
    assert made == ["a", None]


def test_is_bounded():
    """In how many texts it keeps, and in how long they are."""
    remembered, made = counting()
    for number in range(MOST * 3):
        assert remembered[str(number)] == f"<{number}>"
        assert len(remembered) <= MOST
    long = "x" * (LONGEST + 1)
    assert remembered[long] == remembered[long] == f"<{long}>"
    assert made[-2:] == [long, long]


def test_keeps_no_object_of_the_application():
    """A kind of text may hold on to anything."""
    remembered, _ = counting()
    assert remembered[type("Kind", (str,), {})("a")] == "<a>"
    assert len(remembered) == 0


def test_keeps_nothing_where_making_fails():
    """The error is the caller's, each time."""
    remembered = TextCache(str.encode)
    for _ in range(2):
        with pytest.raises(TypeError):
            remembered[5]
    assert len(remembered) == 0
