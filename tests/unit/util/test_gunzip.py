"""Decompression of gzip in bounded steps."""

from __future__ import annotations

import gzip
import os
import zlib

import pytest

from otel_audit._util.gunzip import TooManyMembersError, gunzip

DATA = os.urandom(200_000) + b"\0" * 300_000


def test_members_follow_one_another() -> None:
    """As `gzip` reads them, zero bytes between them included; no step is larger than asked."""
    sent = gzip.compress(DATA) + b"\0" * 7 + gzip.compress(b"") + gzip.compress(b"end") + b"\0"
    parts = list(gunzip(sent, 1000, 3))
    assert b"".join(parts) == DATA + b"end" == gzip.decompress(sent)
    assert max(map(len, parts)) == 1000


def test_nothing_is_nothing() -> None:
    """An empty body has no member."""
    assert list(gunzip(b"", 1000, 1)) == []


@pytest.mark.parametrize("end", [1, 10, 20, 100_000])
def test_an_end_within_a_member(end: int) -> None:
    """What is cut off is told from what is whole."""
    with pytest.raises(EOFError):
        list(gunzip(gzip.compress(DATA)[:end], 1000, 1))


def test_what_is_not_gzip() -> None:
    """Also where it stands behind a member."""
    for sent in (b"plain text", gzip.compress(b"x") + b"plain text"):
        with pytest.raises(zlib.error):
            list(gunzip(sent, 1000, 5))


def test_too_many_members() -> None:
    """Each costs a decompressor: there are no more than one expects."""
    with pytest.raises(TooManyMembersError):
        list(gunzip(gzip.compress(b"x") * 4, 1000, 3))
