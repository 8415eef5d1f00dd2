"""Whatever is wrong when a process starts is one line, and `required` holds in every case."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import preloaded
import pytest
from servers import BIN

PYTHON = str(BIN / "python")
PRINT = [PYTHON, "-c", "print('the program ran')"]
NO_EXPORTERS = {f"OTEL_{one}_EXPORTER": "none" for one in ("TRACES", "METRICS", "LOGS")}
NO_OTHERS = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "fastapi,sqlalchemy"}
UNREACHABLE = "postgresql://nobody:hunter2@127.0.0.1:1/audit"
STORE = {"OTEL_AUDIT_DSN": UNREACHABLE}

Run = Callable[..., "subprocess.CompletedProcess[str]"]

WRONG: list[Any] = [
    {},
    {"OTEL_AUDIT_ENABLED": "true"},
    {"OTEL_AUDIT_ENABLED": "perhaps", **STORE},
    {"OTEL_AUDIT_DSN": "mysql://h/x"},
    {"OTEL_AUDIT_DSN": "postgresql://h:99999/x"},
    {"OTEL_AUDIT_DSN": "h/x"},
    {"OTEL_AUDIT_DSN": "postgresql://h/x?sslmode=perhaps"},
    {"OTEL_AUDIT_DNS": UNREACHABLE},
    {"OTEL_AUDIT_EXPORTER": "kafka"},
    {"OTEL_AUDIT_EXPORTER": "otlp"},
    {"OTEL_AUDIT_OTLP_ENDPOINT": "collector:4318"},
    {"OTEL_AUDIT_OTLP_ENDPOINT": "ftp://collector"},
    {**STORE, "OTEL_AUDIT_SPOOL_DIR": "/proc/self/nowhere"},
    {**STORE, "OTEL_AUDIT_SPOOL_DIR": "/dev/null"},
    {**STORE, "OTEL_AUDIT_SPOOL_DIR": "~nobody-of-that-name/spool"},
    {**STORE, "OTEL_AUDIT_SPOOL_DIR": "https://h/spool"},
    {**STORE, "HOME": "/proc/self/nowhere", "XDG_STATE_HOME": "/proc/self/nowhere",
     "OTEL_AUDIT_SPOOL_DIR": ""},
    {**STORE, "OTEL_AUDIT_SPOOL_MAX_BYTES": "-1"},
    {**STORE, "OTEL_AUDIT_SPOOL_MAX_BYTES": "much"},
    {**STORE, "OTEL_AUDIT_SPOOL_KEY": "abc"},
    {**STORE, "OTEL_AUDIT_BODY_LIMIT": "1e999"},
    {**STORE, "OTEL_AUDIT_DELIVERY": "strictly"},
    {"OTEL_AUDIT_DELIVERY": "strict", "OTEL_AUDIT_EXPORTER": "console"},
    {**STORE, "OTEL_AUDIT_ORM": "everything"},
    {**STORE, "OTEL_AUDIT_JWT_KEY": "hunter2"},
    {**STORE, "OTEL_AUDIT_JWT_KEY": "hunter2", "OTEL_AUDIT_JWT_ALGORITHMS": "none"},
    {**STORE, "OTEL_AUDIT_JWT_JWKS_FILE": "/no/such", "OTEL_AUDIT_JWT_ALGORITHMS": "RS256"},
    {**STORE, "OTEL_AUDIT_ACTOR_ORDER": "app,jwtt"},
    {**STORE, "OTEL_AUDIT_ACTOR_RESOLVER": "no_such_module:f"},
    pytest.param(
        {**STORE, "OTEL_AUDIT_ACTOR_RESOLVER": "ends:f"}, marks=pytest.mark.allow_errors
    ),
    {**STORE, "OTEL_AUDIT_POLICY_FILE": "/no/such.toml"},
    {**STORE, "OTEL_AUDIT_POLICY_RULES": "[{"},
    {**STORE, "OTEL_AUDIT_TRUSTED_PROXIES": "10.0.0.0/99"},
    {**STORE, "OTEL_AUDIT_CONFIG_FILE": "/no/such.toml"},
    {**STORE, "OTEL_AUDIT_CONFIG_FILE": "/dev/zero"},
    {**STORE, "OTEL_AUDIT_REQUEST_ID_HEADER": "X Id"},
    {**STORE, "OTEL_AUDIT_HMAC_KEY_FILE": "/no/such"},
    {**STORE, "OTEL_AUDIT_REDACT_MODE": "hmac"},
    {**STORE, "OTEL_AUDIT_KEYS_DSN": "mysql://h/x"},
]  # fmt: skip


@pytest.fixture
def run_program(tmp_path: Path) -> Run:
    """Run a command with nothing of OpenTelemetry's in its environment but these settings."""
    environment = environment_in(tmp_path)

    def start(*command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
            env={**environment, **settings},
        )  # fmt: skip

    return start


