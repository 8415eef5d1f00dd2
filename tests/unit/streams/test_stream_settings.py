"""Settings of streams: what is wrong is said before anything is sent, by the setting's name."""

from __future__ import annotations

import base64
import ipaddress

import pytest
from strategies import a_record

from otel_audit.errors import ConfigurationError
from otel_audit.record import Target, to_json
from otel_audit.shapes import read_event
from otel_audit.streams.factory import make_streams
from otel_audit.streams.settings import described, read_settings
from otel_audit.streams.webhook import is_public, read_secret, signature

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


def read(directory, text):
    file = directory / "streams.toml"
    file.write_text(text)
    return read_settings(file)


def make(directory, text):
    return make_streams("postgresql://x/y", read(directory, text), state_directory=directory)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"there is no stream: write a table \[streams.NAME\]"),
        ("[streams]\n", "there is no stream"),
        ("streams = 3\n", "there is no stream"),
        ("[stream.x]\n", "stream is not a setting of streams"),
        ("[streams.x\n", "is not TOML"),
        (
            '[streams.x]\nkind = "splunk"\n',
            r"streams\.x\.kind: 'splunk' is not a destination: one of",
        ),
        ("[streams.x]\n", r"streams\.x\.kind: is missing: one of file, otlp, webhook"),
        ("[streams]\nx = 3\n", r"streams\.x: is not a table"),
        ('[streams."A b"]\nkind = "file"\n', "a stream's name has a-z"),
        ('[streams.x]\nkind = "file"\n', r"streams\.x\.path: is missing"),
        (
            '[streams.x]\nkind = "file"\npath = "a"\nurl = "b"\n',
            r"streams\.x\.url: there is no such",
        ),
        (
            '[streams.x]\nkind = "file"\npath = "a"\nshape = "cef"\n',
            r"streams\.x\.shape: 'cef' is no",
        ),
        (
            '[streams.x]\nkind = "file"\npath = "a"\nfilter = "actr:ada"\n',
            r"streams\.x\.filter: cannot be read, column 1: .*actor",
        ),
        ('[streams.x]\nkind = "file"\npath = "a"\nbatch = 0\n', r"streams\.x\.batch: "),
        (
            '[streams.x]\nkind = "file"\npath = "a"\n[streams.y]\nkind = "file"\npath = "./a"\n',
            r"streams\.y\.path: stream x writes to that file",
        ),
        (
            '[streams.x]\nkind = "otlp"\nendpoint = "collector:4318"\n',
            r"streams\.x\.endpoint: a URL",
        ),
        ('[streams.x]\nkind = "otlp"\nendpoint = "http://u:p@c:1"\n', r"endpoint: user, password"),
        (
            '[streams.x]\nkind = "webhook"\nurl = "http://hooks.example.com"\nsecret_env = ["S"]\n',
            r"streams\.x\.url: https:// is needed",
        ),
        (
            '[streams.x]\nkind = "webhook"\nurl = "https://e.com"\nsecret_env = []\n',
            r"streams\.x\.secret_env: ",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, said):
    """File, table, setting, and what to do."""
    with pytest.raises(ConfigurationError, match=said):
        read(tmp_path, text)


def test_ocsf_has_the_entities_of_the_application(tmp_path):
    """What is a user, and what is not, is the application's to say."""
    table = '[streams.x]\nkind = "file"\npath = "a"\nshape = "{}"\nocsf_users = ["clerk"]\n'
    found = read(tmp_path, table.format("ocsf"))["x"]
    for kind, expected in (("clerk", 3001), ("user", 6003)):
        record = a_record(target=Target(type=kind, id="9"), action="CREATE")
        event = read_event(to_json(record).decode(), leaf=1, log="log", content_hash=bytes(32))
        assert found.make_shape()(event)["class_uid"] == expected
    with pytest.raises(ConfigurationError, match='ocsf_users is for shape = "ocsf" alone'):
        read(tmp_path, table.format("ecs"))


