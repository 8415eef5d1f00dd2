"""Passwords, access tokens, and who may do what."""

from __future__ import annotations

import hashlib
import hmac
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Depends, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from jose import JWTError, jwt

from demo.shop.models import PLATFORM_ADMIN, TENANT_ADMIN, User
from demo.shop.settings import settings

ALGORITHM = "HS256"
_bearer = HTTPBearer(auto_error=False)


@dataclass(frozen=True)
class Identity:
    """Who the access token says is calling."""

    user_id: uuid.UUID
    email: str
    role: str
    tenant_id: uuid.UUID | None


def hash_password(password: str, salt: bytes | None = None) -> str:
    salt = salt or os.urandom(16)
    digest = hashlib.scrypt(password.encode(), salt=salt, n=2**12, r=8, p=1)
    return f"{salt.hex()}${digest.hex()}"


def password_fits(password: str, stored: str) -> bool:
    salt = bytes.fromhex(stored.partition("$")[0])
    return hmac.compare_digest(hash_password(password, salt), stored)


def issue_token(user: User) -> str:
    claims = {
        "sub": str(user.id),
        "actor_type": user.role,
        "email": user.email,
        "exp": datetime.now(UTC) + timedelta(seconds=settings().token_seconds),
    }
    if user.tenant is not None:
        claims |= {"tenant_id": str(user.tenant.id), "tenant_slug": user.tenant.slug}
    return jwt.encode(claims, settings().jwt_key.get_secret_value(), algorithm=ALGORITHM)


def current_identity(
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Identity:
    if credentials is None:
        raise HTTPException(401, "log in first")
    key = settings().jwt_key.get_secret_value()
    try:
        claims = jwt.decode(credentials.credentials, key, algorithms=[ALGORITHM])
        tenant = claims.get("tenant_id")
        return Identity(
            user_id=uuid.UUID(claims["sub"]),
            email=claims["email"],
            role=claims["actor_type"],
            tenant_id=uuid.UUID(tenant) if tenant else None,
        )
    except (JWTError, KeyError, ValueError):
        raise HTTPException(401, "the access token is not valid") from None


Caller = Annotated[Identity, Depends(current_identity)]


def one_of(*roles: str) -> Callable[[Identity], Identity]:
    """Make a dependency that lets only these roles pass."""

    def allowed(caller: Caller) -> Identity:
        if caller.role not in roles:
            raise HTTPException(403, f"only for {' or '.join(roles)}")
        return caller

    return allowed


def tenant_member(caller: Caller) -> Identity:
    if caller.tenant_id is None:
        raise HTTPException(403, "only for members of a tenant")
    return caller


Member = Annotated[Identity, Depends(tenant_member)]
TenantAdmin = Annotated[Identity, Depends(one_of(TENANT_ADMIN))]
PlatformAdmin = Annotated[Identity, Depends(one_of(PLATFORM_ADMIN))]
