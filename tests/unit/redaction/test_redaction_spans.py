"""Redaction of what came in: a secret never passes, what is clean passes as it is."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_growth import kept_by
from strategies import a_record, records

from otel_audit._util.ids import uuid7
from otel_audit.attributes import _PLACES, record_from_attributes, to_attributes
from otel_audit.errors import InvalidAuditSpanError
from otel_audit.record import Change
from otel_audit.redaction import Redactor
from otel_audit.redaction.hashing import KeyedHash
from otel_audit.redaction.spans import SpanRedactor

SECRETS = ["4111 1111 1111 1111", "sk_live_51H8abcdefghijklmnop", "AKIAIOSFODNN7EXAMPLE"]
KEY = "hunter2-of-mine"
MUST = {
    "audit.actor.id": "user-1", "audit.actor.type": "user", "audit.action": "READ",
    "audit.outcome": "success",
}  # fmt: skip
JUDGED_BY_TYPE = {
    "audit.actor.type", "audit.actor.verified", "audit.changes.rolled_back", "audit.changes.total",
    "audit.decision", "audit.outcome", "audit.phase", "audit.schema.version", "audit.sequence.number",
    "audit.trace.sampled", "audit.transaction.outcome", "http.response.status_code",
}  # fmt: skip
"""Attributes of few values or none that is a text: others make no record."""


def read(told):
    return record_from_attributes(
        told, name="x", start_time=1, end_time=1, trace=None, own_ids=("", ""), resource={}
    )


class Looking(Redactor):
    """Counts the texts that are looked at."""

    looks = 0

    def text(self, text, work=None):
        self.looks += 1
        return super().text(text, work)


@pytest.fixture(scope="module")
def redacting() -> SpanRedactor:
    return SpanRedactor(Redactor())


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

    @pytest.mark.parametrize("secret", SECRETS)
    @pytest.mark.parametrize(
        "name",
        sorted(set(_PLACES) - JUDGED_BY_TYPE - {"url.query", "url.path", "audit.changes"}),
    )
    def test_every_text_that_a_record_has_a_place_for(self, redacting, name, secret):
        """By itself, among what many spans say alike, and as what it should not be."""
        among = {"audit.action": "READ", "http.request.method": "GET"}
        for value in (secret, [secret], {"a": secret}, {"a": [secret]}):
            for told in ({name: value}, {**among, name: value}, {name: value, **among}):
                for _ in range(2):
                    found = redacting.redact(told)
                    assert secret not in str(found)
                    assert found.get("http.request.method", "GET") in ("GET", found.get(name))

    @pytest.mark.parametrize("header", ["cookie", "authorization", "Authorization", "x-api-key"])
    @pytest.mark.parametrize(
        "value",
        [{"hunter2x": "1"}, [{"hunter2x": "1"}], ["a", {"hunter2x": "1"}], [["hunter2x"]],
         "hunter2x", ["hunter2x"], {"a": {"hunter2x": "hunter2x"}}],
    )  # fmt: skip
    def test_of_headers_however_they_are_structured(self, redacting, header, value):
        for prefix in ("http.request.header.", "http.response.header."):
            record = read({**redacting.redact({**MUST, prefix + header: value})})

            assert "hunter2x" not in str(record)

    def test_a_header_that_is_a_map_is_withheld_under_any_name(self, redacting):
        """The keys of a map are data of the sender's, and no names that could be judged."""
        told = {**MUST, "http.request.header.x-note": {SECRETS[1]: "1"}}

        (header,) = read(redacting.redact(told)).request.headers.values()
        assert header == "[WITHHELD]"

    def test_a_header_that_is_a_number_is_a_text(self, redacting):
        told = {**MUST, "http.request.header.content-length": 5, "http.request.header.x": [1, True]}

        assert read(told).request.headers == {"content-length": "5", "x": "1, true"}
        assert read(redacting.redact(told)).request.headers["content-length"] == "5"

    @pytest.mark.parametrize("name", [f"password={KEY}", "4111111111111111", "a b", SECRETS[1]])
    @pytest.mark.parametrize("prefix", ["http.request.header.", "http.response.header."])
    def test_a_header_whose_name_is_none_is_left_out(self, redacting, prefix, name):
        found = redacting.redact({**MUST, prefix + name: "x", prefix + "x-note": "y"})

        assert found == {**MUST, prefix + "x-note": "y"}

    @pytest.mark.parametrize(
        "name", ["audit.request.body.content_type", "audit.response.body.absent"]
    )
    def test_a_number_where_a_text_belongs_makes_no_record(self, name):
        with pytest.raises(InvalidAuditSpanError):
            read({**MUST, name: 4111111111111111})

    def test_who_it_was_can_be_compared(self):
        """As capture does: equal ids that are secrets have equal hashes."""
        redacting = SpanRedactor(Redactor(keyed_hash=KeyedHash(key=b"k" * 32)))
        told = {"audit.actor.id": f"a {SECRETS[1]}", "user.roles": ["admin", SECRETS[1]]}
        found = redacting.redact(told)

        assert found["audit.actor.id"].startswith("hmac:")
        assert found["user.roles"][0] == "admin"
        assert SECRETS[1] not in str(found)
        assert redacting.redact(told) == found

    def test_an_email_address_stays_unless_they_are_redacted(self, redacting):
        told = {"user.email": "ada@example.com", "audit.actor.id": "ada@example.com"}

        assert redacting.redact(told) is told
        assert "ada" not in str(SpanRedactor(Redactor(emails=True)).redact(told))


