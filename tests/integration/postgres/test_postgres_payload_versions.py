"""Rows of earlier versions of the payload's schema stay readable."""

from __future__ import annotations

import asyncpg
from otel_audit_postgres import PostgresSink, open_trail, record_from_payload
from payload_schema import OLD_ROW, faults_of

from otel_audit.record import SCHEMA_VERSION


async def test_a_stored_row_of_the_first_version_is_read(audit_store):
    """The trail shows it as it was written, beside rows of today."""
    old = record_from_payload(OLD_ROW)
    sink = PostgresSink(audit_store)
    try:
        assert (await sink.write([old])).stored == 1
    finally:
        await sink.close()
    connection = await asyncpg.connect(audit_store)
    try:
        row = await connection.fetchrow("SELECT schema_version, payload FROM audit.audit_logs")
    finally:
        await connection.close()
    assert row["schema_version"] == "1" != SCHEMA_VERSION
    assert faults_of(row["payload"]) == []
    async with open_trail(audit_store) as trail:
        (shown,) = await trail.show(old.record_id)
    again = record_from_payload(shown.payload)
    assert again == old
    assert again.changes[0].values["scan"] == [None, {"bytes": 80, "sha256": "ab" * 32}]
