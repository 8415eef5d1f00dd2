"""A secret in every position that data can have: none survives."""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
from collections import deque, namedtuple
from types import MappingProxyType
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import msgspec
import pytest
from pydantic import BaseModel, ConfigDict, Field, Secret, SecretBytes, SecretStr

from otel_audit.redaction import Redactor, Sensitive

CANARY = "Xq7canary9Zt"
JWT = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0"
    ".dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
)
PEM = (
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA" + CANARY + "\nabc==\n"
    "-----END RSA PRIVATE KEY-----"
)

BASIC = base64.b64encode(f"user:{CANARY}".encode()).decode()

redactor = Redactor()


def survives(secret: str, result: Any) -> bool:
    text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    return secret in text


NAMES = [
    "password", "Password", "PASSWORD", "passwd", "pwd", "userPwd", "mysql_pwd", "pass", "db_pass",
    "newPassword", "password_confirmation", "password1", "pass_word", "passphrase", "passcode",
    "secret", "clientSecret", "client_secret", "CLIENT-SECRET", "secret_key", "appsecret",
    "token", "accessToken", "access_token", "refresh-token", "idToken", "csrf_token", "XSRF-TOKEN",
    "apiKey", "api_key", "API-KEY", "apikey", "x-api-key", "X_API_KEY", "api key", "api.key",
    "accessKey", "aws_access_key_id", "private_key", "privateKeyPem", "signing_key", "sshKey",
    "creditCard", "credit_card", "CREDIT-CARD", "Credit Card", "creditcardnumber", "card_number",
    "cardNumber", "cardNo", "cvv", "CVV2", "card_cvv", "cvc", "cardCvc", "securityCode", "pin",
    "cardPin", "ssn", "user_ssn", "SSN", "socialSecurityNumber", "iban", "customerIban",
    "authorization", "Authorization", "proxy-authorization", "auth", "cookie", "Set-Cookie",
    "sessionid", "session_id", "sessionId", "user_session_id", "PHPSESSID", "JSESSIONID",
    "connect.sid", "credentials", "userCredential", "otp", "otpCode", "userOTPCode", "totp_seed",
    "jwt", "jwtAssertion", "bearer", "connection_string", "recovery_codes",
    "verificationCode", "code_verifier", "client_assertion", "SAMLResponse", "x-amz-signature",
    "user[password]", "user[auth]", "users[0][pwd]", "user.pin", "p_a_s_s_w_o_r_d", "pass word",
    "\uff50assword", "pa\u017f\u017fword", "password\u200b", "secret_id",
]  # fmt: skip


class TestSensitiveNames:
    @pytest.mark.parametrize("name", NAMES)
    def test_hides_a_value_by_its_name_wherever_it_stands(self, name: str) -> None:
        """Names work in every style: as keys, fields, parameters, headers and pairs."""
        document = {"a": [[{"b": {name: CANARY}}]]}
        assert not survives(CANARY, redactor.document(document))
        assert not survives(CANARY, redactor.document({name: [{"x": [CANARY]}]}))
        assert not survives(CANARY, redactor.field(name, CANARY))
        assert not survives(CANARY, redactor.query(urlencode({"a": "1", name: CANARY})))
        for ascii_only in (True, False):
            raw = json.dumps(document, ensure_ascii=ascii_only).encode()
            assert not survives(CANARY, redactor.json_or_none(raw).decode())
            nested = {"payload": json.dumps(document, ensure_ascii=ascii_only)}
            assert not survives(CANARY, redactor.document(nested))
            assert not survives(CANARY, redactor.json_or_none(json.dumps(nested).encode()).decode())

    @pytest.mark.parametrize("value", [CANARY, 123456789, 1.5, [CANARY], {"x": CANARY}, ""])
    def test_hides_values_of_every_type(self, value: Any) -> None:
        """Whatever stands under a sensitive name is replaced as a whole."""
        assert redactor.document({"password": value}) == {"password": "[REDACTED]"}

    @pytest.mark.parametrize("value", [None, True, False])
    def test_leaves_absence_and_truth_as_they_are(self, value: Any) -> None:
        """Absence is no secret, nor is yes or no, and an auditor wants to see it."""
        assert redactor.document({"password": value}) == {"password": value}


