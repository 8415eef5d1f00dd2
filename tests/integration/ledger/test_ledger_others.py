"""Others' verifiers accept what we write: Go's signed notes, transparency-dev's proofs."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from otel_audit_postgres.ledger.checkpoints import Checkpoint, signed
from otel_audit_postgres.ledger.keys import generate
from otel_audit_postgres.ledger.leaves import TAG, content_hash
from otel_audit_postgres.ledger.merkle import Tree, leaf_hash
from otel_audit_postgres.ledger.prove import prove_growth, prove_record

PROGRAM = Path(__file__).parent / "go_verifier"


@pytest.fixture(scope="session")
def verifier(tmp_path_factory):
    """Asks the program in Go; skipped where there is no Go."""
    go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if go is None:
        pytest.skip("needs Go 1.22 or newer: https://go.dev/doc/install")
    binary = tmp_path_factory.mktemp("go") / "verifier"
    built = subprocess.run(
        [go, "build", "-p", "2", "-o", str(binary), "."], cwd=PROGRAM, capture_output=True, text=True,
        env={**os.environ, "GOFLAGS": "-mod=readonly"}, check=False,
    )  # fmt: skip
    if built.returncode:
        if "dial tcp" in built.stderr or "lookup" in built.stderr:
            pytest.skip("the Go module proxy cannot be reached")
        pytest.fail(built.stderr)

    def ask(questions):
        lines = "".join(f"{json.dumps(question)}\n" for question in questions)
        done = subprocess.run(
            [str(binary)], input=lines, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    return ask


def coded(hashes):
    return [base64.b64encode(one).decode() for one in hashes]


def a_log(size):
    key = generate("audit.example.com/others")
    entries = [f"entry {number}".encode() for number in range(size)]
    return key, entries, Tree([leaf_hash(entry) for entry in entries])


def note_of(key, tree, size):
    return signed(Checkpoint(key.name, size, tree.root(size)), [key])


@pytest.mark.slow
class TestGo:
    def test_accepts_every_inclusion_proof(self, verifier):
        """All sizes to 130, every leaf of each."""
        key, entries, tree = a_log(130)
        questions = [
            {
                "Key": key.public.text(), "Note": note_of(key, tree, size), "Index": index,
                "Entry": base64.b64encode(entries[index]).decode(),
                "Inclusion": coded(tree.inclusion(index, size)),
            }
            for size in range(1, 131)
            for index in range(size)
        ]  # fmt: skip
        assert set(verifier(questions)) == {"ok"}

    def test_accepts_every_consistency_proof(self, verifier):
        """All pairs of sizes to 130."""
        key, _, tree = a_log(130)
        questions = [
            {
                "Key": key.public.text(), "Note": note_of(key, tree, new), "Old": note_of(key, tree, old),
                "Consistency": coded(tree.consistency(old, new)),
            }
            for new in range(1, 131)
            for old in range(1, new + 1)
        ]  # fmt: skip
        assert set(verifier(questions)) == {"ok"}

    async def test_accepts_what_the_store_gives(self, verifier, sealed, connection):
        """A record's bundle, the growth of the log, and the note at the anchor."""
        row = await connection.fetchrow(
            "SELECT id, payload::text FROM audit.audit_logs OFFSET 7 LIMIT 1"
        )
        bundle = await prove_record(sealed.dsn, str(row["id"]), [sealed.key.public])
        (record,) = bundle["records"]
        entry = (
            TAG + row["id"].bytes + content_hash(record["payload"])
            + record["recorded_at"].to_bytes(8, "big", signed=True)
        )  # fmt: skip
        first = await connection.fetchval("SELECT note FROM audit.ledger_checkpoints ORDER BY size")
        growth = await prove_growth(sealed.dsn, first, [])
        key = sealed.key.public.text()
        good = {
            "Key": key, "Note": bundle["checkpoint"], "Index": record["leaf"],
            "Entry": base64.b64encode(entry).decode(), "Inclusion": record["proof"],
        }  # fmt: skip
        answers = verifier([
            good,
            {"Key": key, "Note": growth["new"], "Old": growth["old"], "Consistency": growth["proof"]},
            {"Key": key, "Note": await sealed.anchor.last()},
            {**good, "Index": record["leaf"] + 1},
            {**good, "Entry": base64.b64encode(entry[:-1] + bytes([entry[-1] ^ 1])).decode()},
            {**good, "Note": good["Note"].replace("\n23\n", "\n24\n")},
            {**good, "Key": generate(sealed.key.name).public.text()},
        ])  # fmt: skip
        assert answers[:3] == ["ok", "ok", "ok"], answers
        assert all(answer.startswith("refused") for answer in answers[3:]), answers
