"""Orders, from the cart to the refund."""

from __future__ import annotations

import pytest

from otel_audit.testing import ANY

LINES = [{"product_id": 2, "quantity": 1}]


@pytest.mark.not_audited
def test_reads_leave_no_record(order, user):
    assert user("GET", f"/orders/{order}")["status"] == "open"
    assert user("GET", "/orders")
    assert user("GET", "/orders/export.csv").startswith("id,customer_id")


def test_an_order_is_made(user, audit):
    made = user("POST", "/orders", 201, customer_id=1, lines=LINES)
    audit.only("order.created", target=f"order:{made['id']}", changes={"product:2": ANY})


def test_over_the_limit_nothing_is_kept(user, audit):
    lines = [{"product_id": 2, "quantity": 900}]
    user("POST", "/orders", 409, customer_id=2, lines=lines)
    record = audit.only("order.created", outcome="failure", committed=False)
    assert record.changes == ()


def test_an_order_is_changed(order, user, audit):
    user("PATCH", f"/orders/{order}", note="ring twice")
    audit.only("order.updated", changes={f"order:{order}": {"note": (None, "ring twice")}})


def test_an_order_is_deleted(order, admin, audit):
    admin("DELETE", f"/orders/{order}", 204)
    audit.only("order.deleted", changes={f"order:{order}": "delete"})


def test_an_order_is_refunded(paid, admin, audit):
    admin("POST", f"/orders/{paid}/refund", reason="broken")
    audit.only(
        "order.refunded",
        target=f"order:{paid}",
        tenant="acme",
        changes={f"order:{paid}": {"status": ("paid", "refunded")}},
        committed=True,
    )


def test_an_order_is_shipped(paid, user, audit):
    user("POST", f"/orders/{paid}/ship", carrier="bike")
    audit.only(target=f"order:{paid}", changes={f"order:{paid}": {"status": ("paid", "shipped")}})


def test_a_carrier_that_fails_ships_nothing(paid, user, audit):
    user("POST", f"/orders/{paid}/ship", 500, carrier="pigeon")
    audit.only(target=f"order:{paid}", outcome="failure", committed=False)


def test_a_payment_is_recorded(order, user, audit, audit_store):
    card = {"number": "4000056655665556", "expires": "12/30", "cvc": "737"}
    user("POST", f"/orders/{order}/pay", card=card)
    audit.only(target=f"order:{order}", changes={f"order:{order}": {"status": ("open", "paid")}})
    assert audit_store.write(audit) == 1
    assert audit_store.verify().size == 1
