"""Evidence from an archive alone: it uses no database, and no network but the archive's."""

from __future__ import annotations

import base64
import contextlib
import uuid
from collections.abc import Sequence
from datetime import date
from typing import Any

from otel_audit._util.ids import time_of
from otel_audit_postgres.archive.manifest import (
    ArchiveManifest,
    is_signed,
    leaves_key,
    read_manifest,
)
from otel_audit_postgres.archive.objects import ArchiveError, ArchiveStore
from otel_audit_postgres.archive.parquet_files import read_leaves, read_rows
from otel_audit_postgres.archive.sparse_tree import read_tree
from otel_audit_postgres.ledger.keys import PublicKey
from otel_audit_postgres.ledger.prove import EVIDENCE, Bundle

_READ = ("id", "payload", "recorded_at", "leaf", "leaf_hash")


def prove_archived(
    archive: ArchiveStore, record_id: uuid.UUID, keys: Sequence[PublicKey] = ()
) -> Bundle:
    """Prove that an archived record is in the log, unchanged.

    Args:
        archive: Where it is.
        record_id: Its id, which holds its month.
        keys: Public keys that may have signed the manifest; they go into the bundle.

    Returns:
        The bundle, as `otel_audit_postgres.ledger.prove.prove_record` makes it.

    Raises:
        ArchiveError: It is not there, or what would prove it is not.
    """
    month = month_of(record_id)
    for manifest in _manifests(archive, month, keys):
        found = _found(archive, manifest, record_id)
        if found:
            return _bundle(archive, manifest, found, keys)
    raise ArchiveError(f"{archive.name}: no record {record_id} is archived in {month:%Y-%m}")


def month_of(record_id: uuid.UUID) -> date:
    """The month of an id, by its first 48 bits.

    Raises:
        ArchiveError: It has none: it is not a UUIDv7, so no record of the trail has it.
    """
    try:
        moment = time_of(record_id)
    except OverflowError:
        raise ArchiveError(f"no record has the id {record_id}: it holds no time") from None
    return date(moment.year, moment.month, 1)


def _manifests(
    archive: ArchiveStore, month: date, keys: Sequence[PublicKey]
) -> list[ArchiveManifest]:
    """The manifests of a month that one of the keys signed, the one with the most rows first."""
    beginning = f"{month:%Y-%m}/manifest-"
    found = []
    for key in archive.list_keys():
        if not key.startswith(beginning):
            continue
        with contextlib.suppress(ArchiveError, UnicodeDecodeError), archive.fetch(key) as file:
            note = file.read_text("utf-8")
            if not keys or is_signed(note, keys):
                found.append(read_manifest(note))
    return sorted(found, key=lambda one: -one.rows)


def _found(
    archive: ArchiveStore, manifest: ArchiveManifest, record_id: uuid.UUID
) -> list[dict[str, Any]]:
    rows = []
    for entry in manifest.objects:
        with contextlib.suppress(ArchiveError), archive.fetch(entry.key) as file:
            rows += [dict(row) for row in read_rows(file, _READ) if row["id"] == record_id.bytes]
    return rows


def _bundle(
    archive: ArchiveStore,
    manifest: ArchiveManifest,
    rows: Sequence[dict[str, Any]],
    keys: Sequence[PublicKey],
) -> Bundle:
    leaves: dict[int, bytes] = {}
    for entry in manifest.objects:
        try:
            with archive.fetch(entry.key) as file:
                leaves |= read_leaves(file)
        except ArchiveError:
            # it was due to go, and its leaf hashes were kept
            with archive.fetch(leaves_key(entry.key)) as file:
                kept = read_tree(file.read_text("utf-8")).nodes
                leaves |= {first: digest for first, _, digest in kept}
    assert manifest.tree is not None  # noqa: S101 - a row was found, so there are files
    with archive.fetch(manifest.tree[0]) as file:
        tree = read_tree(file.read_text("utf-8"))
    return {
        "format": EVIDENCE,
        "keys": [key.text() for key in keys],
        "checkpoint": tree.note,
        "records": [
            {
                "payload": row["payload"],
                "recorded_at": row["recorded_at"],
                "leaf": row["leaf"],
                "proof": [
                    base64.b64encode(step).decode() for step in tree.inclusion(row["leaf"], leaves)
                ],
            }
            for row in rows
        ],
    }
