"""Items of JSON are found where a parser finds them, and in no step that takes long."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.server.errors import RequestError
from otel_audit.server.scan_json import LOGS, SPANS, Splitter, StructureError

texts = st.text(max_size=12) | st.sampled_from(['"', "\\", "]}", '{"spans":[{', "\ud800", "é\n"])
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
items = st.lists(st.dictionaries(texts, anything, max_size=3), max_size=4)
scopes = st.fixed_dictionaries(
    {"spans": items},
    optional={"scope": st.dictionaries(texts, anything, max_size=2), "x": anything},
)
groups = st.fixed_dictionaries(
    {"scopeSpans": st.lists(scopes, max_size=3)},
    optional={"resource": st.dictionaries(texts, anything, max_size=2), "schemaUrl": texts},
)
documents = st.fixed_dictionaries(
    {"resourceSpans": st.lists(groups, max_size=3)}, optional={"other": anything}
)


def found(text: bytes, names=SPANS, most_items: int = 1000, most_objects: int = 10_000):
    splitter = Splitter(text, names, most_items, most_objects)
    list(splitter.steps())
    return splitter.found


@given(document=documents, indent=st.sampled_from([None, 0, 2]), spelled=st.booleans(),
       reverse=st.booleans())  # fmt: skip
def test_each_item_is_found_where_it_stands(document, indent, spelled, reverse):
    """In any order of members, with any blanks, and whatever is in the texts."""
    if reverse:
        document["resourceSpans"] = [
            dict(reversed(group.items())) for group in document["resourceSpans"]
        ]
    text = json.dumps(document, indent=indent, ensure_ascii=spelled).encode("utf-8", "replace")
    parsed = json.loads(text)

    told = found(text)

    assert not told.is_odd
    assert [
        [[json.loads(text[slice(*item)]) for item in scoped.items] for scoped in group.scopes]
        for group in told.groups
    ] == [[scoped["spans"] for scoped in group["scopeSpans"]] for group in parsed["resourceSpans"]]
    for group, wanted in zip(told.groups, parsed["resourceSpans"], strict=True):
        resource = None if group.resource is None else json.loads(text[slice(*group.resource)])
        assert resource == wanted.get("resource")


@given(text=st.binary(max_size=200) | documents.map(lambda one: json.dumps(one).encode()[:-1]))
def test_anything_ends_in_an_answer(text):
    """What is no object, or is cut, is an error of its own; nothing else is ever raised."""
    try:
        found(text)
    except StructureError:
        with pytest.raises((ValueError, AssertionError)):
            assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("text", [b"", b"[]", b"1", b'{"a":1', b'{"a":1}}', b'{"a":[}]', b"{} {}"])
def test_what_is_no_object(text):
    with pytest.raises(StructureError):
        found(text)


def test_what_is_no_object_among_the_items_is_counted():
    text = b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[1, {}, "x", [{}], {"a":[{}]}, null]}]}]}'
    (scoped,) = found(text, LOGS).groups[0].scopes
    assert [item is None for item in scoped.items] == [True, False, True, True, False, True]


def test_there_is_a_bound():
    with pytest.raises(RequestError, match="more than 2 spans"):
        found(b'{"resourceSpans":[{"scopeSpans":[{"spans":[{},{},{}]}]}]}', most_items=2)
    with pytest.raises(RequestError, match="more than 9 JSON objects"):
        found(b"{" + b'"a":[' * 20, most_objects=9)


@pytest.mark.parametrize(
    "text", [b'{"a":"' + b"x" * 9_000_000, b'{"a":"' + b'\\"' * 3_000_000, b"{" + b"[" * 90_000,
             b"{" + b" " * 9_000_000, b'{"a":' + b'""' * 900_000],
    ids=["a long text", "escapes", "brackets", "blanks", "quotes"],
)  # fmt: skip
def test_others_have_turns_all_the_while(text, monkeypatch):
    """No two pauses are far apart, whatever is between them."""
    from otel_audit.server import scan_json

    reached = [0]

    def end(match):
        reached.append(match.end())
        return match.end()

    monkeypatch.setattr(scan_json, "_end", end)
    with pytest.raises(StructureError):
        found(text, most_objects=1_000_000)
    assert max(later - earlier for earlier, later in pairwise(reached)) <= 2_200_000