def test_one_file_by_two_paths(tmp_path):
    """Two streams would cut each other's lines, however they reach it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    text = "".join(
        f'[streams.{name}]\nkind = "file"\npath = "{tmp_path}/{place}/a.ndjson"\n'
        for name, place in (("x", "real"), ("y", "link/../link"))
    )
    with pytest.raises(ConfigurationError, match="stream x writes to that file"):
        read(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path):
    """The error has its name."""
    with pytest.raises(ConfigurationError, match=r"none\.toml: cannot be read"):
        read_settings(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('kind = "file"\npath = "no/such/a.ndjson"', r"streams\.x\.path: there is no directory"),
        (
            'kind = "otlp"\nendpoint = "http://c:1"\ntoken_env = "NO_TOKEN"',
            r"streams\.x\.token_env: the variable NO_TOKEN is not set, or empty",
        ),
        (
            'kind = "otlp"\nendpoint = "http://c:1"\ntoken_env = "TWO_LINES"',
            r"streams\.x\.token_env: the variable TWO_LINES holds a character that no secret has",
        ),
        ('kind = "otlp"\nendpoint = "http://a..b:1"', r"streams\.x\.endpoint: this is not a URL"),
        (
            'kind = "webhook"\nurl = "https://\u2024a/"\nsecret_env = ["GOOD"]',
            r"streams\.x\.url: this is not a URL",
        ),
        *(
            (f'kind = "otlp"\nendpoint = "{url}"', r"streams\.x\.endpoint: a URL has no spaces")
            for url in (r"http://a b/", r"http://a\nb/", r"http://a\u2028b/", r"http://a/\u0000")
        ),
        (
            'kind = "otlp"\nendpoint = "https://c:1"\ncertificate = "none.pem"',
            r"streams\.x\.certificate: none\.pem: No such file",
        ),
        (
            'kind = "webhook"\nurl = "https://e.com"\nsecret_env = ["NO_SECRET"]',
            r"streams\.x\.secret_env: the variable NO_SECRET is not set",
        ),
        (
            'kind = "webhook"\nurl = "https://e.com"\nsecret_env = ["SHORT"]',
            r"streams\.x\.secret_env \(SHORT\): is not a secret of Standard Webhooks",
        ),
        (
            'kind = "file"\npath = "a.ndjson"\npersonal = true',
            r"streams\.x\.personal: there are no keys to decrypt with",
        ),
        *(
            (
                f'kind = "webhook"\nurl = "https://{host}/a"\nsecret_env = ["GOOD"]',
                r"streams\.x\.url: .* is not a public address: set allow_private = true",
            )
            for host in (
                "127.0.0.1", "localhost", "10.0.0.1", "192.168.1.1", "169.254.169.254", "[::1]",
                "[fd00::1]", "[::ffff:10.0.0.1]", "[64:ff9b::7f00:1]", "0.0.0.0", "[2002:7f00:1::]",
            )
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_fails_at_the_start(tmp_path, monkeypatch, text, said):
    """Before anything is connected; a secret is never shown."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHORT", "whsec_c2hvcnQ=")
    monkeypatch.setenv("GOOD", SECRET)
    monkeypatch.setenv("TWO_LINES", "c2hvcnQ\nX-More: yes")
    with pytest.raises(ConfigurationError, match=said) as raised:
        make(tmp_path, f"[streams.x]\n{text}\n")
    assert "c2hvcnQ" not in str(raised.value)
    assert SECRET not in str(raised.value)


async def test_a_private_address_where_it_is_allowed(tmp_path, monkeypatch):
    """By its own setting alone."""
    monkeypatch.setenv("GOOD", SECRET)
    text = (
        '[streams.x]\nkind = "webhook"\nurl = "https://10.0.0.1/a"\nsecret_env = ["GOOD"]\n'
        "allow_private = true\n"
    )
    (stream,) = make(tmp_path, text)
    await stream.close()
    assert stream.name == "x"


def test_what_the_store_remembers_has_no_secret(tmp_path, monkeypatch):
    """Names of variables, not what is in them."""
    monkeypatch.setenv("TOKEN", "very secret")
    found = read(
        tmp_path, '[streams.x]\nkind = "otlp"\nendpoint = "http://c:1"\ntoken_env = "TOKEN"\n'
    )
    said = described(found["x"])
    assert said["token_env"] == "TOKEN"
    assert "very secret" not in str(said)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True), ("2606:4700:4700::1111", True), ("127.0.0.1", False),
        ("100.64.0.1", False), ("224.0.0.1", False), ("255.255.255.255", False), ("::", False),
        ("fe80::1", False), ("fec0::1", False), ("ff02::1", False), ("::ffff:8.8.8.8", True), ("::ffff:127.0.0.1", False),
        ("64:ff9b::808:808", True), ("64:ff9b::a00:1", False), ("2002:808:808::", True),
        ("2001:0:1::1", False), ("192.0.2.1", False), ("192.0.0.8", False), ("3fff::1", False),
    ],
)  # fmt: skip
def test_public_addresses(address, public):
    """An address that stands for another one is judged by that one."""
    assert is_public(ipaddress.ip_address(address)) is public


def test_the_signature_is_that_of_the_standard():
    """The example of the Standard Webhooks specification's reference libraries."""
    secret = read_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "secret")
    body = b'{"test": 2432232314}'
    found = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body)
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_###", "whsec_c2hvcnQ=", "plain text"])
def test_a_secret_that_is_none(text):
    """It is named, and not shown."""
    with pytest.raises(ConfigurationError, match="secret: is not a secret of Standard Webhooks"):
        read_secret(text, "secret")
