"""The SQL that comes with the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from otel_audit_postgres import alembic, schema_sql
from otel_audit_postgres.schema.migrations import grants_sql, latest_version, migrations
from otel_audit_postgres.schema.readiness import refuse_version

from otel_audit.errors import ConfigurationError, StoreError

MIGRATIONS_PAGE = Path(__file__).parents[3] / "docs/migrations.md"


class TestMigrations:
    def test_are_numbered_without_gaps(self):
        """From 1 on, each file is one step."""
        assert [step.version for step in migrations()] == list(range(1, latest_version() + 1))
        assert migrations()[0].name == "audit_store"

    @pytest.mark.parametrize("text", [alembic.__doc__, MIGRATIONS_PAGE.read_text("utf-8")])
    def test_are_shown_to_the_latest(self, text):
        """Who copies the example of an Alembic revision gets the store that this package needs."""
        shown = re.findall(r"audit\.upgrade\(op, to=(\d+)\)", text)
        assert shown == [str(latest_version())]


class TestRefuseVersion:
    @pytest.mark.parametrize(
        ("version", "remedy"),
        [
            (0, "run `otel-audit init`"),
            (1, "run `otel-audit migrate`"),
            (latest_version() - 1, "run `otel-audit migrate`"),
            (latest_version() + 1, "upgrade otel-audit"),
        ],
    )
    def test_says_which_side_is_behind(self, version, remedy):
        """No store is made, an old one is migrated, and a newer one wants a newer package."""
        with pytest.raises(StoreError, match=f"at version {version}, .*: {remedy}$"):
            refuse_version(version)

    def test_takes_its_own(self):
        """The version of this package is the one that it writes."""
        refuse_version(latest_version())


class TestGrants:
    def test_keep_the_time_of_recording_from_the_writer(self):
        """No writer fills the column that is the database's own."""
        insert = next(line for line in grants_sql().splitlines() if "INSERT (id" in line)
        assert "recorded_at" not in insert
        assert "content_hash" in insert
        assert "payload" in insert


class TestSchemaSql:
    def test_is_one_transaction(self):
        """The script does all or nothing."""
        script = schema_sql()
        assert script.startswith("BEGIN;")
        assert script.endswith("COMMIT;\n")
        assert "otel_audit_owner" not in script

    def test_leaves_out_what_is_installed(self):
        """For a store that is up to date no migration is in the script."""
        assert "CREATE TABLE" not in schema_sql(since=latest_version())

    def test_quotes_names(self):
        """A role's name is never taken as SQL."""
        assert 'TO "a""; DROP"' in schema_sql(roles=True, writer='a"; DROP')

    def test_refuses_members_without_roles(self):
        """A writer can be named only where there is a group for writers."""
        with pytest.raises(ConfigurationError, match="roles=True"):
            schema_sql(writer="app")
