"""Every public name of each public module has a docstring, and the example in it runs."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import otel_audit_otlp
import otel_audit_postgres
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from fastapi import FastAPI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import otel_audit
import otel_audit.shapes
import otel_audit.testing
import otel_audit.viewer
from otel_audit import AuditConfig
from otel_audit._util.ids import uuid7
from otel_audit.record import to_json
from otel_audit.testing import make_record, recorded

ROOT = Path(__file__).parents[2]
STARTS_AUDITING = {"instrument", "uninstrument", "AuditInstrumentor", "InstrumentationError"}
NEEDS_A_STORE = {"wait_for_receipt", "flush"}
# without auditing it does nothing; test_orm_transactional.py tries the rest
NEEDS_A_TRANSACTION = {"emit_in_transaction"}


class Session:
    """An asynchronous session, as far as a call needs one where nothing is audited."""

    def run_sync(self) -> None: ...


def examples_of(public: object) -> list[str]:
    """The blocks after two colons in the docstring of a public name."""
    text = inspect.getdoc(public) or ""
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
    blocks = examples_of(getattr(otel_audit, name))
    assert blocks, f"{name} has no example"
    app = FastAPI()
    known: dict[str, Any] = {
        "otel_audit": otel_audit, "FastAPI": FastAPI, "app": app, "audit_route": otel_audit.audit_route,
        "db": Session(), "order": "order:7", "asyncio": __import__("asyncio"),
        "queue": None, "work": _work,
    }  # fmt: skip
    await _run(name, blocks, known)


@pytest.mark.parametrize("name", sorted(set(otel_audit.testing.__all__) - {"ANY"}))
async def test_the_example_of_a_name_for_tests_runs(name: str) -> None:
    """Each runs against an application with one route."""
    app = FastAPI()
    app.post("/orders", status_code=201)(lambda: None)
    known = {one: getattr(otel_audit.testing, one) for one in otel_audit.testing.__all__}
    blocks = examples_of(known[name])
    assert blocks, f"{name} has no example"
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        await _run(name, blocks, {**known, "app": app, "client": client})


@pytest.mark.parametrize("name", otel_audit_postgres.__all__)
async def test_the_example_of_a_name_of_the_store_runs(
    name: str, audit_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each runs against a store with a record."""
    monkeypatch.chdir(tmp_path)
    record = make_record("order.created", actor="ada", record_id=uuid7(), target="order:7")
    sink = otel_audit_postgres.PostgresSink(audit_store)
    await sink.write([record])
    await sink.close()
    known = {one: getattr(otel_audit_postgres, one) for one in otel_audit_postgres.__all__}
    blocks = examples_of(known[name])
    assert blocks, f"{name} has no example"
    another = make_record("order.paid", record_id=uuid7())
    await _run(name, blocks, {**known, "dsn": audit_store, "Path": Path, "record": another})


@pytest.mark.parametrize("name", otel_audit_otlp.__all__)
async def test_the_example_of_a_name_for_otlp_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each runs without a receiver: nothing is sent yet."""
    monkeypatch.setenv("OTEL_AUDIT_SPOOL_DIR", str(tmp_path))
    known: dict[str, Any] = {
        **{one: getattr(otel_audit_otlp, one) for one in otel_audit_otlp.__all__},
        "AuditConfig": AuditConfig, "TracerProvider": TracerProvider,
        "SimpleSpanProcessor": SimpleSpanProcessor,
    }  # fmt: skip
    blocks = examples_of(known[name])
    assert blocks, f"{name} has no example"
    await _run(name, blocks, known)
    if "provider" in known:
        known["provider"].shutdown()


@pytest.mark.parametrize("name", sorted(set(otel_audit.viewer.__all__)))
async def test_the_example_of_a_name_of_the_viewer_runs(name: str) -> None:
    """Each runs without a store: nobody looks yet."""
    key = Ed25519PrivateKey.generate()
    known: dict[str, Any] = {
        **{one: getattr(otel_audit.viewer, one) for one in otel_audit.viewer.__all__},
        "app": FastAPI(), "dsn": "postgresql://viewer@127.0.0.1:1/audit", "who": lambda _: None,
        "private_key": key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ).decode(),
        "public_key": key.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        ).decode(),
    }  # fmt: skip
    blocks = examples_of(known[name])
    assert blocks, f"{name} has no example"
    await _run(name, blocks, known)


@pytest.mark.parametrize("name", ["Event", "UnshapeableError", "read_event", "shape_named"])
async def test_the_example_of_a_name_of_the_shapes_runs(name: str) -> None:
    """Each runs with a record."""
    known: dict[str, Any] = {
        **{one: getattr(otel_audit.shapes, one) for one in otel_audit.shapes.__all__},
        "payload": to_json(make_record("order.paid")).decode(), "content_hash": bytes(32),
    }  # fmt: skip
    blocks = examples_of(known[name])
    assert blocks, f"{name} has no example"
    await _run(name, blocks, known)


async def _run(name: str, blocks: list[str], known: dict[str, Any]) -> None:
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


def public_modules() -> set[str]:
    """The modules of ours that the page names as public."""
    table = (ROOT / "docs" / "api.md").read_text().partition("## Starting and stopping")[0]
    return {*re.findall(r"^\| `(otel_audit[\w.]*)` \|", table, re.MULTILINE)}


def test_every_other_package_says_that_it_is_private() -> None:
    """Who looks into a package from inside an editor sees it, too."""
    found = {
        ".".join(path.parent.relative_to(root).parts): "\nPrivate: " in path.read_text()
        for root in (ROOT / "src", ROOT / "exporters")
        for path in root.rglob("__init__.py")
    }
    public = {name for name, is_private in found.items() if not is_private}

    assert public == public_modules() & {*found}
    assert len(found) > len(public) > 5


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_no_page_imports_a_private_module(page: Path) -> None:
    """What a page shows, a reader copies into an application."""
    code = "\n".join(
        re.findall(r"^```\w*[^\n]*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    )
    imported = re.findall(
        r"^\s*(?:from (otel_audit[\w.]*) import (.+)|import (otel_audit[\w.]*))", code, re.MULTILINE
    )
    named = {
        f"{package}.{name}" if f"{package}.{name}" in public_modules() else package or module
        for package, names, module in imported
        for name in re.findall(r"^\w+|(?<=, )\w+", names) or [""]
    }

    assert named - public_modules() == set()