TEXTS = {
    "assignment": f"password={CANARY}",
    "spaced": f"password = {CANARY} for bob",
    "colon": f"api_key: {CANARY}",
    "two words": f"the api key: {CANARY}",
    "ini": f"[db]\nuser=a\ndb_password={CANARY}\nhost=b",
    "option": f"mysqldump --password {CANARY} shop",
    "option in quotes": f"login --client-secret '{CANARY} with words' --verbose",
    "env": f"export DATABASE_PASSWORD='{CANARY} with words'",
    "dsn": f"host=h user=u password={CANARY} dbname=d",
    "odbc": f"Server=h;Uid=u;Pwd={CANARY};",
    "azure": f"AccountName=a;AccountKey={CANARY}==;EndpointSuffix=core",
    "repr": f"{{'user': 'bob', 'password': '{CANARY}'}}",
    "repr of bytes": f"{{'password': b'{CANARY}'}}",
    "repr of a list": f"passwords=['{CANARY}', '{CANARY}2']",
    "call": f"User(name='bob', password='{CANARY}')",
    "wrapped": f"password=Wrapper('{CANARY}')",
    "json in text": f'body was {{"user": "b", "password": "{CANARY}"}} and so on',
    "cut json in text": f'{{"user": "b", "password": "{CANARY}',
    "escaped json in text": f'body was {{\\"password\\":\\"{CANARY}\\"}}',
    "json with escapes": f'{{"pass\\u0077ord": "{CANARY}"}}',
    "cut json with escapes": f'{{"a": 1, "pass\\u0077ord": "{CANARY}", ',
    "json in json": json.dumps(json.dumps({"password": CANARY})),
    "php": f"$password => '{CANARY}'",
    "subscript": f'params["password"] = "{CANARY}"',
    "postgres detail": f"DETAIL: Key (api_key)=({CANARY}) already exists.",
    "postgres row": f"DETAIL:  Failing row contains (1, bob, {CANARY}, null).",
    "sqlalchemy": f"[SQL: INSERT INTO u VALUES (?, ?)]\n[parameters: ('bob', '{CANARY}')]\n(link)",
    "pydantic": f"1 error\npassword\n  too short [type=x, input_value='{CANARY}', input_type=str]",
    "header": f"Authorization: Custom {CANARY}",
    "header with parameters": f'Authorization: Digest username="bob", response="{CANARY}"',
    "cookie header": f"GET / HTTP/1.1\r\nCookie: a=1; b={CANARY}\r\nHost: x",
    "bearer": f"got Bearer {CANARY} from client",
    "bearer lower": f"sent bearer {CANARY}",
    "basic": f"Basic {BASIC}",
    "url": f"see https://h/cb?a=1&access_token={CANARY}&b=2",
    "url fragment": f"https://h/cb#access_token={CANARY}",
    "url encoded name": f"https://h/cb?pass%77ord={CANARY}",
    "url in url": f"https://h/login?next=%2Fcb%3Ftoken%3D{CANARY}",
    "url twice encoded": f"https://h/login?next=%252Fcb%253Ftoken%253D{CANARY}",
    "url credentials": f"postgresql://bob:{CANARY}@db:5432/app",
    "url credentials with at": f"postgresql://bob:p@{CANARY}@db/app",
    "url credentials with slash": f"postgresql://bob:p/{CANARY}@db/app",
    "url token as user": f"https://{CANARY}{CANARY}@github.com/x.git",
    "url no user": f"redis://:{CANARY}@cache:6379/0",
    "form": f"user=bob&passwd={CANARY}",
    "encoded form": f"user=bob&pass%77d={CANARY}",
    "xml": f"<user><name>b</name><Password>{CANARY}</Password></user>",
    "soap": f'<wsse:Password Type="x">{CANARY}</wsse:Password>',
    "cdata": f"<secret><![CDATA[{CANARY}]]></secret>",
    "xml attribute": f'<user name="b" password="{CANARY}"/>',
    "html form": f'<input type="hidden" name="csrf_token" value="{CANARY}"/>',
    "html form, value first": f"<input value='{CANARY}' name='pin'>",
    "html meta": f'<meta content={CANARY} name="csrf-token">',
    "private key": PEM,
    "cut private key": PEM[:70],
    "escaped private key": PEM.replace("\n", "\\n"),
    "jwt": f"token was {JWT}",
    "after a placeholder": f"password=[REDACTED]{CANARY}",
    "assignments behind innocent ones": f"a=b url=https://h/?x=y&token={CANARY}",
    "crlf": f"user: b\r\npassword: {CANARY}\r\n",
}  # fmt: skip


