"""The account of a login: the named actor when none is authenticated yet."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, Final

import msgspec

from otel_audit.identity.safe_access import identifier
from otel_audit.record import Body
from otel_audit.redaction import REDACTED, WITHHELD

_CLIENT: Final = "client_id"
_NAMES: Final = (
    "username", "user_name", "userName", "email", "emailAddress", "email_address", "login",
    "loginId", "login_id", "identifier", "account", "accountName", "account_name", "user",
    "user_id", "userId", "uid", "mail", "phone", "phone_number", "phoneNumber", _CLIENT,
)  # fmt: skip
"""Fields that say who wants in, the plainest first; a client of its own is named by the last."""

_TOKENS: Final = ("access_token", "accessToken", "id_token", "idToken", "token", "jwt", "access")
"""Fields in which an answer gives a token."""

_TAKEN_OUT: Final = (REDACTED, WITHHELD[:-1])
_DEPTH: Final = 3
"""Levels of an answer in which a token is looked for: `{"data": {"tokens": {…}}}`."""
_MOST_TOKENS: Final = 8
"""Texts of one answer that are tried as tokens: each costs decoding."""
_LONGEST: Final = 16_384
"""Characters of a token, or of an encoded name, that are decoded."""
_PARTS_OF_TOKEN: Final = 3
"""Header, payload and signature of a signed token (RFC 7519)."""


def named_in_request(body: Body | None, authorization: str | None) -> str | None:
    """Find who is named in a request to log in.

    Args:
        body: The request's body, redacted: what a rule takes out of it is not named here, either.
        authorization: The header; of Basic credentials the user's name.

    Returns:
        The name as it was given; None if none was.
    """
    document = _document(body.text) if body is not None else None
    for level in _levels(document):
        for name in _NAMES:
            found = _plain(level.get(name))
            if found is not None:
                return found
    return _basic(authorization)


def names_a_client(body: Body | None) -> bool:
    """Whether a request for a token (OAuth) names a client at most, and not the user it is for.

    Args:
        body: As for `named_in_request`.
    """
    document = _document(body.text) if body is not None else None
    return (
        isinstance(document, Mapping)
        and "grant_type" in document
        and not any(_plain(document.get(name)) for name in _NAMES if name != _CLIENT)
    )


def named_in_answer(
    body: bytes | None,
    headers: Iterable[tuple[bytes, bytes]],
    subject_of: Callable[[str], str | None],
) -> str | None:
    """Find whom a token names that the answer hands out.

    Args:
        body: The answer's body, if it was copied whole.
        headers: The answer's headers: a token may be in a cookie.
        subject_of: Verifies a token and returns its subject; None if it is not valid.
    """
    for token in islice(chain(_tokens_of(body), _cookies(headers)), _MOST_TOKENS):
        if len(token) <= _LONGEST and len(token.split(".")) == _PARTS_OF_TOKEN:
            found = subject_of(token)
            if found is not None:
                return found
    return None


def _document(text: str | bytes | None) -> object:
    if text is None:
        return None
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _levels(document: object, depth: int = _DEPTH) -> Iterator[Mapping[str, Any]]:
    """Go through an object, then the objects in it: ``{"user": {"email": …}}``."""
    if not isinstance(document, Mapping):
        return
    yield document
    if depth > 1:
        for inner in document.values():
            yield from _levels(inner, depth - 1)


def _plain(value: object) -> str | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]  # a form's field
    if isinstance(value, str) and any(map(value.__contains__, _TAKEN_OUT)):
        return None
    return None if isinstance(value, Mapping | list) else identifier(value)


def _basic(authorization: str | None) -> str | None:
    scheme, _, given = (authorization or "").strip().partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(given[:_LONGEST]).decode()
    except (ValueError, binascii.Error):
        return None
    name, colon, _ = decoded.partition(":")
    return identifier(name) if colon else None


def _tokens_of(body: bytes | None) -> Iterator[str]:
    if body is None or b"." not in body:
        return
    for level in _levels(_document(body)):
        for name in _TOKENS:
            token = level.get(name)
            if isinstance(token, str):
                yield token


def _cookies(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[str]:
    for name, value in headers:
        if name.lower() == b"set-cookie":
            given = value.partition(b";")[0].partition(b"=")[2].decode("latin-1").strip(' "')
            yield given.removeprefix("Bearer ")
