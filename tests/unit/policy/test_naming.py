"""What an action is called, from its method and route."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.policy.naming import NAME, name_action
from otel_audit.policy.words import participle, singular, split_words

REAL_ROUTES = Path(__file__).with_name("real_routes.csv")
"""Routes after the APIs of public applications, with the name that an auditor expects."""

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WEBSOCKET", "PROPFIND", ""]


WORDLESS = [
    "_",
    "À",
    "orders",
    "1:_",
    "x:À",
    "x:_:y",
    ":_",
    "{id}:_",
    "{_}",
    ":",
    "::",
    "é:cancel",
    "_:_",
    "0:cancel",
]


class TestNameAction:
    @pytest.mark.parametrize("method", METHODS)
    @given(segments=st.lists(st.one_of(st.sampled_from(WORDLESS), st.text(max_size=6)), max_size=5))
    def test_any_path_has_a_name(self, method: str, segments: list[str]) -> None:
        """Segments without a word, whichever way they are spelled, leave a name of the usual form."""
        for is_template in (True, False):
            found = name_action(method, "/" + "/".join(segments), is_template=is_template)
            assert NAME.fullmatch(found.event_name)

    @pytest.mark.parametrize(
        ("method", "route", "event", "action", "parameter"),
        [
            # resources
            ("POST", "/orders", "order.created", "CREATE", None),
            ("GET", "/orders", "order.accessed", "READ", None),
            ("GET", "/orders/{order_id}", "order.accessed", "READ", "order_id"),
            ("HEAD", "/orders/{order_id}", "order.accessed", "READ", "order_id"),
            ("PUT", "/orders/{order_id}", "order.updated", "UPDATE", "order_id"),
            ("PATCH", "/orders/{order_id}", "order.updated", "UPDATE", "order_id"),
            ("DELETE", "/users/{id}", "user.deleted", "DELETE", "id"),
            ("POST", "/orders/{order_id}", "order.updated", "UPDATE", "order_id"),
            # prefixes and versions
            ("POST", "/api/v1/orders", "order.created", "CREATE", None),
            ("POST", "/api/2024-01-01/orders", "order.created", "CREATE", None),
            ("POST", "/v1.2/orders/", "order.created", "CREATE", None),
            ("POST", "/{version}/orders", "order.created", "CREATE", None),
            ("POST", "/admin/orders", "order.created", "CREATE", None),
            ("POST", "/api", "api.created", "CREATE", None),
            # plurals and styles
            ("POST", "/companies/{id}/people", "person.created", "CREATE", None),
            ("POST", "/addresses", "address.created", "CREATE", None),
            ("POST", "/order-lines", "order_line.created", "CREATE", None),
            ("POST", "/orderLines", "order_line.created", "CREATE", None),
            ("POST", "/statuses", "status.created", "CREATE", None),
            ("POST", "/news", "news.created", "CREATE", None),
            # what is done to many, in which format, and a verb before an id
            ("DELETE", "/users/bulk", "user.bulk_deleted", "DELETE", None),
            ("PATCH", "/items/batch", "item.batch_updated", "UPDATE", None),
            ("POST", "/batch", "batch.created", "CREATE", None),
            ("POST", "/reports/{id}/export/pdf", "report.exported", "READ", "id"),
            ("POST", "/user/update/{user_id}", "user.updated", "UPDATE", "user_id"),
            ("POST", "/order/cancel/{id}", "order.cancelled", "EXECUTE", "id"),
            ("POST", "/approve/{request_id}", "request.approved", "EXECUTE", "request_id"),
            ("POST", "/devices/{id}/pair", "device.paired", "EXECUTE", "id"),
            ("POST", "/sync", "sync.requested", "EXECUTE", None),
            # the last step of several
            ("POST", "/auth/webauthn/login/finish", "user.logged_in", "LOGIN", None),
            ("POST", "/auth/magic-link/verify", "user.logged_in", "LOGIN", None),
            ("POST", "/password/reset/confirm", "user.password_reset", "UPDATE", None),
            ("POST", "/auth/reset-password/confirm", "user.password_reset", "UPDATE", None),
            # nesting
            ("POST", "/orders/{order_id}/items", "item.created", "CREATE", None),
            ("DELETE", "/orders/{order_id}/items/{item_id}", "item.deleted", "DELETE", "item_id"),
            ("PUT", "/{tenant}/orders/{n:int}", "order.updated", "UPDATE", "n"),
            ("GET", "/files/{path:path}", "file.accessed", "READ", "path"),
            # parts of one thing
            ("PUT", "/users/{id}/password", "user.password_updated", "UPDATE", "id"),
            ("POST", "/users/{id}/avatar", "user.avatar_set", "UPDATE", "id"),
            ("DELETE", "/users/{id}/avatar", "user.avatar_deleted", "DELETE", "id"),
            ("PUT", "/users/{id}/settings", "user.settings_updated", "UPDATE", "id"),
            ("POST", "/users/{id}/2fa", "user.two_fa_set", "UPDATE", "id"),
            ("GET", "/users/me", "user.accessed", "READ", ""),
            # verbs
            ("POST", "/orders/{order_id}/refund", "order.refunded", "EXECUTE", "order_id"),
            ("POST", "/orders/{order_id}:cancel", "order.cancelled", "EXECUTE", "order_id"),
            ("POST", "/orders/{id}/ship", "order.shipped", "EXECUTE", "id"),
            ("POST", "/orders/{id}/pay", "order.paid", "EXECUTE", "id"),
            ("POST", "/orders/{id}/mark-paid", "order.marked_paid", "UPDATE", "id"),
            ("POST", "/users/{id}/send-invoice", "user.invoice_sent", "EXECUTE", "id"),
            ("POST", "/orders/search", "order.searched", "READ", None),
            ("GET", "/orders/export", "order.exported", "READ", None),
            ("POST", "/orders/bulk-delete", "order.bulk_deleted", "DELETE", None),
            ("GET", "/orders/new", "new.accessed", "READ", None),
            ("GET", "/files/{id}/share", "file.share_accessed", "READ", "id"),
            ("DELETE", "/files/{id}/lock", "file.lock_deleted", "DELETE", "id"),
            ("GET", "/newsletter/unsubscribe", "newsletter.unsubscribed", "EXECUTE", None),
            ("POST", "/createOrder", "order.created", "CREATE", None),
            ("GET", "/getOrders", "order.accessed", "READ", None),
            ("POST", "/search", "search.requested", "READ", None),
            # accounts
            ("POST", "/login", "user.logged_in", "LOGIN", None),
            ("POST", "/api/v1/auth/login", "user.logged_in", "LOGIN", None),
            ("POST", "/auth/token", "user.logged_in", "LOGIN", None),
            ("POST", "/token", "user.logged_in", "LOGIN", None),
            ("POST", "/session", "user.logged_in", "LOGIN", None),
            ("PUT", "/auth/session", "session.updated", "UPDATE", None),
            ("POST", "/auth", "user.logged_in", "LOGIN", None),
            ("POST", "/auth/google", "user.logged_in", "LOGIN", None),
            ("POST", "/login/{provider}", "user.logged_in", "LOGIN", None),
            ("POST", "/{tenant}/login", "user.logged_in", "LOGIN", None),
            ("POST", "/orgs/{org}/logout", "user.logged_out", "LOGOUT", None),
            ("POST", "/webauthn/login", "user.logged_in", "LOGIN", None),
            ("POST", "/servers/{id}/login", "server.logged_in", "LOGIN", "id"),
            ("POST", "/users/{id}/reset-password", "user.password_reset", "UPDATE", "id"),
            ("POST", "/users/me/mfa/enable", "user.mfa_enabled", "UPDATE", None),
            ("POST", "/auth/impersonate/{user_id}", "user.impersonated", "EXECUTE", "user_id"),
            ("PATCH", "/me", "user.updated", "UPDATE", ""),
            ("OPTIONS", "/orders/{id}", "order.options_requested", "EXECUTE", "id"),
            ("GET", "/auth/{provider}/callback", "user.logged_in", "LOGIN", None),
            ("GET", "/auth/google/callback", "user.logged_in", "LOGIN", None),
            ("GET", "/login", "login.accessed", "READ", None),
            ("GET", "/logout", "user.logged_out", "LOGOUT", None),
            ("POST", "/auth/refresh", "token.refreshed", "EXECUTE", None),
            ("POST", "/register", "user.registered", "CREATE", None),
            ("POST", "/password-reset/{token}", "user.password_reset", "UPDATE", None),
            ("POST", "/sessions", "session.created", "CREATE", None),
            ("POST", "/webhooks/{id}/callback", "webhook.callback_set", "UPDATE", "id"),
            # the rest
            ("POST", "/graphql", "graphql.executed", "EXECUTE", None),
            ("POST", "/", "root.created", "CREATE", None),
            ("WEBSOCKET", "/ws/chat", "chat.connected", "EXECUTE", None),
            ("PROPFIND", "/files", "file.requested", "EXECUTE", None),
        ],
    )
    def test_routes(
        self, method: str, route: str, event: str, action: str, parameter: str | None
    ) -> None:
        """A route has the name that a reader of the trail would give it."""
        found = name_action(method, route)
        assert (found.event_name, found.action, found.target_parameter) == (
            event,
            action,
            parameter,
        )

    @pytest.mark.parametrize(
        ("path", "event", "target_id"),
        [
            ("/orders/1", "order.updated", "1"),
            ("/orders/0190c4f0-1111-7abc-8000-aaaaaaaaaaaa", "order.updated", "0190c4f0-1111-7abc-8000-aaaaaaaaaaaa"),
            ("/orders/01ARZ3NDEKTSV4RRFFQ69G5FAV/refund", "order.refunded", "01ARZ3NDEKTSV4RRFFQ69G5FAV"),
            ("/customers/cus_9s6XKzkNRiz8i3/cards", "card.created", None),
            ("/users/a@b.example", "user.updated", "a@b.example"),
            ("/orders", "order.created", None),
        ],
    )  # fmt: skip
    def test_paths_without_route(self, path: str, event: str, target_id: str | None) -> None:
        """In a path that no route took, what looks like an id is one, so that names stay few."""
        found = name_action("POST", path, is_template=False)
        assert (found.event_name, found.target_id) == (event, target_id)

    def test_routes_of_real_applications(self) -> None:
        """Of 314 routes of real applications at least 298 have the name an auditor expects."""
        with REAL_ROUTES.open(newline="") as file:
            routes = list(csv.DictReader(file))
        wrong = [
            f"{one['method']} {one['route']}: {found.event_name} {found.action}"
            for one in routes
            for found in [name_action(one["method"], one["route"])]
            if (found.event_name, found.action) != (one["event"], one["action"])
        ]
        assert len(routes) == 314
        assert len(wrong) <= 16, "\n".join(wrong)

    @pytest.mark.parametrize(
        ("method", "route", "event", "action"),
        [
            # verbs that are as often nouns stay nouns before another word
            ("POST", "/audit/logs", "log.created", "CREATE"),
            ("POST", "/test/results", "result.created", "CREATE"),
            ("POST", "/projects/{id}/merge_requests", "merge_request.created", "CREATE"),
            ("POST", "/share-links", "share_link.created", "CREATE"),
            # a verb before its object
            ("POST", "/cache/clear/sessions", "session.cleared", "DELETE"),
            ("POST", "/orders/create/from-cart", "order.created", "CREATE"),
            # a thing between two ids in the singular is referred to, in the plural it is owned
            ("POST", "/lists/{id}/recipe/{recipe_id}/delete", "recipe.removed", "DELETE"),
            ("POST", "/orders/{id}/items/{item_id}/delete", "item.deleted", "DELETE"),
            # the method of a call, the extension of a file, the version of an API
            ("POST", "/api/chat.postMessage", "chat.message_posted", "CREATE"),
            ("GET", "/orders/{id}/invoice.pdf", "order.invoice_accessed", "READ"),
            ("POST", "/v1.2/orders", "order.created", "CREATE"),
            # accounts, below a tenant too
            ("POST", "/{tenant}/auth/login", "user.logged_in", "LOGIN"),
            ("POST", "/users/{id}/tokens", "token.created", "CREATE"),
            ("POST", "/auth/2fa/verify", "user.two_fa_verified", "LOGIN"),
            ("DELETE", "/auth/session", "user.logged_out", "LOGOUT"),
            ("DELETE", "/auth/session/{id}", "session.deleted", "DELETE"),
        ],
    )
    def test_words_with_two_readings(
        self, method: str, route: str, event: str, action: str
    ) -> None:
        """Where a word can be a verb or a noun, its place decides."""
        found = name_action(method, route)
        assert (found.event_name, found.action) == (event, action)

    @pytest.mark.parametrize("path", ["/0:%C3%80", "/orders/1:_", "/x:À", "/:_", "/a:b:_:", "/:"])
    @pytest.mark.parametrize("template", [True, False])
    def test_custom_methods_without_words(self, path: str, template: bool) -> None:
        """What stands behind a colon and holds no letter or digit is no verb."""
        assert NAME.fullmatch(name_action("POST", path, is_template=template).event_name)

    @given(st.sampled_from(METHODS), st.text(), st.booleans())
    def test_any_path(self, method: str, path: str, template: bool) -> None:
        """Whatever the path, there is a well-formed name."""
        assert NAME.fullmatch(name_action(method, path, is_template=template).event_name)

    @given(
        st.sampled_from(METHODS),
        st.lists(st.sampled_from(["orders", "{id}", "login", "auth", "2fa", "9", "v1", "me", "mark-paid", "bulk", "new", "{a}:b", "s", "get", "ß", "callback", "-", "bulk-", "createOrder"])),
        st.booleans(),
    )  # fmt: skip
    def test_any_route(self, method: str, parts: list[str], template: bool) -> None:
        """Whatever the route is put together of, there is a well-formed name."""
        found = name_action(method, "/" + "/".join(parts), is_template=template)
        assert NAME.fullmatch(found.event_name)
        assert found.action.isupper()

    def test_long_paths(self) -> None:
        """A name does not grow with the path."""
        assert len(name_action("POST", "/" + "x" * 10_000, is_template=False).event_name) < 100
        assert len(name_action("POST", "/a" * 10_000, is_template=False).event_name) < 100


class TestWords:
    @pytest.mark.parametrize(
        ("plural", "expected"),
        [
            ("orders", "order"), ("companies", "company"), ("boxes", "box"), ("classes", "class"),
            ("branches", "branch"), ("wishes", "wish"), ("databases", "database"), ("heroes", "hero"),
            ("cases", "case"), ("houses", "house"), ("licenses", "license"), ("purchases", "purchase"),
            ("movies", "movie"), ("indices", "index"), ("series", "series"), ("status", "status"),
            ("people", "person"), ("children", "child"), ("archives", "archive"), ("leaves", "leaf"),
            ("analysis", "analysis"), ("bus", "bus"), ("keys", "key"), ("caches", "cache"),
            ("sizes", "size"), ("quizzes", "quiz"), ("os", "os"), ("s", "s"), ("", ""),
            ("images", "image"), ("invoices", "invoice"), ("aliases", "alias"), ("policies", "policy"),
            ("taxes", "tax"), ("data", "data"), ("fees", "fee"), ("employees", "employee"),
        ],
    )  # fmt: skip
    def test_singular(self, plural: str, expected: str) -> None:
        """The usual resources have their singular."""
        assert singular(plural) == expected

    @pytest.mark.parametrize(
        ("verb", "expected"),
        [
            ("refund", "refunded"), ("approve", "approved"), ("cancel", "cancelled"), ("ship", "shipped"),
            ("retry", "retried"), ("pay", "paid"), ("send", "sent"), ("reset", "reset"), ("sync", "synced"),
            ("submit", "submitted"), ("verify", "verified"), ("deploy", "deployed"), ("freeze", "frozen"),
            ("checkout", "checked_out"), ("withdraw", "withdrawn"), ("panic", "panicked"),
        ],
    )  # fmt: skip
    def test_participle(self, verb: str, expected: str) -> None:
        """The usual verbs have their past participle."""
        assert participle(verb) == expected

    @given(st.text())
    def test_split(self, text: str) -> None:
        """Words are lower case, of letters and digits."""
        assert all(
            word.isalnum() and word == word.lower() and word.isascii() for word in split_words(text)
        )
