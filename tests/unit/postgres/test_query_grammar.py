"""The language of queries."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from otel_audit_postgres.query.fields import FIELDS
from otel_audit_postgres.query.grammar import (
    Query,
    QueryError,
    QueryValue,
    Term,
    parse,
    spans,
    term,
)
from otel_audit_postgres.query.times import parse_span

NOW = datetime(2026, 11, 29, 12, 30, tzinfo=UTC)
texts = st.text(max_size=12)
plain_fields = [field for field in FIELDS.values() if not field.is_ordered]


@st.composite
def values(draw, field):
    if field.kind == "status":
        texts_of = st.sampled_from(["404", "5xx", "200"])
    elif field.kind == "time":
        texts_of = st.sampled_from(["7d", "yesterday", "2026-11-21", "2026-11-21 12:00"])
    else:
        operator = "prefix" if field.takes_prefix and draw(st.booleans()) else "="
        return draw(
            st.just(QueryValue("", "any")) | st.builds(QueryValue, texts, st.just(operator))
        )
    operator = draw(st.sampled_from(["=", "any", ">=", ">", "<=", "<", ".."]))
    if operator == "any":
        return QueryValue("", "any")
    if operator == "..":
        first, last = draw(texts_of), draw(st.just("") | texts_of)
        return QueryValue(first, "..", last)
    return QueryValue(draw(texts_of), operator)


@st.composite
def terms(draw):
    negated = draw(st.booleans())
    if draw(st.booleans()):
        return Term(None, (QueryValue(draw(st.text(min_size=1, max_size=12))),), negated)
    field = draw(st.sampled_from(list(FIELDS.values())))
    return Term(field.name, tuple(draw(st.lists(values(field), min_size=1, max_size=3))), negated)


class TestRoundTrip:
    @given(st.lists(terms(), max_size=5))
    @example([Term("actor", (QueryValue("", "prefix"),))])
    @example([Term(None, (QueryValue("-actor:x"),), negated=True)])
    @example([Term("event", (QueryValue("a*b"), QueryValue("*"), QueryValue("a*", "prefix")))])
    @example([Term("target", (QueryValue(">=1"), QueryValue("a..b")))])
    def test_what_is_written_is_read_as_it_was(self, some):
        """Any query, with any text in it, becomes text and the same query again."""
        query = Query(tuple(some))
        assert parse(str(query)) == query

    @given(st.text(max_size=60))
    @example('actor:"\\')
    def test_any_text_is_a_query_or_an_error_with_its_column(self, text):
        """No text breaks the reader; what it reads can be written."""
        columns = []
        try:
            query = parse(text)
        except QueryError as error:
            columns.append(error.column)
        else:
            assert parse(str(query)) == query
        assert all(1 <= column <= len(text) + 1 for column in columns)


class TestReading:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("event:order.refunded", [term("event", "order.refunded")]),
            ("Event:a,b", [term("event", "a", "b")]),
            ("-event:order.*", [Term("event", (QueryValue("order.", "prefix"),), negated=True)]),
            ("status:>=400", [Term("status", (QueryValue("400", ">="),))]),
            ("status:400..499,5xx", [Term("status", (QueryValue("400", "..", "499"), QueryValue("5xx")))]),
            ("time:..2026-11-21", [Term("time", (QueryValue("", "..", "2026-11-21"),))]),
            ("target:order:123", [term("target", "order:123")]),
            ("actor:*", [Term("actor", (QueryValue("", "any"),))]),
            ('tenant:""', [term("tenant", "")]),
            ('"a b" c', [Term(None, (QueryValue("a b"),)), Term(None, (QueryValue("c"),))]),
            (r'"a \"b\" \\c"', [Term(None, (QueryValue(r'a "b" \c'),))]),
            ("-refund", [Term(None, (QueryValue("refund"),), negated=True)]),
            ('path:"/a b"*', [Term("path", (QueryValue("/a b", "prefix"),))]),
            ("  ", []),
        ],
    )  # fmt: skip
    def test_each_form(self, text, expected):
        """What each way of writing means."""
        assert parse(text) == Query(tuple(expected))

    @pytest.mark.parametrize(
        ("text", "column", "said"),
        [
            ("acter:ada", 1, "acter: is not a field; did you mean actor:?"),
            ("item:1", 1, "item: is not a field; did you mean entity:item:1?"),
            ("time:7d order:a-1 x", 9, "order: is not a field; did you mean entity:order:a-1?"),
            ("item:<1", 1, "item: is not a field; there are "),
            ("x http://a", 3, "put text with a colon in quotes"),
            ("actor:", 7, "a value is missing: actor:ada@example.com"),
            ("event:a,,b", 9, "a value is missing"),
            ("event:a*b", 7, '* is allowed only at the end; for the character itself: "a*b"'),
            ("target:order*", 13, "target takes no *"),
            ("status:9", 8, "'9' is not a status: 404, 5xx, >=400 or 400..499"),
            ("time:soon", 6, "'soon' is not a time: expected 30s"),
            ("time:>=999999999w", 6, "is not a time"),
            ("time:..", 6, "a..b needs one end at least"),
            ("-", 1, "- is alone"),
            ('""', 1, "there is nothing between the quotes"),
            ('x "y', 3, 'the quote has no end: add "'),
            (r'"a\n"', 3, "within quotes"),
            ('"a"b', 4, "a space is missing"),
            ("x" * 2_001, 2_001, "2,000 characters at most"),
            ("event:" + ",".join("a" * 51), 107, "50 values at most"),
        ],
    )
    def test_an_error_says_where_and_what(self, text, column, said):
        """The column, what is wrong, and what to write instead."""
        with pytest.raises(QueryError) as refused:
            parse(text)
        assert said in str(refused.value)
        assert refused.value.column == column


class TestNarrowing:
    def test_what_needs_no_quotes_has_none(self):
        """A reference to an entity stays readable."""
        assert str(parse('target:"order:123" -path:"/a/../b"')) == "target:order:123 -path:/a/../b"

    def test_a_term_is_added_once_and_taken_out(self):
        """As by a click on a facet, and on its chip."""
        query = parse("actor:ada")
        more = query.with_term(term("event", "a b"))
        assert str(more) == 'actor:ada event:"a b"'
        assert more.with_term(term("event", "a b")) == more
        assert more.without(term("event", "a b")) == query


class TestTimes:
    @pytest.mark.parametrize(
        ("text", "begin", "end"),
        [
            ("15m", "2026-11-29T12:15:00", None),
            ("2w", "2026-11-15T12:30:00", None),
            ("now", "2026-11-29T12:30:00", None),
            ("today", "2026-11-29T00:00:00", "2026-11-30T00:00:00"),
            ("yesterday", "2026-11-28T00:00:00", "2026-11-29T00:00:00"),
            ("2026-11-21", "2026-11-21T00:00:00", "2026-11-22T00:00:00"),
            ("2026-11-21T12:00:00Z", "2026-11-21T12:00:00", "2026-11-21T12:00:01"),
            ("2026-11-21 12:00+02:00", "2026-11-21T10:00:00", "2026-11-21T10:01:00"),
            ("2026-11-21T12", "2026-11-21T12:00:00", "2026-11-21T13:00:00"),
            ("9999-12-31", "9999-12-31T00:00:00", None),
        ],
    )
    def test_a_time_is_the_span_that_it_names(self, text, begin, end):
        """A day has 24 hours, a moment its last digit; without a zone it is UTC."""
        told = [None if one is None else datetime.fromisoformat(f"{one}Z") for one in (begin, end)]
        assert list(parse_span(text, NOW)) == told

    @pytest.mark.parametrize(
        "text",
        ["", "soon", "1y", "99999999d", "0000-01-01", "0001-01-01T00:00:00+05:00", "2026-13-01"],
    )
    def test_what_is_no_time_is_refused(self, text):
        """Also one that no calendar can tell."""
        with pytest.raises(ValueError, match="is not a time: expected"):
            parse_span(text, NOW)

    @pytest.mark.parametrize(
        ("value", "begin", "end"),
        [
            (QueryValue("2026-11-21"), "2026-11-21", "2026-11-22"),
            (QueryValue("2026-11-21", ">="), "2026-11-21", None),
            (QueryValue("2026-11-21", ">"), "2026-11-22", None),
            (QueryValue("2026-11-21", "<"), None, "2026-11-21"),
            (QueryValue("2026-11-21", "<="), None, "2026-11-22"),
            (QueryValue("2026-11-21", "..", "2026-11-23"), "2026-11-21", "2026-11-24"),
            (QueryValue("", "..", "2026-11-23"), None, "2026-11-24"),
        ],
    )
    def test_comparisons_take_whole_days(self, value, begin, end):
        """What is after a day begins with the next one; a span has its last day in it."""
        told = tuple(
            None if one is None else datetime.fromisoformat(f"{one}T00:00:00Z")
            for one in (begin, end)
        )
        assert spans(value, NOW) == told
