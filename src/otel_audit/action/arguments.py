"""The arguments of manual recording, parsed into the parts of a record.

Nothing here raises for what the application gives.
"""

from __future__ import annotations

import functools
import logging
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from otel_audit._util.action_reference import ActionReference
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.identity.actor import actor_from
from otel_audit.identity.mapped_objects import state_of_mapped
from otel_audit.identity.safe_access import clean, first_identifier, identifier, primary_key
from otel_audit.identity.tenant import tenant_from
from otel_audit.policy.entity_names import entity_noun
from otel_audit.record import Actor, Target, Tenant, snake_case
from otel_audit.redaction.truncate import cut_text

if TYPE_CHECKING:
    from otel_audit.redaction import Redactor
    from otel_audit.redaction.budget import WorkBudget
    from otel_audit.scope import AuditScope

_logger = logging.getLogger(__name__)

_LONGEST_NAME = 128
"""Characters of a name that are kept; twice as many are looked at, as redaction may shorten it."""
_NOBODY_READ = Actor(id="anonymous", type="user", source="app", reason="parent_unreadable")
_ACTION = re.compile(r"[A-Z][A-Z_]{0,63}")


@dataclass(frozen=True, slots=True)
class RecordArguments:
    """The unparsed arguments: see `otel_audit.audit` for each."""

    event: str
    actor: object = None
    tenant: object = None
    target: object = None
    metadata: object = None
    action: str | None = None
    parent: object = None


def parse_event(event: object, redactor: Redactor) -> str:
    """Read an event name; an invalid one becomes ``unnamed``."""
    name = parse_name(event, redactor) if isinstance(event, str) else ""
    if not name:
        log_limited(_logger, "event", "An audit event has no name; it is recorded as: unnamed")
    return name or "unnamed"


def parse_action(action: object) -> str | None:
    """Read a kind of action: words in capitals, such as ``CREATE``; None for all else."""
    return action if isinstance(action, str) and _ACTION.fullmatch(action) else None


def parse_actor(actor: object) -> Actor | None:
    """Read an actor; None if none is given.

    Returns:
        For an unidentified actor: ``anonymous`` with a reason; no other may replace it.
    """
    if actor is None:
        return None
    found = actor_from(actor, "app")
    if found is None:
        log_limited(_logger, "actor", "The actor of an audit event has no id that could be read")
        return Actor(id="anonymous", type="user", source="app", reason="actor_unreadable")
    return found


def parse_parent(parent: object) -> ActionReference:
    """Read which action has caused this one: a reference, or its text.

    Returns:
        For all else, one without an id, whose actor is ``anonymous`` with a reason: the process
        must not be taken for the actor.
    """
    try:
        if isinstance(parent, str):
            parent = ActionReference.from_json(parent)
        if isinstance(parent, ActionReference):
            uuid.UUID(parent.action_id)
            return parent
    except ValueError:
        pass
    log_limited(
        _logger, "parent",
        "The parent of an audit event is not a reference: give what otel_audit.current_action() "
        "returned, or its to_json()",
    )  # fmt: skip
    return ActionReference(action_id="", actor=_NOBODY_READ)


def with_canonical_role(actor: Actor, aliases: Mapping[str, str]) -> Actor:
    """Use the canonical name of the actor's role."""
    role = None if actor.role is None else aliases.get(actor.role)
    return actor if role is None else msgspec.structs.replace(actor, role=role)


def parse_tenant(tenant: object) -> Tenant | None:
    """Read a tenant; None if none is given, or where it has no id that could be read."""
    found = tenant_from(tenant)
    if found is None and tenant is not None:
        log_limited(_logger, "tenant", "The tenant of an audit event has no id that could be read")
    return found


def parse_target(
    target: object, redactor: Redactor, work: WorkBudget | None = None
) -> Target | None:
    """Read a target: ``type:id``, a type alone, a `Target`, or an object with an id.

    An object without a key from the database has no id yet; call again when it has.

    Args:
        target: What the caller says.
        redactor: Takes secrets out.
        work: What that may cost.
    """
    if target is None:
        return None
    if isinstance(target, Target):
        kind, number = target.type, target.id
    elif isinstance(target, str):
        kind, _, rest = target.partition(":")
        number = rest or None
    else:
        kind, number = _known_to_orm(target) or (_kind(type(target)), None)
        if _hides_key(target, redactor):
            number = None
        elif number is None:
            number = primary_key(target) or first_identifier(target, ("id", "pk", "uuid"))
    number = None if number is None else identifier(redactor.identifier(str(number), work))
    return Target(type=parse_name(kind, redactor) or "unnamed", id=number)


def target_of(scope: AuditScope, redactor: Redactor) -> Target | None:
    """The target of an action, as given by `otel_audit.set_target`; not yet redacted.

    Args:
        scope: The action.
        redactor: Takes secrets out of what a mapped object is called.
    """
    if scope.aimed_at is None:
        return scope.target
    return parse_target(scope.aimed_at, redactor, scope.budget.given)


def _hides_key(target: object, redactor: Redactor) -> bool:
    """Return whether a mapped object's key is a secret: its own changes do not show it either."""
    state = state_of_mapped(target)
    if state is None:
        return False
    # only where a mapped object is given SQLAlchemy is known to be there
    from otel_audit.orm.mapper_info import mark_of, referred_names

    mapper = state.mapper
    for place, column in enumerate(mapper.primary_key):
        attribute = mapper.get_property_by_column(column).key
        value = state.dict.get(attribute) if state.key is None else state.key[1][place]
        if mark_of(column) is not None or column.info.get("audit") in ("omit", False):
            return True
        shown = value if isinstance(value, int) else str(value)
        names = (str(column.name), attribute, *referred_names(column))
        if value is not None and any(redactor.field(one, shown) != shown for one in names):
            return True
    return False


def _known_to_orm(target: object) -> tuple[str, str | None] | None:
    """A mapped object's noun and key as in its changes; None if none are captured."""
    state = state_of_mapped(target)
    if state is None:
        return None
    from otel_audit.orm.attach import name_of_mapped

    return name_of_mapped(state)


def _kind(of: type) -> str:
    """Say what an object is: a mapped one by the noun that its rows have."""
    table = getattr(of, "__tablename__", None)
    return entity_noun(of.__name__, table) if isinstance(table, str) else snake_case(of.__name__)


def parse_metadata(metadata: object) -> dict[str, Any]:
    """Copy metadata, so that it may be added to; what is not a mapping stands under ``value``."""
    if metadata is None:
        return {}
    if isinstance(metadata, Mapping):
        try:
            return {str(name): value for name, value in metadata.items()}
        except Exception as error:  # noqa: BLE001 - a mapping of the application's may raise anything
            log_limited(_logger, "metadata", "Metadata cannot be read", error=error)
            return {"audit.metadata.unreadable": True}
    return {"value": metadata}


def parse_name(text: str, redactor: Redactor) -> str:
    """Make a name fit to be stored: redacted, on one line, bounded before it is looked at."""
    most = 2 * _LONGEST_NAME
    return _name(text if len(text) <= most else cut_text(text, most), redactor)


# an application has few names, and uses them often
@functools.lru_cache(maxsize=512)
def _name(text: str, redactor: Redactor) -> str:
    return clean(redactor.text(text), _LONGEST_NAME)
