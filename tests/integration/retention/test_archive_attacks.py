"""Whoever tampers with an archive is found, each in his own way; an archive that is whole never is."""

from __future__ import annotations

import json
import shutil
from datetime import date

import pytest
from ledger_store import Log
from otel_audit_postgres.archive.manifest import leaves_key, manifest_key, read_manifest
from otel_audit_postgres.archive.parquet_files import (
    NAMES,
    RowFile,
    read_leaves,
    read_rows,
    row_schema,
)
from otel_audit_postgres.archive.sparse_tree import SparseTree
from otel_audit_postgres.ledger.keys import generate
from otel_audit_postgres.ledger.verify.findings import ProblemKind
from retention_trail import MARCH, Trail


@pytest.fixture
async def archived(retained):
    """What was archived of March: its manifest and its file."""
    import asyncpg

    connection = await asyncpg.connect(retained.dsn)
    note = await connection.fetchval(
        "SELECT manifest FROM audit.archives WHERE month = '2025-03-01'"
    )
    await connection.close()
    return note, read_manifest(note)


def path_of(trail, key):
    path = trail.archive._folder / key
    path.chmod(0o644)
    return path


async def kinds(trail, **options):
    report = await trail.check(**options)
    return [problem.kind for problem in report.findings.problems]


async def test_none_is_found_where_there_is_none(retained):
    """No false alarm: deep, shallow, and with the store."""
    report, archived = await retained.check_all()
    assert (report.problems, archived.findings.problems) == ((), [])


async def test_an_object_that_is_gone(retained, archived):
    path_of(retained, archived[1].objects[0].key).unlink()
    assert ProblemKind.DELETED in await kinds(retained)


