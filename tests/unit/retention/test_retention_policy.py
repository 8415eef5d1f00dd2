"""The policy: first rule that applies and has it; what cannot be is refused, and named."""

from __future__ import annotations

import pytest
from otel_audit_postgres.retention.policy import (
    PolicyError,
    RecordKind,
    read_policy,
    read_policy_file,
)

GOOD = """
floor = 30
[default]
hot = 90
archive = 275
[[rule]]
name = "acme-sign-ins"
match = { tenant = "acme", event = "auth.*" }
hot = 100
[[rule]]
name = "sign-ins"
match = { event = "auth.*" }
min = 180
max = 500
archive = 300
"""


SHORT = '[[rule]]\nname = "forget"\nmatch = {event = "x"}\nmax = 90'


def kind(event="order.paid", tenant="", action="", level=None):
    return RecordKind(tenant, event, action, level)


class TestExplain:
    def test_takes_each_day_from_the_first_rule_that_has_it(self):
        """Two rules and the default together say what applies."""
        found = read_policy(GOOD).explain(kind("auth.signed_in", "acme"))
        assert (found.min, found.max, found.hot, found.archive) == (180, 500, 100, 300)
        assert found.rules["hot"] == "acme-sign-ins"
        assert found.rules["archive"] == "sign-ins"
        assert found.name == "acme-sign-ins+sign-ins"

    def test_falls_back_to_the_default_and_the_floor(self):
        """What no rule is about."""
        found = read_policy(GOOD).explain(kind())
        assert (found.name, found.min, found.hot, found.expires_after) == ("default", 30, 90, 365)
        assert found.rules["min"] == "floor"

    def test_keeps_for_ever_what_nobody_is_about(self):
        """An empty policy lets nothing go."""
        found = read_policy("").explain(kind())
        assert (found.min, found.max, found.hot, found.archive) == (0, None, None, None)

    @pytest.mark.parametrize(
        ("match", "applies"),
        [
            ('tenant = "acme"', True),
            ('tenant = "ac*"', True),
            ('tenant = "b*"', False),
            ('action = "UPDATE"', True),
            ('action = "READ"', False),
            ('level = "changes"', True),
            ('event = "order.*"', True),
            ('event = "order"', False),
            ('event = "*"', True),
        ],
    )
    def test_matches_by_value_and_by_beginning(self, match, applies):
        """Tenant, action, level and event."""
        policy = read_policy(f'[[rule]]\nname = "one"\nmatch = {{ {match} }}\nhot = 5')
        found = policy.explain(kind("order.paid", "acme", "UPDATE", "changes"))
        assert (found.hot == 5) is applies


class TestRefused:
    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("flor = 3", "unknown key 'flor'"),
            ("[default]\nwarm = 3", "default: unknown key 'warm'"),
            ("floor = -1", "floor: whole days"),
            ("floor = true", "floor: whole days"),
            ("floor = 1.5", "floor: whole days"),
            ("[[rule]]\nhot = 3", "name"),
            ('[[rule]]\nname = "a b"\nmatch = {event = "x"}\nhot = 1', "name"),
            ('[[rule]]\nname = "default"\nmatch = {event = "x"}\nhot = 1', "name"),
            ('[[rule]]\nname = "a"\nhot = 3', "match"),
            ('[[rule]]\nname = "a"\nmatch = {user = "x"}\nhot = 1', "unknown key 'user'"),
            ('[[rule]]\nname = "a"\nmatch = {event = "a*b"}\nhot = 1', "only at the end"),
            ('[[rule]]\nname = "a"\nmatch = {event = "x"}', "says nothing"),
            ('[[rule]]\nname = "a"\nmatch = {event = ""}\nhot = 1', "a text is expected"),
            ("floor = ", "not TOML"),
            ("rule = 3", "tables"),
            ("default = 3", "table"),
        ],
    )
    def test_names_the_key(self, text, problem):
        """An unknown key, a wrong value, a rule about nothing."""
        with pytest.raises(PolicyError, match=problem):
            read_policy(text)

    @pytest.mark.parametrize(
        ("text", "names"),
        [
            # one rule's min against another's max
            (
                """
                [default]
                hot = 5
                archive = 5
                [[rule]]
                name = "keep"
                match = {tenant = "a"}
                min = 400
                hot = 100
                archive = 400
                [[rule]]
                name = "forget"
                match = {event = "auth.*"}
                max = 90
                """,
                ("'keep'", "'forget'"),
            ),
            # the floor against a max
            (f"floor = 100\n{SHORT}\nhot = 5\narchive = 5", ("'floor'", "'forget'")),
            # what is kept longer than it may be
            (f"[default]\nhot = 300\narchive = 0\n{SHORT}", ("'default'", "'forget'")),
            # for ever in the archive, and gone after three months
            (f"[default]\nhot = 30\n{SHORT}", ("for ever", "'forget'")),
            # less than it must be kept
            (
                """
                [default]
                hot = 30
                archive = 30
                [[rule]]
                name = "keep"
                match = {event = "x"}
                min = 365
                """,
                ("'keep'", "'default'"),
            ),
        ],
    )
    def test_names_both_rules_of_a_contradiction(self, text, names):
        """What no record can satisfy is refused when the policy is read."""
        with pytest.raises(PolicyError) as refused:
            read_policy(text)
        for name in names:
            assert name in str(refused.value)

    def test_lets_rules_be_that_never_meet(self):
        """A min and a max that are about different records contradict nothing."""
        read_policy(
            '[default]\nhot = 30\narchive = 600\n[[rule]]\nname = "keep"\n'
            'match = {event = "order.*"}\nmin = 400\n[[rule]]\nname = "forget"\n'
            'match = {event = "auth.*"}\nmax = 90\nhot = 30\narchive = 0'
        )

    def test_says_which_file_cannot_be_read(self, tmp_path):
        """A path that is wrong is named."""
        with pytest.raises(PolicyError, match="nowhere.toml cannot be read"):
            read_policy_file(tmp_path / "nowhere.toml")
