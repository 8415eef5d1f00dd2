"""Limits and work budgets: bounds on the work of describing one action, whatever a client sends.

Work is counted in units, not in time: the same input has the same result on every machine. One unit
is at most about a microsecond on a machine of 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

FREE: Final = 4_000
"""Units that every document has, however small it is."""

PER_CHARACTER: Final = 0.5
"""Units that each byte or character of a document adds."""

PER_SEARCHED: Final = 1 / 64
"""Units that each character or byte of one search by patterns costs."""

PER_VALUE: Final = 12.0
"""Units that each value of a changed row adds: what a short one costs, and less than its INSERT."""

_HEAD: Final = 3_000
"""Units for the path, and for the query and the headers: a head of the longest kind that is
kept."""
_CHANGES: Final = 5_000
"""Units for changes beside those that each value of them adds."""
_CHANGES_SENT: Final = 40_000
"""Of a record that comes from elsewhere: some rows of the dearest text there is. What many of them
may cost is what their request may."""

_ERROR: Final = 1_500
"""Units for an error's message, which is cut before."""
_METADATA: Final = 3_000
"""Units for the application's own facts."""
_IDENTITY: Final = 3_000
"""Units for what names actor, tenant and source."""
_BODY_LIMIT: Final = 10_000
"""Bytes of a body by the default of the setting."""
_LONGEST_BODY: Final = 32_768
"""Bytes of a body up to which it adds units: what is longer earns no more work."""
_VALUE_LENGTH: Final = 32
"""Characters that a value of a changed row has in a text of JSON, with its name."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a walk; what lies beyond is withheld.

    Attributes:
        depth: Levels of containers, also across JSON inside strings.
        nodes: Values in all.
        length: Characters of text in all, and bytes of a JSON text.
    """

    # applications do not nest as deep; each level is a call, and Python allows 1,000 of them
    depth: int = 64
    # a hundred times the usual body (OTEL_AUDIT_BODY_LIMIT); the work budget ends most walks before
    nodes: int = 100_000
    length: int = 1_000_000


class WorkBudgetError(Exception):
    """The budget is used up; the rest of the document is to be withheld."""


class WorkBudget:
    """The rest of the work that a document may cause.

    Attributes:
        left: Units; below 0 it is used up.
        rate: Units that each character adds that is met on the way; 0 where the size was known
            beforehand.
        withheld: Whether something was withheld for it.
    """

    __slots__ = ("_keys", "_names", "left", "rate", "withheld")

    def __init__(self, size: int | None = None) -> None:
        """Start with all units left.

        Args:
            size: Bytes or characters of the document; None if not known.
        """
        self.rate = PER_CHARACTER if size is None else 0.0
        self.left = FREE + PER_CHARACTER * (size or 0)
        self.withheld = False
        # most documents are seen to be clean before any name in them is judged
        self._keys: set[str] | None = None
        self._names: set[str] | None = None

    @classmethod
    def of(cls, units: float) -> WorkBudget:
        """Begin with so many units, whatever comes."""
        work = cls(0)
        work.left = units
        return work

    def spend(self, units: float) -> None:
        """Take units off.

        Raises:
            WorkBudgetError: There are none left.
        """
        self.left -= units
        if self.left < 0:
            self.withheld = True
            raise WorkBudgetError

    def is_new_key(self, key: str) -> bool:
        """Return whether a key is new; a key is judged once, and the result is cached."""
        if self._keys is None:
            self._keys = set()
        return _is_new(key, self._keys)

    def is_new_name(self, name: str) -> bool:
        """Return the same for a name in a text."""
        if self._names is None:
            self._names = set()
        return _is_new(name, self._names)


