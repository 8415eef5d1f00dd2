"""All places that list the columns of a row list those of `COLUMNS`."""

from __future__ import annotations

import re

import pytest
from otel_audit_postgres.reports.evidence import EXPECTED, NOT_COMPARED
from otel_audit_postgres.rows import ADDED_IN, COLUMNS
from otel_audit_postgres.schema.migrations import migrations

from otel_audit.record import READABLE_VERSIONS

NAMES = [name for name, _ in COLUMNS]
TEXTS = {name for name, kind in COLUMNS if kind == "text"}
ORIGINAL = 16
"""Migrations before there was `ADDED_IN`."""
BESIDE_THE_HASH = {"id", "payload", "recorded_at"}
"""The leaf is made of these."""


@pytest.mark.parametrize(("table", "more"), [("audit_logs", set()), ("restored_logs", {"month"})])
async def test_both_tables_have_them(connection, table, more):
    """With their types; a restored month needs each of them, too."""
    found = await connection.fetch(
        "SELECT attname, format_type(atttypid, NULL) AS kind FROM pg_attribute "
        "WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped",
        f"audit.{table}",
    )
    usual = {
        "timestamp with time zone": "timestamptz",
        "double precision": "float8",
        "integer": "int4",
        "bigint": "int8",
    }
    kinds = {row["attname"]: usual.get(row["kind"], row["kind"]) for row in found}

    assert {name: kinds.get(name) for name in NAMES} == dict(COLUMNS)
    assert kinds.keys() - {*NAMES} == {"recorded_at", *more}


@pytest.mark.parametrize(
    ("function", "row"),
    [("columns_hash(audit.audit_logs)", "stored"), ("queue_for_sealing()", "i")],
)
async def test_the_hash_of_columns_covers_them(connection, function, row):
    """What is not in it could be changed before the sealer looks."""
    text = await connection.fetchval(
        "SELECT pg_get_functiondef($1::text::regprocedure)", f"audit.{function}"
    )
    hashed = text[text.index("sha256(record_send(ROW(") :]

    assert set(re.findall(rf"\b{row}\.(\w+)", hashed)) == {*NAMES} - BESIDE_THE_HASH


async def test_the_limit_of_all_texts_counts_each(connection):
    """Nobody can insert a row that no reader can bear."""
    text = await connection.fetchval(
        "SELECT pg_get_functiondef('audit.queue_for_sealing'::regproc)"
    )
    (counted,) = re.findall(r"WHEN (octet_length\(i\.action_id\).*?) > 4194304", text, re.DOTALL)

    names = set(re.findall(r"octet_length\(i\.(\w+)\)", counted))
    # the producer's id has a limit of its own
    assert names == TEXTS - {"producer_id"}


def test_reports_compare_each_or_say_that_they_do_not():
    """A column that nobody compares could be changed without a report's notice."""
    assert not EXPECTED.keys() & NOT_COMPARED
    assert EXPECTED.keys() | NOT_COMPARED == {*NAMES}


def test_a_later_column_has_the_version_of_its_rows():
    """Without it each old row would be called changed, and no old archive could be read."""
    later = {
        name
        for step in migrations()[ORIGINAL:]
        for name in re.findall(r"ALTER TABLE audit\.audit_logs ADD COLUMN (\w+)", step.sql)
    }

    assert later == {*ADDED_IN}
    assert {*ADDED_IN.values()} <= {*READABLE_VERSIONS}
