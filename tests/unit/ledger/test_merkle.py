"""The tree and its proofs, against the definitions of RFC 9162 written down as they stand there."""

from __future__ import annotations

import hashlib
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from otel_audit_postgres.ledger.merkle import (
    EMPTY_ROOT,
    Frontier,
    Tree,
    leaf_hash,
    verify_inclusion,
)
from otel_audit_postgres.ledger.verify_evidence import Bad, consistent

LARGEST = 130
ENTRIES = tuple(b"entry %d" % number for number in range(LARGEST))
LEAVES = [leaf_hash(entry) for entry in ENTRIES]
TREE = Tree(LEAVES)


def sha256(data):
    return hashlib.sha256(data).digest()


def split(n):
    k = 1
    while k * 2 < n:
        k *= 2
    return k


@cache
def naive_root(start, end):
    """MTH(D[start:end]), section 2.1.1."""
    n = end - start
    if n == 0:
        return sha256(b"")
    if n == 1:
        return sha256(b"\x00" + ENTRIES[start])
    k = split(n)
    return sha256(b"\x01" + naive_root(start, start + k) + naive_root(start + k, end))


def naive_path(m, start, end):
    """PATH(m, D[start:end]), section 2.1.3.1."""
    n = end - start
    if n == 1:
        return []
    k = split(n)
    if m < k:
        return [*naive_path(m, start, start + k), naive_root(start + k, end)]
    return [*naive_path(m - k, start + k, end), naive_root(start, start + k)]


def naive_subproof(m, start, end, b):
    """SUBPROOF(m, D[start:end], b), section 2.1.4.1."""
    n = end - start
    if m == n:
        return [] if b else [naive_root(start, end)]
    k = split(n)
    if m <= k:
        return [*naive_subproof(m, start, start + k, b), naive_root(start + k, end)]
    return [*naive_subproof(m - k, start + k, end, b=False), naive_root(start, start + k)]


class TestRoot:
    @pytest.mark.parametrize("size", range(LARGEST + 1))
    def test_is_that_of_the_definition(self, size):
        """Grown leaf by leaf, at once, or seen from a larger tree: the same root."""
        frontier = Frontier().extended(LEAVES[:size])
        assert frontier.size == size
        assert len(frontier.hashes) == size.bit_count()
        assert frontier.root() == TREE.root(size) == naive_root(0, size)

    @given(parts=st.lists(st.integers(0, 30), max_size=4))
    def test_does_not_depend_on_the_batches(self, parts):
        """However the leaves arrive, the frontier is the same."""
        frontier, size = Frontier(), 0
        for part in parts:
            frontier = frontier.extended(LEAVES[size : size + part])
            size += part
        assert frontier == Frontier().extended(LEAVES[:size])

    def test_is_known_for_nothing_and_for_one_empty_entry(self):
        """The values that RFC 6962's reference implementation publishes."""
        assert EMPTY_ROOT.hex() == (
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        )
        assert Frontier().extended([leaf_hash(b"")]).root().hex() == (
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
        )


class TestInclusion:
    @pytest.mark.parametrize("size", range(1, LARGEST + 1))
    def test_is_proved_for_every_leaf(self, size):
        """Each leaf of each size has the path of the definition, and it holds."""
        root = TREE.root(size)
        for index in range(size):
            proof = TREE.inclusion(index, size)
            assert proof == naive_path(index, 0, size)
            assert verify_inclusion(LEAVES[index], index, size, proof, root)

    @pytest.mark.parametrize("size", range(1, 34))
    def test_holds_for_no_other_claim(self, size):
        """Another leaf, place, size, root, a longer, shorter or changed path: refused."""
        root = TREE.root(size)
        for index in range(size):
            leaf, proof = LEAVES[index], TREE.inclusion(index, size)
            assert not verify_inclusion(LEAVES[size], index, size, proof, root)
            assert not verify_inclusion(leaf, index, size, proof, LEAVES[-1])
            assert not verify_inclusion(leaf, index, size, [*proof, root], root)
            assert not verify_inclusion(leaf, size, size, proof, root)
            assert not verify_inclusion(leaf, -1, size, proof, root)
            for other in range(size):
                if other != index:
                    assert not verify_inclusion(leaf, other, size, proof, root)
            for place in range(len(proof)):
                changed = [*proof[:place], sha256(proof[place]), *proof[place + 1 :]]
                assert not verify_inclusion(leaf, index, size, changed, root)
                shorter = [*proof[:place], *proof[place + 1 :]]
                assert not verify_inclusion(leaf, index, size, shorter, root)

    @pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 5), (0, 131), (0, -1)])
    def test_is_not_made_for_what_is_not_there(self, index, size):
        """A leaf outside of the tree is an error, not a proof."""
        with pytest.raises(ValueError, match=r"leaf|leaves"):
            TREE.inclusion(index, size)


def grew(old, new, old_root, new_root, proof):
    """Whether the evidence's own check takes the proof."""
    try:
        consistent(("log", old, old_root), ("log", new, new_root), list(proof))
    except Bad:
        return False
    return True


class TestConsistency:
    @pytest.mark.parametrize("new", range(1, LARGEST + 1))
    def test_is_proved_for_every_pair(self, new):
        """Each earlier tree has the proof of the definition, and it holds."""
        for old in range(1, new + 1):
            proof = TREE.consistency(old, new)
            assert proof == naive_subproof(old, 0, new, b=True)
            assert grew(old, new, TREE.root(old), TREE.root(new), proof)

    @pytest.mark.parametrize("new", range(1, 34))
    def test_holds_for_no_other_claim(self, new):
        """Another root on either side, another pair, a changed path: refused."""
        for old in range(1, new + 1):
            proof, roots = TREE.consistency(old, new), (TREE.root(old), TREE.root(new))
            assert not grew(old, new, LEAVES[-1], roots[1], proof)
            assert not grew(old, new, roots[0], LEAVES[-1], proof)
            assert not grew(old, new, *roots, [*proof, roots[0]])
            assert not grew(0, new, *roots, proof)
            assert not grew(new + 1, new, *roots, proof)
            for place in range(len(proof)):
                changed = [*proof[:place], sha256(proof[place]), *proof[place + 1 :]]
                assert not grew(old, new, *roots, changed)
                shorter = [*proof[:place], *proof[place + 1 :]]
                assert not grew(old, new, *roots, shorter)

    @pytest.mark.parametrize(("old", "new"), [(0, 1), (2, 1), (1, 131), (-1, 3)])
    def test_is_not_made_for_what_is_not_there(self, old, new):
        """Nothing is consistent with an empty, a larger or an unknown tree."""
        with pytest.raises(ValueError, match="leaves"):
            TREE.consistency(old, new)
