"""The redactor: one immutable object per configuration, safe to share between threads."""

from __future__ import annotations

import functools
import logging
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec
import re2

from otel_audit._util.ratelimited_log import log_limited
from otel_audit._util.text import storable
from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError
from otel_audit.redaction.annotations import Mark, Marked
from otel_audit.redaction.budget import PER_SEARCHED, Limits, WorkBudget
from otel_audit.redaction.hashing import KeyedHash
from otel_audit.redaction.json_prefilter import is_clean, is_clean_json
from otel_audit.redaction.json_values import NotUnderstoodError
from otel_audit.redaction.names import CLEAR, HEADERS, NameRules
from otel_audit.redaction.number_spelling import encode, parse_exact
from otel_audit.redaction.path_rules import path_rules
from otel_audit.redaction.placeholders import REDACTED, WITHHELD, WITHHELD_FOR_WORK
from otel_audit.redaction.prefilter import (
    Prefilter,
    is_plain,
    is_plain_path,
    prefilter,
)
from otel_audit.redaction.secret_urls import without_random_segments
from otel_audit.redaction.text import TextRules
from otel_audit.redaction.urls import redact_login, redact_path, redact_query
from otel_audit.redaction.walker import (
    OMITTED,
    Finding,
    Mode,
    RedactionRules,
    Walk,
    parse_json,
)
from otel_audit.setting_values import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

_log: Final = logging.getLogger("otel_audit.redaction")
_SANITIZE: Final = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS"
_WITHHELD_FOR_WORK_JSON: Final = encode(WITHHELD_FOR_WORK)

_DOCUMENT: Final = 10
"""Units of work that a document costs however small it is; see `otel_audit.redaction.budget`."""

_ORDINARY: Final = frozenset({b"accept", b"content-length", b"content-type", b"origin"})
_ORDINARY_LENGTH: Final = 256
"""Characters of a header's line that is remembered as it is shown."""
_LONGEST_NAME: Final = 4_096
"""Characters of a name that is also read as a path; a longer one is read as a text only."""

_URLS: Final = frozenset({"referer", "location", "content-location"})

_word_at: Final = re.compile(r"(?:[A-Za-z_.-]{1,32}|[0-9]{1,5})(?![^/{}])").match

_decode: Final = msgspec.json.Decoder().decode


