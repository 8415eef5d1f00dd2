"""Writing of Protobuf's varints, and of fields that begin with their length."""

from __future__ import annotations

from typing import Final

_LENGTH_DELIMITED: Final = 2
"""The wire type of bytes, texts and messages."""
_ONE_BYTE: Final = [bytes((number,)) for number in range(128)]


def varint(number: int) -> bytes:
    """Write a base-128 varint (https://protobuf.dev/programming-guides/encoding/#varints).

    Raises:
        ValueError: The number is negative: 64 bits of it are to be given then.
    """
    if 0 <= number < 128:  # noqa: PLR2004 - seven bits to a byte
        return _ONE_BYTE[number]
    written = bytearray()
    while number > 127:  # noqa: PLR2004 - as above
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


def field(number: int, content: bytes) -> bytes:
    """Write a field of bytes, a text or a message, by its number."""
    return varint(number << 3 | _LENGTH_DELIMITED) + varint(len(content)) + content
