"""Adds the middleware to applications, and removes it again.

An application builds its middleware stack once, at its first event. Our middleware is put into its
list of middleware while the stack is being built, so that the built stack has the shape that
everybody else's instrumentation expects. An application may build its stack in a way of its own, or
be given one. So each stack is checked when it becomes the application's. If our middleware is not
in its place there, it is put into that stack.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypeVar

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.errors import InstrumentationError
from otel_audit.http.middleware import (
    EXCHANGE,
    OBSERVED,
    Capture,
    InnerMiddleware,
    OuterMiddleware,
    ProcessCapture,
    send_refusal,
)

T = TypeVar("T")

_STARLETTE: Final = "starlette.applications"
_FASTAPI: Final = "fastapi.applications"
FRAMEWORK_MODULES: Final = (_STARLETTE, _FASTAPI)
"""The modules that define the classes of applications."""

_METHOD: Final = "build_middleware_stack"
_STACK: Final = "middleware_stack"
_CALL: Final = "__call__"
_FRAMEWORKS: Final = frozenset({"starlette", "fastapi", "opentelemetry"})
_LAYERS_LOOKED_AT: Final = 500
"""Layers that are looked at, so that the search ends in a stack that has no end."""
_MISSING: Final = object()
_logger = logging.getLogger("otel_audit")


class _ByIdentity(Generic[T]):
    """Facts by application, without keeping it alive; it need not be hashable."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[weakref.ref[Any], T]] = {}

    def get(self, app: Any) -> T | None:
        found = self._found.get(id(app))
        return None if found is None else found[1]

    def set(self, app: Any, value: T) -> None:
        key = id(app)
        self._found[key] = weakref.ref(app, lambda _: self._found.pop(key, None)), value

    def discard(self, app: Any) -> None:
        self._found.pop(id(app), None)

    def __iter__(self) -> Iterator[Any]:
        apps = [known() for known, _ in list(self._found.values())]
        return (app for app in apps if app is not None)


# what each wrapper of ours stands in for; not kept on the wrapper, whose attributes others copy
_originals: weakref.WeakKeyDictionary[Callable[..., Any], Any] = weakref.WeakKeyDictionary()
_apps: _ByIdentity[ProcessCapture] = _ByIdentity()
_instrumented: _ByIdentity[bool] = _ByIdentity()
_called: _ByIdentity[Capture] = _ByIdentity()
_for_all: list[ProcessCapture] = []
_patched: dict[tuple[type, str], Any] = {}


def install_for_all(capture: ProcessCapture) -> None:
    """Add the middleware to every Starlette and FastAPI application, also to started ones.

    A framework that is not imported yet is left alone, as an import costs more than all the rest of
    a start: call `patch_imported` once one of `FRAMEWORK_MODULES` is imported.
    """
    _for_all[:] = [capture]
    patch_imported()
    for app in _alive():
        _watch_calls(type(app))
        if vars(app).get(_STACK) is not None:
            app.middleware_stack = vars(app)[_STACK]


def patch_imported() -> None:
    """Patch the frameworks that are imported, if every application is to be audited."""
    if not _for_all:
        return
    for owner in _owners():
        if (owner, _METHOD) not in _patched:
            _patch(owner, _METHOD, _wrap(owner.__dict__[_METHOD]))
    if _imported(_STARLETTE, "Starlette") is not None:
        _watch_stacks()


def is_any_missed() -> bool:
    """Whether a framework is imported whose applications are not audited, though all should be."""
    kind = _imported(_STARLETTE, "Starlette")
    return bool(_for_all) and kind is not None and (kind, _STACK) not in _patched


def install(app: Any, capture: ProcessCapture) -> None:
    """Add the middleware to one application.

    Args:
        app: A Starlette or FastAPI application that has not handled anything yet.
        capture: What the middleware reports to.

    Raises:
        InstrumentationError: It is not such an application, or it has already started.
    """
    if not hasattr(app, _METHOD) or not hasattr(app, "user_middleware"):
        raise InstrumentationError(
            "instrument(app): expected a FastAPI or Starlette application, "
            f"got {type(app).__name__}"
        )
    if _apps.get(app) is not None:
        return
    if app.middleware_stack is not None:
        raise InstrumentationError(
            "instrument(app): the application has already started, so the audit hooks cannot be "
            "added any more; call instrument(app) where the application is made, not in its "
            "lifespan or in a handler"
        )
    _apps.set(app, capture)
    _watch_stacks()
    _watch_calls(type(app))
    current = getattr(app, _METHOD)
    build = getattr(current, "__func__", None) or (lambda _self: current())
    setattr(app, _METHOD, types.MethodType(_wrap(build, bound=current), app))


