"""An application through which secrets pass in every position that capture looks at."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import BackgroundTasks, Depends, FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, SecretStr
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import otel_audit

engine = create_async_engine(os.environ["APP_DSN"])
sessions = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str | None] = mapped_column(unique=True)
    password_hash: Mapped[str | None]
    notes: Mapped[str | None] = mapped_column(info={"audit": "redact"})


class Login(BaseModel):
    name: str
    password: SecretStr


async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


async def session() -> AsyncIterator[AsyncSession]:
    async with sessions() as opened:
        yield opened
        await opened.commit()


app = FastAPI(lifespan=lifespan)  # type: ignore[arg-type]
Session = Depends(session)


@app.get("/up")
async def up() -> str:
    return "up"


@app.post("/anything")
async def anything(request: Request) -> dict[str, int]:
    return {"size": len(await request.body())}


@app.post("/answers")
async def answers(request: Request) -> Response:
    found = await request.json()
    response = JSONResponse({"access_token": found["password"], "innocent": "tea"})
    response.set_cookie("session", found["password"])
    return response


@app.post("/raises")
async def raises(request: Request) -> None:
    secret = (await request.json())["password"]
    raise RuntimeError(f"login failed for https://bob:{secret}@example.com with password={secret}")


@app.post("/login")
async def login(given: Login) -> str:
    otel_audit.add_metadata(login=given)
    return given.name


@app.post("/metadata")
async def metadata(request: Request, tasks: BackgroundTasks) -> None:
    secret = (await request.json())["password"]
    otel_audit.add_metadata(api_key=secret, nested={"list": [[{"client_secret": secret}]]})
    tasks.add_task(otel_audit.add_metadata, later={"pin": secret})


@app.post("/identity")
async def identity(request: Request) -> None:
    secret = (await request.json())["password"]
    request.state.session_id = secret
    otel_audit.set_actor(secret, role=secret, email=secret, on_behalf_of=secret, roles=(secret,))
    otel_audit.set_tenant(secret, slug=secret)
    otel_audit.set_target("customer", secret)
    otel_audit.set_event(f"customer.{secret}")
    async with otel_audit.audit(secret, actor=secret, tenant=secret, target=f"customer:{secret}"):
        pass


@app.post("/customers")
async def create(request: Request, db: AsyncSession = Session) -> int:
    secret = (await request.json())["password"]
    customer = Customer(name="innocent", password_hash=secret, notes=secret)
    db.add(customer)
    await db.flush()
    customer.password_hash = secret * 2
    return customer.id


@app.put("/customers")
async def change_all(request: Request, db: AsyncSession = Session) -> None:
    secret = (await request.json())["password"]
    await db.execute(
        update(Customer).where(Customer.password_hash == secret).values(password_hash=secret)
    )
    await db.execute(
        text("UPDATE customers SET notes = :password WHERE name = :name"),
        {"password": secret, "name": "innocent"},
    )


@app.patch("/customers")
async def twice_the_same(request: Request, db: AsyncSession = Session) -> None:
    secret = (await request.json())["password"]
    for _ in range(2):
        db.add(Customer(name="innocent", email=f"password={secret}", password_hash=secret))
        await db.flush()


@app.post("/password-reset/{token}")
async def reset(token: str) -> int:
    return len(token)


@app.websocket("/feed")
async def feed(websocket: WebSocket) -> None:
    await websocket.accept()
    heard: Any = await websocket.receive_text()
    await websocket.send_text(heard)
    await websocket.close()
