"""A mapped object as the target of an action: it is called as its changes are."""

from __future__ import annotations

import uuid

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import CHAR, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool
from sqlalchemy.types import TypeDecorator

import otel_audit
from otel_audit import AuditConfig
from otel_audit.record import Target
from otel_audit.testing import recorded


class Letters(TypeDecorator[uuid.UUID]):
    """A UUID as 32 letters."""

    impl = CHAR(32)
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return None if value is None else value.hex

    def process_result_value(self, value, dialect):
        return None if value is None else uuid.UUID(value)


class Base(DeclarativeBase):
    pass


class ParcelModel(Base):
    __tablename__ = "parcels"
    id: Mapped[uuid.UUID] = mapped_column(Letters, primary_key=True, default=uuid.uuid4)


class Stop(Base):
    __tablename__ = "stops"
    route: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)


class Voucher(Base):
    __tablename__ = "vouchers"
    secret: Mapped[str] = mapped_column(primary_key=True)


@pytest.fixture
def engine():
    engine = create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


THINGS = [
    lambda: ParcelModel(id=uuid.uuid4()),
    ParcelModel,
    lambda: Stop(route="a,b", number=2),
]


@pytest.mark.parametrize("make", THINGS)
@pytest.mark.parametrize("when", ["before", "flushed", "committed"])
async def test_in_a_request(engine, make, when):
    """Whenever it is named, also before it is stored and once its commit has expired it."""
    app = FastAPI()

    @app.post("/things")
    def create():
        with Session(engine) as session:
            thing = make()
            if when == "before":
                otel_audit.set_target(thing)
            session.add(thing)
            session.flush()
            if when == "flushed":
                otel_audit.set_target(thing)
            session.commit()
            if when == "committed":
                otel_audit.set_target(thing)

    with recorded(app, config=AuditConfig(exporter="none")) as records:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            assert (await client.post("/things")).status_code == 200
        (record,) = [one for one in records if one.request is not None]
    (change,) = record.changes
    assert f"{record.target.type}:{record.target.id}" == change.reference


@pytest.mark.parametrize("make", THINGS)
def test_in_a_block(engine, make):
    """The same for an action that is recorded by hand."""
    with recorded(config=AuditConfig(exporter="none")) as records:
        with otel_audit.audit("thing.made"), Session(engine) as session:
            thing = make()
            otel_audit.set_target(thing)
            session.add(thing)
            session.commit()
        record = records.one("thing.made")
    (change,) = record.changes
    assert f"{record.target.type}:{record.target.id}" == change.reference


def test_a_secret_key_is_not_shown(engine):
    """Where the changes do not show the key, the target does not."""
    with recorded(config=AuditConfig(exporter="none")) as records:
        with otel_audit.audit("voucher.used"), Session(engine) as session:
            voucher = Voucher(secret="s3cr3t")
            session.add(voucher)
            session.commit()
            otel_audit.set_target(voucher)
        assert records.one("voucher.used").target == Target(type="voucher")


def test_the_last_word(engine):
    """What is said last counts, whichever way it is said."""
    with recorded(config=AuditConfig(exporter="none")) as records:
        with otel_audit.audit("stop.moved") as action:
            otel_audit.set_target(Stop(route="a", number=1))
            otel_audit.set_target("stop", "7")
        with otel_audit.audit("stop.closed") as action:
            otel_audit.set_target(Stop(route="a", number=1))
            action.set_target("stop:8")
        with otel_audit.audit("stop.opened"):
            otel_audit.set_target("stop", "7")
            otel_audit.set_target(Target(type="stop", id="9"))
        found = [
            records.one(name).target.id for name in ("stop.moved", "stop.closed", "stop.opened")
        ]
    assert found == ["7", "8", "9"]


@pytest.mark.parametrize("wrong", [None, 7, {"id": 7}, Stop, object()])
def test_what_is_no_target(wrong):
    """An error says what was given and what is taken, in an action and outside."""
    with pytest.raises(TypeError, match=r'set_target\("order", "7"\)'):
        otel_audit.set_target(wrong)


def test_an_id_beside_an_object():
    """A mapped object has its own id."""
    with pytest.raises(TypeError, match="has its own"):
        otel_audit.set_target(Stop(route="a", number=1), "7")