@pytest.fixture
def run_forked(tmp_path: Path) -> Run:
    """The same for Python, forked from one that has imported us: what follows is what counts."""
    environment = environment_in(tmp_path)

    def start(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return preloaded.run(
            *arguments, cwd=tmp_path, env={**environment, **settings}, timeout=100, kind="python"
        )

    return start


def environment_in(directory: Path) -> dict[str, str]:
    """Nothing of OpenTelemetry's; in the directory is a module that ends the process."""
    (directory / "ends.py").write_text("raise SystemExit(3)")
    kept = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
    return {**kept, "OTEL_AUDIT_SPOOL_DIR": str(directory / "spool")}


@pytest.fixture(scope="module")
def handed_on(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, str]]:
    """What opentelemetry-instrument adds to the environment of a program, by the directory.

    It does nothing else before it becomes that program. To ask once saves an interpreter for
    each start, which is a third of it.
    """
    directory = tmp_path_factory.mktemp("asked")
    given = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        instrumented("env", "-0"),
        cwd=directory,
        env=given,
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(line.split("=", 1) for line in done.stdout.rstrip("\0").split("\0"))
    path = found.pop("PYTHONPATH")
    assert found == {name: text for name, text in given.items() if name != "PYTHONPATH"}
    assert str(directory) in path
    return lambda here: {"PYTHONPATH": path.replace(str(directory), str(here))}


def instrumented(*command: str) -> list[str]:
    return [str(BIN / "opentelemetry-instrument"), *command]


def audited(*command: str) -> list[str]:
    return [str(BIN / "otel-audit"), "run", *command]


def assert_refused(done: subprocess.CompletedProcess[str], part: str = "") -> None:
    assert done.returncode == 78, done.stderr
    (why,) = done.stderr.splitlines()
    assert why.startswith("THIS APPLICATION IS NOT AUDITED: ")
    assert part in why
    assert why.endswith("refusing to start, because OTEL_AUDIT_REQUIRED is set")
    assert "hunter2" not in done.stderr
    assert "the program ran" not in done.stdout


def assert_runs_unaudited(done: subprocess.CompletedProcess[str], part: str = "") -> None:
    assert (done.returncode, done.stdout) == (0, "the program ran\n"), done.stderr
    (why,) = done.stderr.splitlines()
    assert why.startswith("THIS APPLICATION IS NOT AUDITED: ")
    assert part in why
    assert "hunter2" not in done.stderr


@pytest.mark.slow
class TestWrongSettings:
    @pytest.mark.parametrize("settings", WRONG, ids=lambda one: ",".join(map(str, one)) or "none")
    def test_each_is_one_line_and_required_holds(self, settings, run_forked, handed_on, tmp_path):
        """As opentelemetry-instrument starts it: refused if required, else said once."""
        # nor are others loaded, which take half of a start
        given = {**NO_EXPORTERS, **NO_OTHERS, **handed_on(tmp_path), **settings}
        assert_refused(run_forked(*PRINT[1:], **given, OTEL_AUDIT_REQUIRED="true"))
        assert_runs_unaudited(run_forked(*PRINT[1:], **given))

    @pytest.mark.parametrize(
        "settings",
        [STORE, {"OTEL_AUDIT_OTLP_ENDPOINT": "http://127.0.0.1:1"}],
        ids=["store", "receiver"],
    )
    def test_a_destination_that_is_away_is_refused_if_required(self, settings, run_program):
        """Nothing answers there; where it is not required, records would wait."""
        given = {**NO_EXPORTERS, **settings, "OTEL_AUDIT_CONNECT_TIMEOUT": "1"}
        assert_refused(run_program(*instrumented(*PRINT), **given, OTEL_AUDIT_REQUIRED="true"))
        done = run_program(*instrumented(*PRINT), **given)
        assert "auditing is on" in done.stderr
        assert done.stdout == "the program ran\n"

    async def test_a_store_that_lets_nobody_in_is_refused_if_required(
        self, audit_store, run_program
    ):
        """A role or a database that is not there: each is named, with what to do."""
        for wrong, part in (
            (re.sub(r"//[^/]*@", "//no_such:hunter2@", audit_store), "user or password"),
            (re.sub(r"/audit_\w+", "/no_such", audit_store), "does not exist: create it"),
        ):
            assert wrong != audit_store
            given = {**NO_EXPORTERS, "OTEL_AUDIT_DSN": wrong, "OTEL_AUDIT_REQUIRED": "1"}
            assert_refused(run_program(*instrumented(*PRINT), **given), part)


