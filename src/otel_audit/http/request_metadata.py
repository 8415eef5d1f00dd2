"""The request and response of a record, redacted before they are kept anywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from otel_audit._util.cache import BoundedCache, Memo
from otel_audit._util.ids import is_uuid
from otel_audit.identity.safe_access import clean, has_header, headers_by_name
from otel_audit.record import Body, Request
from otel_audit.redaction import REDACTED, WITHHELD
from otel_audit.redaction.prefilter import is_plain_path
from otel_audit.redaction.secret_urls import link_parameters
from otel_audit.redaction.truncate import cut_path, cut_query, cut_text

if TYPE_CHECKING:
    from otel_audit.action.failed_parts import FailedParts
    from otel_audit.redaction import Redactor
    from otel_audit.redaction.budget import Budget, WorkBudget


Headers = Iterable[tuple[bytes, bytes]]
_Lines: TypeAlias = "tuple[tuple[bytes, bytes], ...]"

_LONGEST_WORD = 15
"""Letters of a segment that is shown unredacted: no key is that short and of letters only."""
_BARE_PATH = 256
"""Characters of a path, and of a word in it, that are kept where nothing can be redacted."""

LONGEST_METHOD = 32
"""Characters of a request's method that are kept; the longest that is registered has 17."""

LONGEST_PATH = 4_096
LONGEST_QUERY = 8_192
LONGEST_HEADER = 4_096
"""Characters of a path, a query, and one header's line that are kept: half of what servers usually
take of a line, which is 8 KB, and all of it for a query. Each costs work to redact."""

_CACHED_NAME = 64
"""Characters of a header's name about which it is remembered whether it is kept."""

_VALUE = itemgetter(1)
_FEW_LINES = 16
"""As many headers as a browser sends."""
_SHORT_VALUE = LONGEST_HEADER // 4
"""So many lines of that length need no closer look."""

MOST_LINES = 64
LONGEST_HEADERS = 16_384
"""Lines of kept headers, and characters of all their values: four times what a browser sends."""

_KNOWN_HEADERS = 256
"""Sets of headers that are remembered as they are shown, about."""

_LONGEST_HOST = 256
_USUAL_HOST = 64
"""Bytes of a host that is remembered as it is shown."""


