"""A site with the application in it, a PostgreSQL server that may be killed, and the loss table."""

from __future__ import annotations

from pathlib import Path

import loss_table
import pytest
from faults.load import Site, Verdict


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


class Told:
    """Compares what was measured with the loss table, or writes it there (--record-losses)."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._test = request.node.originalname
        self._write = bool(request.config.getoption("--record-losses"))

    def __call__(self, event: str, verdict: Verdict, shows: str, *, refused: int = 0) -> None:
        row = loss_table.Row(
            event=event,
            answered=len(verdict.answered),
            lost=len(verdict.lost),
            twice=len(verdict.twice),
            cut_down=len(verdict.cut_down),
            untold=len(verdict.untold),
            refused=refused,
            shows=shows,
            test=self._test,
        )
        loss_table.tell(row, write=self._write)

    def count(self, event: str, stored: int, shows: str) -> None:
        """Tell of records that no client saw: as many as there were are stored, each once."""
        nothing: frozenset[str] = frozenset()
        names = frozenset(str(number) for number in range(stored))
        self(event, Verdict(names, nothing, nothing, nothing, nothing, nothing), shows)


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Told:
    return Told(request)
