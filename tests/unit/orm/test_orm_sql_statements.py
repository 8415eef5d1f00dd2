from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.orm.sql_lexer import ANY_STYLE, Style
from otel_audit.orm.sql_placeholders import placements_in, placements_in_fragment
from otel_audit.orm.sql_statements import TransactionControl, Write, mask_literals, read_sql

POSTGRES = Style("postgresql", "numeric_dollar")


def found(statement, style=ANY_STYLE):
    """Operation, table and kind of each write."""
    return [(one.operation, one.table, one.kind) for one in read_sql(statement, style).writes]


class TestWrites:
    @pytest.mark.parametrize(
        ("statement", "operation", "table"),
        [
            ("INSERT INTO a VALUES (1)", "insert", "a"),
            ("insert or replace into a values (1)", "insert", "a"),
            ("INSERT IGNORE INTO a VALUES (1)", "insert", "a"),
            ("REPLACE INTO a VALUES (1)", "insert", "a"),
            ('INSERT INTO "a b"."c" (x) VALUES (1)', "insert", "a b.c"),
            ("INSERT INTO s . a VALUES (1)", "insert", "s.a"),
            (r'INSERT INTO U&"d\0061t\+000061" VALUES (1)', "insert", "data"),
            ("COPY a (x, y) FROM STDIN", "insert", "a"),
            ("UPDATE a SET x = 1", "update", "a"),
            ("UPDATE ONLY a SET x = 1", "update", "a"),
            ("/* hello */ UPDATE -- there\n `a` SET x = 1", "update", "a"),
            ("MERGE INTO a USING b ON true WHEN MATCHED THEN DELETE", "update", "a"),
            ("DELETE FROM ONLY a", "delete", "a"),
            ("TRUNCATE TABLE a", "delete", "a"),
            ("WITH gone AS (DELETE FROM a RETURNING *) SELECT * FROM gone", "delete", "a"),
            ("INSERT INTO a VALUES (1) ON CONFLICT DO UPDATE SET x = 2", "insert", "a"),
            ("EXPLAIN ANALYZE DELETE FROM a", "delete", "a"),
        ],
    )
    def test_writes(self, statement, operation, table):
        """A text that writes is known by its operation and its table."""
        assert found(statement) == [(operation, table, "bulk")]

    def test_doubled_percent_signs(self):
        """Where a driver's placeholders begin with a percent sign, one in a name is doubled."""
        statement = 'UPDATE "a%%b" SET x = 1'
        assert found(statement, Style("postgresql", "pyformat")) == [("update", "a%b", "bulk")]
        assert found(statement, POSTGRES) == [("update", "a%%b", "bulk")]

    @pytest.mark.parametrize(
        "statement",
        [
            "SELECT 1",
            "SELECT 'DELETE FROM a'",
            "SELECT $$DELETE FROM a$$",
            "SELECT $x$ DELETE FROM a $x$",
            "SELECT 1 -- DELETE FROM a",
            "SELECT 1 /* DELETE FROM a */",
            "SELECT E'it\\'s; DELETE FROM a'",
            "SELECT * FROM a FOR UPDATE",
            "SELECT * FROM a FOR NO KEY UPDATE",
            "SELECT * FROM a FOR  UPDATE",
            "SELECT * FROM a FOR\n    UPDATE SKIP LOCKED",
            "COPY a TO STDOUT",
            "COPY (SELECT 1) TO STDOUT",
            "CREATE TABLE b (x int REFERENCES a ON DELETE CASCADE ON UPDATE CASCADE)",
            "CREATE TRIGGER t AFTER INSERT ON a BEGIN DELETE FROM b",
            "",
        ],
    )
    def test_reads(self, statement):
        """A text that reads or defines writes nothing, whatever its literals say."""
        assert read_sql(statement).steps == ()

    @pytest.mark.parametrize(
        ("statement", "writes"),
        [
            ('TRUNCATE a, ONLY s.b *, "C" CASCADE', ["delete a", "delete s.b", "delete C"]),
            ("INSERT INTO Orders VALUES (1)", ["insert orders"]),
            ('INSERT INTO "Orders" VALUES (1)', ["insert Orders"]),
            ("EXPLAIN INSERT INTO a VALUES (1)", []),
            ("EXPLAIN (VERBOSE, ANALYZE) DELETE FROM a", ["delete a"]),
            ("EXPLAIN (ANALYZE off) DELETE FROM a", []),
            ("EXPLAIN ANALYZE VERBOSE UPDATE a SET x = 1", ["update a"]),
            ("COPY (DELETE FROM a RETURNING *) TO STDOUT", ["delete a"]),
            ("WITH x AS (SELECT 1) INSERT INTO a SELECT * FROM x", ["insert a"]),
            ("WITH x AS (INSERT INTO a VALUES (1) RETURNING 1) UPDATE b SET y = 1",
             ["update b", "insert a"]),
            ("WITH t AS (WITH y AS (SELECT 1) DELETE FROM a RETURNING 1) SELECT 1", ["delete a"]),
            ('SELECT max(update), "delete" FROM a', []),
            ("/* outer /* inner */ DELETE FROM a */ SELECT 1", []),
            ("PREPARE q AS DELETE FROM a", []),
            ("MERGE INTO a USING b ON true WHEN NOT MATCHED THEN INSERT VALUES (1)", ["update a"]),
            ("UPDATE a SET x = 1 WHERE y IN (SELECT 1 FROM b FOR UPDATE)", ["update a"]),
            ("SELECT 1; ; DELETE FROM a;", ["delete a"]),
            (("CREATE TRIGGER t AFTER INSERT ON a BEGIN DELETE FROM b; UPDATE c SET x = "
             "CASE WHEN 1 THEN 2 END; END; INSERT INTO d VALUES (1)"), ["insert d"]),
        ],
    )  # fmt: skip
    def test_postgres(self, statement, writes):
        """As PostgreSQL reads it: names are folded, comments nest, EXPLAIN only may carry out."""
        found = read_sql(statement, POSTGRES).writes
        assert [f"{one.operation} {one.table}" for one in found] == writes

    @pytest.mark.parametrize(
        ("statement", "style", "writes"),
        [
            ("DELETE a, b FROM a JOIN b USING (id)", Style("mysql", "format"), ["a", "b"]),
            ("UPDATE a JOIN b ON a.x = b.x SET a.y = 1", Style("mysql", "format"), ["a", "b"]),
            ("INSERT a SET x = 'it\\'s; DELETE FROM b'", Style("mysql", "format"), ["a"]),
            ('SELECT "DELETE FROM b"', Style("mysql", "format"), []),
            ("UPDATE [my table] SET x = 1", Style("sqlite", "qmark"), ["my table"]),
            ("UPDATE a SET x[1] = 2", POSTGRES, ["a"]),
            ("/* a /* b */ DELETE FROM c", Style("sqlite", "qmark"), ["c"]),
        ],
    )
    def test_other_databases(self, statement, style, writes):
        """Quotes, escapes and comments are those of the database."""
        assert [one.table for one in read_sql(statement, style).writes] == writes

    @pytest.mark.parametrize(
        "statement",
        [
            "FROBNICATE a",
            "INSERT 5",
            "UPDATE SET",
            "{call f()}",
            "BEGIN INSERT INTO a VALUES (1); END",
            "WITH x AS (SELECT 1)",
            "INSERT INTO a VALUES ('" + "x" * 100_000 + "'); DELETE FROM b",
        ],
    )
    def test_what_is_not_understood(self, statement):
        """It is a write that cannot be seen, never none."""
        assert ("update", "?", "untracked") in found(statement, POSTGRES)

    def test_transactions_in_a_text(self):
        """What is written before and after a COMMIT is told in its place."""
        steps = read_sql("BEGIN; DELETE FROM a; COMMIT; SAVEPOINT q; DELETE FROM b").steps
        assert [one.verb if isinstance(one, TransactionControl) else one.table for one in steps] == [
            "begin", "a", "commit", "savepoint", "b",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("statement", "counted"),
        [
            ("DELETE FROM a", True),
            ("WITH x AS (DELETE FROM b RETURNING 1) DELETE FROM a", True),
            ("WITH x AS (DELETE FROM a RETURNING 1) SELECT 1", False),
            ("DELETE FROM a; DELETE FROM b", False),
            ("EXPLAIN ANALYZE DELETE FROM a", False),
            ("TRUNCATE a, b", False),
        ],
    )
    def test_whose_row_count_it_is(self, statement, counted):
        """The driver's row count is that of the one write that the statement is."""
        assert read_sql(statement, POSTGRES).writes[0].counted is counted

    def test_several_statements(self):
        """All writes of a text are found, each once."""
        assert read_sql("DELETE FROM a; DELETE FROM a; UPDATE b SET x = 1").writes == [
            Write("delete", "a"),
            Write("update", "b"),
        ]

    @pytest.mark.parametrize(
        ("statement", "name"),
        [("CALL do_it(1)", "do_it"), ("DO $$ BEGIN DELETE FROM a; END $$", "?"), ("EXEC p 1", "p")],
    )
    def test_opaque(self, statement, name):
        """A text whose writes cannot be seen is flagged."""
        assert found(statement) == [("update", name, "untracked")]

    @given(st.text("'\"$;-/*eE\\ \nINSTODELFRMa1", max_size=200))
    def test_never_raises(self, statement):
        """No text makes it fail."""
        for style in (ANY_STYLE, POSTGRES, Style("sqlite", "qmark"), Style("mysql", "format")):
            read_sql(statement, style)
            placements_in(statement, style)
            placements_in_fragment(statement, style)


