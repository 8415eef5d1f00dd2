"""Class of action of an event name that a person chose."""

from __future__ import annotations

from typing import Final

from otel_audit.policy.verbs import ACCOUNT, ACTIONS, UNDER_AUTH
from otel_audit.policy.words import participle

_BY_PARTICIPLE: Final[dict[str, str]] = {
    **{participle(verb): action for verb, action in ACTIONS.items()},
    **{name.rpartition(".")[2]: action for name, action in UNDER_AUTH.values()},
    **{name.rpartition(".")[2]: action for name, action in ACCOUNT.values()},
    "accessed": "READ",
}


def action_of_event(name: str) -> str:
    """Return the kind of action, by the last word of an event name.

    Args:
        name: Such as ``tenant.provisioned`` or ``user.logged_in``.

    Returns:
        ``CREATE READ UPDATE DELETE LOGIN LOGOUT``; ``EXECUTE`` where the word says nothing.
    """
    word = name.rpartition(".")[2]
    found = _BY_PARTICIPLE.get(word) or ACTIONS.get(word)
    return found or _BY_PARTICIPLE.get(word.rpartition("_")[2], "EXECUTE")
