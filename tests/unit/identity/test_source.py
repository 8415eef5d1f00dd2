"""From where: addresses through proxies, user agents, sessions, request ids."""

from __future__ import annotations

import ipaddress
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError
from otel_audit.identity.redact_identity import shown_source
from otel_audit.identity.source import (
    REQUEST_ID,
    SourceOptions,
    SourceReader,
    request_id,
    resolve_source,
)
from otel_audit.redaction import Redactor

if TYPE_CHECKING:
    from otel_audit.record import Source

PROXY = "10.0.0.1"
REDACTOR = Redactor()


def resolve(
    *headers: tuple[str, str],
    client: Any = (PROXY, 1234),
    claims: Any = None,
    state: Any = None,
    **settings: Any,
) -> Source:
    asgi = {
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
        "client": client,
        "state": state or {},
    }
    options = SourceOptions.from_config(AuditConfig(**settings))
    found, reader = resolve_source(asgi, options, claims), SourceReader(options, REDACTOR)
    for _ in range(2):  # what it remembers is what it would find
        assert reader.read(asgi, claims, None) == shown_source(found, REDACTOR)
    return found


def forwarded(value: str, *, proxies: str = "10.0.0.0/8", **more: Any) -> str | None:
    return resolve(("X-Forwarded-For", value), trusted_proxies=proxies, **more).address


BEHIND_PROXY = {
    name.lower().encode(): SourceOptions.from_config(
        AuditConfig(trusted_proxies="10.0.0.0/8", forwarded_header=name)
    )
    for name in ("X-Forwarded-For", "Forwarded")
}


class TestReader:
    def test_says_of_each_connection_what_it_is(self) -> None:
        """Of another address, another user agent, a forwarded header, another session."""
        options = SourceOptions.from_config(AuditConfig(trusted_proxies="10.0.0.0/8"))
        reader = SourceReader(options, REDACTOR)

        def read(client: Any, *headers: tuple[bytes, bytes], session: str = "") -> Source:
            state = {"session_id": session} if session else {}
            asgi = {"client": client, "headers": headers, "state": state}
            return reader.read(asgi, None, None)

        agent, other = (b"user-agent", b"curl/8"), (b"user-agent", b"tea/1")
        first = read(("192.0.2.1", 1), agent)
        assert (first.address, first.user_agent) == ("192.0.2.1", "curl/8")
        assert read(("192.0.2.1", 2), agent) is first
        assert read(("192.0.2.2", 1), agent).address == "192.0.2.2"
        assert read(("192.0.2.1", 1), other).user_agent == "tea/1"
        assert read(("192.0.2.1", 1), agent, session="s-1").session_id == "s-1"
        assert read(("192.0.2.1", 1), agent).session_id is None
        through = (b"x-forwarded-for", b"198.51.100.7")
        assert read((PROXY, 1), agent).address == PROXY
        assert read((PROXY, 1), agent, through).address == "198.51.100.7"
        assert read((PROXY, 1), agent).address == PROXY
        for nobody in (None, (), ("", 0), ["192.0.2.1", 1]):
            assert read(nobody).user_agent is None


