"""From settings to a verifier: what contradicts itself or is unsafe is refused at start-up.

`keys.py` needs python-jose, an optional package, so it is imported within functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from otel_audit._util.loopback import is_loopback
from otel_audit.config import AuditConfig, JwtIssuer
from otel_audit.errors import ConfigurationError, MissingExtraError
from otel_audit.identity.jwt.jwks import LARGEST, KeySet, fetch
from otel_audit.identity.jwt.token import Header, TokenError
from otel_audit.identity.jwt.verifier import (
    FixedKey,
    Issuer,
    JwtVerifier,
    KeySource,
    TokenReader,
    UnverifiedReader,
)
from otel_audit.setting_values import PREFIX, check_words

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from jose.backends.base import Key


_NEED_A_KEY: Final = ("algorithms", "audience", "issuer")


@dataclass(frozen=True, slots=True)
class FetchedKeys:
    """The keys of a JWK set; one that is missing has the set read again, at once."""

    keys: KeySet

    def generation(self) -> int:
        """Grows when the set changes; looked at for known tokens, too, so it is read in time."""
        self.keys.current()
        return self.keys.generation

    def find(self, header: Header) -> Key:
        """Choose the key by the token's ``kid``."""
        from otel_audit.identity.jwt.keys import choose_key

        try:
            return choose_key(self.keys.current(), header)
        except TokenError as error:
            if error.reason == "unknown_key":
                self.keys.ask_again(header.key_id)
            raise


def verifier_from_config(config: AuditConfig) -> TokenReader | None:
    """Read the settings.

    Returns:
        None when no setting says how tokens are verified.

    Raises:
        ConfigurationError: A setting is wrong, or two exclude each other; the message names
            them.
        MissingExtraError: python-jose is not installed.
    """
    issuers = _entries(config)
    if config.jwt_unverified_behind_gateway:
        if issuers:
            raise ConfigurationError(
                f"{PREFIX}JWT_UNVERIFIED_BEHIND_GATEWAY is true, and {issuers[0][0]} gives keys: "
                "either tokens are verified or they are not"
            )
        return UnverifiedReader(
            leeway=config.jwt_leeway, issuer=config.jwt_issuer, audience=config.jwt_audience
        )
    if not issuers:
        _refuse_settings_without_key(config)
        return None
    try:
        import otel_audit.identity.jwt.keys  # noqa: F401 - is it installed?
    except ImportError as error:
        raise MissingExtraError("verifying bearer tokens", "jwt") from error
    made = tuple(_issuer(name, entry, config) for name, entry in issuers)
    if len({issuer.name for issuer in made}) < len(made):
        raise ConfigurationError(f"{PREFIX}JWT_ISSUERS: two issuers have the same name")
    return JwtVerifier(made, leeway=config.jwt_leeway)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One issuer's settings, from either place."""

    issuer: str | None
    algorithms: tuple[str, ...]
    audience: tuple[str, ...]
    key: str | None
    jwks_url: str | None
    jwks_file: Path | None


def _entries(config: AuditConfig) -> list[tuple[str, _Entry]]:
    """List the issuers, each with the beginning of its settings' names."""
    found = []
    single = _Entry(
        config.jwt_issuer or None,
        config.jwt_algorithms,
        config.jwt_audience,
        None if config.jwt_key is None else config.jwt_key.get_secret_value(),
        config.jwt_jwks_url or None,
        config.jwt_jwks_file,
    )
    if single.key is not None or single.jwks_url or single.jwks_file:
        found.append((f"{PREFIX}JWT_", single))
    for place, one in enumerate(config.jwt_issuers):
        found.append((f"{PREFIX}JWT_ISSUERS[{place}].", _from_model(one)))
    return found


def _from_model(one: JwtIssuer) -> _Entry:
    key = None if one.key is None else one.key.get_secret_value()
    return _Entry(one.issuer, one.algorithms, one.audience, key, one.jwks_url, one.jwks_file)


def _refuse_settings_without_key(config: AuditConfig) -> None:
    for name in _NEED_A_KEY:
        if getattr(config, f"jwt_{name}"):
            raise ConfigurationError(
                f"{PREFIX}JWT_{name.upper()} is set, but no key: set {PREFIX}JWT_KEY, "
                f"{PREFIX}JWT_JWKS_URL or {PREFIX}JWT_JWKS_FILE"
            )