class TestMaskLiterals:
    @given(
        st.text(alphabet=st.characters(blacklist_categories=("Cs",))),
        st.sampled_from(["'{}'", "E'{}'", "$t$ {} $t$", "/* {} */", "'{}"]),
    )
    def test_no_literal_survives(self, secret, form):
        """What stands in quotes or in a comment is gone, closed or not."""
        secret = "SECRET" + secret.replace("'", "''").replace("\\", "").replace("*/", "").replace(
            "$t$", ""
        )
        masked = mask_literals("UPDATE a SET b = " + form.format(secret))
        assert "SECRET" not in masked

    def test_the_rest_survives(self):
        """Names, numbers and placeholders stay."""
        statement = 'UPDATE "a" SET b = $1, c = :c, d = 5 WHERE e = ?'
        assert mask_literals(statement) == statement

    @pytest.mark.parametrize(
        ("statement", "masked"),
        [
            (
                'INSERT INTO "t" ("a", "b") VALUES ("x", lower("y"))',
                'INSERT INTO "t" ("a", "b") VALUES ("…", lower("…"))',
            ),
            ('INSERT INTO t SELECT 1, "x"', 'INSERT INTO t SELECT 1, "…"'),
            ('INSERT INTO t SELECT "x", "y" FROM u', 'INSERT INTO t SELECT "x", "y" FROM u'),
            ('UPDATE "t" SET "a" = "x"', 'UPDATE "t" SET "a" = "…"'),
            ('DELETE FROM t WHERE a IN ("x", "y")', 'DELETE FROM t WHERE a IN ("…", "…")'),
            ('DELETE FROM t WHERE "t"."a" = "u"."b"', 'DELETE FROM t WHERE "t"."a" = "u"."b"'),
        ],
    )
    def test_texts_in_double_quotes_of_sqlite(self, statement, masked):
        """Where SQLite may take a name in quotes for a text, it is masked."""
        assert mask_literals(statement, Style("sqlite", "qmark")) == masked


class TestControl:
    @pytest.mark.parametrize(
        ("statement", "expected"),
        [
            ("BEGIN", TransactionControl("begin")),
            (" begin immediate transaction;", TransactionControl("begin")),
            ("COMMIT", TransactionControl("commit")),
            (" end transaction", TransactionControl("commit")),
            ("ROLLBACK", TransactionControl("rollback")),
            ("ABORT", TransactionControl("rollback")),
            ("SAVEPOINT a", TransactionControl("savepoint", "a")),
            ('SAVEPOINT "A b"', TransactionControl("savepoint", "A b")),
            ("RELEASE SAVEPOINT A", TransactionControl("release", "a")),
            ("RELEASE a;", TransactionControl("release", "a")),
            ("ROLLBACK TO a", TransactionControl("rollback_to", "a")),
            ("ROLLBACK TRANSACTION TO SAVEPOINT a", TransactionControl("rollback_to", "a")),
            ("COMMIT PREPARED 'x'", None),
            ("ROLLBACK PREPARED 'x'", None),
            ("SELECT 1", None),
            ("ENDING", None),
        ],
    )
    def test_table(self, statement, expected):
        """Statements that control the transaction are told from all others."""
        assert read_sql(statement).controls == ([] if expected is None else [expected])
