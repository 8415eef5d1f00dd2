"""An application that is killed again and again while it writes: changes and entries are equal."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections import Counter as Tally
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import preloaded
import pytest
from acceptance.servers import BIN, uvicorn
from otel_audit_postgres.outbox import init_outbox

APP = """
import os

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

engine = create_async_engine(os.environ["APP_DSN"], pool_size=8)
sessions = async_sessionmaker(engine, expire_on_commit=False)
app = FastAPI()


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]
    quantity: Mapped[int]


@app.get("/up")
async def up() -> None:
    return None


@app.post("/orders/{number}")
async def create(number: int) -> None:
    async with sessions() as session:
        order = Order(label=f"order {number}", quantity=number)
        session.add(order)
        await session.commit()
        order.quantity += 1
        session.add(Order(label="beside", quantity=0))
        await session.commit()
        session.add(Order(label="undone", quantity=0))
        await session.flush()
        await session.rollback()
        if number % 3 == 0:
            await session.delete(order)
            await session.commit()
"""

TABLES = """
CREATE TABLE orders (id serial PRIMARY KEY, label text NOT NULL, quantity int NOT NULL);
CREATE TABLE history (op text, before jsonb, after jsonb);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO history VALUES (lower(TG_OP), to_jsonb(OLD), to_jsonb(NEW));
    RETURN NULL;
END $$;
CREATE TRIGGER noted AFTER INSERT OR UPDATE OR DELETE ON orders
    FOR EACH ROW EXECUTE FUNCTION note();
"""

ROUNDS = 6


def load(url: str, numbers: Any, answered: list[int], stop: threading.Event) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        while not stop.is_set():
            try:
                client.post(f"/orders/{next(numbers)}")
                answered.append(1)
            except httpx.TransportError:
                return


def as_seen(operation: str, before: dict | None, after: dict | None) -> tuple[str, str]:
    """One row's change, as the trigger saw it, in the form of an entry."""
    names = (before or after or {}).keys()
    pairs = {name: [(before or {}).get(name), (after or {}).get(name)] for name in names}
    changed = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    key = (before or after or {})["id"]
    return operation, json.dumps([key, changed], sort_keys=True)


def as_told(change: dict[str, Any]) -> tuple[str, str]:
    told = json.dumps([change["key"]["id"], change["values"]], sort_keys=True)
    return change["operation"], told


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_changes_and_entries_are_equal(tmp_path: Path, database: str, audit_store: str):
    """Whatever was committed is told, and nothing else is, row for row."""
    (tmp_path / "app.py").write_text(APP)
    connection = await asyncpg.connect(database)
    await connection.execute(TABLES)
    await init_outbox(database)
    environment = {
        "APP_DSN": database.replace("postgresql://", "postgresql+asyncpg://"),
        "OTEL_AUDIT_DSN": audit_store,
        "OTEL_AUDIT_OUTBOX_DSN": database,
        "OTEL_AUDIT_ORM": "transactional",
        "OTEL_AUDIT_OUTBOX_INTERVAL": "0.2",
    }
    chance = random.Random(20240517)
    numbers = iter(range(1_000_000))
    waiting_when_killed = 0
    for number in range(5 * ROUNDS):
        # kills that find nothing waiting prove nothing
        if number >= ROUNDS and waiting_when_killed:
            break
        with uvicorn(tmp_path, environment, forked=number > 0) as server:
            server.wait_until_up()
            stop, answered = threading.Event(), []
            clients = [
                threading.Thread(target=load, args=(server.url, numbers, answered, stop))
                for _ in range(4)
            ]
            for client in clients:
                client.start()
            while len(answered) < 5:
                time.sleep(0.01)
            time.sleep(chance.uniform(0.2, 1.5))
            server.stop(signal.SIGKILL)
            stop.set()
            for client in clients:
                client.join()
        waiting_when_killed += await connection.fetchval("SELECT count(*) FROM audit.outbox")

    # sessions of the killed process that the server still runs
    while await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    ):
        time.sleep(0.05)
    relayed = preloaded.run("relay", env={**environment, "PATH": str(BIN)})
    assert relayed.returncode == 0, relayed.stderr
    assert await connection.fetchval("SELECT count(*) FROM audit.outbox") == 0

    history = await connection.fetch("SELECT op, before::text, after::text FROM history")
    await connection.close()
    seen: Tally = Tally(
        as_seen(op, *(None if side is None else json.loads(side) for side in (before, after)))
        for op, before, after in history
    )
    store = await asyncpg.connect(audit_store)
    rows = await store.fetch("SELECT phase, payload::text FROM audit.audit_logs")
    quarantined = await store.fetchval("SELECT count(*) FROM audit.quarantine")
    await store.close()
    records = [(row["phase"], json.loads(row["payload"])) for row in rows]
    told: Tally = Tally(
        as_told(change) for _, record in records for change in record.get("changes", [])
    )
    assert told == seen
    assert {phase for phase, record in records if record.get("changes")} == {"changes"}
    assert quarantined == 0
    assert sum(seen.values()) > 50
    assert waiting_when_killed > 0
