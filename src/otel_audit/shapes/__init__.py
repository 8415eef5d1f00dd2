"""Records in other formats: one pure function per format, from an event to a dict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from otel_audit.errors import ConfigurationError
from otel_audit.shapes.cloudevents import to_cloudevent
from otel_audit.shapes.ecs import to_ecs
from otel_audit.shapes.event import Event, UnshapeableError, read_event
from otel_audit.shapes.fhir import to_fhir
from otel_audit.shapes.native import to_native
from otel_audit.shapes.ocsf import DEFAULT_ENTITIES, OCSF_VERSIONS, Entities, to_ocsf

__all__ = ["SHAPES", "Event", "Shape", "UnshapeableError", "read_event", "shape_named"]

Shape = Callable[[Event], dict[str, Any]]

SHAPES: Final = ("native", "ocsf", "ecs", "cloudevents", "fhir")
"""Names of the shapes; ``ocsf`` may have a version behind it, ``ocsf-1.1.0``."""

_SHAPES: Final[dict[str, Shape]] = {
    "native": to_native,
    "ecs": to_ecs,
    "cloudevents": to_cloudevent,
    "fhir": to_fhir,
}


def shape_named(name: str, entities: Entities = DEFAULT_ENTITIES) -> Shape:
    """Find a shape.

    Example::

        event = read_event(payload, leaf=7, log="example.com/log", content_hash=content_hash)
        shape_named("ecs")(event)["event"]["sequence"]

    Args:
        name: One of `SHAPES`, or ``ocsf-VERSION``.
        entities: For OCSF, which targets are users, groups, or administered otherwise.

    Raises:
        ConfigurationError: There is none of this name.
    """
    kind, _, version = name.partition("-")
    if kind == "ocsf":
        wanted = version or OCSF_VERSIONS[-1]
        if wanted in OCSF_VERSIONS:
            return lambda event: to_ocsf(event, wanted, entities)
    found = _SHAPES.get(name)
    if found is None:
        versions = (f"ocsf-{one}" for one in OCSF_VERSIONS)
        raise ConfigurationError(
            f"{name!r} is not a shape: one of {', '.join((*SHAPES, *versions))}"
        )
    return found
