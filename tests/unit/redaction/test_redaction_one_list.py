"""There is one list of secret names: redaction's, in data/names.toml."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import otel_audit
from otel_audit.redaction.names import HEADERS, is_secret_function, is_secret_type

PACKAGE = Path(otel_audit.__file__).parent
NAMES = ("passw", "passphrase", "otp", "csrf", "api_key", "apikey", "cvv", "session_id")
NOT_A_LIST = {
    # fields of the record and of settings, parameters of libpq
    "attributes.py", "record.py", "config.py", "flat.py", "scope.py", "postgres_dsn.py",
    # what an endpoint does: `/password/reset` is an event, not a secret
    "naming.py", "verbs.py",
}  # fmt: skip


def collections_in(path: Path) -> Iterator[set[str]]:
    """The texts of each collection, and the parts of each regular expression, of a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Set | ast.Tuple | ast.List | ast.Dict):
            parts = node.keys if isinstance(node, ast.Dict) else node.elts
            yield {
                part.value
                for part in parts
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            }
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "|" in node.value:
            yield set(node.value.split("|"))


def test_no_other_module_lists_secrets():
    """A collection or pattern with two or more names of secrets stands in redaction alone."""
    found = [
        f"{path.relative_to(PACKAGE)}: {sorted(texts)}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if "redaction" not in path.parts and path.name not in NOT_A_LIST
        for texts in collections_in(path)
        if sum(any(name in text.lower() for name in NAMES) for text in texts) > 1
    ]
    assert found == []


@pytest.mark.parametrize("name", ["EncryptedType", "StringEncryptedType", "PasswordType"])
def test_types_that_hold_secrets(name):
    """A type that encrypts is taken at its word."""
    assert is_secret_type(name)
    assert not is_secret_type("String")


@pytest.mark.parametrize("name", ["crypt", "pgp_sym_encrypt", "hmac", "sha256", "md5", "digest"])
def test_functions_whose_arguments_are_secrets(name):
    """What is hashed or encrypted is not shown."""
    assert is_secret_function(name)
    assert not is_secret_function("lower")


def test_headers():
    """They are in lower case, as ASGI gives them."""
    assert "authorization" in HEADERS
    assert {name.lower() for name in HEADERS} == HEADERS
