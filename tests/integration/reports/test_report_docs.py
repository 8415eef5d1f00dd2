"""The pages about exports, reports and dashboards are run on a store with something in it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest
from docs_runner import parts_of, run_page

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exports", "reports"])
async def test_a_page_prints_what_it_says(store, tmp_path, name):
    """Commands are typed, and their outputs compared."""
    directory = tmp_path / "page"
    (directory / "again").mkdir(parents=True)
    (directory / "ledger.pub").write_text(store.key.public.text())
    page = DOCS / f"{name}.md"

    assert await asyncio.to_thread(run_page, page, directory, OTEL_AUDIT_DSN=store.dsn) > 0


async def test_the_role_of_the_dashboard_sees_counts_and_no_record(audit_store, postgres):
    """As the page makes it."""
    (text,) = [one.text for one in parts_of(DOCS / "dashboards.md") if one.name == "grafana.sql"]
    connection = await asyncpg.connect(audit_store)
    database = await connection.fetchval("SELECT current_database()")
    role = f"grafana_{database}"
    await connection.execute(
        text.replace("TO grafana", f"TO {role}").replace("ROLE grafana", f"ROLE {role}")
    )
    try:
        seen = await asyncpg.connect(postgres.dsn(database, role))
        try:
            await seen.fetch("SELECT hour, outcome, records FROM audit.rollup")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await seen.fetch("SELECT payload FROM audit.audit_logs")
        finally:
            await seen.close()
    finally:
        await connection.execute(f"DROP OWNED BY {role}")
        await connection.execute(f"DROP ROLE {role}")
        await connection.close()
