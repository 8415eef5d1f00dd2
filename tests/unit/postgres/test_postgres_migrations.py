"""The SQL that comes with the package."""

from __future__ import annotations

import pytest
from otel_audit_postgres import schema_sql
from otel_audit_postgres.migrations import grants_sql, latest_version, migrations

from otel_audit.errors import ConfigurationError


class TestMigrations:
    def test_are_numbered_without_gaps(self):
        """From 1 on, each file is one step."""
        assert [step.version for step in migrations()] == list(range(1, latest_version() + 1))
        assert migrations()[0].name == "audit_store"


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
