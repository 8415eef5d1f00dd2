"""What holds for documents of every shape."""

from __future__ import annotations

import copy
import json
from typing import Any
from urllib.parse import parse_qsl, urlencode

import msgspec
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from otel_audit.redaction import Redactor
from otel_audit.redaction.budget import WorkBudget
from otel_audit.redaction.names import ALIGNED, ANYWHERE, WHOLE, squash
from otel_audit.redaction.prefilter import Prefilter

redactor = Redactor()
scan = Prefilter()

CANARY = "Xq7canary9Zt"
CARD = "4111 1111 1111 1111"
NAMES = st.sampled_from(["password", "apiKey", "CREDIT-CARD", "pin", "user_otp", "x.auth", "cvv"])

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.text(st.characters(codec=None), max_size=5)
)
keys = st.text(max_size=10) | st.sampled_from(["name", "value", "loc", "input", "a.b", '"', "\\"])
documents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
    ),
    max_leaves=12,
)


@st.composite
def with_secrets(draw: st.DrawFn) -> Any:
    """A document with a canary under a sensitive name, and a card number anywhere."""
    secret: Any = {draw(NAMES): draw(st.sampled_from([CANARY, [CANARY], {"x": CANARY}]))}
    loose: Any = draw(st.sampled_from(["", "n", " "])) + CARD
    document: Any = [secret, loose]
    for _ in range(draw(st.integers(0, 6))):
        wrap = draw(st.integers(0, 5))
        if wrap == 0:
            document = {draw(keys): document}
        elif wrap == 1:
            document = [draw(scalars), document]
        elif wrap == 2:
            document = {"payload": json.dumps(document), "x": draw(scalars)}
        elif wrap == 3:
            document = {draw(keys): draw(documents), "more": document}
        elif wrap == 4:
            document = json.dumps(document, ensure_ascii=draw(st.booleans()), indent=1)
        else:
            document = (document,)
    return document


def spelled(value: Any) -> str:
    return msgspec.json.encode(value).decode()


class TestDocuments:
    @given(with_secrets())
    @settings(max_examples=300, deadline=None)
    def test_never_lets_a_secret_through(self, document: Any) -> None:
        """Whatever the shape, neither the canary nor the card number is in the result."""
        text = spelled(redactor.document(document))
        assert CANARY not in text
        assert "1111 1111" not in text

    @given(with_secrets(), st.booleans())
    @settings(max_examples=300, deadline=None)
    def test_never_lets_a_secret_through_json(self, document: Any, ascii_only: bool) -> None:
        """The same holds for JSON text, whatever its escapes."""
        text = json.dumps(document, ensure_ascii=ascii_only)
        redacted = (redactor.json_or_none(text.encode("utf-8", "replace")) or b"").decode()
        assert CANARY not in redacted
        assert "1111 1111" not in redacted

    @given(documents)
    @settings(max_examples=300, deadline=None)
    def test_gives_json_and_changes_nothing_given(self, document: Any) -> None:
        """The result has JSON's types only; the argument stays as it was."""
        before = repr(document)
        again = copy.copy(document)
        text = spelled(redactor.document(document))
        assert repr(document) == before == repr(again)
        json.loads(text)

    @given(documents)
    @settings(max_examples=300, deadline=None)
    def test_is_stable(self, document: Any) -> None:
        """To redact what is redacted changes nothing more."""
        once = redactor.document(document)
        assert redactor.document(once) == once

    @given(documents)
    @settings(max_examples=300, deadline=None)
    def test_says_the_same_of_text_and_of_values(self, document: Any) -> None:
        """The fast way over JSON text gives what the walk gives."""
        text = json.dumps(document, ensure_ascii=False, allow_nan=True)
        try:
            raw = text.encode()
        except UnicodeEncodeError:
            raw = json.dumps(document).encode()
        assert json.loads(redactor.json_or_none(raw)) == redactor.document(json.loads(raw))

    @given(documents)
    @settings(max_examples=200, deadline=None)
    def test_explains_whatever_it_changes(self, document: Any) -> None:
        """No findings, no change."""
        try:
            plain = json.loads(json.dumps(document, allow_nan=False))
            json.dumps(plain, ensure_ascii=False).encode()
        except ValueError:
            return
        if "\\u0000" not in json.dumps(plain) and not redactor.explain(plain):
            assert redactor.document(plain) == plain