class TestAddress:
    def test_peer(self) -> None:
        """Without proxies it is the peer, whatever headers say."""
        assert (
            resolve(("X-Forwarded-For", "1.2.3.4"), ("Forwarded", "for=1.2.3.4")).address == PROXY
        )

    def test_untrusted_peer(self) -> None:
        """A header is not believed from a peer that is no proxy of ours."""
        assert forwarded("1.2.3.4", client=("192.0.2.9", 1)) == "192.0.2.9"

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("203.0.113.7", "203.0.113.7"),
            ("6.6.6.6, 203.0.113.7", "203.0.113.7"),
            ("6.6.6.6, 203.0.113.7, 10.9.9.9", "203.0.113.7"),
            ("10.1.1.1, 10.2.2.2", "10.1.1.1"),
            ("203.0.113.7:4711", "203.0.113.7"),
            ("[2001:db8::7]:4711", "2001:db8::7"),
            ("2001:DB8:0::7", "2001:db8::7"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
            ("6.6.6.6, unknown, 10.9.9.9", "10.9.9.9"),
            ("203.0.113.7, ", PROXY),
            ("", PROXY),
            ("'; DROP TABLE", PROXY),
        ],
    )
    def test_walk_from_the_right(self, value: str, expected: str) -> None:
        """The client is the first one from the right that is no proxy of ours."""
        assert forwarded(value) == expected

    def test_several_lines(self) -> None:
        """Several lines of the header are one list."""
        found = resolve(
            ("X-Forwarded-For", "6.6.6.6"),
            ("X-Forwarded-For", "203.0.113.7"),
            trusted_proxies=PROXY,
        )
        assert found.address == "203.0.113.7"

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("for=203.0.113.7;proto=https;by=10.0.0.1", "203.0.113.7"),
            ('for="[2001:db8::7]:4711"', "2001:db8::7"),
            ("for=6.6.6.6, For=203.0.113.7", "203.0.113.7"),
            ("proto=https; for=203.0.113.7", "203.0.113.7"),
            ("for=_hidden", PROXY),
            ("proto=https", PROXY),
        ],
    )
    def test_standard_header(self, value: str, expected: str) -> None:
        """The standard header (RFC 7239) is read where it is configured."""
        settings = {"trusted_proxies": PROXY, "forwarded_header": "Forwarded"}
        assert resolve(("Forwarded", value), **settings).address == expected
        assert resolve(("Forwarded", value), trusted_proxies=PROXY).address == PROXY

    def test_unix_socket(self) -> None:
        """A peer on a Unix socket has no address, and is a proxy if that is said."""
        assert forwarded("203.0.113.7", client=None) is None
        assert forwarded("203.0.113.7", client=None, proxies="unix") == "203.0.113.7"
        assert forwarded("203.0.113.7", client=("", 0), proxies="unix") == "203.0.113.7"

    def test_name(self) -> None:
        """A server that gives a name instead of an address is taken at its word."""
        found = resolve(client=("testclient", 50000), trusted_proxies="unix")
        assert (found.address, found.type) == ("testclient", "host")

    def test_very_long_header(self) -> None:
        """A flood of entries costs little, and the right end counts."""
        assert forwarded("6.6.6.6," * 100_000 + "203.0.113.7") == "203.0.113.7"

    @given(st.lists(st.ip_addresses().map(str)), st.ip_addresses(v=4))
    def test_client_cannot_choose(self, spoofed: list[str], real: ipaddress.IPv4Address) -> None:
        """Whatever a client writes to the left, the proxy's own entry is what counts."""
        assume(real not in ipaddress.ip_network("10.0.0.0/8"))
        value = ", ".join([*spoofed, str(real)]).encode()
        asgi = {"headers": [(b"x-forwarded-for", value)], "client": (PROXY, 1)}
        assert resolve_source(asgi, BEHIND_PROXY[b"x-forwarded-for"]).address == str(real)

    @given(st.text(st.characters(max_codepoint=255)))
    def test_any_header(self, value: str) -> None:
        """Whatever stands there, the address is an address."""
        for name, options in BEHIND_PROXY.items():
            asgi = {"headers": [(name, value.encode("latin-1"))], "client": (PROXY, 1)}
            assert ipaddress.ip_address(str(resolve_source(asgi, options).address))

    @pytest.mark.parametrize(
        "settings",
        [{"trusted_proxies": "10.0.0.0/33"}, {"trusted_proxies": "*"}, {"trusted_proxies": "proxy"}, {"forwarded_header": "a b"}],
    )  # fmt: skip
    def test_wrong_settings(self, settings: dict[str, str]) -> None:
        """A wrong setting is refused, and named."""
        with pytest.raises(ConfigurationError, match=next(iter(settings)).upper()):
            resolve(**settings)


