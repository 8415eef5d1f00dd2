"""A file outside the store with a stream's position. It detects a store restored from a backup."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from otel_audit._util.durable_file import replace_durably
from otel_audit._util.ratelimited_log import log_limited

_logger: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SentPosition:
    """A stream's position, as written in the file.

    Attributes:
        turn: Of the position, which counts rewinds.
        next_leaf: The first leaf that was not acknowledged.
        leaf_hash: Of the leaf before, in hex; empty where it is not known.
    """

    turn: int
    next_leaf: int
    leaf_hash: str


class LocalPosition:
    """A small file for each stream; without it a stream still works, and sees less."""

    def __init__(self, directory: Path, name: str) -> None:
        """Remember the path; the directory is made with the first write.

        Args:
            directory: Where the files of all streams lie.
            name: The stream's name.
        """
        self._path = directory / f"{name}.json"

    def read(self) -> SentPosition | None:
        """Read the file; None if it is missing or cannot be read."""
        try:
            found = json.loads(self._path.read_bytes())
            return SentPosition(
                int(found["turn"]), int(found["next_leaf"]), str(found["leaf_hash"])
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log_limited(
                _logger, f"local position {self._path}", "%s cannot be read: only the store itself "
                "shows whether it was restored from a backup", self._path, error=error,
                level=logging.WARNING,
            )  # fmt: skip
            return None

    def write(self, sent: SentPosition) -> None:
        """Remember; a failure is logged, and holds up nothing."""
        text = json.dumps({
            "turn": sent.turn, "next_leaf": sent.next_leaf, "leaf_hash": sent.leaf_hash
        })  # fmt: skip
        try:
            with contextlib.suppress(FileExistsError):
                self._path.parent.mkdir(parents=True, mode=0o700)
            replace_durably(self._path, text.encode())
        except OSError as error:
            log_limited(
                _logger, f"local position {self._path}", "%s cannot be written: a store that is "
                "restored from a backup will not be noticed by it", self._path, error=error,
                level=logging.WARNING,
            )  # fmt: skip
