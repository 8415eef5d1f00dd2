"""A copy of the source with one more column, and what is done with it in a process of its own.

The source is changed by the steps of docs/contributing.md. The store was filled by the source as it is.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import asyncpg
import column_migration
from ledger_store import Administrator
from otel_audit_postgres import migrate, open_trail, parse, record_from_payload, rows
from otel_audit_postgres.archive.catalog import archived_objects
from otel_audit_postgres.archive.parquet_files import read_rows
from otel_audit_postgres.archive.query import query_archives
from otel_audit_postgres.archive.restore import restore_month
from otel_audit_postgres.exports.check import check_export
from otel_audit_postgres.exports.write import write_export
from otel_audit_postgres.ledger.keys import read_signing_key
from otel_audit_postgres.query import queries
from otel_audit_postgres.reports.evidence import Witnesses
from otel_audit_postgres.reports.make_report import make_report
from otel_audit_postgres.reports.options import Options
from otel_audit_postgres.reports.registry import REPORTS
from retention_trail import Trail

ROOT = Path(__file__).parents[1]
FEBRUARY, MAY = date(2025, 2, 1), date(2025, 5, 1)
IN_EUROPE = {"cloud.region": "eu"}

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_STORE = "exporters/otel_audit_postgres"
_STEPS = (
    ("src/otel_audit/record.py", 'SCHEMA_VERSION = "2"', 'SCHEMA_VERSION = "3"'),
    ("src/otel_audit/record.py", 'READABLE_VERSIONS = ("1", "2")', 'READABLE_VERSIONS = ("1", "2", "3")'),
    (f"{_STORE}/rows.py", '    ("payload", "json"),\n', '    ("region", "text"),\n    ("payload", "json"),\n'),
    (f"{_STORE}/rows.py", "ADDED_IN: Final[Mapping[str, str]] = {", 'ADDED_IN: Final[Mapping[str, str]] = {"region": "3"'),
    (f"{_STORE}/rows.py", "        json(payload),\n", '        text(record.resource.get("cloud.region")),\n        json(payload),\n'),
    (f"{_STORE}/reports/evidence.py", "EXPECTED: Final = {\n", "EXPECTED: Final = {\n    \"region\": \"p.resource ->> 'cloud.region'\",\n"),
    (f"{_STORE}/query/fields.py", "_ALL: Final = (\n", '_ALL: Final = (\n    Field("region", "text", "region", "where it ran", "eu"),\n'),
)  # fmt: skip


def section() -> str:
    """The page's section about columns."""
    page = (ROOT / "docs" / "contributing.md").read_text()
    return page.partition("## Add a column\n")[2].partition("\n## ")[0]


def changed_files() -> set[str]:
    """The files that the steps change, and the migration, as the page names them."""
    return {*(file for file, _, _ in _STEPS), f"{_STORE}/sql/NNNN_region.sql"}


def copy_with_column(directory: Path) -> None:
    """Copy the source, and take the page's steps in the copy."""
    for part in ("src", "exporters"):
        shutil.copytree(ROOT / part, directory / part, dirs_exist_ok=True)
    for file, old, new in _STEPS:
        path = directory / file
        text = path.read_text()
        assert text.count(old) == 1, (file, old)
        path.write_text(text.replace(old, new))
    name = f"{column_migration.next_number():04}_region.sql"
    (directory / _STORE / "sql" / name).write_text(
        column_migration.column_migration("region", "text")
    )


