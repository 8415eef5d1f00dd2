"""The measured application: a shop on FastAPI, async SQLAlchemy and asyncpg, served by uvicorn.

Runs as a script, in any environment that has these; what to attach, and where the databases are,
stands in the variable BENCH.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import attach
import uvicorn
from fastapi import Depends, FastAPI, Request
from pydantic import BaseModel
from sqlalchemy import JSON, String, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.responses import StreamingResponse

SETTINGS = attach.read_settings()
VARIANT: str = SETTINGS["variant"]
STREAMED = 10 * 1024 * 1024
CHUNK = b"x" * 65536

mixins: tuple[type, ...] = ()
if VARIANT == "peer:sqlalchemy-audit-trail":
    from audit_trail import Audited

    mixins = (Audited,)


class Base(DeclarativeBase): ...


class Order(Base, *mixins):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str] = mapped_column(String(200))
    total: Mapped[int]
    lines: Mapped[list[dict[str, Any]]] = mapped_column(JSON)


class OrderIn(BaseModel):
    note: str
    total: int
    lines: list[dict[str, Any]]


class AppSession(Session): ...


engine = create_async_engine(
    attach.as_sqlalchemy(SETTINGS["app"], "asyncpg"), pool_size=5, max_overflow=3, pool_timeout=60
)
sessions = async_sessionmaker(engine, expire_on_commit=False, sync_session_class=AppSession)
app = FastAPI(telemetry=None if VARIANT == "native" else {"tracing": False})


async def a_session() -> AsyncIterator[AsyncSession]:
    async with sessions() as session:
        yield session


Db = Annotated[AsyncSession, Depends(a_session)]


@app.post("/orders", status_code=201)
async def create(order: OrderIn, db: Db) -> dict[str, Any]:
    row = Order(note=order.note, total=order.total, lines=order.lines)
    db.add(row)
    await db.commit()
    return {"id": row.id, **order.model_dump()}


@app.get("/orders/{order_id}")
async def read(order_id: int, db: Db) -> dict[str, Any]:
    row = await db.get_one(Order, order_id)
    return {"id": row.id, "note": row.note, "total": row.total, "lines": row.lines}


@app.get("/json")
async def plain() -> dict[str, Any]:
    return {"well": True, "items": [1, 2, 3]}


@app.get("/stream")
async def stream() -> StreamingResponse:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(STREAMED // len(CHUNK)):
            yield CHUNK

    return StreamingResponse(
        chunks(),
        media_type="application/octet-stream",
        headers={"content-length": str(STREAMED)},
    )


@app.post("/upload")
async def upload(request: Request) -> dict[str, int]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
    return {"size": size}


class Lag:
    """How much later than asked the event loop wakes its sleepers."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.task: asyncio.Task[None] | None = None

    async def watch(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.01)
            self.seen.append(time.perf_counter() - began - 0.01)

    def take(self) -> list[float]:
        if self.task is None:
            self.task = asyncio.create_task(self.watch())
        seen, self.seen = sorted(self.seen), []
        return seen


class Collections:
    """What the garbage collector has done: how often, for how long, and what it alone has freed."""

    def __init__(self) -> None:
        self.began = 0.0
        self.seen = {"gc_runs": 0.0, "gc_full": 0.0, "gc_ms": 0.0, "gc_collected": 0.0}
        gc.callbacks.append(self.note)

    def note(self, phase: str, told: dict[str, int]) -> None:
        if phase == "start":
            self.began = time.perf_counter()
            return
        self.seen["gc_runs"] += 1
        self.seen["gc_full"] += told["generation"] == 2
        self.seen["gc_ms"] += (time.perf_counter() - self.began) * 1e3
        self.seen["gc_collected"] += told["collected"]

    def take(self) -> dict[str, float]:
        seen, self.seen = self.seen, dict.fromkeys(self.seen, 0.0)
        return seen


lag = Lag()
collector = Collections()


@app.get(attach.METER)
async def meter() -> dict[str, float]:
    """Wait until all is written; say what loop and collector did since this was asked last."""
    seen = lag.take()
    await attach.settle(VARIANT)
    collected = collector.take()
    if SETTINGS.get("freeze"):
        # a collection of all that was imported, or none, would be a fifth more, or less
        gc.collect()
        gc.freeze()
        collector.take()  # that collection was nobody's
    lag.seen.clear()
    if not seen:
        return collected
    late = {"lag_p99_ms": seen[int(len(seen) * 0.99)] * 1e3, "lag_max_ms": seen[-1] * 1e3}
    return late | collected


async def prepare() -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(
            text(
                "INSERT INTO orders (id, note, total, lines) "
                "VALUES (1000000000, 'seen', 12, '[]') ON CONFLICT DO NOTHING"
            )
        )
    await attach.prepare(VARIANT, SETTINGS["store"])
    await engine.dispose()


if __name__ == "__main__":
    if SETTINGS.get("prepare", True):
        asyncio.run(prepare())
    attach.attach(VARIANT, app, engine, sessions, SETTINGS["store"])
    uvicorn.run(app, host="127.0.0.1", port=SETTINGS["port"], log_level="warning", access_log=False)
