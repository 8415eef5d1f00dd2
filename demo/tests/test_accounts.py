"""Logging in, users, tenants: each recorded, and no password with it."""

from __future__ import annotations

import pytest

NEW = "a-password-of-the-newcomer"


def test_a_login_is_recorded(shop, audit):
    shop.post("/login", json={"email": "uma@acme.example", "password": "a-wrong-guess-1"})
    record = audit.only(action="LOGIN", outcome="failure", status=401)
    assert record.actor.id == "anonymous"
    audit.no_secrets("a-wrong-guess-1")


@pytest.mark.audited(target="user", committed=True)
def test_a_user_is_registered(admin):
    admin("POST", "/users", 201, email="new@acme.example", password=NEW)


def test_a_password_is_changed(admin, shop, audit):
    admin("POST", "/users", 201, email="changing@acme.example", password=NEW)
    token = shop.post("/login", json={"email": "changing@acme.example", "password": NEW}).json()
    audit.clear()
    answer = shop.put(
        "/users/me/password",
        headers={"Authorization": f"Bearer {token['access_token']}"},
        json={"old_password": NEW, "new_password": f"{NEW}-2"},
    )
    assert answer.status_code == 204
    audit.only(committed=True, changes={"user": {"password_hash": ("[REDACTED]", "[REDACTED]")}})


@pytest.mark.not_audited
def test_tenants_are_listed(platform):
    assert [one["slug"] for one in platform("GET", "/tenants")][:2] == ["acme", "globex"]


@pytest.mark.audited("tenant.created", committed=True, changes={"tenant": "insert"})
def test_a_tenant_is_made(platform):
    platform("POST", "/tenants", 201, slug="initech", name="Initech")


def test_a_denial_is_recorded(user, audit):
    user("POST", "/tenants", 403, slug="mine", name="Mine")
    audit.only("tenant.created", outcome="failure", status=403)
