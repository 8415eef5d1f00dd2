"""Templates; text from records is never markup or a control character."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from otel_audit_postgres.query.display import as_cell
from starlette.requests import Request
from starlette.responses import HTMLResponse, StreamingResponse

from otel_audit._util.printable import visible

FLUSH: Final = "<!-- rows are complete -->"
_AT_ONCE: Final = 32_768
"""Characters that are sent at once: a browser shows them while the next ones are made."""


class Verbatim(str):
    """Text that must not change, as in an input field. It is still escaped."""

    __slots__ = ()


def _finalized(value: Any) -> Any:
    """Make each character of a template's value visible."""
    if value is None:
        return ""
    if isinstance(value, Markup | Verbatim):
        return value
    return visible(value) if isinstance(value, str) else visible(str(value))


def moment(value: datetime) -> str:
    """A time in UTC, to the millisecond."""
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _clipped(value: object, most: int = 60) -> str:
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


_environment: Final = Environment(
    loader=PackageLoader("otel_audit.viewer"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_finalized,
    trim_blocks=True,
    lstrip_blocks=True,
    enable_async=True,
)
_environment.filters.update(moment=moment, clip=_clipped, verbatim=Verbatim, cell=as_cell)
_environment.globals["FLUSH"] = Markup(FLUSH)  # noqa: S704 - a constant


OWN_SHOWN: Final = "audit_events"
"""The parameter by which the trail's own events are shown, too."""
_KEEPING: Final = ("/", "/tail")


class Links:
    """URLs of the viewer's pages, below its mount path.

    Attributes:
        kept: Parameters of this page that searches keep.
    """

    def __init__(self, root: str, kept: Mapping[str, str]) -> None:
        """Remember the mount path and the parameters to keep.

        Args:
            root: The mount path.
            kept: Parameters of this page that searches keep.
        """
        self._root = root
        self.kept = kept

    def __call__(self, path: str, **parameters: object) -> str:
        """The URL of a page; parameters that are None are left out."""
        asked = {**self.kept, **parameters} if path in _KEEPING else parameters
        given = {name: str(value) for name, value in asked.items() if value is not None}
        return f"{self._root}{path}" + (f"?{urlencode(given)}" if given else "")


def links_of(request: Request) -> Links:
    """The links for one request."""
    kept = {OWN_SHOWN: "1"} if request.query_params.get(OWN_SHOWN) else {}
    return Links(request.scope.get("root_path", ""), kept)


async def render(
    request: Request, name: str, context: Mapping[str, Any], status: int = 200
) -> HTMLResponse:
    """Render a page in one go."""
    text = await _environment.get_template(name).render_async(_all(request, context))
    return HTMLResponse(text, status)


def stream(request: Request, name: str, context: Mapping[str, Any]) -> StreamingResponse:
    """Render a page in two steps: what stands before `FLUSH` is sent first."""
    template = _environment.get_template(name)
    return StreamingResponse(_pieces(template, _all(request, context)), media_type="text/html")


async def _pieces(template: Any, context: Mapping[str, Any]) -> AsyncIterator[str]:
    held: list[str] = []
    size = 0
    async for piece in template.generate_async(context):
        held.append(piece)
        size += len(piece)
        if size > _AT_ONCE or FLUSH in piece:
            yield "".join(held)
            held, size = [], 0
    yield "".join(held)


def _all(request: Request, context: Mapping[str, Any]) -> dict[str, Any]:
    base: dict[str, Any] = {
        "link": links_of(request),
        "viewer": None,
        "query": "",
        "title": "",
        "can_retry": False,
        "can_sign_out": getattr(request.app.state, "keeps_sessions", False),
        "names": {},
        "people": {},
    }
    return base | dict(context)
