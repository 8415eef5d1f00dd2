"""Transactional mode in databases of other encodings: no character costs a COMMIT."""

from __future__ import annotations

import asyncio
import json
import uuid

import asyncpg
import pytest
from otel_audit_postgres import PostgresSink
from otel_audit_postgres.outbox import init_outbox, inspect_outbox
from otel_audit_postgres.schema.install import schema_sql
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import otel_audit
from otel_audit import AuditConfig, StoreError
from otel_audit.record import Actor

NAMES = ("plain", "Zoë", "€ 5", "😀", "漢字", "Ωμέγα", "\\u00e9", 'quo"te\\', "\u2028")


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


async def database_in(postgres, encoding: str) -> str:
    name = f"test_{uuid.uuid4().hex[:12]}"
    await postgres.execute(
        f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' "
        "TEMPLATE template0"
    )
    return postgres.dsn(name)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP", "UTF8"])
async def test_every_name_is_committed_and_relayed(postgres, audit_store, encoding):
    """Actors whose names the database has no characters for change rows as all others do."""
    dsn = await database_in(postgres, encoding)
    lines = await init_outbox(dsn)
    assert (encoding in str(lines)) == (encoding != "UTF8")
    findings = await inspect_outbox(dsn)
    assert findings[0].ok
    assert (encoding in findings[0].detail) == (encoding != "UTF8")
    engine = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://"))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    otel_audit.instrument(
        app_engine=engine,
        config=AuditConfig(
            dsn=audit_store, orm="transactional", outbox_dsn=dsn, outbox_interval=0.2
        ),
    )
    try:
        for number, name in enumerate(NAMES):
            with otel_audit.audit("note.written", actor=Actor(id=name, type="user")):
                async with AsyncSession(engine) as session, session.begin():
                    session.add(Note(id=number, text="x"))
        assert await asyncio.to_thread(otel_audit.flush, 60)
    finally:
        await asyncio.to_thread(otel_audit.uninstrument)
        await engine.dispose()
    store = await asyncpg.connect(audit_store)
    rows = await store.fetch("SELECT payload FROM audit.audit_logs WHERE phase = 'changes'")
    await store.close()
    told = [json.loads(row["payload"]) for row in rows]
    assert len(told) == len(NAMES)
    assert len({record["actor"]["id"] for record in told}) == len(NAMES)


async def test_the_store_itself_needs_utf8(postgres):
    """A store whose schema was put into such a database by hand is refused at the start."""
    dsn = await database_in(postgres, "LATIN1")
    admin = await asyncpg.connect(dsn)
    await admin.execute(schema_sql().replace("…", "..."))
    await admin.close()
    sink = PostgresSink(dsn)
    with pytest.raises(StoreError, match="encoding LATIN1"):
        await sink.check()
    await sink.close()


async def test_a_store_in_such_a_database_is_not_told_to_be_set_up(postgres):
    """Where nothing is set up yet, the encoding is what is wrong: `init` would refuse it, too."""
    sink = PostgresSink(await database_in(postgres, "LATIN1"))
    with pytest.raises(StoreError, match=r"encoding LATIN1.*ENCODING 'UTF8'") as raised:
        await sink.check()
    await sink.close()
    assert "init" not in str(raised.value)
