"""Who did it: the order of the resolvers, and that none of them can break a request."""

from __future__ import annotations

import enum
import platform
import sys
import time
import unicodedata
import uuid
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jose import jwt
from sqlalchemy import create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.authentication import SimpleUser, UnauthenticatedUser
from starlette.datastructures import State

from otel_audit import scope as scopes
from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError
from otel_audit.identity.actor import (
    NO_BEARER,
    ActorOptions,
    note_session,
    read_bearer,
    resolve_actor,
)
from otel_audit.identity.certificate import certificate_subject
from otel_audit.identity.unresolved_credential import REMEDIES, UNCHECKED
from otel_audit.identity.unresolved_credential import forget as forget_warnings
from otel_audit.record import Actor
from otel_audit.scope import AuditScope

SECRET = "a-shared-secret-of-some-length-0123456789"
JWT = {"jwt_key": SECRET, "jwt_algorithms": "HS256"}


def is_clean(text: str) -> bool:
    return not any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in text)


def options(**settings: Any) -> ActorOptions:
    return ActorOptions.from_config(AuditConfig(**settings))


def bearer(**claims: Any) -> tuple[bytes, bytes]:
    token = jwt.encode({"exp": time.time() + 60, **claims}, SECRET)
    return (b"authorization", f"Bearer {token}".encode())


def resolve(
    *headers: tuple[bytes, bytes],
    audit: AuditScope | None = None,
    scope: Any = None,
    **settings: Any,
) -> Actor:
    asgi = {"type": "http", "headers": list(headers), "client": ("10.0.0.1", 1), **(scope or {})}
    chosen = options(**settings)
    return resolve_actor(asgi, audit or AuditScope(), chosen, read_bearer(asgi, chosen))


def by_state(user: Any, **settings: Any) -> Actor:
    return resolve(scope={"state": {"user": user}}, **settings)


DEFAULTS = options()


