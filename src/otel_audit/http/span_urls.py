"""URLs that tracing itself has put on the server span, spelled as the record spells them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from otel_audit.redaction.truncate import cut_query

if TYPE_CHECKING:
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

    from otel_audit.redaction import Redactor
    from otel_audit.redaction.budget import Budget

_WHOLE: Final = ("http.url", "url.full", "http.target")
_PATH: Final = "url.path"
_QUERY: Final = "url.query"
_HEADERS: Final = (
    "http.request.header.referer", "http.response.header.location",
    "http.response.header.content_location",
)  # fmt: skip
_LONGEST_QUERY: Final = 8_192


def redact_span_urls(
    span: Span, path: Callable[[str], str], redactor: Redactor, budget: Budget
) -> None:
    """Set the URL attributes of a span again if something in them must not be shown.

    Args:
        span: The application's span of the request, recording.
        path: Spells a path of this request without its secrets.
        redactor: Takes secrets out.
        budget: What describing the action may cost.
    """
    given: Mapping[str, Any] = getattr(span, "attributes", None) or {}
    found: dict[str, AttributeValue] = {}
    for name in (*_WHOLE, _PATH, _QUERY):
        value = given.get(name)
        if not isinstance(value, str) or not value:
            continue
        if name == _QUERY:
            shown = _shown_query(value, redactor, budget)
        elif name == _PATH:
            shown = path(value)
        else:
            shown = _shown_url(value, path, redactor, budget)
        if shown != value:
            found[name] = shown
    for name in _HEADERS:
        values = given.get(name)
        if isinstance(values, list | tuple):
            header = name.rpartition(".")[2].replace("_", "-")
            pairs = [(header.encode(), str(value).encode("latin-1", "replace")) for value in values]
            redacted = [
                redactor.headers([pair], [header], budget.head).get(header, "") for pair in pairs
            ]
            if redacted != list(values):
                found[name] = redacted
    if found:
        span.set_attributes(found)


def _shown_url(url: str, path: Callable[[str], str], redactor: Redactor, budget: Budget) -> str:
    before, sign, query = url.partition("?")
    scheme, colon, rest = before.partition("://")
    if not colon:
        scheme, rest = "", before
    authority, slash, below = rest.partition("/") if colon else ("", "/", rest.removeprefix("/"))
    host = redactor.text(f"{scheme}{colon}{authority}/", budget.head).removesuffix("/")
    shown = path(f"/{below}") if slash else ""
    return f"{host if colon else ''}{shown}{sign}{_shown_query(query, redactor, budget)}"


def _shown_query(query: str, redactor: Redactor, budget: Budget) -> str:
    return redactor.query(cut_query(query, _LONGEST_QUERY), budget.head)
