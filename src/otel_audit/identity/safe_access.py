"""Reading what others wrote: headers of a client, attributes of the application's objects.

Nothing here raises for what it reads, calls the database, or returns text that is unbounded or
holds control characters. Of a header that is there twice the first one counts, as it does for the
frameworks: what is recorded is what the application was given.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import importlib
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from otel_audit._util.text import CONTROLS
from otel_audit.config import Hook
from otel_audit.errors import ConfigurationError
from otel_audit.identity.mapped_objects import remembered, state_of_mapped
from otel_audit.record import key_text
from otel_audit.setting_values import PREFIX

if TYPE_CHECKING:
    from otel_audit.scope import AuditScope

LONGEST: Final = 256
"""Characters of an identifier, a name, or an address that are kept."""

AsgiScope = Mapping[str, Any]
"""An ASGI scope."""

_UNWANTED: Final = re.compile(f"{CONTROLS}+")
_ESCAPED: Final = re.compile(r"\\u\{|\A | \Z|[^!-~]")
_HEAD: Final = 176
"""Characters of a long identity that stand before its digest."""
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}")


def has_no_named_actor(asgi_scope: AsgiScope, audit_scope: AuditScope) -> bool:
    """Return whether the application has set no actor, in any place where it may set one.

    Only then may a token decide without the resolvers being asked that read these places. A new
    resolver of what the application sets needs its place here.

    Args:
        asgi_scope: The ASGI scope, as the application left it.
        audit_scope: The action's scope.

    Returns:
        False also for a state that is no plain dict: its resolver reads it, and reports what it
        cannot read.
    """
    state = asgi_scope.get("state")
    return (
        audit_scope.actor is None
        and asgi_scope.get("user") is None
        and type(state) is dict
        and "user" not in state
    )


def has_no_named_tenant(asgi_scope: AsgiScope, audit_scope: AuditScope) -> bool:
    """As `has_no_named_actor`, of the tenant."""
    state = asgi_scope.get("state")
    return (
        audit_scope.tenant is None
        and type(state) is dict
        and "tenant" not in state
        and "tenant_id" not in state
    )


def clean(text: str, limit: int = LONGEST) -> str:
    """Make text harmless: control characters and lone surrogates become spaces, the end is cut.

    Args:
        text: Anything.
        limit: Characters that are kept.
    """
    if type(text) is str and len(text) <= limit and text.isprintable():
        return text.strip()
    return _UNWANTED.sub(" ", text[: limit * 2]).strip()[:limit]


def exact(text: str) -> str:
    r"""Spell an identity so that no two of them are one, and none of them does harm.

    What cannot be printed, a space at either end included, becomes ``\u{a0}``: ``admin`` and
    ``admin`` with a no-break space are two users of the application, and so two actors. A text
    that looks like such an escape has its backslash escaped; a long one keeps its head, and its
    digest in the place of the rest. Names that are as usual stay as they are.

    Args:
        text: An id of an actor or a tenant, as the application has it.
    """
    if (
        type(text) is str
        and len(text) <= LONGEST
        and text.isprintable()
        and (not text or (text[0] != " " and text[-1] != " "))
        and "\\u{" not in text
    ):
        return text
    text = str.__str__(text)
    head = text[:LONGEST]
    found = _ESCAPED.sub(_escape, head)
    if len(head) == len(text) and len(found) <= LONGEST:
        return found
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{found[:_HEAD]}\\u{{+sha256:{digest}}}"


def _escape(found: re.Match[str]) -> str:
    one = found[0]
    if one == "\\u{":
        return "\\u{5c}u{"
    return one if one.isprintable() and one != " " else f"\\u{{{ord(one):x}}}"


def headers_by_name(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[bytes, bytes]:
    """Index headers: names in lower case to the first value of each.

    The last two indexes are kept, as each is asked several times for one request. A middleware may
    have put another header in the place of one: so the very pairs are compared.
    """
    global _indexes  # noqa: PLW0603 - replaced as a whole: any thread may
    given = tuple(headers)
    (first, found), (second, other) = _indexes
    # of an equal request the very pairs are kept: the next look at it meets the same objects, and
    # none of their bytes is compared again
    if first == given:
        if given and given[-1] is not first[-1]:
            _indexes = (given, found), (second, other)
        return found
    if second == given:
        if given and given[-1] is not second[-1]:
            _indexes = (given, other), (first, found)
        return other
    found = dict(given[::-1])
    if not b"".join(found).islower():
        # ASGI has names in lower case; not every server and test client does
        found = {name.lower(): value for name, value in given[::-1]}
    _indexes = (given, found), _indexes[0]
    return found


def has_header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bool:
    """Return whether a header is there; ``name`` in lower case."""
    found = dict(headers)
    return name in found or (
        not b"".join(found).islower() and any(key.lower() == name for key in found)
    )


_NO_INDEX: Final[tuple[tuple[tuple[bytes, bytes], ...], dict[bytes, bytes]]] = ((), {})
_indexes = _NO_INDEX, _NO_INDEX


def header_values(scope: AsgiScope, name: str) -> list[str]:
    """Return all values of a header, in order; ``name`` in any case."""
    headers = scope.get("headers") or ()
    wanted = _as_header(name)
    if wanted not in headers_by_name(headers):
        return []
    return [value.decode("latin-1") for key, value in headers if key.lower() == wanted]


def first_header(scope: AsgiScope, name: str) -> str | None:
    """Return the first value of a header, which is what frameworks give to the application."""
    value = headers_by_name(scope.get("headers") or ()).get(_as_header(name))
    return None if value is None else value.decode("latin-1")


def cookie_value(scope: AsgiScope, name: str) -> str | None:
    """Return a cookie's value as it was sent; of several the first one that is not empty."""
    pairs = (
        pair.strip().partition("=")
        for line in header_values(scope, "cookie")
        for pair in line.split(";")
    )
    return next((value.strip() for key, _, value in pairs if key.strip() == name and value), None)