class TestNobody:
    def test_nothing_known(self) -> None:
        """Where nobody says who, it is anonymous, and not verified."""
        assert resolve() == Actor(id="anonymous", type="user", verified=False)

    def test_reason(self) -> None:
        """A token that fails never names an actor; why is recorded."""
        found = resolve(bearer(sub="root", exp=1), **JWT)
        assert found == Actor(id="anonymous", type="user", reason="token_expired")

    def test_several_authorization_headers(self) -> None:
        """Frameworks give the first one to the application, and so that one counts."""
        assert resolve(bearer(sub="a"), bearer(sub="b"), **JWT).id == "a"
        assert resolve(bearer(sub="a"), (b"authorization", b"x"), **JWT).id == "a"
        assert resolve((b"authorization", b"x"), bearer(sub="b"), **JWT).id == "anonymous"

    def test_two_tokens_in_one_header(self) -> None:
        """The same in one header has as many parts as an encrypted token, and is none of ours."""
        name, one = bearer(sub="a")
        assert resolve((name, one + b", " + one), **JWT).reason == "token_encrypted"

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            (b"Basic dTpw", "basic_not_checked"),
            (b"Bearerx", "credential_not_checked"),
            (b"token abc", "bearer_not_checked"),
            (b"\xff", "credential_not_checked"),
        ],
    )
    def test_other_schemes(self, value: bytes, reason: str) -> None:
        """Other schemes are not ours to read; but who uses one is somebody, only not known."""
        nobody = Actor(id="anonymous", type="user")
        somebody = Actor(id="anonymous", type="user", reason=reason)
        assert resolve((b"authorization", value), **JWT) == somebody
        assert resolve((b"authorization", b""), **JWT) == nobody

    @pytest.mark.parametrize(
        ("presented", "reason"),
        [
            ({"headers": [(b"authorization", b"Bearer x")]}, "bearer_not_checked"),
            ({"headers": [(b"authorization", b"JWT x")]}, "bearer_not_checked"),
            ({"headers": [(b"authorization", b"Basic dTpw")]}, "basic_not_checked"),
            ({"headers": [(b"authorization", b"Digest username=u")]}, "credential_not_checked"),
            ({"headers": [(b"X-API-Key", b"k")]}, "api_key_not_checked"),
            ({"headers": [(b"cookie", b"theme=dark; sessionid=1")]}, "cookie_not_checked"),
            ({"headers": [(b"cookie", b"JSESSIONID=1")]}, "cookie_not_checked"),
            (
                {"headers": [(b"cookie", b"theme=dark; id=eyJhbGciOiJIUzI1NiJ9.eyJzdWIi.x")]},
                "cookie_not_checked",
            ),
            ({"headers": [(b"X-Goog-Api-Key", b"k")]}, "api_key_not_checked"),
            ({"headers": [(b"Ocp-Apim-Subscription-Key", b"k")]}, "api_key_not_checked"),
            ({"headers": [(b"private-token", b"k")]}, "credential_not_checked"),
            ({"headers": [(b"x-session-token", b"k")]}, "credential_not_checked"),
            ({"headers": [(b"cf-access-jwt-assertion", b"k")]}, "credential_not_checked"),
            ({"headers": [(b"x-ms-client-principal-id", b"k")]}, "credential_not_checked"),
            ({"headers": [(b"x-forwarded-user", b"k")]}, "credential_not_checked"),
            ({"headers": [(b"dpop", b"k")]}, "credential_not_checked"),
            ({"headers": [(b"sec-websocket-protocol", b"bearer, abc")]}, "credential_not_checked"),
            ({"query_string": b"page=1&access_token=x"}, "credential_not_checked"),
            ({"query_string": b"access%5Ftoken=x"}, "credential_not_checked"),
            ({"query_string": b"%61pi_key=x"}, "credential_not_checked"),
            ({"query_string": b"a=1;access_token=x"}, "credential_not_checked"),
            ({"query_string": b"X-Amz-Signature=x"}, "credential_not_checked"),
            ({"session": {"cart": [1]}}, "session_not_read"),
            (
                {"session": {"x": 1}, "headers": [(b"cookie", b"session=x"), (b"x-api-key", b"k")]},
                "api_key_not_checked",
            ),
            ({"session": {"x": 1}, "headers": [(b"cookie", b"session=x")]}, "session_not_read"),
            ({"session": {}, "headers": [(b"cookie", b"session=x")]}, "cookie_not_checked"),
        ],
    )
    def test_what_looks_like_a_credential_is_one(
        self, presented: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whoever has presented it is not nobody; one line says which setting or call helps."""
        forget_warnings()
        asgi = {"headers": [], **presented}
        for _ in range(3):
            found = resolve_actor(asgi, AuditScope(), DEFAULTS, NO_BEARER)
            assert (found.id, found.reason) == ("anonymous", reason)
        (line,) = [one.message for one in caplog.records if "anonymous" in one.message]
        assert f"({reason})" in line
        assert "OTEL_AUDIT_" in line or "set_actor()" in line

    @pytest.mark.parametrize(
        "presented",
        [
            {},
            {"headers": [(b"cookie", b"theme=dark; lang=sid")]},
            {"headers": [(b"user-agent", b"token")], "query_string": b"monkey=1"},
            {"headers": [(b"sec-fetch-user", b"?1"), (b"sec-websocket-key", b"x")]},
            {"headers": [(b"x-csrf-token", b"x"), (b"x-author", b"x"), (b":authority", b"x")]},
            {"headers": [(b"idempotency-key", b"x"), (b"sec-websocket-protocol", b"chat")]},
            {"headers": [(b"x" * 200 + b"token", b"x")], "query_string": b"page=token"},
        ],
    )
    def test_what_is_no_credential(self, presented: dict[str, Any]) -> None:
        """A visitor without any is nobody in particular, also without headers at all."""
        assert resolve_actor(presented, AuditScope(), DEFAULTS, NO_BEARER).reason is None

    def test_no_subject(self) -> None:
        """A verified token without the actor's claim names nobody."""
        assert resolve(bearer(), **JWT).reason == "token_names_nobody"
        assert resolve(bearer(sub=""), **JWT).id == "anonymous"


class TestSetWrong:
    """A token that fails because of the settings: somebody should mend them, and is told."""

    @pytest.mark.parametrize(
        ("settings", "reason", "setting"),
        [
            ({"jwt_key": SECRET[::-1]}, "bad_signature", "OTEL_AUDIT_JWT_KEY"),
            ({"jwt_algorithms": "HS512"}, "alg_not_allowed", "OTEL_AUDIT_JWT_ALGORITHMS"),
            ({"jwt_issuer": "https://login"}, "missing_issuer", "OTEL_AUDIT_JWT_ISSUER"),
            ({"jwt_audience": "shop"}, "missing_audience", "OTEL_AUDIT_JWT_AUDIENCE"),
        ],
    )
    def test_is_logged_once_a_minute(
        self, caplog: pytest.LogCaptureFixture, settings: Any, reason: str, setting: str
    ) -> None:
        """One warning for the reason, with the setting to look at and nothing of the token."""
        token = bearer(sub="mallory")
        for _ in range(3):
            assert resolve(token, **{**JWT, **settings}).reason == reason
        (line,) = [line for line in caplog.records if "not believed" in line.getMessage()]
        assert line.levelname == "WARNING"
        assert f"{reason};" in line.getMessage()
        assert setting in line.getMessage()
        assert "mallory" not in line.getMessage()
        assert token[1].decode().split()[1].split(".")[0] not in line.getMessage()

    def test_a_token_without_an_end(self, caplog: pytest.LogCaptureFixture) -> None:
        """An issuer whose tokens never expire is never believed, and that is said."""
        forever = jwt.encode({"sub": "a"}, SECRET)
        header = (b"authorization", f"Bearer {forever}".encode())
        assert resolve(header, **JWT).reason == "missing_exp"
        assert "missing_exp" in caplog.text
        assert "have the issuer set exp" in caplog.text
        assert "OTEL_AUDIT_" not in caplog.text

    @pytest.mark.parametrize("given", [bearer(sub="a", exp=1), (b"authorization", b"Bearer x")])
    def test_what_is_the_clients_fault_is_not(
        self, caplog: pytest.LogCaptureFixture, given: tuple[bytes, bytes]
    ) -> None:
        """Expired and malformed tokens come every day."""
        assert resolve(given, **JWT).reason in ("token_expired", "token_malformed")
        assert not caplog.records


class TestBearer:
    def test_claims(self) -> None:
        """Id, role, e-mail and roles come from the configured claims; roles have aliases."""
        found = resolve(
            bearer(uid=7, kind="ops_admin", mail="a@b.example", realm={"roles": ["r1", "r2"]}),
            **JWT,
            jwt_actor_claim="uid",
            jwt_role_claim="kind",
            jwt_email_claim="mail",
            jwt_roles_claim="realm.roles",
            actor_type_aliases={"ops_admin": "platform_admin"},
        )
        assert found == Actor(
            id="7",
            type="user",
            role="platform_admin",
            email="a@b.example",
            verified=True,
            roles=("r1", "r2"),
            source="jwt",
        )

    def test_namespaced_claim(self) -> None:
        """A claim's name may itself hold dots."""
        name = "https://shop.example/kind"
        assert resolve(bearer(sub="u", **{name: "x"}), **JWT, jwt_role_claim=name).role == "x"

    def test_scope_as_roles(self) -> None:
        """Where there are no roles the token's scopes are kept."""
        assert resolve(bearer(sub="u", scope="read write"), **JWT).roles == ("read", "write")

    def test_impersonation(self) -> None:
        """Both are recorded: whose rights are used, and who really acts."""
        found = resolve(
            bearer(sub="customer", act={"sub": "agent", "act": {"sub": "first"}}), **JWT
        )
        assert (found.id, found.on_behalf_of) == ("customer", "agent")

    @pytest.mark.parametrize("act", [{}, "agent", None, [], {"sub": {}}])
    def test_odd_impersonation(self, act: Any) -> None:
        """That somebody else acts does not vanish because the claim is odd."""
        assert resolve(bearer(sub="customer", act=act), **JWT).on_behalf_of == "unknown"

    @pytest.mark.parametrize(
        "claims",
        [{"client_id": "job"}, {"azp": "job"}, {"gty": "client-credentials"}, {"idtyp": "app"}, {"actor_type": "service"}],
    )  # fmt: skip
    def test_machines(self, claims: dict[str, Any]) -> None:
        """A client's own token is a service's."""
        assert resolve(bearer(sub="job", **claims), **JWT).type == "service"

    def test_unverified(self) -> None:
        """A token that a gateway has checked is marked as unchecked by us."""
        found = resolve(bearer(sub="u1"), jwt_unverified_behind_gateway=True)
        assert (found.id, found.verified, found.source) == ("u1", False, "jwt-unverified")
        assert found.reason == "token_not_verified"

    def test_claims_for_others(self) -> None:
        """Only claims of a verified token are given to others."""
        scope = {"headers": [bearer(sub="u1", tenant_id="t")]}
        assert (read_bearer(scope, options(**JWT)).claims or {})["tenant_id"] == "t"
        unverified = options(jwt_unverified_behind_gateway=True)
        assert read_bearer(scope, unverified).claims is None
        assert read_bearer({"headers": [bearer(exp=1)]}, options(**JWT)).claims is None

    def test_what_is_not_verified_is_not_kept(self) -> None:
        """Anybody may write such tokens, of any size: none outlives its request."""
        chosen = options(jwt_unverified_behind_gateway=True)
        found = read_bearer({"headers": [bearer(sub="u1")]}, chosen)
        assert found.token is not None
        holders = sys.getrefcount(found.token)
        actor = resolve_actor({"headers": []}, AuditScope(), chosen, found)
        now = sys.getrefcount(found.token)
        assert (actor.id, actor.verified, now) == ("u1", False, holders)

    def test_the_applications_own_kinds_of_text(self) -> None:
        """What is kept is plain text, and no method of the application's is called for it."""

        class Loud(str):
            __slots__ = ()

            def strip(self, *_: Any) -> str:
                raise RuntimeError

        found = resolve(scope={"state": {"user": Loud("u1")}})
        assert (found.id, type(found.id)) == ("u1", str)

    def test_an_integer_that_python_does_not_spell(self) -> None:
        """An id of thousands of digits is none."""
        assert resolve(scope={"state": {"user": 10**5000}}).id == "anonymous"

    def test_long_claims_are_cut(self) -> None:
        """What a token says is bounded and without control characters."""
        found = resolve(bearer(sub="a\n" + "x" * 900, email="e\x1b@x", roles=["r"] * 500), **JWT)
        assert 176 < len(found.id) <= 256
        assert "\n" not in found.id
        assert found.email == r"e\u{1b}@x"
        assert len(found.roles) == 50


class TestOrder:
    def test_app_wins(self) -> None:
        """What the application said through us wins over all else."""
        audit = AuditScope()
        token = scopes.enter(audit)
        scopes.set_actor("said", role="ops")
        scopes.leave(token)
        scope = {"state": {"user": "stated"}}
        found = resolve(
            bearer(sub="u"), audit=audit, scope=scope, **JWT, actor_type_aliases="ops=admin"
        )
        assert (found.id, found.role, found.source) == ("said", "admin", "app")

    def test_state_before_token(self) -> None:
        """`request.state.user` wins over the token."""
        found = resolve(bearer(sub="u"), scope={"state": {"user": "stated"}}, **JWT)
        assert (found.id, found.source, found.verified) == ("stated", "request.state", True)

    def test_configured(self) -> None:
        """The order is configured, and who is not named is not asked."""
        scope = {"state": {"user": "stated"}}
        assert resolve(bearer(sub="u"), scope=scope, **JWT, actor_order="jwt,state").id == "u"
        assert resolve(scope=scope, actor_order="jwt").id == "anonymous"

    def test_token_completes(self) -> None:
        """What the app left out the token of the same actor tells: impersonation above all."""
        header = bearer(sub="u", email="u@x.example", act={"sub": "agent"}, actor_type="admin")
        found = resolve(header, scope={"state": {"user": {"id": "u"}}}, **JWT)
        assert found.source == "request.state"
        assert (found.on_behalf_of, found.email, found.role) == ("agent", "u@x.example", "admin")

    def test_token_of_another(self) -> None:
        """The token of another actor tells nothing."""
        header = bearer(sub="v", email="v@x.example", act={"sub": "agent"})
        found = resolve(header, scope={"state": {"user": {"id": "u"}}}, **JWT)
        assert (found.on_behalf_of, found.email) == (None, None)


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]


