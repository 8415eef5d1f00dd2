"""Who and for whom is stored as the application names it, but never a secret in its place."""

from __future__ import annotations

from typing import Any

import pytest
from asgi_app import Kept, Tapped, say

import otel_audit
from otel_audit.identity.redact_identity import shown_actor, shown_source, shown_tenant
from otel_audit.record import Actor, AuditRecord, Source, Tenant
from otel_audit.redaction import Redactor
from otel_audit.redaction.hashing import KeyedHash

redactor = Redactor()
keyed = Redactor(keyed_hash=KeyedHash(key=b"a key"))

SECRETS = {
    "JWT": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "card": "4111 1111 1111 1111",
    "key": "AKIAIOSFODNN7EXAMPLE",
    "GitHub token": "ghp_0123456789abcdefghijABCDEFGHIJ012345",
    "URL with a password": "https://bob:hunter2@example.com",
}
INNOCENT = (
    "17", "bob", "bob@example.com", "anonymous", "0190163d-8694-739b-aea5-966c26f8ad91",
    "auth0|5f7c8ec7c33c6c004bbafe82", "arn:aws:iam::123456789012:user/bob",
    "spiffe://example.org/ns/shop/sa/web", "CN=shop,OU=web,O=Example", "Bob Müller",
    "api-key:hmac:k1:" + "0" * 64, "01ARZ3NDEKTSV4RRFFQ69G5FAV", "https://login.example.com/#bob",
    "service:mailer", "507f1f77bcf86cd799439011", "google-oauth2|103547991597142817347",
    "621618183758977400", "4060843646977",
)  # fmt: skip


def actor(**parts: Any) -> Actor:
    return Actor(**{"id": "bob", "type": "user", "verified": True, **parts})


class TestActor:
    @pytest.mark.parametrize("kind", SECRETS)
    @pytest.mark.parametrize("part", ["id", "role", "email", "on_behalf_of"])
    def test_a_secret_is_not_stored(self, kind: str, part: str) -> None:
        """Whichever part it stands in; without a key nothing of it is left."""
        shown = shown_actor(actor(**{part: SECRETS[kind]}), redactor)
        assert getattr(shown, part) == "[REDACTED]"
        assert shown.reason == ("id_withheld" if part == "id" else None)

    def test_equal_ones_are_found_by_their_hash(self) -> None:
        """With a key, the same secret has the same stand-in."""
        shown = [shown_actor(actor(id=SECRETS["key"]), keyed).id for _ in range(2)]
        assert shown == [keyed.hashed(SECRETS["key"])] * 2
        assert shown[0].startswith("hmac:")

    def test_roles_are_looked_at_one_by_one(self) -> None:
        """A scope that carries a token does not cost the others."""
        shown = shown_actor(actor(roles=("clerk", SECRETS["JWT"])), redactor)
        assert shown.roles == ("clerk", "[REDACTED]")

    def test_an_id_may_have_as_many_digits_as_a_card(self) -> None:
        """Who it was is not given up for what his number looks like; a role is not a number."""
        known = actor(id="4111111111111111", on_behalf_of="4111111111111111")
        assert shown_actor(known, redactor) is known
        assert shown_actor(actor(role="4111111111111111"), redactor).role == "[REDACTED]"
        assert shown_tenant(Tenant(id="4111111111111111"), redactor) == Tenant(
            id="4111111111111111"
        )

    @pytest.mark.parametrize("name", INNOCENT)
    def test_ordinary_ids_are_stored_as_they_are(self, name: str) -> None:
        """Numbers, UUIDs, names, e-mail addresses, and what the usual providers give out."""
        known = actor(id=name, role="clerk", email="bob@example.com", roles=("a:b", "orders.read"))
        assert shown_actor(known, redactor) is known

    def test_an_email_address_is_taken_out_where_the_settings_ask_for_it(self) -> None:
        """Also as the id."""
        shown = shown_actor(actor(id="b@example.com", email="b@example.com"), Redactor(emails=True))
        assert (shown.id, shown.email) == ("[REDACTED]", "[REDACTED]")

    def test_why_nobody_was_identified_is_kept(self) -> None:
        """The first reason is the one that tells."""
        shown = shown_actor(actor(id=SECRETS["key"], reason="token_not_verified"), redactor)
        assert shown.reason == "token_not_verified"


