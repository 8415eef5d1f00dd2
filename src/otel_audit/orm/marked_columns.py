"""The columns that models mark as personal, and whether they would be stored in clear."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy.orm import mapperlib

if TYPE_CHECKING:
    from otel_audit.config import AuditConfig

PERSONAL: Final = "personal"
_LISTED: Final = 5
"""Columns that the message names; the others are counted."""


def marked_in_clear(config: AuditConfig) -> str | None:
    """Say which marked columns this process would store in clear: it has no keys for them.

    Call it when the application's models have been imported.

    Args:
        config: The settings.

    Returns:
        What is wrong and which setting mends it; None if nothing is wrong, or if another process
        stores the records and encrypts.
    """
    if config.exporter != "postgres" or config.keys_dsn is not None:
        return None
    found = marked_columns()
    if not found:
        return None
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return (
        f"OTEL_AUDIT_KEYS_DSN: not set, so columns that are marked as personal are stored in clear "
        f"and cannot be erased: {', '.join(found[:_LISTED])}{more}; name a database of keys "
        "(otel-audit subject init), or take the marks away"
    )


def marked_columns() -> list[str]:
    """The marked columns of all mapped classes that are known now, with their tables."""
    tables = {
        table: None
        for registry in list(mapperlib._all_registries())  # noqa: SLF001 - no public way to all mappers
        for table in list(registry.metadata.tables.values())
    }
    return sorted(
        f"{table.name}.{column.name}"
        for table in tables
        for column in table.columns
        if column.info.get("audit") == PERSONAL
    )
