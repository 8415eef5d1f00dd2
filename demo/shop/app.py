"""The shop as an ASGI application: ``uvicorn demo.shop.app:app``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from demo.shop.db import make_engine, make_sessions
from demo.shop.routes import accounts, catalog, orders
from demo.shop.settings import settings


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    engine = make_engine(settings())
    app.state.sessions = make_sessions(engine)
    yield
    await engine.dispose()


app = FastAPI(title="Shop", lifespan=lifespan)
app.include_router(accounts.router)
app.include_router(catalog.router)
app.include_router(orders.router)


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}