class TestTenantAndSession:
    @pytest.mark.parametrize("kind", SECRETS)
    def test_a_secret_is_not_stored(self, kind: str) -> None:
        """A header may name the tenant, and a client may put anything there."""
        assert shown_tenant(Tenant(id=SECRETS[kind]), redactor) == Tenant(id="[REDACTED]")
        assert shown_source(Source(session_id=SECRETS[kind]), redactor).session_id == "[REDACTED]"

    @pytest.mark.parametrize("name", INNOCENT)
    def test_ordinary_ones_are_stored_as_they_are(self, name: str) -> None:
        """The very same objects."""
        tenant, source = Tenant(id=name, slug="acme"), Source(session_id=name)
        assert shown_tenant(tenant, redactor) is tenant
        assert shown_source(source, redactor) is source


async def record_of(tell: Any, **settings: Any) -> AuditRecord:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        tell(scope)
        await say(send)

    tapped = Tapped(app, kept=Kept(), **settings)
    await tapped.ask()
    return tapped.kept.record


class TestInARecord:
    @pytest.mark.parametrize(
        "tell",
        [
            lambda _: otel_audit.set_actor(SECRETS["JWT"]),
            lambda scope: scope["state"].update(user={"id": SECRETS["JWT"]}),
            lambda _: otel_audit.set_tenant(SECRETS["JWT"], slug=SECRETS["JWT"]),
            lambda scope: scope["state"].update(tenant={"tenant_id": SECRETS["JWT"]}),
            lambda scope: scope["state"].update(session_id=SECRETS["JWT"]),
            lambda _: otel_audit.set_target("order", SECRETS["JWT"]),
            lambda _: otel_audit.set_target(SECRETS["JWT"], "1"),
            lambda _: otel_audit.set_target(SECRETS["JWT"]),
            lambda _: otel_audit.set_event(f"order.{SECRETS['JWT']}", action=SECRETS["JWT"]),
        ],
    )
    async def test_what_an_application_tells_is_looked_at(self, tell: Any) -> None:
        """Whatever it calls the actor, the tenant, the session, the target, or the event."""
        record = await record_of(tell)
        assert SECRETS["JWT"] not in repr(record)
        assert SECRETS["JWT"].split(".")[1] not in repr(record)

    async def test_what_a_resolver_finds_is_looked_at(self) -> None:
        """The user's own callables, too."""
        record = await record_of(
            lambda _: None,
            actor_resolver=lambda _: SECRETS["card"],
            tenant_resolver=lambda _: SECRETS["card"],
        )
        assert (record.actor.id, record.tenant) == ("[REDACTED]", Tenant(id="[REDACTED]"))
        assert record.actor.reason == "id_withheld"


class TestFailures:
    @pytest.mark.allow_errors
    async def test_a_value_that_cannot_be_redacted_is_withheld_and_counted(
        self, caplog: Any
    ) -> None:
        """Apart from failures to observe: the record is there, without that value."""

        class Broken(dict[str, str]):
            def items(self) -> Any:
                raise RuntimeError(SECRETS["key"])

        async def app(scope: Any, receive: Any, send: Any) -> None:
            otel_audit.add_metadata(broken=Broken())
            await say(send)

        tapped = Tapped(app, kept=Kept())
        await tapped.ask()
        health = tapped.runtime.health()
        assert (health["redaction_errors"] > 0, health["capture_errors"]) == (True, 0)
        assert "redaction failed" in caplog.text
        assert SECRETS["key"] not in caplog.text + repr(tapped.kept.frames)


class TestRequestId:
    @pytest.mark.parametrize("kind", ["JWT", "key", "GitHub token"])
    async def test_a_secret_is_replaced(self, kind: str) -> None:
        """A client may send a token as the request's id: it is well-formed, but not stored."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await say(send)

        tapped = Tapped(app, kept=Kept())
        await tapped.ask(headers=[(b"x-request-id", SECRETS[kind].encode())])
        assert SECRETS[kind] not in repr(tapped.kept.frames)
        assert SECRETS[kind] not in repr(tapped.sent)

    @pytest.mark.parametrize(
        "given",
        ["0190163d-8694-739b-aea5-966c26f8ad91", "req-20240101-000017", "Root=1-67891233-a"],
    )
    async def test_an_ordinary_one_is_taken(self, given: str) -> None:
        """As the usual gateways make them."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await say(send)

        tapped = Tapped(app, kept=Kept())
        await tapped.ask(headers=[(b"x-request-id", given.encode())])
        assert tapped.kept.record.request.id == given