class Role(enum.Enum):
    ADMIN = "admin"


@dataclass
class Person:
    id: uuid.UUID
    email: str
    role: Role
    roles: list[Role]


class Hostile:
    """An object whose every attribute raises."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("canary")


class TestApplicationsUser:
    @pytest.mark.parametrize(
        ("user", "expected"),
        [
            ("u1", "u1"),
            (7, "7"),
            (uuid.UUID(int=1), str(uuid.UUID(int=1))),
            ({"id": 7, "sub": "x"}, "7"),
            ({"user_id": "u1"}, "u1"),
            ({"username": "ann"}, "ann"),
            (State({"id": "u1"}), "u1"),
            (SimpleUser("ann"), "ann"),
        ],
    )
    def test_forms(self, user: Any, expected: str) -> None:
        """A user may be an id, a mapping, or an object."""
        assert by_state(user).id == expected

    def test_object(self) -> None:
        """Role, e-mail and roles are read as well, enumerations by their value."""
        found = by_state(Person(uuid.UUID(int=2), "p@x.example", Role.ADMIN, [Role.ADMIN]))
        assert (found.role, found.email, found.roles) == ("admin", "p@x.example", ("admin",))

    @pytest.mark.parametrize("user", [None, True, 1.5, b"x", [], {}, object(), "", UnauthenticatedUser()])  # fmt: skip
    def test_nobody(self, user: Any) -> None:
        """What names nobody is nobody, whatever it does when it is looked at."""
        assert by_state(user).id == "anonymous"

    @pytest.mark.allow_errors
    def test_hostile(self) -> None:
        """An object that raises at every look is nobody."""
        assert by_state(Hostile()).id == "anonymous"
        assert by_state({"id": Hostile()}).id == "anonymous"

    def test_expired_row_is_not_loaded(self) -> None:
        """A mapped object is read without a query, though a commit has expired it."""
        engine = create_engine("sqlite://")
        Base.metadata.create_all(engine)
        statements: list[str] = []
        with Session(engine) as session:
            user = Account(id=7, email="a@b.example")
            session.add(user)
            session.flush()
            assert by_state(user).email == "a@b.example"
            session.commit()
            event.listen(engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
            found = by_state(user)
        engine.dispose()
        assert (found.id, found.email) == ("7", None)
        assert statements == []

    @pytest.mark.allow_errors
    def test_authenticated_user_of_the_scope(self) -> None:
        """Starlette's user counts if it is authenticated."""
        found = resolve(scope={"user": SimpleUser("ann")})
        assert (found.id, found.source) == ("ann", "scope.user")
        assert resolve(scope={"user": UnauthenticatedUser()}).id == "anonymous"
        assert resolve(scope={"user": Hostile()}).id == "anonymous"

    @given(st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["id", "email", "roles", "role", "type", "is_authenticated"]) | st.text(), inner),
    ))  # fmt: skip
    def test_anything(self, user: Any) -> None:
        """Whatever an application puts there, the answer is an actor with a clean id."""
        scope = {"headers": [], "state": {"user": user}}
        found = resolve_actor(scope, AuditScope(), DEFAULTS, NO_BEARER)
        assert is_clean(found.id)
        assert 0 < len(found.id) <= 256


