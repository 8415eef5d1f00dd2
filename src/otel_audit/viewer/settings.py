"""Settings of the viewer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from otel_audit_postgres.ledger.anchors import Anchor
from otel_audit_postgres.ledger.keys import PublicKey
from otel_audit_postgres.query.pool import CONNECTIONS, STATEMENT_TIMEOUT
from otel_audit_postgres.query.trail import Views

from otel_audit.errors import ConfigurationError

if TYPE_CHECKING:
    from otel_audit_postgres.archive.objects import ArchiveStore
    from otel_audit_postgres.personal.key_store import KeyStore

    from otel_audit.viewer.authentication import Authenticate
    from otel_audit.viewer.embedding import Embedding


@dataclass(frozen=True, kw_only=True)
class ViewerSettings:
    """Settings of the viewer.

    Attributes:
        dsn: The audit store, as the viewer's own role.
        authenticate: Tells who looks; without it nobody is let in.
        embedding: Lets tenants look from within the application's pages.
        keys: Public keys whose signatures count as proof.
        anchors: Where checkpoints are published; the report on integrity asks them.
        personal_keys: Keys of personal values, which are shown decrypted then.
        archive: Where archived months are, so that their records are shown, too.
        trace_url: Where a trace is shown: ``https://traces.example/{trace_id}``.
        record_views: As for `otel_audit_postgres.query.trail.open_trail`.
        connections: To the store, at once.
        statement_timeout: Seconds that one statement may take.

    Example::

        settings = ViewerSettings(
            dsn=dsn, authenticate=who, trace_url="https://traces.example/{trace_id}"
        )
        viewer = create_app(settings)
    """

    dsn: str
    authenticate: Authenticate | None = None
    embedding: Embedding | None = None
    keys: Sequence[PublicKey] = field(default=())
    anchors: Sequence[Anchor] = field(default=())
    personal_keys: KeyStore | None = None
    archive: ArchiveStore | None = None
    trace_url: str | None = None
    record_views: Views = "required"
    connections: int = CONNECTIONS
    statement_timeout: float = STATEMENT_TIMEOUT

    def __post_init__(self) -> None:
        """Refuse a trace link without a place for the id."""
        if self.authenticate is None and self.embedding is None:
            raise ConfigurationError(
                "viewer: who may look? Give authenticate=, such as a function of yours that is "
                "given the request and returns a Viewer, or None"
            )
        if self.trace_url is not None:
            parts = urlsplit(self.trace_url)
            if (
                parts.scheme not in ("http", "https")
                or not parts.netloc
                or "{trace_id}" not in self.trace_url
                or "{trace_id}" in parts.netloc
            ):
                raise ConfigurationError(
                    "OTEL_AUDIT_TRACE_URL: https://traces.example/trace/{trace_id} is what it must "
                    f"look like, not {self.trace_url!r}"
                )

    def trace_link(self, trace_id: str) -> str | None:
        """The URL of a trace; None if no pattern is set."""
        if self.trace_url is None:
            return None
        return self.trace_url.replace("{trace_id}", quote(trace_id, safe=""))
