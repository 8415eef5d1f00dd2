"""What goes in and out over HTTP."""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class Out(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class LoginIn(BaseModel):
    email: str
    password: SecretStr


class TokenOut(BaseModel):
    access_token: str
    token_type: Literal["bearer"] = "bearer"
    expires_in: int


class TenantIn(BaseModel):
    slug: str = Field(pattern=r"^[a-z][a-z0-9-]{1,38}$")
    name: str


class TenantOut(Out):
    id: uuid.UUID
    slug: str
    name: str


class UserIn(BaseModel):
    email: str = Field(pattern=r"^[^@\s]+@[^@\s]+$")
    password: SecretStr = Field(min_length=10)
    role: Literal["tenant_admin", "tenant_user"] = "tenant_user"


class UserOut(Out):
    id: uuid.UUID
    email: str
    role: str


class PasswordIn(BaseModel):
    old_password: SecretStr
    new_password: SecretStr = Field(min_length=10)


class CustomerChange(BaseModel):
    email: str | None = None
    city: str | None = None
    iban: str | None = None
    credit_limit: Decimal | None = Field(None, ge=0)


class CustomerOut(Out):
    id: int
    name: str
    email: str
    city: str
    credit_limit: Decimal


class ProductChange(BaseModel):
    sku: str | None = None
    price: Decimal | None = Field(None, ge=0)
    stock: int | None = Field(None, ge=0)


class ProductOut(Out):
    id: int
    sku: str
    name: str
    price: Decimal
    stock: int


class LineIn(BaseModel):
    product_id: int
    quantity: int = Field(ge=1, le=1000)


class LineOut(Out):
    product_id: int
    quantity: int
    unit_price: Decimal


class OrderIn(BaseModel):
    customer_id: int
    lines: list[LineIn] = Field(min_length=1)
    note: str | None = Field(None, max_length=500)


class OrderChange(BaseModel):
    note: str | None = Field(None, max_length=500)
    lines: list[LineIn] | None = Field(None, min_length=1)


class OrderOut(Out):
    id: int
    customer_id: int
    status: str
    total: Decimal
    note: str | None
    lines: list[LineOut]


class Card(BaseModel):
    number: SecretStr
    expires: str
    cvc: SecretStr


class PaymentIn(BaseModel):
    card: Card


class RefundIn(BaseModel):
    reason: str


class ShipmentIn(BaseModel):
    carrier: str
