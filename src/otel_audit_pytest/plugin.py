"""Fixtures, markers and options. Everything that is heavy is imported where it is first used."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from otel_audit import AuditConfig
    from otel_audit.testing.coverage import Coverage, Judgement
    from otel_audit.testing.store import AuditStore, PostgresServer
    from otel_audit.testing.trail import Audit

_COVERAGE = "otel_audit_coverage"
_FORMATS = {".md": "as_markdown", ".json": "as_json", ".xml": "as_xml"}
_audit_key = pytest.StashKey["Audit"]()
_run_key = pytest.StashKey["_Run"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the settings and options."""
    group = parser.getgroup("otel-audit", "the audit trail of an application")
    group.addoption(
        "--audit-coverage",
        action="store_true",
        help="fail unless each route is called, and each one that may write is recorded",
    )
    group.addoption(
        "--audit-coverage-report",
        action="append",
        default=[],
        metavar="FILE",
        help="write the coverage there, too: .md, .json or .xml; may be repeated",
    )
    parser.addini("audit_app", 'the application that is audited: "shop.main:app"', default="")
    parser.addini(
        "audit_server_dsn", "a PostgreSQL for audit_store; by default, an embedded one", default=""
    )
    parser.addini("audit_canaries", "values that no test may let out", type="linelist", default=[])
    parser.addini(
        "audit_coverage_file", "routes that need not be recorded", default="audit-coverage.toml"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Keep an application that audits itself from doing so: the tests do it.

    Where it does all the same, what no store takes is left in no spool of the user's.
    """
    if "OTEL_AUDIT_SPOOL_DIR" not in os.environ:
        spool = tempfile.mkdtemp(prefix="otel-audit-pytest-")
        os.environ["OTEL_AUDIT_SPOOL_DIR"] = spool
        # registered first, so it is done last: the application's own end uses the spool
        atexit.register(shutil.rmtree, spool, ignore_errors=True)
    if early_config.getini("audit_app"):
        os.environ.setdefault("OTEL_AUDIT_ENABLED", "false")


def pytest_configure(config: pytest.Config) -> None:
    """Name the markers, and check what can be checked before any test runs."""
    config.addinivalue_line(
        "markers", "audited(event, **fields): the test fails unless this is recorded"
    )
    config.addinivalue_line("markers", "not_audited: the test fails if anything is recorded")
    if config.getoption("--audit-coverage"):
        for name in config.getoption("--audit-coverage-report"):
            if Path(name).suffix not in _FORMATS:
                raise pytest.UsageError(
                    f"--audit-coverage-report={name}: expected a name with .md, .json or .xml"
                )
        config.stash[_run_key] = _Run(config)
    elif config.getoption("--audit-coverage-report"):
        raise pytest.UsageError("--audit-coverage-report needs --audit-coverage")


@pytest.fixture(scope="session")
def audit_app(pytestconfig: pytest.Config) -> Any:
    """The application that is audited: that of the setting ``audit_app``, or override this."""
    return _app(pytestconfig)


@pytest.fixture
def audit_config() -> AuditConfig:
    """The settings that are at work; those of environment and file, or override this."""
    from otel_audit.config import AuditConfig

    return AuditConfig(exporter="none")


@pytest.fixture
def audit(
    request: pytest.FixtureRequest,
    audit_app: Any,
    audit_config: AuditConfig,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Audit]:
    """The audit records of this test, in memory, and assertions about them."""
    from otel_audit.errors import OtelAuditError
    from otel_audit.testing.trail import audit_trail

    spool = tmp_path_factory.getbasetemp() / "otel-audit-spool" / str(id(request.node))
    monkeypatch.setenv("OTEL_AUDIT_SPOOL_DIR", str(spool))
    trail = audit_trail(audit_app, config=audit_config, spool=spool)
    try:
        found = trail.__enter__()
    except OtelAuditError as error:
        pytest.fail(f"the fixture audit: {error}", pytrace=False)
    try:
        request.node.stash[_audit_key] = found
        yield found
    finally:
        run = request.config.stash.get(_run_key, None)
        if run is not None:
            run.coverage.add(found.requests, found.routes, found.config)
        del request.node.stash[_audit_key]
        trail.__exit__(None, None, None)


@pytest.fixture(autouse=True)
def _audit_where_wanted(request: pytest.FixtureRequest) -> None:
    """Audit a test that does not ask for it, where a marker or an option does."""
    node = request.node
    if (
        _run_key in request.config.stash
        or node.get_closest_marker("audited") is not None
        or node.get_closest_marker("not_audited") is not None
        or request.config.getini("audit_canaries")
    ):
        request.getfixturevalue("audit")


@pytest.fixture(scope="session")
def audit_server(pytestconfig: pytest.Config) -> Iterator[PostgresServer]:
    """A PostgreSQL for the whole run: that of ``audit_server_dsn``, or an embedded one."""
    from otel_audit.errors import OtelAuditError

    dsn = pytestconfig.getini("audit_server_dsn")
    try:
        from otel_audit.testing.store import embedded_server, running_server

        context = running_server(dsn) if dsn else embedded_server()
        server = context.__enter__()
    except OtelAuditError as error:
        pytest.fail(str(error), pytrace=False)
    yield server
    context.__exit__(None, None, None)


@pytest.fixture
def audit_store(audit_server: PostgresServer) -> Iterator[AuditStore]:
    """An audit store of its own for each test."""
    from otel_audit.testing.store import AuditStore

    with audit_server.database() as dsn:
        yield AuditStore(dsn)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """After the test's own assertions: those of its markers, and the canaries."""
    result = yield
    audit = item.stash.get(_audit_key, None)
    if audit is not None:
        try:
            _check_markers(item, audit)
            canaries = item.config.getini("audit_canaries")
            if canaries:
                audit.no_secrets(*canaries)
        except (AssertionError, TypeError, ValueError) as error:
            pytest.fail(str(error), pytrace=False)
    return result


def _check_markers(item: pytest.Item, audit: Audit) -> None:
    for marker in item.iter_markers("audited"):
        audit.recorded(*marker.args, **marker.kwargs)
    if item.get_closest_marker("not_audited") is not None:
        audit.nothing()


def _app(config: pytest.Config) -> Any:
    name = config.getini("audit_app")
    if not name:
        if _run_key in config.stash:
            pytest.exit(_NO_APP, returncode=pytest.ExitCode.USAGE_ERROR)
        return None
    from otel_audit.errors import OtelAuditError
    from otel_audit.testing.routes import load_app

    try:
        return load_app(name, config.rootpath)
    except OtelAuditError as error:
        pytest.fail(str(error), pytrace=False)


_NO_APP = (
    '--audit-coverage needs to know the application: set audit_app = "module:app" in pytest\'s '
    "settings, or override the fixture audit_app"
)


class _Run:
    """The coverage of a run, in this process and in its workers."""

    def __init__(self, config: pytest.Config) -> None:
        from otel_audit.errors import OtelAuditError
        from otel_audit.testing.coverage import Coverage
        from otel_audit.testing.exceptions import read_exceptions

        self.coverage: Coverage = Coverage()
        self.judgement: Judgement | None = None
        self.problem: str | None = None
        try:
            self._exceptions = read_exceptions(
                config.rootpath / config.getini("audit_coverage_file")
            )
        except OtelAuditError as error:
            raise pytest.UsageError(str(error)) from error

    def judge(self, config: pytest.Config) -> bool:
        """Compare, and write the reports; return whether all is well."""
        import datetime as dt

        today = dt.datetime.now(dt.UTC).date()
        self.judgement = self.coverage.judge(self._exceptions, today)
        for name in config.getoption("--audit-coverage-report"):
            file = config.invocation_params.dir / name
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(getattr(self.judgement, _FORMATS[file.suffix])(), "utf-8")
            except OSError as error:
                self.problem = f"--audit-coverage-report={name}: cannot be written: {error}"
        return not self.judgement.faults and self.problem is None


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:  # noqa: ARG001 - pytest-xdist names it
    """Add what a worker of pytest-xdist has seen."""
    run = node.config.stash.get(_run_key, None)
    if run is not None:
        run.coverage.merge(getattr(node, "workeroutput", {}).get(_COVERAGE, []))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the coverage to the controller, or judge it."""
    run = session.config.stash.get(_run_key, None)
    if run is None or session.config.option.collectonly:
        return
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_COVERAGE] = run.coverage.plain()
        return
    well = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if not run.judge(session.config) and session.exitstatus in well:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what the coverage comes to."""
    run = terminalreporter.config.stash.get(_run_key, None)
    if run is None or run.judgement is None:
        return
    terminalreporter.section("audit coverage", sep="=")
    for route, fault in run.judgement.faults.items():
        terminalreporter.write_line(f"{route}: {fault}", red=True)
    if run.problem:
        terminalreporter.write_line(run.problem, red=True)
    terminalreporter.write_line(run.judgement.summary())
