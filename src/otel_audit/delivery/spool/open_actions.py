"""Actions that have a frame in the spool and have not closed: they keep segments."""

from __future__ import annotations

from otel_audit.delivery.spool.segment import Segment

OpenAction = tuple[Segment, Segment, int, int]
"""State of an open action: the segment that it keeps, the segment with its last frame, that
frame's offset in the file, its size. A plain tuple: one is made for every frame."""


class OpenActions:
    """Actions with a frame in the spool that have not closed. Not thread-safe."""

    __slots__ = ("_actions", "live_bytes")

    def __init__(self) -> None:
        self._actions: dict[bytes, OpenAction] = {}
        self.live_bytes = 0
        """Bytes of the last frames of all of them."""

    def __len__(self) -> int:
        return len(self._actions)

    def __contains__(self, key: bytes) -> bool:
        return key in self._actions

    def get(self, key: bytes) -> OpenAction | None:
        """Find an action."""
        return self._actions.get(key)

    def pinning(self, segment: Segment) -> list[bytes]:
        """List the actions that keep a segment."""
        return [key for key, (pinned, *_) in self._actions.items() if pinned is segment]

    def note(self, key: bytes, segment: Segment, start: int, size: int) -> None:
        """Note an action's new last frame."""
        known = self._actions.get(key)
        if known is None:
            segment.pins += 1
            self._actions[key] = (segment, segment, start, size)
            self.live_bytes += size
        else:
            self._actions[key] = (known[0], segment, start, size)
            self.live_bytes += size - known[3]

    def end(self, key: bytes, needs: int) -> None:
        """Forget an action; what it kept may go when ``needs`` is acknowledged."""
        known = self._actions.pop(key, None)
        if known is not None:
            pinned, _, _, size = known
            self.live_bytes -= size
            pinned.pins -= 1
            pinned.needs = max(pinned.needs, needs)

    def move(self, key: bytes, segment: Segment, start: int) -> None:
        """Note that an action's last frame was copied, so that it keeps only the copy."""
        pinned, _, _, size = self._actions[key]
        pinned.pins -= 1
        pinned.carried = max(pinned.carried, segment.base + start + size)
        segment.pins += 1
        self._actions[key] = (segment, segment, start, size)
