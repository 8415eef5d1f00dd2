"""No body of ten thousand bytes costs much, however hostile; and ordinary ones are not cut short."""

from __future__ import annotations

import base64
import json
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest

from otel_audit.http.body import make_body
from otel_audit.record import Body
from otel_audit.redaction import Redactor
from otel_audit.redaction.budget import SpanBudget, WorkBudget

SIZE = 10_000
CANARY = "Xq7canary9Zt"
MOST_CALLS = 110_000
"""Calls of functions, ours and Python's: a measure of work that is the same on every machine."""

JSON, TEXT, FORM = "application/json", "text/plain", "application/x-www-form-urlencoded"
LINES, PARTS = "application/x-ndjson", "multipart/form-data; boundary=b"
redactor = Redactor()


def listed(piece: str) -> str:
    return "[" + ",".join([json.dumps(piece)] * (SIZE // (len(json.dumps(piece)) + 1))) + "]"


def mapped(piece: Callable[[int], str]) -> str:
    found, length = [], 2
    for number in range(SIZE):
        found.append(piece(number))
        length += len(found[-1].encode()) + 1
        if length > SIZE:
            break
    return "{" + ",".join(found[:-1]) + "}"


def repeated(piece: str) -> str:
    return piece * (SIZE // len(piece.encode()))


def json_in_json() -> str:
    text = json.dumps({"password": CANARY})
    while len(more := json.dumps({"a": text})) <= SIZE:
        text = more
    return text


def part(name: str) -> str:
    return f'--b\r\ncontent-disposition: form-data; name="{name}"\r\n\r\npin=1\r\n'


HOSTILE = {
    "nested lists": ("[" * 4_990 + "]" * 4_990, JSON),
    "many nested lists": (listed("x=1").replace('"x=1"', "[" * 60 + '"pin=1"' + "]" * 60)[:SIZE],
                          JSON),
    "many nested objects": ("[" + ",".join(['{"a":' * 60 + '"pin=1"' + "}" * 60] * 22) + "]", JSON),
    "JSON in JSON": (json_in_json(), JSON),
    "JSON in strings": (listed('{"password":"x"}'), JSON),
    "strings that begin like JSON": (listed("[pin=1"), JSON),
    "tiny strings": (listed("pin=1"), JSON),
    "tiny braces": (listed("{pin="), JSON),
    "empty lists": ("[" + "[]," * 3_300 + '"pin=1"]', JSON),
    "pairs": ("[" + ",".join(['["pin",1]'] * 999) + "]", JSON),
    "long numbers": ("[" + ",".join(["4111111111111111"] * 588) + "]", JSON),
    "one long number": ("1" * 9_990, JSON),
    "keys": (mapped(lambda number: f'"aB{number}":"pin:1"'), JSON),
    "keys beyond ASCII": (mapped(lambda number: f'"\ufdfa\ufdfa{number}":"pin=1"'), JSON),
    "one long key": ('{"' + "a=" * 4_900 + '":1}', JSON),
    "assignments": (repeated("a=b "), TEXT),
    "assignments of secrets": (repeated("pass=x,"), TEXT),
    "quotes that never end": (repeated('pin="'), TEXT),
    "brackets that never end": (repeated("a=("), TEXT),
    "nearly tokens": (repeated("eyJaaaa. "), TEXT),
    "tokens": (repeated("eyJaaaa.a "), TEXT),
    "nearly cards": (repeated("4111 1111 1111 1112 "), TEXT),
    "groups of digits": (repeated("4111 "), TEXT),
    "nearly account numbers": (repeated("DE00 "), TEXT),
    "nearly social security numbers": (repeated("000-12-1234 "), TEXT),
    "URLs": (repeated("a://b:@ "), TEXT),
    "credentials": (repeated("basic YWFhYWFh "), TEXT),
    "percent signs": (repeated("%41 "), TEXT),
    "percent signs, encoded": (repeated("%252525253D=1 "), TEXT),
    "percent signs, once more each time": ("%" + "25" * 4_990 + "41", TEXT),
    "escapes": (repeated("\\u0041"), TEXT),
    "escapes of percent signs": (repeated("\\u0025\\u0034\\u0031 "), TEXT),
    "elements": (repeated("<pin>1</pin>"), TEXT),
    "a tag of many values": ('<a name="pin" ' + "value='' " * 1_100 + ">", TEXT),
    "tags": (repeated('<a name="pin" value="x">'), TEXT),
    "private keys": (repeated("-----BEGIN PRIVATE KEY-----"), TEXT),
    "base64": (base64.b64encode(random.Random(1).randbytes(7_490)).decode(), TEXT),
    "lines": (repeated('{"pin":"1"}\n'), LINES),
    "tiny lines": (repeated("1\n"), LINES),
    "fields": ("&".join(f"a{number}=b" for number in range(1_400)), FORM),
    "fields of one name": ("a=&" * 3_300, FORM),
    "fields with assignments": ("&".join(f"p{n}=pin:1" for n in range(900)), FORM),
    "encoded fields": ("%41=%42&" * 1_200, FORM),
    "parts": ("".join(part(f"a{number}") for number in range(150)) + "--b--", PARTS),
    "names of one part": ("--b\r\ncontent-disposition: form-data" + '; name="a"' * 750
                          + "\r\n\r\npin=1\r\n--b--", PARTS),
}  # fmt: skip

ORDINARY = {
    "orders with cards": (json.dumps([
        {"id": n, "item": f"pot {n}", "card": "4111 1111 1111 1111", "price": "3.99",
         "note": "call me at 555 1234", "created_at": "2024-01-09T10:00:00Z"}
        for n in range(70)]), JSON),
    "users": (json.dumps([
        {"id": n, "password": f"hunter{n}", "profile": {"url": f"https://b:pw@example.com/{n}"}}
        for n in range(90)]), JSON),
    "UUIDs": (json.dumps([
        {"password": "x", "id": f"{n:08x}-1111-2222-3333-444444444444"} for n in range(140)]), JSON),
    "numbers of 18 digits": (json.dumps([10**17 + n * 10**13 for n in range(480)]), JSON),
    "JSON in strings": (json.dumps([
        json.dumps({"password": "x", "n": n, "note": "tea"}) for n in range(170)]), JSON),
    "a log": ("\n".join(
        f'ts=2024-01-01T00:00:00Z level=info msg="done" token=abc{n} path=/orders/{n} dur={n}ms'
        for n in range(90)), TEXT),
    "a table": ("\n".join(f"{n},tea {n},4111111111111111,12.5,2024-01-01" for n in range(190)),
                "text/csv"),
    "a page": ("".join(f'<label for="f{n}">F</label><input name="f{n}" value="v{n}"><br>'
                       for n in range(130)) + '<input name="csrf_token" value="x">', "text/html"),
    "XML": ("".join(f"<order id='{n}'><item>tea</item><password>x</password></order>"
                    for n in range(130)), "application/xml"),
    "a form": ("&".join(f"field_{n}=value+{n}%20x" for n in range(350)) + "&password=x", FORM),
}  # fmt: skip


def stored(text: str, content_type: str) -> Body:
    raw = text.encode()[:SIZE]
    return make_body(
        raw,
        size=len(text.encode()),
        content_type=content_type,
        content_encoding=None,
        complete=len(raw) == len(text.encode()),
        redactor=redactor,
        limit=SIZE,
    )


def calls_of(act: Callable[[], Any]) -> int:
    count = 0

    def note(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


class TestWork:
    @pytest.mark.parametrize("kind", HOSTILE)
    def test_is_bounded(self, kind: str) -> None:
        """Whatever stands in it, a body of ten thousand bytes causes only so many calls."""
        assert calls_of(lambda: stored(*HOSTILE[kind])) < MOST_CALLS

    @pytest.mark.parametrize("kind", ORDINARY)
    def test_is_enough_for_ordinary_bodies(self, kind: str) -> None:
        """A full body with a secret in every line is redacted to its end."""
        assert len(ORDINARY[kind][0]) > SIZE * 0.6
        assert "[WITHHELD" not in str(stored(*ORDINARY[kind]).text)
        assert "[REDACTED]" in str(stored(*ORDINARY[kind]).text) or "18 digits" in kind

    def test_what_is_beyond_it_is_withheld_and_says_why(self) -> None:
        """The document keeps its beginning; the rest is one word, and no secret is passed on."""
        document = ["tea", *["pin=1"] * 1_200, {"password": CANARY}, CANARY]
        body = stored(json.dumps(document, separators=(",", ":")), JSON)
        found = json.loads(str(body.text))
        assert (found[0], found[-1]) == ("tea", "[WITHHELD: work]")
        assert CANARY not in str(body.text)

    def test_an_object_says_how_much_is_withheld(self) -> None:
        """Under the word stands the number of its members that were left out."""
        text = mapped(lambda number: f'"aB{number}":"pin:1"')
        found = json.loads(str(stored(text, JSON).text))
        assert found["[WITHHELD: work]"] + len(found) - 1 == len(json.loads(text))

    def test_a_text_is_withheld_as_a_whole(self) -> None:
        """Where a text was left off nobody could tell from what is there."""
        assert stored(repeated("pin%3D1234 "), TEXT).text == '"[WITHHELD: work]"'

    def test_a_query_keeps_its_beginning(self) -> None:
        """Parameters are redacted one by one, until the work is used up."""
        query = "page=1&" + "&".join(f"p{number}=pin:1" for number in range(900))
        found = redactor.query(f"{query}&x={CANARY}")
        assert found.startswith("page=1&")
        assert found.endswith("%5BWITHHELD%3A+work%5D")
        assert CANARY not in found

    def test_a_path_is_withheld(self) -> None:
        """A path of thousands of encoded segments is no path that anybody needs."""
        assert redactor.path("/%70in=1" * 1_250) == "[WITHHELD: work]"

    def test_explanations_name_the_bound(self) -> None:
        """`otel-audit redact --explain` says where the work ended."""
        assert "bound:work" in {finding.rule for finding in redactor.explain(["pin=1"] * 3_000)}

    @pytest.mark.parametrize("kind", ["lines", "fields of one name", "parts"])
    def test_too_many_items_are_cut(self, kind: str) -> None:
        """What is left out of lines, fields, and parts shows."""
        text, content_type = HOSTILE[kind]
        if kind == "lines":
            text = "1\n" * 1_001
        body = stored(text, content_type)
        assert body.absent == "truncated"
        assert json.loads(str(body.text))["_truncated"] is True


class TestSpansOfOneRequest:
    def test_an_overdrawn_pool_takes_nothing_of_a_span_s_own(self) -> None:
        """What the spans before it have used beyond the pool is not its debt."""
        pool = WorkBudget.of(10)
        greedy, modest = SpanBudget(pool, 5), SpanBudget(pool, 5)
        share = greedy.of("metadata")
        kept = greedy.limit(share)
        greedy.charge(share, share.left + 900, kept)
        assert pool.left < 0

        share = modest.of("metadata")
        modest.limit(share)
        assert share.left == 5
