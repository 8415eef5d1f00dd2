"""Key rules: which names say by themselves that their value must not be stored."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import re2

if TYPE_CHECKING:
    from collections.abc import Iterable

# Sensitive wherever they stand in a name, whatever its style: `newPassword`, `DB_PASSWD_OLD`.
PHRASES: Final = (
    "session_id", "access_key_id", "secret_id",
    "password", "passwd", "passphrase", "passcode", "pass_word", "pwd", "passwort", "kennwort",
    "wachtwoord", "contrasena", "mot_de_passe", "secret", "token", "credential",
    "authorization", "api_key", "access_key", "private_key", "priv_key", "auth_key",
    "encryption_key", "decryption_key", "signing_key", "hmac_key", "master_key", "shared_key",
    "ssh_key", "account_key", "storage_key", "deploy_key", "service_key", "function_key",
    "license_key", "webhook_key", "credit_card", "debit_card", "card_number", "card_num",
    "cc_number", "cc_num", "cvv", "security_code", "social_security", "bank_account",
    "routing_number", "passport_number", "passport_no", "session_key", "phpsessid",
    "aspsessionid", "connection_string", "conn_string", "seed_phrase", "mnemonic_phrase",
    "recovery_code", "backup_code", "one_time_code", "verification_code", "mfa_code",
    "two_factor_code", "security_answer", "magic_link",
)  # fmt: skip

# Sensitive as one word of a name: `user_otp`, `csrfToken`, but not `hotpot`.
WORDS: Final = (
    "cookie", "cookies", "csrf", "cvc", "cvc2", "cvn", "hotp", "iban", "jwt", "otp", "ssn", "totp",
    "xsrf",
)  # fmt: skip

_PASS_OF: Final = (
    "account", "admin", "amqp", "auth", "basic", "client", "confirm", "current", "database", "db",
    "email", "ftp", "host", "http", "key", "ldap", "login", "mail", "mongo", "my", "mysql", "new",
    "old", "pg", "postgres", "proxy", "rabbit", "redis", "root", "server", "sftp", "smtp", "ssh",
    "sudo", "user", "usr", "wifi",
)  # fmt: skip
_PIN_OF: Final = (
    "account", "atm", "card", "confirm", "current", "login", "m", "new", "old", "security", "t",
    "transaction", "upi", "user", "wallet",
)  # fmt: skip

# Sensitive only as the whole name, or as the last part of a path of names (`user[auth]`).
EXACT: Final = (
    "pass", "bearer", "pin", "pin_code", "pin_number", "pin_hash", "pin_block", "auth", "x_auth",
    "basic_auth", "http_auth", "proxy_auth", "auth_code", "card_no", "cc_no", "sig",
    "connect_sid", "x_amz_signature", "x_goog_signature", "code_verifier",
    "client_assertion", "assertion", "saml_response", "oauth_verifier", "oauth_signature",
    *(f"{owner}_pass" for owner in _PASS_OF),
    *(f"{owner}_pin" for owner in _PIN_OF),
)  # fmt: skip

# Other words that contain a phrase.
_UNRELATED: Final = (
    "secretar", "secretion", "secretory", "secretsanta", "tokeniz", "tokenis", "tokenomic",
    "passwordless", "credentialing", "nontoken", "forbearer", "pallbearer",
)  # fmt: skip

# A name that ends so tells something about the secret, not the secret.
_ABOUT: Final = frozenset({
    "accepted", "address", "age", "alg", "algorithm", "algorithms", "amount", "at", "attempts",
    "balance", "banner", "brand", "bucket", "budget", "category", "changed", "check", "checks",
    "complexity", "consent", "count", "country", "counts", "created", "date", "day", "days",
    "decimals", "description", "disabled", "enabled", "endpoint", "error", "errors", "exp",
    "expiration", "expired", "expires", "expiry", "failures", "format", "formats", "holder",
    "id", "ids", "in", "issuer", "kind", "label", "last4", "len", "length", "lengths",
    "lifetime", "limit", "match", "matched", "matches", "method", "methods", "mode", "month",
    "name", "names", "network", "policies", "policy", "present", "price", "provided",
    "provider", "quota", "rate", "ref", "required", "requirements", "result", "revoked",
    "rotated", "rotation", "rule", "rules", "scheme", "scope", "scopes", "score", "server",
    "servers", "size", "source", "standard", "status", "strength", "supply", "supported",
    "symbol", "time", "timestamp", "ttl", "type", "types", "updated", "usage", "valid",
    "validity", "verified", "version", "window", "year", "years",
})  # fmt: skip
_ABOUT_TOGETHER: Final = _ABOUT | {
    *(f"{verb}{end}" for verb in ("changed", "created", "expired", "expires", "issued", "reset",
                                  "revoked", "rotated", "set", "updated", "used")
      for end in ("at", "on", "date", "time")),
    "expiresin", "lastfour", "lastdigits", "lastused", "lastchanged",
}  # fmt: skip
_WHOLLY_ABOUT: Final = frozenset({
    "tokenurl", "tokenuri", "tokenendpoint", "authorizationurl", "authorizationuri",
    "authorizationendpoint", "tokenendpointauthmethod", "tokenendpointauthmethodssupported",
    "creditcardlastfour", "creditcardlastdigits", "cardnumberlastfour",
})  # fmt: skip

# A name that begins so counts or asserts; its value is believed only when it is a number or bool.
_ASSERTS: Final = frozenset({
    "accept", "accepts", "allow", "allows", "avg", "cached", "can", "completion", "count",
    "disable", "enable", "force", "had", "has", "have", "hide", "input", "is", "max", "min", "must",
    "n", "need", "needs", "no", "num", "number", "output", "prompt", "reasoning", "remaining",
    "require", "required", "requires", "reset", "save", "should", "show", "supports", "total",
    "use", "used", "uses", "using", "with", "without",
})  # fmt: skip
_COUNTABLE: Final = frozenset({"tokens", "secrets", "passwords", "credentials", "cookies"})

_CACHED_NAME: Final = 128
_LONGEST_NAME: Final = 1_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a name says of its value.

    Attributes:
        rule: The rule that makes it sensitive, for example ``name:password``; None if none does.
        numbers_pass: Whether a number or a bool under it is innocent (``max_tokens``).
        allowed: Whether the application calls it innocent, so that a value that merely looks
            like a card or account number stays readable.
    """

    rule: str | None = None
    numbers_pass: bool = False
    allowed: bool = False