class TestUserAgent:
    def test_bounded_and_clean(self) -> None:
        """A user agent is cut, and control characters are taken out."""
        agent = resolve(("User-Agent", "curl/8\x1b[31m\x00" + "x" * 5000)).user_agent or ""
        assert agent.startswith("curl/8 [31m [TRUNCATED]")
        assert len(agent) <= 512

    def test_absent(self) -> None:
        """No user agent, or an empty one, is None."""
        assert resolve().user_agent is None
        assert resolve(("User-Agent", " ")).user_agent is None


class TestSession:
    def test_claim(self) -> None:
        """The session is what a verified token says."""
        assert resolve(claims={"sid": "s1"}).session_id == "s1"

    def test_state(self) -> None:
        """What the application says wins."""
        assert resolve(claims={"sid": "s1"}, state={"session_id": "s2"}).session_id == "s2"

    def test_cookie(self) -> None:
        """Of a session cookie only a keyed hash is kept, and nothing without a key."""
        cookie = ("Cookie", "a=1; sid=canary-session; b=2")
        hashed = resolve(cookie, session_cookie="sid", hmac_key="k").session_id or ""
        assert hashed.startswith("hmac:")
        assert "canary" not in hashed
        assert resolve(cookie, session_cookie="sid").session_id is None
        assert resolve(cookie, hmac_key="k").session_id is None

    def test_a_session_of_the_state_that_is_none_hides_no_other(self) -> None:
        """An empty text, or an object that is no identifier: then the token's counts."""
        for unfit in ("", True, object()):
            found = resolve(claims={"sid": "s1"}, state={"session_id": unfit})
            assert found.session_id == "s1"


class TestOddConnections:
    READER = SourceReader(SourceOptions.from_config(AuditConfig()), Redactor())

    @pytest.mark.parametrize("client", [None, (), [], ("", 0), (None, 0), (PROXY, 1), [PROXY, 1]])
    @pytest.mark.parametrize("agent", [None, b"curl/8", bytearray(b"curl/8")])
    def test_it_reads_what_is_there_as_without_it(self, client: Any, agent: Any) -> None:
        """Also what no server should give."""
        headers = [] if agent is None else [(b"user-agent", agent)]
        scope = {"client": client, "headers": headers}
        known = resolve_source(scope, SourceOptions.from_config(AuditConfig()), None)
        for _ in range(2):
            assert self.READER.read(scope, None, None) == known


class TestRequestId:
    def ask(self, *values: str, header: str = "X-Request-ID") -> str | None:
        headers = [(b"x-request-id", value.encode("latin-1")) for value in values]
        return request_id({"headers": headers}, header)

    @pytest.mark.parametrize(
        "value",
        [str(uuid.UUID(int=5)), "01ARZ3NDEKTSV4RRFFQ69G5FAV", "Root=1-67891233-abcdef012345678912345678", "a" * 128, "req:12345"],
    )  # fmt: skip
    def test_kept(self, value: str) -> None:
        """A well-formed id is the client's."""
        assert self.ask(value) == value

    @pytest.mark.parametrize(
        "value",
        ["", "short", "a" * 129, "has space inside", "new\nline-in-it", "=cmd|calc!A1", "-starts-odd", "ünicode-id", "semi;colon;id", "<script>alert", "null\x00byte-id"],
    )  # fmt: skip
    def test_not_taken(self, value: str) -> None:
        """Anything else is not taken."""
        assert self.ask(value) is None

    def test_several(self) -> None:
        """Two ids are none."""
        assert self.ask("a" * 20, "b" * 20) is None

    def test_no_header(self) -> None:
        """Without a header's name none is looked for."""
        assert self.ask("a" * 20, header="") is None

    @given(st.text(st.characters(max_codepoint=255)))
    def test_always_well_formed(self, value: str) -> None:
        """Whatever the client sends, what is taken is well-formed."""
        taken = self.ask(value)
        assert taken is None or REQUEST_ID.fullmatch(taken)
