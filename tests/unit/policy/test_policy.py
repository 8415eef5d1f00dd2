"""What is recorded, at which level: the defaults, rules, and what routes say about themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError
from otel_audit.policy import Override, Policy, PolicyDecision, Rule, audit_route, engine
from otel_audit.policy.rules import LEVELS
from otel_audit.record import ANONYMOUS, Actor, Target, Tenant

if TYPE_CHECKING:
    from pathlib import Path

ANN = Actor(id="ann", type="user", role="clerk")


def policy(*rules: Any, **settings: Any) -> Policy:
    return Policy.from_config(AuditConfig(policy_rules=rules, **settings))


def decide(made: Policy, request: str = "POST /orders", **facts: Any) -> PolicyDecision:
    method, path = request.split(" ")
    given = {"route": path, "status": 200, "actor": ANN, "tenant": None, "wrote": False, **facts}
    return made.decide(method=method, path=path, **given)


def level(made: Policy, request: str = "POST /orders", **facts: Any) -> str:
    return decide(made, request, **facts).level


class TestDefaults:
    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
    def test_writes(self, method: str) -> None:
        """Writes are recorded in full, whatever became of them."""
        for status in (200, 302, 401, 404, 422, 500, None):
            assert level(policy(), f"{method} /orders", status=status) == "request_response"

    @pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
    def test_reads(self, method: str) -> None:
        """Reads are recorded only if they were denied or failed."""
        for status, expected in ((200, "none"), (404, "none"), (401, "metadata"), (403, "metadata"), (500, "metadata"), (599, "metadata")):  # fmt: skip
            assert level(policy(), f"{method} /orders", status=status) == expected

    def test_sensitive_paths(self) -> None:
        """Reads of sensitive paths are recorded."""
        made = policy(sensitive_paths="/patients")
        assert level(made, "GET /patients/7") == "metadata"
        assert level(made, "GET /patientsearch") == "none"

    def test_a_preflight_reads_nothing(self) -> None:
        """A browser asks before each request; nobody has seen a patient's data for that."""
        made = policy(sensitive_paths="/patients")
        assert level(made, "OPTIONS /patients/7") == "none"
        found = decide(made, "OPTIONS /patients/7", status=403, route="/patients/{n}")
        assert (found.event_name, found.action) == ("patient.options_requested", "EXECUTE")

    def test_excluded_paths(self) -> None:
        """Excluded paths are never recorded, even when they fail."""
        for request in ("GET /health", "POST /metrics/x", "GET /docs"):
            assert level(policy(), request, status=500) == "none"
        assert level(policy(), "POST /healthcare") == "request_response"

    @pytest.mark.parametrize(
        "path",
        ["/docs/../orders/1/refund", "/docs/..", "/docs/./x", "/health/..;/orders", "/docs//orders",
         "/docs\\..\\orders", "/docs/%2e%2e/orders", "/docs/..%2forders", "/metrics/;x/../orders"],
    )  # fmt: skip
    def test_a_path_that_can_be_read_in_two_ways_is_excluded_by_nothing(self, path: str) -> None:
        """The client chooses the spelling, and whoever serves it may take it for another path."""
        for route in (None, "/docs/{rest:path}", "/health/{rest:path}"):
            assert level(policy(), f"POST {path}", route=route) == "request_response"
        made = policy({"level": "none", "paths": ["/docs/**", "/health/**", "/metrics/**"]})
        assert level(made, f"POST {path}", route=None) == "request_response"
        assert made.assess_head("POST", path).level == "request_response"

    @pytest.mark.parametrize(
        "somebody",
        [
            Actor(id="anonymous", type="user", reason="keys_not_loaded"),
            Actor(id="anonymous", type="user", reason="token_malformed"),
            Actor(id="anonymous", type="user", verified=True, source="request.state"),
        ],
    )
    def test_who_is_not_known_is_not_nobody(self, somebody: Actor) -> None:
        """Neither the setting nor a rule drops who has presented something, or is called so."""
        for made in (
            policy(log_anonymous=False),
            policy({"level": "none", "actors": ["anonymous"]}),
            policy({"level": "none", "actors": ["anon*"]}),
        ):
            assert level(made, actor=ANONYMOUS) == "none"
            assert level(made, actor=somebody) == "request_response"
        assert level(policy({"level": "none", "actors": ["*"]}), actor=somebody) == "none"
        kept = policy({"level": "metadata", "actors": ["anonymous"]})
        assert level(kept, actor=somebody) == "metadata"

    def test_what_cannot_be_named_is_decided(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Name and target are parts: without them there is still a decision."""

        def broken(*_: object, **__: object) -> None:
            raise LookupError

        monkeypatch.setattr(engine, "name_action", broken)
        monkeypatch.setattr(engine, "_target", broken)
        failed: list[str] = []
        found = decide(policy(), on_failure=lambda part, _error: failed.append(part))
        assert (found.level, found.event_name, found.target) == (
            "request_response", "http.request", None,
        )  # fmt: skip
        assert failed == ["name", "target"]
        with pytest.raises(LookupError):
            decide(policy())

    def test_excluded_root(self) -> None:
        """The root may be excluded without excluding everything."""
        made = policy(exclude_paths="/")
        assert level(made, "POST /") == "none"
        assert level(made, "POST /orders") == "request_response"

    def test_what_wrote_is_recorded(self) -> None:
        """A request that wrote to the database is recorded, whatever the rules say."""
        assert level(policy(), "GET /orders", wrote=True) == "changes"
        assert level(policy(), "GET /health", wrote=True) == "changes"
        assert level(policy(Rule("none")), wrote=True) == "changes"
        assert level(policy(), wrote=True) == "request_response"

    def test_anonymous(self) -> None:
        """Successful anonymous actions may be left out; denials and failures never are."""
        silent = policy(log_anonymous=False)
        assert level(policy(), actor=ANONYMOUS) == "request_response"
        assert level(silent, actor=ANONYMOUS) == "none"
        assert level(silent) == "request_response"
        for status in (401, 403, 500, None):
            assert level(silent, actor=ANONYMOUS, status=status) != "none"

    def test_one_level(self) -> None:
        """One level in the settings takes the place of all that are not none."""
        made = policy(level="metadata", sensitive_paths="/patients")
        assert level(made) == "metadata"
        assert level(made, "GET /patients") == "metadata"
        assert level(made, "GET /orders") == "none"

    def test_sockets_and_strange_methods(self) -> None:
        """What may do anything is recorded."""
        assert level(policy(), "WEBSOCKET /ws") == "metadata"
        assert level(policy(), "MKCOL /files") == "metadata"


class TestRules:
    def test_first_match_wins(self) -> None:
        """The first rule that matches decides, and is named."""
        made = policy(
            Rule("metadata", "mine", methods=("post",), paths=("/orders",)),
            Rule("none", "never asked", paths=("/orders",)),
        )
        assert (decide(made).level, decide(made).rule) == ("metadata", "mine")
        assert level(made, "PUT /orders") == "none"
        assert level(made, "PUT /users") == "request_response"

    @pytest.mark.parametrize(
        ("pattern", "path", "matches"),
        [
            ("/orders", "/orders", True),
            ("/orders", "/orders/", True),
            ("/orders", "/orders/1", False),
            ("/orders/*", "/orders/1", True),
            ("/orders/*", "/orders", False),
            ("/orders/*", "/orders/1/items", False),
            ("/orders/**", "/orders", True),
            ("/orders/**", "/orders/1/items", True),
            ("/orders/**", "/ordersX", False),
            ("/orders/{order_id}/items", "/orders/1/items", True),
            ("/**/items", "/orders/1/items", True),
            ("**/items/**", "/a/b/items/1", True),
            ("**/a*b*c/**", "/x/aXbXc/y", True),
            ("/a.b", "/aXb", False),
            ("/files/{p:path}", "/files/a/b", True),
        ],
    )
    def test_paths(self, pattern: str, path: str, matches: bool) -> None:
        """A pattern matches whole paths: one star a segment, two stars any number."""
        assert (
            level(policy(Rule("metadata", paths=(pattern,))), f"POST {path}") == "metadata"
        ) == matches

    def test_routes(self) -> None:
        """A pattern may also name the route's template."""
        made = policy(Rule("metadata", paths=("/orders/{order_id}",)))
        assert level(made, "POST /orders/a/b", route="/orders/{order_id}") == "metadata"

    @pytest.mark.parametrize(
        ("asked", "facts", "matches"),
        [
            ({"status": ("404",)}, {"status": 404}, True),
            ({"status": ("4xx",)}, {"status": 499}, True),
            ({"status": ("500-502", "404")}, {"status": 502}, True),
            ({"status": ("5xx",)}, {"status": None}, False),
            ({"actors": ("ann",)}, {}, True),
            ({"actors": ("svc-*",)}, {}, False),
            ({"actors": ("anonymous",)}, {"actor": ANONYMOUS}, True),
            ({"actor_types": ("service",)}, {}, False),
            ({"roles": ("clerk",)}, {}, True),
            ({"roles": ("clerk",)}, {"actor": ANONYMOUS}, False),
            ({"tenants": ("acme",)}, {"tenant": Tenant(id="7", slug="acme")}, True),
            ({"tenants": ("7",)}, {"tenant": Tenant(id="7")}, True),
            ({"tenants": ("*",)}, {}, False),
            ({"wrote": True}, {"wrote": True}, True),
            ({"wrote": True}, {}, False),
        ],
    )
    def test_conditions(self, asked: dict[str, Any], facts: dict[str, Any], matches: bool) -> None:
        """A rule may ask for status, actor, tenant, and whether something was written."""
        assert (decide(policy(Rule("changes", "it", **asked)), **facts).rule == "it") == matches

    def test_names(self) -> None:
        """A rule may name the event and the action."""
        found = decide(policy(Rule("metadata", event="order.placed", action="PLACE", body_limit=5)))
        assert (found.event_name, found.action, found.body_limit) == ("order.placed", "PLACE", 5)

    def test_hostile_path(self) -> None:
        """No path makes a pattern slow."""
        made = policy(Rule("none", paths=("/**/a/**/b/**/c", "/*a*a*a*a*b")))
        assert level(made, "POST /" + "a/" * 20_000) == "request_response"
        assert level(made, "POST /" + "a" * 60_000) == "request_response"


class TestReadsByPost:
    SEARCH = {"level": "metadata", "methods": ["POST"], "paths": ["/*/report"], "action": "READ"}

    def test_they_are_kept_as_reads(self) -> None:
        """A rule that calls it a read gives it a read's name, and may sample it."""
        found = decide(policy(self.SEARCH), "POST /orders/report")
        assert (found.event_name, found.action) == ("report.accessed", "READ")
        found = decide(policy({**self.SEARCH, "sample": 1_000_000}), "POST /orders/report", key="k")
        assert found.level == "none"

    def test_one_that_wrote_is_none(self) -> None:
        """What was written is recorded, and is called what it is."""
        found = decide(policy({**self.SEARCH, "sample": 2}), "POST /orders/report", wrote=True)
        assert (found.level != "none", found.event_name) == (True, "report.created")

    def test_other_methods_are_writes(self) -> None:
        """Only a POST may be declared a read for sampling."""
        with pytest.raises(ConfigurationError, match="sample: writes are never sampled"):
            policy({**self.SEARCH, "methods": ["POST", "PUT"], "sample": 2})


class TestSampling:
    def test_reads(self) -> None:
        """Of chosen reads one of so many is kept, and the record says so."""
        made = policy(Rule("metadata", "some", paths=("/orders",), sample=10))
        found = [decide(made, "GET /orders", key=f"record-{n}") for n in range(2000)]
        kept = [one for one in found if one.level == "metadata"]
        assert 120 < len(kept) < 280
        assert {one.sample for one in found} == {10}

    def test_same_key_same_choice(self) -> None:
        """Asked twice about the same record, the choice is the same."""
        made = policy(Rule("metadata", sample=3))
        for number in range(50):
            key = str(number)
            assert level(made, "GET /", key=key) == level(made, "GET /", key=key)

    def test_without_key(self) -> None:
        """Without a record's id about one of so many is kept all the same."""
        made = policy(Rule("metadata", sample=2))
        assert 300 < sum(level(made, "GET /x") != "none" for _ in range(1000)) < 700

    def test_never_what_matters(self) -> None:
        """Writes, denials, failures and what wrote are not sampled."""
        made = policy(Rule("metadata", sample=10**9))
        assert level(made, key="k") == "request_response"
        for facts in ({"status": 403}, {"status": 500}, {"wrote": True}):
            assert level(made, "GET /orders", key="k", **facts) != "none"


class TestDecidedBefore:
    """A decision is remembered; whatever it depends on makes another one."""

    def test_the_same_facts(self) -> None:
        """The very decision is given again."""
        made = policy()
        assert decide(made, key="a") is decide(made, key="b")

    @pytest.mark.parametrize(
        "facts",
        [
            {"actor": Actor(id="bob", type="user", role="clerk")},
            {"actor": Actor(id="ann", type="service", role="clerk")},
            {"actor": Actor(id="ann", type="user", role="chief")},
            {"actor": ANONYMOUS},
            {"actor": Actor(id="anonymous", type="user", reason="token_expired")},
            {"actor": Actor(id="anonymous", type="user", verified=True)},
            {"tenant": Tenant(id="acme")},
            {"tenant": Tenant(id="acme", slug="a")},
            {"status": 500},
            {"wrote": True},
            {"route": None},
            {"name_all": False},
        ],
    )
    def test_other_facts(self, facts: dict[str, Any]) -> None:
        """What was decided before for others is as if it had never been."""
        rules = (
            Rule("none", "nobody", actors=("anonymous",)),
            Rule("request", "bob", actors=("bob",)),
            Rule("changes", "service", actor_types=("service",)),
            Rule("metadata", "chief", roles=("chief",)),
            Rule("request_response", "slug", tenants=("a",)),
            Rule("request", "tenant", tenants=("acme",)),
            Rule("changes", "failed", status=("5xx",)),
            Rule("none", "rest"),
        )
        asked = policy(*rules)
        decide(asked)
        assert decide(asked, **facts) == decide(policy(*rules), **facts)

    def test_the_path_s_parameters_are_read_each_time(self) -> None:
        """A handler may change them; the target is that of this request."""
        made = policy()
        found = [
            decide(
                made, "POST /orders/7", route="/orders/{order_id}",
                scope={"path_params": {"order_id": number}},
            ).target
            for number in (7, 8, 7)
        ]  # fmt: skip
        assert found == [Target(type="order", id=one) for one in ("7", "8", "7")]

    def test_what_a_route_says_comes_first(self) -> None:
        """An endpoint with a level of its own is not taken for one without."""

        @audit_route(level="metadata")
        def handler() -> None: ...

        made = policy(Rule("none"))
        assert level(made) == "none"
        assert level(made, scope={"endpoint": handler}) == "metadata"
        assert level(made) == "none"


class TestStart:
    def test_body(self) -> None:
        """Bodies are copied only where some answer could ask for them."""
        made = policy(sensitive_paths="/patients")
        for method, path, expected in (
            ("POST", "/orders", (True, True)),
            ("POST", "/health", (False, False)),
            ("GET", "/orders", (False, False)),
            ("GET", "/patients", (False, False)),
        ):
            start = made.assess_head(method, path)
            assert (start.request, start.response) == expected

    def test_request_only(self) -> None:
        """The level `request` does not ask for the response's body."""
        start = policy(Rule("request", body_limit=50)).assess_head("POST", "/orders")
        assert (start.level, start.request, start.response, start.body_limit) == (
            "request",
            True,
            False,
            50,
        )

    def test_what_may_still_come(self) -> None:
        """A rule that asks for what is not known yet is counted, and those after it as well."""
        made = policy(Rule("none", status=("200",)), Rule("request_response", status=("404",)))
        assert made.assess_head("GET", "/orders").response

    def test_nothing(self) -> None:
        """What can never be recorded is known at once."""
        assert policy(Rule("none")).assess_head("POST", "/orders").level == "none"

    def test_routes(self) -> None:
        """What routes say about themselves is known beforehand if it is told."""
        made = policy().with_routes(
            [(("GET",), "/orders/{id}", Override(level="request_response"))]
        )
        assert made.assess_head("GET", "/orders/7").response
        assert not made.assess_head("GET", "/orders").response

    @given(
        st.lists(st.builds(
            Rule,
            level=st.sampled_from(LEVELS),
            methods=st.sampled_from([(), ("GET",), ("POST",)]),
            paths=st.sampled_from([(), ("/orders",), ("/**",), ("/users/*",)]),
            status=st.sampled_from([(), ("2xx",), ("401",)]),
            actors=st.sampled_from([(), ("ann",)]),
            wrote=st.none() | st.booleans(),
        ), max_size=5),
        st.sampled_from(["GET /orders", "POST /orders", "PUT /users/1", "GET /health"]),
        st.sampled_from([200, 401, 500, None]),
        st.booleans(),
    )  # fmt: skip
    def test_never_too_little(
        self, rules: list[Rule], request: str, status: int | None, wrote: bool
    ) -> None:
        """No decision asks for more than the start foresaw, but that something was written."""
        made = policy(*rules)
        method, path = request.split(" ")
        foreseen = LEVELS.index(made.assess_head(method, path).level)
        found = LEVELS.index(level(made, request, status=status, wrote=wrote))
        assert found <= max(foreseen, LEVELS.index("changes") if wrote else 0)


class TestTargets:
    def target(self, request: str, parameters: Any, **facts: Any) -> Target | None:
        return decide(policy(), request, scope={"path_params": parameters}, **facts).target

    def test_from_parameters(self) -> None:
        """The target is the last resource and its parameter."""
        found = self.target("PUT /orders/{o}/items/{i}", {"o": 1, "i": 2})
        assert found == Target(type="item", id="2")

    def test_not_yet_known(self) -> None:
        """What is being created has no id yet."""
        assert self.target("POST /orders", {}) == Target(type="order")

    def test_secret_parameters(self) -> None:
        """A parameter that lets in whoever knows it is no id."""
        for name in ("token", "reset_token", "resetToken", "otp"):
            found = self.target(f"PUT /invites/{{{name}}}", {name: "canary"})
            assert found == Target(type="invite")

    @pytest.mark.parametrize("value", ["x" * 999, "a\nb", "\ud800", object()])
    def test_odd_values(self, value: Any) -> None:
        """An id is bounded text without control characters."""
        found = self.target("PUT /orders/{id}", {"id": value})
        assert found is not None
        assert found.id is not None
        assert len(found.id) <= 256
        assert "\n" not in found.id
        assert found.id.encode()

    def test_without_route(self) -> None:
        """Where no route was reached the path itself tells."""
        found = decide(policy(), "POST /orders/7/refund", route=None, status=401)
        assert (found.event_name, found.target) == ("order.refunded", Target(type="order", id="7"))


class TestRoutesOwnWords:
    def decide(self, endpoint: Any = None, route: Any = None, **facts: Any) -> PolicyDecision:
        scope = {"endpoint": endpoint, "route": route, "path_params": {"order_id": 7}}
        return decide(policy(), "POST /orders/{order_id}/x", scope=scope, **facts)

    def test_decorator(self) -> None:
        """The decorator names event, target, action and level."""

        @audit_route("order.refund", target="order:{order_id}", action="REFUND", level="changes")
        async def refund() -> None: ...

        assert self.decide(refund) == PolicyDecision(
            "changes", "order.refund", "REFUND", Target(type="order", id="7"), "route"
        )

    def test_parts(self) -> None:
        """What it leaves out stays as the policy has it."""

        @audit_route(target="invoice")
        def endpoint() -> None: ...

        found = self.decide(endpoint)
        assert (found.level, found.target, found.rule) == (
            "request_response",
            Target(type="invoice"),
            "writes",
        )

    def test_missing_parameter(self) -> None:
        """A target whose parameter is missing or secret has no id."""
        for template in ("order:{nothing}", "order:{token}"):

            @audit_route(target=template)
            def endpoint() -> None: ...

            scope = {"endpoint": endpoint, "path_params": {"token": "canary"}}
            assert decide(policy(), scope=scope).target == Target(type="order")

    @pytest.mark.parametrize(
        ("extension", "expected"),
        [
            ("order.refund", ("request_response", "order.refund")),
            ({"event": "order.refund", "level": "metadata"}, ("metadata", "order.refund")),
            (False, ("none", "order.x_set")),
        ],
    )
    def test_extension(self, extension: Any, expected: tuple[str, str]) -> None:
        """The route's OpenAPI description does the same."""

        class Route:
            openapi_extra = {"x-audit": extension}

        found = self.decide(route=Route())
        assert (found.level, found.event_name) == expected

    @pytest.mark.parametrize("extension", [7, [], {"evnt": "x.y"}, {"level": "all"}, {"event": 1}, "NO", {"target": "{x}"}])  # fmt: skip
    def test_wrong_extension(self, extension: Any) -> None:
        """A wrong description is not used, and breaks nothing."""

        class Route:
            openapi_extra = {"x-audit": extension}

        assert self.decide(route=Route()).rule == "writes"

    def test_wrong_decorator(self) -> None:
        """A wrong decorator is refused where it stands."""
        for arguments in ({"event": "Refund!"}, {"level": "all"}, {"target": ":x"}, {"action": "x"}, {"body_limit": -1}):  # fmt: skip
            with pytest.raises(ConfigurationError, match=next(iter(arguments))):
                audit_route(**arguments)

    def test_none_but_wrote(self) -> None:
        """A route cannot hide what it writes."""

        @audit_route(level="none")
        def endpoint() -> None: ...

        assert self.decide(endpoint).level == "none"
        assert self.decide(endpoint, wrote=True).level == "changes"


class TestPolicyFile:
    def read(self, tmp_path: Path, text: str, **settings: Any) -> Policy:
        file = tmp_path / "policy.toml"
        file.write_text(text, "utf-8")
        return policy(policy_file=file, **settings)

    def test_rules(self, tmp_path: Path) -> None:
        """Rules may be given in a TOML file."""
        made = self.read(
            tmp_path,
            """
            [[rule]]
            name = "quiet"
            level = "none"
            paths = "/ping/**"
            methods = ["POST"]

            [[rule]]
            level = "changes"
            status = [404, "5xx"]
            """,
        )
        assert decide(made, "POST /ping").rule == "quiet"
        assert level(made, status=404) == "changes"
        assert level(made, status=200) == "request_response"

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("[[rule]]\npaths = ['/x']", "rule 1: level: missing"),
            ("[[rule]]\nlevel = 'all'", "rule 1: level"),
            (
                "[[rule]]\nlevel = 'none'\n[[rule]]\nlevel = 'none'\npath = '/x'",
                "rule 2: path: unknown",
            ),
            ("[[rule]]\nlevel = 'none'\npaths = ['x']", "paths"),
            ("[[rule]]\nlevel = 'none'\nstatus = ['6xx']", "status"),
            ("[[rule]]\nlevel = 'none'\nsample = 0", "sample"),
            ("[[rule]]\nlevel = 'metadata'\nmethods = ['POST']\nsample = 2", "never sampled"),
            ("[[rule]]\nlevel = 'none'\nwrote = 'yes'", "wrote"),
            ("[[rule]]\nlevel = 'none'\nevent = 'Order Placed'", "event"),
            ("[[rules]]\nlevel = 'none'", "rules"),
            ("rule = 'none'", "list of rules"),
            ("not toml", "POLICY_FILE"),
        ],
    )
    def test_wrong(self, tmp_path: Path, text: str, named: str) -> None:
        """A wrong rule is refused at start-up; the message says file, rule and field."""
        with pytest.raises(ConfigurationError, match=named) as caught:
            self.read(tmp_path, text)
        assert "OTEL_AUDIT_POLICY_FILE" in str(caught.value)

    def test_missing(self, tmp_path: Path) -> None:
        """A missing file is refused at start-up."""
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_POLICY_FILE"):
            policy(policy_file=tmp_path / "none.toml")

    def test_settings_first(self, tmp_path: Path) -> None:
        """Rules in the settings are asked before those of the file."""
        file = tmp_path / "policy.toml"
        file.write_text("[[rule]]\nlevel = 'none'")
        assert level(policy({"level": "metadata"}, policy_file=file)) == "metadata"

    def test_wrong_paths(self) -> None:
        """A wrong path in the settings names its setting."""
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_EXCLUDE_PATHS"):
            policy(exclude_paths="health")


