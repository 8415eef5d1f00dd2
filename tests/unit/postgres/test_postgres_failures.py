"""Errors of PostgreSQL, asyncpg and the network, as what to do about them."""

from __future__ import annotations

import asyncpg
import pytest
from otel_audit_postgres.failures import as_store_error, is_poison, poison_reason

from otel_audit.errors import StoreError, StoreUnavailableError


class TestAsStoreError:
    @pytest.mark.parametrize(
        "error",
        [
            ConnectionRefusedError(111, "refused"),
            TimeoutError(),
            asyncpg.ConnectionDoesNotExistError("gone"),
            asyncpg.InterfaceError("connection is closed"),
            asyncpg.TooManyConnectionsError("full"),
            asyncpg.CannotConnectNowError("starting"),
            asyncpg.AdminShutdownError("bye"),
            asyncpg.QueryCanceledError("slow"),
            asyncpg.ReadOnlySQLTransactionError("standby"),
            asyncpg.DiskFullError("full"),
            asyncpg.SerializationError("again"),
            asyncpg.LockNotAvailableError("busy"),
        ],
    )
    def test_passing_troubles_may_be_tried_again(self, error):
        """What may pass by itself is an unavailable store, and names the setting."""
        mapped = as_store_error(error, "write")
        assert isinstance(mapped, StoreUnavailableError)
        assert "OTEL_AUDIT_DSN" in str(mapped)

    @pytest.mark.parametrize(
        ("error", "remedy"),
        [
            (asyncpg.InvalidPasswordError("x"), "user or password"),
            (asyncpg.InvalidAuthorizationSpecificationError("x"), "user or password"),
            (asyncpg.InvalidCatalogNameError("x"), "create it"),
            (asyncpg.UndefinedTableError("x"), "otel-audit init"),
            (asyncpg.InvalidSchemaNameError("x"), "otel-audit init"),
            (asyncpg.UndefinedColumnError("x"), "otel-audit init"),
            (asyncpg.InsufficientPrivilegeError("x"), "--roles"),
        ],
    )
    def test_lasting_troubles_name_the_remedy(self, error, remedy):
        """What only a person can mend says how."""
        mapped = as_store_error(error, "write")
        assert not isinstance(mapped, StoreUnavailableError)
        assert remedy in str(mapped)

    def test_who_asks_is_sent_to_the_readers(self):
        """Where a question lacks a right, a reader has it; whoever writes needs to be a writer."""
        error = asyncpg.InsufficientPrivilegeError("x")
        asked = str(as_store_error(error, "read the audit store", asks=True))
        assert "ask as a member of otel_audit_reader (`otel-audit init --roles --reader" in asked
        assert "--dsn" in asked
        assert "writer" not in asked
        assert "as its writer" in str(as_store_error(error, "write"))
        missing = asyncpg.UndefinedTableError("x")
        assert "otel-audit init" in str(as_store_error(missing, "read", asks=True))

    def test_never_quotes_the_original_message(self):
        """Messages of the server may show values, so they are left out."""
        for error in (
            asyncpg.UniqueViolationError("Key (id)=(secret) exists"),
            asyncpg.UndefinedTableError("secret"),
            OSError("secret"),
            RuntimeError("secret"),
        ):
            assert "secret" not in str(as_store_error(error, "write"))

    def test_leaves_its_own_alone(self):
        """An error that is one of ours already stays the same object."""
        error = StoreError("as it is")
        assert as_store_error(error, "write") is error


class TestIsPoison:
    @pytest.mark.parametrize(
        "error",
        [
            asyncpg.InvalidTextRepresentationError("x"),
            asyncpg.CharacterNotInRepertoireError("x"),
            asyncpg.CheckViolationError("x"),
            asyncpg.NotNullViolationError("x"),
            asyncpg.ProgramLimitExceededError("x"),
            asyncpg.StatementTooComplexError("x"),
            asyncpg.DataError("x"),
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),
        ],
    )
    def test_blames_the_record(self, error):
        """Errors that the content of a record causes."""
        assert is_poison(error)

    @pytest.mark.parametrize(
        "error",
        [
            asyncpg.UndefinedTableError("x"),
            asyncpg.InsufficientPrivilegeError("x"),
            asyncpg.DiskFullError("x"),
            asyncpg.InterfaceError("x"),
            OSError(),
            TimeoutError(),
        ],
    )
    def test_does_not_blame_the_record(self, error):
        """Errors that come from the store's condition must not fill the quarantine."""
        assert not is_poison(error)

    def test_reason_shows_no_value(self):
        """The reason is the kind of error and the place, not what was there."""
        reason = poison_reason(asyncpg.InvalidTextRepresentationError('invalid json "secret"'))
        assert reason == "InvalidTextRepresentationError 22P02"
