"""Names for what a body asks for: GraphQL and JSON-RPC."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otel_audit.policy.body_operations import (
    carries_operations,
    name_operations,
    read_failure,
    read_operations,
)
from otel_audit.policy.graphql import read_operation


def graphql(document: str, name: str | None = None) -> bytes:
    return json.dumps({"query": document, "operationName": name}).encode()


def named(body: bytes) -> tuple[str, str] | None:
    operations = read_operations(body)
    naming = None if operations is None else name_operations(operations)
    return None if naming is None else (naming.event_name, naming.action)


class TestGraphQL:
    @pytest.mark.parametrize(
        ("document", "event", "action"),
        [
            ("mutation { refundOrder(id: 1) { id } }", "order.refunded", "EXECUTE"),
            ("mutation refundOrder { refundOrder(id: 1) { id } }", "order.refunded", "EXECUTE"),
            ("mutation { createOrder { id } }", "order.created", "CREATE"),
            ("mutation { deleteUser(id: 1) }", "user.deleted", "DELETE"),
            ("mutation { userCreate(id: 1) { id } }", "user.created", "CREATE"),
            ("mutation { paymentIntentConfirm { id } }", "payment_intent.confirmed", "EXECUTE"),
            ("mutation { login(user: 1) { token } }", "user.logged_in", "LOGIN"),
            ("mutation { orders { refund(id: 1) { id } } }", "order.executed", "EXECUTE"),
            ("{ orders { id } }", "order.accessed", "READ"),
            ("query Q($id: ID! = 3) { order(id: $id) { id } }", "order.accessed", "READ"),
            ("query { searchOrders { id } }", "order.searched", "READ"),
            ("query { getOrder(id: 1) { id } }", "order.accessed", "READ"),
        ],
    )
    def test_names(self, document, event, action):
        """The root field says on what and what was done; a noun alone does not say what."""
        assert named(graphql(document)) == (event, action)

    @pytest.mark.parametrize(
        "document",
        [
            "mutation viewOrder { deleteOrder(id: 1) { id } }",
            "mutation { viewOrder: deleteOrder(id: 1) { id } }",
            "mutation M { ...F } fragment F on Mutation { viewOrder: deleteOrder(id: 1) { id } }",
            "mutation { ... on Mutation @skip(if: false) { deleteOrder(id: 1) { id } } }",
            "mutation { ... { deleteOrder(id: 1) { viewOrder { id } } } }",
            'mutation { deleteOrder(note: "} } { viewOrder") { id } }',
            'mutation { deleteOrder(note: """ } \\""" viewOrder { """) { id } }',
            "mutation { # viewOrder }\n deleteOrder(id: {a: [1, 2]}) @x(y: {z: 1}) { id } }",
            "\ufeffmutation,M,{deleteOrder}",
            "query A { viewOrder } mutation M { deleteOrder }",
        ],
    )
    def test_a_client_cannot_choose_another_name(self, document):
        """Names of operations, aliases, texts and comments are its own; the field is the schema's."""
        name = "M" if "query A" in document else None
        assert named(graphql(document, name)) == ("order.deleted", "DELETE")

    @pytest.mark.parametrize(
        "document",
        [
            "mutation { viewOrder { id } deleteOrder { id } }",
            "query { __schema { types { name } } }",
            "query A { a } query B { b }",
            "mutation {",
            "mutation { a(",
            "mutation { ...F }",
            'mutation { a(x: """',
            "subscription",
            "",
            "nonsense",
        ],
    )
    def test_no_name(self, document):
        """Of several things none hides the others; what is not understood has no name."""
        assert named(graphql(document)) is None

    def test_a_batch(self):
        """Several of one kind have that name; others none."""
        refund = {"query": "mutation { refundOrder(id: 1) { id } }"}
        other = {"query": "mutation { deleteOrder(id: 1) { id } }"}
        assert named(json.dumps([refund, refund]).encode()) == ("order.refunded", "EXECUTE")
        assert named(json.dumps([refund, other]).encode()) is None
        assert named(json.dumps([refund, {"id": "persisted"}]).encode()) is None

    @given(st.text(alphabet='{}()[]:@!$=|&."#\\\n ,abmutaionqery_1', max_size=300))
    @example('mutation { a(x: """\\""" }')
    def test_any_document(self, document):
        """Whatever is sent is read or not understood."""
        found = read_operation(document)
        assert found is None or found.fields

    @pytest.mark.parametrize(
        "piece", ["{a", "...{", '"', '"""', "@a(", "a:", "fragment F on T {", "("]
    )
    def test_a_long_document(self, piece):
        """Reading takes a time that grows with the length, and has a bound."""
        document = f"mutation {{ {piece * 30_000}"
        started = time.process_time()
        read_operation(document)
        assert time.process_time() - started < 2


