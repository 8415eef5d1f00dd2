"""What a record says of an exception."""

from __future__ import annotations

from otel_audit.action.error_info import describe_error
from otel_audit.redaction import Redactor

redactor = Redactor()
SECRET = "pw7Canary3xQ9"


def caused() -> Exception:
    try:
        raise KeyError("colour")
    except KeyError as error:
        found = PermissionError(f"not yours; password={SECRET}")
        found.__cause__ = error
        return found


class TestGroups:
    def test_a_group_tells_what_is_in_it(self) -> None:
        """The types and redacted messages of its exceptions, and from what they came."""
        group = ExceptionGroup("tasks", [caused(), ExceptionGroup("inner", [ValueError("bad")])])
        told = describe_error(group, redactor)
        assert told.type == "ExceptionGroup"
        assert told.message == (
            "tasks: PermissionError: not yours; password=[REDACTED] (from KeyError: 'colour'); "
            "ValueError: bad"
        )

    def test_a_large_and_deep_group_is_told_in_part(self) -> None:
        """No group makes a long message, or a deep recursion."""
        group: ExceptionGroup[Exception] = ExceptionGroup("deep", [ValueError("x" * 500)] * 100)
        for _ in range(2_000):
            group = ExceptionGroup("deeper", [group])
        told = describe_error(group, redactor)
        assert told.message is not None
        assert len(told.message) <= 1_000

    def test_a_database_error_quotes_no_value(self) -> None:
        """PostgreSQL says what it was given in the first line."""
        error = ValueError(f'invalid input syntax for type integer: "{SECRET}"')
        told = describe_error(error, redactor)
        assert told.message == 'invalid input syntax for type integer: "[REDACTED]"'
