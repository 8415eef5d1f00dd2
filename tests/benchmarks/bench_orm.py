"""What ORM capture costs for each flushed row: microseconds of CPU, with and without, in one run.

    python tests/benchmarks/bench_orm.py [rows]

Prints JSON. The database is SQLite in memory, so that what is measured is Python's; rows of eight
columns, three of them texts that differ from row to row.
"""

from __future__ import annotations

import datetime as dt
import gc
import json
import os
import sys
import tempfile
import time

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from otel_audit.config import AuditConfig
from otel_audit.orm import OrmOptions, attach, detach
from otel_audit.redaction import Redactor
from otel_audit.scope import AuditScope, enter, leave

ROUNDS = 30


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    note: Mapped[str | None]
    status: Mapped[str]
    quantity: Mapped[int]
    price: Mapped[float]
    active: Mapped[bool]
    made: Mapped[dt.datetime]


def flushes(session: Session, rows: int) -> tuple[float, float]:
    """CPU seconds of a flush that inserts, and of one that updates two columns."""
    made = dt.datetime(2026, 1, 1)
    items = [
        Item(
            name=f"tea {number}", note=f"please ring twice {number}", status=f"new {number}",
            quantity=number, price=1.5, active=True, made=made,
        )
        for number in range(rows)
    ]  # fmt: skip
    session.add_all(items)
    inserted = timed(session.flush)
    for item in items:
        item.quantity += 1
        item.status = f"paid {item.quantity}"
    updated = timed(session.flush)
    return inserted, updated


def timed(step) -> float:
    gc.collect()
    gc.disable()
    began = time.process_time()
    step()
    took = time.process_time() - began
    gc.enable()
    return took


def one_round(engine, rows: int) -> tuple[float, float]:
    token = enter(AuditScope())
    try:
        with Session(engine) as session:
            return flushes(session, rows)
    finally:
        leave(token)


def main(rows: int) -> None:
    os.environ.setdefault("OTEL_AUDIT_SPOOL_DIR", tempfile.mkdtemp())
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    redactor = Redactor.from_config(AuditConfig())
    bare, heard = [], []
    one_round(engine, rows)
    # taking turns, so that what else the machine does falls on both
    for _ in range(ROUNDS):
        bare.append(one_round(engine, rows))
        attachment = attach(redactor, options=OrmOptions())
        heard.append(one_round(engine, rows))
        detach(attachment)
    figures = {"rows": rows, "rounds": ROUNDS}
    for position, name in enumerate(("insert", "update")):
        without = min(one[position] for one in bare) / rows * 1e6
        with_it = min(one[position] for one in heard) / rows * 1e6
        figures[name] = {
            "us_per_row_without": round(without, 1),
            "us_per_row_with": round(with_it, 1),
            "us_per_row_added": round(with_it - without, 1),
            "ratio": round(with_it / without, 2),
        }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