def uninstall(app: Any) -> None:
    """Remove the middleware from one application, also if it has started."""
    _apps.discard(app)
    _called.discard(app)
    _unwrap(app)
    if _instrumented.get(app):
        _instrumented.discard(app)
        stack = _without_middleware(app.middleware_stack)
        # as contrib does: what cannot be reached in the built stack is left out by building again
        app.middleware_stack = app.build_middleware_stack() if _holds_middleware(stack) else stack


def uninstall_all() -> None:
    """Remove the middleware from every application, and stop adding it to new ones."""
    _for_all.clear()
    while _patched:
        (owner, name), original = _patched.popitem()
        if original is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, original)
    for app in (*_apps, *_instrumented):
        uninstall(app)


def is_audited(app: Any) -> bool:
    """Whether an application's stack has been built, and has the middleware in its place."""
    return bool(_instrumented.get(app))


def _capture_of(app: Any) -> ProcessCapture | None:
    return _apps.get(app) or (_for_all[0] if _for_all else None)


def _owners() -> list[type]:
    starlette = _imported(_STARLETTE, "Starlette")
    # the package has its class only once it is imported as a whole
    fastapi = _imported("fastapi", "FastAPI") or _imported(_FASTAPI, "FastAPI")
    owners = [] if starlette is None else [starlette]
    if fastapi is not None:
        owners += [one for one in fastapi.__mro__ if one not in owners and _METHOD in vars(one)]
    return owners


def _imported(module: str, name: str) -> type | None:
    return getattr(sys.modules.get(module), name, None)


def _patch(owner: type, name: str, value: Any) -> None:
    _patched[owner, name] = vars(owner).get(name, _MISSING)
    setattr(owner, name, value)


def _alive() -> list[Any]:
    kind = _imported(_STARLETTE, "Starlette")
    if kind is None:
        return []
    # by its type: reading a foreign object's class can run code of the application
    return [found for found in gc.get_objects() if issubclass(type(found), kind)]