class RequestHead(msgspec.Struct, eq=False):
    """The head of a request. What cannot change is redacted once, for all records of the action.

    Attributes:
        scope: The ASGI scope, as the server made it; nothing is read before it is needed.
        method: HTTP method; ``WEBSOCKET`` for a socket.
        path: Its path, as the application's own router reads it.
        id: The request's id.
        redactor: Takes secrets out.
        keep: Names of the headers that are kept, in lower case.
        budget: What describing the action may cost.
        parts: Notes the parts that cannot be described.
        wire_method: The method as the client has sent it.
        app: The application; a mounted one puts itself into the scope.
    """

    scope: Mapping[str, Any]
    method: str
    path: str
    id: str
    redactor: Redactor
    keep: Collection[str]
    budget: Budget
    parts: FailedParts
    wire_method: str = ""
    app: Any = None
    _at_start: tuple[Any, ...] = ()
    _described: bool = False
    _path: tuple[str, str] | None = None
    _plain_path: str | None = None
    _headers: dict[str, str] = {}
    _query: str | None = None
    _host: str | None = None

    def __post_init__(self) -> None:
        scope = self.scope
        if len(self.method) > LONGEST_METHOD:
            self.method = _bounded(self.method)
        self.wire_method = self.method
        self._at_start = scope.get("method"), scope.get("path"), scope.get("root_path")
        self.app = scope.get("app")

    def moved(self, routed: Mapping[str, Any]) -> bool:
        """Take method and path as the router sees them; return whether they differ from before.

        Middleware may have changed them by what the client said (``X-HTTP-Method-Override``): what
        the application carries out is what counts.
        """
        if self._at_start == (routed.get("method"), routed.get("path"), routed.get("root_path")):
            return False
        method = self.method
        if self.wire_method != "WEBSOCKET":
            method = _bounded(method_of(routed))
        path = path_below_root(routed)
        if method == self.method and path == self.path:
            return False
        self.method, self.path = method, path
        return True

    def describe(self, routed: Mapping[str, Any], route: str | None, body: Body | None) -> Request:
        """Say what is known of the request. Never raises.

        Args:
            routed: The ASGI scope, as far as the router has come with it.
            route: The route's template, as far as it is known.
            body: The body, where it is kept.
        """
        if not self._described:
            self._described = True
            self._describe_once()
        try:
            path = self._shown_path(routed, route)
            if self.parts.failed:
                self.parts.succeed("path")
        except Exception as error:  # noqa: BLE001 - it costs the path's details alone
            self.parts.fail("path", error)
            path = route or bare_path(path_of(routed))
        version = self.scope.get("http_version")
        return Request(
            id=self.id,
            method=self.method,
            route=route,
            path=path,
            query=self._query,
            headers=self._headers,
            http_version=version if isinstance(version, str) else None,
            host=self._host,
            body=body,
        )

    def path_at_start(self, scope: Mapping[str, Any]) -> str:
        """The path as it is shown before anybody knows which segment is a secret. Never raises."""
        try:
            return self._shown_path(scope, None)
        except Exception as error:  # noqa: BLE001 - it costs the path's details alone
            self.parts.fail("path", error)
            return bare_path(self.path)

    def _describe_once(self) -> None:
        headers = self.scope.get("headers") or ()
        # in this order, so that many headers cannot use up what host and query need
        try:
            self._host = self._shown_host(headers)
        except Exception as error:  # noqa: BLE001 - it costs the host alone
            self.parts.fail("host", error)
        try:
            self._query = self._shown_query()
        except Exception as error:  # noqa: BLE001 - it costs the query alone
            self.parts.fail("query", error)
            self._query = WITHHELD
        try:
            self._headers = describe_headers(
                headers, self.keep, self.redactor, self.budget, "request.headers"
            )
        except Exception as error:  # noqa: BLE001 - it costs the headers alone
            self.parts.fail("headers", error)

    def _shown_host(self, headers: Headers) -> str | None:
        sent = headers_by_name(headers).get(b"host")
        if sent is None:
            return None
        if len(sent) <= _USUAL_HOST and b"@" not in sent:
            return _usual_host(self.redactor, sent)
        host = sent.decode("latin-1")
        is_long = len(host) > _LONGEST_HOST
        if is_long:
            self.budget.note_cut("request.host")
        before, sign, after = host.rpartition("@")
        if before:
            # no host has it: what stands there is a user and a password
            host = f"{REDACTED}{sign}{after}"
        return self.redactor.phrase(clean(cut_text(host, _LONGEST_HOST) if is_long else host))

    def _shown_query(self) -> str | None:
        raw = self.scope.get("query_string") or b""
        if not raw:
            return None
        if len(raw) > LONGEST_QUERY:
            self.budget.note_cut("request.query")
        head = raw[: LONGEST_QUERY + 1]
        text = head if isinstance(head, str) else head.decode("latin-1")
        return self.redactor.query(cut_query(text, LONGEST_QUERY), self.budget.head)

    def _shown_path(self, routed: Mapping[str, Any], route: str | None) -> str:
        whole = routed.get("path")
        if type(whole) is str and not routed.get("path_params"):
            if whole is self._plain_path:
                return whole
            if len(whole) <= _BARE_PATH and _are_words[whole] and is_plain_path(whole):
                self._plain_path = whole
                return whole
        text = self._without_secrets(path_of(routed), routed)
        if text is None:
            return route or REDACTED
        if self._path is None or self._path[0] != text:
            shown = text if is_plain_path(text) else self.redactor.path(text, self.budget.path)
            self._path = text, shown
        return self._path[1]

    def spell_path(self, path: str, routed: Mapping[str, Any], route: str | None) -> str:
        """Spell a path of this request, as somebody else has it, without its secrets."""
        text = self._without_secrets(path, routed)
        if text is None:
            return route or REDACTED
        return self.redactor.path(text, self.budget.path)

    def _without_secrets(self, whole: str, routed: Mapping[str, Any]) -> str | None:
        """Take secrets out of a path; None if one is there that cannot be found in it.

        A convertor may have changed a secret's spelling (a UUID's case, a number's zeros).
        """
        parameters = routed.get("path_params")
        path = whole
        if len(whole) > LONGEST_PATH:
            path = cut_path(whole, LONGEST_PATH)
            self.budget.note_cut("request.path")
        if not parameters:
            if routed.get("route") is not None:
                return path
            # not routed yet, so it is not known which segment is a secret: fail towards redaction
            return "/".join(map(unless_token, path.split("/")))
        return _without(path, secret_parameters(parameters, self.redactor, whole))


