"""Archived files as a table of an Iceberg catalog: registered where they lie, never copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from otel_audit.errors import MissingExtraError
from otel_audit_postgres.archive.catalog import ListedObject
from otel_audit_postgres.archive.objects import ArchiveError, ArchiveStore
from otel_audit_postgres.archive.parquet_files import row_schema

# whoever tidies the table up deletes none of its files: they are the archive's
_PROPERTIES: Final = {"gc.enabled": "false"}


@dataclass(frozen=True, slots=True)
class Registration:
    """The objects that a table lacks, or must lose.

    Attributes:
        added: Names of objects that it lacks.
        removed: URLs of files that it has, and that the archive has no more.
        rows: Rows in the added objects.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    rows: int

    def as_json(self) -> dict[str, Any]:
        """The values for JSON."""
        return {"added": [*self.added], "removed": [*self.removed], "rows": self.rows}


def register_objects(  # noqa: PLR0913 - each a choice of its own
    archive: ArchiveStore,
    objects: Sequence[ListedObject],
    table: str,
    *,
    catalog: str = "default",
    properties: Mapping[str, str] | None = None,
    dry_run: bool = False,
) -> Registration:
    """Bring a table of an Iceberg catalog to what is archived. Blocks.

    Args:
        archive: Where the objects are; the catalog's readers must be able to read it, too.
        objects: What is archived.
        table: ``namespace.name``; it is made if it is not there.
        catalog: The catalog's name in the configuration of `pyiceberg`.
        properties: Further settings of the catalog, such as ``uri``.
        dry_run: Only say what would be done.

    Returns:
        What was done, or would be.

    Raises:
        MissingExtraError: `pyiceberg` is not installed.
        ArchiveError: The catalog cannot be reached, or refuses.
    """
    try:
        from pyiceberg.catalog import load_catalog
        from pyiceberg.exceptions import NoSuchTableError
    except ImportError as missing:
        raise MissingExtraError("an Iceberg catalog", "iceberg") from missing
    wanted = {archive.url_of(one.entry.key): one for one in objects if not one.is_removed}
    try:
        found = load_catalog(catalog, **(properties or {}))
        try:
            known = found.load_table(table)
            there = {task.file.file_path: task.file for task in known.scan().plan_files()}
        except NoSuchTableError:
            known, there = None, {}
        lacking = [url for url in wanted if url not in there]
        # of another archive's files nothing is known here
        gone = [url for url in there if url not in wanted and url.startswith(archive.url_of(""))]
        if not dry_run and (lacking or gone or known is None):
            _bring(found, known, table, lacking, [there[url] for url in gone])
    except MissingExtraError:
        raise
    except Exception as error:
        # its text may hold the catalog's address with a password
        raise ArchiveError(
            f"the Iceberg catalog {catalog!r} cannot be brought up to date ({type(error).__name__})"
        ) from error
    return Registration(
        tuple(wanted[url].entry.key for url in lacking), tuple(gone),
        sum(wanted[url].entry.rows for url in lacking),
    )  # fmt: skip


def _bring(
    catalog: Any, known: Any, table: str, lacking: Sequence[str], gone: Sequence[Any]
) -> None:
    if known is None:
        catalog.create_namespace_if_not_exists(table.rpartition(".")[0])
        known = catalog.create_table(table, schema=row_schema(), properties=_PROPERTIES)
    else:
        # a column that was added since; a table that has all of them is not changed
        with known.update_schema() as update:
            update.union_by_name(row_schema())
    # one commit: whoever reads sees all of it or nothing
    with known.transaction() as transaction:
        if gone:
            with transaction.update_snapshot().overwrite() as snapshot:
                for file in gone:
                    snapshot.delete_data_file(file)
        if lacking:
            transaction.add_files([*lacking])
