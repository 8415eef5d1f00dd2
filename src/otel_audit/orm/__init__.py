"""ORM capture: what changed in the application's database, and whether it really committed.

The diffs come from the unit of work's own events, the outcomes from the connections' transactions:
a change is reported when the transaction that wrote it has ended, with its outcome.

Private: ``docs/api.md`` lists the public modules.
"""

from otel_audit.errors import MissingExtraError

try:
    import sqlalchemy as _  # noqa: F401 - only to see whether it is there
except ImportError:
    raise MissingExtraError("ORM capture", "sqlalchemy") from None

from otel_audit.orm.attach import Attachment, attach, detach
from otel_audit.orm.column_redaction import ValueRedactor
from otel_audit.orm.options import OrmOptions, sources_of
from otel_audit.orm.outbox import Transactional

__all__ = [
    "Attachment",
    "OrmOptions",
    "Transactional",
    "ValueRedactor",
    "attach",
    "detach",
    "sources_of",
]
