"""What the demonstration sets up before anybody sends a request."""

from __future__ import annotations

import secrets as randomness
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.ext.asyncio import create_async_engine

from demo.client import SENSITIVE_PATHS
from demo.commands import our_program, output_of
from demo.postgres import APP_ROLE, AUDIT, READER_ROLE, SHOP, WRITER_ROLE, Postgres
from demo.receiver import Receiver
from demo.secrets_sent import SecretsSent
from demo.shop.seed import NewUser, seed
from demo.traffic import first_users

INIT = ("otel-audit", "init", "--roles", "--writer", WRITER_ROLE, "--reader", READER_ROLE)


@dataclass(frozen=True)
class Stage:
    """The servers that are there, and who will play.

    Attributes:
        directory: For the spool and the shop's log.
        server: PostgreSQL.
        receiver: The trace backend.
        secrets: What will be sent and must not be found.
        jwt_key: Signs the shop's access tokens.
    """

    directory: Path
    server: Postgres
    receiver: Receiver
    secrets: SecretsSent = field(default_factory=SecretsSent)
    jwt_key: str = field(default_factory=lambda: randomness.token_urlsafe(32))
    users: list[NewUser] = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.directory / "shop.log"

    @property
    def spool(self) -> Path:
        return self.directory / "spool"

    def settings(self) -> dict[str, str]:
        """All that makes the shop an audited one: variables of its environment."""
        return {
            "SHOP_DATABASE_URL": self.server.dsn(SHOP, APP_ROLE, "postgresql+asyncpg"),
            "SHOP_JWT_KEY": self.jwt_key,
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.receiver.endpoint,
            "OTEL_TRACES_SAMPLER": "traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0.1",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_AUDIT_DSN": self.server.dsn(AUDIT, WRITER_ROLE),
            "OTEL_AUDIT_REQUIRED": "true",
            "OTEL_AUDIT_JWT_KEY": self.jwt_key,
            "OTEL_AUDIT_JWT_ALGORITHMS": "HS256",
            "OTEL_AUDIT_SENSITIVE_PATHS": ",".join(SENSITIVE_PATHS),
            "OTEL_AUDIT_SPOOL_DIR": str(self.spool),
        }


async def open_shop(stage: Stage) -> None:
    """Make the shop's tables, with its first users, customers and products."""
    stage.users.extend(first_users(stage.secrets))
    engine = create_async_engine(stage.server.dsn(SHOP, APP_ROLE, "postgresql+asyncpg"))
    try:
        await seed(engine, stage.users)
    finally:
        await engine.dispose()


async def make_audit_store(stage: Stage) -> None:
    """Run the command that an operator runs."""
    program, *arguments = INIT
    await output_of(our_program(program), *arguments, "--dsn", stage.server.dsn(AUDIT))