CLEAR: Final = Verdict()
_ALLOWED: Final = Verdict(allowed=True)
_TOO_LONG: Final = Verdict(rule="name:too_long")


def squash(name: str) -> str:
    """Reduce a name to what all of its styles share: letters and digits in lower case."""
    if not name.isascii():
        name = unicodedata.normalize("NFKD", name).casefold()
        name = "".join(letter for letter in name if letter.isascii())
    return "".join(letter for letter in name.lower() if letter.isalnum())


def split_words(name: str) -> list[str]:
    """Split a name of any style into its words, in lower case: ``userOTPCode`` has three."""
    if not name.isascii():
        name = unicodedata.normalize("NFKD", name)
    spaced: list[str] = []
    for place, letter in enumerate(name):
        before = name[place - 1] if place else ""
        after = name[place + 1 : place + 2]
        if not (letter.isascii() and letter.isalnum()):
            spaced.append(" ")
            continue
        if letter.isupper() and (before.islower() or before.isdigit() or after.islower()):
            spaced.append(" ")
        spaced.append(letter.lower())
    return "".join(spaced).split()


class NameRules:
    """The built-in key rules, and the names an application adds or allows.

    A name with ``*`` is a pattern over the name in snake case. What is named both to redact and
    to allow is redacted.
    """

    def __init__(self, redact: Iterable[str] = (), allow: Iterable[str] = ()) -> None:
        """Compile the rules.

        Args:
            redact: Names or patterns that are sensitive beside the built-in ones.
            allow: Names or patterns that are innocent after all.
        """
        self.added = tuple(name for name in redact if name.strip())
        self._redact = _Matcher(self.added)
        self._allow = _Matcher(name for name in allow if name.strip())
        self._judge = lru_cache(maxsize=4_096)(self._decide)

    def judge(self, name: str) -> Verdict:
        """Say what a name tells of its value; cheap for a name seen before."""
        if len(name) <= _CACHED_NAME:
            return self._judge(name)
        return self._decide(name) if len(name) <= _LONGEST_NAME else _TOO_LONG

    def _decide(self, name: str) -> Verdict:
        squashed = squash(name)
        snake = "_".join(split_words(name))
        if self._redact.matches(squashed, snake):
            return Verdict(rule="name:configured")
        if self._allow.matches(squashed, snake):
            return _ALLOWED
        return _built_in(name, squashed)


