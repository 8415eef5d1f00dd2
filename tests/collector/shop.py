"""The application under test: SQLAlchemy on SQLite, one route that works and one that fails."""

from __future__ import annotations

from fastapi import FastAPI
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool

engine = create_engine("sqlite://", connect_args={"check_same_thread": False}, poolclass=StaticPool)


class Base(DeclarativeBase):
    """All tables."""


class Order(Base):
    """An order."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


Base.metadata.create_all(engine)
app = FastAPI()


@app.get("/up")
def up() -> str:
    """Say that it runs."""
    return "up"


@app.post("/orders", status_code=201)
async def create(order: dict[str, str]) -> dict[str, int]:
    """Store an order."""
    with Session(engine) as session:
        found = Order(item=order["item"])
        session.add(found)
        session.commit()
        return {"id": found.id}


@app.post("/refunds")
async def refund(refund: dict[str, str]) -> None:
    """Fail."""
    raise RuntimeError("no refunds")
