from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from otel_audit._util.ids import derived_uuid7, public_id, uuid7


class TestUuid7:
    @given(st.integers(0, 2**63))
    def test_it_is_a_version_7_uuid_of_its_time(self, unix_ns):
        """The first 48 bits are the milliseconds since the epoch, as RFC 9562 wants."""
        made = uuid.UUID(uuid7(unix_ns))
        assert made.version == 7
        assert made.variant == uuid.RFC_4122
        assert made.int >> 80 == unix_ns // 1_000_000

    def test_later_ids_sort_later(self):
        """Within a millisecond, too, ids sort by time."""
        times = [1_790_000_000_000_000_000 + step * 1_000 for step in range(500)]
        made = [uuid7(time) for time in times]
        assert made == sorted(made)

    def test_no_two_are_the_same(self):
        """The random part tells ids of one moment apart."""
        assert len({uuid7(1) for _ in range(10_000)}) == 10_000

    @given(st.integers(0, 2**63))
    def test_ids_of_one_time_share_their_first_half_alone(self, unix_ns):
        """The public id of a request has the time of its record, and nothing else of its id."""
        own, public = uuid7(unix_ns), public_id(unix_ns)
        assert own[:19] == public[:19]
        assert own[19:] != public[19:]
        assert uuid.UUID(public).version == 7
        assert uuid.UUID(public).variant == uuid.RFC_4122

    @given(st.integers(-(2**70), 2**90))
    def test_absurd_times_are_clamped(self, unix_ns):
        """A clock that is off by centuries still gives a valid id."""
        assert uuid.UUID(uuid7(unix_ns)).version == 7


class TestDerivedUuid7:
    def test_the_same_parts_give_the_same_id(self):
        """Deriving again gives the same id; another part gives another."""
        assert derived_uuid7(5, "a", "b") == derived_uuid7(5, "a", "b")
        assert derived_uuid7(5, "a", "b") != derived_uuid7(5, "ab", "")
        assert uuid.UUID(derived_uuid7(5, "a")).version == 7

    def test_it_is_the_id_that_it_has_always_been(self):
        """A span that is delivered again, by another version too, has the id of its stored row."""
        assert (
            derived_uuid7(1795996106358060935, "trace", "span")
            == "01a229b5-be76-70f9-8940-23fa5592e137"
        )
        assert derived_uuid7(0, "a") == "00000000-0000-7000-8a97-8112ca1bbdca"
