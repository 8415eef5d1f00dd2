"""Turns copied bytes into the body that is stored: decoded, redacted, bounded."""

from __future__ import annotations

import hashlib
import re
import zlib
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_plus

import msgspec

from otel_audit._util.gunzip import TooManyMembersError, gunzip
from otel_audit.record import Body
from otel_audit.redaction.budget import WorkBudget
from otel_audit.redaction.json_values import NotUnderstoodError, describe_bytes
from otel_audit.redaction.multipart import Part, boundary_of, describe_part, split_parts
from otel_audit.redaction.number_spelling import encode, parse_exact
from otel_audit.redaction.truncate import (
    cut_text,
    describe_cut,
    whole_json,
    whole_lines,
    whole_parameters,
    whole_words,
    withhold_undecided,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from otel_audit.redaction import Redactor

_encode: Final = msgspec.json.Encoder().encode

LONGEST_TYPE: Final = 256
"""Characters of a declared media type that are kept."""

_MOST_CODINGS: Final = 3
"""Codings of one body; more are a way to have much decompressed, and the body is withheld."""
_MOST_MEMBERS: Final = 100
"""Members of one gzip file: senders make one."""
_PIECE: Final = 65_536
"""Bytes that are decompressed at a time, so that no bomb is ever whole in memory."""
_MOST_ITEMS: Final = 1_000
"""Lines of JSON, or fields of a form, that are kept."""
_TEXT_CODECS: Final = {
    "utf-8": "utf-8-sig", "utf8": "utf-8-sig", "us-ascii": "ascii", "ascii": "ascii",
    "iso-8859-1": "latin-1", "latin-1": "latin-1", "latin1": "latin-1", "windows-1252": "cp1252",
    "iso-8859-15": "iso-8859-15", "utf-16": "utf-16", "utf-16le": "utf-16-le",
    "utf-16be": "utf-16-be", "shift_jis": "shift_jis", "gb18030": "gb18030", "euc-kr": "euc-kr",
}  # fmt: skip
_USUAL_JSON: Final = frozenset({"application/json", "application/json; charset=utf-8"})
_JSON_LINES: Final = frozenset({
    "application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines",
    "application/jsonlines", "application/json-lines",
})  # fmt: skip
_TEXT_TYPES: Final = frozenset({
    "application/xml", "application/javascript", "application/ecmascript", "application/graphql",
    "application/yaml", "application/x-yaml", "application/toml", "application/sql",
    "application/jwt", "application/x-sh", "image/svg+xml", "message/http",
})  # fmt: skip
_UNREADABLE: Final = re.compile(r"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
_CONTROLS: Final = frozenset(range(32)) - frozenset(b"\t\n\r\f\x1b")
"""Control characters that no text has; tab, line ends, form feed and ESC are in some."""


class _Copy(msgspec.Struct, frozen=True):
    """A copied body, on its way to the record."""

    raw: bytes
    size: int
    media_type: str
    content_type: str | None
    complete: bool
    codec: str | None
    redactor: Redactor
    work: WorkBudget


def make_body(  # noqa: PLR0913 - one fact each
    raw: bytes,
    *,
    size: int,
    content_type: str | None,
    content_encoding: str | None,
    complete: bool,
    redactor: Redactor,
    limit: int,
    work: WorkBudget | Callable[[], WorkBudget] | None = None,
) -> Body:
    """Turn copied bytes into the body that is stored.

    Args:
        raw: The body, or its head up to the cap.
        size: Bytes that passed in all.
        content_type: As declared, None if nothing was.
        content_encoding: As declared, None if nothing was.
        complete: Whether ``raw`` is the whole body.
        redactor: Takes secrets out.
        limit: Bytes that a compressed body may grow to; what lies beyond counts as cut.
        work: What redacting it may cost, where several bodies share that; by its size if None.

    Returns:
        The body. Its content is JSON text: the redacted document, a text as a JSON string, or an
        object that says what was left out and why (``_truncated``, ``_binary``). Where a body is
        cut, only what of it is whole is redacted and kept. ``sha256`` is that of the content.
    """
    shown = None
    if content_type is not None:
        is_long = len(content_type) > LONGEST_TYPE
        shown = redactor.phrase(cut_text(content_type, LONGEST_TYPE) if is_long else content_type)
    if size == 0:
        return Body(size=0, content_type=shown)
    if content_encoding and _is_readable(raw):
        # it is not encoded, whatever the header says: the handler got these very bytes
        content_encoding = None
    is_usual = complete and not content_encoding and content_type in _USUAL_JSON
    if is_usual and _is_plain_utf8(raw) and redactor.is_clean_json(raw):
        return _stored(raw, size, shown, None)
    decoded = _decompress(raw, content_encoding, limit)
    if decoded is None:
        absent = "unparsable" if _is_known(content_encoding) else "encoded"
        return Body(size=size, content_type=shown, absent=absent)
    text, ended = decoded
    if callable(work):
        work = work()
    copy = _Copy(
        raw=text,
        size=size,
        media_type=(content_type or "").partition(";")[0].strip().lower(),
        content_type=content_type,
        complete=complete and ended,
        codec=_codec(content_type),
        redactor=redactor,
        work=WorkBudget(len(text)) if work is None else work,
    )
    # whatever a body is like, it does not cost the record
    content, absent_now = redactor.guarded(lambda: _store(copy), (None, "unparsable"))
    if content is None:
        return Body(size=size, content_type=shown, absent=absent_now)
    return _stored(content, size, shown, absent_now)


def _stored(content: bytes, size: int, shown: str | None, absent: str | None) -> Body:
    return Body(
        content=msgspec.Raw(content),
        size=size,
        content_type=shown,
        sha256=hashlib.sha256(content).hexdigest(),
        absent=absent,
    )


def _is_plain_utf8(raw: bytes) -> bool:
    """Return whether it is UTF-8, so that `_as_utf8` would return it unchanged."""
    if not raw[:4].isascii() or 0 in raw[:4]:
        return False
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _store(  # noqa: PLR0911 - one for each kind
    copy: _Copy,
) -> tuple[bytes | None, str | None]:
    """Return the content, None if there is none, and why it is absent or cut.

    A handler may read anything: `request.json()` checks no content type. So bytes that are a
    JSON document are one, and what is declared decides about the rest.
    """
    kind = copy.media_type
    if kind in ("application/json", "text/json") or kind.endswith("+json"):
        return _declared_json(copy)
    if kind and kind not in _JSON_LINES and _looks_like_json(copy.raw):
        content, absent = _declared_json(copy)
        if absent != "unparsable":
            return content, absent
    if kind in _JSON_LINES:
        return _json_lines(copy)
    if kind == "application/x-www-form-urlencoded":
        return _form(copy)
    if kind == "multipart/form-data":
        return _multipart(copy)
    if kind.startswith("text/") or kind in _TEXT_TYPES or kind.endswith("+xml"):
        return _text(copy)
    if kind and (kind == "application/octet-stream" or not _is_readable(copy.raw)):
        return _binary(copy)
    return _undeclared(copy)


def _declared_json(copy: _Copy) -> tuple[bytes | None, str | None]:
    document = _as_utf8(copy)
    if document is None:
        return None, "unparsable"
    if copy.complete:
        found = copy.redactor.json_or_none(document, copy.work)
        return (None, "unparsable") if found is None else (found, None)
    return _truncated(copy, _json_head(copy, whole_json(document))), "truncated"


def _json_head(copy: _Copy, head: bytes | None) -> bytes | None:
    if head is None:
        return None
    try:
        document = withhold_undecided(parse_exact(head.decode()))
    except (NotUnderstoodError, UnicodeDecodeError):
        return None
    return encode(copy.redactor.document(document, copy.work, parsed=True))


def _json_lines(copy: _Copy) -> tuple[bytes | None, str | None]:
    document = _as_utf8(copy)
    if document is None:
        return None, "unparsable"
    whole = document if copy.complete else whole_lines(document)
    lines = [line for line in whole.splitlines() if line.strip()]
    complete = copy.complete and len(lines) <= _MOST_ITEMS
    found = [copy.redactor.json_or_none(line, copy.work) for line in lines[:_MOST_ITEMS]]
    if any(line is None for line in found):
        return (None, "unparsable") if complete else (_truncated(copy, None), "truncated")
    array = b"[" + b",".join(line for line in found if line is not None) + b"]"
    return (array, None) if complete else (_truncated(copy, array), "truncated")


def _form(copy: _Copy) -> tuple[bytes | None, str | None]:
    if b"\0" in copy.raw:
        return _binary(copy)
    raw = copy.raw if copy.complete else whole_parameters(copy.raw)
    pairs = [pair for pair in raw.decode("latin-1").split("&") if pair]
    split = (pair.partition("=") for pair in pairs[:_MOST_ITEMS])
    decoded = ((unquote_plus(name), unquote_plus(value)) for name, _, value in split)
    return _fields(copy, decoded, complete=copy.complete and len(pairs) <= _MOST_ITEMS)


def _multipart(copy: _Copy) -> tuple[bytes | None, str | None]:
    boundary = boundary_of(copy.content_type or "")
    parts, all_of_them = ([], True) if boundary is None else split_parts(copy.raw, boundary)
    if not parts and copy.complete:
        return None, "unparsable"
    pairs = ((_field_name(copy.redactor, part), describe_part(part)) for part in parts)
    return _fields(copy, pairs, complete=copy.complete and all_of_them)


def _field_name(redactor: Redactor, part: Part) -> str:
    """Choose, of several names that a field has, one that says that it is a secret."""
    return next(filter(redactor.is_sensitive, part.names), "".join(part.names[:1]))


def _fields(
    copy: _Copy, pairs: Iterable[tuple[str, Any]], *, complete: bool
) -> tuple[bytes, str | None]:
    """Gather named values, a repeated name's in a list, and redact them."""
    gathered: dict[str, list[Any]] = {}
    for name, value in pairs:
        gathered.setdefault(name, []).append(value)
    plain = {name: found[0] if len(found) == 1 else found for name, found in gathered.items()}
    content = _encode(copy.redactor.document(plain, copy.work))
    if complete:
        return content, None
    return _truncated(copy, content if plain else None), "truncated"


def _text(copy: _Copy) -> tuple[bytes | None, str | None]:
    try:
        codec = _text_codec(copy)
        text = _decode_head(copy.raw, codec, complete=copy.complete)
    except (UnicodeDecodeError, LookupError):
        return _binary(copy)
    if "\0" in text:
        # in another encoding it would be a text whose secrets no rule sees here
        return _binary(copy)
    if copy.complete:
        return _encode(copy.redactor.text(text, copy.work)), None
    head = whole_words(text)
    redacted = _encode(copy.redactor.text(head, copy.work)) if head else None
    return _truncated(copy, redacted), "truncated"


def _text_codec(copy: _Copy) -> str:
    """Choose the codec: the declared one, where it can be that one.

    Raises:
        LookupError: It cannot be: what it would make of the text no rule could read.
    """
    declared, detected = copy.codec, _detected(copy.raw)
    if declared is None:
        return detected
    if not declared.startswith("utf-16"):
        return declared
    if declared != detected and "utf-16" not in (declared, detected):
        raise LookupError
    if not detected.startswith("utf-16"):
        raise LookupError
    return detected


def _undeclared(copy: _Copy) -> tuple[bytes | None, str | None]:
    """Without a content type: JSON if it is JSON, text if it reads as text, else binary."""
    if copy.raw.lstrip()[:1] in (b"{", b"["):
        content, absent = _declared_json(copy)
        if absent != "unparsable":
            return content, absent
    if not _CONTROLS.isdisjoint(copy.raw):
        return _binary(copy)
    return _text(msgspec.structs.replace(copy, codec="utf-8-sig"))


def _binary(copy: _Copy) -> tuple[bytes, str]:
    facts = describe_bytes(copy.raw) if copy.complete else {"_binary": True, "_truncated": True}
    return _encode({**facts, "_size": copy.size}), "binary"


def _truncated(copy: _Copy, head: bytes | None) -> bytes:
    if head is None:
        return _encode(describe_cut(copy.size))
    return _encode(describe_cut(copy.size, msgspec.Raw(head)))


def _codec(content_type: str | None) -> str | None:
    """Find the codec of the declared charset: None if none is declared, ``?`` if unknown."""
    for parameter in (content_type or "").split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return _TEXT_CODECS.get(value.strip().strip('"').lower(), "?")
    return None


def _looks_like_json(raw: bytes) -> bool:
    """Return whether it begins as a JSON object or array does, in any encoding of JSON."""
    return raw[:64].replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n")[:1] in (b"{", b"[")


def _is_readable(raw: bytes) -> bool:
    """Return whether it is a text: no coding that compresses leaves one."""
    try:
        text = _decode_head(raw, _detected(raw), complete=False, errors="surrogatepass")
    except (UnicodeDecodeError, LookupError):
        return False
    return _UNREADABLE.search(text) is None


def _as_utf8(copy: _Copy) -> bytes | None:
    """Bring a JSON text to UTF-8 without a byte order mark, None if it has no known encoding.

    JSON has no charset (RFC 8259, section 11), and readers use none: the bytes decide.
    What is declared counts only where they do not.
    """
    codec = _detected(copy.raw)
    try:
        # lone surrogates, too: Python's own parser, with which handlers read, lets them pass
        _decode_head(copy.raw, codec, complete=copy.complete, errors="surrogatepass")
    except (UnicodeDecodeError, LookupError):
        codec = copy.codec or codec
    if codec in ("utf-8-sig", "ascii"):
        return copy.raw.removeprefix(b"\xef\xbb\xbf")
    try:
        text = _decode_head(copy.raw, codec, complete=copy.complete, errors="surrogatepass")
    except (UnicodeDecodeError, LookupError):
        return None
    return text.removeprefix("\ufeff").encode("utf-8", "surrogatepass")


_ZEROS: Final = {
    "utf-32-be": [True, True, True],
    "utf-32-le": [False, True, True, True],
    "utf-16-be": [True, False],
    "utf-16-le": [False, True],
}


def _detected(raw: bytes) -> str:
    """Detect UTF-16 and UTF-32 by the places of zeros (RFC 4627, section 3)."""
    if raw[:4].isascii() and 0 not in raw[:4]:
        return "utf-8-sig"
    zeros = [byte == 0 for byte in raw[:4]]
    if raw.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return "utf-32"
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    for codec, pattern in _ZEROS.items():
        if zeros[: len(pattern)] == pattern:
            return codec
    return "utf-8-sig"


def _decode_head(raw: bytes, codec: str, *, complete: bool, errors: str = "strict") -> str:
    """Decode; a character that the cut went through is left out."""
    if complete:
        return raw.decode(codec, errors)
    # a character has four bytes at most, in UTF-8 and in UTF-32: a cut leaves up to three of it
    for missing in range(4):
        try:
            return raw[: len(raw) - missing].decode(codec, errors)
        except UnicodeDecodeError as error:
            if error.end < len(raw) - missing - 4:
                raise
            last = error
    raise last


def _decompress(raw: bytes, content_encoding: str | None, limit: int) -> tuple[bytes, bool] | None:
    """Undo the content codings (RFC 9110, section 8.4), the last one first.

    Returns:
        The decoded bytes and whether nothing was cut; None for an unknown coding, or for bytes
        that are not what was declared.
    """
    codings = _codings(content_encoding)
    if not codings:
        return raw, True
    if len(codings) > _MOST_CODINGS or not _is_known(content_encoding):
        return None
    ended = True
    for coding in reversed(codings):
        try:
            raw, here = _DECODERS[coding](raw, limit)
        except zlib.error:
            return None
        ended = ended and here
    return raw, ended


def _codings(content_encoding: str | None) -> list[str]:
    names = (name.strip().lower() for name in (content_encoding or "").split(","))
    return [name for name in names if name not in ("", "identity")]


def _is_known(content_encoding: str | None) -> bool:
    return all(name in _DECODERS for name in _codings(content_encoding))


def _gunzip(raw: bytes, limit: int) -> tuple[bytes, bool]:
    """Decode gzip members one after the other, as many as are usual."""
    found = bytearray()
    try:
        for part in gunzip(raw, _PIECE, _MOST_MEMBERS):
            found += part
            if len(found) > limit:
                return bytes(found[:limit]), False
    except (EOFError, TooManyMembersError):
        return bytes(found), False
    return bytes(found), bool(raw)


def _inflate(raw: bytes, limit: int) -> tuple[bytes, bool]:
    """Decode ``deflate``: with the zlib header that it must have, or bare as some send it."""
    try:
        return _inflate_as(zlib.MAX_WBITS, raw, limit)
    except zlib.error:
        return _inflate_as(-zlib.MAX_WBITS, raw, limit)


def _inflate_as(window: int, raw: bytes, limit: int) -> tuple[bytes, bool]:
    inflater = zlib.decompressobj(window)
    found = inflater.decompress(raw, max(limit, 1))
    return found[:limit], inflater.eof


_DECODERS: Final[dict[str, Callable[[bytes, int], tuple[bytes, bool]]]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _inflate,
}
