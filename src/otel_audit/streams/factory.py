"""Makes streams from their settings. Wrong settings fail here, before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from otel_audit_postgres.personal.key_store import KeyStore
from otel_audit_postgres.personal.protect import key_store_from
from otel_audit_postgres.personal.reveal import revealed
from otel_audit_postgres.query.grammar import Query, parse, term

from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError
from otel_audit.setting_values import user_state_directory
from otel_audit.streams.destination import Destination
from otel_audit.streams.file import FileDestination
from otel_audit.streams.local_position import LocalPosition
from otel_audit.streams.settings import (
    FileSettings,
    OtlpSettings,
    Settings,
    WebhookSettings,
    described,
    secret,
)
from otel_audit.streams.stream import Revealer, Stream, StreamPlan

_WEBHOOK_BATCH: Final = 100
"""Events that are sent one by one before they are acknowledged together."""


def make_streams(
    dsn: str,
    found: Mapping[str, Settings],
    *,
    state_directory: Path | None = None,
    start: int | None = None,
    interval: float = 1.0,
) -> list[Stream]:
    """Make streams; nothing is connected yet.

    Args:
        dsn: The store.
        found: Settings by name.
        state_directory: Where is remembered what was sent; by default this user's.
        start: The first leaf of streams that are new; None: what is sealed from now on.
        interval: Seconds between looks for what is new.

    Raises:
        ConfigurationError: A setting cannot be used; the message names it.
    """
    directory = state_directory or user_state_directory("--state") / "streams"
    return [
        Stream(dsn, _plan(name, one, start), LocalPosition(directory, name), interval=interval)
        for name, one in found.items()
    ]


def _plan(name: str, settings: Settings, start: int | None) -> StreamPlan:
    query = parse(settings.filter)
    if settings.tenants:
        query = Query((*query.terms, term("tenant", *settings.tenants)))
    batch = settings.batch
    if isinstance(settings, WebhookSettings):
        batch = min(batch, _WEBHOOK_BATCH)
    return StreamPlan(
        name,
        described(settings),
        _destination(name, settings),
        settings.make_shape(),
        query,
        batch,
        start,
        _revealer(name) if settings.personal else None,
    )


def _destination(name: str, settings: Settings) -> Destination:
    if isinstance(settings, FileSettings):
        if not settings.path.absolute().parent.is_dir():
            raise ConfigurationError(
                f"streams.{name}.path: there is no directory {settings.path.absolute().parent}"
            )
        return FileDestination(settings.path.absolute(), settings.rotate_bytes)
    from otel_audit.streams.http import Client, refuse_unfit_url

    client = Client(settings.certificate, f"streams.{name}.certificate", settings.timeout)
    setting = "endpoint" if isinstance(settings, OtlpSettings) else "url"
    refuse_unfit_url(getattr(settings, setting), f"streams.{name}.{setting}")
    if isinstance(settings, OtlpSettings):
        from otel_audit.streams.otlp import OtlpDestination

        headers = {}
        if settings.token_env is not None:
            token = secret(name, "token_env", settings.token_env)
            headers["authorization"] = f"Bearer {token}"
        return OtlpDestination(settings.endpoint, client, headers)
    from otel_audit.streams.webhook import WebhookDestination, read_secret, refuse_private_literal

    if not settings.allow_private:
        refuse_private_literal(settings.url, f"streams.{name}.url")
    keys = [
        read_secret(secret(name, "secret_env", variable), f"streams.{name}.secret_env ({variable})")
        for variable in settings.secret_env
    ]
    return WebhookDestination(settings.url, client, keys, allow_private=settings.allow_private)


class _KeyStoreRevealer:
    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys

    async def reveal(self, payload: str) -> str:
        return json.dumps(await revealed(payload, self._keys), ensure_ascii=False)

    async def close(self) -> None:
        await self._keys.close()


def _revealer(name: str) -> Revealer:
    keys = key_store_from(AuditConfig())
    if keys is None:
        raise ConfigurationError(
            f"streams.{name}.personal: there are no keys to decrypt with: set OTEL_AUDIT_KEYS_DSN "
            "as for the applications (docs/personal-data.md), or leave it out"
        )
    return _KeyStoreRevealer(keys)
