"""What the browser is told, who is let in, and which requests are refused."""

from __future__ import annotations

import time

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.applications import Starlette
from starlette.routing import Mount
from viewer_store import AUDITOR

from otel_audit.errors import ConfigurationError
from otel_audit.viewer import Embedding, TrustedHeader, Viewer, create_app, mint_token
from otel_audit.viewer.authentication import OneTimeLink, load


def pair():
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private.decode(), public.decode()


PRIVATE, PUBLIC = pair()
ORIGIN = "https://app.example"


class TestHeaders:
    async def test_stand_on_every_answer(self, store, clients):
        """Pages, files, errors: nothing runs that is not ours, nothing is kept, nobody frames it."""
        client = await clients(AUDITOR)
        for path in ("/", "/static/viewer.js", "/nothing", "/?q=x%3Ay", "/export", "/help"):
            headers = (await client.get(path)).headers
            policy = headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
            assert "require-trusted-types-for 'script'" in policy
            assert "frame-ancestors 'none'" in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["cache-control"] == "no-store"

    async def test_no_page_has_a_script_or_style_within(self, store, clients):
        """All of both comes from files."""
        client = await clients(AUDITOR)
        for path in ("/", f"/record/{store.ids['paid']}", "/entity?e=order:1", "/tail"):
            text = (await client.get(path)).text
            assert text.count("<script") == text.count("<script src=")
            assert " style=" not in text
            assert " onclick" not in text

    @pytest.mark.parametrize(
        ("path", "headers", "status"),
        [
            ("/", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, 200),
            ("/export", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, 403),
            ("/", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}, 403),
            ("/export", {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}, 403),
            ("/", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, 403),
            ("/", {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}, 200),
        ],
    )  # fmt: skip
    async def test_another_site_sends_nothing_on_its_own(
        self, store, clients, path, headers, status
    ):
        """A link from elsewhere may be followed; pictures, frames and scripts of elsewhere may not."""
        answer = await (await clients(AUDITOR)).get(path, headers=headers)
        assert answer.status_code == status


class TestOneTimeLink:
    async def test_works_once_and_keeps_no_secret(self, store, viewer_role):
        """The session is a cookie that scripts and other sites do not get; it ends by a POST."""
        link = OneTimeLink(AUDITOR)
        app = create_app(dsn=viewer_role, authenticate=link)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            secret = link.new_link()
            assert secret not in repr(link)
            answer = await client.get(f"/sign-in?link={secret}")
            cookie = answer.headers["set-cookie"].lower()
            assert answer.status_code == 303
            assert "httponly" in cookie
            assert "samesite=strict" in cookie
            page = await client.get("/")
            assert page.status_code == 200
            assert '<form action="/sign-out" method="post">' in page.text
            foreign = {"origin": "https://evil.example"}
            assert (await client.post("/sign-out", headers=foreign)).status_code == 403
            assert (await client.get("/")).status_code == 200
            await client.post("/sign-out")
            client.cookies.set("otel_audit_viewer", cookie.partition("=")[2].partition(";")[0])
            assert (await client.get("/")).status_code == 401
            client.cookies.clear()
            assert (await client.get(f"/sign-in?link={secret}")).status_code == 401
            assert (await client.get("/sign-in?link=")).status_code == 401
        await app.state.site.pool.close()

    def test_ends_after_ten_minutes(self):
        """A link that lay about is worth nothing."""
        now = [0.0]
        link = OneTimeLink(AUDITOR, clock=lambda: now[0])
        secret = link.new_link()
        now[0] = 601
        assert link.sign_in(secret) is None


