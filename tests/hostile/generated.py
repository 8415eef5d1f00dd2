"""Hostile requests: a seeded generator, and those that once did harm."""

from __future__ import annotations

import base64
import gzip
import hashlib
import hmac
import json
import random
import zlib
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

KEY: Final = "the-key-of-the-hostile-tests-0123456789abcdef"
API_KEY_HEADER: Final = "X-Service-Key"
TENANT_HEADER: Final = "X-Tenant"

CANARIES: Final = {
    "password": "Xq7canaryPw9Zt",
    "form": "Xq7canaryFm4Kd",
    "query": "Xq7canaryQy2Lw",
    "cookie": "Xq7canaryCk8Vn",
    "api key": "Xq7canaryAk5Jr",
    "card": "4929420573595709",
}
"""Planted secrets, each where its place says that it is one; none of them may be anywhere."""

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Hostile:
    """One request, as it would stand on the wire.

    Attributes:
        kind: ``http`` or ``websocket``.
        method: Of the request line.
        target: Path and query of the request line.
        headers: In order.
        body: In the pieces in which it comes.
        messages: What a client says over the WebSocket.
        path: The path that a server makes of the target, where it is not the usual decoding.
        marker: A harmless word in the body, which the record shows where the handler read it.
    """

    kind: str = "http"
    method: str = "POST"
    target: bytes = b"/orders/1"
    headers: Headers = field(default_factory=list)
    body: tuple[bytes, ...] = ()
    messages: tuple[dict[str, Any], ...] = ()
    path: str | None = None
    marker: str = ""

    def scope(self, root_path: str = "") -> dict[str, Any]:
        """Make the ASGI scope that a server would make of it."""
        raw, _, query = self.target.partition(b"?")
        path = unquote(raw.decode("latin-1")) if self.path is None else self.path
        found = {
            "type": self.kind,
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "ws" if self.kind == "websocket" else "http",
            "path": root_path + path,
            "raw_path": root_path.encode() + raw,
            "query_string": query,
            "root_path": root_path,
            "headers": [(name.lower(), value) for name, value in self.headers],
            "client": ("192.0.2.7", 5000),
            "server": ("192.0.2.1", 80),
            "extensions": {"websocket.http.response": {}} if self.kind == "websocket" else {},
        }
        return found | (
            {"subprotocols": []} if self.kind == "websocket" else {"method": self.method}
        )


