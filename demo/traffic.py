"""A morning at the shop: a story of chosen requests, then ordinary traffic, then a last rush."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from jose import jwt

from demo.client import Person, ShopClient
from demo.secrets_sent import SecretsSent
from demo.shop.models import PLATFORM_ADMIN, TENANT_ADMIN, TENANT_USER
from demo.shop.seed import NewUser

CONTROL = "leave it at the back door"
"""Sent in a note and no secret: the search must find it, or it searches in the wrong place."""

STATUS = {
    "login": 200,
    "customer changed": 200,
    "ordered": 201,
    "changed": 200,
    "paid": 200,
    "refunded": 200,
    "denied: role": 403,
    "deleted": 204,
    "registered": 201,
    "password": 204,
    "tenant": 201,
    "denied: password": 401,
    "denied: nobody": 401,
    "denied: forged": 401,
    "denied: tenant": 403,
    "denied: admin": 403,
    "rolled back": 409,
    "error": 500,
    "lost": 200,
    "streamed": 200,
}
"""What each request of the story, by its label, must have been answered with."""

_ROUNDS = 6


@dataclass(frozen=True)
class Staff:
    """Everybody who works with the shop, logged in."""

    root: Person
    ada: Person
    bob: Person
    grace: Person
    hank: Person


def first_users(secrets: SecretsSent) -> list[NewUser]:
    """The users the shop opens with."""
    return [
        NewUser("root@shop.example", secrets.password(), PLATFORM_ADMIN),
        NewUser("ada@acme.example", secrets.password(), TENANT_ADMIN, "acme"),
        NewUser("bob@acme.example", secrets.password(), TENANT_USER, "acme"),
        NewUser("grace@globex.example", secrets.password(), TENANT_ADMIN, "globex"),
        NewUser("hank@globex.example", secrets.password(), TENANT_USER, "globex"),
    ]


async def log_in_all(shop: ShopClient, users: Sequence[NewUser], secrets: SecretsSent) -> Staff:
    people = []
    for user in users:
        label = "login" if user.email.startswith("bob") else None
        person = await shop.log_in(user.email, user.password, label)
        secrets.note("access token", person.token)
        people.append(person)
    return Staff(*people)


async def tell_story(
    shop: ShopClient, staff: Staff, users: Sequence[NewUser], secrets: SecretsSent
) -> int:
    """Do one of everything, one after another; return the number of the order it is about."""
    bob_password = next(user.password for user in users if user.email == staff.bob.email)
    order_id = await _sell(shop, staff, secrets)
    await _keep_accounts(shop, staff, bob_password, secrets)
    await _be_denied(shop, staff, order_id, secrets)
    await _fail(shop, staff, secrets)
    await shop.call(staff.ada, "GET", "/orders/export.csv", label="streamed")
    await shop.call(None, "GET", "/health")
    return order_id


async def _sell(shop: ShopClient, staff: Staff, secrets: SecretsSent) -> int:
    ada, bob = staff.ada, staff.bob
    customer = {"city": "Bergen", "credit_limit": "7500.00", "iban": secrets.iban()}
    await shop.call(bob, "PATCH", "/customers/1", json=customer, label="customer changed")
    by_phone = secrets.card(separator=" ")
    note = f"{CONTROL}; he gave us {by_phone} on the phone"
    order_id = await shop.order(bob, 1, {1: 1, 2: 2}, note=note, label="ordered")
    path = f"/orders/{order_id}"
    await shop.call(
        bob, "PATCH", path, json={"lines": [{"product_id": 2, "quantity": 1}]}, label="changed"
    )
    await shop.pay(bob, order_id, secrets.card(), label="paid")
    await shop.call(
        ada, "POST", f"{path}/refund", json={"reason": "arrived broken"}, label="refunded"
    )
    mistaken = await shop.order(bob, 2, {4: 10})
    await shop.call(bob, "DELETE", f"/orders/{mistaken}", label="denied: role")
    await shop.call(ada, "DELETE", f"/orders/{mistaken}", label="deleted")
    return order_id


async def _keep_accounts(
    shop: ShopClient, staff: Staff, bob_password: str, secrets: SecretsSent
) -> None:
    newcomer = {"email": "eve@acme.example", "password": secrets.password(), "role": TENANT_USER}
    await shop.call(staff.ada, "POST", "/users", json=newcomer, label="registered")
    change = {"old_password": bob_password, "new_password": secrets.password()}
    await shop.call(staff.bob, "PUT", "/users/me/password", json=change, label="password")
    tenant = {"slug": "initech", "name": "Initech Paper"}
    await shop.call(staff.root, "POST", "/tenants", json=tenant, label="tenant")


async def _be_denied(shop: ShopClient, staff: Staff, order_id: int, secrets: SecretsSent) -> None:
    guess = {"email": staff.ada.email, "password": secrets.password()}
    await shop.call(None, "POST", "/login", json=guess, label="denied: password")
    await shop.call(None, "DELETE", f"/orders/{order_id}", label="denied: nobody")
    forged = jwt.encode({**jwt.get_unverified_claims(staff.root.token)}, "guessed", "HS256")
    secrets.note("access token", forged)
    await shop.call(
        None, "POST", "/tenants", json={"slug": "evil", "name": "E"}, token=forged,
        label="denied: forged",
    )  # fmt: skip
    await shop.call(staff.hank, "GET", f"/orders/{order_id}", label="denied: tenant")
    await shop.call(staff.bob, "GET", "/tenants", label="denied: admin")


async def _fail(shop: ShopClient, staff: Staff, secrets: SecretsSent) -> None:
    grace, hank = staff.grace, staff.hank
    too_much = {"customer_id": 4, "lines": [{"product_id": 6, "quantity": 100}]}
    await shop.call(hank, "POST", "/orders", json=too_much, label="rolled back")
    order_id = await shop.order(hank, 4, {5: 1})
    await shop.pay(hank, order_id, secrets.card(separator="-"))
    await shop.call(
        hank, "POST", f"/orders/{order_id}/ship", json={"carrier": "zeppelin"}, label="error"
    )
    # noticed at COMMIT, when the answer is out: the client believes in a change that never was
    taken = {"sku": "DRL-18"}
    await shop.call(grace, "PATCH", "/products/5", json=taken, label="lost", kept=False)


async def go_about_business(shop: ShopClient, staff: Staff, secrets: SecretsSent) -> None:
    """Let four people work at the same time."""
    shares = (
        (staff.ada, range(1, 4), range(1, 5)),
        (staff.bob, range(1, 4), range(1, 5)),
        (staff.grace, range(4, 7), range(5, 9)),
        (staff.hank, range(4, 7), range(5, 9)),
    )
    await asyncio.gather(
        *(_work(shop, person, customers, goods, secrets) for person, customers, goods in shares)
    )


async def rush(shop: ShopClient, staff: Staff) -> None:
    """Send a last few writes at once; the shop is told to stop the moment they are answered."""
    await asyncio.gather(
        *(
            shop.call(person, "PATCH", f"/customers/{customer}", json={"city": "Lisbon"})
            for person, customer in ((staff.ada, 2), (staff.bob, 3), (staff.hank, 5))
        )
    )


async def _work(
    shop: ShopClient, person: Person, customers: range, goods: range, secrets: SecretsSent
) -> None:
    chance = random.Random(person.email)
    for _ in range(_ROUNDS):
        customer = chance.choice(customers)
        await shop.call(person, "GET", "/products")
        await shop.call(person, "GET", f"/customers/{customer}")
        order_id = await shop.order(person, customer, {chance.choice(goods): 1})
        await shop.pay(person, order_id, secrets.card())
        await shop.call(person, "GET", "/orders")
