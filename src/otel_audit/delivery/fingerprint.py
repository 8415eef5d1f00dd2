"""The fingerprint of a destination: a digest that a spool may show, and its name; no secret."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from otel_audit._util.postgres_dsn import role_of
from otel_audit.config import AuditConfig

_HEX_DIGITS: Final = 16
"""64 bits: two destinations of one user practically never have the same digest by chance."""
_POSTGRES_PORT: Final = "5432"
_PORTS: Final = {"http": 80, "https": 443}
"""A URL's port where it names none."""
_TRACES_PATH: Final = "/v1/traces"


def destination_digest(config: AuditConfig) -> str:
    """Distinguish destinations, without revealing them.

    Of a store count its hosts, in whatever order, their ports, and the database's name; of an OTLP
    receiver its URL. User, password, headers and all other parameters may change. Names are not
    looked up: ``localhost`` and ``127.0.0.1`` are two destinations.

    Returns:
        16 hex digits of a SHA-256; empty where there is no destination, or none that can be read.
    """
    try:
        if config.exporter == "otlp" and config.otlp_endpoint:
            parts = _receiver(config.otlp_endpoint)
        elif config.exporter == "postgres" and config.asyncpg_dsn is not None:
            parts = _store(config.asyncpg_dsn)
        else:
            return ""
    except ValueError:  # the error comes when the connection is made
        return ""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:_HEX_DIGITS]


def destination_shown(config: AuditConfig) -> str:
    """Say for people where records go: no password, no header, no parameter, no path of a URL."""
    try:
        if config.exporter == "otlp" and config.otlp_endpoint:
            _, scheme, host, port, _ = _receiver(config.otlp_endpoint)
            return f"{scheme}://{host}:{port}"
        if config.exporter == "postgres" and config.asyncpg_dsn is not None:
            _, *addresses, database, service = _store(config.asyncpg_dsn)
            by = f" (service {service})" if service else ""
            role = role_of(config.asyncpg_dsn) or "the user of the system"
            return f"{_place(addresses, database)}{by} as {role}"
    except ValueError:  # the error comes when the connection is made
        return config.exporter
    return "the console" if config.exporter == "console" else "nowhere (exporter none)"


def _place(addresses: Sequence[str], database: str) -> str:
    """A store as a DSN; the directory of a Unix socket is a parameter, as it is no host."""
    places = [one.rsplit(" ", 1) for one in addresses if not one.startswith(" ")]
    if not any(host.startswith("/") for host, _ in places):
        hosts = ",".join(f"{host}:{port}" for host, port in places)
        return f"postgresql://{hosts or 'localhost'}/{database}"
    # one that was given percent-encoded before the path has its port with it
    named = [(*host.split(":", 1), port)[:2] for host, port in places]
    hosts = ",".join(host for host, _ in named)
    ports = ",".join(dict.fromkeys(port for _, port in named))
    other = "" if ports == _POSTGRES_PORT else f"&port={ports}"
    return f"postgresql:///{database}?host={hosts}{other}"


def _receiver(url: str) -> list[str]:
    parts = urlsplit(url.strip())
    port = parts.port or _PORTS.get(parts.scheme, 0)
    path = parts.path.rstrip("/").removesuffix(_TRACES_PATH)
    return ["otlp", parts.scheme, parts.hostname or "", str(port), path]


def _store(dsn: str) -> list[str]:
    """Read a DSN as asyncpg does: what it does not say is looked for in the environment."""
    parts = urlsplit(dsn)
    login, at, hosts = parts.netloc.partition("@")
    if not at:
        login, hosts = "", parts.netloc
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    environment = os.environ.get
    ports = query.get("port") or environment("PGPORT") or _POSTGRES_PORT
    named = unquote(hosts) or query.get("host") or environment("PGHOST") or ""
    database = (
        unquote(parts.path.removeprefix("/"))
        or query.get("dbname")
        or query.get("database")
        or environment("PGDATABASE")
        # the database of a login is called like it
        or unquote(login.partition(":")[0])
        or query.get("user")
        or environment("PGUSER")
        or ""
    )
    service = query.get("service") or environment("PGSERVICE") or ""
    return ["postgres", *sorted(set(_addresses(named, ports))), database, service]


def _addresses(hosts: str, ports: str) -> Iterator[str]:
    given = ports.split(",")
    for number, host in enumerate(hosts.split(",")):
        default = given[number] if 1 < len(given) > number else given[0]
        name, colon, port = host.rpartition(":")
        if host.startswith("/"):
            yield f"{host} {default}"
        elif colon and not host.endswith("]"):
            yield f"{name.lower()} {port or default}"
        else:
            yield f"{host.lower()} {default}"