def token(claims: dict[str, Any], key: str = KEY, algorithm: str = "HS256") -> str:
    """Sign claims, whatever they are; the header may lie about the algorithm."""
    head = _base64(json.dumps({"alg": algorithm, "typ": "JWT"}).encode())
    text = f"{head}.{_base64(json.dumps(claims).encode())}"
    if algorithm == "none":
        return f"{text}."
    return f"{text}.{_base64(hmac.new(key.encode(), text.encode(), hashlib.sha256).digest())}"


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Generator:
    """Makes the same requests for the same seed."""

    def __init__(self, seed: object) -> None:
        self.random = random.Random(str(seed))
        self.number = 0
        # in the year 2100: nothing depends on when it runs
        self._expires = 4_102_444_800

    def __next__(self) -> Hostile:
        self.number += 1
        self._marker = f"marker{self.number}x"
        chance = self.random.random()
        if chance < 0.08:
            return self._socket()
        body, headers = self._body()
        marker = self._marker if self._marker.encode() in b"".join(body) else ""
        return Hostile(
            method=self._method(),
            target=self._target(),
            headers=self._headers() + headers,
            body=body,
            path=self.random.choice(ODD_PATHS) if self.random.random() < 0.02 else None,
            marker=marker,
        )

    def __iter__(self) -> Generator:
        return self

    def _one(self, *of: Any) -> Any:
        return self.random.choice(of)

    def _often(self, usual: Any, *odd: Any, share: float = 0.7) -> Any:
        return usual if self.random.random() < share else self.random.choice(odd)

    def _method(self) -> str:
        return self._often(
            self._one("POST", "PUT", "PATCH", "DELETE", "GET"),
            "HEAD", "OPTIONS", "QUERY", "TRACE", "CONNECT", "PROPFIND", "post", "Get", "delete",
            "M-SEARCH", "BREW", "X", "!#$%&'*+-.^_`|~", "A" * 300, "WEBSOCKET", "", "POST\x00",
            share=0.8,
        )  # fmt: skip

    # the target

    def _target(self) -> bytes:
        whole = self._one(*PREFIXES) + b"/".join(
            self._segment() for _ in range(self.random.randint(0, 4))
        )
        if self.random.random() < 0.05:
            whole += self._one(*LONG) * self._one(100, 1_000, 20_000)
        return whole + self._query()

    def _segment(self) -> bytes:
        chance = self.random.random()
        if chance < 0.35:
            return self._one(*PLAIN)
        if chance < 0.8:
            return self._one(*ODD_SEGMENTS)
        return bytes(
            self.random.choice(ALPHABET) for _ in range(self.random.randint(1, 8))
        ).replace(b"?", b":")

    def _query(self) -> bytes:
        secret = CANARIES["query"].encode()
        return self._often(
            b"",
            b"?", b"?a=1&a=2", b"?password=" + secret, b"?pass%77ord=" + secret,
            b"?a=1;token=" + secret, b"?x[api_key]=" + secret, b"?next=/x%3Ftoken%3D" + secret,
            b"?" + b"%41%42=" * 3_000, b"?%ff%fe=%00", b"?" + b"a" * 20_000, b"?&&&===&",
            b"?q=" + CANARIES["card"].encode(), b"?a=%", b"?%u0041=1", b"??=?",
            share=0.75,
        )  # fmt: skip

    # the head

    def _headers(self) -> Headers:
        found: Headers = [(b"Host", b"shop.example")]
        found += self._credentials()
        found += self._tenants()
        for _ in range(self.random.choice((0, 0, 0, 1, 1, 2, 3))):
            found += self._one(*ODD_HEADERS)
        if self.random.random() < 0.3:
            self.random.shuffle(found)
        return found

    def _credentials(self) -> Headers:
        chance = self.random.random()
        if chance < 0.3:
            return []
        if chance < 0.85:
            value = self._bearer()
            return [(b"Authorization", value)] + (
                [(b"Authorization", self._one(b"x", b"", b"Bearer x", self._bearer()))]
                if self.random.random() < 0.15
                else []
            )
        if chance < 0.93:
            key = (API_KEY_HEADER.encode(), CANARIES["api key"].encode())
            return [key] * self._one(1, 1, 2)
        return [(b"Authorization", self._one(
            b"", b" ", b"Bearer", b"Bearer ", b"Basic " + base64.b64encode(b"u:p"), b"Bearer a.b.c",
            b"bearer \xff.\xfe.\xfd", b"Bearer " + b"." * 500, b"Bearer " + b"a" * 40_000,
            b"Digest username=x", b"\x00", b"Bearer e30.e30.e30", b"Negotiate \xc3\xa9",
        ))]  # fmt: skip

    def _bearer(self) -> bytes:
        claims: dict[str, Any] = {"sub": self._subject(), "exp": self._expires}
        if self.random.random() < 0.3:
            claims["tenant_id"] = self._one(
                "acme", "globex", "", 7, None, ["acme"], "a\u00a0", "\x00"
            )
        if self.random.random() < 0.15:
            claims |= self._one(
                {"exp": 1}, {"exp": "soon"}, {"exp": 1e300}, {"exp": None}, {"nbf": 9_999_999_999},
                {"aud": "others"}, {"aud": []}, {"iss": {}}, {"roles": ["a"] * 2_000},
                {"actor_type": "admin"}, {"actor_type": {"a": 1}}, {"email": "\ud800"},
                {"sid": CANARIES["card"]}, {"act": {"sub": "boss"}}, {"iat": "x"}, {"jti": []},
                {"deep": json.loads("[" * 90 + "]" * 90)}, {"sub2": "x" * 3_000},
            )  # fmt: skip
        key = self._often(KEY, "another-key-0123456789abcdef0123456789", share=0.9)
        algorithm = self._often("HS256", "none", "RS256", "hs256", "", share=0.93)
        found = token(claims, key, algorithm).encode()
        return self._often(
            b"Bearer " + found,
            b"bearer " + found, b"BEARER  " + found, b"Bearer " + found + b"=",
            b"Bearer " + found + b"==", b"Bearer " + found + b" ", b" Bearer " + found,
            b"Bearer\t" + found, b"Bearer " + found + b", Bearer x", b"Bearer " + found[:-2],
            b"Bearer " + found + b"!", b"Bearer " + found.replace(b".", b"=.", 1),
            b"Bearer " + found + b".x", b"Token " + found, found, b"Bearer " + found + b"\xa0",
            b"Bearer:" + found, b'Bearer "' + found + b'"',
            share=0.7,
        )  # fmt: skip

    def _subject(self) -> Any:
        return self._often(
            self._one("clerk-1", "clerk-2", "mallory", "admin"),
            *ODD_NAMES, share=0.5,
        )  # fmt: skip

    def _tenants(self) -> Headers:
        if self.random.random() < 0.5:
            return []
        name = TENANT_HEADER.encode()
        first = self._one(b"acme", b"globex", b"acme\xa0", b"\xc3\xa9", b"", b"ACME", b"a" * 600)
        more = [(name, self._one(b"globex", b"", b"acme"))] if self.random.random() < 0.3 else []
        return [(name, first), *more]

    # the body

    def _body(self) -> tuple[tuple[bytes, ...], Headers]:
        if self.random.random() < 0.2:
            return (), []
        raw, kind = self._content()
        headers: Headers = []
        if kind is not None:
            headers.append((b"Content-Type", kind))
        if self.random.random() < 0.12:
            headers.append((b"Content-Type", self._one(*ODD_TYPES)))
            if self.random.random() < 0.5:
                headers.reverse()
        if self.random.random() < 0.15:
            raw = self._encoded(raw, headers)
        if self.random.random() < 0.05:
            raw = raw[: self.random.randint(0, len(raw))]
        if self.random.random() < 0.9:
            headers.append((b"Content-Length", b"%d" % len(raw)))
        if self.random.random() < 0.3 and len(raw) > 2:
            place = self.random.randint(1, len(raw) - 1)
            return (raw[:place], b"", raw[place:]), headers
        return (raw,), headers

    def _encoded(self, raw: bytes, headers: Headers) -> bytes:
        """Declare a content coding, truly or not."""
        coding = self._one(
            b"gzip", b"br", b"deflate", b"identity", b"gzip, gzip", b"zstd", b"x-gzip", b"",
            b"\xff", b"gzip" * 500, b"aes128gcm", b"GZIP",
        )  # fmt: skip
        headers.append((b"Content-Encoding", coding))
        is_true = self.random.random() < 0.6
        if is_true and coding in (b"gzip", b"GZIP", b"x-gzip"):
            return gzip.compress(raw, mtime=0)
        return zlib.compress(raw) if is_true and coding == b"deflate" else raw

    def _content(self) -> tuple[bytes, bytes | None]:
        chance = self.random.random()
        document = self._document()
        if chance < 0.4:
            return json.dumps(document, ensure_ascii=self._one(True, False)).encode(
                self._often("utf-8", "utf-16", "utf-16-le", "utf-8-sig", "utf-32", share=0.9),
                "surrogatepass",
            ), self._often(
                b"application/json",
                *ODD_TYPES, None, b"text/plain", b"application/problem+json",
                share=0.7,
            )  # fmt: skip
        if chance < 0.5:
            form = f"note={self._marker}&password={CANARIES['form']}&a=1".encode()
            return form, self._often(
                b"application/x-www-form-urlencoded",
                b"application/x-www-form-urlencoded; charset=utf-16",
                b"application/x-www-form-urlencoded;charset=\xff", b"Application/X-WWW-Form-URLEncoded",
                share=0.6,
            )  # fmt: skip
        if chance < 0.58:
            return self._multipart()
        return self._one(*ODD_BODIES), self._often(
            b"application/json", *ODD_TYPES, None, b"text/plain", share=0.5
        )

    def _document(self) -> dict[str, Any]:
        found: dict[str, Any] = {"note": self._marker}
        secret = self._one(
            "password", "Password", "new_password", "api_key", "pass_word", "p\u0061ssword"
        )
        found[secret] = CANARIES["password"]
        if self.random.random() < 0.3:
            found["customer"] = {"card": CANARIES["card"], "lines": [{"sku": 1}] * 3}
        if self.random.random() < 0.15:
            found |= self._one(
                {"big": 10**40}, {"float": 1e308}, {"text": "\ud800"}, {"nul": "\x00"},
                {"\u202e": "\u009b2J"}, {"": ""}, {"deep": json.loads("[" * 60 + "]" * 60)},
                {"many": list(range(800))}, {"long": "x" * 9_000}, {"a" * 300: 1},
                {"list": [{"password": CANARIES["password"]}] * 20},
                {"text": f"password={CANARIES['password']}"},
                {"text": json.dumps({"password": CANARIES["password"]})},
            )  # fmt: skip
        return found

    def _multipart(self) -> tuple[bytes, bytes]:
        boundary = self._one(b"b", b"x" * 70, b"b b", b"--")
        parts = [
            b'Content-Disposition: form-data; name="note"\r\n\r\n' + self._marker.encode(),
            b'Content-Disposition: form-data; name="password"\r\n\r\n' + CANARIES["form"].encode(),
        ]
        parts += self._one(
            [], [b"\r\n"], [b"Content-Disposition: form-data\r\n\r\n1"], [b"x"],
            [b'Content-Disposition: form-data; name="f"; filename="../a"\r\n\r\n' + bytes(300)],
            [b"Content-Disposition: form-data; name=a\r\n\r\n1"] * 1_200,
        )  # fmt: skip
        raw = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts)
        raw += self._often(b"--" + boundary + b"--\r\n", b"", b"--" + boundary, share=0.8)
        quoted = self._one(boundary, b'"' + boundary + b'"')
        return raw, b"multipart/form-data; boundary=" + quoted

    def _socket(self) -> Hostile:
        messages = tuple(
            {"type": "websocket.receive", **self._one(*SOCKET_MESSAGES)}
            for _ in range(self.random.randint(0, 4))
        )
        end: dict[str, Any] = {
            "type": "websocket.disconnect",
            "code": self._one(1000, 1001, 1005, 1006, 4000, 3999),
        }
        if self.random.random() < 0.1:
            del end["code"]
        return Hostile(
            kind="websocket",
            method="GET",
            target=self._one(b"/socket", b"/socket/" + self._segment(), self._target()),
            headers=self._headers(),
            messages=(*messages, end),
        )


