"""Logging in, users, tenants."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, HTTPException
from sqlalchemy import select

from demo.shop.auth import (
    Caller,
    PlatformAdmin,
    TenantAdmin,
    hash_password,
    issue_token,
    password_fits,
)
from demo.shop.db import Session
from demo.shop.models import Tenant, User
from demo.shop.schemas import LoginIn, PasswordIn, TenantIn, TenantOut, TokenOut, UserIn, UserOut
from demo.shop.settings import settings

router = APIRouter(tags=["accounts"])


@router.post("/login")
async def login(body: LoginIn, session: Session) -> TokenOut:
    user = await session.scalar(select(User).where(User.email == body.email))
    given = body.password.get_secret_value()
    if user is None or not await asyncio.to_thread(password_fits, given, user.password_hash):
        raise HTTPException(401, "wrong e-mail address or password")
    return TokenOut(access_token=issue_token(user), expires_in=settings().token_seconds)


@router.post("/users", status_code=201)
async def register_user(body: UserIn, caller: TenantAdmin, session: Session) -> UserOut:
    if await session.scalar(select(User.id).where(User.email == body.email)):
        raise HTTPException(409, "this e-mail address is taken")
    user = User(
        tenant_id=caller.tenant_id,
        email=body.email,
        password_hash=await asyncio.to_thread(hash_password, body.password.get_secret_value()),
        role=body.role,
    )
    session.add(user)
    await session.flush()
    return UserOut.model_validate(user)


@router.put("/users/me/password", status_code=204)
async def change_password(body: PasswordIn, caller: Caller, session: Session) -> None:
    user = await session.get_one(User, caller.user_id)
    old = body.old_password.get_secret_value()
    if not await asyncio.to_thread(password_fits, old, user.password_hash):
        raise HTTPException(403, "the old password is wrong")
    new = body.new_password.get_secret_value()
    user.password_hash = await asyncio.to_thread(hash_password, new)


@router.get("/tenants")
async def list_tenants(_: PlatformAdmin, session: Session) -> list[TenantOut]:
    found = await session.scalars(select(Tenant).order_by(Tenant.slug))
    return [TenantOut.model_validate(tenant) for tenant in found]


@router.post("/tenants", status_code=201)
async def create_tenant(body: TenantIn, _: PlatformAdmin, session: Session) -> TenantOut:
    tenant = Tenant(slug=body.slug, name=body.name)
    session.add(tenant)
    await session.flush()
    return TenantOut.model_validate(tenant)
