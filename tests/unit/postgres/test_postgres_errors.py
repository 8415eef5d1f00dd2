"""Errors of PostgreSQL, asyncpg and the network, as what to do about them."""

from __future__ import annotations

import socket

import asyncpg
import pytest
from otel_audit_postgres.errors import (
    as_connect_error,
    as_store_error,
    is_data_error,
    is_poison,
    is_refusal,
    refusal_reason,
)

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

    def test_a_host_that_is_the_rest_of_a_password_is_thought_of(self):
        """An unescaped @ or / in a password moves the host; the message says how they are written."""
        said = str(as_connect_error(socket.gaierror(-2, "x"), ()))
        assert "OTEL_AUDIT_DSN cannot be looked up" in said
        assert "@ is written %40 and / is written %2F" in said

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


def by(error: asyncpg.PostgresError, constraint: str) -> asyncpg.PostgresError:
    """An error as the server sends it, with the name of a constraint."""
    error.constraint_name = constraint
    return error


class TestWhoseFault:
    @pytest.mark.parametrize(
        "error",
        [
            by(asyncpg.CheckViolationError("x"), "well_formed_payload"),
            by(asyncpg.CheckViolationError("x"), "audit_logs_content_hash_check"),
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),
            asyncpg.DataError("x"),
        ],
    )
    def test_a_record_that_a_check_of_ours_refuses_is_at_fault(self, error):
        """So is what the driver cannot send."""
        assert is_poison(error) or is_data_error(error)
        assert is_refusal(error)

    @pytest.mark.parametrize(
        "error",
        [
            asyncpg.CheckViolationError("no partition of relation found for row"),
            by(asyncpg.CheckViolationError("x"), "only_this_tenant"),
            by(asyncpg.UniqueViolationError("x"), "ledger_queue_pkey"),
            by(asyncpg.ForeignKeyViolationError("x"), "tenants_fkey"),
            asyncpg.NotNullViolationError("x"),
        ],
    )
    def test_a_constraint_of_others_says_nothing_of_the_record(self, error):
        """A missing partition, a constraint that was added, a sequence that is behind."""
        assert is_refusal(error)
        assert not is_poison(error)
        assert not is_data_error(error)

    @pytest.mark.parametrize(
        "error",
        [
            asyncpg.InvalidTextRepresentationError("x"),
            asyncpg.CharacterNotInRepertoireError("x"),
            asyncpg.ProgramLimitExceededError("x"),
            asyncpg.StatementTooComplexError("x"),
        ],
    )
    def test_a_value_that_is_none_of_its_type(self, error):
        """The record's fault, where only what is ours looks at it."""
        assert is_refusal(error)
        assert is_data_error(error)
        assert not is_poison(error)

    @pytest.mark.parametrize(
        "error",
        [
            asyncpg.UndefinedTableError("x"),
            asyncpg.InsufficientPrivilegeError("x"),
            asyncpg.DiskFullError("x"),
            asyncpg.RaiseError("x"),
            asyncpg.InterfaceError("x"),
            OSError(),
            TimeoutError(),
        ],
    )
    def test_does_not_blame_the_record(self, error):
        """Errors that come from the store's condition are about no record at all."""
        assert not is_refusal(error)

    def test_reason_shows_no_value(self):
        """The reason is the kind of error and the place, not what was there."""
        reason = refusal_reason(asyncpg.InvalidTextRepresentationError('invalid json "secret"'))
        assert reason == "InvalidTextRepresentationError 22P02"


class TestWhatWasAsked:
    def test_connecting_names_the_parameter(self):
        """What the server does not know was in the DSN, and is no missing schema."""
        error = asyncpg.UndefinedObjectError('unbekannter Parameter "chanel_binding"')
        said = str(as_connect_error(error, ["jit", "chanel_binding"]))
        assert "OTEL_AUDIT_DSN" in said
        assert "the parameter chanel_binding" in said
        assert "init" not in said
        assert "jit" not in said

    @pytest.mark.parametrize(
        "error",
        [
            asyncpg.DuplicatePreparedStatementError("x"),
            asyncpg.InvalidSQLStatementNameError("x"),
        ],
    )
    def test_a_prepared_statement_that_is_lost_is_a_poolers_work(self, error):
        """The remedy is the parameter that says so."""
        assert "pgbouncer=true" in str(as_store_error(error, "write"))

    def test_setting_up_is_not_sent_to_set_up(self):
        """Who runs init is not told to run init."""
        for error in (asyncpg.UndefinedTableError("x"), asyncpg.InsufficientPrivilegeError("x")):
            assert "otel-audit init" not in str(as_store_error(error, "set up", sets_up=True))

    @pytest.mark.parametrize(
        "error",
        [
            asyncpg.RaiseError("x"),
            asyncpg.PostgresSyntaxError("x"),
            asyncpg.ObjectNotInPrerequisiteStateError("x"),
            asyncpg.CheckViolationError("x"),
        ],
    )
    def test_what_others_added_is_for_the_doctor(self, error):
        """A trigger that fails is neither a missing schema nor a lock."""
        said = str(as_store_error(error, "write"))
        assert "otel-audit doctor" in said
        assert "lock" not in said


class TestAsConnectError:
    @pytest.mark.parametrize(
        ("error", "remedy"),
        [
            (asyncpg.InsufficientPrivilegeError("x"), "GRANT CONNECT ON DATABASE"),
            (asyncpg.ObjectNotInPrerequisiteStateError("x"), "ALLOW_CONNECTIONS true"),
            (asyncpg.TooManyConnectionsError("x"), "this database or role has its limit"),
        ],
    )
    def test_what_the_database_refuses_is_no_fault_of_the_schema(self, error, remedy):
        """Nothing was asked of schema audit yet, so neither `init` nor `doctor` mends it."""
        said = str(as_connect_error(error, ()))
        assert remedy in said
        assert "otel-audit" not in said
