"""Orders: from the cart to the refund."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from decimal import Decimal

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from demo.shop.auth import Identity, Member, TenantAdmin
from demo.shop.carrier import book_parcel
from demo.shop.db import Session
from demo.shop.models import Customer, Order, OrderLine, Payment, Product
from demo.shop.ownership import fetch
from demo.shop.schemas import (
    LineIn,
    OrderChange,
    OrderIn,
    OrderOut,
    PaymentIn,
    RefundIn,
    ShipmentIn,
)

router = APIRouter(prefix="/orders", tags=["orders"])


@router.get("")
async def list_orders(caller: Member, session: Session) -> list[OrderOut]:
    wanted = select(Order).where(Order.tenant_id == caller.tenant_id).order_by(Order.id.desc())
    return [OrderOut.model_validate(order) for order in await session.scalars(wanted.limit(20))]


@router.get("/export.csv")
async def export_orders(caller: Member, request: Request) -> StreamingResponse:
    """Stream all orders; the session lives as long as the stream does."""
    rows = _csv_rows(request.app.state.sessions, caller)
    return StreamingResponse(rows, media_type="text/csv")


@router.post("", status_code=201)
async def create_order(body: OrderIn, caller: Member, session: Session) -> OrderOut:
    customer = await fetch(session, Customer, body.customer_id, caller)
    lines = await _take(session, body.lines, caller)
    order = Order(
        tenant_id=caller.tenant_id,
        customer_id=customer.id,
        note=body.note,
        lines=lines,
        total=_total(lines),
        payments=[],
    )
    session.add(order)
    await session.flush()
    await _refuse_over_limit(session, customer)
    return OrderOut.model_validate(order)


@router.get("/{order_id}")
async def read_order(order_id: int, caller: Member, session: Session) -> OrderOut:
    return OrderOut.model_validate(await fetch(session, Order, order_id, caller))


@router.patch("/{order_id}")
async def change_order(
    order_id: int, body: OrderChange, caller: Member, session: Session
) -> OrderOut:
    order = await _order(session, order_id, caller, status="open")
    if body.note is not None:
        order.note = body.note
    if body.lines is not None:
        await _put_back(session, order)
        order.lines = await _take(session, body.lines, caller)
        order.total = _total(order.lines)
    await session.flush()
    return OrderOut.model_validate(order)


@router.delete("/{order_id}", status_code=204)
async def delete_order(order_id: int, caller: TenantAdmin, session: Session) -> None:
    order = await _order(session, order_id, caller, status="open")
    await _put_back(session, order)
    await session.delete(order)


@router.post("/{order_id}/pay")
async def pay_order(order_id: int, body: PaymentIn, caller: Member, session: Session) -> OrderOut:
    order = await _order(session, order_id, caller, status="open")
    number = "".join(filter(str.isdigit, body.card.number.get_secret_value()))
    order.payments.append(Payment(amount=order.total, last_four=number[-4:]))
    order.status = "paid"
    await session.flush()
    return OrderOut.model_validate(order)


@router.post("/{order_id}/refund")
async def refund_order(
    order_id: int, body: RefundIn, caller: TenantAdmin, session: Session
) -> OrderOut:
    order = await _order(session, order_id, caller, status="paid")
    for payment in order.payments:
        payment.refunded = True
    order.status = "refunded"
    order.note = body.reason
    await session.flush()
    return OrderOut.model_validate(order)


@router.post("/{order_id}/ship")
async def ship_order(order_id: int, body: ShipmentIn, caller: Member, session: Session) -> OrderOut:
    """Hand an order to a carrier. When the carrier's service breaks, so does this: 500."""
    order = await _order(session, order_id, caller, status="paid")
    order.status = "shipped"
    await session.flush()
    await book_parcel(body.carrier, order.id)
    return OrderOut.model_validate(order)


async def _order(session: AsyncSession, key: int, caller: Identity, *, status: str) -> Order:
    order = await fetch(session, Order, key, caller, lock=True)
    if order.status != status:
        raise HTTPException(409, f"the order is {order.status}, not {status}")
    return order


async def _take(session: AsyncSession, wanted: list[LineIn], caller: Identity) -> list[OrderLine]:
    """Take goods from the stock."""
    lines = []
    # always in the same order, so that two carts never wait for each other's locks
    for line in sorted(wanted, key=lambda line: line.product_id):
        product = await fetch(session, Product, line.product_id, caller, lock=True)
        if product.stock < line.quantity:
            raise HTTPException(409, f"only {product.stock} of {product.sku} are left")
        product.stock -= line.quantity
        lines.append(
            OrderLine(product_id=product.id, quantity=line.quantity, unit_price=product.price)
        )
    return lines


async def _put_back(session: AsyncSession, order: Order) -> None:
    for line in sorted(order.lines, key=lambda line: line.product_id):
        product = await session.get_one(Product, line.product_id, with_for_update=True)
        product.stock += line.quantity


def _total(lines: list[OrderLine]) -> Decimal:
    return sum((line.unit_price * line.quantity for line in lines), Decimal(0))


async def _refuse_over_limit(session: AsyncSession, customer: Customer) -> None:
    """See what the customer owes, this order included: it is flushed, and is rolled back here."""
    unpaid = select(func.sum(Order.total)).where(
        Order.customer_id == customer.id, Order.status == "open"
    )
    if (await session.scalar(unpaid) or 0) > customer.credit_limit:
        raise HTTPException(409, f"over the credit limit of {customer.credit_limit}")


async def _csv_rows(
    sessions: async_sessionmaker[AsyncSession], caller: Identity
) -> AsyncIterator[str]:
    yield _csv_line("id", "customer_id", "status", "total")
    wanted = select(Order).where(Order.tenant_id == caller.tenant_id).order_by(Order.id)
    async with sessions() as session:
        async for order in await session.stream_scalars(wanted):
            yield _csv_line(order.id, order.customer_id, order.status, order.total)


def _csv_line(*cells: object) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue()
