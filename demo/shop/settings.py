"""The shop's settings, from ``SHOP_*`` in the environment."""

from __future__ import annotations

from functools import cache

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="SHOP_", frozen=True)

    database_url: str
    """As SQLAlchemy takes it: ``postgresql+asyncpg://…``."""

    jwt_key: SecretStr
    """Signs and checks access tokens, HS256."""

    token_seconds: int = 3600
    pool_size: int = 5


@cache
def settings() -> Settings:
    return Settings()
