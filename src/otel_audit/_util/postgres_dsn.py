"""PostgreSQL connection strings as libpq, SQLAlchemy, Prisma and hosting services write them.

asyncpg hands every parameter that it does not know to the server, which then refuses the
connection. So each known parameter is either given its meaning here, or is refused by its name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

SCHEMES: Final = ("postgresql", "postgres")
_DRIVER: Final = re.compile(r"(postgres(?:ql)?)\+[a-z0-9_]+://")
"""SQLAlchemy names the driver in the scheme, such as ``postgresql+psycopg://``."""

_UNREADABLE: Final = (
    "it must look like postgresql://user:password@host:5432/database, special characters "
    "percent-encoded"
)
_UNENCODED: Final = (
    "user or password hold a character that must be percent-encoded: / is %2F, ? is %3F, # is %23, "
    "@ is %40, % is %25"
)
_SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SESSION_ATTRIBUTES: Final = (
    "any", "primary", "standby", "read-write", "read-only", "prefer-standby",
)  # fmt: skip
_FILES: Final = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_SYSTEM: Final = "system"
_HIGHEST_PORT: Final = 65_535
"""Ports have 16 bits."""
_YES: Final = ("true", "1", "yes", "on")
_NO: Final = ("false", "0", "no", "off")

_OURS: Final = frozenset({
    "host", "port", "dbname", "database", "user", "password", "passfile", "service", "sslmode",
    "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation",
    "ssl_min_protocol_version", "ssl_max_protocol_version", "target_session_attrs", "krbsrvname",
    "gsslib",
})  # fmt: skip
"""Parameters that asyncpg itself reads from a DSN."""

_WITHOUT_EFFECT: Final = frozenset({
    # Prisma's and other pools' sizes, and the schema of the application's own tables
    "connection_limit", "pool_timeout", "pool_size", "max_connection_lifetime",
    "max_idle_connection_lifetime", "single_use_connections", "schema", "socket_timeout",
    # how Supabase's integrations mark their strings
    "supa", "workaround",
    "fallback_application_name", "sslcompression",
})  # fmt: skip
"""Parameters without an effect on one of our connections."""

_ONLY: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "channel_binding": (
        ("disable", "prefer"),
        (
            "the driver (asyncpg) has no channel binding; take it out, and let sslmode=verify-full "
            "with sslrootcert=system make sure who the server is"
        ),
    ),
    "gssencmode": (("disable", "prefer"), "the driver (asyncpg) does not encrypt by GSSAPI"),
    "load_balance_hosts": (("disable",), "hosts are tried in their order"),
    "sslsni": (("1",), "the driver (asyncpg) always names the server"),
    "sslcertmode": (("allow",), "a certificate is sent where sslcert names one"),
    "gssdelegation": (("0",), "the driver (asyncpg) does not delegate credentials"),
    "client_encoding": (("utf8", "utf-8", "auto", "unicode"), "only UTF8 is spoken"),
    "min_protocol_version": (("3.0",), "the driver (asyncpg) speaks protocol 3.0"),
    "max_protocol_version": (("3.0", "3.2", "latest"), "the driver (asyncpg) speaks protocol 3.0"),
}
"""Parameters of which only these values are accepted, because they are done anyway."""

_REFUSED: Final = {
    "sslaccept": "use sslmode: strict is verify-full, accept_invalid_certs is require",
    "sslidentity": "name certificate and key in PEM by sslcert and sslkey",
    "hostaddr": "name the address as the host",
    "servicefile": "name the file in PGSERVICEFILE",
    "requirepeer": "the driver (asyncpg) does not check the peer",
    "require_auth": "the driver (asyncpg) does not refuse methods of authentication",
    "replication": "the audit store is not a replication connection",
    "sslkeylogfile": "set SSLKEYLOGFILE instead",
    "timeout": "set OTEL_AUDIT_CONNECT_TIMEOUT instead",
    "command_timeout": "statements have limits of their own",
    "async_fallback": "it means nothing here",
    "server_settings": "name each setting as a parameter of its own",
    "sslpasswordcommand": "give sslpassword instead",
}


