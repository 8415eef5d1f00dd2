"""Labels next to a value that say what it is: a name, a flag, the kind of a key, a query.

Documents spell a name as a value of its own in many forms: `{"name": "password", "value": …}`,
JSON Patch, HAR, environment lists, the errors of FastAPI (``loc``, ``input``). This module finds
the values of an object that are secrets because of another value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from otel_audit._util.lazy_pattern import LazyPattern
from otel_audit.redaction.annotations import Marked
from otel_audit.redaction.load_data import name_table
from otel_audit.redaction.names import looks_opaque, name_words, squash

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from otel_audit.redaction.names import NameRules, NameVerdict

LABEL: Final = 1
WEAK_LABEL: Final = 2
VALUE: Final = 4
WEAK_VALUE: Final = 8
FLAG: Final = 16
SPECIAL: Final = 32
_BY_NAMES: Final = LABEL | WEAK_LABEL
"""Roles of a key, one bit each, so that one number describes those of a whole object."""

# Whose: `fieldName`, `attribute_value`, `new-value`.
_WHOSE: Final = (
    "field", "attribute", "attr", "param", "parameter", "property", "prop", "setting", "config",
    "header", "variable", "var", "env", "environment", "input", "form", "item",
    "option", "metadata", "meta", "custom", "column", "element", "entry", "tag", "cell", "claim",
    "arg", "argument",
)  # fmt: skip
_OF_VALUES: Final = (
    "new", "old", "string", "str", "text", "default", "previous", "prev", "current", "plain", "raw",
    "secret", "original", "updated", "initial", "actual", "real", "before", "after", "input",
    "parameter", "saved", "last", "next", "final", "literal", "set", "key",
)  # fmt: skip
_LABELS: Final = frozenset({
    "name", "key", "k", "n", "field", "label", "header", "param", "parameter", "variable", "var",
    "property", "prop", "attribute", "attr", "column", "setting", "option", "loc", "path",
    "pointer", "placeholder", "element", "identifier", "displayname", "keyname", "setup",
    "caption", "claim",
    *(f"{whose}{end}" for whose in _WHOSE for end in ("name", "key", "label", "id", "title")),
})  # fmt: skip
# Names that often mean something else: their neighbours count only if they are called values.
_WEAK_LABELS: Final = frozenset({
    "type", "kind", "format", "id", "title", "question", "prompt", "slug", "code", "alias",
    *(f"{whose}type" for whose in _WHOSE), "questionid", "questionname",
    "inputtype", "datatype", "valuetype", "widget",
})  # fmt: skip
_VALUES: Final = frozenset({
    "value", "values", "val", "vals", "v", "input", "answer", "answers", "current", "previous",
    "prev", "plaintext", "cleartext", "valuestring", "response", "newval", "oldval", "setto",
    *(f"{whose}{end}" for whose in (*_WHOSE, *_OF_VALUES) for end in ("value", "values", "val")),
})  # fmt: skip
_WEAK_VALUES: Final = frozenset({
    "new", "old", "before", "after", "from", "to", "content", "contents", "data", "default", "text",
    "ctx", "original", "updated", "raw", "body", "payload", "initial", "stringdata", "literal", "s",
    *(f"{whose}data" for whose in _WHOSE),
})  # fmt: skip
_FLAGS: Final = frozenset({
    "sensitive", "masked", "secret", "secure", "secured", "encrypted", "confidential", "concealed",
    "obfuscated", "redacted", "writeonly", "sensitivevalue", "password",
})  # fmt: skip
_SECRET_KINDS: Final = frozenset({
    "concealed", "securestring", "secretstring", "encrypted", "sensitive", "masked", "secure",
    "protectedstring",
})  # fmt: skip
# Tables: names in one list, values in others, by position.
_HEADS: Final = frozenset({
    "columns", "headers", "fields", "names", "keys", "cols", "columnnames", "fieldnames", "header",
    "labels", "parameters", "attributes",
})  # fmt: skip
_ROWS: Final = frozenset({
    "rows", "data", "values", "records", "row", "value", "tuples", "lines", "cells", "items",
})  # fmt: skip
# What a language model and a test run call so.
_SPARED: Final = {
    "token": ("logprob", "logprobs", "top_logprobs"),
    "tokens": ("token_logprobs", "token_ids", "input_ids", "offset_mapping", "logprobs", "offsets"),
    "pass": ("fail", "failed", "skip", "skipped", "failures"),
}
_SPECIAL: Final = frozenset({
    "kty", "code", "query", "mutation", "method", "apiversion", *_HEADS, *_SPARED,
})  # fmt: skip
_TRUE: Final = ("true", "yes", "1", "on")

_ROLES: Final[dict[str, int]] = {}
for _role, _names in (
    (LABEL, _LABELS), (WEAK_LABEL, _WEAK_LABELS), (VALUE, _VALUES), (WEAK_VALUE, _WEAK_VALUES),
    (FLAG, _FLAGS | {f"is{flag}" for flag in _FLAGS}), (SPECIAL, _SPECIAL),
):  # fmt: skip
    for _name in _names:
        _ROLES[_name] = _ROLES.get(_name, 0) | _role

FLAG_PATTERN: Final = (
    r'"(?:is[\W_]{0,2})?(?:'
    + "|".join(sorted(_FLAGS))
    + r'|write[\W_]only|sensitive[\W_]value)"\s*:'
)
"""Matches a key that is a flag, in JSON text, regardless of case."""

SPECIAL_PATTERN: Final = (
    r'"kty"\s*:|"redirect[\W_]?uri"\s*:|"code"\s*:\s*"[^"\s]{12}|"apiversion"\s*:'
    r"|(?:log[\W_]?(?:in|on)|sign[\W_]?(?:in|on)|authenticate|unlock[a-z]*|"
    r'securestring|concealed|encrypted|sensitive|masked|secure|protectedstring)"'
)
"""Matches what the other rules of this module go by, in JSON text, regardless of case."""

_BY_POSITION: Final = frozenset({"params", "args", "arguments", "parameters"})
_MOST_COLUMNS: Final = 1_000
"""Columns of a table in JSON whose heads are judged."""
_SHORTEST_CODE: Final = 8
"""Characters of an authorization code; shorter ones are of countries, languages, vouchers."""
_LONGEST_LABEL: Final = 128
"""Characters of a text that can be a field's label; prose is longer."""
_LONGEST_KEY: Final = 40
"""Characters of a key that can say "this is the label": all known ones are shorter."""
_MOST_WORDS: Final = 4
"""Words of a label, without fillers; more are a sentence."""
_MOST_LABELS: Final = 32
"""Members of a list of labels that are judged."""
# RFC 7518, section 6; RFC 8037, section 2
_PRIVATE_JWK: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_OF_CALLBACKS: Final = frozenset({
    "granttype", "redirecturi", "codeverifier", "clientid", "clientsecret", "sessionstate",
})  # fmt: skip
_LOGINS: Final = re.compile(
    r"(?i)(?:log_?(?:in|on)|sign_?(?:in|on)|auth(?:enticate|orize)?|unlock[a-z]*|(?:change|set|reset)"
    r"_?pass\w*|wallet_?pass\w*)$"
)
_FILLERS: Final = frozenset({
    "a", "an", "the", "your", "my", "our", "please", "enter", "type", "what", "is", "are", "choose",
    "repeat", "again", "give", "provide", "new", "old", "current", "confirm", "existing", "and",
    "ваш", "введите", "votre", "su", "tu", "ihr", "dein", "il", "la", "le", "el", "o", "din", "uw",
})  # fmt: skip
_CUTS: Final = re.compile(
    r"[(\[{:?*!,;]|\s(?:for|of|to|from|in|on|with|used|that|as|für|pour|para)\s"
)


