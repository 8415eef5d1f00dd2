"""Every public name has a docstring, and the example in it runs."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

import otel_audit
from otel_audit import AuditConfig
from otel_audit.testing import recorded

ROOT = Path(__file__).parents[2]
STARTS_AUDITING = {"instrument", "uninstrument", "AuditInstrumentor", "InstrumentationError"}
NEEDS_A_STORE = {"wait_for_receipt", "flush"}
# without auditing it does nothing; test_orm_transactional.py tries the rest
NEEDS_A_TRANSACTION = {"emit_in_transaction"}


class Session:
    """An asynchronous session, as far as a call needs one where nothing is audited."""

    def run_sync(self) -> None: ...


def examples_of(name: str) -> list[str]:
    """The blocks after two colons in the docstring of a public name."""
    text = inspect.getdoc(getattr(otel_audit, name)) or ""
    found = re.findall(r"::\n\n((?:    .*\n|\n)+)", text + "\n")
    return [textwrap.dedent(block) for block in found]


@pytest.fixture
def audited(request: pytest.FixtureRequest) -> Iterator[None]:
    name = request.node.callspec.params["name"]
    if name in NEEDS_A_STORE:
        otel_audit.instrument(config=AuditConfig(dsn=request.getfixturevalue("audit_store")))
        yield
        otel_audit.uninstrument()
    elif name in STARTS_AUDITING | NEEDS_A_TRANSACTION:
        yield
        otel_audit.uninstrument()
    else:
        with recorded():
            yield


@pytest.mark.parametrize("name", otel_audit.__all__)
async def test_the_example_of_a_public_name_runs(name: str, audited: None) -> None:
    """Each name shows how it is used, and that works."""
    blocks = examples_of(name)
    assert blocks, f"{name} has no example"
    app = FastAPI()
    known: dict[str, Any] = {
        "otel_audit": otel_audit, "FastAPI": FastAPI, "app": app, "audit_route": otel_audit.audit_route,
        "db": Session(), "order": "order:7", "asyncio": __import__("asyncio"),
        "queue": None, "work": _work,
    }  # fmt: skip
    for block in blocks:
        code = compile(block, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        done = eval(code, known)
        if inspect.isawaitable(done):
            await done


async def _work(_queue: object) -> None:
    """What the example of `detached` starts."""


def test_the_page_names_what_is_public() -> None:
    """`docs/api.md` lists each public name once, and no other."""
    page = (ROOT / "docs" / "api.md").read_text().partition("## Starting and stopping")[2]
    listed = re.findall(r"^\| `(\w+)`", page, re.MULTILINE)

    assert sorted(listed) == sorted(otel_audit.__all__)
