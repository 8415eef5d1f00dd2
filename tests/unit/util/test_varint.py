"""Varints are those of Protobuf's own classes."""

from __future__ import annotations

import pytest
from google.protobuf.internal.encoder import _VarintBytes
from google.protobuf.unknown_fields import UnknownFieldSet
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from otel_audit._util.varint import field, varint


@given(st.integers(0, (1 << 64) - 1))
def test_a_number_is_written_as_protobuf_writes_it(number: int) -> None:
    """One byte or ten."""
    assert varint(number) == _VarintBytes(number)


@pytest.mark.parametrize("number", [0, 127, 128, 16_383, 16_384, (1 << 64) - 1])
def test_bounds(number: int) -> None:
    """Where one more byte begins."""
    assert varint(number) == _VarintBytes(number)


def test_a_negative_number_is_refused() -> None:
    """It must not become another number."""
    with pytest.raises(ValueError, match="range"):
        varint(-1)


@pytest.mark.parametrize("number", [1, 15, 16, 1000])
@pytest.mark.parametrize("size", [0, 127, 128, 20_000])
def test_a_field_is_read_by_protobuf(number: int, size: int) -> None:
    """Also where number or length take more than a byte."""
    (found,) = UnknownFieldSet(Status.FromString(field(number + 10, b"x" * size)))
    assert (found.field_number, found.data) == (number + 10, b"x" * size)