class Redactor:
    """Takes out of data what must not be stored.

    No method raises, and none changes its argument: what cannot be understood, or lies beyond a
    bound, is replaced by ``[WITHHELD]``.
    """

    def __init__(  # noqa: PLR0913 - one argument a setting
        self,
        *,
        fields: Iterable[str] = (),
        allow: Iterable[str] = (),
        paths: Iterable[str] = (),
        rules_off: Iterable[str] = (),
        emails: bool = False,
        mode: Mode = "replace",
        keyed_hash: KeyedHash | None = None,
        limits: Limits | None = None,
        headers: Iterable[str] = (),
        on_error: Callable[[], None] | None = None,
    ) -> None:
        """Compile the rules.

        Args:
            fields: Names or patterns to redact in addition to the built-in ones.
            allow: Names or patterns that are not sensitive.
            paths: Path rules, such as ``customer.*.iban``.
            rules_off: Value rules not to apply: ``card``, ``ssn``, ``iban``.
            emails: Whether e-mail addresses are removed.
            mode: What becomes of a value: replaced, left out (where it has a name; else
                replaced), or replaced by its keyed hash.
            keyed_hash: The key for hashes.
            limits: How much is looked at.
            headers: Regular expressions; a header whose name has a match is redacted.
            on_error: Called with each value that was withheld because redacting it failed.

        Raises:
            ConfigurationError: One of ``headers`` is not a regular expression.
        """
        self._on_error = on_error or _ignore_error
        self._header_pattern = _header_pattern([pattern for pattern in headers if pattern.strip()])
        names = NameRules(fields, allow)
        self._rules = RedactionRules(
            names=names,
            paths=path_rules(paths),
            text=TextRules(names, off=rules_off, emails=emails),
            scan=Prefilter(names.added, emails=emails),
            hash=keyed_hash or KeyedHash(),
            mode=mode,
            limits=limits or Limits(),
        )
        # each request says the same of itself
        self._phrases = functools.lru_cache(maxsize=1024)(self.text)
        self._ordinary_line = functools.lru_cache(maxsize=512)(self._line)

    @classmethod
    def from_config(cls, config: AuditConfig, on_error: Callable[[], None] | None = None) -> Self:
        """Make the redactor that the settings describe.

        Args:
            config: The settings.
            on_error: Called with each value that was withheld because redacting it failed.

        Returns:
            The redactor.

        Raises:
            ConfigurationError: The key's file cannot be read, or hashing is asked for without a
                key.
        """
        keyed_hash = KeyedHash.from_config(config)
        if config.redact_mode == "hmac" and not keyed_hash:
            raise ConfigurationError(
                f"{PREFIX}REDACT_MODE is hmac: set {PREFIX}HMAC_KEY or {PREFIX}HMAC_KEY_FILE"
            )
        return cls(
            fields=config.redact_fields,
            allow=config.redact_allow,
            paths=config.redact_paths,
            rules_off=config.redact_rules_off,
            emails=config.redact_emails,
            mode=config.redact_mode,
            keyed_hash=keyed_hash,
            # decoded and spelled as JSON, a byte of a body can have several characters
            limits=Limits(length=max(Limits().length, 4 * config.body_limit)),
            headers=os.environ.get(_SANITIZE, "").split(","),
            on_error=on_error,
        )

    def document(self, value: Any, work: WorkBudget | None = None, *, parsed: bool = False) -> Any:
        """Redact any value.

        Args:
            value: JSON's types, and what Python programs keep in their place: dates, numbers,
                bytes, enums, data classes, Pydantic and msgspec models, at any depth.
            work: What this may cost, together with what else shares it; by the size if None.
            parsed: Whether it was parsed for this, so that it need not be copied.

        Returns:
            A redacted copy of JSON's types only. What would cost more is ``[WITHHELD: work]``.
        """
        return self.guarded(lambda: self._document(value, work, parsed=parsed))

    def field(
        self, name: str, value: Any, *, mark: Mark | None = None, work: WorkBudget | None = None
    ) -> Any:
        """Redact a named value: a column, a parameter, an entry of metadata, a header.

        Args:
            name: Its name; None stays None under any name.
            value: As for `document`.
            mark: What the application says of the field, if it says anything.
            work: As for `document`.

        Returns:
            The redacted value, of JSON's types only. What is to be left out is ``[REDACTED]``
            here, for the name is the caller's.
        """
        if mark is None and self._is_clear(name):
            if is_plain(value):
                return value
            if type(value) is dict or type(value) is list:
                return self.document(value, work)
        marked = value if mark is None else Marked(mark, value)
        walk = Walk(self._rules, work=work)
        return self.guarded(lambda: _kept(walk.named(name, marked, (None, name))))

    def clean_copy(self, value: Any, longest: int | None = None) -> tuple[Any, int] | None:
        """Copy a document in which nothing could be redacted, whatever its name.

        Args:
            value: Any value.
            longest: Bytes of JSON text above which no copy is made.

        Returns:
            The copy, of JSON's types only, and the bytes of its JSON text; None if one look
            does not show that it is clean.
        """
        try:
            text = encode(value)
            most = self._rules.limits.length if longest is None else longest
            if len(text) > most or not is_clean(text, self._rules):
                return None
            copy = _decode(text)
            # what the encoder spells in its own way, such as bytes in base64, was not looked at
            return (copy, len(text)) if copy == value else None
        except Exception:  # noqa: BLE001 - the walker finds the cause
            return None

    def _is_clear(self, name: str) -> bool:
        return not self._rules.paths and self._rules.names.judge(name) is CLEAR

    def is_sensitive(self, name: str) -> bool:
        """Return whether a name alone says that its value must not be stored."""
        verdict = self._rules.names.judge(name)
        return verdict.rule is not None and not (verdict.numbers_pass or verdict.opaque)

    def text(self, text: str, work: WorkBudget | None = None) -> str:
        """Redact free text by the value rules: messages, URLs, user agents, JSON as text.

        Args:
            text: The text.
            work: As for `document`.
        """
        if is_plain(text):
            return text
        walk = Walk(self._rules, work=work)
        return self._guarded_text(lambda: str(_kept(walk.value(text, None))))

    def identifier(self, text: str, work: WorkBudget | None = None) -> str:
        """Redact the id of an actor, a tenant or a target by what is a credential.

        An id of 16 digits is an id, whether or not a card could have that number; only one that
        is written in groups, as on a card, is removed.

        Args:
            text: The id.
            work: As for `document`.
        """
        if is_plain(text):
            return text
        if text.lstrip()[:1] in ("{", "[", '"'):
            return self.text(text, work)
        return self._guarded_text(lambda: self._rules.identifier(text, work))

    def phrase(self, text: str) -> str:
        """Redact a text that occurs often; it is cached, so give it nothing long or personal."""
        return self._phrases(text)

    def name(self, name: str, work: WorkBudget | None = None) -> str:
        """Redact what a program calls something: `token:create` is a name, and assigns nothing.

        Args:
            name: The name.
            work: As for `document`.
        """
        if ":" in name and len(name) <= _LONGEST_NAME and _joins_words(name):
            spelled = name.replace(":", "/")
            if self.text(spelled, work) == spelled:
                return name
        return self.text(name, work)

    def query(self, query_string: str, work: WorkBudget | None = None) -> str:
        """Redact a URL query; names are matched decoded, the result is a valid query.

        Args:
            query_string: Without the question mark.
            work: As for `document`.
        """
        if len(query_string) > self._rules.limits.length:
            return "%5BWITHHELD%5D"
        return self._guarded_text(
            lambda: redact_query(self._rules, query_string, work), "%5BWITHHELD%5D"
        )

    def path(self, path: str, work: WorkBudget | None = None) -> str:
        """Redact a URL path by the value rules, segment by segment.

        Args:
            path: As requested.
            work: As for `document`.
        """
        if is_plain_path(path):
            return path
        return self._guarded_text(lambda: redact_path(self._rules, path, work))

    def headers(
        self,
        pairs: Iterable[tuple[bytes, bytes]],
        keep: Collection[str],
        work: WorkBudget | Callable[[], WorkBudget] | None = None,
    ) -> dict[str, str]:
        """Choose and redact headers.

        Args:
            pairs: Names and values as ASGI gives them.
            keep: The names to keep, in lower case.
            work: What all of them may cost together; each by its size if None.

        Returns:
            Lower-case names to values, repeated ones joined with ``", "``. Those that carry
            credentials by their nature are redacted also if they are kept.
        """
        found: dict[str, str] = {}
        ordinary = self._ordinary_line
        for raw_name, raw_value in pairs:
            if raw_name in _ORDINARY and len(raw_value) <= _ORDINARY_LENGTH:
                name, value = ordinary(raw_name, raw_value)
            else:
                if callable(work):
                    work = work()
                name, value = self._line(raw_name, raw_value, work)
            if name in keep and value is not None:
                found[name] = f"{found[name]}, {value}" if name in found else value
        return found

    def _line(
        self, raw_name: bytes, raw_value: bytes, work: WorkBudget | None = None
    ) -> tuple[str, str | None]:
        name = raw_name.decode("latin-1").lower()
        return name, self._header(name, raw_value.decode("latin-1"), work)

    def _header(self, name: str, value: str, work: WorkBudget | None = None) -> str | None:
        pattern = self._header_pattern
        if name in HEADERS or (pattern is not None and pattern.search(name) is not None):
            return None if self._rules.mode == "omit" else self._rules.replacement(value)
        walk = Walk(self._rules, work=work)
        result = self.guarded(lambda: walk.named(name, value, (None, name)))
        if result is OMITTED:
            return None
        text = str(result)
        if "@" in text and (name in _URLS or name == "origin"):
            text = str(self.guarded(lambda: redact_login(walk, str(result))))
        return without_random_segments(text) if name in _URLS else text

    def json_or_none(self, raw: bytes, work: WorkBudget | None = None) -> bytes | None:
        """Redact a JSON document.

        Args:
            raw: JSON text in UTF-8.
            work: What it may cost; None: as much as its length allows.

        Returns:
            Redacted JSON text in UTF-8; the same bytes where there was nothing to take out. None
            if it is not JSON, or beyond the bounds.
        """
        if len(raw) > self._rules.limits.length:
            return None
        shared = WorkBudget(len(raw)) if work is None else work
        found: bytes | None = self.guarded(lambda: self._json(raw, shared), None)
        return found

    def _json(self, raw: bytes, work: WorkBudget) -> bytes | None:
        work.left -= _DOCUMENT + len(raw) * PER_SEARCHED
        if work.left < 0:
            work.withheld = True
            return _WITHHELD_FOR_WORK_JSON
        try:
            # lone surrogates are let in, as handlers' parsers do, but are not kept as they are
            if not _is_utf8(raw):
                raw.decode("utf-8", "surrogatepass")
            elif is_clean_json(raw, self._rules):
                return raw
            parsed = parse_exact(raw)
        except (NotUnderstoodError, UnicodeDecodeError):
            return None
        return encode(self._document(parsed, work, parsed=True))

    def _document(self, value: Any, work: WorkBudget | None, *, parsed: bool = False) -> Any:
        seen = prefilter(value, self._rules.scan, self._within(work))
        if seen.names_clean and seen.values_clean and not self._rules.paths:
            return value if parsed else parse_json(encode(value))
        values_clean = seen.values_clean and not self._rules.paths
        walk = Walk(self._rules, values_clean=values_clean, work=work)
        return _kept(walk.value(value, None))

    def _within(self, work: WorkBudget | None) -> Limits:
        """Bound the prefilter by what is left of the work."""
        limits = self._rules.limits
        if work is None or work.rate:
            return limits
        left = max(int(work.left), 0)
        return replace(limits, nodes=min(limits.nodes, left), length=min(limits.length, 16 * left))

    def is_clean_json(self, raw: bytes) -> bool:
        """Return, without building its values, whether a text is JSON that no rule touches.

        Args:
            raw: The text, valid UTF-8.
        """
        return len(raw) <= self._rules.limits.length and is_clean_json(raw, self._rules)

    def hashed(self, value: Any) -> str:
        """Hash a value so that equal values can be found without being known.

        Returns:
            ``hmac:<key id>:<hex>`` by HMAC-SHA-256, ``[REDACTED]`` where there is no key.
        """
        return self._rules.hash.of(value)

    def explain(self, value: Any) -> list[Finding]:
        """Say what would be removed of a document, and by which rule; never a value."""
        findings: list[Finding] = []
        self.guarded(lambda: Walk(self._rules, findings).value(value, None))
        return findings

    def guarded(self, redact: Callable[[], Any], instead: Any = WITHHELD) -> Any:
        """Withhold a value that cannot be read, by an error of ours or of the application's object.

        Args:
            redact: What may fail; then that is counted and logged.
            instead: What is returned then.
        """
        try:
            return redact()
        except Exception as error:  # noqa: BLE001 - nothing of ours may reach the application
            self._on_error()
            log_limited(_log, "redaction", "a value was withheld: redaction failed", error=error)
            return instead

    def _guarded_text(self, redact: Callable[[], str], instead: str = WITHHELD) -> str:
        found = self.guarded(redact, instead)
        return found if isinstance(found, str) else storable(str(found))


def _joins_words(name: str) -> bool:
    """Return whether words, or a port, follow each colon, and nothing like a value."""
    return all(_word_at(piece) is not None for piece in name.split(":")[1:])


def _ignore_error() -> None:
    """Count nothing."""


def _kept(result: Any) -> Any:
    return REDACTED if result is OMITTED else result


def _header_pattern(patterns: list[str]) -> re2.Pattern | None:
    if not patterns:
        return None
    try:
        return re2.compile("|".join(f"(?i:{pattern.strip()})" for pattern in patterns))
    except re2.error as error:
        raise ConfigurationError(f"{_SANITIZE}: not a regular expression: {error}") from None


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