class TestOtherWays:
    async def test_a_header_counts_from_the_proxy_alone(self, store, viewer_role):
        """Once, from its address, with its secret."""
        believes = TrustedHeader("x-user", proxies=("127.0.0.1",), secret="s3cret")
        app = create_app(dsn=viewer_role, authenticate=believes)
        good = {"x-user": "ada@example.com", "x-otel-audit-proxy": "s3cret"}
        for address, headers, status in (
            ("127.0.0.1", good, 200),
            ("203.0.113.9", good, 401),
            ("127.0.0.1", good | {"x-otel-audit-proxy": "guess"}, 401),
            ("127.0.0.1", [*good.items(), ("x-user", "root")], 401),
            ("127.0.0.1", good | {"x-user": " "}, 401),
        ):
            transport = httpx.ASGITransport(app, client=(address, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://v") as client:
                assert (await client.get("/help", headers=headers)).status_code == status
        await app.state.site.pool.close()

    async def test_an_applications_own_login_says_who_it_is(self, store, viewer_role):
        """Mounted below a path, all links stay below it; the answer may be awaited."""

        async def who(request):
            return Viewer("boss@example.com") if request.headers.get("x-login") == "1" else None

        viewer = create_app(dsn=viewer_role, authenticate=who)
        app = Starlette(routes=[Mount("/audit", viewer)])
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://v") as client:
            assert (await client.get("/audit/")).status_code == 401
            page = (await client.get("/audit/", headers={"x-login": "1"})).text
            assert 'href="/audit/record/' in page
            assert 'href="/record/' not in page
        await viewer.state.site.pool.close()

    def test_a_wrong_configuration_fails_at_start(self):
        """Naming what is wrong."""
        with pytest.raises(ConfigurationError, match="who may look"):
            create_app(dsn="postgresql://x/y")
        with pytest.raises(ConfigurationError, match="TRACE_URL"):
            create_app(dsn="x", authenticate=lambda _: None, trace_url="javascript:{trace_id}")
        with pytest.raises(ConfigurationError, match="module:name"):
            load("os")
        with pytest.raises(ConfigurationError, match="no_such"):
            load("no_such_module_here:f")
        with pytest.raises(ConfigurationError, match="needs tenants"):
            Viewer("x", "tenant")
        with pytest.raises(ConfigurationError, match="not an origin"):
            Embedding(PUBLIC, ("*",))


def token(key=PRIVATE, kind="otel-audit-view+jwt", **claims):
    now = int(time.time())
    told = {
        "aud": "otel-audit-viewer", "sub": "admin@acme.example", "tenant": "acme", "iat": now,
        "exp": now + 600, "jti": "1", "may": ["export"],
    }  # fmt: skip
    told = {name: value for name, value in (told | claims).items() if value is not None}
    return jwt.encode(told, key, algorithm="EdDSA", headers={"typ": kind})


class TestEmbedding:
    async def test_a_minted_token_shows_its_tenant(self, store, clients):
        """Search, records, export; what it may not is refused, and so is another's record."""
        client = await clients(None, embedding=Embedding(PUBLIC, (ORIGIN,)))
        minted = mint_token(PRIVATE, tenant="acme", viewer="admin@acme.example")
        headers = {"authorization": f"Bearer {minted}"}
        page = await client.get("/", headers=headers)
        assert page.status_code == 200
        assert "order.paid" in page.text
        assert "secret" not in page.text
        assert (await client.get("/export", headers=headers)).status_code == 200
        assert (await client.get("/tail", headers=headers)).status_code == 403
        foreign = await client.get(f"/record/{store.ids['globex']}", headers=headers)
        assert foreign.status_code == 404

    async def test_the_frame_stands_in_the_applications_pages_only(self, store, clients):
        """And there is nothing of the trail in it."""
        client = await clients(None, embedding=Embedding(PUBLIC, (ORIGIN,)))
        answer = await client.get("/embed")
        assert f"frame-ancestors {ORIGIN};" in answer.headers["content-security-policy"]
        assert "x-frame-options" not in answer.headers
        assert "acme" not in answer.text

    @pytest.mark.parametrize(
        "bad",
        [
            lambda: token(pair()[0]),
            lambda: token(aud="another"),
            lambda: token(aud=None),
            lambda: token(exp=int(time.time()) - 60),
            lambda: token(exp=int(time.time()) + 7200),
            lambda: token(exp=None),
            lambda: token(iat=None),
            lambda: token(jti=None),
            lambda: token(jti="revoked"),
            lambda: token(sub=None),
            lambda: token(tenant=None),
            lambda: token(tenant=""),
            lambda: token(tenant=["acme", "globex"]),
            lambda: token(kind="JWT"),
            lambda: token()[:-4] + "AAAA",
            lambda: jwt.encode({"aud": "otel-audit-viewer", "sub": "x", "tenant": "acme"}, None, algorithm="none"),
            lambda: jwt.encode({"aud": "otel-audit-viewer", "sub": "x", "tenant": "acme"}, "k" * 32, algorithm="HS256"),
            lambda: "x" * 5000,
            lambda: "",
        ],
    )  # fmt: skip
    def test_other_tokens_are_refused(self, bad):
        """Forged, expired, too long, for another audience, revoked, for nobody."""
        embedding = Embedding(PUBLIC, (ORIGIN,), is_revoked=lambda jti: jti == "revoked")
        assert embedding.viewer_of([f"Bearer {token()}"]) is not None
        assert embedding.viewer_of([f"Bearer {bad()}"]) is None

    def test_only_one_is_taken_and_none_lasts_long(self):
        """Two headers are none; who mints is told what is wrong."""
        embedding = Embedding(PUBLIC, (ORIGIN,))
        assert embedding.viewer_of([f"Bearer {token()}"] * 2) is None
        with pytest.raises(ConfigurationError, match="60 at most"):
            mint_token(PRIVATE, tenant="acme", viewer="x", minutes=61)
        with pytest.raises(ConfigurationError, match="empty"):
            mint_token(PRIVATE, tenant="", viewer="x")
