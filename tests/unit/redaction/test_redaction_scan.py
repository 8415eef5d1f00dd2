"""The quick search and the rules it stands for: what it calls clean, no rule touches."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_audit.redaction import Redactor
from otel_audit.redaction.names import ALIGNED, ANYWHERE, WHOLE
from otel_audit.redaction.prefilter import Prefilter

CANARY = "Xq7canary9Zt"
FIELDS = ("employee_number", "tax-id", "*_steuer_nr", "größe_nr", "*Ref")


class SuspectsAll(Prefilter):
    """A search that sends everything to the rules."""

    def suspects(self, text: bytes) -> bool:
        """Suspect."""
        return True


def without_search(redactor: Redactor) -> Redactor:
    redactor._rules = dataclasses.replace(redactor._rules, scan=SuspectsAll())
    return redactor


quick = Redactor(fields=FIELDS)
thorough = without_search(Redactor(fields=FIELDS))

STYLES = (
    "_".join,
    "-".join,
    ".".join,
    " ".join,
    "".join,
    lambda words: "".join(word.title() for word in words),
    lambda words: words[0] + "".join(word.title() for word in words[1:]),
    lambda words: "_".join(words).upper(),
)
NAMES = st.builds(
    lambda before, name, style, after: before + style(name.split("_")) + after,
    st.sampled_from(
        ["", "user_", "my", "SEPA", "SMS", "x-", "a.", "a[", "http:", "é", "\u017f", "\u212a", "2"]
    ),
    st.sampled_from(
        [*ANYWHERE, *ALIGNED, *WHOLE, "employee_number", "tax_id", "my_steuer_nr", "a"]
    ),
    st.sampled_from(STYLES),
    st.sampled_from(["", "_1", "Value", "]", "[]", "s", "\u200b", "_at", "-", "é"]),
)
SECRETS = st.sampled_from(
    [CANARY, "4111 1111 1111 1111", "DE89370400440532013000", "sk-" + "a" * 20, "Bearer " + CANARY,
     "hf_" + "a" * 30, "postgres://u:p@h/db", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc"]
)  # fmt: skip
TEXTS = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "x ", "(", "\u017f", "\u212a", "é", "'", '"', "GET /a?b=1&"]),
    NAMES,
    st.sampled_from(["=", ": ", " = ", "       =", "=>", '": "', "']=", "____="]),
    SECRETS,
) | st.builds(
    lambda form, name, secret: form.format(name, secret),
    st.sampled_from(
        ["<{0}>{1}</{0}>", '<{0} a="b">{1}', "--{0} {1}", "<input name='{0}' value='{1}'>", "{1}"]
    ),
    NAMES,
    SECRETS,
)
DOCUMENTS = st.recursive(
    TEXTS | SECRETS | st.integers(0, 10),
    lambda inner: (
        st.dictionaries(NAMES, inner, max_size=3)
        | st.lists(inner, max_size=3)
        | st.builds(
            lambda label, name, value, secret: {label: name, value: secret},
            st.sampled_from(["name", "key", "loc", "Name"]),
            NAMES | st.lists(NAMES, max_size=2),
            st.sampled_from(["value", "input", "ctx"]),
            SECRETS,
        )
        | st.lists(st.tuples(NAMES, SECRETS).map(list), min_size=1, max_size=2)
        | st.builds(json.dumps, inner)
    ),
    max_leaves=6,
)


class TestAgreement:
    @given(DOCUMENTS, st.booleans())
    @settings(max_examples=120, deadline=None)
    def test_the_rules_give_what_the_search_gives(self, document: Any, ascii_only: bool) -> None:
        """With the search and without it, the result is the same."""
        raw = json.dumps(document, ensure_ascii=ascii_only).encode()
        assert json.loads(quick.json_or_none(raw)) == json.loads(thorough.json_or_none(raw))
        assert quick.document(document) == thorough.document(document)

    @given(TEXTS)
    @settings(max_examples=120, deadline=None)
    def test_holds_for_texts(self, text: str) -> None:
        """The same for a text of its own."""
        assert quick.text(text) == thorough.text(text)


@pytest.mark.parametrize(
    "name",
    ["SEPAIban", "SMSOtp", "HTTPCookie", "SSOJwt", "auth_code", "code_verifier", "pin_code",
     "card_no", "X-Amz-Signature", "pass_phrase", "pass-code", "pass-wd", "php_sess_id",
     "o_auth_verifier", "pass-_-wd", "myhost.pass", "a[SIG]", "employee_number", "employeeNumber",
     "tax-id", "taxId", "tax_id", "my_steuer_nr", "x-pin", "X-User-Pin", "x_session_pin", "a.x-pin",
     "X-Basic-Auth", "xauth", "contraseña", "\uff50assword", "grösse_nr"],
)  # fmt: skip
class TestNames:
    def test_hides_what_a_text_assigns_to_it(self, name: str) -> None:
        """In a message, whatever its spelling."""
        assert CANARY not in quick.text(f"{name}={CANARY}")
        assert CANARY not in quick.text(f"x {name} : {CANARY}")
        assert (
            CANARY
            not in quick.json_or_none(json.dumps({"m": f"{name}={CANARY}"}).encode()).decode()
        )

    def test_hides_what_stands_beside_it(self, name: str) -> None:
        """As the name of a value, and as its key."""
        for document in ({"name": name, "value": CANARY}, {"loc": ["a", name], "ctx": CANARY}):
            assert CANARY not in str(quick.document(document))
        for ascii_only in (True, False):
            raw = json.dumps({name: CANARY}, ensure_ascii=ascii_only).encode()
            assert CANARY not in quick.json_or_none(raw).decode()


@pytest.mark.parametrize(
    "text",
    ["\u017fcookie=" + CANARY, "\u212aCookie: " + CANARY, "\u212ask-" + CANARY + "a" * 20,
     "\u017fhf_" + CANARY + "a" * 30, "<pin a='b'>" + CANARY, "pin_____       =" + CANARY,
     "paßword=" + CANARY, "é_ssñ=" + CANARY, "x密cvñ: " + CANARY],
)  # fmt: skip
def test_hides_what_stands_behind_an_odd_letter_or_much_space(text: str) -> None:
    """Letters that fold to ASCII ones edge a word all the same."""
    assert CANARY not in quick.text(text)


@pytest.mark.parametrize(
    "name", ["x-", "x_", "x-ray", "x-pinned", "x-passenger", "xpin", "x-spin", "ax-pin", "x-x-pin"]
)
def test_an_x_before_a_name_makes_no_secret_of_an_ordinary_one(name: str) -> None:
    """Only the exact name behind ``x-`` is judged as if it stood alone."""
    assert quick.document({name: "blue"}) == {name: "blue"}
    assert not quick.is_sensitive(name)


@pytest.mark.parametrize(
    "query",
    [f"url=http://user:pa={CANARY}@host/x", f"u=https://bob:{CANARY}=@host",
     f"auth_code={CANARY}", f"SMSOtp={CANARY}"],
)  # fmt: skip
def test_hides_what_a_query_holds(query: str) -> None:
    """Also what has the sign between names and values in it."""
    assert CANARY not in quick.query(query)


@pytest.mark.parametrize(
    "text",
    ["please ring twice", "pinned: yes", "the keys are at the desk: ask", "compass: north",
     "authors=3", "größe: 3", "a signal=1", "https://example.com/a?b=c"],
)  # fmt: skip
def test_suspects_no_ordinary_text(text: str) -> None:
    """What suspects everything would be right, and slow."""
    assert not Prefilter().suspects_string(text)