@dataclass(slots=True)
class PostgresDsn:
    """A connection string, taken apart.

    Attributes:
        url: It as asyncpg takes it.
        is_pooled: It says that a pooler shares out connections by transaction.
        connect_timeout: Seconds that it allows for connecting, where it says.
        uses_system_certificates: Authorities are those of the system.
        files: Parameters that name files, with these.
        settings: Names of what is handed to the server as it is.
        keepalives: Socket options: ``keepalives`` and the like, each with its number.
    """

    url: str = ""
    is_pooled: bool = False
    connect_timeout: float | None = None
    uses_system_certificates: bool = False
    files: dict[str, str] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)
    keepalives: dict[str, int] = field(default_factory=dict)


def plain_dsn(dsn: str) -> str:
    """Turn SQLAlchemy's ``postgresql+asyncpg://`` and the like into ``postgresql://``."""
    # a blank at the end, as a file of secrets may have it, would be part of the database's name
    dsn = dsn.strip()
    found = _DRIVER.match(dsn)
    return f"postgresql://{dsn[found.end() :]}" if found else dsn


def role_of(dsn: str) -> str | None:
    """Name the role that logs in by a DSN, as asyncpg finds it; None: the user of the system.

    Args:
        dsn: As `plain_dsn` returns it.
    """
    parts = urlsplit(dsn)
    login, at, _ = parts.netloc.rpartition("@")
    named = unquote(login.partition(":")[0]) if at else ""
    return named or dict(parse_qsl(parts.query)).get("user") or os.environ.get("PGUSER") or None


def read_dsn(dsn: str) -> PostgresDsn:
    """Take a connection string apart.

    Args:
        dsn: ``postgresql://``, ``postgres://`` or with SQLAlchemy's name of a driver.

    Raises:
        ValueError: It is none, or has a parameter that cannot be followed; the message names the
            parameter, and shows no value.
    """
    try:
        parts = urlsplit(plain_dsn(dsn))
    except ValueError:  # the original message may quote parts of the password
        raise ValueError(_UNREADABLE) from None
    if _ends_too_early(parts):
        raise ValueError(_UNENCODED)
    if parts.fragment:
        raise ValueError(_UNREADABLE)
    if parts.scheme not in SCHEMES:
        raise ValueError(
            "a PostgreSQL DSN is needed, such as postgresql://user:password@host/database"
        )
    try:
        given = parse_qsl(parts.query, strict_parsing=True) if parts.query else []
    except ValueError:
        raise ValueError(
            "what stands after the question mark is not a list of name=value"
        ) from None
    parameters = dict(given)
    _refuse_unfit_ports(parts.netloc, parameters.get("port", ""))
    found = PostgresDsn()
    kept = {
        name: value for name, value in parameters.items() if _is_for_asyncpg(found, name, value)
    }
    _follow_ssl(found, kept, parameters)
    found.files |= {name: kept[name] for name in _FILES if kept.get(name)}
    query = urlencode(kept, quote_via=quote)
    found.url = f"postgresql://{parts.netloc}{parts.path}" + (f"?{query}" if query else "")
    return found


def _ends_too_early(parts: SplitResult) -> bool:
    """Whether a character within the password ended what stands before the host.

    Then the @ before the host stands behind that end, or there is one too many.
    """
    if "@" in parts.netloc:
        return parts.netloc.count("@") > 1
    port = parts.netloc.rpartition(":")[2] if ":" in parts.netloc else ""
    in_query = "@" in parts.query and ("=" not in parts.query or not (port or "0").isdigit())
    return "@" in parts.path or "@" in parts.fragment or in_query