def _issuer(prefix: str, entry: _Entry, config: AuditConfig) -> Issuer:
    def named(setting: str) -> str:
        return prefix + (setting.upper() if prefix.endswith("_") else setting)

    given = [
        name
        for name, value in (
            ("key", entry.key),
            ("jwks_url", entry.jwks_url),
            ("jwks_file", entry.jwks_file),
        )
        if value is not None
    ]
    if len(given) != 1:
        names = ", ".join(map(named, given or ("key", "jwks_url", "jwks_file")))
        raise ConfigurationError(f"{names}: exactly one of them says the keys of an issuer")
    algorithms = _algorithms(named("algorithms"), entry.algorithms)
    setting = named(given[0])
    keys: KeySource
    if entry.key is not None:
        keys = _fixed(setting, entry.key, algorithms)
    elif entry.jwks_file is not None:
        keys = _from_file(setting, entry.jwks_file, algorithms, config.jwt_jwks_refresh)
    else:
        keys = _from_url(setting, str(entry.jwks_url), algorithms, config)
    return Issuer(entry.issuer, algorithms, entry.audience, keys)


def _algorithms(setting: str, named: tuple[str, ...]) -> frozenset[str]:
    from otel_audit.identity.jwt.keys import ASYMMETRIC, SYMMETRIC

    found = frozenset(named)
    if not found:
        raise ConfigurationError(f"{setting}: name the accepted algorithms, for example RS256")
    check_words(setting, sorted(found), sorted(ASYMMETRIC | SYMMETRIC))
    if found & SYMMETRIC and found & ASYMMETRIC:
        raise ConfigurationError(
            f"{setting}: HS* beside others lets a public key be used as a secret; name one kind"
        )
    return found


def _fixed(setting: str, text: str, algorithms: frozenset[str]) -> FixedKey:
    from otel_audit.identity.jwt.keys import UnusableKeyError, static_key

    try:
        key = static_key(text, algorithms)
    except UnusableKeyError as error:
        raise ConfigurationError(f"{setting}: {error}") from None
    if not key.by_algorithm:
        raise ConfigurationError(f"{setting}: the key fits none of the accepted algorithms")
    return FixedKey(key)


def _from_file(setting: str, path: Path, algorithms: frozenset[str], refresh: float) -> FetchedKeys:
    from otel_audit.identity.jwt.keys import UnusableKeyError

    keys = _key_set(setting, partial(_read_file, path), algorithms, refresh)
    try:
        keys.load()
        usable = any(key.by_algorithm for key in keys.current())
    except (OSError, UnusableKeyError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigurationError(f"{setting}: {why}") from None
    if not usable:
        raise ConfigurationError(f"{setting}: no key in it fits the accepted algorithms")
    return FetchedKeys(keys)


def _from_url(
    setting: str, url: str, algorithms: frozenset[str], config: AuditConfig
) -> FetchedKeys:
    from otel_audit.identity.jwt.keys import SYMMETRIC

    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise ConfigurationError(f"{setting}: an https:// URL is needed")
    if parts.scheme == "http" and not (config.jwt_jwks_insecure_http or is_loopback(host)):
        raise ConfigurationError(
            f"{setting}: over plain HTTP anybody between could give their own keys; use https://, "
            f"or set {PREFIX}JWT_JWKS_INSECURE_HTTP=true"
        )
    if algorithms & SYMMETRIC:
        raise ConfigurationError(f"{setting}: HS* needs a secret, and what has a URL is none")
    keys = _key_set(setting, partial(fetch, url), algorithms, config.jwt_jwks_refresh)
    keys.ask_again()
    return FetchedKeys(keys)


def _key_set(
    setting: str, read: Callable[[], bytes], algorithms: frozenset[str], refresh: float
) -> KeySet:
    from otel_audit.identity.jwt.keys import read_key_set

    return KeySet(read, partial(read_key_set, algorithms=algorithms), refresh=refresh, name=setting)


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise OSError(0, "the file is too large")
    return text
