"""`otel-audit policy` on a real FastAPI application."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from otel_audit.cli import terminal
from otel_audit.cli.policy import policy

if TYPE_CHECKING:
    from pathlib import Path

APP = """
from fastapi import APIRouter, FastAPI
from otel_audit.policy import audit_route

orders = APIRouter(prefix="/orders")

@orders.post("/{order_id}/refund")
@audit_route("order.refund", target="order:{order_id}")
def refund(order_id: int): ...

@orders.get("/{order_id}", openapi_extra={"x-audit": {"level": "metadata"}})
def read(order_id: int): ...

@orders.post("/quiet", openapi_extra={"x-audit": False})
def quiet(): ...

@orders.post("/wrong", openapi_extra={"x-audit": {"lvel": "none"}})
def wrong(): ...

inner = FastAPI(openapi_url=None)

@inner.put("/settings")
def settings(): ...

app = FastAPI()
app.include_router(orders, prefix="/api/v1")
app.mount("/inner", inner)

@app.websocket("/ws")
async def socket(websocket): ...

def make():
    return app
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "policy_cli_app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(policy, arguments)

    return call


def pairs(result: Result) -> dict[str, str]:
    assert result.exit_code == 0, result.output
    return dict(line.split(maxsplit=1) for line in result.stdout.splitlines())


class TestExplain:
    def test_path(self, run) -> None:
        """It prints rule, level, and name."""
        assert pairs(run("explain", "post", "/orders/1")) == {
            "rule": "writes", "level": "request_response", "event": "order.updated",
            "action": "UPDATE", "target": "order:1", "route": "-", "sampled": "-",
        }  # fmt: skip

    def test_facts(self, run) -> None:
        """It takes status, actor, and whether something was written."""
        assert pairs(run("explain", "GET", "/orders", "--status", "403"))["rule"] == "denials"
        assert pairs(run("explain", "GET", "/health", "--wrote"))["level"] == "changes"

    def test_with_app(self, run) -> None:
        """With an application it finds the route and what that says about itself."""
        found = pairs(
            run("explain", "POST", "/api/v1/orders/7/refund", "--app", "policy_cli_app:app")
        )
        assert (found["event"], found["target"]) == ("order.refund", "order:7")
        assert found["route"] == "/api/v1/orders/{order_id}/refund"

    def test_no_route(self, run) -> None:
        """A path that the application does not have is an error."""
        result = run("explain", "POST", "/nothing", "--app", "policy_cli_app:app")
        assert result.exit_code == 1
        assert "no route" in result.output


class TestRoutes:
    def test_names_are_whole_on_a_screen_of_80_columns(self, run, monkeypatch):
        """What is short is not folded; the action, which `policy explain` has, makes room."""
        monkeypatch.setattr(terminal, "screen_width", lambda: 80)
        lines = run("routes", "policy_cli_app:app").stdout.splitlines()
        assert lines[0].split() == ["METHOD", "ROUTE", "LEVEL", "EVENT", "RULE"]
        assert max(map(len, lines)) <= 80
        assert any({"request_response", "order.refund"} <= set(line.split()) for line in lines)
        monkeypatch.setattr(terminal, "screen_width", lambda: 120)
        assert "ACTION" in run("routes", "policy_cli_app:app").stdout

    @pytest.mark.usefixtures("run")
    def test_a_reader_that_leaves_is_no_error(self):
        """As with `| head`: status 1, and not a word."""
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-m", "otel_audit", "policy", "routes", "policy_cli_app:app"]
        try:
            done = subprocess.run(
                [*command, "--json"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
            )
        finally:
            os.close(writing)
        assert (done.returncode, done.stderr) == (1, "")

    def rows(self, result: Result) -> dict[tuple[str, str], list[str]]:
        lines = [line.split() for line in result.stdout.splitlines()[1:]]
        return {(line[0], line[1]): line[2:] for line in lines}

    def test_all(self, run) -> None:
        """Every route is listed, included routers and mounted applications as well."""
        result = run("routes", "policy_cli_app:app")
        assert result.exit_code == 0, result.output
        rows = self.rows(result)
        prefix = "/api/v1/orders"
        assert rows["POST", f"{prefix}/{{order_id}}/refund"] == [
            "request_response",
            "order.refund",
            "EXECUTE",
            "writes",
        ]
        assert rows["GET", f"{prefix}/{{order_id}}"][0] == "metadata"
        assert rows["PUT", "/inner/settings"][1] == "settings.updated"
        assert rows["WEBSOCKET", "/ws"][:2] == ["metadata", "ws.connected"]

    def test_warnings(self, run) -> None:
        """It warns of mutating routes that are not recorded, and of what cannot be used."""
        result = run("routes", "policy_cli_app:app", "--strict")
        assert result.exit_code == 1
        assert "POST /api/v1/orders/quiet writes, and is not recorded" in result.stderr
        assert "/api/v1/orders/wrong: x-audit" in result.stderr

    def test_factory(self, run) -> None:
        """The application may be made by a function."""
        assert ("WEBSOCKET", "/ws") in self.rows(run("routes", "policy_cli_app:make", "--factory"))

    @pytest.mark.parametrize(
        "name", ["nonsense", "no_such_module_here:app", "policy_cli_app:nothing"]
    )
    def test_wrong_name(self, run, name: str) -> None:
        """A wrong name is an error."""
        assert run("routes", name).exit_code != 0
