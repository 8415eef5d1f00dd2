"""`otel-audit redact` on real files and on standard input."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from otel_audit.cli.redact import redact

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENT = '{"user":{"password":"Xq7canary9Zt"},"card":"4111111111111111","n":1}'


class TestRedact:
    def test_prints_the_redacted_document(self, tmp_path: Path) -> None:
        """What would be stored, and nothing else."""
        file = tmp_path / "body.json"
        file.write_text(DOCUMENT)
        result = CliRunner().invoke(redact, [str(file)])
        assert result.exit_code == 0
        assert json.loads(result.stdout) == {
            "user": {"password": "[REDACTED]"}, "card": "[REDACTED]", "n": 1,
        }  # fmt: skip

    def test_explains_without_showing(self) -> None:
        """Places and rules, never values."""
        result = CliRunner().invoke(redact, ["--explain", "-"], input=DOCUMENT)
        assert result.exit_code == 0
        assert [line.split() for line in result.stdout.splitlines()] == [
            ["path", "rule"], ["user.password", "name:password"], ["card", "value:card"],
        ]  # fmt: skip

    def test_says_when_there_is_nothing(self) -> None:
        """An innocent document has no findings."""
        result = CliRunner().invoke(redact, ["--explain"], input='{"a":1}')
        assert result.stdout == "Nothing would be removed.\n"

    def test_heeds_the_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The rules in force are those of the environment."""
        monkeypatch.setenv("OTEL_AUDIT_REDACT_FIELDS", "n")
        result = CliRunner().invoke(redact, ["--explain"], input='{"n":1}')
        assert "name:configured" in result.stdout

    def test_prints_what_to_search_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The hash of a value under the current key, and under each earlier one."""
        monkeypatch.setenv("OTEL_AUDIT_REDACT_MODE", "hmac")
        monkeypatch.setenv("OTEL_AUDIT_HMAC_KEY", "0f1e2d3c4b5a69788796a5b4c3d2e1f0")
        monkeypatch.setenv("OTEL_AUDIT_HMAC_KEY_ID", "2026")
        before = CliRunner().invoke(redact, [], input='{"card": 4111111111111111}')
        stored = json.loads(before.stdout)["card"]
        assert stored.startswith("hmac:2026:")
        monkeypatch.setenv("OTEL_AUDIT_HMAC_KEY_ID", "2027")
        monkeypatch.setenv("OTEL_AUDIT_HMAC_KEY", "ffffffffffffffffffffffffffffffff")
        monkeypatch.setenv(
            "OTEL_AUDIT_HMAC_PREVIOUS_KEYS", '{"2026": "0f1e2d3c4b5a69788796a5b4c3d2e1f0"}'
        )
        result = CliRunner().invoke(redact, ["--hash", "--json"], input="4111111111111111\n")
        current, earlier = json.loads(result.stdout)
        assert current.startswith("hmac:2027:")
        assert earlier == stored

    def test_names_the_key_that_a_hash_needs(self) -> None:
        """Without a key nothing was hashed."""
        result = CliRunner().invoke(redact, ["--hash"], input="x")
        assert result.exit_code != 0
        assert "OTEL_AUDIT_HMAC_KEY" in str(result.exception)

    @pytest.mark.parametrize("arguments", [[], ["--explain"]])
    def test_fails_on_what_is_not_json(self, arguments: list[str]) -> None:
        """The message does not quote the input."""
        result = CliRunner().invoke(redact, arguments, input="password: Xq7canary9Zt")
        assert result.exit_code == 1
        assert "withheld" in result.output
        assert "Xq7" not in result.output