class TestTracing:
    @pytest.mark.parametrize("required", ["true", ""])
    def test_without_a_distribution_of_opentelemetrys_it_is_audited(self, required, run_program):
        """No distro and no configurator: there is no tracing, and there are records."""
        done = run_program(
            *instrumented(*PRINT), OTEL_AUDIT_EXPORTER="console", OTEL_AUDIT_REQUIRED=required,
            OTEL_PYTHON_DISTRO="none", OTEL_PYTHON_CONFIGURATOR="none",
        )  # fmt: skip
        assert done.returncode == 0
        assert "auditing is on" in done.stderr
        assert "Traceback" not in done.stderr

    def test_an_exporter_that_is_missing_is_refused_if_required(self, run_program):
        """opentelemetry-instrument would start the program without any instrumentation."""
        settings = {"OTEL_AUDIT_EXPORTER": "console", "OTEL_AUDIT_REQUIRED": "true"}
        assert_refused(run_program(*instrumented(*PRINT), **settings), "otel-audit run")

    def test_an_exporter_that_is_chosen_by_an_option_is_not_missed(self, run_program):
        """What options say is not in the environment yet."""
        options = [f"--{one}_exporter=none" for one in ("traces", "metrics", "logs")]
        done = run_program(*instrumented(*options, *PRINT), OTEL_AUDIT_EXPORTER="console",
                   OTEL_AUDIT_REQUIRED="true")  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "auditing is on" in done.stderr