PREFIXES: Final = (
    b"/orders/", b"/orders/", b"/orders/", b"/proxy/", b"/t/acme/orders/", b"/t/%20/", b"/", b"//",
    b"/docs/", b"/static/", b"/health/", b"/docs/../", b"/static/%2e%2e/", b"/health/..;/",
    b"/metrics", b"/users/me/", b"/reset/", b"/fail/", b"/static\\", b"/health;", b"/health%00/",
)  # fmt: skip
PLAIN: Final = (b"1", b"42", b"orders", b"refund", b"items", b"a-b", b"7f3c", b"me", b"v1")
ODD_SEGMENTS: Final = (
    b"..", b".", b"%2e%2e", b"..;", b";a=b", b"", b"", b":", b"_", b"1:_", b"0:%C3%80", b"x:y", b"%00",
    b"{}", b"{order_id}", b"{x", b"}", b"%7B%7D", b"\\", b"%5c", b"%2f", b"%252e", b"%", b"%zz", b"%c3",
    b"%ff%fe", b"\xc3\xa9", b"\xff", b"%EF%BC%8F", b"%EF%BC%8E%EF%BC%8E", b"%E2%80%AE", b"%ED%A0%80",
    b"a" * 300, b"$batch", b"(1)", b"*", b"@me", b"~", b"a,b", b"a|b", b"+", b"%20", b"%0a", b"%1b[2J",
    b"_:_", b"::", b"!", b"'", b"%22", b"<script>", b"a:b:c", b"-", b"0", b"-1", b"1e400", b"%E1%9A%80",
    b"--", b"__", b"._", b"%C2%A0", b"x:%C3%80", b"https:", b"https://u:" + CANARIES["password"].encode() + b"@h",
)  # fmt: skip
ALPHABET: Final = bytes(range(33, 256))
LONG: Final = (b"a", b"%01", b"a/", b":", b"%EF%B7%BA", b"../", b"{", b";", b"%2525", b"-_")
ODD_PATHS: Final = (
    "", "orders/1", "*", "/\ud800", "/orders/\x00", "/orders/\u0130", "/\uff0f\uff0e", "http://x/orders/1",
    "/orders/1:_", "/x:\u00c0", "/" + "\ufdfa" * 2_000, "/health\n", "/\u202eorders",
)  # fmt: skip
ODD_NAMES: Final = (
    "admin\u00a0", "\u2003admin", " admin", "admin ", "admin\n", "admin\x00", "admin\x1f", "\x7f", "",
    " ", "anonymous", "Anonymous", "anonymous ", "system", 7, 0, -1, 1.5, True, False, None, [], {},
    ["admin"], {"id": "admin"}, "x" * 255, "x" * 256, "x" * 257, "y" * 10_000, "\u00e9", "e\u0301", "\ud800",
    "\u202eadmin", "ad\u200bmin", "\\u{a0}", "\\u{5c}u{", "admin\\", "'; drop table", "<b>", "api-key", "api-key:x",
    "\U0001f600", "\ufeffadmin", "[REDACTED]", "a@b.test", "user:1", "{}", "%00", "null", "undefined",
)  # fmt: skip
_NEARLY_JSON: Final = b'{"note":"x","password":"' + CANARIES["password"].encode()
ODD_BODIES: Final = (
    b"[" * 5_000, b"[" * 20_000, b'{"a":' * 4_000, b'"' * 9_999, b"{", b"", b"null", b"1e999999", b'{"a":1e-999}', b"[1E+400]", b"-", b"NaN",
    b"9" * 5_000, b'{"a":' + b"9" * 5_000 + b"}", b'{"a":1,"a":2}', _NEARLY_JSON, _NEARLY_JSON + b'"',
    _NEARLY_JSON + b'"}', _NEARLY_JSON + b'"}' + b" " * 30_000, b"[" + (_NEARLY_JSON + b'"},') * 400 + b"1]",
    b'{"password":"x","password":"' + CANARIES["password"].encode() + b'"}',
    b'{"note":"' + b"a" * 9_950 + b'","password":"' + CANARIES["password"].encode() + b'"}',
    b"password=" + CANARIES["form"].encode() + b"&" * 9_000, b"\x00" * 9_000, bytes(range(256)) * 40,
    b"\x1f\x8b" + b"\x00" * 100, gzip.compress(b"0" * 1_000_000, mtime=0), b"\xff\xfe" + b"a" * 999,
    b"%41%42=" * 1_400, b"a=1&" * 3_000, b"pin=1 " * 10_000, b"eyJaaaa. " * 1_000, b"\xef\xb7\xba" * 3_000,
    b"\xed\xa0\x80", b'"\\ud800"', b"---\npassword: " + CANARIES["password"].encode(), b"<pin>1</pin>" * 800,
    b"4929420573595709", b"card 4929 4205 7359 5709", b'{"a":"\\u0000"}', b"\r\n--b\r\n" * 1_000,
    b"x" * 300_000, b'{"query":"mutation { login(password: \\"' + CANARIES["password"].encode() + b'\\") }"}',
)  # fmt: skip
ODD_TYPES: Final = (
    b"application/octet-stream", b"application/json; charset=utf-16", b"application/json;charset=x",
    b"text/plain; charset=utf-7", b"image/png", b"", b";", b"\xff/\xfe", b"application/json," * 50,
    b"multipart/form-data", b"multipart/form-data; boundary=", b"multipart/form-data; boundary=" + b"x" * 9_000,
    b"application/x-ndjson", b"APPLICATION/JSON", b"application/xml", b"text/html; charset=shift_jis",
    b"a/b;" * 2_000, b"application/json\x00", b"application/x-www-form-urlencoded",
)  # fmt: skip
ODD_HEADERS: Final = (
    [(b"X-HTTP-Method-Override", b"DELETE")], [(b"X-HTTP-Method-Override", b"GET")],
    [(b"X-HTTP-Method-Override", b"get")], [(b"X-HTTP-Method-Override", b"\xff")],
    [(b"X-HTTP-Method-Override", b"A" * 900)], [(b"X-Forwarded-For", b"1.2.3.4, \xff")] * 3,
    [(b"Forwarded", b'for="[::1]";by=;' * 100)], [(b"X-Forwarded-For", b",".join([b"10.0.0.1"] * 900))],
    [(b"X-Request-ID", b"a" * 500)], [(b"X-Request-ID", b"\x1b[2J")], [(b"X-Request-ID", b"1")] * 2,
    [(b"X-Request-ID", b"")], [(b"Cookie", b"session=" + CANARIES["cookie"].encode())],
    [(b"Cookie", b"a=" + CANARIES["cookie"].encode() + b"; a=b"), (b"Cookie", b"\xff")],
    [(b"Referer", b"%41%42=" * 8_000)], [(b"Referer", b"%41%42=")] * 1_500,
    [(b"Referer", b"https://x.test/a?token=" + CANARIES["query"].encode())],
    [(b"Accept", b"a" * 60_000)] * 2, [(b"Accept", b"\xe9\xff")], [(b"Accept", b" folded\t value ")],
    [(b"Origin", b"null")], [(b"Origin", b"https://u:" + CANARIES["query"].encode() + b"@x.test")],
    [(b"", b"empty name")], [(b"\xff", b"\xff")], [(b"X-Odd", b"")] * 900, [(b"User-Agent", b"\x00\x1b[2J\xff")],
    [(b"User-Agent", b"a" * 70_000)], [(b"User-Agent", b"pin=1 " * 9_000)], [(b"Host", b"evil.test")],
    [(b"Host", b"\xff" * 600)], [(b"Host", b"")], [(b"traceparent", b"00-0-0-0")], [(b"traceparent", b"\xff" * 55)],
    [(b"baggage", b"enduser.id=admin," * 200)], [(b"baggage", b"%ff=%ff")], [(b"tracestate", b"a=b," * 900)],
    [(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"5")], [(b"Content-Length", b"-1")],
    [(b"Content-Length", b"9" * 400)], [(b"Expect", b"100-continue")], [(b"Upgrade", b"h2c")],
    [(b"X-Tenant-Id", b"globex")], [(b"X-User", b"admin")], [(b"Proxy-Authorization", b"Basic x")],
    [(b"Cookie", b"a=b; " * 6_000)], [(b"Range", b"bytes=" + b"0-," * 4_000)],
)  # fmt: skip
SOCKET_MESSAGES: Final[tuple[dict[str, Any], ...]] = (
    {"text": "hello"}, {"text": ""}, {"text": "\ud800"}, {"text": "\x00"}, {"bytes": b"\xff" * 3_000},
    {"bytes": b""}, {"text": None, "bytes": b"x"}, {"text": "a" * 100_000}, {"text": "boom"},
    {"text": '{"password":"' + CANARIES["password"] + '"}'}, {"text": "[" * 20_000}, {"text": "close"},
)  # fmt: skip

