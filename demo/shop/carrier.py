"""The parcel services' interfaces, as far as the shop has them."""

from __future__ import annotations

import asyncio

_KNOWN = ("postal", "bike")


class CarrierError(RuntimeError):
    """The carrier's service did not answer as agreed."""


async def book_parcel(carrier: str, order_id: int) -> None:
    await asyncio.sleep(0.01)
    if carrier not in _KNOWN:
        raise CarrierError(f"carrier {carrier} did not confirm the parcel of order {order_id}")
