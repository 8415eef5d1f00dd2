"""Flushes rows with one way of recording them, in the environment that has it.

Reads what to do on standard input, a line of JSON each, and answers with the CPU time it took: of
the thread that runs the transactions, and of the whole process until all is delivered.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import decimal
import json
import sys
import time
from typing import Any

import attach
from sqlalchemy import Integer, Numeric, String, create_engine, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    configure_mappers,
    mapped_column,
)

SETTINGS = attach.read_settings()
VARIANT: str = SETTINGS["variant"]
DSN: str = SETTINGS["app"]
MOMENT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


class Base(DeclarativeBase): ...


class AppSession(Session): ...


mixins: tuple[type, ...] = ()
extra: dict[str, Any] = {}
if VARIANT == "sqlalchemy-audit-trail":
    from audit_trail import Audited

    mixins = (Audited,)
elif VARIANT == "postgresql-audit":
    from postgresql_audit import versioning_manager

    versioning_manager.init(Base)
    versioning_manager.values = {"actor_id": "user-1"}
    extra["__versioned__"] = {}
elif VARIANT.startswith("continuum"):
    from sqlalchemy_continuum import make_versioned

    make_versioned(user_cls=None, options={"native_versioning": VARIANT == "continuum-native"})
    extra["__versioned__"] = {}


class Columns:
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    status: Mapped[str] = mapped_column(String(20))
    price: Mapped[decimal.Decimal] = mapped_column(Numeric(12, 2))
    quantity: Mapped[int] = mapped_column(Integer)
    made_at: Mapped[dt.datetime]


Item: Any = type("Item", (*mixins, Columns, Base), {**extra, "__module__": __name__})
configure_mappers()

engine = create_async_engine(attach.as_sqlalchemy(DSN, "asyncpg"))
sessions = async_sessionmaker(engine, expire_on_commit=False, sync_session_class=AppSession)


async def prepare() -> None:
    if VARIANT in ("postgresql-audit", "continuum", "continuum-native"):
        # their scripts are several statements in one, which asyncpg does not take
        plain = create_engine(attach.as_sqlalchemy(DSN, "psycopg2"))
        with plain.begin() as connection:
            connection.execute(text("CREATE EXTENSION IF NOT EXISTS btree_gist"))
            connection.execute(text("CREATE EXTENSION IF NOT EXISTS hstore"))
            if VARIANT == "postgresql-audit":
                versioning_manager.transaction_cls.__table__.create(connection)
                versioning_manager.activity_cls.__table__.create(connection)
            Base.metadata.create_all(connection)
        plain.dispose()
    else:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
    if VARIANT == "sqlalchemy-audit-trail":
        from audit_trail import AuditTrail

        await attach.audit_trail_tables(DSN)
        AuditTrail(engine, events=[]).install(sessions)
    elif VARIANT in ("observed", "transactional"):
        import otel_audit_postgres
        from otel_audit_postgres.outbox import init_outbox

        import otel_audit

        await otel_audit_postgres.init(SETTINGS["store"])
        if VARIANT == "transactional":
            await init_outbox(DSN)
        otel_audit.instrument(
            app_engine=engine,
            config=otel_audit.AuditConfig(dsn=SETTINGS["store"], orm=VARIANT, outbox_dsn=DSN),
        )


@contextlib.contextmanager
def who() -> Any:
    """Who acts, told as each of them wants to be told."""
    if VARIANT in ("observed", "transactional"):
        import otel_audit

        with otel_audit.audit("items.changed", actor="user-1"):
            yield
    elif VARIANT == "sqlalchemy-audit-trail":
        from audit_trail import AuditTrail

        with AuditTrail.context(actor_type="user", actor_id="user-1"):
            yield
    else:
        yield


def an_item(number: int) -> Any:
    return Item(
        name=f"tea {number}", status="new", price=decimal.Decimal("12.50"), quantity=number,
        made_at=MOMENT.replace(tzinfo=None),
    )  # fmt: skip


async def loaded(session: AsyncSession, count: int) -> list[Any]:
    found = await session.scalars(select(Item).order_by(Item.id.desc()).limit(count))
    return list(found)


async def one(what: str, count: int) -> tuple[float, float]:
    """One transaction over so many rows; CPU seconds of this thread and of the process."""
    async with sessions() as session:
        rows = [] if what == "insert" else await loaded(session, count)
        if what != "insert" and len(rows) != count:
            raise RuntimeError(f"{len(rows)} rows of {count}")
        mine, whole = time.thread_time(), time.process_time()
        with who():
            if what == "insert":
                session.add_all([an_item(number) for number in range(count)])
            elif what == "update":
                for row in rows:
                    row.status = "seen" if row.status == "new" else "new"
                    row.quantity += 1
            else:
                for row in rows:
                    await session.delete(row)
            await session.commit()
        return time.thread_time() - mine, time.process_time() - whole


async def delivered() -> float:
    """Bring out what is still to be written; CPU seconds of the process."""
    began = time.process_time()
    if VARIANT in ("observed", "transactional"):
        import otel_audit

        if not await asyncio.to_thread(otel_audit.flush, 60):
            raise RuntimeError("not delivered in 60 s")
    return time.process_time() - began


async def main() -> None:
    await prepare()
    async with sessions() as session:
        session.add_all([an_item(number) for number in range(3000)])
        await session.commit()
    print(json.dumps("ready"), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        began = time.perf_counter()
        mine = whole = 0.0
        for _ in range(asked["transactions"]):
            spent = await one(asked["what"], asked["rows"])
            mine, whole = mine + spent[0], whole + spent[1]
        whole += await delivered()
        print(
            json.dumps({"thread": mine, "process": whole, "wall": time.perf_counter() - began}),
            flush=True,
        )


if __name__ == "__main__":
    asyncio.run(main())
