from __future__ import annotations

import pytest

from otel_audit.orm.sql_lexer import Style
from otel_audit.orm.sql_placeholders import placements_in, placements_in_fragment

NAMED = Style("postgresql", "named")


def columns(placements):
    """The columns of each placeholder; None where they cannot be told."""
    return {
        name: sorted(".".join(filter(None, one)) for one in found.columns) if found.known else None
        for name, found in placements.binds.items()
    }


class TestNumbers:
    @pytest.mark.parametrize(
        "statement",
        [
            "INSERT INTO a SELECT 5",
            "INSERT INTO a SELECT 5 UNION SELECT 5",
            "REPLACE INTO a SELECT 5",
        ],
    )
    def test_a_query_into_columns_that_are_not_named(self, statement):
        """Where an INSERT names no columns, it cannot be told which one takes a number."""
        found = placements_in(statement, NAMED).numbers
        assert found
        assert not any(one.known or one.plain for one in found.values())

    def test_compared_with_a_subquery(self):
        """A number that is compared with what a query finds belongs to what that returns."""
        statement = "DELETE FROM a WHERE (SELECT max(pin) FROM b) = 5"
        (number,) = placements_in(statement, NAMED).numbers.values()
        assert [one.name for one in number.columns] == ["pin"]
        assert not number.plain

    @pytest.mark.parametrize(
        "query",
        ["SELECT * FROM b", "SELECT b.* FROM b", "TABLE b", "VALUES (1)", "SELECT count(*)"],
    )
    def test_compared_with_a_query_for_any_column(self, query):
        """One that is compared with columns that are not named belongs to none that can be told."""
        (number,) = (
            one
            for place, one in placements_in(
                f"DELETE FROM a WHERE 5 IN ({query})", NAMED
            ).numbers.items()
            if place < 25
        )
        assert not number.known
        assert not number.plain


