"""Which closed frames are not acknowledged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_growth import kept_by

from otel_audit.delivery.spool import segments as module
from otel_audit.delivery.spool.segments import UnackedFrames


class TestOutstanding:
    @given(st.sets(st.integers(1, 500), min_size=1), st.data())
    def test_agrees_with_a_set(self, positions, data):
        """Whatever the order of acknowledgements, it knows what a plain set knows."""
        order = sorted(positions)
        tested = UnackedFrames()
        for position in order:
            tested.add(position, float(position))
        left = set(order)
        for batch in data.draw(st.lists(st.lists(st.sampled_from(order)))):
            tested.acknowledge(batch)
            left -= set(batch)
            assert len(tested) == len(left)
            assert tested.oldest == min(left, default=None)
            assert tested.oldest_time == (float(min(left)) if left else None)
            assert [found for found in order if found in tested] == sorted(left)
            assert tested.within(100, 300) == sorted(one for one in left if 100 < one <= 300)

    def test_gives_memory_back(self, monkeypatch):
        """What was acknowledged long ago is forgotten, and order is kept."""
        monkeypatch.setattr(module, "_COMPACT_FROM", 10)
        tested = UnackedFrames()

        def pass_through(first: int) -> None:
            for position in range(first, first + 10_000):
                tested.add(position, float(position))
                tested.acknowledge([position - 1] if position > 1 else [])

        pass_through(1)
        assert kept_by(lambda: pass_through(10_001)) < 20_000
        assert tested.within(0, 20_000) == [20_000]

    @pytest.mark.parametrize("wrong", [15, 25, 31])
    def test_refuses_what_was_never_a_closed_frame(self, wrong):
        """A position beyond the oldest one that nobody added is a mistake."""
        tested = UnackedFrames()
        for position in (10, 20, 30):
            tested.add(position, 0.0)
        tested.acknowledge([10])
        if wrong > 20:
            with pytest.raises(ValueError, match="not that of a closed frame"):
                tested.acknowledge([wrong])
        else:
            tested.acknowledge([wrong])
        assert len(tested) == 2
