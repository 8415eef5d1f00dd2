"""What is stored of a body, by its type, its coding, and how much of it was copied."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_audit.http.body import _gunzip, make_body
from otel_audit.record import NO_CONTENT, Body
from otel_audit.redaction import Redactor
from otel_audit.redaction.truncate import whole_json

CANARY = "Xq7canary9Zt"
redactor = Redactor()


def stored(
    raw: bytes,
    content_type: str | None = "application/json",
    *,
    coding: str | None = None,
    cut: int | None = None,
    limit: int = 10_000,
) -> Body:
    head = raw if cut is None else raw[:cut]
    body = make_body(
        head,
        size=len(raw),
        content_type=content_type,
        content_encoding=coding,
        complete=cut is None,
        redactor=redactor,
        limit=limit,
    )
    if body.content is not NO_CONTENT:
        assert body.sha256 == hashlib.sha256(bytes(body.content)).hexdigest()
    assert body.size == len(raw)
    return body


def content(body: Body) -> Any:
    assert body.text is not None
    return json.loads(body.text)


class TestJson:
    @pytest.mark.parametrize(
        "content_type",
        ["application/json", "application/json; charset=utf-8", "text/json", "APPLICATION/JSON",
         "application/vnd.api+json", "application/problem+json", None],
    )  # fmt: skip
    def test_is_redacted(self, content_type: str | None) -> None:
        """The redacted document is the content, as the text it is."""
        body = stored(b'{"a": 1,"password":"x"}', content_type)
        assert body.text == '{"a":1,"password":"[REDACTED]"}'
        assert body.absent is None
        assert body.content_type == content_type

    @pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
    def test_is_read_in_every_unicode_encoding(self, codec: str) -> None:
        """A parser that detects the encoding would read it, so it is read here."""
        body = stored(f'{{"password":"{CANARY}","é":1}}'.encode(codec))
        assert content(body) == {"password": "[REDACTED]", "é": 1}

    def test_is_read_in_its_charset(self) -> None:
        """A declared charset counts; an unknown one withholds."""
        raw = '{"é":1}'.encode("latin-1")
        assert content(stored(raw, "application/json; charset=ISO-8859-1")) == {"é": 1}
        assert stored(raw, "application/json; charset=klingon").absent == "unparsable"

    @pytest.mark.parametrize(
        "raw",
        [b"{'password': 'Xq7canary9Zt'}", b'{"a":', b"\xff\xfe\xfd", b"password=Xq7canary9Zt"],
    )
    def test_that_is_not_json_is_withheld(self, raw: bytes) -> None:
        """Nothing of it is guessed."""
        body = stored(raw)
        assert body.content is NO_CONTENT
        assert body.absent == "unparsable"
        assert body.sha256 is None

    def test_lines_become_a_list(self) -> None:
        """Each line is a document of its own."""
        raw = b'{"pin":1}\n\n{"b":2}\r\n'
        assert content(stored(raw, "application/x-ndjson")) == [{"pin": "[REDACTED]"}, {"b": 2}]
        assert stored(b'{"a":1}\nx', "application/jsonl").absent == "unparsable"

    def test_of_no_size_has_no_content(self) -> None:
        """An empty body is no document."""
        assert stored(b"") == Body(size=0, content_type="application/json")


class TestCutBodies:
    def test_keeps_what_is_whole(self) -> None:
        """Values before the cut are redacted and kept, the one in it is left out."""
        raw = json.dumps({"a": 1, "password": CANARY, "b": {"c": [1, 2, "long " * 50]}}).encode()
        body = stored(raw, cut=80)
        assert body.absent == "truncated"
        assert content(body) == {
            "_truncated": True,
            "_original_size": len(raw),
            "_head": {"a": 1, "password": "[REDACTED]", "b": {"c": [1, 2]}},
        }

    @pytest.mark.parametrize("cut", range(0, 90, 3))
    @pytest.mark.parametrize(
        ("content_type", "raw"),
        [
            ("application/json", b'{"k":"v","password":"Xq7canary9Zt","n":[1,{"pin":"Xq7canary9Zt"}]}' + b" " * 40),
            ("application/x-ndjson", b'{"pin":"Xq7canary9Zt"}\n' * 6),
            ("application/x-www-form-urlencoded", b"a=1&pass%77ord=Xq7canary9Zt&b=2&" * 4),
            ("text/plain", b"user=b password=Xq7canary9Zt and Bearer Xq7canary9Zt " * 3),
            ("application/octet-stream", b"\x00Xq7canary9Zt" * 10),
            (None, b'{"password":"Xq7canary9Zt","x":"' + b"y" * 80),
        ],
        ids=str,
    )  # fmt: skip
    def test_never_shows_half_a_secret(self, content_type: str, raw: bytes, cut: int) -> None:
        """Wherever the cut is, neither the secret nor its beginning is stored."""
        body = stored(raw, content_type, cut=cut)
        assert CANARY[:3] not in (body.text or "")
        assert body.absent in ("truncated", "binary")

    def test_never_shows_half_a_number(self) -> None:
        """A card number that the cut goes through is no card number any more; it goes too."""
        raw = b"The customer wrote: please charge my card 4111 1111 1111 1111 " + b"x" * 100
        for cut in range(40, 70):
            assert "41" not in (stored(raw, "text/plain", cut=cut).text or "")

    def test_says_nothing_of_a_head_that_is_not_json(self) -> None:
        """The wrapper is there, the head is not."""
        assert content(stored(b'{"a":1}}}}' + b"x" * 50, cut=20)) == {
            "_truncated": True, "_original_size": 60,
        }  # fmt: skip

    def test_withholds_a_value_whose_name_may_come_later(self) -> None:
        """A name that stands beside its value may have been cut off."""
        raw = (
            b'{"env":[{"value":"b","name":"x"},{"value":"Xq7canary9Zt","other":1,"name":"token"}]}'
        )
        assert content(stored(raw, cut=70))["_head"] == {
            "env": [{"value": "b", "name": "x"}, {"value": "[WITHHELD]", "other": 1}],
        }  # fmt: skip

    def test_keeps_whole_lines_of_text(self) -> None:
        """Text is kept up to its last whole line."""
        raw = b"first line\nsecond line is here\nthird"
        assert (
            content(stored(raw, "text/plain", cut=33))["_head"] == "first line\nsecond line is here"
        )

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(st.text(max_size=4), inner, max_size=4)
            ),
            max_leaves=15,
        ),
        st.data(),
    )
    @settings(max_examples=200, deadline=None)
    def test_closes_every_json_head(self, document: Any, data: st.DataObject) -> None:
        """The head of any document closes to valid JSON, wherever it was cut."""
        raw = json.dumps(document, ensure_ascii=data.draw(st.booleans())).encode()
        closed = whole_json(raw[: data.draw(st.integers(0, len(raw)))])
        if closed is not None:
            assert isinstance(json.loads(closed), dict | list)


class TestForms:
    def test_becomes_an_object(self) -> None:
        """Names are decoded for the match; a repeated one has a list."""
        raw = b"a=1&a=2&b=x+y%21&pass%77ord=" + CANARY.encode() + b"&empty="
        body = stored(raw, "application/x-www-form-urlencoded; charset=utf-8")
        assert content(body) == {
            "a": ["1", "2"], "b": "x y!", "password": "[REDACTED]", "empty": "",
        }  # fmt: skip

    def test_looks_into_values(self) -> None:
        """JSON and URLs in a field are redacted."""
        raw = urlencode({"payload": json.dumps({"token": CANARY}), "u": f"https://a:{CANARY}@h/"})
        assert CANARY not in (stored(raw.encode(), "application/x-www-form-urlencoded").text or "")


def multipart(*parts: tuple[str, bytes]) -> bytes:
    lines = b"".join(
        b"--XbX\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + data + b"\r\n"
        for head, data in parts
    )
    return lines + b"--XbX--\r\n"


MULTIPART = "multipart/form-data; boundary=XbX"


class TestMultipart:
    def test_keeps_fields_and_facts_about_files(self) -> None:
        """Names, redacted values, and of files name, type, size and hash; never the content."""
        data = CANARY.encode() * 10
        raw = multipart(
            ('name="title"', b"hello"),
            ('name="password"', CANARY.encode()),
            ('name="doc"; filename="a b.txt"\r\nContent-Type: text/plain', data),
            ("name=\"short\"; filename*=UTF-8''%e2%82%ac.bin", CANARY.encode()),
            ('name="tag"', b"x"),
            ('name="tag"', b"\xff"),
            ('name="pay"', b"4111 1111 1111 1111"),
        )
        body = stored(raw, MULTIPART)
        assert CANARY not in (body.text or "")
        assert content(body) == {
            "title": "hello",
            "password": "[REDACTED]",
            "doc": {
                "_file": "a b.txt", "_content_type": "text/plain", "_size": len(data),
                "_sha256": hashlib.sha256(data).hexdigest(),
            },
            "short": {"_file": "€.bin", "_content_type": None, "_size": len(CANARY)},
            "tag": ["x", {"_binary": True, "_size": 1}],
            "pay": "[REDACTED]",
        }  # fmt: skip

    def test_heeds_every_name_a_part_gives_itself(self) -> None:
        """A second name in the header is no way around a rule."""
        raw = multipart(('name="title"; name="password"', CANARY.encode()))
        assert CANARY not in (stored(raw, MULTIPART).text or "")

    def test_redacts_file_names(self) -> None:
        """A file's name can hold a secret as well."""
        raw = multipart(('name="f"; filename="4111111111111111.txt"', b"x"))
        assert "4111111111111111" not in (stored(raw, MULTIPART).text or "")

    @pytest.mark.parametrize(
        "disposition",
        ['name="p%61ssword"', 'name="=?utf-8?B?cGFzc3dvcmQ=?="', '\r\n\tname="password"',
         'name="=?klingon?Q?a?="', "name=x; name*=utf-8''p%61ssword",
         'name="a"\r\nContent-Disposition: form-data; name="password"',
         'name="a"\nContent-Disposition: form-data; name="password"', "x=y", ""],
    )  # fmt: skip
    def test_withholds_what_an_encoded_or_an_unclear_name_names(self, disposition: str) -> None:
        """Whoever reads the header in another way reads no secret here."""
        raw = multipart((disposition, CANARY.encode()), ('name="tag"', b"x"))
        body = stored(raw, MULTIPART)
        assert CANARY not in (body.text or "")
        assert content(body)["tag"] == "x"

    @pytest.mark.parametrize(
        "disposition",
        ["name=a; x*=a; x*0=b", "name=a; name*=idna''x..y", "name=f; filename*=idna''x..y",
         "name*=a\0b''x"],
    )  # fmt: skip
    def test_withholds_what_cannot_be_read(self, disposition: str) -> None:
        """Parameters that the standard library stumbles over (RFC 2231) cost their part only."""
        raw = multipart((disposition, CANARY.encode()), ('name="tag"', b"x"))
        body = stored(raw, MULTIPART)
        assert CANARY not in (body.text or "")
        assert content(body)["tag"] == "x"

    @pytest.mark.parametrize(
        "parameters", ["x*=a; x*0=b", "boundary*=undefined''x", "boundary*=a\0b''x"]
    )
    def test_without_a_boundary_that_can_be_read_is_unparsable(self, parameters: str) -> None:
        """However odd the header is."""
        raw = multipart(('name="tag"', b"x"))
        body = stored(raw, "multipart/form-data; " + parameters)
        assert body.absent == "unparsable"

    def test_keeps_what_a_folded_or_encoded_innocent_name_names(self) -> None:
        """An unusual header alone is no reason to withhold."""
        raw = multipart(('\r\n name="tag"', b"x"), ('name="a%20b"', b"y"))
        assert content(stored(raw, MULTIPART)) == {"tag": "x", "a%20b": "y"}

    @pytest.mark.parametrize("cut", range(0, 330, 7))
    def test_that_is_cut_keeps_whole_parts(self, cut: int) -> None:
        """A part that the cut goes through is named, not shown."""
        raw = multipart(
            ('name="title"', b"hello"),
            ('name="token"', CANARY.encode()),
            ('name="doc"; filename="a"', CANARY.encode() * 20),
        )
        body = stored(raw, MULTIPART, cut=cut)
        assert body.absent == "truncated"
        assert CANARY[:4] not in (body.text or "")
        if cut > 200:
            head = content(body)["_head"]
            assert head["title"] == "hello"
            assert head["doc"] == {"_file": "a", "_content_type": None, "_truncated": True}

    @pytest.mark.parametrize("content_type", ["multipart/form-data", MULTIPART + "other"])
    def test_without_its_boundary_is_withheld(self, content_type: str) -> None:
        """What cannot be split is not passed on."""
        body = stored(multipart(('name="a"', CANARY.encode())), content_type)
        assert body.absent == "unparsable"