# names come from settings, about ten of them
@functools.lru_cache(maxsize=64)
def _as_header(name: str) -> bytes:
    return name.lower().encode("latin-1", "replace")


def state_of(scope: AsgiScope) -> Mapping[str, Any]:
    """Return what ``request.state`` holds."""
    state = scope.get("state")
    if type(state) is dict or isinstance(state, Mapping):
        return state
    inner = getattr(state, "_state", None)
    return inner if isinstance(inner, Mapping) else {}


def peek(thing: object, name: str) -> object:
    """Read one attribute or key of the application's object; None if that fails.

    A mapped object of SQLAlchemy is read without its descriptors: those would load what has
    expired, a query that the application never made. Its last value is used instead.
    """
    if isinstance(thing, Mapping):
        return _quietly(lambda: thing.get(name))
    mapped = state_of_mapped(thing)
    if mapped is not None:
        loaded = vars(thing)
        return loaded[name] if name in loaded else _quietly(lambda: remembered(mapped, name))
    return _quietly(lambda: getattr(thing, name, None))


def primary_key(thing: object) -> str | None:
    """Return the primary key of a stored SQLAlchemy object as text, without a query."""
    state = state_of_mapped(thing)
    identity = _quietly(lambda: state.key[1])
    parts = [identifier(part) for part in identity] if isinstance(identity, tuple) else []
    return key_text(*parts) if parts and all(parts) else None


def identifier(value: object) -> str | None:
    """Return a value as the text of an identifier, None if it is not one.

    Text, integers, UUIDs and enumeration members are; of other types those whose text looks like
    an identifier (ULID, ObjectId, …).
    """
    if value is None:
        return None
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, str):
        return exact(value) or None
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, (int, uuid.UUID)):
        # Python refuses to spell integers of thousands of digits
        text = _quietly(lambda: str(value))
        return exact(text) if isinstance(text, str) else None
    if type(value).__str__ is object.__str__:
        return None
    text = _quietly(lambda: str(value))
    return text if isinstance(text, str) and _IDENTIFIER.fullmatch(text) else None


def first_identifier(thing: object, names: Iterable[str]) -> str | None:
    """Return the first of some attributes or keys that is an identifier."""
    for name in names:
        found = identifier(peek(thing, name))
        if found is not None:
            return found
    return None


# a token with more roles or scopes than 50 would fill the record with them
def words(value: object, limit: int = 50) -> tuple[str, ...]:
    """Return a list of words from a sequence, or from text with spaces or commas between."""
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    if not isinstance(value, (list, tuple, set, frozenset)):
        return ()
    found = [identifier(entry) for entry in list(value)[:limit]]
    return tuple(word for word in found if word)


def claim(claims: Mapping[str, Any], name: str) -> object:
    """Return a claim by its name, or by a dotted path into nested claims."""
    if name in claims:
        return claims[name]
    if "." not in name:
        return None
    found: object = claims
    for part in name.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found


def load_hook(hook: Hook | None, setting: str) -> Callable[..., Any] | None:
    """Find the callable that a setting names.

    Raises:
        ConfigurationError: It cannot be imported, or is not callable; the message names the
            setting.
    """
    if hook is None or callable(hook):
        return hook
    name = f"{PREFIX}{setting.upper()}"
    module, _, attribute = hook.partition(":")
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise ConfigurationError(
            f"{name}: cannot import it ({type(error).__name__}); expected module:name"
        ) from error
    if not callable(found):
        raise ConfigurationError(f"{name}: what it names is not callable")
    return found


def _quietly(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception:  # noqa: BLE001 - a property of the application may raise anything
        return None


_MOST_IDENTITIES = 50
"""Values of the request's state that are searched for a user."""


_PLAIN = frozenset({str, int, bool, dict, list, tuple, type(None)})


def identities_in(scope: AsgiScope) -> list[object]:
    """Objects of the application from which it may be read who acts, and for whom."""
    found = [
        one
        for one in islice(state_of(scope).values(), _MOST_IDENTITIES)
        if one.__class__ not in _PLAIN
    ]
    user = scope.get("user")
    return found if user is None else [*found, user]
