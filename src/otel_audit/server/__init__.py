"""The OTLP sink: takes records over the network and says yes once they are stored.

``otel-audit serve`` runs it on uvicorn. Any other ASGI server that runs lifespans can, too:
``otel_audit.server:create_app`` as a factory, or ``otel_audit.server:app``, which is made from the
environment when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_audit.errors import MissingExtraError

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from otel_audit.config import AuditConfig

    app: Starlette

__all__ = ["app", "create_app"]


def create_app(config: AuditConfig | None = None, *, any_certificate: bool = False) -> Starlette:
    """Make the sink as an ASGI application; see `otel_audit.server.app.create_app`.

    Args:
        config: The settings; by default from the environment.
        any_certificate: Let in every client certificate that the server has verified, where the
            file of credentials names none.

    Raises:
        ConfigurationError: There is no store, or senders are not authenticated.
        MissingExtraError: A package of the extra ``server`` is not installed.
    """
    try:
        from otel_audit.server.app import create_app as make
    except ImportError as error:
        raise MissingExtraError("the OTLP sink", "server") from error
    return make(config, any_certificate=any_certificate)


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(name)
    made = globals()["app"] = create_app()
    return made