@functools.lru_cache(maxsize=256)
def _usual_host(redactor: Redactor, host: bytes) -> str:
    return redactor.phrase(clean(host.decode("latin-1")))


def _is_of_words(path: str) -> bool:
    return all(unless_token(segment) is segment for segment in path.split("/"))


_are_words: Memo[str, bool] = Memo(_is_of_words, 2048)
"""Whether no segment of a short path may be a credential; of the usual ones it is known."""


def describe_headers(
    headers: Headers, keep: Collection[str], redactor: Redactor, budget: Budget, part: str
) -> dict[str, str]:
    """Choose headers, bound them, and take secrets out.

    Args:
        headers: Names and values as ASGI gives them.
        keep: Names of those that are kept, in lower case.
        redactor: Takes secrets out.
        budget: What describing the action may cost; noted there is what was cut.
        part: Names the headers there.

    Returns:
        Lower-case names to values, repeated ones joined with ``", "``.
    """
    known = _described_headers(keep, redactor)
    is_kept = known.is_kept
    kept = [pair for pair in headers if is_kept[pair[0]]]
    if not kept:
        return {}
    lines = tuple(kept)
    try:
        found = known.lately(lines)
    except TypeError:  # ASGI allows a line to be a list
        found = None
    if found is None:
        found = known.describe(lines, budget, part)
    return found


class _DescribedHeaders:
    """Headers as they are shown, by the lines that are kept: most requests of a kind have the same.

    Remembered are those alone whose redaction has cost nothing of the action's budget.
    """

    __slots__ = ("_keep", "_known", "_redactor", "is_kept", "lately")

    def __init__(self, keep: Collection[str], redactor: Redactor) -> None:
        self._keep = keep
        self._redactor = redactor
        self._known: BoundedCache[_Lines, dict[str, str]] = BoundedCache(_KNOWN_HEADERS)
        self.lately = self._known.recent
        self.is_kept = _kept_names(keep)

    def describe(self, lines: _Lines, budget: Budget, part: str) -> dict[str, str]:
        given: Sequence[tuple[bytes, bytes]] = lines
        if len(lines) > _FEW_LINES or max(map(len, map(_VALUE, lines))) > _SHORT_VALUE:
            given = _bounded_lines(lines, budget, part)
        is_free = given is lines

        def head() -> WorkBudget:
            nonlocal is_free
            is_free = False
            return budget.head

        found = self._redactor.headers(given, self._keep, head)
        if is_free and all(map(_is_line, lines)):
            self._known.put(lines, found)
        return found


# a configuration each: a process has one, tests have some
@functools.lru_cache(maxsize=16)
def _headers_of(keep: Any, redactor: Any) -> _DescribedHeaders:
    return _DescribedHeaders(keep, redactor)


def _is_line(given: object) -> bool:
    """Return whether a line is as most servers give it, and so can be a key."""
    return type(given) is tuple and all(type(part) is bytes for part in given)


_described_headers: Callable[..., _DescribedHeaders] = _headers_of


def _bounded_lines(
    given: Iterable[tuple[bytes, bytes]], budget: Budget, part: str
) -> list[tuple[bytes, bytes]]:
    kept: list[tuple[bytes, bytes]] = []
    room = LONGEST_HEADERS
    for name, value in given:
        longest = min(LONGEST_HEADER, room)
        if len(kept) == MOST_LINES or longest <= 0:
            budget.note_cut(part)
            break
        shown = value
        if len(value) > longest:
            budget.note_cut(part)
            shown = cut_text(value[: longest + 1].decode("latin-1"), longest).encode("latin-1")
        room -= len(shown)
        kept.append((name, shown))
    return kept


