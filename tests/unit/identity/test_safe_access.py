"""How identities are spelled: no two are one, none does harm, the usual ones stay as they are."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.identity.actor import actor_from
from otel_audit.identity.safe_access import LONGEST, exact
from otel_audit.identity.tenant import tenant_from
from otel_audit.record import Actor, Tenant

ODD = [
    "\u00a0",
    "\u2003",
    "\n",
    "\x00",
    "\x1f",
    " ",
    "\u200b",
    "\u202e",
    "\ud800",
    "\\u{a}",
    "\\",
    "u{a0}",
    "a",
    "é",
]
NAMES = st.lists(st.one_of(st.sampled_from(ODD), st.characters(codec=None)), max_size=300).map(
    "".join
)


def undone(spelled: str) -> str:
    """What `exact` was given, where it was not too long."""
    return re.sub(r"\\u\{([0-9a-f]+)\}", lambda found: chr(int(found[1], 16)), spelled)


class TestExact:
    @given(NAMES)
    def test_it_can_be_undone(self, name: str) -> None:
        """So no two names are spelled alike."""
        spelled = exact(name)
        assert spelled.isprintable()
        assert spelled == spelled.strip()
        assert len(spelled) <= LONGEST
        if "{+sha256:" not in spelled:
            assert undone(spelled) == name

    @given(st.text(max_size=8), st.text(max_size=8))
    def test_long_names_differ(self, one: str, other: str) -> None:
        """The same head does not make them the same."""
        head = "x" * LONGEST
        assert (exact(head + one) == exact(head + other)) == (one == other)

    @pytest.mark.parametrize(
        "name", ["ann", "ann@example.com", r"DOMAIN\ann", "Jürgen", "a b", "李", "x" * LONGEST, ""]
    )
    def test_usual_names_stay(self, name: str) -> None:
        """Nothing that can be shown is changed."""
        assert exact(name) == name

    def test_what_looks_spelled_is_spelled(self) -> None:
        """Nobody may take the spelling of another one for his name."""
        long = "y" * 300
        assert exact(exact("admin\xa0")) != exact("admin\xa0")
        assert exact(exact(long)) != exact(long)


@pytest.mark.parametrize("odd", ["\u00a0", "\n", "\x00", "\x1f", "\u2003", "\u200b", " "])
def test_who_adds_what_cannot_be_seen_is_another(odd: str) -> None:
    """As a name, as an attribute, in an `Actor` of the application's; for tenants the same."""
    for name in (f"admin{odd}", f"{odd}admin"):
        for given_so in (name, {"id": name}, Actor(id=name, type="user")):
            found = actor_from(given_so, "app")
            assert found is not None
            assert found.id == exact(name) != "admin"
        for tenant in (name, {"id": name}, Tenant(id=name)):
            assert tenant_from(tenant) == Tenant(id=exact(name))
