"""Transactional mode brought to life: who composes the records, and who relays them."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import metrics, trace

from otel_audit._util.spill import SpilledChanges
from otel_audit.action.compose import changes_outside
from otel_audit.action.failed_parts import FailedParts
from otel_audit.config import AuditConfig
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.outbox_relay import Relay, RelayOptions, publish_outbox
from otel_audit.delivery.sink import Sink
from otel_audit.errors import ConfigurationError, MissingExtraError
from otel_audit.record import AuditRecord
from otel_audit.scope import AuditScope

if TYPE_CHECKING:
    from otel_audit_postgres.outbox import PostgresOutbox

    from otel_audit.orm import Attachment, Transactional

_NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]+")

WithProvenance = Callable[[AuditRecord, trace.Span | None], list[AuditRecord]]
"""Says in a record in which trace it was made, and by which process; gives it no number.

Several records where one would be too large.
"""


class TransactionalRecording:
    """Records in the application's own transactions, on their way to the store.

    Attributes:
        relay: Brings it there; None if that is left to others.
        attachment: What listens to the sessions, once it does.
    """

    def __init__(
        self,
        config: AuditConfig,
        counters: Counters,
        make_sink: Callable[[], Sink] | None,
        with_provenance: WithProvenance,
        service: Callable[[], str],
    ) -> None:
        """Build it; nothing is connected yet.

        Args:
            config: The settings.
            counters: Where everything is counted.
            make_sink: Makes the sink; None: nothing is relayed from here.
            with_provenance: Says in a record in which trace it was made, and by which process.
            service: Names the process.

        Raises:
            MissingExtraError: A package is not installed that this needs.
        """
        self._config = config
        self._counters = counters
        self._with_provenance = with_provenance
        self._service = service
        self.attachment: Attachment | None = None
        self.relay: Relay | None = None
        if make_sink is not None and config.outbox_relay:
            options = RelayOptions(interval=config.outbox_interval, batch_size=config.batch_size)
            self.relay = Relay(outbox_maker(config), make_sink, counters, options)
            publish_outbox(metrics.get_meter("otel_audit"), self.relay)

    def for_orm(self) -> Transactional:
        """Make what the listeners need."""
        # needs SQLAlchemy, which an application may not have
        from otel_audit.orm import Transactional

        return Transactional(
            compose=self._compose,
            encode=encode,
            committed=self._committed,
            failed=functools.partial(self._counters.add, "outbox_errors"),
        )

    def enlist(self, session: Any, record: AuditRecord, span: trace.Span | None) -> Any:
        """Write a record in the transaction of a session; see `otel_audit.emit_in_transaction`.

        Returns:
            None; for an asynchronous session something to await.
        """
        from otel_audit.orm.enlist import enlist

        if self.attachment is None:
            raise ConfigurationError("emit_in_transaction(): the database sessions are not audited")
        return enlist(
            session, encode(self._with_provenance(record, span)[0]), self.attachment.can_enlist
        )

    def start(self) -> None:
        """Begin to relay."""
        if self.relay is not None:
            self.relay.start()

    def flush(self, timeout: float) -> bool:
        """Wait until what is committed now is relayed; True where others do that."""
        return self.relay is None or self.relay.flush(timeout)

    def close(self, timeout: float) -> None:
        """Relay what waits, and end. Never raises."""
        if self.relay is not None:
            self.relay.close(timeout)

    def _count_error(self) -> None:
        self._counters.add("capture_errors")

    def _committed(self) -> None:
        if self.relay is not None:
            self.relay.nudge()

    def _compose(self, owner: AuditScope | None, changes: SpilledChanges) -> Iterator[AuditRecord]:
        span = None if owner is None else owner.server_span
        return (
            piece
            for one in self._records(owner, changes)
            for piece in self._with_provenance(one, span)
        )

    def _records(self, owner: AuditScope | None, changes: SpilledChanges) -> Iterator[AuditRecord]:
        if owner is not None and owner.at_commit is not None:
            yield from owner.at_commit(changes)
            return
        if owner is None and not self._config.orm_outside_actions:
            return
        begun_in = None if owner is None else owner.begun_in
        yield from changes_outside(
            "committed",
            changes,
            self._service,
            FailedParts(self._count_error),
            begun_in=begun_in,
            # an action that is not recorded: its id is all that it leaves in the trail
            action_id=owner.action_id if owner is not None and begun_in is None else None,
        )


def outbox_maker(config: AuditConfig) -> Callable[[], PostgresOutbox]:
    """Name the outbox that the settings say.

    Raises:
        ConfigurationError: They name none.
        MissingExtraError: The package for it is not installed.
    """
    dsn = config.outbox_asyncpg_dsn
    if dsn is None:
        raise ConfigurationError(
            "no outbox: set OTEL_AUDIT_OUTBOX_DSN to the application's database"
        )
    from otel_audit_postgres.outbox import PostgresOutbox

    return functools.partial(PostgresOutbox, dsn, connect_timeout=config.connect_timeout)


def encode(record: AuditRecord) -> tuple[str, str]:
    """Write a record down for the outbox: its id, and its JSON text in ASCII.

    The application's database may have any encoding, and a character that it lacks must not cost
    the application its COMMIT: what is not ASCII is escaped, which is the same JSON.
    """
    try:
        from otel_audit_postgres.rows import to_row
    except ImportError as missing:
        raise MissingExtraError("OTEL_AUDIT_ORM=transactional", "postgres") from missing
    row = to_row(record)
    text = row.payload.decode()
    return row.record_id, text if text.isascii() else _NOT_ASCII.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    # beyond ASCII there are texts only, so an escape may stand wherever such a character does
    return json.dumps(found[0])[1:-1]