# as above
@functools.lru_cache(maxsize=16)
def _names_kept(keep: Any) -> Memo[bytes, bool]:
    """Whether a header is kept, by its name as it is sent; the usual names are remembered."""
    return Memo(
        lambda name: len(name) <= LONGEST_HEADER and name.decode("latin-1").lower() in keep,
        1024,  # a few hundred names are in use; clients may invent more
        lambda name: len(name) <= _CACHED_NAME,
    )


_kept_names: Callable[..., Memo[bytes, bool]] = _names_kept


def method_of(scope: Mapping[str, Any]) -> str:
    """Return the method of a request as text, whatever the server gives."""
    method = scope.get("method")
    return method if isinstance(method, str) else ""


def path_of(scope: Mapping[str, Any]) -> str:
    """Return the path of a request as text, whatever the server gives."""
    path = scope.get("path")
    if isinstance(path, bytes):
        return path.decode("latin-1")
    return path if isinstance(path, str) else ""


def path_below_root(scope: Mapping[str, Any]) -> str:
    """Return the path as the application's own router reads it: without ``root_path``.

    A server behind a prefix puts it into both (uvicorn's ``--root-path``). An application that is
    configured with one may get it in neither, or in ``root_path`` alone (``FastAPI(root_path=…)``).
    """
    path, root = scope.get("path"), scope.get("root_path")
    if not isinstance(path, str):
        path = path_of(scope)
    if not root or not isinstance(root, str) or not path.startswith(root):
        return path
    below = path[len(root) :]
    return below if not below or below[0] == "/" else path


def _bounded(method: str) -> str:
    # a client may make up any word, of any length
    return method if len(method) <= LONGEST_METHOD else clean(method, LONGEST_METHOD)


def bare_path(path: str) -> str:
    """Spell a path where nothing else is left to judge it: of short, plain words only.

    It cannot fail, and it shows no segment that could be a secret.
    """
    shown = [
        segment
        if len(segment) <= _LONGEST_WORD and (not segment or segment.isalpha())
        else REDACTED
        for segment in path[:_BARE_PATH].split("/")
    ]
    return "/".join(shown).encode("ascii", "replace").decode()


def secret_parameters(
    parameters: Mapping[str, Any], redactor: Redactor, path: str
) -> frozenset[str]:
    """Return the values of path parameters that are secrets: by their names, or as a link's.

    Args:
        parameters: As the router has read them.
        redactor: Knows the names.
        path: As requested.
    """
    named = (str(value) for name, value in parameters.items() if redactor.is_sensitive(name))
    return frozenset((*named, *link_parameters(path, parameters)))


def header_of(headers: Headers, name: bytes) -> str | None:
    """Return the first value of a header, ``name`` in lower case; None if there is none."""
    value = headers_by_name(headers).get(name)
    return None if value is None else value.decode("latin-1")


_SHORTEST_TOKEN = 16
"""Characters of a segment that may be a credential: 16 hex digits are 64 bits."""


def unless_token(segment: str) -> str:
    """Withhold a path segment that may be a credential: long, of letters and digits."""
    if len(segment) < _SHORTEST_TOKEN or is_uuid(segment):
        return segment
    mixed = any(map(str.isdigit, segment)) and any(map(str.isalpha, segment))
    return REDACTED if mixed else segment


def _without(path: str, secrets: frozenset[str]) -> str | None:
    """Take secret parameters out of a path; None if one cannot be found in it."""
    if not secrets:
        return path
    segments = path.split("/")
    for secret in secrets:
        if secret in segments:
            segments = [REDACTED if segment == secret else segment for segment in segments]
        elif "/" in secret and secret in path:
            segments = "/".join(segments).replace(secret, REDACTED).split("/")
        elif secret:
            return None
    return "/".join(segments)


def with_request_id(
    message: MutableMapping[str, Any], name: bytes, request_id: str
) -> MutableMapping[str, Any]:
    """Add the request's id to a response's head, unless it has one, or none is wanted."""
    headers = message.get("headers", ())
    if not name:
        return message
    if not isinstance(headers, list | tuple):
        # ASGI allows headers that can be read once only
        headers = list(headers)
        message = {**message, "headers": headers}
    if has_header(headers, name):
        return message
    return {**message, "headers": [*headers, (name, request_id.encode("latin-1"))]}
