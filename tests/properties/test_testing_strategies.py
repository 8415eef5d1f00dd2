from __future__ import annotations

from hypothesis import given

from otel_audit.testing import make_record
from otel_audit.testing.store import AuditStore
from otel_audit.testing.strategies import records


def test_the_store_takes_every_shape(audit_server):
    """What the strategies make can be stored and read back, and the whole verifies."""
    with audit_server.database() as dsn:
        store, written = AuditStore(dsn), set()

        @given(records())
        def write(record):
            if record.record_id not in written:
                assert store.write([record]) == 1
                written.add(record.record_id)

        write()
        assert store.write([make_record("order.created", target="order:1")]) == 1
        # some have ids of a time to come, which the store replaces
        assert len(store.records()) == store.verify().size == len(written) + 1