@dataclass(slots=True)
class SiblingContext:
    """Secrets of one object.

    Attributes:
        taken: Rules by the keys of the values that they take out.
        spared: Keys whose names say nothing here.
        instead: What is looked at in place of a value: the same with marks in it.
    """

    taken: dict[str, str] = field(default_factory=dict)
    spared: set[str] = field(default_factory=set)
    instead: dict[str, Any] = field(default_factory=dict)


def label_role(key: Any) -> int:
    """Return what a key may be in its object, 0 for what most keys are."""
    if type(key) is not str or len(key) > _LONGEST_KEY:
        return 0
    return _ROLES.get(key.lstrip("@$#").replace("_", "").replace("-", "").lower(), 0)


def label_roles(keys: Iterable[Any]) -> int:
    """Return the roles of all keys of an object."""
    found = 0
    for key in keys:
        found |= label_role(key)
    return found


def labelled_secrets(
    value: Mapping[Any, Any], names: NameRules, *, values_clean: bool
) -> SiblingContext | None:
    """Return which values of an object are labelled by others as sensitive.

    Args:
        value: The object.
        names: Judges names that are values.
        values_clean: Whether no string in it can be the name of a secret.

    Returns:
        None if there is nothing to say.
    """
    roles = label_roles(value)
    if not roles & (LABEL | WEAK_LABEL | FLAG | SPECIAL):
        return None
    found = SiblingContext()
    if roles & (VALUE | WEAK_VALUE):
        if roles & _BY_NAMES and not values_clean:
            _by_labels(value, names, found)
        if roles & FLAG:
            _by_flags(value, found)
    if roles & SPECIAL:
        _by_kinds(value, names, found, values_clean=values_clean)
    return found if found.taken or found.instead or found.spared else None