class TestApiKey:
    def test_hashed(self) -> None:
        """Of an API key only a keyed hash is kept: the same each time, another for each key."""
        settings = {"api_key_header": "X-API-Key", "hmac_key": "k1"}
        one = resolve((b"x-api-key", b"canary-key"), **settings)
        assert one == resolve((b"x-api-key", b"canary-key"), **settings)
        assert one.id != resolve((b"x-api-key", b"another"), **settings).id
        assert one.id != resolve((b"x-api-key", b"canary-key"), **settings | {"hmac_key": "k2"}).id
        assert (one.type, one.verified, one.reason) == ("service", False, "api_key_not_checked")
        assert "canary" not in repr(one)

    def test_without_key(self) -> None:
        """Without a key for hashing there is only a label."""
        assert resolve((b"x-api-key", b"canary"), api_key_header="X-API-Key").id == "api-key"

    def test_several(self) -> None:
        """Of several keys the first one counts, as for the application."""
        settings = {"api_key_header": "X-API-Key", "hmac_key": "k1"}
        one = resolve((b"x-api-key", b"a"), **settings)
        assert resolve((b"x-api-key", b"a"), (b"x-api-key", b"b"), **settings) == one

    def test_options_do_not_show_keys(self) -> None:
        """Options can be printed."""
        assert "canary" not in repr(options(hmac_key="canary"))


