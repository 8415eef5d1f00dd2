"""Names in docstrings: what they refer to exists.

In single backticks stands a name of the code, in double ones any other text.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

import otel_audit
from otel_audit.delivery.metrics import Counters
from otel_audit.runtime import Runtime

ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT / "src", ROOT / "exporters")
OF_OTHERS = {
    "AsyncEngine", "BatchSpanProcessor", "ServerErrorMiddleware", "bulk_insert_mappings", "pyiceberg",
    "reset_on_return",
}  # fmt: skip
"""Names of other packages that our code itself does not use."""

_NAMED = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)(?:\(\))?`(?!`)")
_ATTRIBUTES = re.compile(r"^Attributes:\n((?: +.*(?:\n|$)|\n)+)", re.MULTILINE)
_RAISES = re.compile(r"^( *)Raises:\n((?:\1 +.*(?:\n|$)|\n)+)", re.MULTILINE)


@dataclass
class Code:
    """What is defined and used in all modules."""

    used: set[str] = field(
        default_factory=lambda: {*dir(builtins), *sys.stdlib_module_names, *OF_OTHERS}
    )
    modules: dict[str, set[str]] = field(default_factory=dict)
    members: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    bases: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    docstrings: list[tuple[str, str]] = field(default_factory=list)
    classes: list[tuple[str, str, str]] = field(default_factory=list)

    def members_of(self, name: str) -> set[str]:
        bases = self.bases.get(name, set()) - {name}
        return self.members.get(name, set()).union(*map(self.members_of, bases))

    def is_error(self, name: str) -> bool:
        """Whether it is an exception: a builtin, another package's, or a class that derives from one."""
        package, _, last = name.rpartition(".")
        if package:
            return self.is_error(last) if package in self.modules else package in self.used
        if name in self.members:
            return any(map(self.is_error, self.bases[name] - {name}))
        return name in self.used and name.endswith(("Error", "Exception", "Exit", "Interrupt"))

    def add(self, path: Path, module: str) -> None:
        tree = ast.parse(path.read_bytes())
        self.used.update(module.split("."))
        self.modules[module] = {*_defined(tree)}
        for node in ast.walk(tree):
            kind = type(node)
            if kind is ast.Name:
                self.used.add(node.id)
            elif kind is ast.Attribute:
                self.used.add(node.attr)
            elif kind is ast.arg or kind is ast.keyword:
                self.used.add(node.arg or "")
            elif kind is ast.alias:
                self.used.update(node.name.split("."), [node.asname or ""])
            elif kind is ast.FunctionDef or kind is ast.AsyncFunctionDef:
                self.used.add(node.name)
            elif kind is ast.ClassDef:
                self.used.add(node.name)
                self.members[node.name].update(_defined(node))
                self.classes.append((module, node.name, ast.get_docstring(node) or ""))
                self.bases[node.name].update(
                    getattr(base, "attr", None) or getattr(base, "id", "") for base in node.bases
                )
            elif kind is ast.Expr:
                value = node.value
                if type(value) is ast.Constant and type(value.value) is str:
                    self.docstrings.append((f"{module}:{node.lineno}", value.value))

    def has(self, name: str) -> bool:
        """Whether a name in backticks exists: a module's or a class's member, or what is used somewhere."""
        before, _, last = name.rpartition(".")
        if name.partition(".")[0] in sys.stdlib_module_names:
            return True
        if before in self.modules:
            return name in self.modules or last in self.modules[before]
        owner = before.rpartition(".")[2]
        if owner in self.members:
            return last in self.members_of(owner)
        return {*name.split(".")} <= self.used


