"""Settings of streams: a TOML file with a table for each destination."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from otel_audit._util.loopback import is_loopback
from otel_audit.errors import ConfigurationError
from otel_audit.shapes import Shape, shape_named
from otel_audit.shapes.ocsf import DEFAULT_ENTITIES

_IN_URL: Final = re.compile(r"[^\s\x00-\x20\x7f-\x9f\u200b-\u200f\u2028-\u202e\ufeff]+")
NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_SECRET: Final = re.compile(r"[!-~]+")
_MB: Final = 1_000_000
_LONGEST_REQUEST: Final = 300
"""Seconds: while a request is under way, the stream's transaction in the store is open, too."""


class _Destination(BaseModel):
    """Settings of all kinds of destinations.

    Attributes:
        shape: What an event looks like there.
        filter: Which records go there, in the language of the search.
        tenants: Only records of these tenants.
        personal: Whether encrypted personal values are decrypted; else they go as pseudonyms.
        batch: Records that are read and acknowledged together, at the most; of a webhook never
            more than 100.
        ocsf_users: For OCSF: types of targets that are accounts of people.
        ocsf_groups: For OCSF: those that give rights to several.
        ocsf_administrative: For OCSF: what else is administered.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: str = "native"
    filter: str = ""
    tenants: tuple[str, ...] = ()
    personal: bool = False
    # PAGE and LARGEST_PAGE of otel_audit_postgres.ledger.sealed_rows, which reads them
    batch: Annotated[int, Field(ge=1, le=5_000)] = 1_000
    ocsf_users: tuple[str, ...] | None = None
    ocsf_groups: tuple[str, ...] | None = None
    ocsf_administrative: tuple[str, ...] | None = None

    def make_shape(self) -> Shape:
        """The shape of these settings."""
        given = {
            name: frozenset(getattr(self, f"ocsf_{name}"))
            for name in ("users", "groups", "administrative")
            if getattr(self, f"ocsf_{name}") is not None
        }
        return shape_named(self.shape, replace(DEFAULT_ENTITIES, **given))

    @model_validator(mode="after")
    def _entities_of_ocsf_alone(self) -> Self:
        if not self.shape.startswith("ocsf"):
            for name in ("ocsf_users", "ocsf_groups", "ocsf_administrative"):
                if getattr(self, name) is not None:
                    raise ValueError(f'{name} is for shape = "ocsf" alone')
        return self

    @field_validator("shape")
    @classmethod
    def _known_shape(cls, value: str) -> str:
        try:
            shape_named(value)
        except ConfigurationError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("filter")
    @classmethod
    def _readable_filter(cls, value: str) -> str:
        from otel_audit_postgres.query.grammar import parse

        try:
            parse(value)
        except ConfigurationError as error:
            raise ValueError(f"cannot be read, {error}") from None
        return value


class FileSettings(_Destination):
    """Events in a file, one JSON text a line.

    Attributes:
        path: The file; older ones stand beside it, and none is ever removed.
        rotate_bytes: From which size on a new file is begun.
    """

    kind: Literal["file"]
    path: Path
    # below about 1 kB each event would have a file of its own
    rotate_bytes: Annotated[int, Field(ge=1_000)] = 100 * _MB


class OtlpSettings(_Destination):
    """Events as OTLP log records, to a Collector.

    Attributes:
        endpoint: The receiver's URL, such as ``http://127.0.0.1:4318``.
        token_env: The variable that holds the bearer token.
        certificate: Whom to trust, in PEM; by default the system's authorities.
        timeout: Seconds that one request may take.
    """

    kind: Literal["otlp"]
    endpoint: str
    token_env: str | None = None
    certificate: Path | None = None
    # a batch is one request
    timeout: Annotated[float, Field(gt=0, le=_LONGEST_REQUEST)] = 30.0

    @field_validator("endpoint")
    @classmethod
    def _sound_endpoint(cls, value: str) -> str:
        return _sound_url(value, ("http", "https"))


class WebhookSettings(_Destination):
    """Events as signed HTTP requests, one each (Standard Webhooks).

    Attributes:
        url: Where to; https, but to this machine.
        secret_env: Variables that hold the secret, ``whsec_…``; two while it is replaced.
        allow_private: Whether it may be an address that is not public.
        certificate: As for OTLP.
        timeout: Seconds that one request may take.
    """

    kind: Literal["webhook"]
    url: str
    secret_env: Annotated[tuple[str, ...], Field(min_length=1, max_length=2)]
    allow_private: bool = False
    certificate: Path | None = None
    # an event is a request; Standard Webhooks recommends 15 to 30 s
    timeout: Annotated[float, Field(gt=0, le=_LONGEST_REQUEST)] = 15.0

    @field_validator("url")
    @classmethod
    def _sound_address(cls, value: str) -> str:
        found = _sound_url(value, ("http", "https"))
        parts = urlsplit(found)
        if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
            raise ValueError("https:// is needed: the event would be readable on the way")
        return found


Settings = FileSettings | OtlpSettings | WebhookSettings
_KINDS: Final[dict[str, type[Settings]]] = {
    "file": FileSettings,
    "otlp": OtlpSettings,
    "webhook": WebhookSettings,
}


def read_settings(path: Path) -> dict[str, Settings]:
    """Read the streams of a file.

    Args:
        path: TOML, a table ``[streams.NAME]`` for each.

    Returns:
        Settings by name.

    Raises:
        ConfigurationError: The file cannot be read, or a setting is missing or wrong; the message
            names it.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: is not TOML: {error}") from None
    streams = document.pop("streams", None)
    if document:
        raise ConfigurationError(f"{path}: {next(iter(document))} is not a setting of streams")
    if not isinstance(streams, dict) or not streams:
        raise ConfigurationError(f"{path}: there is no stream: write a table [streams.NAME]")
    found = {name: _settings(path, name, table) for name, table in streams.items()}
    _refuse_shared_files(path, found)
    return found