_BEARER: Final = b"Bearer " + token({"sub": "clerk-1", "exp": 4_102_444_800}).encode()

KNOWN: Final[dict[str, Hostile]] = {
    "a name that is none": Hostile(target=b"/orders/1:_"),
    "a name without letters": Hostile(target=b"/0:%C3%80"),
    "a token with padding": Hostile(headers=[(b"Authorization", _BEARER + b"=")]),
    "two credentials": Hostile(headers=[(b"Authorization", _BEARER), (b"Authorization", b"x")]),
    "two tenants": Hostile(headers=[(b"X-Tenant", b"acme"), (b"X-Tenant", b"globex")]),
    "a tenant with a no-break space": Hostile(headers=[(b"X-Tenant", b"acme\xa0")]),
    "dot segments": Hostile(target=b"/docs/../orders/1/refund"),
    "encoded dot segments": Hostile(target=b"/static/%2e%2e/orders/1"),
    "a parameter in a segment": Hostile(target=b"/health/..;/orders/1"),
    "an empty path": Hostile(method="GET", target=b"?x=1"),
    "a coding that lies": Hostile(
        headers=[(b"Content-Type", b"application/json"), (b"Content-Encoding", b"br")],
        body=(b'{"note":"seen"}',),
        marker="seen",
    ),
    "a charset that lies": Hostile(
        headers=[(b"Content-Type", b"application/json; charset=utf-16")],
        body=(b'{"note":"seen"}',),
        marker="seen",
    ),
    "a media type that lies": Hostile(
        headers=[(b"Content-Type", b"image/png")], body=(b'{"note":"seen"}',), marker="seen"
    ),
    "an overridden method": Hostile(headers=[(b"X-HTTP-Method-Override", b"DELETE")]),
    "a write told as a read": Hostile(headers=[(b"X-HTTP-Method-Override", b"GET")]),
    "a number beyond a double": Hostile(
        headers=[(b"Content-Type", b"application/json")], body=(b"1e999999",)
    ),
    "a claim with half a character": Hostile(
        headers=[
            (
                b"Authorization",
                b"Bearer "
                + token({"sub": "clerk-1", "exp": 4_102_444_800, "email": "\ud800"}).encode(),
            )
        ]
    ),
    "a body with half a character": Hostile(
        headers=[(b"Content-Type", b"application/json")],
        body=(b'{"note":"seen","text":"\xed\xa0\x80"}',),
        marker="seen",
    ),
    "a form that is not declared": Hostile(
        headers=[(b"Content-Type", b"text/html")],
        body=(
            b'--b\r\nContent-Disposition: form-data; name="password"\r\n\r\n'
            + CANARIES["form"].encode()
            + b"\r\n--b--\r\n",
        ),
    ),
    "a tenant in the path": Hostile(target=b"/t/%20/orders/1"),
    "query and headers that withhold the path": Hostile(
        target=b"/orders_/1/-?" + b"%41%42=" * 3_000, headers=[(b"Referer", b"%41%42=")] * 1_500
    ),
    "short segments without end": Hostile(target=b"/orders/" + b"a/" * 1_000 + b"-"),
    "a URL without its scheme": Hostile(
        target=b"/orders/https://u:" + CANARIES["password"].encode() + b"@h/1"
    ),
    "brackets": Hostile(body=(b"[" * 20_000,)),
    "many referers": Hostile(headers=[(b"Referer", b"%41%42=" * 2)] * 30_000),
    "a long referer": Hostile(headers=[(b"Referer", b"%41%42=" * 60_000)]),
    "large heads": Hostile(headers=[(b"Accept", b"a" * 900_000)] * 20),
    "controls in a path": Hostile(target=b"/orders/" + b"%01" * 20_000),
    "a secret in a target": Hostile(
        target=b"/proxy/https://u:" + CANARIES["password"].encode() + b"@h/x"
    ),
}
"""What was once found to do harm; a new one is added here, spelled as small as it can be."""
