"""Customers and products of the caller's tenant."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy import select

from demo.shop.auth import Member, TenantAdmin
from demo.shop.db import Session
from demo.shop.models import Customer, Product
from demo.shop.ownership import fetch
from demo.shop.schemas import CustomerChange, CustomerOut, ProductChange, ProductOut

router = APIRouter(tags=["catalog"])


@router.get("/customers/{customer_id}")
async def read_customer(customer_id: int, caller: Member, session: Session) -> CustomerOut:
    return CustomerOut.model_validate(await fetch(session, Customer, customer_id, caller))


@router.patch("/customers/{customer_id}")
async def change_customer(
    customer_id: int, body: CustomerChange, caller: Member, session: Session
) -> CustomerOut:
    customer = await fetch(session, Customer, customer_id, caller, lock=True)
    for name, value in body.model_dump(exclude_unset=True).items():
        setattr(customer, name, value)
    await session.flush()
    return CustomerOut.model_validate(customer)


@router.get("/products")
async def list_products(caller: Member, session: Session) -> list[ProductOut]:
    wanted = select(Product).where(Product.tenant_id == caller.tenant_id).order_by(Product.id)
    return [ProductOut.model_validate(product) for product in await session.scalars(wanted)]


@router.patch("/products/{product_id}")
async def change_product(
    product_id: int, body: ProductChange, caller: TenantAdmin, session: Session
) -> ProductOut:
    """Change a product. A number that is taken is noticed by the database only at COMMIT."""
    product = await fetch(session, Product, product_id, caller, lock=True)
    for name, value in body.model_dump(exclude_unset=True).items():
        setattr(product, name, value)
    await session.flush()
    return ProductOut.model_validate(product)