def _wrap(
    original: Callable[..., Any], bound: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    @functools.wraps(original)
    def build_middleware_stack(self: Any, *args: Any, **kwargs: Any) -> Any:
        build = bound if bound is not None else functools.partial(original, self)
        capture = _capture_of(self)
        mine = self.user_middleware
        if capture is None or any(middleware.cls is OuterMiddleware for middleware in mine):
            return build(*args, **kwargs)
        from starlette.middleware import Middleware

        self.user_middleware = [
            Middleware(OuterMiddleware, capture=capture.for_app(self)),
            *mine,
            Middleware(InnerMiddleware),
        ]
        try:
            stack = build(*args, **kwargs)
        finally:
            self.user_middleware = mine
        _instrumented.set(self, value=True)
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


class _StackAttribute:
    """Sees each stack that an application gets, from any builder; reading it costs nothing."""

    def __set__(self, app: Any, stack: Any) -> None:
        if stack is None:
            # the application is being made
            _watch_calls(type(app))
        vars(app)[_STACK] = None if stack is None else _checked(app, stack)

    def __delete__(self, app: Any) -> None:
        del vars(app)[_STACK]


def _watch_stacks() -> None:
    from starlette.applications import Starlette

    if (Starlette, _STACK) not in _patched:
        _patch(Starlette, _STACK, _StackAttribute())


def _watch_calls(kind: type) -> None:
    """Wrap what an application's own class does before it calls its stack."""
    owner = next(one for one in kind.__mro__ if _CALL in vars(one))
    if owner.__module__.partition(".")[0] not in _FRAMEWORKS and (owner, _CALL) not in _patched:
        _patch(owner, _CALL, _observed_call(vars(owner)[_CALL]))


def _observed_call(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def __call__(self: Any, scope: Any, receive: Any, send: Any) -> None:  # noqa: N807
        call: Callable[..., Any] = functools.partial(original, self)
        capture = _capture_of(self)
        if capture is not None and scope["type"] in OBSERVED and EXCHANGE not in scope:
            own = _called.get(self)
            if own is None:
                own = capture.for_app(self)
                _called.set(self, own)
            call = OuterMiddleware(call, own)
        await call(scope, receive, send)

    return __call__


def _checked(app: Any, stack: Any) -> Any:
    """Return a stack with the middleware in its place, or one that refuses requests."""
    capture = _capture_of(app)
    if capture is None:
        return stack
    try:
        # not before: the models are imported by now
        reason = capture.reason_not_to_run
        if reason is not None:
            log_limited(_logger, reason, "%s", reason, level=logging.CRITICAL)
            return _RefusingApplication(reason)
        checked = _with_middleware(app, stack, capture)
    except Exception as error:  # noqa: BLE001 - the application runs, unless it must not unaudited
        kind = type(app).__name__
        message = f"THIS APPLICATION IS NOT AUDITED: our middleware cannot be added to {kind}"
        log_limited(_logger, message, message, level=logging.CRITICAL, error=error)
        return _RefusingApplication(message) if capture.required else stack
    _instrumented.set(app, value=True)
    return checked


def _with_middleware(app: Any, stack: Any, capture: ProcessCapture) -> Any:
    outside, layer = None, stack
    while _may_stand_outside(layer):
        outside, layer = layer, layer.app
    if isinstance(layer, OuterMiddleware):
        return stack
    if not callable(layer):
        raise InstrumentationError(f"a {type(layer).__name__} is not an ASGI application")
    if not _holds_middleware(layer):
        _logger.info("%s builds its middleware stack itself; it is audited all the same",
                     type(app).__name__)  # fmt: skip
        layer = _with_inner_middleware(layer)
    else:
        _without_outer_middleware(layer)
    outer = OuterMiddleware(layer, capture.for_app(app))
    if outside is not None:
        with contextlib.suppress(AttributeError, TypeError):  # a layer that cannot be changed
            outside.app = outer
            return stack
    return OuterMiddleware(stack, outer._capture)  # noqa: SLF001 - as the one above


def _may_stand_outside(layer: Any) -> bool:
    """Whether this layer answers nothing itself, so that no answer goes unrecorded."""
    kind = type(layer)
    package = kind.__module__.partition(".")[0]
    return hasattr(layer, "app") and (
        package == "opentelemetry"
        or (package == "starlette" and kind.__name__ == "ServerErrorMiddleware")
    )


def _with_inner_middleware(layer: Any) -> Any:
    """Put the inner middleware where the stack of a plain application has it, or else outermost."""
    from starlette.middleware.exceptions import ExceptionMiddleware
    from starlette.routing import Router

    above = layer
    for inner in _chain(layer):
        if isinstance(inner, ExceptionMiddleware | Router):
            if inner is not layer:
                with contextlib.suppress(AttributeError, TypeError):
                    above.app = InnerMiddleware(inner)
                    return layer
            break
        above = inner
    return InnerMiddleware(layer)


def _without_outer_middleware(layer: Any) -> None:
    """Remove the outer middleware further inside, which would only pass everything on.

    FastAPI puts layers of its own around the middleware of the application.
    """
    from starlette.applications import Starlette
    from starlette.routing import Router

    for one in _chain(layer):
        if isinstance(one, Starlette | Router):
            break  # another application
        if isinstance(getattr(one, "app", None), OuterMiddleware):
            with contextlib.suppress(AttributeError, TypeError):  # a layer that cannot be changed
                one.app = one.app.app
            break


def _chain(layer: Any) -> Iterator[Any]:
    seen: set[int] = set()
    while layer is not None and id(layer) not in seen and len(seen) < _LAYERS_LOOKED_AT:
        seen.add(id(layer))
        yield layer
        layer = getattr(layer, "app", None)


def _without_middleware(stack: Any) -> Any:
    while isinstance(stack, OuterMiddleware | InnerMiddleware):
        stack = stack.app
    for layer in _chain(stack):
        while isinstance(getattr(layer, "app", None), OuterMiddleware | InnerMiddleware):
            try:
                layer.app = layer.app.app
            except (AttributeError, TypeError):
                return stack
    return stack


def _holds_middleware(layer: Any) -> bool:
    """Search a stack for our middleware, also if another one calls its inner app indirectly."""
    from starlette.applications import Starlette
    from starlette.routing import BaseRoute, Router

    waiting, seen = [layer], {id(layer)}
    while waiting and len(seen) < _LAYERS_LOOKED_AT:
        one = waiting.pop()
        if isinstance(one, OuterMiddleware | InnerMiddleware):
            return True
        # behind these are other applications, with middleware of their own
        if isinstance(one, Starlette | Router | BaseRoute):
            continue
        for inner in _held_by(one):
            if callable(inner) and not isinstance(inner, type) and id(inner) not in seen:
                seen.add(id(inner))
                waiting.append(inner)
    return False


def _held_by(layer: Any) -> Iterator[Any]:
    yield from getattr(layer, "__dict__", {}).values()
    if isinstance(layer, functools.partial):
        yield from (layer.func, *layer.args, *layer.keywords.values())
    if isinstance(layer, types.MethodType):
        yield from (layer.__self__, layer.__func__)
    for cell in getattr(layer, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # an empty one
            yield cell.cell_contents


class _RefusingApplication:
    """Replaces the stack of an application that must not run unaudited: it refuses all requests."""

    def __init__(self, message: str) -> None:
        self._message = message

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.failed", "message": self._message})
        else:
            await send_refusal(scope, receive, send)