class TestText:
    @pytest.mark.parametrize(
        "content_type",
        ["text/plain", "text/html; charset=utf-8", "application/xml", "image/svg+xml"],
    )
    def test_becomes_a_json_string(self, content_type: str) -> None:
        """The value rules apply."""
        body = stored(f"<b>é</b> password={CANARY}".encode(), content_type)
        assert content(body) == "<b>é</b> password=[REDACTED]"

    def test_is_decoded_by_its_charset(self) -> None:
        """What does not decode is described as binary."""
        assert content(stored(b"caf\xe9", "text/plain; charset=latin-1")) == "café"
        assert stored(b"caf\xe9", "text/plain").absent == "binary"
        assert stored(b"caf\xe9", "text/plain; charset=nonsense").absent == "binary"

    @pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32-le"])
    @pytest.mark.parametrize("content_type", ["application/xml", "text/plain"])
    def test_is_read_in_every_unicode_encoding(self, content_type: str, codec: str) -> None:
        """A parser that detects the encoding would read it, so it is read here."""
        raw = f"<a><password>{CANARY}</password></a>".encode(codec)
        body = stored(raw, content_type)
        assert content(body).removeprefix("\ufeff") == "<a><password>[REDACTED]</password></a>"

    @pytest.mark.parametrize(
        "content_type",
        ["text/plain; charset=utf-8", "text/plain; charset=latin-1",
         "application/x-www-form-urlencoded"],
    )  # fmt: skip
    def test_with_nul_in_it_is_binary(self, content_type: str) -> None:
        """In the encoding it really has, a secret could be read between the zeros."""
        assert stored(f"a={CANARY} 4111".encode("utf-16-le"), content_type).absent == "binary"
        assert stored(b"ab\0c" * 9, content_type, cut=20).absent == "binary"

    @pytest.mark.parametrize(
        ("text", "codec", "declared"),
        [("password=hunter2 ", "ascii", "utf-16"), ("password=hunter2 ", "ascii", "utf-16le"),
         ("password=höhle ", "utf-8", "utf-16be"), ("password=hunter2", "utf-16-be", "utf-16le")],
    )  # fmt: skip
    def test_in_another_encoding_than_it_says_is_binary(
        self, text: str, codec: str, declared: str
    ) -> None:
        """Read as declared, no rule would see what everybody can turn back."""
        assert stored(text.encode(codec), "text/plain; charset=" + declared).absent == "binary"

    @pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be"])
    def test_in_utf_16_with_or_without_a_mark_is_read(self, codec: str) -> None:
        """Which of both it is the zeros say, where no mark does."""
        assert content(stored("a: 1".encode(codec), "text/plain; charset=utf-16")) == "a: 1"

    def test_that_is_json_is_redacted_as_json(self) -> None:
        """A wrong content type is no way around."""
        body = stored(b'{"pass\\u0077ord":"' + CANARY.encode() + b'"}', "text/plain")
        assert CANARY not in (body.text or "")

    def test_without_a_type_is_told_by_its_bytes(self) -> None:
        """Undeclared bodies are text where they read as text."""
        assert content(stored(b"hello", None)) == "hello"
        assert content(stored(b"{not json}", None)) == "{not json}"
        assert stored(b"a\x00b", None).absent == "binary"