class TestClean:
    def test_ids_that_are_new_each_time_drive_nothing_out(self, redacting):
        """Ids that no two spans share are not remembered: that would push out what many share."""

        def spans() -> None:
            for _ in range(500):
                told = {name: uuid7() for name in ("audit.record.id", "audit.request.id")}
                told["audit.target.id"] = f"order-{told['audit.record.id']}"
                assert redacting.redact(told) is told

        spans()
        assert kept_by(spans) < 20_000

    @pytest.mark.parametrize(
        ("name", "value"),
        [("http.route", "/reset/{token:path}"), ("http.route", "/v1/token:revoke"),
         ("audit.action", "password:change"), ("audit.actor.source", "jwt:sub"),
         ("audit.target.type", "api_key:x"), ("audit.target.id", "token:5"),
         ("server.address", "token.example.com:8443"), ("audit.actor.role", "token:read")],
    )  # fmt: skip
    def test_a_colon_in_a_name_assigns_nothing(self, redacting, name, value):
        """Otherwise two routes would become one."""
        told = {name: value, "http.request.method": "GET"}
        assert redacting.redact(told) is told

    @pytest.mark.parametrize(
        "value", ["token:hunter2", "token: abc", "a:b token=abc", "x:4111 1111 1111 1111"]
    )
    def test_a_value_behind_it_is_taken_out(self, redacting, value):
        assert value not in redacting.redact({"audit.action": value}).values()

    def test_what_many_say_alike_is_looked_at_once(self):
        redactor = Looking()
        redacting = SpanRedactor(redactor)
        told = {"audit.action": "order.read", "http.route": "/orders/{id}", "error.type": "a.B"}
        redacting.redact(told)
        assert redactor.looks == 3
        redacting.redact(dict(told))
        assert redactor.looks == 3
        redacting.redact({**told, "http.route": "/orders/{other}"})
        assert redactor.looks == 4

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
        redacting = SpanRedactor(Redactor())
        once = redacting.redact(to_attributes(record))

        assert redacting.redact(once) == once

    def test_a_hash_that_is_not_the_texts_is_corrected(self, redacting):
        told = {"audit.request.body": '"x"', "audit.request.body.sha256": "0" * 64}
        alone = {"audit.response.body.sha256": "0" * 64}

        assert redacting.redact(told)["audit.request.body.sha256"] == (
            hashlib.sha256(b'"x"').hexdigest()
        )
        assert redacting.redact(alone) == {}


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
def test_what_is_clean_json_holds_nothing_that_a_rule_would_take_out(document):
    """The short cut is wrong in one direction only."""
    redactor = Redactor()
    raw = msgspec.json.encode(document)
    if redactor.is_clean_json(raw):
        taken_out = values_in(document) - values_in(redactor.document(document))
        assert taken_out <= {None, "[REDACTED]", "[WITHHELD]"}


def values_in(document: object) -> set[object]:
    if isinstance(document, dict):
        return set(document).union(*map(values_in, document.values()))
    if isinstance(document, list):
        return set().union(*map(values_in, document))
    return {document}
