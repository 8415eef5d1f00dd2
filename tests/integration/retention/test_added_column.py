"""A column that is added: rows, files and hashes of before stay good."""

from __future__ import annotations

import re
import shutil

import pytest
from added_column import FEBRUARY, IN_EUROPE, changed_files, copy_with_column, run_with_column, section
from otel_audit_postgres import rows
from otel_audit_postgres.archive.objects import ArchiveError
from otel_audit_postgres.archive.row_files import parquet, read_rows
from otel_audit_postgres.ledger.verify.row_check import altered_columns
from retention_trail import Trail
from strategies import a_record

from otel_audit._util.ids import uuid7


def test_the_page_lists_the_files_that_change():
    """Whoever adds a column finds each place on the page."""
    listed = set(re.findall(r"^\d\..*?`([^`]+/[^`]+\.(?:py|sql))`", section(), re.MULTILINE))

    assert listed == changed_files()


@pytest.mark.slow
def test_everything_goes_on_by_the_steps_of_the_page(audit_server, tmp_path):
    """Old rows and archives hold the value in their payloads only, and are accused of nothing."""

    async def fill(trail):
        await trail.write_in(FEBRUARY, 4, resource=IN_EUROPE)
        await trail.seal()
        await trail.retain()
        await trail.write(2, resource=IN_EUROPE)
        await trail.seal()
        await trail.write(1, resource=IN_EUROPE)  # waits for the sealer of the next version

    with audit_server.database(audit_server.template) as dsn:
        trail = Trail(dsn, tmp_path / "log")
