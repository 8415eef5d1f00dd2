"""Policy overrides of a route: by a decorator, or in its OpenAPI description."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, TypeVar

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.errors import ConfigurationError
from otel_audit.policy.rules import Rule, compile_rule

if TYPE_CHECKING:
    from otel_audit.config import Level

_logger = logging.getLogger(__name__)

MARK: Final = "__otel_audit__"
"""Attribute of an endpoint that holds its `Override`."""

EXTENSION: Final = "x-audit"
"""Name of the extension in a route's ``openapi_extra``."""

_TARGET: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*(:.+)?")

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Override:
    """Policy override of a route; a field that is None stays as the policy has it.

    Attributes:
        event: Event name.
        target: ``type:id``, where ``{name}`` in the id is a path parameter; or the type alone.
        action: Action.
        level: Level, for every answer of this route.
        body_limit: Bytes of a body that are copied, each way.
        messages: Whether the messages of a WebSocket are kept.
    """

    event: str | None = None
    target: str | None = None
    action: str | None = None
    level: Level | None = None
    body_limit: int | None = None
    messages: bool | None = None


def audit_route(  # noqa: PLR0913 - one fact an argument
    event: str | None = None,
    *,
    target: str | None = None,
    action: str | None = None,
    level: Level | None = None,
    body_limit: int | None = None,
    messages: bool | None = None,
) -> Callable[[F], F]:
    """Say how the actions of an endpoint are recorded.

    It only marks the function, so it can be above or below the route's decorator::

        @app.post("/orders/{order_id}/refund")
        @audit_route("order.refund", target="order:{order_id}")
        async def refund(order_id: int) -> None: ...

    Args:
        event: Event name; derived from the route if None.
        target: What is acted upon, ``type:id`` with path parameters in braces; derived if None.
        action: ``CREATE READ UPDATE DELETE EXECUTE`` …; derived if None.
        level: ``none metadata changes request request_response``; by the policy if None.
        body_limit: Bytes of a body that are copied, each way; the setting's if None.
        messages: Whether the messages of a WebSocket are kept; as the setting says if None.

    Returns:
        A decorator that returns the function it gets.

    Raises:
        ConfigurationError: An argument is wrong; the message names it.
    """
    override = Override(event, target, action, level, body_limit, messages)
    check(override, "audit_route")

    def mark(function: F) -> F:
        setattr(function, MARK, override)
        return function

    return mark


def override_of(endpoint: object, route: object = None) -> Override | None:
    """Return what a route says about itself; the decorator wins over the description.

    Args:
        endpoint: The endpoint, as the ASGI scope has it.
        route: The route, as the ASGI scope has it.

    Returns:
        None if it says nothing, or says it wrong: that is logged, and must not break a request.
    """
    found = getattr(endpoint, MARK, None)
    if isinstance(found, Override):
        return found
    extra = getattr(route, "openapi_extra", None)
    if not extra or not isinstance(extra, Mapping) or EXTENSION not in extra:
        return None
    try:
        return from_extension(extra[EXTENSION])
    except ConfigurationError as error:
        log_limited(
            _logger, f"x-audit {id(route)}", "a route's %s is not used: %s", EXTENSION, error
        )
        return None


def from_extension(given: object) -> Override:
    """Read an OpenAPI extension: an event name, ``false``, or an object with `Override`'s fields.

    Raises:
        ConfigurationError: It says what cannot be said.
    """
    if given is False:
        return Override(level="none")
    if isinstance(given, str):
        given = {"event": given}
    known = {field.name for field in fields(Override)}
    if not isinstance(given, Mapping) or not given.keys() <= known:
        raise ConfigurationError(
            f"{EXTENSION}: expected an event name, false, or an object with some of "
            f"{', '.join(sorted(known))}"
        )
    override = Override(**given)
    check(override, EXTENSION)
    return override


def check(override: Override, where: str) -> None:
    """See whether an override says what can be said.

    Raises:
        ConfigurationError: It does not; the message names place and field.
    """
    for field in fields(Override):
        value = getattr(override, field.name)
        expected = {"body_limit": int, "messages": bool}.get(field.name, str)
        if value is not None and type(value) is not expected:
            raise ConfigurationError(f"{where}: {field.name}: expected a {expected.__name__}")
    if override.target is not None and not _TARGET.fullmatch(override.target):
        raise ConfigurationError(f"{where}: target: expected type:id, such as order:{{order_id}}")
    compile_rule(
        Rule(
            level=override.level or "request_response",
            event=override.event,
            action=override.action,
            body_limit=override.body_limit,
            messages=override.messages,
        ),
        where,
    )