class TestTexts:
    @pytest.mark.parametrize("kind", TEXTS)
    def test_hides_secrets_in_text(self, kind: str) -> None:
        """Messages, dumps, URLs, documents: as text, as field, and anywhere in a document."""
        text = TEXTS[kind]
        secret = {"jwt": JWT, "basic": BASIC}.get(kind, CANARY)
        assert secret in text
        assert not survives(secret, redactor.text(text))
        assert not survives(secret, redactor.field("note", text))
        document = {"a": [{"note": text}], text: 1}
        assert not survives(secret, redactor.document(document))
        assert not survives(secret, redactor.json_or_none(json.dumps(document).encode()).decode())
        assert not survives(secret, redactor.query("note=" + quote(text)))
        assert not survives(secret, redactor.text(json.dumps({"deep": json.dumps([text])})))


SHAPES = {
    "visa": "4111111111111111",
    "visa spaced": "4111 1111 1111 1111",
    "visa dashed": "4111-1111-1111-1111",
    "visa dotted": "4111.1111.1111.1111",
    "visa 19": "4111 1111 1111 1111 110",
    "unusual groups": "41 1111111111 1111",
    "mastercard": "5555555555554444",
    "mastercard 2": "2223003122003222",
    "amex": "378282246310005",
    "amex spaced": "3782 822463 10005",
    "discover": "6011111111111117",
    "diners": "30569309025904",
    "jcb": "3530111333300000",
    "unionpay": "6200000000000005",
    "unknown network in groups": "1234 5678 9012 3452",
    "ssn": "219-09-9999",
    "ssn spaced": "219 09 9999",
    "iban": "DE89370400440532013000",
    "iban spaced": "DE89 3704 0044 0532 0130 00",
    "iban lower": "gb29nwbk60161331926819",
    "iban short": "NO9386011117947",
    "stripe": "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "github": "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a",
    "github fine": "github_pat_" + "11ABCDEFG0123456789_abcdefghijklmnop",
    "gitlab": "glpat-" + "zvx7hT4rJmQ2kLw8sN1c",
    "aws": "AKIA" + "IOSFODNN7EXAMPLE",
    "slack": "xoxb-" + "123456789012-abcdefGHIJKL",
    "google": "AIza" + "SyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY",
    "openai": "sk-proj-" + "abc123def456ghi789jkl012",
    "openai old": "sk-" + "abcdEFGH1234ijklMNOP5678",
    "sendgrid": "SG." + "ngeVfQFYQlKU0ufo8x5d1A." + "TwL2iGABf9DHoTf-09kqeF8tAmbihYzrnopKc-1s5cr",
    "npm": "npm_" + "a" * 36,
    "pypi": "pypi-" + "AgEIcHlwaS5vcmcCJGFiY2Q",
    "vault": "hvs." + "CAESIJ2vT0123456789abcdef",
    "telegram": "110201543:" + "AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsawa",
}  # fmt: skip


class TestShapes:
    @pytest.mark.parametrize("kind", SHAPES)
    @pytest.mark.parametrize(
        "around", ["{}", "pay {} now", "x={},", '"{}"', "({})", "id:{}.", "/{}/"]
    )
    def test_hides_what_looks_like_a_secret(self, kind: str, around: str) -> None:
        """Numbers with a checksum and keys of known vendors are found in any text."""
        secret = SHAPES[kind]
        text = around.format(secret)
        assert not survives(secret, redactor.text(text))
        assert not survives(secret, redactor.document([[text]]))
        assert not survives(secret, redactor.document({text: 1}))
        assert not survives(
            secret, redactor.json_or_none(json.dumps({"n": text}).encode()).decode()
        )
        assert not survives(secret, redactor.query("n=" + quote(text)))
        assert not survives(quote(secret), redactor.path("/a/" + quote(secret) + "/b"))
        assert not survives(secret, redactor.path("/a/" + secret + "/b"))

    def test_hides_a_card_number_given_as_a_number(self) -> None:
        """A JSON number is no hiding place."""
        for number in (4111111111111111, 4111111111111111.0):
            assert redactor.document({"n": [number]}) == {"n": ["[REDACTED]"]}
        assert redactor.json_or_none(b'{"n":4111111111111111}') == b'{"n":"[REDACTED]"}'

    def test_finds_a_card_number_among_other_numbers(self) -> None:
        """Neighbouring numbers do not hide it."""
        text = redactor.text("qty 12 100 4111111111111111 7 and 3 4111 1111 1111 1111 5")
        assert text == "qty 12 100 [REDACTED] 7 and 3 [REDACTED] 5"

    def test_finds_every_account_number_of_a_list(self) -> None:
        """Account numbers that follow each other are all found."""
        text = redactor.text("DE89370400440532013000 GB29NWBK60161331926819,NO9386011117947 ok")
        assert text == "[REDACTED] [REDACTED],[REDACTED] ok"