class TestQueries:
    @given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=5), NAMES)
    @settings(max_examples=200, deadline=None)
    def test_stays_a_query(self, pairs: list[tuple[str, str]], name: str) -> None:
        """Names and number of parameters stay; the secret goes."""
        query = urlencode([*pairs, (name, CANARY)], errors="replace")
        redacted = redactor.query(query)
        assert CANARY not in redacted
        assert redacted.count("&") == query.count("&")
        assert parse_qsl(redacted)[-1] == (name, "[REDACTED]")


separators = st.text(st.sampled_from(" _-.\u200b'"), max_size=2)


@st.composite
def disguised(draw: st.DrawFn) -> str:
    """A built-in name with its letters' case and separators changed."""
    name = draw(st.sampled_from([*ANYWHERE, *WHOLE]))
    # what is only sensitive as a whole is not looked for in pieces
    is_phrase = name in ANYWHERE
    return "".join(
        draw(st.sampled_from([letter, letter.upper()]))
        + (draw(separators) if is_phrase or letter == "_" else "")
        for letter in name
    )


class TestScan:
    @given(disguised() | st.text(max_size=12))
    @settings(max_examples=500, deadline=None)
    @example("pin")
    @example("pa\u017f\u017fword")
    def test_suspects_every_name_that_a_rule_touches(self, name: str) -> None:
        """What the scan calls clean, the key rules call clean."""
        raw = json.dumps({name: 1}, ensure_ascii=False).encode("utf-8", "replace")
        if "\\" not in json.dumps({name: 1}, ensure_ascii=False) and redactor.is_sensitive(name):
            assert scan.suspects(raw)

    @given(
        st.sampled_from(ALIGNED), st.sampled_from(["user_{}", "{}Code", "my-{}", "{}", "a.{}.b"])
    )
    def test_suspects_words_in_every_style(self, word: str, style: str) -> None:
        """Single words are suspected in snake, kebab and camel case."""
        for spelled_word in (word, word.upper(), word.title()):
            name = style.format(spelled_word)
            assert scan.suspects(f'{{"{name}": 1}}'.encode()), name
            camel = f"user{word.title()}"
            assert scan.suspects(f'{{"{camel}": 1}}'.encode())

    @given(st.text(max_size=60))
    @settings(max_examples=500, deadline=None)
    def test_suspects_every_text_that_a_rule_touches(self, text: str) -> None:
        """Random text that the text rules would change is suspected."""
        try:
            text.encode()
        except UnicodeEncodeError:
            return
        clean = text.replace("\0", "\ufffd")
        rules = redactor._rules
        redacted = rules.text.redact(
            clean, rules.replacement, lambda _: None, WorkBudget(len(text))
        )
        if redacted != clean:
            assert scan.suspects_string(clean)

    @given(
        st.sampled_from(["password", "pin", "otp", "api key", "Card-Number", "db_pass", "IBAN"]),
        st.sampled_from(["=", ": ", " = ", "=>", '": "', "']='", "%3D", ")=("]),
        st.text(st.sampled_from(" ,;&?#\"'x"), max_size=3),
    )
    @settings(max_examples=300, deadline=None)
    def test_suspects_assignments(self, name: str, sign: str, before: str) -> None:
        """A text that assigns to a sensitive name is suspected."""
        text = f"{before}{name}{sign}value"
        rules = redactor._rules
        redacted = rules.text.redact(text, rules.replacement, lambda _: None, WorkBudget(len(text)))
        if redacted != text:
            assert scan.suspects_string(text)


@given(
    st.sampled_from(
        ["password", "pin", "otp", "api-key", "Card-Number", "db_pass", "IBAN", "pass"]
    ),
    st.sampled_from(["", "run ", 'x "', "a\n"]),
    st.sampled_from(["value", "'two words'", '"v', "1"]),
)
def test_the_scan_suspects_options(name: str, before: str, value: str) -> None:
    """A command line with a sensitive option is suspected."""
    assume((name, value) != ("Card-Number", "1"))  # as a count of cards would be
    text = f"{before}--{name} {value}"
    redacted = redactor.text(text)
    assert redacted != text
    assert scan.suspects_string(text)


def test_names_are_squashed_once() -> None:
    """The tables hold nothing that squashing would empty."""
    assert all(squash(name) for name in (*ANYWHERE, *WHOLE, *ALIGNED))