def secret(stream: str, setting: str, variable: str) -> str:
    """Read a secret from the environment.

    Raises:
        ConfigurationError: It is missing or empty.
    """
    value = os.environ.get(variable, "").strip()
    if not value:
        raise ConfigurationError(
            f"streams.{stream}.{setting}: the variable {variable} is not set, or empty"
        )
    if not _SECRET.fullmatch(value):
        raise ConfigurationError(
            f"streams.{stream}.{setting}: the variable {variable} holds a character that no secret "
            "has here: visible ASCII alone, without spaces"
        )
    return value


def described(settings: Settings) -> dict[str, Any]:
    """The settings as stored in the database: names of variables, no secrets."""
    return settings.model_dump(mode="json", exclude={"batch", "timeout"}, exclude_none=True)


def _settings(path: Path, name: str, table: object) -> Settings:
    where = f"{path}: streams.{name}"
    if not NAME.fullmatch(name):
        raise ConfigurationError(
            f"{where}: a stream's name has a-z, 0-9, . _ - and at most 63 characters"
        )
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"{where}: is not a table: write [streams.{name}]")
    kind = _KINDS.get(str(table.get("kind")))
    if kind is None:
        reason = f"{table['kind']!r} is not a destination" if "kind" in table else "is missing"
        raise ConfigurationError(f"{where}.kind: {reason}: one of {', '.join(_KINDS)}")
    try:
        return kind.model_validate(dict(table))
    except ValidationError as error:
        raise ConfigurationError(
            "; ".join(f"{where}.{_fault(fault)}" for fault in error.errors())
        ) from None


def _fault(fault: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in fault["loc"])
    reason = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        reason = "there is no such setting for this kind"
    elif fault["type"] == "missing":
        reason = "is missing"
    return f"{place}: {reason}" if place else reason


def _sound_url(value: str, schemes: tuple[str, ...]) -> str:
    if not _IN_URL.fullmatch(value.strip()):
        raise ValueError("a URL has no spaces, and nothing that cannot be seen")
    try:
        parts = urlsplit(value.strip())
        _ = parts.port
    except ValueError:
        raise ValueError("this is not a URL") from None
    if parts.scheme not in schemes or not parts.hostname:
        raise ValueError(f"a URL with {' or '.join(f'{one}://' for one in schemes)} and a host")
    if parts.username is not None or parts.fragment:
        raise ValueError("user, password and fragment have no place in it, because it is logged")
    return value.strip()


def _refuse_shared_files(path: Path, found: Mapping[str, Settings]) -> None:
    """Refuse two streams with one file: each would cut the other's lines."""
    taken: dict[Path, str] = {}
    for name, settings in found.items():
        if isinstance(settings, FileSettings):
            # also where it is reached another way
            place = settings.path.resolve()
            if place in taken:
                raise ConfigurationError(
                    f"{path}: streams.{name}.path: stream {taken[place]} writes to that file"
                )
            taken[place] = name