class TestCertificate:
    SETTINGS = {"client_certificate_header": "X-Client-DN", "trusted_proxies": "10.0.0.0/8"}

    def test_from_trusted_proxy(self) -> None:
        """A certificate's subject is believed from a trusted proxy."""
        found = resolve((b"x-client-dn", b"CN=job-1,O=Shop"), **self.SETTINGS)
        assert found == Actor(
            id="CN=job-1,O=Shop", type="service", verified=True, source="certificate"
        )

    def test_from_others(self) -> None:
        """From anybody else it names nobody, and the attempt is seen."""
        found = resolve(
            (b"x-client-dn", b"CN=root"), scope={"client": ("192.0.2.1", 1)}, **self.SETTINGS
        )
        assert (found.id, found.reason) == ("anonymous", "certificate_from_untrusted_peer")

    def test_two(self) -> None:
        """Two subjects are none: one of them may be the client's own."""
        header = (b"x-client-dn", b"CN=root")
        assert resolve(header, header, **self.SETTINGS).reason == "certificate_unreadable"

    def test_needs_proxies(self) -> None:
        """Without trusted proxies the header cannot be configured."""
        with pytest.raises(ConfigurationError, match="CLIENT_CERTIFICATE_HEADER"):
            options(client_certificate_header="X-Client-DN")

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("CN=job,OU=x", "CN=job,OU=x"),
            ("/C=DE/O=Shop/CN=job", "/C=DE/O=Shop/CN=job"),
            ("CN%3Djob%2CO%3DShop", "CN=job,O=Shop"),
            ('By=spiffe://x;Hash=1;Subject="CN=a\\"b,O=c";URI=spiffe://td/job', "spiffe://td/job"),
            ('Subject="CN=first";Hash=1,By=x;Subject="CN=last,O=a;b"', "CN=last,O=a;b"),
            ("", None),
            ("nonsense", None),
            ("By=x;Hash=y", None),
            ("CN=" + "x" * 9000, None),
        ],
    )
    def test_spellings(self, value: str, expected: str | None) -> None:
        """The usual proxies' spellings are understood."""
        assert certificate_subject(value) == expected

    @given(st.text())
    def test_any_text(self, value: str) -> None:
        """Whatever stands there, it is a clean name or none."""
        found = certificate_subject(value)
        assert found is None or (is_clean(found) and 0 < len(found) <= 512)


