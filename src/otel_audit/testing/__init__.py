"""Helpers for an application's tests: audit records in memory, without a database.

With pytest, the fixture ``audit`` and the option ``--audit-coverage`` are there once otel-audit is
installed. Any test runner can use the same by hand::

    def test_a_refund_is_audited(client):
        with recorded(app) as records:
            client.post("/orders/1/refund")
        record = records.one("order.refunded")
        assert record.actor.id == "clerk-1"
"""

from otel_audit.testing.make_record import make_record
from otel_audit.testing.matchers import ANY
from otel_audit.testing.recorder import Recorded, recorded
from otel_audit.testing.snapshots import snapshot
from otel_audit.testing.trail import Audit, audit_trail

__all__ = ["ANY", "Audit", "Recorded", "audit_trail", "make_record", "recorded", "snapshot"]
