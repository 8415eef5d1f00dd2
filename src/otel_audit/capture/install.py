"""Puts the taps into applications, and takes them out again.

An application builds its middleware stack once, at its first event. The taps are slipped into its
list of middleware while the stack is being built, so that the built stack has the shape that
everybody else's instrumentation expects.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable
from typing import Any

from otel_audit.capture.asgi import Capture, InnerTap, OuterTap
from otel_audit.errors import InstrumentationError, MissingExtraError

_METHOD = "build_middleware_stack"

# what each wrapper of ours stands in for; not kept on the wrapper, whose attributes others copy
_originals: weakref.WeakKeyDictionary[Callable[..., Any], Any] = weakref.WeakKeyDictionary()
_apps: weakref.WeakKeyDictionary[Any, Capture] = weakref.WeakKeyDictionary()
_built: weakref.WeakSet[Any] = weakref.WeakSet()
_for_all: list[Capture] = []
_patched: list[tuple[type, Any]] = []


def install_for_all(capture: Capture) -> None:
    """Put taps into every Starlette and FastAPI application that is built from now on.

    Raises:
        MissingExtraError: Starlette is not installed.
    """
    _for_all[:] = [capture]
    if _patched:
        return
    for owner in _owners():
        original = owner.__dict__[_METHOD]
        setattr(owner, _METHOD, _wrap(original))
        _patched.append((owner, original))


def install(app: Any, capture: Capture) -> None:
    """Put taps into one application.

    Args:
        app: A Starlette or FastAPI application that has not handled anything yet.
        capture: What the taps report to.

    Raises:
        InstrumentationError: It is no such application, or it has already started.
    """
    if not hasattr(app, _METHOD) or not hasattr(app, "user_middleware"):
        raise InstrumentationError(
            "instrument(app): expected a FastAPI or Starlette application, "
            f"got {type(app).__name__}"
        )
    if app in _apps:
        return
    if app.middleware_stack is not None:
        raise InstrumentationError(
            "instrument(app): the application has already started, so the audit hooks cannot be "
            "added any more; call instrument(app) where the application is made, not in its "
            "lifespan or in a handler"
        )
    _apps[app] = capture
    current = getattr(app, _METHOD)
    wrapped = types.MethodType(_wrap(current.__func__, bound=current), app)
    setattr(app, _METHOD, wrapped)


def uninstall(app: Any) -> None:
    """Take the taps out of one application, also if it has started."""
    _apps.pop(app, None)
    _unwrap(app)
    if app in _built:
        _built.discard(app)
        # as contrib does: what stands in the built stack can only be left out by building again
        app.middleware_stack = app.build_middleware_stack()


def uninstall_all() -> None:
    """Take the taps out of every application, and stop putting them into new ones."""
    _for_all.clear()
    while _patched:
        owner, original = _patched.pop()
        setattr(owner, _METHOD, original)
    for app in {*_apps, *_built}:
        uninstall(app)


def is_installed(app: Any) -> bool:
    """Whether an application has taps, or will have when it starts."""
    if app in _built or app in _apps:
        return True
    return bool(_for_all) and getattr(app, "middleware_stack", None) is None


def has_started_without(app: Any) -> bool:
    """Whether an application has started and has no taps."""
    return getattr(app, "middleware_stack", None) is not None and app not in _built


def _owners() -> list[type]:
    try:
        from starlette.applications import Starlette
    except ImportError as error:
        raise MissingExtraError("Auditing HTTP requests", "server") from error
    owners: list[type] = [Starlette]
    try:
        from fastapi import FastAPI
    except ImportError:
        return owners
    owners += [kind for kind in FastAPI.__mro__ if kind is not Starlette and _METHOD in vars(kind)]
    return owners


def _wrap(
    original: Callable[..., Any], bound: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    @functools.wraps(original)
    def build_middleware_stack(self: Any, *args: Any, **kwargs: Any) -> Any:
        build = bound if bound is not None else functools.partial(original, self)
        capture = _apps.get(self) or (_for_all[0] if _for_all else None)
        mine = self.user_middleware
        if capture is None or any(middleware.cls is OuterTap for middleware in mine):
            return build(*args, **kwargs)
        from starlette.middleware import Middleware

        self.user_middleware = [
            Middleware(OuterTap, capture=capture.for_app(self)),
            *mine,
            Middleware(InnerTap),
        ]
        try:
            stack = build(*args, **kwargs)
        finally:
            self.user_middleware = mine
        _built.add(self)
        return stack

    if bound is not None:
        _originals[build_middleware_stack] = bound
    return build_middleware_stack


def _unwrap(app: Any) -> None:
    current = vars(app).get(_METHOD)
    wrapper = getattr(current, "__func__", None)
    original = None if wrapper is None else _originals.get(wrapper)
    if original is None:
        # someone else has wrapped ours since; without a capture it only passes through
        return
    if isinstance(original, types.MethodType) and original.__func__ in (
        vars(kind).get(_METHOD) for kind in type(app).__mro__
    ):
        delattr(app, _METHOD)
    else:
        setattr(app, _METHOD, original)