def run_with_column(source: Path, dsn: str, directory: Path, key: str) -> dict[str, Any]:
    """Use the copied source on a store; what came of each step."""
    done = subprocess.run(
        [sys.executable, __file__, dsn, str(directory), key], capture_output=True, text=True,
        timeout=300, check=False,
        env={
            "PYTHONPATH": f"{source / 'src'}:{source / 'exporters'}:{ROOT / 'tests'}",
            "PATH": "/usr/bin:/bin", "HOME": str(directory),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


async def _use(dsn: str, directory: Path, key_text: str) -> dict[str, Any]:
    assert rows.ADDED_IN == {"region": "3"}, rows.__file__
    found: dict[str, Any] = {}
    connection = await asyncpg.connect(dsn)
    trail = Trail(dsn, directory, read_signing_key(key_text, "key"))
    for step in (_write, _read, _archive, _tamper):
        found |= await step(trail, connection)
    await connection.close()
    return found


async def _write(trail: Trail, connection: Any) -> dict[str, Any]:
    await migrate(trail.dsn)
    migrated = await _problems(trail)
    await trail.write(2, occurred_at=time.time_ns(), resource=IN_EUROPE)
    await trail.write_in(MAY, 3, resource=IN_EUROPE)
    queued = await connection.fetchrow(
        "SELECT count(*), count(*) FILTER (WHERE q.columns_hash = audit.columns_hash(a)) AS same "
        "FROM audit.ledger_queue q JOIN audit.audit_logs a USING (id, tenant_id)"
    )
    await trail.seal()
    return {
        "problems after migrating": migrated,
        "queued": [*queued],
        "problems after writing": await _problems(trail),
    }


async def _read(trail: Trail, _: Any) -> dict[str, Any]:
    async with open_trail(trail.dsn) as reading:
        hits = (await reading.search(parse("region:eu"))).records
        (shown,) = await reading.show(str(hits[0].id))
    out = trail.archive._folder.parent / "export.parquet"
    await write_export(trail.dsn, parse("event:order.*"), "parquet", out)
    return {
        "found": len(hits),
        "shown": record_from_payload(shown.payload).resource,
        "exported": sorted(row["region"] or "none" for row in read_rows(out)),
        "problems of the export": check_export(out, [trail.key.public]).problems,
        "report": await _report(trail),
    }


async def _archive(trail: Trail, connection: Any) -> dict[str, Any]:
    await trail.retain()
    await trail.seal()
    objects = await archived_objects(trail.dsn)
    old = [one for one in objects if one.month == FEBRUARY]
    for month in (FEBRUARY, MAY):
        await restore_month(trail.dsn, trail.archive, month, 5)
    restored = await connection.fetch(
        "SELECT month::text, region, count(*) FROM audit.restored_logs GROUP BY 1, 2 ORDER BY 1"
    )
    return {
        "problems after archiving": await _problems(trail),
        "found in all files": len(query_archives(trail.archive, objects, parse("region:eu"))),
        "found in old files": len(query_archives(trail.archive, old, parse("region:eu"))),
        "rows of old files": len(query_archives(trail.archive, old, parse(""))),
        "restored": [[*row] for row in restored],
    }


async def _tamper(trail: Trail, connection: Any) -> dict[str, Any]:
    found, administrator = {}, Administrator(connection)
    for version, region in (("3", None), ("2", "us")):
        await administrator.does(_CHANGE, version, region)
        found[f"{region} in rows of version {version}"] = await _problems(trail)
        found[f"report of {region} in rows of version {version}"] = await _report(trail)
        await administrator.does(_CHANGE, version, "eu" if version == "3" else None)
    return {**found, "problems at last": await _problems(trail)}


_CHANGE = """
UPDATE audit.audit_logs SET region = $2
WHERE schema_version = $1 AND payload -> 'resource' ->> 'cloud.region' = 'eu'
"""


async def _problems(trail: Trail) -> list[str]:
    report, _ = await trail.check_all()
    return sorted({one.detail for one in (*report.problems, *report.malformed)})


async def _report(trail: Trail) -> list[str]:
    asked = Options(begin=datetime(2025, 1, 1, tzinfo=UTC), end=datetime.now(UTC))
    witnesses = Witnesses((trail.key.public,), (trail.anchor,))
    async with queries.opened(trail.dsn) as connection:
        made = await make_report(connection, REPORTS["integrity"], asked, witnesses=witnesses)
    with closing(made):
        return [_ID.sub("ID", note) for note in made.notes if note.startswith("TAMPERED")]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_use(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))))
