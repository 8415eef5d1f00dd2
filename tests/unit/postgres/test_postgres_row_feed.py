"""Rows are made when they are taken, in parts of a size, and none is lost."""

from __future__ import annotations

import msgspec
import pytest
from otel_audit_postgres.row_feed import RowFeed, can_be_fed, split, to_rows
from otel_audit_postgres.rows import to_row
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.record import Change

SIZE = len(to_row(a_record(record_id=uuid7())).payload)


def new_records(count):
    return [a_record(record_id=uuid7()) for _ in range(count)]


class Taken:
    """Records, and how many of them were taken."""

    def __init__(self, records):
        self.records = records
        self.count = 0

    def __iter__(self):
        for record in self.records:
            self.count += 1
            yield record


class TestRowFeed:
    def test_a_row_is_made_when_it_is_taken(self):
        """So the server reads the ones before it meanwhile."""
        taken = Taken(new_records(10))
        part = RowFeed(taken, 10**6).part()
        rows = iter(part)
        for number in range(1, 6):
            next(rows)
            # one more is known, to see whether it still fits
            assert taken.count <= number + 1

    def test_parts_hold_all_rows_in_their_order(self):
        """None beyond the size, none twice, none between two parts."""
        records = new_records(10)
        feed = RowFeed(records, 3 * SIZE)
        parts = []
        while feed:
            parts.append(feed.part().finish())
        assert [len(part) for part in parts] == [3, 3, 3, 1]
        ids = [row.record_id for part in parts for row in part]
        assert ids == [one.record_id for one in records]

    def test_a_row_beyond_the_size_is_a_part_of_its_own(self):
        large = a_record(record_id=uuid7(), metadata={"text": "x" * 1_000})
        feed = RowFeed([*new_records(1), large, *new_records(1)], SIZE)
        sizes = []
        while feed:
            sizes.append(len(feed.part().finish()))
        assert sizes == [1, 1, 1]

    def test_a_part_that_was_given_up_is_finished(self):
        """What was taken before an error is there with what was not."""
        records = new_records(5)
        part = RowFeed(records, 10**6).part()
        next(iter(part))
        assert [row.record_id for row in part.finish()] == [one.record_id for one in records]

    def test_what_no_row_can_hold_is_named(self):
        unfit = msgspec.structs.replace(new_records(1)[0], record_id="no uuid")
        feed = RowFeed([*new_records(2), unfit, *new_records(2)], 10**6)
        assert len(feed.part().finish()) == 4
        assert [one.record_id for one in feed.refused] == ["no uuid"]


def test_rows_that_are_made_already_are_split_alike():
    """One rule of sizes for both ways into the table."""
    large = a_record(record_id=uuid7(), metadata={"text": "x" * 1_000})
    records = [*new_records(1), large, *new_records(2)]
    feed = RowFeed(records, 2 * SIZE)
    fed = []
    while feed:
        fed.append([row.record_id for row in feed.part().finish()])
    rows, _ = to_rows(records, to_copy=True)
    assert [[row.record_id for row in part] for part in split(rows, 2 * SIZE)] == fed
    assert len(fed) == 3
    assert list(split([], SIZE)) == []


class TestWhatCanBeFed:
    def test_records_with_ids_of_their_own(self):
        assert can_be_fed(new_records(3))

    @pytest.mark.parametrize("spelled", [str.upper, str, "{{{}}}".format])
    def test_no_id_may_come_twice(self, spelled):
        """However it is spelled: one statement does not see what it inserts itself."""
        records = new_records(3)
        again = msgspec.structs.replace(records[0], record_id=spelled(records[0].record_id))
        assert not can_be_fed([*records, again])

    @pytest.mark.parametrize("record_id", ["no uuid", None, 5])
    def test_each_needs_an_id_that_a_row_can_have(self, record_id):
        records = new_records(3)
        assert not can_be_fed([*records, msgspec.structs.replace(records[0], record_id=record_id)])

    def test_none_may_take_long(self):
        """The server would wait for it within a transaction."""
        change = Change(operation="insert", entity="E", table="t", key={"id": 1})
        assert not can_be_fed(
            [*new_records(2), a_record(record_id=uuid7(), changes=(change,) * 501)]
        )


def test_rows_that_are_not_copied_have_the_same_values():
    """Only what COPY takes is left out."""
    records = new_records(2)
    copied, _ = to_rows(records, to_copy=True)
    plain, _ = to_rows(records, to_copy=False)
    assert [row.values for row in plain] == [row.values for row in copied]
    assert all(row.copied for row in copied)
    assert not any(row.copied for row in plain)
