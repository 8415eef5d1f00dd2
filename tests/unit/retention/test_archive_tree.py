"""A tree of which few leaves are known comes to the root of the whole."""

from __future__ import annotations

import hashlib
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from otel_audit_postgres.archive.manifest import ArchivedObject, ArchiveManifest, read_manifest
from otel_audit_postgres.archive.objects import ArchiveError
from otel_audit_postgres.archive.sparse_tree import Complement, SparseTree, read_tree
from otel_audit_postgres.ledger.checkpoints import Checkpoint, signed
from otel_audit_postgres.ledger.merkle import Tree, verify_inclusion


def leaf(number):
    return hashlib.sha256(str(number).encode()).digest()


def sparse(size, known):
    tree = Tree(map(leaf, range(size)))
    complement = Complement()
    for number in range(size):
        complement.add(number, 1, None if number in known else leaf(number))
    note = signed(Checkpoint("log", size, tree.root(size)))
    return SparseTree(note, tuple(complement.finished())), tree


@given(st.integers(1, 70), st.sets(st.integers(0, 69)))
def test_has_the_root_and_proves_each_leaf(size, wanted):
    """Whatever leaves are known, and however many there are."""
    known = {number for number in wanted if number < size}
    small, tree = sparse(size, known)
    leaves = {number: leaf(number) for number in sorted(known)}
    assert small.is_rooted(leaves.items())
    for number in known:
        proof = small.inclusion(number, leaves)
        assert verify_inclusion(leaf(number), number, size, proof, tree.root(size))


@given(st.integers(2, 70), st.sets(st.integers(0, 69), min_size=1), st.data())
def test_shows_a_leaf_that_is_changed_missing_or_too_much(size, wanted, data):
    """No other set of leaves comes to the same root."""
    known = sorted({number % size for number in wanted})
    small, _ = sparse(size, set(known))
    one = data.draw(st.sampled_from(known))
    leaves = {number: leaf(number) for number in known}
    assert not small.is_rooted([(n, d) for n, d in leaves.items() if n != one])
    assert not small.is_rooted([(n, leaf("x") if n == one else d) for n, d in leaves.items()])
    assert not small.is_rooted([*leaves.items(), (size, leaf("more"))])


def test_is_read_as_it_was_written():
    """Its text is the same each time, and nothing else is taken for one."""
    small, _ = sparse(13, {2, 3, 11})
    assert read_tree(small.text()) == small
    for text in ("", "[]", "{}", small.text().replace('"nodes":[[0,2', '"nodes":[[1,2')):
        with pytest.raises(ArchiveError):
            read_tree(text)


def test_a_manifest_is_read_as_it_was_written():
    """Every part of it; and a text that says the same in another way is none."""
    entry = ArchivedObject(
        "2025-01/a-0.parquet", "a", 3, 99, "0" * 64, 1, 7, date(2026, 1, 1), None
    )
    manifest = ArchiveManifest(
        "log", date(2025, 1, 1), "1" * 64, 5, "2" * 64, (entry,), ("2025-01/tree-0.json", 4, "3" * 64),
        (("none", 2),),
    )  # fmt: skip
    assert read_manifest(manifest.note()) == manifest
    for other in ("rows: 05", "rows: 5 ", "rows: -5", "log: x\nrows: 5"):
        with pytest.raises(ArchiveError):
            read_manifest(manifest.note().replace("rows: 5", other))
    with pytest.raises(ArchiveError):
        read_manifest(manifest.note().replace("2025-01/a-0", "2025-01/../a-0"))