class TestRun:
    def test_missing_exporters_are_left_out_and_said(self, run_program):
        """One line says so, another that the program is audited; it needs no database."""
        done = run_program(*audited("--console", "--service", "shop", *PRINT))
        assert done.returncode == 0
        first, second = done.stderr.splitlines()
        assert first.startswith("otel-audit: no package for the exporter otlp_proto_grpc")
        assert "OTEL_TRACES_EXPORTER=none" in first
        assert "auditing is on: service shop, to the console" in second

    def test_exporters_that_are_there_stay(self, run_program):
        """Of several only the missing one goes."""
        show = "import os; print(os.environ['OTEL_TRACES_EXPORTER'])"
        done = run_program(
            *audited("--console", PYTHON, "-c", show),
            **{**NO_EXPORTERS, "OTEL_TRACES_EXPORTER": "console,mine"},
        )
        assert done.stdout.splitlines()[0] == "console"
        assert "exporter mine" in done.stderr

    def test_a_failure_of_opentelemetrys_set_up_is_one_line(self, run_program):
        """Tracing is gone, the program is audited, and nothing prints a traceback."""
        settings = {**NO_EXPORTERS, "OTEL_PYTHON_ID_GENERATOR": "nonsense"}
        done = run_program(*audited("--console", "--required", *PRINT), **settings)
        assert done.returncode == 0, done.stderr
        first, second = done.stderr.splitlines()
        assert "nonsense" in first
        assert "auditing is on" in second

    def test_without_settings_it_runs_unaudited_or_not_at_all(self, run_program):
        """As everywhere: said once; refused with --required."""
        assert_runs_unaudited(run_program(*audited(*PRINT), **NO_EXPORTERS), "OTEL_AUDIT_DSN")
        assert_refused(
            run_program(*audited("--required", *PRINT), **NO_EXPORTERS), "OTEL_AUDIT_DSN"
        )

    @pytest.mark.allow_errors
    @pytest.mark.parametrize("broken", ["msgspec", "otel_audit", "opentelemetry"])
    def test_required_holds_where_our_own_import_fails(self, broken, run_program, tmp_path):
        """A package that cannot be imported: refused in one line, or said and run."""
        (tmp_path / f"{broken}.py").write_text("raise RuntimeError('hunter2')")
        settings: dict[str, Any] = {**NO_EXPORTERS, "PYTHONPATH": str(tmp_path)}
        refused = run_program(*audited("--console", "--required", *PRINT), **settings)
        assert refused.returncode == 78, refused.stderr
        assert refused.stderr.count("THIS APPLICATION IS NOT AUDITED") == 1
        ran = run_program(*audited("--console", *PRINT), **settings)
        assert (ran.returncode, ran.stdout) == (0, "the program ran\n")
        assert ran.stderr.count("THIS APPLICATION IS NOT AUDITED") == 1
        assert "Traceback" not in refused.stderr + ran.stderr
        assert "hunter2" not in refused.stderr + ran.stderr

    def test_processes_that_it_starts_are_audited_too(self, run_program):
        """A Python that the program starts, as servers with workers do."""
        inner = "import otel_audit; print(otel_audit.health()['auditing'])"
        outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
        done = run_program(*audited("--console", PYTHON, "-c", outer), **NO_EXPORTERS)
        assert "True\n" in done.stdout

    def test_a_helper_of_multiprocessings_is_no_application(self, run_program):
        """It runs nothing of the program's, and says nothing."""
        program = (
            "import multiprocessing.resource_tracker as one\n"
            "one.ensure_running()\n"
            "one._resource_tracker._stop()\n"
        )
        done = run_program(*audited("--console", PYTHON, "-c", program), **NO_EXPORTERS)
        assert done.stderr.count("auditing is on") == 1

    def test_an_option_that_keeps_us_out_is_said(self, run_program):
        """`python -I` looks at no PYTHONPATH, so nothing could begin to audit."""
        isolated = [PYTHON, "-I", *PRINT[1:]]
        assert_refused(run_program(*audited("--required", *isolated), **NO_EXPORTERS), "-I")

    def test_a_python_without_us_is_said(self, run_program, tmp_path):
        """Another environment's interpreter: one line, and refused if required."""
        made = subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "other")],
            check=True, capture_output=True,
        )  # fmt: skip
        assert made.returncode == 0
        other = [str(tmp_path / "other" / "bin" / "python"), *PRINT[1:]]
        assert_runs_unaudited(run_program(*audited(*other), **NO_EXPORTERS), "is not installed for")
        assert_refused(
            run_program(*audited("--required", *other), **NO_EXPORTERS), "is not installed for"
        )

    def test_a_command_that_is_not_there_is_named(self, run_program):
        """With the exit status that a shell has for it."""
        done = run_program(*audited("no-such-command"))
        assert done.returncode == 127
        assert "no-such-command" in done.stderr

    def test_a_command_beside_it_is_found(self, run_program):
        """An environment that is not activated: what is installed there is meant."""
        done = run_program(
            *audited("--console", "uvicorn", "--version"), **NO_EXPORTERS, PATH="/usr/bin:/bin"
        )
        assert done.stdout.startswith("Running uvicorn")

    def test_arguments_are_passed_on_as_they_are(self, run_program):
        """Options behind the command are the command's."""
        show = "import sys, json; print(json.dumps(sys.argv[1:]))"
        options = ["--console", "-x", "a b", "--", "--help"]
        done = run_program(*audited("--console", PYTHON, "-c", show, *options), **NO_EXPORTERS)
        assert json.loads(done.stdout.splitlines()[0]) == options

    def test_without_a_command_it_says_what_is_missing(self, run_program):
        """In ASCII, with an example; as for any wrong use the exit status is 2."""
        done = run_program(*audited())
        assert done.returncode == 2
        assert "no command" in done.stderr
        assert "otel-audit run uvicorn app:app" in done.stderr
        assert "\\u" not in done.stderr + run_program(*audited("--help")).stdout


