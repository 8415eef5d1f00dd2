"""A tree of which some leaves are known, and of the rest only as few hashes as make up its root."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from otel_audit_postgres.archive.objects import ArchiveError
from otel_audit_postgres.ledger.checkpoints import Checkpoint, NoteError, read_checkpoint
from otel_audit_postgres.ledger.merkle import HASH_SIZE, Frontier, node_hash

FORMAT: Final = "otel-audit archive tree 1"


@dataclass(slots=True)
class Complement:
    """Gathers, leaf by leaf, the largest complete subtrees without any known leaf.

    Attributes:
        nodes: First leaf, count and hash of each that is closed.
    """

    nodes: list[tuple[int, int, bytes]] = field(default_factory=list)
    _stack: list[tuple[int, int, bytes | None]] = field(default_factory=list)

    def add(self, first: int, count: int, digest: bytes | None) -> None:
        """Append a leaf or a complete subtree; no digest for a known leaf."""
        stack = self._stack
        while stack and stack[-1][1] == count and stack[-1][0] % (2 * count) == 0:
            before, _, left = stack.pop()
            if left is not None and digest is not None:
                digest = node_hash(left, digest)
            else:
                if left is not None:
                    self.nodes.append((before, count, left))
                if digest is not None:
                    self.nodes.append((first, count, digest))
                digest = None
            first, count = before, count * 2
        stack.append((first, count, digest))

    def finished(self) -> list[tuple[int, int, bytes]]:
        """All of them, in their order."""
        rest = [(first, count, digest) for first, count, digest in self._stack if digest]
        return sorted([*self.nodes, *rest])


@dataclass(frozen=True, slots=True)
class SparseTree:
    """The tree under a checkpoint, but for the leaves that are known elsewhere.

    Attributes:
        note: The checkpoint, as a signed note.
        nodes: First leaf, count and hash of each subtree without a known leaf.
    """

    note: str
    nodes: tuple[tuple[int, int, bytes], ...]

    @property
    def checkpoint(self) -> Checkpoint:
        """The text of the note.

        Raises:
            ArchiveError: It is not a checkpoint.
        """
        try:
            return read_checkpoint(self.note)
        except NoteError as error:
            raise ArchiveError(f"the archive's checkpoint: {error}") from None

    def text(self) -> str:
        """The text of the file; equal trees have equal bytes."""
        nodes = [
            [first, count, base64.b64encode(digest).decode()] for first, count, digest in self.nodes
        ]
        return json.dumps(
            {"format": FORMAT, "checkpoint": self.note, "nodes": nodes}, separators=(",", ":")
        )

    def is_rooted(self, leaves: Iterable[tuple[int, bytes]]) -> bool:
        """Whether the known leaves, in their order, make up the checkpoint's root."""
        tree, nodes = Frontier(), iter([*self.nodes, None])
        following = next(nodes)
        pending: list[bytes] = []
        for number, digest in leaves:
            while following is not None and following[0] < number:
                tree, pending = tree.extended(pending), []
                if following[0] != tree.size:
                    return False
                tree = tree.joined(following[2], following[1])
                following = next(nodes)
            if number != tree.size + len(pending):
                return False
            pending.append(digest)
        tree = tree.extended(pending)
        while following is not None:
            if following[0] != tree.size:
                return False
            tree = tree.joined(following[2], following[1])
            following = next(nodes)
        return (tree.size, tree.root()) == (self.checkpoint.size, self.checkpoint.root)

    def inclusion(self, index: int, leaves: Mapping[int, bytes]) -> list[bytes]:
        """Prove that a leaf is under the checkpoint (RFC 9162, 2.1.3.1).

        Args:
            index: The leaf.
            leaves: All known leaves.

        Raises:
            ArchiveError: What would be needed is neither in the archive nor in the tree.
        """
        known = {(first, count): digest for first, count, digest in self.nodes}

        def over(start: int, end: int) -> bytes:
            count = end - start
            found = known.get((start, count)) or (leaves.get(start) if count == 1 else None)
            if found is not None:
                return found
            if count == 1:
                raise ArchiveError(f"leaf {start} is neither in the archive nor in its tree")
            middle = start + (1 << (count - 1).bit_length() - 1)
            return node_hash(over(start, middle), over(middle, end))

        path: list[bytes] = []
        start, end = 0, self.checkpoint.size
        while end - start > 1:
            middle = start + (1 << (end - start - 1).bit_length() - 1)
            if index < middle:
                path.append(over(middle, end))
                end = middle
            else:
                path.append(over(start, middle))
                start = middle
        return path[::-1]


def read_tree(text: str) -> SparseTree:
    """Read the file of a tree.

    Raises:
        ArchiveError: It is none.
    """
    try:
        found: dict[str, Any] = json.loads(text)
        if found["format"] != FORMAT:
            raise ArchiveError("not the tree of an archive of this version")
        nodes = tuple(_node(*node) for node in found["nodes"])
        tree = SparseTree(str(found["checkpoint"]), nodes)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArchiveError(f"not the tree of an archive ({type(error).__name__})") from None
    return tree


def _node(first: int, count: int, encoded: str) -> tuple[int, int, bytes]:
    digest = base64.b64decode(encoded, validate=True)
    is_subtree = count > 0 and count & (count - 1) == 0 and first >= 0 and first % count == 0
    if len(digest) != HASH_SIZE or not is_subtree:
        raise ValueError
    return first, count, digest