class TestBinary:
    def test_is_described(self) -> None:
        """Size, and a hash if the content is too long to be guessed."""
        long = stored(b"\x00" * 64, "application/octet-stream")
        assert long.absent == "binary"
        assert content(long) == {
            "_binary": True, "_size": 64, "_sha256": hashlib.sha256(b"\x00" * 64).hexdigest(),
        }  # fmt: skip
        assert content(stored(b"\x00" * 63, "image/png")) == {"_binary": True, "_size": 63}

    def test_that_is_cut_has_no_hash(self) -> None:
        """The hash of a head says nothing."""
        body = stored(b"\x00" * 500, "image/png", cut=100)
        assert content(body) == {"_binary": True, "_truncated": True, "_size": 500}


DOCUMENT = json.dumps({"password": CANARY, "items": list(range(50))}).encode()


def raw_deflate(data: bytes) -> bytes:
    return zlib.compress(data)[2:-4]


class TestCompressed:
    @pytest.mark.parametrize(
        ("coding", "raw"),
        [
            ("gzip", gzip.compress(DOCUMENT)),
            ("X-GZIP", gzip.compress(DOCUMENT)),
            ("gzip", gzip.compress(DOCUMENT[:40]) + gzip.compress(DOCUMENT[40:])),
            ("deflate", zlib.compress(DOCUMENT)),
            ("deflate", raw_deflate(DOCUMENT)),
            ("deflate, gzip", gzip.compress(zlib.compress(DOCUMENT))),
            ("identity", DOCUMENT),
            ("", DOCUMENT),
        ],
    )
    def test_is_decoded(self, coding: str, raw: bytes) -> None:
        """Codings are undone before the body is read; the size is that of the wire."""
        body = stored(raw, coding=coding)
        assert content(body)["password"] == "[REDACTED]"
        assert content(body)["items"] == list(range(50))

    def test_that_is_cut_is_decoded_as_far_as_it_goes(self) -> None:
        """What the head of a stream gives is treated like the head of a body."""
        data = json.dumps({"password": CANARY, "n": [i**3 % 7919 for i in range(400)]}).encode()
        raw = gzip.compress(data)
        body = stored(raw, coding="gzip", cut=len(raw) // 2)
        assert body.absent == "truncated"
        assert content(body)["_head"]["password"] == "[REDACTED]"
        assert content(body)["_original_size"] == len(raw)

    def test_of_many_members_is_cut(self) -> None:
        """Empty members cost work and give nothing: beyond a hundred they count as cut."""
        empty = gzip.compress(b"")
        assert content(stored(empty * 99 + gzip.compress(b"[1]"), coding="gzip")) == [1]
        assert stored(empty * 100 + gzip.compress(b"[1]"), coding="gzip").absent == "truncated"

    def test_of_several_long_members_is_whole(self) -> None:
        """Members longer than what is fed at once, with padding between them."""
        numbers = [[i**3 % 7919 for i in range(n, n + 60_000)] for n in (0, 7)]
        parts = [json.dumps(some).encode() for some in numbers]
        whole = b"[" + parts[0] + b"," + parts[1] + b"]"
        middle = len(whole) // 2
        raw = gzip.compress(whole[:middle]) + b"\0" * 9 + gzip.compress(whole[middle:]) + b"\0"
        assert len(raw) > 2 * 65_536
        assert _gunzip(raw, 1 << 20) == (whole, True)
        assert _gunzip(raw, 1_000) == (whole[:1_000], False)

    def test_grows_no_further_than_the_cap(self) -> None:
        """A bomb is cut at the limit."""
        bomb = gzip.compress(b'["' + b"a" * 50_000_000)
        body = stored(bomb, coding="gzip", limit=1_000)
        assert body.absent == "truncated"
        assert len(body.text or "") < 1_200
        twice = gzip.compress(bomb)
        assert stored(twice, "text/plain", coding="gzip, gzip", limit=1_000).absent == "truncated"

    @pytest.mark.parametrize(
        ("coding", "absent"),
        [("gzip", "unparsable"), ("deflate", "unparsable"), ("compress", "encoded"),
         ("gzip, gzip, gzip, gzip", "unparsable"), ("xyz", "encoded")],
    )  # fmt: skip
    def test_that_cannot_be_decoded_is_withheld(self, coding: str, absent: str) -> None:
        """A coding that is unknown, or not that of the bytes, leaves nothing."""
        body = stored(b"\x8b\x01\x00\x05" + CANARY.encode(), coding=coding)
        assert (body.content is NO_CONTENT, body.absent) == (True, absent)

    @pytest.mark.parametrize(
        "coding", ["gzip", "deflate", "br", "zstd", "compress", "xyz", "gzip, br"]
    )
    @pytest.mark.parametrize(
        "kind",
        ["application/json", "application/json; charset=utf-16", "application/json; charset=nonsense",
         "application/x-amz-json-1.1", "image/png", "text/plain", "multipart/form-data",
         "application/x-www-form-urlencoded"],
    )  # fmt: skip
    def test_a_header_that_lies_hides_nothing(self, coding: str, kind: str) -> None:
        """Frameworks undo no coding and know no charset for JSON: the handler had these bytes."""
        raw = f'{{"to": "Jürgen", "password": "{CANARY}"}}'.encode()
        body = stored(raw, kind, coding=coding)
        assert json.loads(body.text or "") == {"to": "Jürgen", "password": "[REDACTED]"}
        cut = stored(raw, kind, coding=coding, cut=len(raw) - 4)
        assert CANARY not in (cut.text or "")


class TestEveryBody:
    @given(
        st.binary(max_size=200),
        st.sampled_from(
            ["application/json", "text/plain", "application/x-www-form-urlencoded", MULTIPART,
             "application/x-ndjson", "image/png", "x", "", None, "text/plain; charset=utf-16",
             "application/json; charset=utf-16", 'multipart/form-data; boundary="', "a/b; c\x00"]
        ),
        st.sampled_from([None, "gzip", "deflate", "br"]),
        st.none() | st.integers(0, 100),
        st.integers(0, 300),
    )  # fmt: skip
    @settings(max_examples=400, deadline=None)
    def test_is_stored_as_json(
        self, raw: bytes, content_type: str | None, coding: str | None, cut: int | None, limit: int
    ) -> None:
        """Whatever the bytes, nothing is raised and the content is JSON text."""
        body = stored(raw, content_type, coding=coding, cut=cut, limit=limit)
        if body.text is not None:
            json.loads(body.text)
        elif raw:
            assert body.absent is not None
