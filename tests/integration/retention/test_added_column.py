"""A column that is added: rows, files and hashes of before stay good."""

from __future__ import annotations

import re
import time

import pytest
from added_column import (
    FEBRUARY,
    IN_EUROPE,
    changed_files,
    copy_with_column,
    run_with_column,
    section,
)
from filled_stores import filled_store
from otel_audit_postgres import rows
from otel_audit_postgres.archive.objects import ArchiveError
from otel_audit_postgres.archive.parquet_files import NAMES, parquet, read_rows
from retention_trail import Trail


@pytest.fixture(scope="module")
def old_store(audit_server, tmp_path_factory):
    """A month in an archive, sealed rows, and one that the next version's sealer will find."""
    with filled_store(audit_server, tmp_path_factory.mktemp("old"), Trail, _fill) as filled:
        yield filled


async def _fill(trail):
    await trail.write_in(FEBRUARY, 4, resource=IN_EUROPE)
    await trail.seal()
    await trail.retain()
    await trail.write(2, occurred_at=time.time_ns(), resource=IN_EUROPE)
    await trail.seal()
    await trail.write(1, occurred_at=time.time_ns(), resource=IN_EUROPE)


def test_the_page_lists_the_files_that_change():
    """Whoever adds a column finds each place on the page."""
    listed = set(re.findall(r"^\d\. `([^`]+)`", section(), re.MULTILINE))

    assert listed == changed_files()


@pytest.mark.slow
def test_everything_goes_on_by_the_steps_of_the_page(audit_server, old_store, tmp_path):
    """Old rows have the value in their payloads only, and are accused of nothing."""
    copy_with_column(tmp_path / "source")
    with audit_server.database(old_store.database) as dsn:
        log = old_store.log(Trail, dsn, tmp_path / "log")
        found = run_with_column(tmp_path / "source", dsn, tmp_path / "log", log.key.text())

    changed = "columns that do not follow from the payload: region"
    told = "TAMPERED: {} records were changed, the first: ID: " + changed
    assert found == {
        "problems after migrating": [],
        "queued": [6, 6],
        "problems after writing": [],
        "found": 5,
        "shown": IN_EUROPE,
        "exported": ["eu"] * 5 + ["none"] * 3,
        "problems of the export": [],
        "report": [],
        "problems after archiving": [],
        "found in all files": 3,
        "found in old files": 0,
        "rows of old files": 4,
        "restored": [["2025-02-01", None, 4], ["2025-05-01", "eu", 3]],
        "None in rows of version 3": [changed],
        "report of None in rows of version 3": [told.format(2)],
        "us in rows of version 2": [changed],
        "report of us in rows of version 2": [told.format(3)],
        "problems at last": [],
    }


class TestAnArchivedFile:
    @pytest.fixture
    def file(self, retained, tmp_path):
        """One without the service, as if this column had been added later."""
        _, files = parquet()
        (path, *_) = sorted((retained.archive._folder / "2025-01").glob("*.parquet"))
        files.write_table(files.read_table(path).drop_columns("service_name"), tmp_path / "old")
        return tmp_path / "old"

    def test_that_is_older_than_a_column_has_null_there(self, file, monkeypatch):
        """It has what was known when it was written."""
        monkeypatch.setitem(rows.ADDED_IN, "service_name", "3")
        monkeypatch.setattr(rows, "READABLE_VERSIONS", ("1", "2", "3"))

        read = list(read_rows(file))

        assert [tuple(row) for row in read] == [NAMES] * len(read)
        assert {row["service_name"] for row in read} == {None}
        assert [row["service_name"] for row in read_rows(file, ("service_name",))] == [None] * len(
            read
        )

    @pytest.mark.parametrize("added", ["2", None])
    def test_that_lacks_what_its_version_has_is_refused(self, file, monkeypatch, added):
        """Its rows say by their version that the column was there."""
        if added:
            monkeypatch.setitem(rows.ADDED_IN, "service_name", added)

        with pytest.raises(ArchiveError, match="the file lacks .*service_name"):
            list(read_rows(file))
