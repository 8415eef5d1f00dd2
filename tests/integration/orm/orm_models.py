"""A small application's models, with every shape that ORM capture must read."""

from __future__ import annotations

import datetime as dt
import enum
import uuid
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    ARRAY,
    JSON,
    Column,
    Computed,
    ForeignKey,
    LargeBinary,
    Numeric,
    String,
    Table,
    Text,
    func,
)
from sqlalchemy.dialects.postgresql import INET, INT4RANGE, JSONB, Range
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    column_property,
    composite,
    deferred,
    mapped_column,
    relationship,
    synonym,
)
from sqlalchemy.types import TypeDecorator


class Base(DeclarativeBase):
    """Models that every database takes."""


class PostgresBase(DeclarativeBase):
    """Models with PostgreSQL's own types."""


class Colour(enum.Enum):
    RED = "#f00"
    BLUE = "#00f"


class Money:
    """A value of the application's own type."""

    def __init__(self, amount: int, currency: str) -> None:
        self.amount, self.currency = amount, currency

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise RuntimeError("not printable")


class MoneyType(TypeDecorator[Money]):
    impl = String(40)
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return None if value is None else f"{value.amount} {value.currency}"

    def process_result_value(self, value, dialect):
        return None if value is None else Money(int(value.split()[0]), value.split()[1])


class BrokenType(TypeDecorator[Any]):
    impl = String(40)
    cache_ok = True
    failing = False

    def process_bind_param(self, value, dialect):
        if BrokenType.failing:
            BrokenType.failing = False
            raise RuntimeError("cannot be bound")
        return str(id(value))


class EncryptedText(TypeDecorator[str]):
    impl = String(80)
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return None if value is None else value[::-1]


order_tag = Table(
    "order_tag",
    Base.metadata,
    Column("order_id", ForeignKey("orders.id", onupdate="CASCADE"), primary_key=True),
    Column("tag_code", ForeignKey("tag.code", onupdate="CASCADE"), primary_key=True),
)


class Customer(Base):
    __tablename__ = "customer"
    id: Mapped[int] = mapped_column(primary_key=True)
    full_name: Mapped[str] = mapped_column("name", String(80))
    note: Mapped[str | None] = mapped_column(Text, deferred=True)
    password: Mapped[str | None]
    api_login: Mapped[str | None] = mapped_column("secret_token")
    ssn: Mapped[str | None] = mapped_column(info={"audit": "redact"})
    card: Mapped[str | None] = mapped_column(info={"audit": "hash"})
    scratch: Mapped[str | None] = mapped_column(info={"audit": "omit"})
    vault: Mapped[str | None] = mapped_column(EncryptedText)
    settings: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    label = synonym("full_name")
    name_length = column_property(func.length(full_name))
    orders: Mapped[list[Order]] = relationship(back_populates="customer")

    @hybrid_property
    def greeting(self) -> str:
        return "Hello " + self.full_name

    @property
    def shout(self) -> str:
        raise RuntimeError("a property that raises")

    def __repr__(self) -> str:
        raise RuntimeError("a repr that raises")


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int | None] = mapped_column(ForeignKey("customer.id"))
    total: Mapped[Decimal | None] = mapped_column(Numeric(10, 2))
    state: Mapped[str] = mapped_column(server_default="new")
    deleted_at: Mapped[dt.datetime | None]
    customer: Mapped[Customer | None] = relationship(back_populates="orders")
    lines: Mapped[list[OrderLine]] = relationship(
        back_populates="order", cascade="all, delete-orphan"
    )
    tags: Mapped[list[Tag]] = relationship(secondary=order_tag, back_populates="orders")


class OrderLine(Base):
    __tablename__ = "order_line"
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None]
    order: Mapped[Order] = relationship(back_populates="lines")


class Tag(Base):
    __tablename__ = "tag"
    code: Mapped[str] = mapped_column(primary_key=True)
    orders: Mapped[list[Order]] = relationship(
        secondary=order_tag, back_populates="tags", passive_updates=True
    )