async def test_a_changed_byte(retained, archived):
    """At any place of the file."""
    path = path_of(retained, archived[1].objects[0].key)
    whole = path.read_bytes()
    for place in (10, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert await kinds(retained) == [ProblemKind.CHANGED]


async def test_a_file_that_was_cut(retained, archived):
    path = path_of(retained, archived[1].objects[0].key)
    path.write_bytes(path.read_bytes()[:-100])
    assert await kinds(retained) == [ProblemKind.CHANGED]


async def test_files_that_were_swapped(retained, archived):
    """Each of the two is whole, and in the other's place."""
    keys = [key for key in retained.archive.list_keys() if key.endswith(".parquet")]
    one, other = (path_of(retained, key) for key in (keys[0], archived[1].objects[0].key))
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    assert await kinds(retained) == [ProblemKind.CHANGED] * 2


async def test_a_manifest_that_is_gone(retained, archived):
    path_of(retained, manifest_key(MARCH, archived[0])).unlink()
    assert await kinds(retained) == [ProblemKind.DELETED]


async def test_a_tree_that_is_gone_or_of_another_month(retained, archived):
    tree = path_of(retained, archived[1].tree[0])
    others = [key for key in retained.archive.list_keys() if "tree-" in key]
    tree.write_bytes(path_of(retained, others[0]).read_bytes())
    assert ProblemKind.CHANGED in await kinds(retained)
    tree.unlink()
    assert ProblemKind.DELETED in await kinds(retained)


async def does(connection, statement, *parameters):
    """As the database's administrator, who puts the guards back."""
    async with connection.transaction():
        for table in ("archives", "ledger_prunings", "archive_removals"):
            await connection.execute(f"ALTER TABLE audit.{table} DISABLE TRIGGER USER")
        status = await connection.execute(statement, *parameters)
        for table in ("archives", "ledger_prunings", "archive_removals"):
            await connection.execute(
                f"ALTER TABLE audit.{table} ENABLE ALWAYS TRIGGER refuse_change"
            )
    assert not status.endswith(" 0")


async def test_a_month_that_is_missing(retained, connection):
    """A manifest that was taken out of the chain, in the middle and at its end."""
    await does(connection, "DELETE FROM audit.archives WHERE month = '2025-03-01'")
    assert ProblemKind.DELETED in await kinds(retained)


async def test_the_last_month_that_is_missing(retained, connection):
    await does(connection, "DELETE FROM audit.archives WHERE month = '2025-04-01'")
    assert ProblemKind.DELETED in await kinds(retained)


async def test_a_manifest_that_was_rewritten(retained, connection, archived):
    """Without the key its signature does not hold; with another key it is not signed."""
    for forger in (None, generate("audit.example.com/log")):
        text = archived[1].text().replace("rows: 25", "rows: 24")
        from otel_audit_postgres.ledger.checkpoints import signed_text

        note = signed_text(text, () if forger is None else (forger,))
        await does(
            connection,
            "UPDATE audit.archives SET manifest = $1, digest = sha256(convert_to($1, 'UTF8')) "
            "WHERE month = '2025-03-01'", note,
        )  # fmt: skip
        found = await kinds(retained)
        assert ProblemKind.FORGED_SIGNATURE in found
        assert ProblemKind.DELETED in found  # the next one names another


async def test_rows_that_were_changed_with_file_and_manifest(retained, connection, archived):
    """Who has the signing key and rewrites a month is found by the tree that was sealed."""
    entry = archived[1].objects[0]
    path = path_of(retained, entry.key)
    rows = [dict(row) for row in read_rows(path)]
    rows[3]["payload"] = rows[3]["payload"].replace("acme", "evil")
    with_leaf = forged_file(retained, rows)
    report = await forged(retained, connection, archived, entry, with_leaf)
    assert any("not what was sealed" in one.detail for one in report.findings.problems)


async def test_rows_that_were_left_out_with_file_and_manifest(retained, connection, archived):
    """A row that is missing makes another root, whoever signs the manifest."""
    entry = archived[1].objects[0]
    rows = [dict(row) for row in read_rows(path_of(retained, entry.key))][1:]
    report = await forged(retained, connection, archived, entry, forged_file(retained, rows))
    assert any("the root that was signed" in one.detail for one in report.findings.problems)


async def test_columns_that_are_not_what_the_payload_says(retained, connection, archived):
    """Who has the signing key and changes columns alone, by which archives are asked, is found."""
    entry = archived[1].objects[0]
    rows = [dict(row) for row in read_rows(path_of(retained, entry.key))]
    rows[3]["actor_id"] = "somebody else"
    rows[4]["entities"] = ["order:0"]
    report = await forged(retained, connection, archived, entry, forged_file(retained, rows))
    details = [one.detail for one in report.findings.problems]
    assert any("actor_id: not what the payload says" in one for one in details)
    assert any("entities: not what the payload says" in one for one in details)


def forged_file(trail, rows):
    import pyarrow as pa

    path = trail.archive._folder.parent / "forged.parquet"
    file = RowFile(path)
    file.add(
        pa.Table.from_arrays(
            [pa.array([row[name] for row in rows]).cast(row_schema().field(name).type)
             for name in NAMES],
            schema=row_schema(),
        )
    )  # fmt: skip
    file.close()
    return path


async def forged(trail, connection, archived, entry, path):
    """Put a file in the place of another, with a manifest that the right key signs."""
    from dataclasses import replace

    from otel_audit_postgres.archive.objects import digest_of

    rows = sum(1 for _ in read_rows(path))
    mine = replace(
        entry, rows=rows, size=path.stat().st_size, sha256=digest_of(path),
        key=entry.key.replace("default-", "default-0"),
    )  # fmt: skip
    note = replace(archived[1], objects=(mine,), rows=rows).note([trail.key])
    shutil.copy(path, trail.archive._folder / mine.key)
    (trail.archive._folder / manifest_key(MARCH, note)).write_text(note)
    await does(
        connection,
        "UPDATE audit.archives SET manifest = $1, digest = sha256(convert_to($1, 'UTF8')) "
        "WHERE month = '2025-03-01'", note,
    )  # fmt: skip
    return await trail.check()


async def test_an_archive_of_another_store(retained, tmp_path, audit_server):
    """Its files and manifests are whole, and of another log."""
    with audit_server.database() as dsn:
        other = Trail(dsn, tmp_path / "other")
        (tmp_path / "other").mkdir()
        await other.write_in(MARCH, 25)
        await other.seal()
        await other.retain()
        shutil.rmtree(retained.archive._folder)
        shutil.copytree(other.archive._folder, retained.archive._folder)
        found = await kinds(retained)
        assert found.count(ProblemKind.DELETED) >= 3


async def test_another_month_that_was_dropped_with_fewer_rows(retained, connection):
    """What the database says went, and what is archived, must be the same."""
    await does(
        connection,
        "UPDATE audit.ledger_prunings SET rows = 20 WHERE partition = 'audit_logs_2025_03'",
    )
    assert ProblemKind.DELETED in await kinds(retained)


async def test_an_object_that_was_put_there_is_said(retained):
    """It is no tampering with what is there, and it is counted."""
    (retained.archive._folder / "2025-03" / "more.parquet").write_bytes(b"x")
    report = await retained.check()
    assert report.ok
    assert any("more.parquet" in warning for warning in report.findings.warnings)


async def test_records_that_were_made_up_are_no_alarm(retained):
    """Whoever may insert can write what looks like the store's own, and spoils nothing by it."""
    log = Log(retained.dsn, retained.archive._folder.parent)
    await log.write(1, event_name="audit.month.archived", metadata={"manifest_sha256": "00"})
    await retained.seal()
    report = await retained.check()
    assert report.ok
    assert any("made the records up" in warning for warning in report.findings.warnings)


async def test_a_verdict_is_told_as_json(retained, archived):
    """What a program reads: every problem with its kind."""
    path_of(retained, archived[1].objects[0].key).unlink()
    told = json.loads(json.dumps((await retained.check()).as_json()))
    assert (told["ok"], told["problems"][0]["kind"]) == (False, "deleted")
    assert date.fromisoformat("2025-03-01") == MARCH


async def test_an_object_that_is_said_to_have_been_due(retained, connection, archived):
    """Who owns the database writes down a removal, deletes the file, and keeps its leaf hashes."""
    entry = archived[1].objects[0]
    leaves = tuple(
        (leaf, 1, digest)
        for leaf, digest in read_leaves(path_of(retained, entry.key)).items()
    )  # fmt: skip
    (retained.archive._folder / leaves_key(entry.key)).write_text(SparseTree("", leaves).text())
    path_of(retained, entry.key).unlink()
    await does(
        connection,
        "INSERT INTO audit.archive_removals (key, step, record_id) "
        "SELECT $1, step, record_id FROM audit.archives WHERE month = '2025-03-01'", entry.key,
    )  # fmt: skip
    found = await kinds(retained)
    assert found.count(ProblemKind.DELETED) == 2


async def test_a_removal_without_its_record(retained, connection):
    """What was due and went is told by a record of its own, and by no other."""
    await does(
        connection,
        "UPDATE audit.archive_removals SET record_id = "
        "(SELECT max(record_id::text)::uuid FROM audit.archives)",
    )
    assert await kinds(retained) == [ProblemKind.DELETED]


async def test_two_months_that_change_places(retained, connection):
    """Each manifest is whole and signed, and names another one before it."""
    await does(
        connection,
        "UPDATE audit.archives a SET manifest = b.manifest, digest = b.digest, month = b.month, "
        "rows = b.rows, record_id = b.record_id FROM audit.archives b "
        "WHERE a.step + b.step = 5 AND a.step IN (2, 3)",
    )
    assert ProblemKind.DELETED in await kinds(retained)