class TestPlacements:
    @pytest.mark.parametrize(
        ("statement", "expected"),
        [
            ("UPDATE a SET b = :x WHERE c = :y", {"x": ["b"], "y": ["c"]}),
            ("INSERT INTO a (b, c) VALUES (:x, lower(:y))", {"x": ["b"], "y": ["c"]}),
            ("INSERT INTO a VALUES (:x)", {"x": None}),
            (
                "INSERT INTO a (b, c) SELECT :x, note || :y FROM s WHERE z = :q",
                {"x": ["b"], "y": ["c", "note"], "q": ["z"]},
            ),
            ("INSERT INTO a (b) SELECT s.*, :x FROM s", {"x": None}),
            ("UPDATE a SET (b, c) = (:x, :y)", {"x": ["b", "c"], "y": ["b", "c"]}),
            ("UPDATE a SET b = v.y FROM (VALUES (:x)) v(y)", {"x": None}),
            ("WITH q AS (SELECT :x AS z) UPDATE a SET b = z FROM q", {"x": None}),
            (
                "UPDATE a SET b = CASE WHEN c = :x THEN :y END, d = :z",
                {"x": ["b", "c"], "y": ["b", "c"], "z": ["d"]},
            ),
            ("DELETE FROM a WHERE id IN (SELECT id FROM b WHERE s = :x)", {"x": ["s"]}),
            ("UPDATE a SET b = (SELECT note || :x FROM c)", {"x": ["b", "note"]}),
            ("DELETE FROM a WHERE b BETWEEN :x AND :y AND c = :z",
             {"x": ["b"], "y": ["b"], "z": ["c"]}),
            ("DELETE FROM a WHERE (b = :x OR c = :y) AND :z = lower(d)",
             {"x": ["b"], "y": ["c"], "z": ["d"]}),
            ("DELETE FROM a WHERE b IS DISTINCT FROM :x", {"x": ["b"]}),
            (
                "INSERT INTO a (b) VALUES (:x) ON CONFLICT (b) DO UPDATE SET c = :y WHERE a.d > :z",
                {"x": ["b"], "y": ["c"], "z": ["a.d"]},
            ),
            ("INSERT INTO a (b) VALUES (:x) ON DUPLICATE KEY UPDATE c = :y",
             {"x": ["b"], "y": ["c"]}),
            (
                ("MERGE INTO a USING (VALUES (:i)) s(i) ON a.i = s.i "
                "WHEN MATCHED THEN UPDATE SET d = :x WHEN NOT MATCHED THEN "
                "INSERT (e, f) VALUES (:y, :z)"),
                {"i": None, "x": ["d"], "y": ["e"], "z": ["f"]},
            ),
            ("UPDATE a SET doc = x WHERE doc->>'password' = :x", {"x": ["doc", "password"]}),
            ("CALL f(:x)", {"x": None}),
            ("DELETE FROM a WHERE id + (SELECT max(pin) FROM b) = :x", {"x": ["id", "pin"]}),
            (
                "DELETE FROM a WHERE :x IN (SELECT pin FROM b WHERE c = 1 UNION SELECT d FROM e)",
                {"x": ["d", "pin"]},
            ),
            ("DELETE FROM a WHERE (SELECT c IS DISTINCT FROM d FROM b) = :x", {"x": ["c", "d"]}),
            ("DELETE FROM a WHERE id = :x AND EXISTS (SELECT pin FROM b)", {"x": ["id"]}),
            ("UPDATE a SET b = :x, c = :x", {"x": ["b", "c"]}),
            ("UPDATE a SET b = :x RETURNING :x", {"x": None}),
        ],
    )  # fmt: skip
    def test_columns(self, statement, expected):
        """A value belongs to what it is set into or compared with, and to all of that."""
        assert columns(placements_in(statement, NAMED)) == expected

    @pytest.mark.parametrize(
        ("style", "statement", "names"),
        [
            (Style("sqlite", "qmark"), "UPDATE a SET b = ?, c = ?", ["0", "1"]),
            (Style("postgresql", "numeric_dollar"), "UPDATE a SET b = $2, c = $1", ["1", "0"]),
            (Style("postgresql", "pyformat"), "UPDATE a SET b = %s, c = %s", ["0", "1"]),
            (Style("postgresql", "pyformat"), "UPDATE a SET b = %(b)s, c = 5 %% %(c)s", ["b", "c"]),
            (Style("sqlite", "qmark"), "UPDATE a SET b = :b, c = @c", ["b", "c"]),
            (NAMED, "UPDATE a SET b = CAST(:b AS text), c = '::' || :c", ["b", "c"]),
        ],
    )
    def test_styles(self, style, statement, names):
        """Placeholders are those of the driver."""
        found = placements_in(statement, style).binds
        assert list(found) == names
        assert [one.columns[0].name for one in found.values()] == ["b", "c"]

    def test_numbers(self):
        """Numbers belong to columns as placeholders do; a number of rows to none."""
        text = "UPDATE a SET pin = 77 WHERE id IN (SELECT id FROM b WHERE 1 = 1 LIMIT 5)"
        found = placements_in(text, NAMED).numbers
        told = {
            text[place:].split(" ", maxsplit=1)[0].strip(")"): one for place, one in found.items()
        }
        assert [one.name for one in told["77"].columns] == ["pin"]
        assert told["5"].plain
        assert told["1"].plain

    def test_tables(self):
        """Tables are known by their aliases."""
        statement = "UPDATE s.a AS x SET b = 1 FROM C y, d WHERE x.i = y.i"
        assert placements_in(statement, NAMED).tables == {
            "s.a": {"s.a"}, "a": {"s.a"}, "x": {"s.a"}, "c": {"c"}, "y": {"c"}, "d": {"d"},
        }  # fmt: skip

    def test_secret_functions(self):
        """What goes into a function that encrypts is a secret wherever its outcome goes."""
        found = placements_in("UPDATE a SET b = pgp_sym_encrypt(:x, :y), c = upper(:z)", NAMED)
        assert [one.secret for one in found.binds.values()] == [True, True, False]

    def test_fragment(self):
        """A part of a statement is read as what is compared."""
        found = placements_in_fragment("a = :x AND lower(b) = :y", NAMED)
        assert {name: {one.name for one in p.columns} - {""} for name, p in found.binds.items()} == {
            "x": {"a"}, "y": {"b"},
        }  # fmt: skip

    def test_depth(self):
        """What lies too deep belongs to no column that can be told, and takes no stack."""
        deep = "UPDATE a SET b = " + "(" * 5_000 + ":x" + ")" * 5_000
        assert columns(placements_in(deep, NAMED)) == {"x": None}