def _raise(_: Any) -> Any:
    raise RuntimeError("canary")


async def _later(_: Any) -> str:
    return "u"


class TestCallable:
    @pytest.mark.parametrize("answer", ["u9", {"id": "u9"}, Actor(id="u9", type="user")])
    def test_answers(self, answer: Any) -> None:
        """The user's callable may answer with an id, a mapping, or an actor."""
        found = resolve(actor_resolver=lambda _: answer)
        assert (found.id, found.source) == ("u9", "callable")

    @pytest.mark.allow_errors
    def test_raises(self, caplog: pytest.LogCaptureFixture) -> None:
        """One that raises is left out; the log shows no value."""
        assert resolve(actor_resolver=_raise).reason == "callable_failed"
        assert "canary" not in caplog.text

    def test_async(self) -> None:
        """One that is async cannot be asked, and says so."""
        assert resolve(actor_resolver=_later).reason == "callable_is_async"

    def test_by_name(self) -> None:
        """It may be given by its name; a wrong name is refused at start-up."""
        assert options(actor_resolver="platform:node").resolver is platform.node
        for name in ("no_such_module:x", "platform:no_such", "platform", "platform:__doc__", ":"):
            with pytest.raises(ConfigurationError, match="ACTOR_RESOLVER"):
                options(actor_resolver=name)

    def test_unknown_resolver(self) -> None:
        """An unknown name in the order is refused at start-up."""
        with pytest.raises(ConfigurationError, match="ACTOR_ORDER"):
            options(actor_order="jwt,magic")


