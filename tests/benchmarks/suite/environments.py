"""Virtual environments for what others have made: pinned, outside the project, made when missing."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import platformdirs

CONSTRAINTS = Path(__file__).parents[3] / ".ci" / "constraints.txt"
COMMON = ("fastapi", "sqlalchemy[asyncio]", "asyncpg", "uvicorn[standard]")


@dataclass(frozen=True)
class Peer:
    """What a user would pick instead, and what else it needs here."""

    name: str
    version: str
    extra: tuple[str, ...] = ()
    beside: tuple[str, ...] = COMMON

    @property
    def requirements(self) -> tuple[str, ...]:
        return (f"{self.name}=={self.version}", *self.extra, *self.beside)


FASTAPI_AUDIT = Peer("fastapi-audit", "0.2.3")
FASTAPI_AUDIT_LOG = Peer("fastapi-audit-log", "1.4.0", ("psycopg2-binary==2.9.13",))
AUDIT_TRAIL = Peer("sqlalchemy-audit-trail", "0.2.0")
POSTGRESQL_AUDIT = Peer("postgresql-audit", "0.18.0", ("psycopg2-binary==2.9.13",))
CONTINUUM = Peer("SQLAlchemy-Continuum", "2.0.0", ("psycopg2-binary==2.9.13",))
PEERS = (FASTAPI_AUDIT, FASTAPI_AUDIT_LOG, AUDIT_TRAIL, POSTGRESQL_AUDIT, CONTINUUM)


def directory() -> Path:
    given = os.environ.get("OTEL_AUDIT_BENCH_CACHE")
    return Path(given) if given else platformdirs.user_cache_path("otel-audit-bench")


def python_of(peer: Peer | None) -> str:
    """The interpreter in which a peer is installed; for None that of the project.

    Its other packages are those of the project, version for version, so that nothing but the peer
    makes the difference.
    """
    if peer is None:
        return sys.executable
    made_of = "\n".join((sys.version, *peer.requirements)) + CONSTRAINTS.read_text()
    tag = hashlib.sha256(made_of.encode()).hexdigest()[:12]
    place = directory() / f"{peer.name.lower()}-{peer.version}-{tag}"
    python = place / "bin" / "python"
    if (place / ".ready").exists():
        return str(python)
    print(f"installing {peer.name} {peer.version} into its own environment", file=sys.stderr)
    venv.create(place, clear=True, with_pip=True)
    done = subprocess.run(
        [
            str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            "-c", str(CONSTRAINTS), *peer.requirements,
        ],
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(
            f"{peer.name} {peer.version} could not be installed into {place}, see above; "
            "--without-peers measures without what others have made"
        )
    (place / ".ready").touch()
    return str(python)
