"""Redaction of what came in: a secret never passes, what is clean passes as it is."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import a_record, records

from otel_audit.attributes import record_from_attributes, to_attributes
from otel_audit.record import Change
from otel_audit.redaction import Redactor
from otel_audit.redaction.spans import Redacting

SECRETS = ["4111 1111 1111 1111", "sk_live_51H8abcdefghijklmnop", "AKIAIOSFODNN7EXAMPLE"]
KEY = "hunter2-of-mine"


@pytest.fixture(scope="module")
def redacting() -> Redacting:
    return Redacting(Redactor())


class TestSecrets:
    @pytest.mark.parametrize("secret", SECRETS)
    @pytest.mark.parametrize(
        "name",
        ["audit.request.body", "audit.response.body", "audit.metadata", "audit.error.message",
         "user_agent.original", "url.query", "url.path", "audit.event.name",
         "http.request.header.x-note", "http.response.header.x-note"],
    )  # fmt: skip
    def test_by_their_shape(self, redacting, name, secret):
        value = {"url.query": f"a=1&note={secret.replace(' ', '+')}", "url.path": f"/a/{secret}"}
        plain = f'{{"note":"{secret}"}}' if "body" in name or "metadata" in name else secret

        found = redacting.redact({name: value.get(name, plain)})

        assert secret not in str(found)
        assert secret.replace(" ", "+") not in str(found)

    @pytest.mark.parametrize(
        "body",
        [f'{{"password":"{KEY}"}}', f'{{"pass\\u0077ord":"{KEY}"}}', f'{{"a":"x\\ny","pin":"{KEY}"}}',
         f'{{"a":"{{\\"password\\":\\"{KEY}\\"}}"}}', f'{{"pass\\"word":"{KEY}"}}',
         f'{{"password":"[REDACTED]","api_key":"{KEY}"}}', f'{{"password":["[REDACTED]","{KEY}"]}}',
         f'{{"password":[null,"{KEY}"]}}', f'{{"name":"password","value":"{KEY}"}}',
         f'{{"password":"[REDACTED]\\"{KEY}"}}', f'{{"password":[null,"[REDACTED]\\"{KEY}"]}}',
         f'{{"a":"pass\\/word","secret":"{KEY}"}}', f'{{"a":"x\\\\","password":"{KEY}"}}',
         "[" * 30 + f'{{"password":"{KEY}"}}' + "]" * 30],
    )  # fmt: skip
    def test_by_their_name(self, redacting, body):
        """However the text around them is spelled, and whatever was taken out before."""
        found = redacting.redact({"audit.request.body": body})

        assert KEY not in str(found)

    def test_of_columns(self, redacting):
        change = Change(
            operation="update", entity="User", table="users", key={"id": 1},
            values={"password": [None, KEY], "name": ["a", "b"], "note": [None, SECRETS[0]]},
            patches={"secret": [{"op": "add", "path": "/a", "value": KEY}]},
            parameters={"token": KEY},
        )  # fmt: skip
        (after,) = record_from_attributes(
            {**redacting.redact(to_attributes(a_record(changes=(change,))))},
            name="x", start_time=1, end_time=1, trace=None, own_ids=("", ""), resource={},
        ).changes  # fmt: skip

        assert after.values["password"] == [None, "[REDACTED]"]
        assert after.values["name"] == ["a", "b"]
        assert KEY not in str(after)
        assert SECRETS[0] not in str(after)


class TestClean:
    def test_what_is_clean_is_the_same_object(self, redacting):
        body = '{"a":"x \\"quoted\\"\\n","password":"[REDACTED]","list":' + str([1] * 200) + "}"
        told = {
            "audit.request.body": body,
            "audit.request.body.sha256": hashlib.sha256(body.encode()).hexdigest(),
            "http.request.header.accept": ["*/*"], "url.query": "page=2", "url.path": "/orders/1",
            "audit.changes": '[{"operation":"insert","entity":"User","table":"users",'
            '"values":{"password":[null,"[REDACTED]"]}}]',
        }  # fmt: skip
        assert redacting.redact(told) is told
        assert redacting.redact(told) is told

    @given(record=records())
    def test_twice_is_once(self, record):
        """What a sender of ours has redacted comes through unchanged by the second time."""
        redacting = Redacting(Redactor())
        once = redacting.redact(to_attributes(record))

        assert redacting.redact(once) == once

    def test_a_hash_that_is_not_the_texts_is_corrected(self, redacting):
        told = {"audit.request.body": '"x"', "audit.request.body.sha256": "0" * 64}
        alone = {"audit.response.body.sha256": "0" * 64}

        assert redacting.redact(told)["audit.request.body.sha256"] == (
            hashlib.sha256(b'"x"').hexdigest()
        )
        assert redacting.redact(alone) == {}

    def test_memory_is_bounded(self, redacting):
        for number in range(10_000):
            redacting.redact({f"http.request.header.x-{number}": f"v{number}"})

        assert len(redacting._clean) <= 8192


keys = st.sampled_from(["a", "note", "password", "api_key", "token", "card", 'pass"word', "x\ny"])
leaves = (
    st.none() | st.integers(-9, 10**16) | st.text(max_size=8)
    | st.sampled_from(["[REDACTED]", "[WITHHELD]", "4111111111111111", '{"password":"x"}', "\\"])
)  # fmt: skip
documents = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@given(document=documents)
def test_what_passes_unseen_holds_nothing_that_a_rule_would_take_out(document):
    """The short cut is wrong in one direction only."""
    redactor = Redactor()
    raw = msgspec.json.encode(document)
    if redactor.passes_unseen(raw):
        taken_out = values_in(document) - values_in(redactor.document(document))
        assert taken_out <= {None, "[REDACTED]", "[WITHHELD]"}


def values_in(document: object) -> set[object]:
    if isinstance(document, dict):
        return set(document).union(*map(values_in, document.values()))
    if isinstance(document, list):
        return set().union(*map(values_in, document))
    return {document}