class TestJsonRpc:
    @pytest.mark.parametrize(
        ("method", "event", "action"),
        [
            ("order.refund", "order.refunded", "EXECUTE"),
            ("refundOrder", "order.refunded", "EXECUTE"),
            ("orders/refund", "order.refunded", "EXECUTE"),
            ("order:delete", "order.deleted", "DELETE"),
            ("shop.order.cancel", "order.cancelled", "EXECUTE"),
            ("user.get", "user.accessed", "READ"),
            ("ping", "ping.executed", "EXECUTE"),
            ("tools/call", "order.refunded", "EXECUTE"),
        ],
    )
    def test_names(self, method, event, action):
        """The method says what was done; of the Model Context Protocol the tool."""
        call = {"jsonrpc": "2.0", "method": method, "params": {"name": "refund_order"}, "id": 1}
        assert named(json.dumps(call).encode()) == (event, action)

    @pytest.mark.parametrize(
        "body",
        [
            b'{"method": "order.refund"}',
            b'{"jsonrpc": "2.0", "method": 7}',
            b'{"jsonrpc": "2.0", "method": "a b"}',
            b'{"jsonrpc": "2.0", "method": "' + b"a" * 100 + b'"}',
            b"[]",
            b"{",
            b"",
            b"[1, 2]",
            b'"text"',
            b"[" * 100_000,
            b"\xff\xfe",
        ],
    )
    def test_no_call(self, body):
        """What is no call is none."""
        assert read_operations(body) is None

    def test_a_batch(self):
        """Different methods in one body have no name together."""
        calls = [{"jsonrpc": "2.0", "method": name} for name in ("order.refund", "user.delete")]
        operations = read_operations(json.dumps(calls).encode())
        assert operations is not None
        assert operations.names == ("order.refund", "user.delete")
        assert name_operations(operations) is None


class TestFailures:
    @pytest.mark.parametrize(
        ("system", "body", "whole", "failed"),
        [
            ("graphql", b'{"data": null, "errors": [{"message": "x"}]}', True, True),
            ("graphql", b'{"data": {"a": 1}, "errors": [{"message": "x"}]}', True, True),
            ("graphql", b'{"data": {"errors": [1]}}', True, False),
            ("graphql", b'{"data": {}, "errors": []}', True, False),
            ("graphql", b'[{"data": {}}, {"errors": [{}]}]', True, True),
            ("graphql", b'{"errors": [{"message": "x', False, True),
            ("graphql", b'{"data": {"a": "x', False, False),
            ("jsonrpc", b'{"jsonrpc": "2.0", "error": {"code": -32601}}', True, True),
            ("jsonrpc", b'{"jsonrpc": "2.0", "result": {"error": 1}}', True, False),
            ("jsonrpc", b'{"jsonrpc": "2.0", "error": null, "result": 1}', True, False),
            ("jsonrpc", b'[{"jsonrpc": "2.0", "error": {"code": "x"}}]', True, True),
            ("jsonrpc", b"", True, False),
            ("jsonrpc", b"{", True, False),
        ],
    )
    def test_errors(self, system, body, whole, failed):
        """An answer says itself that it failed, where the protocol's status is always 200."""
        assert (read_failure(body, system, whole=whole) is not None) == failed


@pytest.mark.parametrize(
    ("path", "carries"),
    [
        ("/graphql", True), ("/api/graphql/", True), ("/v1/gql", True), ("/rpc", True),
        ("/json-rpc", True), ("/mcp", True), ("/orders", False), ("/graphqlish", False),
        ("/", False),
    ],
)  # fmt: skip
def test_paths_with_one_name_for_everything(path, carries):
    """Their bodies have to be looked at."""
    assert carries_operations(path) == carries