class Budget(msgspec.Struct, eq=False):
    """The budget of one action, in parts.

    It is constant: no input makes it larger. Each part of the record has a share of its own, so
    that nobody can have the body withheld by a long header, or the changes by a long body.

    Attributes:
        body_limit: Bytes of a body that are copied, as configured.
        path: The path, which no header or query may have withheld.
        head: Query, headers, host, of the request and of the response.
        request_body, response_body: The bodies.
        changes: The values of changed rows; each value adds a little.
        error: The message of what was raised.
        given: Actor, tenant and target that the application gave for a manual action.
    """

    body_limit: int = _BODY_LIMIT
    _shares: dict[str, WorkBudget] = {}
    _cut: dict[str, None] = {}

    @property
    def path(self) -> WorkBudget:
        """The share of the request's path."""
        return self._share("request.path", _HEAD)

    @property
    def head(self) -> WorkBudget:
        """The share of the request's and the response's head."""
        return self._share("request.head", _HEAD)

    @property
    def request_body(self) -> WorkBudget:
        """The share of the request's body."""
        return self._share("request.body", FREE + PER_CHARACTER * self.body_limit)

    @property
    def response_body(self) -> WorkBudget:
        """The share of the response's body."""
        return self._share("response.body", FREE + PER_CHARACTER * self.body_limit)

    @property
    def changes(self) -> WorkBudget:
        """The share of what has changed in the database."""
        return self._share("changes", _CHANGES)

    @property
    def has_cut_changes(self) -> bool:
        """Whether values of changed rows were withheld, as reading them would have cost more."""
        share = self._shares.get("changes")
        return share is not None and share.withheld

    @property
    def error(self) -> WorkBudget:
        """The share of an error's message."""
        return self._share("error.message", _ERROR)

    @property
    def given(self) -> WorkBudget:
        """The share of what a caller says of an action by hand: actor, tenant, target."""
        return self._share("given", _HEAD)

    def metadata(self) -> WorkBudget:
        """Begin the share of the metadata, which each record of the action repeats."""
        self._shares["metadata"] = found = WorkBudget.of(_METADATA)
        return found

    def note_cut(self, part: str) -> None:
        """Note that a part of the record is not there in full."""
        self._cut[part] = None

    @property
    def cut(self) -> list[str]:
        """The parts of the record that are not there in full: cut, or withheld for their work."""
        found = self._cut
        for name, share in self._shares.items():
            if share.withheld:
                found = {**found, name: None}
        return list(found) if found else []

    def _share(self, name: str, units: float) -> WorkBudget:
        found = self._shares.get(name)
        if found is None:
            self._shares[name] = found = WorkBudget.of(units)
        return found


class SpanBudget:
    """The budget of one span: a share for each part, all within one pool.

    As in `Budget` no part can have another one withheld. What many spans of one request share is
    the pool: a span has a little of its own, and takes from the pool what it needs beyond.

    Attributes:
        pool: What is left for all spans of the request; None if the span is alone.
        own: Units that this span has, whatever others of its request have used.
    """

    __slots__ = ("_shares", "own", "pool")

    def __init__(self, pool: WorkBudget | None = None, own: float = 0.0) -> None:
        """Start with no share given out.

        Args:
            pool: What all shares are taken from; None if they are not shared.
            own: Units that the span has beside the pool.
        """
        self.pool = pool
        self.own = own
        self._shares: dict[str, WorkBudget] = {}

    def of(self, part: str, size: int = 0) -> WorkBudget:
        """Take the share of a part, to be given back by `charge`.

        Args:
            part: ``request.body``, ``changes`` …
            size: Of a body or of changes, the characters.
        """
        share = self._shares.get(part)
        if share is None:
            self._shares[part] = share = WorkBudget.of(_units_for(part, size))
        return share

    def limit(self, share: WorkBudget) -> float:
        """Bring a share below what is left in all; say what of it is kept back meanwhile."""
        if self.pool is None:
            return 0.0
        # a pool that others have overdrawn takes nothing of what is this span's own
        kept = max(share.left - self.own - max(self.pool.left, 0.0), 0.0)
        share.left -= kept
        return kept

    def charge(self, share: WorkBudget, before: float, kept: float) -> None:
        """Charge what was used of a share.

        Args:
            share: The share.
            before: Its units when it was taken, below its limit.
            kept: What `limit` has kept back.
        """
        used = before - share.left
        share.left += kept
        if self.pool is not None:
            self.own -= used
            if self.own < 0:
                self.pool.left += self.own
                self.own = 0.0

    @property
    def cut(self) -> list[str]:
        """The parts of which something was withheld for its work."""
        return [part for part, share in self._shares.items() if share.withheld]


def _units_for(part: str, size: int) -> float:
    if part == "changes":
        return _CHANGES_SENT + PER_VALUE * size / _VALUE_LENGTH
    if part.endswith(".body"):
        return FREE + PER_CHARACTER * min(size, _LONGEST_BODY)
    return _UNITS.get(part, _HEAD)


_UNITS: Final = {"identity": _IDENTITY, "error.message": _ERROR, "metadata": _METADATA}


def _is_new(name: str, met: set[str]) -> bool:
    if name in met:
        return False
    met.add(name)
    return True