class Counter(Base):
    """Everything that a flush changes unasked."""

    __tablename__ = "counter"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]
    doubled: Mapped[int] = mapped_column(Computed("value * 2"))
    touched: Mapped[int] = mapped_column(default=0, onupdate=lambda: 7)
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version, "eager_defaults": True}


class Lazy(Base):
    """A server default and a SQL onupdate that the flush does not return."""

    __tablename__ = "lazy"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="new", onupdate=func.lower("CHANGED"))
    __mapper_args__ = {"eager_defaults": False}


class Employee(Base):
    __tablename__ = "employee"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    kind: Mapped[str]
    bonus: Mapped[int | None]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "employee"}


class Clerk(Employee):
    """Single-table inheritance."""

    desk: Mapped[str | None] = mapped_column(nullable=True)
    __mapper_args__ = {"polymorphic_identity": "clerk"}


class Manager(Employee):
    """Joined-table inheritance."""

    __tablename__ = "manager"
    id: Mapped[int] = mapped_column(ForeignKey("employee.id"), primary_key=True)
    grade: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "manager"}


class Vehicle(Base):
    __tablename__ = "vehicle"
    id: Mapped[int] = mapped_column(primary_key=True)
    wheels: Mapped[int]


class Truck(Vehicle):
    """Concrete-table inheritance."""

    __tablename__ = "truck"
    id: Mapped[int] = mapped_column(primary_key=True)
    wheels: Mapped[int]
    load: Mapped[int]
    __mapper_args__ = {"concrete": True}


class Point:
    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y

    def __composite_values__(self):
        return self.x, self.y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

    __hash__ = None  # type: ignore[assignment]


class Shape(Base):
    __tablename__ = "shape"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    x: Mapped[int]
    y: Mapped[int]
    colour: Mapped[Colour | None]
    big: Mapped[str | None] = deferred(Column(Text))
    picture: Mapped[bytes | None] = mapped_column(LargeBinary)
    price: Mapped[Money | None] = mapped_column(MoneyType)
    odd: Mapped[Any] = mapped_column(BrokenType, nullable=True)
    document: Mapped[dict[str, Any] | None] = mapped_column(MutableDict.as_mutable(JSON()))
    made: Mapped[dt.datetime | None]
    day: Mapped[dt.date | None]
    position: Mapped[Point] = composite(Point, "x", "y")


class Parent(Base):
    """Leaves its children to the database."""

    __tablename__ = "parent"
    id: Mapped[int] = mapped_column(primary_key=True)
    favourite_id: Mapped[int | None] = mapped_column(
        ForeignKey("child.id", use_alter=True, name="favourite")
    )
    children: Mapped[list[Child]] = relationship(
        cascade="all, delete", passive_deletes=True, foreign_keys="Child.parent_id"
    )
    favourite: Mapped[Child | None] = relationship(foreign_keys=favourite_id, post_update=True)


class Child(Base):
    __tablename__ = "child"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("parent.id", ondelete="CASCADE"))


class Unwatched(Base):
    __tablename__ = "unwatched"
    __audit__ = False
    id: Mapped[int] = mapped_column(primary_key=True)


class OwnRow(PostgresBase):
    """As this plugin's own tables: never captured."""

    __tablename__ = "own_row"
    __table_args__ = {"schema": "audit"}
    id: Mapped[int] = mapped_column(primary_key=True)


class Measurement(PostgresBase):
    __tablename__ = "measurement"
    id: Mapped[int] = mapped_column(primary_key=True)
    zoned: Mapped[dt.datetime | None] = mapped_column(
        type_=func.now().type.__class__(timezone=True)
    )
    span: Mapped[dt.timedelta | None]
    address: Mapped[str | None] = mapped_column(INET)
    window: Mapped[Range[int] | None] = mapped_column(INT4RANGE)
    numbers: Mapped[list[int] | None] = mapped_column(ARRAY(Numeric(asdecimal=False)))
    payload: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
