from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from otel_audit.http.exchange_capture import BodyCopy


class TestBodyCopy:
    @given(chunks=st.lists(st.binary(max_size=30)), limit=st.integers(0, 100))
    def test_it_keeps_the_head_and_counts_the_whole(self, chunks, limit):
        """However it is cut into chunks, the head is the body's, and the size is the body's."""
        copy, body = BodyCopy(limit), b"".join(chunks)
        for place, chunk in enumerate(chunks, start=1):
            copy.add({"body": chunk, "more_body": place < len(chunks)})
        assert copy.head == body[:limit]
        assert copy.size == len(body)
        assert copy.whole == (bool(chunks) and len(body) <= limit)

    def test_it_can_begin_anew(self):
        """What turned out not to be sent leaves no trace."""
        copy = BodyCopy(10)
        copy.add({"body": b"secret"})
        copy.restart()
        copy.add({"body": b"ok", "more_body": True})
        assert (copy.head, copy.size, copy.complete) == (b"ok", 2, False)
