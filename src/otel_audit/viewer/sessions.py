"""Endpoints for sign-in, sign-out and static files."""

from __future__ import annotations

from importlib import resources
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from otel_audit.viewer.authentication import SignsIn
from otel_audit.viewer.rendering import links_of, render

_FILES: Final = {
    "viewer.css": "text/css",
    "viewer.js": "text/javascript",
    "embed.js": "text/javascript",
    "loader.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


def static(request: Request) -> Response:
    """A static file of the pages."""
    name = request.path_params["name"]
    if name not in _FILES:
        raise HTTPException(404)
    content = (resources.files("otel_audit.viewer") / "static" / name).read_bytes()
    response = Response(content, media_type=_FILES[name])
    if name == "loader.js":
        # stands in the pages of the application
        response.headers["cross-origin-resource-policy"] = "cross-origin"
    return response


def sessions(signs_in: SignsIn) -> tuple[Any, Any]:
    """The endpoints for sign-in and sign-out."""

    async def sign_in(request: Request) -> Response:
        session = signs_in.sign_in(request.query_params.get("link", ""))
        if session is None:
            context = {"title": "The link is used up"}
            return await render(request, "sign_in.html", context, 401)
        response = RedirectResponse(links_of(request)("/"), 303)
        response.set_cookie(
            signs_in.cookie,
            session,
            path=request.scope.get("root_path", "") or "/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return response

    async def sign_out(request: Request) -> Response:
        signs_in.sign_out(request.cookies.get(signs_in.cookie, ""))
        response = RedirectResponse(links_of(request)("/"), 303)
        response.delete_cookie(signs_in.cookie, path=request.scope.get("root_path", "") or "/")
        return response

    return sign_in, sign_out
