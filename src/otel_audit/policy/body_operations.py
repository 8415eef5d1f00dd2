"""Names of the operations in a body, for APIs with one path: GraphQL and JSON-RPC."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from otel_audit.policy.graphql import read_operation
from otel_audit.policy.naming import Naming, name_action
from otel_audit.policy.verbs import ACCOUNT, ACTIONS
from otel_audit.policy.words import singular, split_words

_MOST_CALLS: Final = 20
"""Calls of one batch that are read: a name of the action needs no more."""
_LONGEST_NAME: Final = 64
"""Characters of a method's name; a longer one gives no event name."""
_GRAPHQL: Final = frozenset({"graphql", "gql"})
_RPC: Final = frozenset({"jsonrpc", "rpc", "mcp"})
_METHOD: Final = re.compile(r"[A-Za-z_$][\w$]*(?:[./:-][\w$]+)*")
_TOOL_CALL: Final = "tools/call"
"""The method of the Model Context Protocol by which a tool is called; the tool is the operation."""
_ERRORS_FIRST: Final = re.compile(rb'\s*\{\s*"errors?"\s*:\s*[\[{]\s*[{"]')
_STRUCTURED: Final = frozenset(b"{[")


class Operations(msgspec.Struct, frozen=True):
    """An operation that a body requests.

    Attributes:
        system: ``graphql`` or ``jsonrpc``.
        kind: ``query``, ``mutation``, ``subscription``; ``call`` of JSON-RPC.
        names: The root fields, or the methods, each once.
        label: What the client calls it, of GraphQL.
    """

    system: str
    kind: str
    names: tuple[str, ...]
    label: str = ""


class Failure(msgspec.Struct, frozen=True):
    """An error that an answer reports.

    Attributes:
        error_type: ``GraphQLError`` or ``JSONRPCError``.
        code: The code of JSON-RPC.
    """

    error_type: str
    code: int | None = None


class _Params(msgspec.Struct):
    name: Any = None


class _Call(msgspec.Struct):
    """Either of the two, as far as it is looked at."""

    query: Any = None
    operation_name: Any = msgspec.field(name="operationName", default=None)
    jsonrpc: Any = None
    method: Any = None
    params: msgspec.Raw = msgspec.Raw(b"null")


class _Answer(msgspec.Struct):
    errors: Any = None
    jsonrpc: Any = None
    error: Any = None


_decode_call = msgspec.json.Decoder(_Call).decode
_decode_calls = msgspec.json.Decoder(list[_Call]).decode
_decode_params = msgspec.json.Decoder(_Params).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_answers = msgspec.json.Decoder(list[_Answer]).decode


OPERATION_TAIL: Final = 64
"""Characters at the end of a path that say whether its bodies name the operation."""


# more routes than applications have; beyond it a path is looked at again
@functools.lru_cache(maxsize=2048)
def carries_operations(path: str) -> bool:
    """Return whether a path looks like one whose bodies name the operation.

    Args:
        path: As requested, or a route's template. Its last `OPERATION_TAIL` characters are enough;
            callers cut it, because it is remembered.
    """
    last = path[-OPERATION_TAIL:].rstrip("/").rpartition("/")[2].lower()
    words = frozenset(re.split(r"[^a-z]+", last))
    return bool(words & (_GRAPHQL | _RPC)) or last == "json-rpc"


def read_operations(body: bytes) -> Operations | None:
    """Read which operations a request's body requests. Never raises.

    Args:
        body: The body, whole.

    Returns:
        The operations; None if it is neither GraphQL nor JSON-RPC, or not understood.
    """
    head = body.lstrip(b" \t\r\n")[:1]
    if not head or head[0] not in _STRUCTURED:
        return None
    try:
        calls = _decode_calls(body) if head == b"[" else [_decode_call(body)]
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    calls = calls[:_MOST_CALLS]
    if calls and all(isinstance(one.method, str) and one.jsonrpc is not None for one in calls):
        methods = tuple(dict.fromkeys(name for one in calls if (name := _method(one))))
        return Operations("jsonrpc", "call", methods) if methods else None
    return _graphql(calls)


def _graphql(calls: Sequence[_Call]) -> Operations | None:
    found = [
        read_operation(one.query, one.operation_name if type(one.operation_name) is str else None)
        for one in calls
        if isinstance(one.query, str)
    ]
    known = [one for one in found if one is not None]
    if not known or len(known) != len(calls):
        return None
    fields = tuple(dict.fromkeys(name for one in known for name in one.fields))[:_MOST_CALLS]
    kinds = {one.kind for one in known}
    # of several kinds the one that changes something says most, else the first one
    kind = "mutation" if "mutation" in kinds else known[0].kind
    return Operations("graphql", kind, fields, known[0].name if len(known) == 1 else "")


def _method(call: _Call) -> str:
    name = call.method
    if name == _TOOL_CALL:
        try:
            tool = _decode_params(call.params).name
        except msgspec.MsgspecError:
            tool = None
        name = tool if isinstance(tool, str) else name
    return name if len(name) <= _LONGEST_NAME and _METHOD.fullmatch(name) else ""


def read_failure(body: bytes, system: str, *, whole: bool) -> Failure | None:
    """Find an error in an answer that the protocol gives with status 200. Never raises.

    Args:
        body: The response's body.
        system: ``graphql`` or ``jsonrpc``.
        whole: Whether that is all of it; of a longer one only errors at its beginning are seen.
    """
    error_type = "GraphQLError" if system == "graphql" else "JSONRPCError"
    if not whole:
        return Failure(error_type) if _ERRORS_FIRST.match(body) else None
    head = body.lstrip(b" \t\r\n")[:1]
    if not head or head[0] not in _STRUCTURED:
        return None
    try:
        answers = _decode_answers(body) if head == b"[" else [_decode_answer(body)]
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    for one in answers:
        if system == "graphql" and one.errors:
            return Failure(error_type)
        if system == "jsonrpc" and one.error is not None:
            code = one.error.get("code") if isinstance(one.error, dict) else None
            return Failure(error_type, code if type(code) is int else None)
    return None


def name_operations(operations: Operations) -> Naming | None:
    """Name the operation, such as ``order.refunded`` for the mutation ``refundOrder``.

    Returns:
        The naming; None if several different operations are requested at once: none of them may
        hide the others.
    """
    if len(operations.names) != 1:
        return None
    return _name(operations.kind, operations.names[0])


# more operations than a schema has; clients may invent others
@functools.lru_cache(maxsize=2048)
def _name(kind: str, name: str) -> Naming | None:
    if name.startswith("__"):
        return None  # introspection
    path = "/" + re.sub(r"[.:/-]", "/", name).replace("$", "")
    words = split_words(path.rpartition("/")[2])
    if not words:
        return None
    if kind in {"query", "subscription"}:
        named = name_action("POST", path) if ACTIONS.get(words[0]) == "READ" else None
        return named or name_action("GET", path)
    if words[-1] in ACTIONS and words[0] not in ACTIONS and len(words) > 1:
        words = [words[-1], *words[:-1]]
        path = f"{path.rpartition('/')[0]}/{'_'.join(words)}"
    alone = len(words) == 1 and path.count("/") == 1
    if "_".join(words) in ACCOUNT or (words[0] in ACTIONS and not alone):
        return name_action("POST", path)
    # a noun says on what, not what is done: that must not be taken from the method
    noun = "_".join((*words[:-1], singular(words[-1])))
    return Naming(f"{noun}.executed", "EXECUTE", noun)
