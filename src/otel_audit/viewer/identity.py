"""The viewer's user, and this user's rights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from otel_audit_postgres.query.grammar import Query, term
from otel_audit_postgres.query.trail import ReaderScope

from otel_audit.errors import ConfigurationError

Role = Literal["auditor", "support", "tenant"]
Permission = Literal["export", "prove", "tail"]

EVERYTHING: Final[frozenset[Permission]] = frozenset({"export", "prove", "tail"})


@dataclass(frozen=True, slots=True)
class Viewer:
    """A user of the viewer.

    Attributes:
        name: For the records of what was looked at: a login name, an e-mail address.
        role: ``auditor`` sees whole records; ``support`` sees no bodies, and so neither records'
            texts nor anything that reveals them; ``tenant`` sees the records of ``tenants``.
        tenants: The only tenants whose records are shown, by id; None: all, for auditor and
            support only. The database enforces this.
        may: What else is allowed: ``export``, ``prove``, ``tail``.

    Example::

        Viewer("ann@acme.example", role="tenant", tenants=("acme",), may=frozenset({"export"}))
    """

    name: str
    role: Role = "auditor"
    tenants: tuple[str, ...] | None = None
    may: frozenset[Permission] = EVERYTHING

    def __post_init__(self) -> None:
        """Refuse a combination that shows too much."""
        if not self.name:
            raise ConfigurationError("a viewer needs a name: looks are recorded under it")
        if self.role not in ("auditor", "support", "tenant"):
            raise ConfigurationError(
                f"viewer: role {self.role!r} is none: auditor, support, tenant"
            )
        # the letters of a text would be taken for tenants
        if self.tenants is not None and not (
            isinstance(self.tenants, tuple | list | set | frozenset)
            and all(isinstance(one, str) for one in self.tenants)
        ):
            raise ConfigurationError(
                f"viewer {self.name}: tenants={self.tenants!r}: a tuple of ids, as ('acme',)"
            )
        if not isinstance(self.may, set | frozenset) or not EVERYTHING.issuperset(self.may):
            raise ConfigurationError(
                f"viewer {self.name}: may={self.may!r}: a set of export, prove, tail"
            )
        if self.role == "tenant" and not self.tenants:
            raise ConfigurationError(f"viewer {self.name}: role tenant needs tenants")
        if self.tenants is not None and "" in self.tenants:
            raise ConfigurationError(f"viewer {self.name}: a tenant's id is empty")

    @property
    def scope(self) -> ReaderScope:
        """The scope of the database session."""
        return ReaderScope(None if self.tenants is None else tuple(self.tenants))

    @property
    def sees_bodies(self) -> bool:
        """Whether bodies and the records' exact texts are shown."""
        return self.role != "support"

    @property
    def sees_store(self) -> bool:
        """Whether figures of the whole store are shown, such as the number of unsealed records."""
        return self.tenants is None

    def may_do(self, what: Permission) -> bool:
        """Whether something is allowed. Exports need the right to see bodies."""
        return what in self.may and (self.sees_bodies or what == "tail")

    def narrowed(self, query: Query) -> Query:
        """Add the user's tenants to the query, where an index serves them."""
        if self.tenants is None or len(self.tenants) > _MOST_NAMED:
            return query
        return query.with_term(term("tenant", *self.tenants))


_MOST_NAMED: Final = 10
"""Tenants up to which a query names them; those of more are narrowed by the database alone."""