class Colour(enum.Enum):
    RED = f"password={CANARY}"


@dataclasses.dataclass
class Account:
    name: str
    password: str
    note: str = dataclasses.field(default="", metadata={"audit": "redact"})


class Login(msgspec.Struct):
    user: str
    password: str


class Profile(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str
    key: SecretStr = SecretStr(CANARY)
    raw: SecretBytes = SecretBytes(CANARY.encode())
    other: Secret[str] = Secret(CANARY)
    marked: Annotated[str, Sensitive()] = CANARY
    schema_marked: str = Field(CANARY, json_schema_extra={"audit": "redact"})
    left_out: Annotated[str, Sensitive("omit")] = CANARY
    hashed: Annotated[str, Sensitive("hash")] = CANARY


Pair = namedtuple("Pair", ["user", "password"])  # noqa: PYI024 - an untyped one, as programs have


class Opaque:
    def __init__(self) -> None:
        self.secret = CANARY

    def __repr__(self) -> str:
        return CANARY

    __str__ = __repr__


OBJECTS = {
    "dataclass": Account("b", CANARY, CANARY),
    "struct": Login("b", CANARY),
    "model": Profile(name="b", password=CANARY),
    "named tuple": Pair("b", CANARY),
    "mapping": MappingProxyType({"password": CANARY}),
    "deque": deque([{"password": CANARY}]),
    "tuple": ({"password": CANARY},),
    "bytes key": {b"password": CANARY},
    "enum": Colour.RED,
    "enum key": {enum.Enum("Key", {"A": "password"}).A: CANARY},
    "bytes": CANARY.encode(),
    "bytearray": bytearray(CANARY.encode()),
    "opaque": Opaque(),
    "generator": (CANARY for _ in "x"),
    "class": Opaque,
    "secret in list": [SecretStr(CANARY)],
    "exception": ValueError(CANARY),
}


class TestObjects:
    @pytest.mark.parametrize("kind", OBJECTS)
    def test_hides_secrets_in_objects(self, kind: str) -> None:
        """Models and containers of Python are read by their fields, unknown objects withheld."""
        result = redactor.document({"x": [OBJECTS[kind]]})
        assert not survives(CANARY, result)
        msgspec.json.encode(result)
        assert not survives(CANARY, redactor.field("x", OBJECTS[kind]))

    def test_keeps_what_is_innocent_beside_it(self) -> None:
        """Marks say what becomes of each field; the others are kept."""
        found = redactor.document(Profile(name="b"))
        assert found["name"] == "b"
        assert "left_out" not in found
        assert found["hashed"] == "[REDACTED]"  # there is no key to hash with


BESIDE = {
    "name and value": [{"name": "DB_PASSWORD", "value": CANARY}],
    "key and value": {"key": "api_key", "value": [CANARY]},
    "json patch": [{"op": "replace", "path": "/user/password", "value": CANARY}],
    "validation error": {"detail": [{"loc": ["body", "password"], "input": CANARY, "msg": "m"}]},
    "header pairs": [["host", "h"], ["authorization", CANARY]],
    "header tuples": [("x-api-key", CANARY)],
    "camel case": {"name": "secret", "newValue": CANARY, "oldValue": CANARY},
}


class TestNamesBeside:
    @pytest.mark.parametrize("kind", BESIDE)
    def test_hides_a_value_whose_name_stands_beside_it(self, kind: str) -> None:
        """Some documents spell names as values."""
        document = BESIDE[kind]
        assert not survives(CANARY, redactor.document(document))
        assert not survives(CANARY, redactor.json_or_none(json.dumps(document).encode()).decode())


class TestLines:
    @pytest.mark.parametrize(
        "text",
        [
            "password: |\n  {}", "password: |-\n    {}\n    {}\nuser: ada", "password: >\n\t{}\n",
            "a:\n  password: >2+\r\n      {}\r\n  user: ada", "passwords:\n  - {}\n  - {}\nuser: ada",
            "passwords:\n- {}", "tokens:\n  -   {}\n  - x",
        ],
    )  # fmt: skip
    def test_a_value_of_several_lines(self, text: str) -> None:
        """Blocks and lists of YAML are taken out with all of their lines, and nothing behind them."""
        found = redactor.text(text.replace("{}", CANARY))
        assert not survives(CANARY, found)
        assert "ada" not in text or found.endswith("user: ada")

    def test_rules_about_passwords_are_none(self) -> None:
        """A list of what is asked of a password is no list of passwords."""
        text = "password:\n - must be long\n - must have digits"
        assert redactor.text(text) == text


class TestHeaders:
    def test_hides_credentials_also_when_kept(self) -> None:
        """Headers that carry credentials by their nature never show them."""
        names = ["Authorization", "proxy-authorization", "Cookie", "SET-COOKIE", "X-Api-Key"]
        pairs = [(name.encode(), CANARY.encode()) for name in names]
        found = Redactor(allow=["authorization", "cookie"]).headers(
            pairs, [name.lower() for name in names]
        )
        assert set(found) == {name.lower() for name in names}
        assert set(found.values()) == {"[REDACTED]"}

    def test_looks_into_the_others(self) -> None:
        """A referrer is a URL; its query is read."""
        pairs = [(b"Referer", f"https://h/?to%6ben={CANARY}&b=1".encode())]
        assert not survives(CANARY, redactor.headers(pairs, ["referer"]))

    @pytest.mark.parametrize("name", ["referer", "origin", "location"])
    @pytest.mark.parametrize("before", ["https://u:", "//u:", "u:", ":"])
    def test_a_login_needs_no_scheme(self, name: str, before: str) -> None:
        """User and password before a host are taken out of it, however it begins."""
        for url in (f"{before}{CANARY}@h", f"{before}{CANARY}@h.example:8080"):
            found = redactor.headers([(name.encode(), url.encode())], [name])
            assert not survives(CANARY, found)
            assert found[name].endswith(url.partition("@")[2])
        kept = {name: "https://h/@ada/x"}
        assert redactor.headers([(name.encode(), kept[name].encode())], [name]) == kept


class TestPaths:
    @pytest.mark.parametrize(
        "path",
        [
            f"/proxy/https://bob:{CANARY}@host/x%20y",
            f"/proxy/https%3A%2F%2Fbob%3A{CANARY}%40host/x",
            f"/shop;jsessionid={CANARY}/cart",
            f"/a/password={CANARY}/b",
            f"/a/pass%77ord%3D{CANARY}/b",
            f"/orders/user:{CANARY}@host/1",
            f"/x/user%3A{CANARY}%40host:8080",
            f"/x/user%253A{CANARY}%2540host",
            f"/x/:{CANARY}@db.example.com/",
        ],
    )
    def test_hides_secrets(self, path: str) -> None:
        """Segments are decoded for the match; what goes over several is found as well."""
        assert not survives(CANARY, redactor.path(path))


class TestQueries:
    @pytest.mark.parametrize(
        "query",
        [
            f"pass%77ord={CANARY}",
            f"a=1&PASSWORD={CANARY}",
            f"api+key={CANARY}",
            f"user%5Bpassword%5D={CANARY}",
            f"data=%7B%22password%22%3A%22{CANARY}%22%7D",
            f"next=https%3A%2F%2Fh%2F%3Ftoken%3D{CANARY}",
            f"next=https%3A%2F%2Fb%3A{CANARY}%40h%2F",
            f"code={CANARY}&state=xyz",
            f"q=password%3D{CANARY}",
            f"a=1;password={CANARY}",
            f"password={CANARY}%ff%zz",
            f"token=a=b={CANARY}",
            f"&&password={CANARY}&",
        ],
    )
    def test_hides_secrets(self, query: str) -> None:
        """Names are matched decoded, and values are looked into."""
        assert not survives(CANARY, redactor.query(query))