class TestLight:
    """A start imports no framework that the program does not import itself."""

    HEAVY = ("fastapi", "starlette", "sqlalchemy", "asyncpg", "click", "rich", "jose", "cryptography",
             "grpc", "httpx", "urllib.request")  # fmt: skip

    def test_what_a_start_does_not_import(self, run_program):
        """Each of these would cost a process that never uses it more than all of ours does."""
        program = (
            "import sys, otel_audit_bootstrap as one; one.pre_instrument()\n"
            f"print([one for one in {self.HEAVY!r} if one in sys.modules])"
        )
        # without OpenTelemetry's own, which import what they instrument
        done = run_program(PYTHON, "-c", program, **STORE)
        assert "auditing is on" in done.stderr
        assert done.stdout == "[]\n"

    def test_what_auditing_a_database_does_not_import(self, run_program):
        """A database's driver that nobody uses, and what only a changed JSON value needs."""
        program = (
            "import sys, sqlalchemy, otel_audit.orm\n"
            "print([one for one in ('sqlite3', 'jsonpatch', 'difflib') if one in sys.modules])"
        )
        assert run_program(PYTHON, "-c", program).stdout == "[]\n"

    def test_garbage_is_collected_again(self, run_program):
        """It is not while ours is imported; the program must find it as it was."""
        program = "import gc; print(gc.isenabled())"
        assert run_program(*audited("--console", PYTHON, "-c", program)).stdout.startswith("True")

    def test_what_is_imported_later_is_audited(self, run_program, tmp_path):
        """An application and a database that the program imports after the start."""
        program = (
            "import sqlalchemy as sa\n"
            "from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column\n"
            "from fastapi import FastAPI\n"
            "from fastapi.testclient import TestClient\n"
            "class Base(DeclarativeBase): ...\n"
            "class Item(Base):\n"
            "    __tablename__ = 'items'\n"
            "    id: Mapped[int] = mapped_column(primary_key=True)\n"
            f"engine = sa.create_engine('sqlite:///{tmp_path}/a.db')\n"
            "Base.metadata.create_all(engine)\n"
            "app = FastAPI()\n"
            "@app.post('/items')\n"
            "def make():\n"
            "    with Session(engine) as session, session.begin(): session.add(Item(id=1))\n"
            "with TestClient(app) as client: client.post('/items')\n"
        )
        done = run_program(*audited("--console", PYTHON, "-c", program), **NO_EXPORTERS)
        assert done.returncode == 0, done.stderr
        records = [json.loads(one) for one in done.stdout.splitlines() if one.startswith("{")]
        (made,) = [one for one in records if one.get("request", {}).get("route") == "/items"]
        assert [one["entity"] for one in made["changes"]] == ["Item"]

    @pytest.mark.parametrize("required", ["true", ""])
    def test_what_is_imported_past_the_hook_is_audited_if_required_or_said(
        self, run_program, tmp_path, required
    ):
        """A finder that stands before all others and loads by itself keeps hooks from being called."""
        program = (
            "import sys; from importlib.machinery import PathFinder\n"
            "sys.meta_path.insert(0, PathFinder)\n"
            "import sqlalchemy; from fastapi import FastAPI; from fastapi.testclient import TestClient\n"
            "app = FastAPI()\n"
            "@app.post('/items')\n"
            "def make(): ...\n"
            "with TestClient(app) as client: client.post('/items')\n"
        )
        # without OpenTelemetry's own, which import what they instrument
        done = run_program(
            *audited("--console", PYTHON, "-c", program), **NO_EXPORTERS,
            OTEL_AUDIT_REQUIRED=required,
            OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="fastapi,starlette,sqlalchemy",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        missed = [one for one in done.stderr.splitlines() if one.startswith("NOT ALL WAS AUDITED")]
        if required:
            assert '"/items"' in done.stdout
            assert missed == []
        else:
            (said,) = missed
            assert "not its applications and not its database changes" in said

    def test_the_line_is_said_once_for_servers_with_workers(self, run_program):
        """A process that multiprocessing spawns for the program was announced by the program."""
        program = (
            "import multiprocessing\n"
            "one = multiprocessing.get_context('spawn').Process()\n"
            "one.start(), one.join()"
        )
        done = run_program(*audited("--console", PYTHON, "-c", program), **NO_EXPORTERS)
        assert done.stderr.count("auditing is on") == 1
