"""The table of all settings in docs/configuration.md; run this file to write it anew."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from otel_audit.config import AuditConfig
from otel_audit.setting_values import PREFIX, none_if_off

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
_BEGIN = "<!-- settings: begin, made by tests/settings_table.py -->\n"
_END = "<!-- settings: end -->\n"

_WORDS = {bool: "true, false", int: "integer", float: "number", str: "text", Path: "path"}


def table() -> str:
    lines = ["| setting | takes | default | |", "|---|---|---|---|"]
    for name, setting in AuditConfig.model_fields.items():
        told = (
            f"`{PREFIX}{name.upper()}`",
            _takes(setting.annotation) + _bounds(setting) + _word_for_none(setting),
            _default(setting),
            setting.description or "",
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in told) + " |")
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{table()}\n{_END}{after}"


def _takes(kind: Any) -> str:  # noqa: PLR0911 - one for each kind
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _takes(arguments[0])
    if origin in (Union, types.UnionType):
        several = [one for one in arguments if one is not types.NoneType]
        return "module:name" if len(several) > 1 else _takes(several[0])
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in arguments)
    if origin is tuple:
        inner = _takes(arguments[0]) if get_origin(arguments[0]) is Literal else ""
        return f"list of {inner}" if inner else "list"
    if origin is dict:
        return "map"
    if kind is SecretStr:
        return "secret"
    return _WORDS.get(kind, "text")


def _bounds(setting: FieldInfo) -> str:
    low = above = high = None
    for rule in setting.metadata:
        low, above = getattr(rule, "ge", low), getattr(rule, "gt", above)
        high = getattr(rule, "le", high)
    if above is not None:
        at_most = "" if high is None else f", at most {_number(high)}"
        return f" above {_number(above)}{at_most}"
    if low is not None and high is not None:
        return f", {_number(low)} to {_number(high)}"
    return "" if low is None else f", from {_number(low)}"


def _word_for_none(setting: FieldInfo) -> str:
    reads = [getattr(rule, "func", None) for rule in setting.metadata]
    return "; `off`" if none_if_off in reads else ""


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def _default(setting: FieldInfo) -> str:  # noqa: PLR0911 - one for each kind
    value = setting.default
    if value is PydanticUndefined:
        return "the user's state directory"
    if value in (None, (), {}, ""):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ", ".join(f"`{word}`" for word in value)
    return f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
