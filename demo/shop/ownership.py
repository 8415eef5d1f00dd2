"""Nobody reaches what belongs to another tenant."""

from __future__ import annotations

from typing import TypeVar

from fastapi import HTTPException
from sqlalchemy.ext.asyncio import AsyncSession

from demo.shop.auth import Identity
from demo.shop.models import Customer, Order, Product

Owned = TypeVar("Owned", Customer, Order, Product)


async def fetch(
    session: AsyncSession, kind: type[Owned], key: int, caller: Identity, *, lock: bool = False
) -> Owned:
    """Load a thing of the caller's tenant, 404 where there is none, 403 where it is another's."""
    # a lock waits for whoever changes it now: requests on one order run one after another
    found = await session.get(kind, key, with_for_update={"of": kind} if lock else None)
    if found is None:
        raise HTTPException(404, f"there is no such {kind.__name__.lower()}")
    if found.tenant_id != caller.tenant_id:
        raise HTTPException(403, f"this {kind.__name__.lower()} belongs to another tenant")
    return found