def _refuse_unfit_ports(netloc: str, named: str) -> None:
    """Refuse ports that are not numbers, of one host or several."""
    hosts = unquote(netloc.rpartition("@")[2]).split(",")
    ports = [host.rpartition(":")[2] for host in hosts if ":" in host and not host.endswith("]")]
    for port in (*ports, *named.split(",")):
        if port and not (port.isascii() and port.isdigit() and int(port[:6]) <= _HIGHEST_PORT):
            raise ValueError(f"a port is a number from 1 to {_HIGHEST_PORT}")


def _is_for_asyncpg(found: PostgresDsn, name: str, value: str) -> bool:
    """Follow a parameter; whether asyncpg is to see it, too."""
    if name in _FOLLOWED:
        _FOLLOWED[name](found, name, value)
        return False
    if name in _WITHOUT_EFFECT or name == "ssl":
        return False
    if name in _ONLY:
        values, why = _ONLY[name]
        if value.lower() not in values:
            raise _refusal(name, why)
        return False
    if name in _REFUSED:
        raise _refusal(name, _REFUSED[name])
    if name == "target_session_attrs" and value not in _SESSION_ATTRIBUTES:
        raise _refusal(name, f"it is one of {', '.join(_SESSION_ATTRIBUTES)}")
    if name not in _OURS:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]{0,63}", name):
            raise ValueError("a parameter's name has characters that no parameter has")
        found.settings.append(name)
    return True


def _follow_ssl(found: PostgresDsn, kept: dict[str, str], given: dict[str, str]) -> None:
    """Follow ``ssl`` (SQLAlchemy's), ``sslmode`` and ``sslrootcert=system``."""
    wanted = given.get("ssl")
    if wanted is not None:
        if wanted in _SSL_MODES:
            kept.setdefault("sslmode", wanted)
        elif wanted.lower() in _NO:
            kept.setdefault("sslmode", "disable")
        elif wanted.lower() in _YES:
            kept.setdefault("sslmode", "verify-full")
            kept.setdefault("sslrootcert", _SYSTEM)
        else:
            raise _refusal("ssl", f"it is true, false, or one of {', '.join(_SSL_MODES)}")
    mode = kept.get("sslmode")
    if mode is not None and mode not in _SSL_MODES:
        raise _refusal("sslmode", f"it is one of {', '.join(_SSL_MODES)}")
    if kept.get("sslrootcert") == _SYSTEM:
        if mode not in (None, "verify-full"):
            raise _refusal("sslrootcert", "with the system's authorities sslmode is verify-full")
        # a context of our own takes the place of both
        del kept["sslrootcert"]
        kept.pop("sslmode", None)
        found.uses_system_certificates = True


def _note_pooler(found: PostgresDsn, name: str, value: str) -> None:
    if value.lower() not in (*_YES, *_NO):
        raise _refusal(name, "it is true or false")
    found.is_pooled = found.is_pooled or value.lower() in _YES


def _note_cache(found: PostgresDsn, name: str, value: str) -> None:
    """Without prepared statements: the request of a DSN for a pooler."""
    found.is_pooled = found.is_pooled or _number(name, value) == 0


def _note_timeout(found: PostgresDsn, name: str, value: str) -> None:
    # 0 is for ever, and one second is too short even for libpq, which makes it two
    found.connect_timeout = float(max(_number(name, value), 2)) if _number(name, value) else None


def _note_keepalive(found: PostgresDsn, name: str, value: str) -> None:
    found.keepalives[name] = _number(name, value)


_FOLLOWED: Final[dict[str, Callable[[PostgresDsn, str, str], None]]] = {
    "pgbouncer": _note_pooler,
    "statement_cache_size": _note_cache,
    "prepared_statement_cache_size": _note_cache,
    "connect_timeout": _note_timeout,
    "keepalives": _note_keepalive,
    "keepalives_idle": _note_keepalive,
    "keepalives_interval": _note_keepalive,
    "keepalives_count": _note_keepalive,
    "tcp_user_timeout": _note_keepalive,
}


def _number(name: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise _refusal(name, "it is a whole number")
    return int(value)


def _refusal(name: str, why: str) -> ValueError:
    return ValueError(f"parameter {name}: {why}")
