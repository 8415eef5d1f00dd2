"""Secrets that a text names in its own way, and texts of the same forms that hold none."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_audit.redaction import Redactor
from otel_audit.redaction.load_data import KeyShape, key_shapes
from otel_audit.redaction.prefilter import Prefilter
from otel_audit.redaction.secret_urls import link_parameters

redactor = Redactor()
scan = Prefilter()

SECRETS = [
    "Your verification code is §48291.",
    "the password is §zx32x9, try again",
    "Your PIN is: §8841",
    "user,password\nann,§\n",
    'name;"API key"\nann;"§;x"\n',
    "a\ttoken\nann\t§",
    "<property><name>fs.s3a.secret.key</name><value>§</value></property>",
    "<dict><key>password</key><string>§</string></dict>",
    '<entry key="db.password">§</entry>',
    '<string name="api_key"><![CDATA[§]]></string>',
    'mutation($password: String! = "§") { login(p: $password) }',
    "ALTER DATABASE d SET \"app.jwt_secret\" TO '§'",
    "SELECT pgp_sym_encrypt('data', '§')",
    "SELECT aes_encrypt(x, '§')",
    "connect scott/§@//h:1521/x",
    "https://idp/logout?id_token_hint=§",
    "- name: DB_PASSWORD\n  value: §\n",
    "a: 1\nprivate_key: |\n  §\n  more\nb: 2\n",
]
INNOCENTS = [
    "your password is 8 characters",
    "token is sha256",
    "the code is 200 OK",
    "country code is DE12",
    "zip code is 90210",
    "1234 is your order number",
    "90210 is your zip code",
    "1234 is your pin location",
    "pin is 4000 km away",
    "The otp is 6-digit",
    "the token is 1024 bytes",
    "- name: color\n  value: red\n",
    "description: |\n  a text\nb: 2\n",
    "Dear Bob, password\nreset mail, now\n",
    "name,country\nbob,DE\n",
    "user,token_count\nbob,17\n",
    '<label name="password">Password</label>',
    "<key>author</key><string>Bob</string>",
    'query($first: Int = 10, $name: String = "bob") { x }',
    "SET search_path TO 'public'",
    "secretaire: Anne",
    "https://x/?code=DE&state=open",
]


def in_every_way(text: str) -> list[str]:
    """Redact a text by itself, in a document, and in JSON text."""
    raw = redactor.json_or_none(json.dumps({"note": text}).encode())
    documents = (redactor.document({"note": text}), json.loads(raw))
    return [redactor.text(text), *(document["note"] for document in documents)]


@pytest.mark.parametrize("text", SECRETS)
def test_the_secret_is_taken_out(text: str) -> None:
    """Whichever way the text is redacted."""
    secret = "3141" if "§8" in text else "Q31415x"
    for found in in_every_way(text.replace("§", secret)):
        assert secret not in found
        assert "[REDACTED]" in found


@pytest.mark.parametrize("text", INNOCENTS)
def test_the_innocent_stays(text: str) -> None:
    """Over-redaction is a defect, too."""
    assert in_every_way(text) == [text] * 3


@pytest.mark.parametrize("code", ["G-482913", "482913", "482 913"])
def test_a_code_that_stands_before_what_it_is(code: str) -> None:
    """As text messages have it."""
    for found in in_every_way(f"{code} is your Example verification code"):
        assert found == "[REDACTED] is your Example verification code"


def test_the_schema_of_a_field_is_no_secret() -> None:
    """But a default value in it is."""
    schema = {"properties": {"password": {"type": "string", "format": "password"}}}
    assert redactor.document(schema) == schema
    schema["properties"]["password"]["default"] = "hunter2"
    assert redactor.document(schema) == {"properties": {"password": "[REDACTED]"}}


def test_what_a_path_hides_is_no_id() -> None:
    """Whatever the route calls the parameter."""
    token = "Tm9uZS1zby1zZWNyZXQ4ODE3"
    assert list(link_parameters(f"/magic-link/{token}", {"slug": token})) == [token]
    assert list(link_parameters(f"/orders/{token}", {"slug": token})) == []


@pytest.mark.parametrize("shape", key_shapes(), ids=lambda shape: shape.pattern[:24])
@settings(max_examples=2, deadline=None, derandomize=True, database=None,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(data=st.data())
def test_the_search_finds_each_shape_of_key(shape: KeyShape, data: st.DataObject) -> None:
    """What the hint of a shape misses would pass unseen."""
    key = data.draw(st.from_regex(rf"(?a:\A{shape.pattern})", fullmatch=False))
    key = key.rstrip("\n")
    found = json.loads(redactor.json_or_none(json.dumps({"note": f"use {key}"}).encode()))["note"]
    assert scan.suspects_string(f"use {key}") or '"' in key or "\\" in key
    assert key not in found or redactor.text(f"use {key}") == f"use {key}"
