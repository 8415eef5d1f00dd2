"""Which destinations count as the same."""

from __future__ import annotations

import pytest

from otel_audit.config import AuditConfig
from otel_audit.delivery.fingerprint import destination_digest


def of_store(dsn: str) -> str:
    return destination_digest(AuditConfig(dsn=dsn))


def of_receiver(url: str) -> str:
    return destination_digest(AuditConfig(otlp_endpoint=url))


STORE = "postgresql://writer:secret@db1:5432,db2:5433/audit"
SOCKET = "postgresql:///audit?host=/run/pg"


def test_nothing_of_it_can_be_read() -> None:
    """Sixteen hex digits, whatever the destination is called."""
    assert len(of_store(STORE)) == len(bytes.fromhex(of_store(STORE))) * 2 == 16


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (STORE, "postgresql://writer:another@db1:5432,db2:5433/audit"),
        (STORE, "postgresql://somebody@db1:5432,db2:5433/audit"),
        (STORE, "postgresql://writer:secret@db2:5433,DB1/audit"),
        (STORE, "postgresql+asyncpg://db1,db2:5433/audit?sslmode=require"),
        (STORE, "postgres:///audit?host=db2,db1&port=5433,5432"),
        (SOCKET, "postgresql://me:x@/audit?host=/run/pg&port=5432"),
        (SOCKET, "postgresql://%2Frun%2Fpg/audit"),
        ("postgresql://me@db", "postgresql://you@db/me"),
        ("postgresql://[::1]/audit", "postgresql://[::1]:5432/audit"),
    ],
)
def test_the_same_store(first: str, second: str) -> None:
    """User, password, the order of hosts and other parameters may change."""
    assert of_store(first) == of_store(second)


@pytest.mark.parametrize(
    "other",
    [
        "postgresql://writer:secret@db1:5432,db2:5433/audit2",
        "postgresql://writer:secret@db1:5432,db2:5432/audit",
        "postgresql://writer:secret@db1:5432/audit",
        "postgresql://writer:secret@localhost/audit",
        "postgresql://writer:secret@127.0.0.1/audit",
        SOCKET,
        "postgresql:///audit?host=/run/pg&port=5433",
        "postgresql:///?service=audit",
    ],
)
def test_another_store(other: str) -> None:
    """Another database, port or host, or the same host by another name, is another one."""
    assert of_store(other) != of_store(STORE)
    others = {of_store(dsn) for dsn in ("postgresql://localhost/a", "postgresql://127.0.0.1/a")}
    assert len(others) == 2


def test_what_the_dsn_leaves_open_is_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """PGHOST, PGPORT and PGDATABASE name a store, too."""
    monkeypatch.setenv("PGHOST", "db1,db2")
    monkeypatch.setenv("PGPORT", "5432,5433")
    monkeypatch.setenv("PGDATABASE", "audit")
    assert of_store("postgresql://") == of_store(STORE)


def test_receivers() -> None:
    """A receiver is its URL; who logs in there does not matter."""
    assert of_receiver("https://collector") == of_receiver("https://Collector:443/v1/traces")
    told = {
        of_receiver(url)
        for url in (
            "https://collector", "http://collector", "https://collector:4318",
            "https://collector/tenant", "https://other",
        )
    }  # fmt: skip
    assert len(told) == 5
    assert of_store("postgresql://collector") not in told


def test_no_destination() -> None:
    """Where there is none nothing is said."""
    assert destination_digest(AuditConfig()) == ""
