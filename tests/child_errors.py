"""Errors of ours in the processes that a test starts: searched for in whatever those print.

What a guard catches in a child is logged with the place where it was raised, and so is what ends a
thread. Searched are the files that output goes to, and what `communicate` (and so `run`) returns;
not what a test reads from a pipe itself.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_audit.errors import OtelAuditError

_CAUGHT = re.compile(r"\[(?P<error>\w+) at (?P<file>\S+):[0-9]+\]")
"""How a line ends that a guard of ours has written; see `log_limited`."""

_TRACEBACK = re.compile(
    r'^Traceback .*\n(?:[ \t].*\n)*?  File "(?P<file>.*)", line .*\n(?:    .*\n)*(?P<error>[\w.]+)',
    re.MULTILINE,
)
"""A traceback, with its last place."""

_LEADS_ON = re.compile(r".*\n(?:.+\n)*\n(?:The above exception was|During handling of the above)")
"""What stands behind the traceback of an error that another one has come of."""

_OURS = re.compile(r"/otel_audit(?:_\w+)?/\S+\.py$")

_lines: list[str] = []
_files: dict[Path, int] = {}
"""Files that processes write to, and up to where each has been searched."""


def errors_in(text: str) -> list[str]:
    """Lines of an output that tell of an error of ours, and of no refusal by system or store."""
    caught = list(_CAUGHT.finditer(text))
    raised = [
        found
        for found in _TRACEBACK.finditer(text)
        if _OURS.search(found["file"]) and not _LEADS_ON.match(text, found.end())
    ]
    return [
        text[text.rfind("\n", 0, found.start()) + 1 : found.end()]
        for found in (*caught, *raised)
        if not _is_refusal(found["error"].rpartition(".")[2])
    ]


def note_file(path: Path) -> None:
    """Remember a file that a process writes to from now on."""
    _files.setdefault(path.absolute(), path.stat().st_size if path.exists() else 0)


def note_output(output: str | bytes | None) -> None:
    """Remember what a process has printed."""
    text = output.decode(errors="replace") if isinstance(output, bytes) else output
    _lines.extend(errors_in(text or ""))


def taken() -> list[str]:
    """What was found since this was asked last."""
    for path, seen in list(_files.items()):
        try:
            with path.open("rb") as file:
                file.seek(seen)
                content = file.read()
        except OSError:
            del _files[path]  # gone with its directory
            continue
        whole = _whole(content)
        _files[path] = seen + whole
        note_output(content[:whole])
    found = _lines.copy()
    _lines.clear()
    return found


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Have each process that is started in this block noted."""
    with pytest.MonkeyPatch.context() as patch:
        begin, communicate = subprocess.Popen.__init__, subprocess.Popen.communicate

        @functools.wraps(begin)
        def noting_files(process: Any, *arguments: Any, **options: Any) -> None:
            for stream in (options.get("stdout"), options.get("stderr")):
                if isinstance(name := getattr(stream, "name", None), str):
                    note_file(Path(name))
            begin(process, *arguments, **options)

        @functools.wraps(communicate)
        def noting_output(process: Any, *arguments: Any, **options: Any) -> Any:
            try:
                printed = communicate(process, *arguments, **options)
            except subprocess.TimeoutExpired as error:
                note_output(error.output)
                note_output(error.stderr)
                raise
            for output in printed:
                note_output(output)
            return printed

        patch.setattr(subprocess.Popen, "__init__", noting_files)
        patch.setattr(subprocess.Popen, "communicate", noting_output)
        yield


def _whole(content: bytes) -> int:
    """Up to where lines and tracebacks are whole; the rest is being written, and searched later."""
    whole = content.rfind(b"\n") + 1
    begin = content.rfind(b"Traceback (most recent call last)", 0, whole)
    if begin < 0 or (begin and content[begin - 1 : begin] != b"\n"):
        return whole
    # it ends with the first line that is not indented
    is_whole = any(not line.startswith(b" ") for line in content[begin:whole].splitlines()[1:])
    return whole if is_whole else begin


def _is_refusal(name: str) -> bool:
    kind = getattr(builtins, name, None)
    return name in _refusals() or (isinstance(kind, type) and issubclass(kind, OSError))


def _refusals() -> set[str]:
    found, left = set[str](), [OSError, OtelAuditError]
    while left:
        kind = left.pop()
        found.add(kind.__name__)
        left += kind.__subclasses__()
    return found
