"""Customers and products: changes are recorded, reads are not."""

from __future__ import annotations

import re

import pytest


@pytest.mark.not_audited
def test_the_platform_asks_for_its_health(shop):
    assert shop.get("/health").status_code == 200


@pytest.mark.not_audited
def test_reads_leave_no_record(user):
    assert user("GET", "/customers/1")["name"] == "Mara Lind"
    assert user("GET", "/products")


def test_a_customer_is_changed(user, audit):
    user("PATCH", "/customers/1", city="Bergen", iban="NO9386011117947")
    audit.only(
        "customer.updated",
        target="customer:1",
        changes={"customer:1": {"city": ("Oslo", "Bergen")}},
    )
    audit.no_secrets("NO9386011117947")


def test_a_product_is_changed(admin, audit):
    admin("PATCH", "/products/1", price="25.90")
    audit.only("product.updated", changes={"product:1": {"price": (re.compile("24"), "25.90")}})