def _by_labels(value: Mapping[Any, Any], names: NameRules, found: SiblingContext) -> None:
    for key, label in value.items():
        role = label_role(key)
        if not role & _BY_NAMES:
            continue
        verdict = _verdict(label, names, weak=not role & LABEL)
        if verdict is None:
            continue
        wanted = VALUE | WEAK_VALUE if role & LABEL else VALUE
        for other, item in value.items():
            if other == key or not label_role(other) & wanted or not verdict.takes(item):
                continue
            if not role & LABEL and isinstance(item, dict):
                continue
            found.taken[other] = "named_beside"


def _by_flags(value: Mapping[Any, Any], found: SiblingContext) -> None:
    flags = (item for key, item in value.items() if label_role(key) & FLAG)
    if any(item is True or (isinstance(item, str) and item.lower() in _TRUE) for item in flags):
        for key, item in value.items():
            if label_role(key) & VALUE and item is not None and not isinstance(item, bool):
                found.taken[key] = "said_beside"


def _verdict(label: Any, names: NameRules, *, weak: bool) -> NameVerdict | None:
    if isinstance(label, dict):
        # `{"field": {"name": "password"}, "value": …}`
        label = next((item for key, item in label.items() if label_role(key) & LABEL), None)
    if isinstance(label, list | tuple):
        flags = (_of_text(one, names, weak=weak) for one in label[:_MOST_LABELS])
        return next((one for one in flags if one is not None), None)
    return _of_text(label, names, weak=weak)


def _of_text(label: Any, names: NameRules, *, weak: bool) -> NameVerdict | None:
    """Judge a text as a name: one word, or the label of a form's field."""
    if not isinstance(label, str) or not label or len(label) > _LONGEST_LABEL:
        return None
    text = label.strip()
    if weak and squash(text) in _SECRET_KINDS:
        return names.judge("secret")
    if any(map(str.isspace, text)):
        cut = _CUTS.split(text)[0]
        words = [word for word in name_words(cut) if word not in _FILLERS]
        if not 0 < len(words) <= _MOST_WORDS:
            return None
        verdict = names.judge("_".join(words))
        ends = "".join(words).removesuffix("s")
        found = (verdict.rule or "").rpartition(":")[2].removesuffix("s")
        at_end = verdict.configured or ends.endswith(found)
        return verdict if verdict.rule is not None and at_end else None
    verdict = names.judge(text.strip(":*?!"))
    if verdict.rule is None:
        return None
    words = name_words(text)
    return None if words and words[-1] in name_table().events else verdict


