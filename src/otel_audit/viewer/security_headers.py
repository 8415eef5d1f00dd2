"""Security headers for each response, and the refusal of cross-site requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors {ancestors}; "
    "require-trusted-types-for 'script'"
)
_TAKES_OUT: Final = ("/export", "/evidence.json", "/evidence.zip")
"""What takes records out of the store, as reports do, only the viewer's own pages ask for."""
_FIXED: Final = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class SecurityHeaders:
    """ASGI middleware: adds the headers, and refuses cross-site requests."""

    def __init__(self, app: ASGIApp, embed: str = "", ancestors: Sequence[str] = ()) -> None:
        """Wrap an application.

        Args:
            app: What is wrapped.
            embed: The path below which pages may stand in a frame; empty for none.
            ancestors: The origins whose pages may hold that frame.
        """
        self._app = app
        self._embed = embed
        self._plain = _CSP.format(ancestors="'none'")
        self._framed = _CSP.format(ancestors=" ".join(ancestors) or "'none'")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        framed = bool(self._embed) and path == self._embed

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                headers["content-security-policy"] = self._framed if framed else self._plain
                for name, value in _FIXED.items():
                    headers.setdefault(name, value)
                if not framed:
                    headers["x-frame-options"] = "DENY"
                message["headers"] = headers.raw
            await send(message)

        if _is_of_another_site(scope, framed=framed):
            refusal = PlainTextResponse(
                "Refused: another site's page has sent this. Open the viewer itself.\n", 403
            )
            await refusal(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)


def _is_of_another_site(scope: Scope, *, framed: bool) -> bool:
    """Whether another site's page sent the request. A followed link is not such a request."""
    headers = Headers(scope=scope)
    site = headers.get("sec-fetch-site", "none")
    if scope["method"] not in ("GET", "HEAD"):
        # browsers that do not say where it comes from send Origin with every POST
        origin, host = headers.get("origin"), headers.get("host", "")
        is_foreign = origin is not None and origin.partition("://")[2] != host
        return site not in ("none", "same-origin") or is_foreign
    if site in ("none", "same-origin") or framed or "/static/" in scope["path"]:
        return False
    if scope["path"].endswith(_TAKES_OUT):
        return True
    if "/reports/" in scope["path"] and b"format=" in scope["query_string"]:
        return True
    return (
        headers.get("sec-fetch-mode") != "navigate" or headers.get("sec-fetch-dest") != "document"
    )
