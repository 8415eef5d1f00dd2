"""Decompression of gzip in bounded steps (RFC 1952)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Final

_PADDING: Final = re.compile(rb"\0+")
_PIECE: Final = 65_536
"""Bytes that are fed at a time: what the end of a member leaves of them is copied."""


class TooManyMembersError(ValueError):
    """The data has more members than are read."""


def gunzip(data: bytes, step: int, most_members: int) -> Iterator[bytes]:
    """Decompress members one after the other; zero bytes between them are skipped.

    Args:
        data: The compressed bytes.
        step: Bytes that one step yields at most, so that the caller can stop a bomb.
        most_members: Members that are read.

    Raises:
        zlib.error: The data is not gzip.
        EOFError: It ends within a member.
        TooManyMembersError: It has more members than are read.
    """
    view, at, members = memoryview(data), 0, 0
    while at < len(data):
        if members >= most_members:
            raise TooManyMembersError
        members += 1
        member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        while not member.eof:
            piece: bytes | memoryview = member.unconsumed_tail
            if not piece:
                piece = view[at : at + _PIECE]
                at += len(piece)
            part = member.decompress(piece, step)
            if not part and not piece and not member.eof:
                raise EOFError
            yield part
        at -= len(member.unused_data)
        padding = _PADDING.match(data, at)
        at = at if padding is None else padding.end()