def _by_kinds(
    value: Mapping[Any, Any], names: NameRules, found: SiblingContext, *, values_clean: bool
) -> None:
    if isinstance(value.get("kty"), str):
        found.taken |= dict.fromkeys(_PRIVATE_JWK.intersection(value), "private_key")
    if value.get("kind") == "Secret" and "apiVersion" in value:
        found.taken |= {key: "named_beside" for key in ("data", "stringData") if key in value}
    code = value.get("code")
    if isinstance(code, str) and _is_code(code, value):
        found.taken["code"] = "oauth_code"
    found.spared.update(
        key
        for key, others in _SPARED.items()
        if key in value and not value.keys().isdisjoint(others)
    )
    if not values_clean:
        _by_heads(value, names, found)
        _by_calls(value, names, found)


def _by_calls(value: Mapping[Any, Any], names: NameRules, found: SiblingContext) -> None:
    """Find what a GraphQL document, or a call by position, is given."""
    for key in ("query", "mutation"):
        query, variables = value.get(key), value.get("variables")
        if isinstance(query, str) and isinstance(variables, dict):
            secret = secret_variables(query, names)
            found.instead["variables"] = _marked(variables, secret)
    method = value.get("method")
    if isinstance(method, str) and _LOGINS.search(method):
        for key in _BY_POSITION.intersection(value):
            params = value[key]
            if isinstance(params, list):
                found.instead[key] = [
                    Marked("redact", one) if isinstance(one, str) else one for one in params
                ]


def _by_heads(value: Mapping[Any, Any], names: NameRules, found: SiblingContext) -> None:
    """Find the columns of a table that have the name of a secret."""
    for key, head in value.items():
        if type(key) is not str or not isinstance(head, list) or key.lower() not in _HEADS:
            continue
        secret = {
            place
            for place, name in enumerate(head[:_MOST_COLUMNS])
            if (verdict := _verdict(_name_of(name), names, weak=False)) is not None
            and not verdict.numbers_pass
        }
        if not secret:
            continue
        for other, rows in value.items():
            if other != key and type(other) is str and other.lower() in _ROWS:
                found.instead[other] = _marked_columns(rows, secret, len(head))


def _name_of(head: Any) -> Any:
    return head.get("name", head.get("key")) if isinstance(head, dict) else head


def _marked_columns(rows: Any, secret: set[int], width: int) -> Any:
    if not isinstance(rows, list):
        return rows
    if len(rows) == width and not any(isinstance(one, list | dict) for one in rows):
        return _marked_row(rows, secret)
    return [_marked_row(row, secret) if isinstance(row, list) else row for row in rows]


def _marked_row(row: list[Any], secret: set[int]) -> list[Any]:
    return [
        Marked("redact", one) if place in secret and one is not None else one
        for place, one in enumerate(row)
    ]


def _is_code(code: str, value: Mapping[Any, Any]) -> bool:
    """Return whether it is an authorization code (RFC 6749, section 4.1.2), not any code."""
    if not _OF_CALLBACKS.isdisjoint(
        squash(key) for key in value if type(key) is str and len(key) <= _LONGEST_KEY
    ):
        return True
    return "state" in value and len(code) >= _SHORTEST_CODE and looks_opaque(code)


def _marked(variables: dict[Any, Any], secret: set[str]) -> dict[Any, Any]:
    return {
        key: Marked("redact", item) if key in secret and item is not None else item
        for key, item in variables.items()
    }


_ARGUMENT: Final = LazyPattern(r"([A-Za-z_][A-Za-z0-9_]*)\s*:\s*\[?\s*\$([A-Za-z_][A-Za-z0-9_]*)")


def secret_variables(query: str, names: NameRules) -> set[str]:
    """Find the variables of a GraphQL document that are given to sensitive arguments."""
    return set(_secret_variables(query, names))


def _secret_variables(query: str, names: NameRules) -> Iterator[str]:
    judged: dict[str, bool] = {}
    for match in _ARGUMENT.finditer(query):
        name, variable = match.group(1), match.group(2)
        if name not in judged:
            verdict = names.judge(name)
            judged[name] = verdict.rule is not None and not verdict.numbers_pass
        if judged[name]:
            yield variable
