"""GraphQL and JSON-RPC: named by what is asked for, judged by what is answered."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

import otel_audit
from otel_audit import AuditConfig
from otel_audit.record import AuditRecord
from otel_audit.testing import recorded

REFUND = {"query": "mutation { refundOrder(id: 1) { id } }"}
CALL = {"jsonrpc": "2.0", "method": "order.refund", "id": 1}


def ask(path: str, body: Any, answer: Any, config: AuditConfig | None = None) -> AuditRecord:
    """Have one question answered; its record."""
    app = FastAPI()

    @app.post("/graphql")
    @app.post("/rpc")
    @app.post("/")
    async def handle(request: Request) -> Any:
        await request.body()
        return answer

    @app.post("/audited")
    @otel_audit.audit_route(event="money.returned")
    async def named(request: Request) -> Any:
        return await handle(request)

    async def call() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            await client.post(path, json=body)

    with recorded(app, config=config or AuditConfig(exporter="none")) as records:
        asyncio.run(call())
    return records.one()


class TestOperations:
    def test_graphql(self):
        """A mutation has a name and a target of its own."""
        record = ask("/graphql", REFUND, {"data": {"refundOrder": {"id": 1}}})
        assert (record.event_name, record.outcome) == ("order.refunded", "success")
        assert record.target.type == "order"
        assert record.metadata["graphql.fields"] == ["refundOrder"]
        assert record.metadata["graphql.operation.type"] == "mutation"

    def test_a_query_that_is_sent_by_post_is_recorded_as_a_write(self):
        """The operation gives the name; the level is the method's."""
        record = ask("/graphql", {"query": "{ order(id: 1) { id } }"}, {"data": {"order": None}})
        assert (record.event_name, record.action) == ("order.accessed", "READ")
        assert record.level == "request_response"

    def test_graphql_errors(self):
        """An answer with errors is no success, though its status is 200."""
        record = ask("/graphql", REFUND, {"data": None, "errors": [{"message": "no"}]})
        assert (record.event_name, record.outcome) == ("order.refunded", "failure")
        assert (record.response.status_code, record.error.type) == (200, "GraphQLError")

    @pytest.mark.parametrize("path", ["/rpc", "/"])
    def test_json_rpc(self, path):
        """A call has one wherever it is sent to."""
        record = ask(path, CALL, {"jsonrpc": "2.0", "result": 1, "id": 1})
        assert (record.event_name, record.outcome) == ("order.refunded", "success")
        assert record.metadata["rpc.method"] == "order.refund"

    def test_json_rpc_error(self):
        """An error is no success; its code is told."""
        record = ask("/rpc", CALL, {"jsonrpc": "2.0", "error": {"code": -32000}, "id": 1})
        assert (record.outcome, record.error.type) == ("failure", "JSONRPCError")
        assert record.metadata["rpc.jsonrpc.error_code"] == -32000

    @pytest.mark.parametrize(
        "config",
        [
            AuditConfig(exporter="none", capture_request_body=False, capture_response_body=False),
            AuditConfig(exporter="none", level="metadata"),
        ],
    )
    def test_bodies_that_are_not_kept(self, config):
        """They are looked at, and not recorded."""
        record = ask("/graphql", REFUND, {"errors": [{"message": "no"}]}, config)
        assert (record.event_name, record.outcome) == ("order.refunded", "failure")
        assert (record.request.body, record.response.body) == (None, None)

    def test_several_at_once(self):
        """None of them hides the others."""
        body = {"query": "mutation { viewOrder { id } deleteUser { id } }"}
        record = ask("/graphql", body, {"data": {}})
        assert record.event_name == "graphql.executed"
        assert record.metadata["graphql.fields"] == ["viewOrder", "deleteUser"]

    def test_what_the_route_is_called(self):
        """A name that a person chose stays; the answer counts all the same."""
        record = ask("/audited", CALL, {"jsonrpc": "2.0", "error": {"code": 1}, "id": 1})
        assert (record.event_name, record.outcome) == ("money.returned", "failure")

    def test_an_answer_without_the_question(self):
        """An ordinary answer with a member `errors` says nothing."""
        record = ask("/", {"a": 1}, {"errors": [{"row": 3}]})
        assert record.outcome == "success"

    def test_secrets_in_names(self):
        """What a client calls its operation is redacted as everything else."""
        label = "ghp_0123456789abcdefghijABCDEFGHIJ012345"
        record = ask("/graphql", {"query": f"mutation {label} {{ refundOrder }}"}, {"data": {}})
        assert label not in str(record)