def _defined(node: ast.Module | ast.ClassDef) -> Iterator[str]:
    """The names in a module or a class: also fields, and attributes that its methods set."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield inner.name
        elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            yield inner.id
        elif isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
            yield inner.attr
        elif isinstance(inner, ast.alias):
            yield inner.asname or inner.name


@cache
def code() -> Code:
    found = Code()
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            parts = path.relative_to(package).with_suffix("").parts
            found.add(path, ".".join(part for part in parts if part != "__init__"))
    return found


def test_every_name_in_backticks_exists() -> None:
    """A name that nothing has any more leads its reader nowhere."""
    stale = [
        (place, name)
        for place, text in code().docstrings
        for name in _NAMED.findall(text)
        if not name.endswith(".py") and not code().has(name)
    ]

    assert stale == []
    assert sum(len(_NAMED.findall(text)) for _, text in code().docstrings) > 500


@pytest.mark.parametrize("page", ["architecture", "contributing"])
def test_every_class_on_a_page_for_changing_the_code_exists(page: str) -> None:
    """Who reads there about a class finds it; the SDK's and the frameworks' are used by us, too."""
    text = re.sub(r"```.*?```", "", (ROOT / "docs" / f"{page}.md").read_text(), flags=re.DOTALL)
    named = {
        name
        for name in re.findall(r"`([A-Za-z_][\w.]*)`", text)
        if re.search(r"(?:^|\.)_?[A-Z][a-z]\w*[A-Z]?", name)
    }

    assert {name for name in named if not code().has(name)} == set()
    assert len(named) > 5


def test_no_sentence_begins_behind_several_spaces() -> None:
    """The command line prints such a docstring with the gap in it."""
    gaps = [place for place, text in code().docstrings if re.search(r"\S[.;:] {2,}[A-Z]", text)]

    assert gaps == []


def test_every_module_in_backticks_exists() -> None:
    """A file, too, is found where the docstring says."""
    files = {name.rpartition(".")[2] + ".py" for name in code().modules}
    stale = [
        (place, name)
        for place, text in code().docstrings
        for name in _NAMED.findall(text)
        if name.endswith(".py") and name not in files
    ]

    assert stale == []


def test_every_attribute_of_a_class_is_there() -> None:
    """A field that was renamed has its new name in the docstring, too."""
    listed = [
        (f"{module}.{owner}", name)
        for module, owner, text in code().classes
        for block in _ATTRIBUTES.findall(text)
        for names in re.findall(r"^    (\w+(?:, \w+)*):", block, re.MULTILINE)
        for name in names.split(", ")
    ]

    assert [(o, n) for o, n in listed if n not in code().members_of(o.rpartition(".")[2])] == []
    assert len(listed) > 500


def test_health_names_all_that_it_returns() -> None:
    """Who asks how the trail is doing finds each figure in the docstring."""
    source = inspect.getsource(Runtime.health) + inspect.getsource(Runtime._sink_figures)
    returned = {"auditing", *Counters().snapshot(), *re.findall(r'"(\w+)": ', source)}

    assert len(returned) > 25
    assert sorted(returned - set(re.findall(r"``(\w+)``", otel_audit.health.__doc__ or ""))) == []


@pytest.mark.parametrize("name", sorted(otel_audit.__all__))
def test_every_argument_of_a_public_function_is_described(name: str) -> None:
    """No argument is left to guessing."""
    member = getattr(otel_audit, name)
    if not inspect.isfunction(member):
        return
    described = (member.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
    missing = [
        one
        for one in inspect.signature(member).parameters
        if not re.search(rf"^ +(?:\w+, )*{one}(?:, \w+)*:", described, re.MULTILINE)
    ]
    assert missing == []


def test_every_raised_error_is_one() -> None:
    """Who catches what a docstring names catches something."""
    raised = [
        (place, name)
        for place, text in code().docstrings
        for indent, block in _RAISES.findall(text)
        for names in re.findall(rf"^{indent}    (\w[\w.]*(?:, \w[\w.]*)*):", block, re.MULTILINE)
        for name in names.split(", ")
    ]

    assert [one for one in raised if not code().is_error(one[1])] == []
    assert len(raised) > 200