def _built_in(name: str, squashed: str) -> Verdict:
    last_part = squash(_last_part(name))
    for candidate in (squashed, last_part):
        if candidate in _EXACT_SQUASHED:
            return Verdict(rule=f"name:{candidate}")
    words = split_words(name)
    found = _phrase_in(squashed)
    if found is None:
        found = next((word for word in words if word in _WORD_SET), None)
    if found is None or squashed in _WHOLLY_ABOUT or _is_about(words, squashed, found):
        return CLEAR
    numbers_pass = (
        not _ASSERTS.isdisjoint((words[0], words[-1], squashed.partition(found)[0]))
        or words[-1] in _COUNTABLE
    )
    return Verdict(rule=f"name:{found}", numbers_pass=numbers_pass)


def _is_about(words: list[str], squashed: str, found: str) -> bool:
    tail = squashed.rpartition(found)[2]
    if words[-1] in _ABOUT and tail.endswith(words[-1]):
        return True
    if words[-2:] in (["last", "4"], ["last", "four"], ["last", "digits"]):
        return True
    return tail in _ABOUT_TOGETHER or tail.removeprefix("s") in _ABOUT_TOGETHER


def _phrase_in(squashed: str) -> str | None:
    for unrelated in _UNRELATED:
        if unrelated in squashed:
            squashed = squashed.replace(unrelated, "0")
    return next((phrase for phrase in _PHRASES_SQUASHED if phrase in squashed), None)


def _last_part(name: str) -> str:
    cut = name.rstrip("[]")
    for separator in "[./:":
        cut = cut.rpartition(separator)[2]
    return cut


class _Matcher:
    """Names compared in every style, patterns compared in snake case."""

    def __init__(self, names: Iterable[str]) -> None:
        chosen = list(names)
        self._plain = frozenset(squash(name) for name in chosen if "*" not in name)
        globs = "|".join(_glob(name) for name in chosen if "*" in name)
        self._globs = re2.compile(globs) if globs else None

    def matches(self, squashed: str, snake: str) -> bool:
        if squashed in self._plain and squashed:
            return True
        globs = self._globs
        return globs is not None and any(globs.fullmatch(form) for form in (snake, squashed))


def _glob(pattern: str) -> str:
    parts = ("_".join(split_words(part)) for part in pattern.split("*"))
    edged = []
    for part, written in zip(parts, pattern.split("*"), strict=True):
        before = "_" if written[:1] in ("_", "-", ".", " ") else ""
        after = "_" if len(written) > 1 and written[-1:] in ("_", "-", ".", " ") else ""
        edged.append(re2.escape(f"{before}{part}{after}"))
    return ".*".join(edged)


_PHRASES_SQUASHED: Final = tuple(dict.fromkeys(squash(phrase) for phrase in PHRASES))
_EXACT_SQUASHED: Final = frozenset(squash(name) for name in EXACT)
_WORD_SET: Final = frozenset(WORDS)