SEGMENTS = st.sampled_from(
    ["orders", "users", "", "a", "{id}", "*", "**", "{rest:path}", "x{id}", "{a}{b}", "v1", "a.b"]
)
TEMPLATES = st.lists(SEGMENTS, max_size=4).map(lambda parts: "/" + "/".join(parts))
PATHS = st.one_of(
    st.lists(
        st.sampled_from(["orders", "users", "", "a", "x7", "v1", "a.b", "a-b"]), max_size=5
    ).map(lambda parts: "/" + "/".join(parts)),
    st.sampled_from(["*", "", "orders", "//", "/orders/", "/orders//"]),
)
LEVELS_OR_NONE = st.sampled_from([*LEVELS, None])


class TestManyRoutes:
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([("GET",), ("POST",), ()]),
                TEMPLATES,
                st.builds(Override, level=LEVELS_OR_NONE, body_limit=st.sampled_from([None, 5, 9])),
            ),
            max_size=8,
        ),
        st.sampled_from(["GET", "POST", "WEBSOCKET"]),
        PATHS,
    )
    def test_the_index_finds_what_asking_each_would(
        self, routes: Any, method: str, path: str
    ) -> None:
        """What may be needed of a request is the same as if every route were asked in turn."""
        indexed = policy().with_routes(routes)
        asked = Policy((*indexed.routes, *indexed.rules))
        assert indexed.assess_head(method, path) == asked.assess_head(method, path)

    def test_a_route_may_ask_for_messages(self) -> None:
        """Also without a level of its own."""
        made = policy().with_routes([(("WEBSOCKET",), "/feed/{id}", Override(messages=True))])
        assert made.assess_head("WEBSOCKET", "/feed/7").messages
        assert not made.assess_head("WEBSOCKET", "/other").messages
