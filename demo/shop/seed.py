"""The shop's tables and its first tenants, users, customers and products."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from demo.shop.auth import hash_password
from demo.shop.models import Base, Customer, Product, Tenant, User


@dataclass(frozen=True)
class NewUser:
    """A user to begin with; ``tenant`` is a slug, None for the platform's own people."""

    email: str
    password: str
    role: str
    tenant: str | None = None


_TENANTS = {"acme": "Acme Tools", "globex": "Globex Garden"}
_CUSTOMERS = (
    ("Mara Lind", "mara@lind.example", "Oslo"),
    ("Teo Brandt", "teo@brandt.example", "Graz"),
    ("Ines Rocha", "ines@rocha.example", "Porto"),
)
_PRODUCTS = (
    ("SAW-01", "Bow saw", "24.90"),
    ("DRL-18", "Cordless drill", "129.00"),
    ("LAD-03", "Ladder, 3 m", "89.50"),
    ("GLV-09", "Work gloves", "7.80"),
)


async def seed(engine: AsyncEngine, users: Iterable[NewUser]) -> None:
    """Make the tables and put in what a shop opens with."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine) as session, session.begin():
        tenants = {slug: Tenant(slug=slug, name=name) for slug, name in _TENANTS.items()}
        session.add_all(tenants.values())
        for user in users:
            session.add(
                User(
                    tenant=tenants[user.tenant] if user.tenant else None,
                    email=user.email,
                    password_hash=hash_password(user.password),
                    role=user.role,
                )
            )
        await session.flush()
        for tenant in tenants.values():
            await _stock(session, tenant)


async def _stock(session: AsyncSession, tenant: Tenant) -> None:
    # flushed one by one, so that the numbers are the same in every run
    for name, email, city in _CUSTOMERS:
        session.add(
            Customer(
                tenant_id=tenant.id, name=name, email=email, city=city, credit_limit=Decimal(5000)
            )
        )
        await session.flush()
    for sku, name, price in _PRODUCTS:
        session.add(
            Product(tenant_id=tenant.id, sku=sku, name=name, price=Decimal(price), stock=1000)
        )
        await session.flush()