class TestSession:
    KEY: ClassVar = {"actor_session_key": "user_id"}

    @pytest.mark.parametrize(
        ("key", "session", "expected"),
        [
            ("user_id", {"user_id": 7}, "7"),
            ("user.id", {"user": {"id": "u-1"}}, "u-1"),
            ("user", {"user": {"id": "u-1", "email": "a@b.example"}}, "u-1"),
            ("user_id", {"cart": [1]}, "anonymous"),
            ("user_id", None, "anonymous"),
        ],
    )
    def test_its_key_names_the_actor(self, key, session, expected) -> None:
        """An id, something within an object, or an object with an id."""
        found = resolve(scope={"session": session}, actor_session_key=key)
        assert found.id == expected
        assert found.verified is (expected != "anonymous")
        assert found.reason is None

    def test_a_session_of_nobody_is_nobody(self) -> None:
        """It was read and names no user: its cookie is no credential of somebody unknown."""
        cookie = (b"cookie", b"session=abc.def")
        assert resolve(cookie, scope={"session": {"cart": 1}}, **self.KEY).reason is None

    def test_who_logs_out_is_named(self) -> None:
        """What the session said when the request came in counts where it says nothing any more."""
        asgi: dict[str, Any] = {"headers": [], "session": {"user_id": 7}}
        note_session(asgi, "user_id")
        asgi["session"].clear()
        chosen = options(**self.KEY)
        assert resolve_actor(asgi, AuditScope(), chosen, NO_BEARER).id == "7"
        asgi["session"]["user_id"] = 8
        assert resolve_actor(asgi, AuditScope(), chosen, NO_BEARER).id == "8"

    @pytest.mark.allow_errors
    def test_a_session_that_cannot_be_read_breaks_nothing(self) -> None:
        """Of whatever middleware: nobody is named."""

        class Broken(dict[str, Any]):
            def __contains__(self, _key: object) -> bool:
                raise RuntimeError("not loaded")

            __getitem__ = get = __contains__

        note_session({"headers": [], "session": Broken(user_id=1)}, "user_id")
        assert resolve(scope={"session": Broken(user_id=1)}, **self.KEY).id == "anonymous"

    def test_an_order_without_it_contradicts_its_key(self) -> None:
        """Said at start, and not by rows without an actor."""
        with pytest.raises(ConfigurationError, match="ACTOR_SESSION_KEY.*ACTOR_ORDER"):
            options(**self.KEY, actor_order="app,jwt")


