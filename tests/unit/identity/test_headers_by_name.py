"""Headers are found by name, whatever the server and the middleware make of them."""

from __future__ import annotations

import pytest

from otel_audit.identity.safe_access import (
    first_header,
    has_header,
    header_values,
    headers_by_name,
)


def test_the_first_of_several_counts() -> None:
    """As it does for the frameworks."""
    headers = [(b"a", b"1"), (b"b", b"2"), (b"a", b"3")]
    assert headers_by_name(headers) == {b"a": b"1", b"b": b"2"}
    assert header_values({"headers": headers}, "A") == ["1", "3"]


def test_any_case_is_found() -> None:
    """ASGI has names in lower case; some servers and test clients have not."""
    headers = [(b"X-User", b"ann"), (b"x-user", b"bob")]
    assert headers_by_name(headers) == {b"x-user": b"ann"}
    assert first_header({"headers": headers}, "x-user") == "ann"


def test_a_header_that_is_replaced_in_its_place_is_seen() -> None:
    """Middleware changes the very list: the index that was made before is not used."""
    headers = [(b"authorization", b"one"), (b"host", b"shop")]
    assert headers_by_name(headers)[b"authorization"] == b"one"
    headers[0] = (b"authorization", b"two")
    assert headers_by_name(headers)[b"authorization"] == b"two"
    del headers[0]
    assert b"authorization" not in headers_by_name(headers)


def test_none_at_all() -> None:
    """A WebSocket, or a test, may have none."""
    assert headers_by_name(()) == {}
    assert first_header({}, "host") is None


def test_a_header_is_there_in_any_case() -> None:
    """Whether it is there is asked without an index."""
    assert has_header([(b"host", b"a"), (b"X-Id", b"1")], b"x-id")
    assert has_header([(b"x-id", b"1")], b"x-id")
    assert not has_header([(b"Host", b"a")], b"x-id")
    assert not has_header((), b"x-id")


@pytest.mark.parametrize("between", [[], [(b"content-type", b"text/plain")]])
def test_the_headers_of_an_equal_request_are_compared_once(
    between: list[tuple[bytes, bytes]],
) -> None:
    """Later looks meet the same pairs, so no pair's bytes are compared again."""
    headers_by_name([(b"host", b"shop"), (b"accept", b"*/*")])
    if between:
        headers_by_name(between)
    of_next = [_Counted((b"host", b"shop")), _Counted((b"accept", b"*/*"))]
    assert headers_by_name(of_next)[b"host"] == b"shop"
    compared = _Counted.compared
    assert compared > 0
    assert headers_by_name(of_next)[b"accept"] == b"*/*"
    assert _Counted.compared == compared


class _Counted(tuple[bytes, bytes]):
    """A header's line that counts how often it is compared with another one."""

    __slots__ = ()
    __hash__ = tuple.__hash__
    compared = 0

    def __eq__(self, other: object) -> bool:
        _Counted.compared += 1
        return tuple.__eq__(self, other)
