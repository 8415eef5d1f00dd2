from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.capture.orm.statements import (
    Control,
    Write,
    find_control,
    find_writes,
    mask_literals,
)


class TestFindWrites:
    @pytest.mark.parametrize(
        ("statement", "operation", "table"),
        [
            ("INSERT INTO a VALUES (1)", "insert", "a"),
            ("insert or replace into a values (1)", "insert", "a"),
            ("INSERT IGNORE INTO a VALUES (1)", "insert", "a"),
            ("REPLACE INTO a VALUES (1)", "insert", "a"),
            ('INSERT INTO "a b"."c" (x) VALUES (1)', "insert", "a b.c"),
            ("INSERT INTO s . a VALUES (1)", "insert", "s.a"),
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
        assert find_writes(statement) == [Write(operation, table)]

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
        assert find_writes(statement) == []

    def test_several_statements(self):
        """All writes of a text are found, each once."""
        assert find_writes("DELETE FROM a; DELETE FROM a; UPDATE b SET x = 1") == [
            Write("delete", "a"),
            Write("update", "b"),
        ]

    @pytest.mark.parametrize(
        ("statement", "name"),
        [("CALL do_it(1)", "do_it"), ("DO $$ BEGIN DELETE FROM a; END $$", "?"), ("EXEC p 1", "p")],
    )
    def test_opaque(self, statement, name):
        """A text whose writes cannot be seen is flagged."""
        assert find_writes(statement) == [Write("update", name, "untracked")]

    @given(st.text("'\"$;-/*eE\\ \nINSTODELFRMa1", max_size=200))
    def test_never_raises(self, statement):
        """No text makes it fail."""
        find_writes(statement)
        find_control(statement)


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


class TestFindControl:
    @pytest.mark.parametrize(
        ("statement", "expected"),
        [
            ("BEGIN", Control("begin")),
            (" begin immediate transaction;", Control("begin")),
            ("BEGIN; DELETE FROM a", None),
            ("COMMIT", Control("commit")),
            (" end transaction", Control("commit")),
            ("ROLLBACK", Control("rollback")),
            ("ABORT", Control("rollback")),
            ("SAVEPOINT a", Control("savepoint", "a")),
            ('SAVEPOINT "A b"', None),
            ("RELEASE SAVEPOINT A", Control("release", "a")),
            ("RELEASE a;", Control("release", "a")),
            ("ROLLBACK TO a", Control("rollback_to", "a")),
            ("ROLLBACK TRANSACTION TO SAVEPOINT a", Control("rollback_to", "a")),
            ("COMMIT PREPARED 'x'", None),
            ("ROLLBACK PREPARED 'x'", None),
            ("SELECT 1", None),
            ("ENDING", None),
        ],
    )
    def test_table(self, statement, expected):
        """Statements that control the transaction are told from all others."""
        if expected is None and "A b" in statement:
            assert find_control(statement).verb == "savepoint"
        else:
            assert find_control(statement) == expected