class TestTokensElsewhere:
    def test_a_token_in_a_cookie(self) -> None:
        """Named by a setting; the header comes first where there is one."""
        _, value = bearer(sub="u-1")
        token = value.removeprefix(b"Bearer ")
        for written in (token, b'"Bearer ' + token + b'"', b"Bearer%20" + token):
            cookie = (b"cookie", b"theme=dark; access_token=" + written)
            found = resolve(cookie, **JWT, jwt_cookie="access_token")
            assert (found.id, found.source, found.verified) == ("u-1", "jwt", True)
            assert resolve(cookie, **JWT).reason == "cookie_not_checked"
        both = (bearer(sub="u-2"), (b"cookie", b"access_token=" + token))
        assert resolve(*both, **JWT, jwt_cookie="access_token").id == "u-2"

    def test_another_scheme_of_the_header(self) -> None:
        """`Authorization: JWT …` and the like, by a setting."""
        _, value = bearer(sub="u-1")
        header = (b"authorization", value.replace(b"Bearer", b"jwt"))
        assert resolve(header, **JWT, jwt_schemes="JWT,Bearer").id == "u-1"
        assert resolve(header, **JWT).reason == "bearer_not_checked"

    def test_a_cookie_without_keys_is_refused(self) -> None:
        """Nothing could verify what is in it."""
        with pytest.raises(ConfigurationError, match="JWT_COOKIE.*JWT_KEY"):
            options(jwt_cookie="access_token")


def test_each_reason_has_a_remedy() -> None:
    """What nobody could mend would be said for nothing."""
    assert set(REMEDIES) == UNCHECKED


class Unreadable:
    """What a middleware may have put in the place of ``request.state``."""

    @property
    def _state(self) -> Any:
        raise RuntimeError


@pytest.mark.allow_errors
class TestTokenNext:
    """A token's actor is taken at once where the application has named nobody."""

    @pytest.mark.parametrize(
        "settings", [{}, {"actor_type_aliases": {"tenant_user": "user", "user": "member"}},
                     {"actor_order": ["jwt"]}, {"actor_order": ["session", "state", "jwt", "app"]},
                     {"actor_order": ["app", "callable", "jwt"]}],
    )  # fmt: skip
    @pytest.mark.parametrize(
        "scope", [{}, {"state": {"request_id": "1"}}, {"state": {"user": "ann"}},
                  {"state": {"user": None}}, {"state": State({"user": "ann"})},
                  {"state": Unreadable()}, {"user": SimpleUser("bob")},
                  {"user": UnauthenticatedUser()}],
    )  # fmt: skip
    @pytest.mark.parametrize(
        "claims", [{"sub": "u-1"}, {"sub": "u-1", "actor_type": "tenant_user", "email": "a@b.c"},
                   {"email": "a@b.c"}, {"sub": "ann", "actor_type": "service"}],
    )  # fmt: skip
    def test_it_is_who_all_resolvers_together_would_name(
        self, settings: dict[str, Any], scope: dict[str, Any], claims: dict[str, Any]
    ) -> None:
        """The short way and the whole list give one actor."""
        chosen = options(**JWT, **settings)
        asgi = {"type": "http", "headers": [bearer(**claims)], "client": ("10.0.0.1", 1), **scope}
        for audit in (AuditScope(), AuditScope(actor=Actor(id="told", type="user"))):
            found = resolve_actor(asgi, audit, chosen, read_bearer(asgi, chosen))
            whole = options(**JWT, **settings)
            object.__setattr__(whole, "asks_token_next", False)
            assert found == resolve_actor(asgi, audit, whole, read_bearer(asgi, whole))
