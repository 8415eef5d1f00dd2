"""Captures one application: the levels of its routes are computed beforehand."""

from __future__ import annotations

import dataclasses
import logging
import weakref
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.policy.routes import routes_of

if TYPE_CHECKING:
    from otel_audit.http.exchange import Exchange
    from otel_audit.http.middleware import Capture
    from otel_audit.http.options import CaptureOptions
    from otel_audit.http.unrecorded import UnrecordedRequest

_logger = logging.getLogger("otel_audit.http")


class _Whole(Protocol):
    """The capture of the whole process."""

    def open_with(
        self, options: CaptureOptions, scope: MutableMapping[str, Any], path: str, /
    ) -> Exchange | UnrecordedRequest | None: ...

    def for_app(self, app: Any, /) -> Capture: ...

    @property
    def refuses(self) -> bool: ...

    @property
    def required(self) -> bool: ...

    @property
    def refusal(self) -> str | None: ...

    @property
    def health_path(self) -> str | None: ...

    def health_at(self, path: str, /) -> Mapping[str, Any] | None: ...

    async def started(self) -> None: ...

    async def stopping(self) -> None: ...


class RoutedCapture:
    """Opens exchanges of one application.

    A body that only its route's own level wants must be copied from the start, when the request is
    not routed yet. So the routes are read when the first request comes, and again when some have
    been added: an application may do so as it starts, or later.
    """

    def __init__(self, whole: _Whole, options: CaptureOptions, app: Any) -> None:
        """Wait for the first request.

        Args:
            whole: The capture of the process.
            options: How exchanges are observed, whatever the routes say.
            app: The application; it is not kept alive.
        """
        self._whole = whole
        self._plain = self._options = options
        self._app = weakref.ref(app)
        self._health_path = whole.health_path
        self._known = -1

    def open(
        self, scope: MutableMapping[str, Any], path: str
    ) -> Exchange | UnrecordedRequest | None:
        """Begin to observe a request. Never raises."""
        self._look_at_routes()
        return self._whole.open_with(self._options, scope, path)

    def for_app(self, app: Any) -> Capture:
        """Return what observes another application."""
        return self._whole.for_app(app)

    @property
    def refuses(self) -> bool:
        """Whether a request that cannot be observed must not be carried out."""
        return self._whole.refuses

    @property
    def required(self) -> bool:
        """Whether an application that cannot be observed must not run."""
        return self._whole.required

    @property
    def refusal(self) -> str | None:
        """Why the application must not run as it is set up; None if it may."""
        return self._whole.refusal

    def health_at(self, path: str) -> Mapping[str, Any] | None:
        """Report the trail's health if this is its endpoint's path."""
        return None if path != self._health_path else self._whole.health_at(path)

    async def started(self) -> None:
        """The application has started."""
        await self._whole.started()

    async def stopping(self) -> None:
        """The application has shut down."""
        await self._whole.stopping()

    def _look_at_routes(self) -> None:
        try:
            app = self._app()
            if app is None or len(app.routes) == self._known:
                return
            self._known = len(app.routes)
            said = [(r.methods, r.path, r.override) for r in routes_of(app) if r.override]
            policy = self._plain.policy.with_routes(said)
            self._options = dataclasses.replace(self._plain, policy=policy)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._plain.on_error()
            log_limited(_logger, "routes", "The routes' own levels are not known", error=error)
