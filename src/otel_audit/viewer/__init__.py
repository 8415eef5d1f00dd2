"""The viewer: the trail in a browser.

``otel-audit web`` runs it. `create_app` makes it as an ASGI application, to be mounted in one that
has its own login; `mint_token` lets a tenant's administrator look from the application's pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_audit.errors import MissingExtraError

if TYPE_CHECKING:
    from otel_audit.viewer.app import create_app
    from otel_audit.viewer.authentication import TrustedHeader
    from otel_audit.viewer.embedding import Embedding, mint_token
    from otel_audit.viewer.identity import Viewer
    from otel_audit.viewer.settings import ViewerSettings

__all__ = ["Embedding", "TrustedHeader", "Viewer", "ViewerSettings", "create_app", "mint_token"]

_PLACES = {
    "Embedding": "embedding",
    "TrustedHeader": "authentication",
    "Viewer": "identity",
    "ViewerSettings": "settings",
    "create_app": "app",
    "mint_token": "embedding",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(name)
    from importlib import import_module

    try:
        module = import_module(f"{__name__}.{_PLACES[name]}")
    except ImportError as error:
        if isinstance(error, MissingExtraError):
            raise
        raise MissingExtraError("the viewer", "viewer") from error
    return getattr(module, name)
