"""A bounded copy of a body, taken chunk by chunk while it passes."""

from __future__ import annotations


class BodyCopy:
    """Keeps the head of a body and counts the whole. Adding a chunk never copies it."""

    __slots__ = ("_chunks", "_kept", "_limit", "complete", "size")

    def __init__(self, limit: int) -> None:
        """Set the bound.

        Args:
            limit: Bytes to keep, at the most.
        """
        self._limit = limit
        self._chunks: list[bytes] = []
        self._kept = 0
        self.size = 0
        self.complete = False

    def add(self, chunk: bytes, *, last: bool) -> None:
        """See a chunk pass.

        Args:
            chunk: The bytes.
            last: Whether it is the last one.
        """
        self.size += len(chunk)
        self.complete = last
        room = self._limit - self._kept
        if chunk and room > 0:
            head = chunk if len(chunk) <= room else chunk[:room]
            # a server may pass a buffer that its owner uses again
            self._chunks.append(head if type(head) is bytes else bytes(head))
            self._kept += len(head)

    def restart(self) -> None:
        """Forget what was seen: it was not what is sent in the end."""
        self._chunks.clear()
        self._kept = self.size = 0
        self.complete = False

    @property
    def head(self) -> bytes:
        """What was kept."""
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)

    @property
    def whole(self) -> bool:
        """Whether what was kept is all there was."""
        return self.complete and self._kept == self.size
