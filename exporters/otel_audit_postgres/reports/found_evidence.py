"""What the comparison of a report's records with the ledger has found."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

NO_ANCHOR: Final = "no anchor was asked: an old copy of the whole store would pass for the original"


@dataclass(slots=True)
class PeriodEvidence:
    """The evidence for one part of the period.

    Attributes:
        begin, end: Its bounds.
        records: Records of that time, as far as they belong to the report; if that was asked.
        unknown: Those of them whose outcome is not known.
        odd: Those of them that are not as they were sealed.
        malformed: Those that were inserted so that columns do not follow from the text.
        problems: What is not as it was sealed, in words.
    """

    begin: datetime
    end: datetime
    records: int = 0
    unknown: int = 0
    odd: int = 0
    malformed: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Evidence:
    """The result: records, tree, signature and anchors.

    Attributes:
        parts: The stretches of the period.
        against: What speaks against the tree: its root, a signature, an anchor.
        is_collapsed: Whether the checkpoint lies within leaves whose records were all dropped, so
            that its root cannot be built again.
        anchors: What the anchors say.
        signed: Who has signed the checkpoint.
    """

    parts: list[PeriodEvidence]
    against: list[str] = field(default_factory=list)
    is_collapsed: bool = False
    anchors: str = NO_ANCHOR
    signed: str = ""

    @property
    def problems(self) -> list[str]:
        """All that is not as it was sealed."""
        return self.against + [problem for part in self.parts for problem in part.problems]
