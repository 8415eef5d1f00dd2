"""All settings, in one typed model: the same in Python, in the environment, and in TOML."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from otel_audit._util.postgres_dsn import plain_dsn
from otel_audit._util.printable import visible
from otel_audit.errors import ConfigurationError
from otel_audit.setting_values import (
    CONFIG_FILE,
    PREFIX,
    SHOWN,
    TEXTS_WITH_PATHS,
    Aliases,
    EntityNames,
    EnvironmentSource,
    HeaderName,
    Names,
    OptionalSeconds,
    at_home,
    expanded,
    explain,
    header_names,
    listed,
    mapped,
    mapped_percent_decoded,
    no_path,
    path_at_home,
    refuse_unfit_dsn,
    refuse_unknown_variables,
    unreadable,
    user_state_directory,
)

Level = Literal["none", "metadata", "changes", "request", "request_response"]


class JwtIssuer(BaseModel):
    """One of several issuers of bearer tokens: its name, its key or keys, what it may sign with.

    Attributes:
        issuer: The ``iss`` of its tokens.
        algorithms: Signature algorithms that are accepted from it.
        audience: The ``aud`` its tokens must carry, or several: one of them is enough.
        key: Secret (HS*) or public key in PEM; exactly one of this and the next two.
        jwks_url: Where its JWK set is fetched.
        jwks_file: File with its JWK set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    issuer: str
    algorithms: Names
    audience: Names = ()
    key: SecretStr | None = None
    jwks_url: str | None = None
    jwks_file: Annotated[
        Path | None, BeforeValidator(lambda given: path_at_home("jwks_file", given))
    ] = None


Issuers = Annotated[tuple[JwtIssuer, ...], NoDecode, BeforeValidator(listed)]
PolicyRules = Annotated[tuple[Any, ...], NoDecode, BeforeValidator(listed)]
Hook = Callable[..., Any] | str
"""A callable, or where it is found: ``module:name``."""


class AuditConfig(BaseSettings):
    """Settings of the audit trail.

    Every field may be given as an argument, as an environment variable (``OTEL_AUDIT_`` and the
    field's name in upper case), or in the TOML file that ``OTEL_AUDIT_CONFIG_FILE`` names; the
    first of these that has it wins. Lists and maps in the environment are JSON or comma-separated.

    Raises:
        ConfigurationError: A value is invalid, or a variable's or key's name is unknown. The
            message names each one, and never shows a value.

    Example::

        config = otel_audit.AuditConfig(exporter="console", body_limit=4096)
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    enabled: bool | None = Field(
        None, description="Audit or not; by default true if a destination is set."
    )
    required: bool = Field(
        default=False,
        description="Refuse to start unaudited; otherwise start, and log it loudly.",
    )
    dsn: SecretStr | None = Field(
        None, description="The audit store: postgresql:// or postgresql+asyncpg://."
    )
    exporter: Literal["postgres", "otlp", "console", "none"] = Field(
        "postgres",
        description="Destination of the records; otlp if an OTLP endpoint is set and no DSN.",
    )
    otlp_endpoint: str | None = Field(
        None,
        description="OTLP/HTTP receiver, such as https://collector:4318; /v1/traces is "
        "added unless the path ends with it. No OTEL_EXPORTER_OTLP_* variable "
        "is used.",
    )
    otlp_headers: Annotated[
        dict[str, SecretStr], NoDecode, BeforeValidator(mapped_percent_decoded)
    ] = Field(
        {},
        description="Headers for the receiver, such as Authorization=Bearer%20TOKEN; "
        "percent-encoded unless they are JSON.",
    )
    otlp_certificate: Path | None = Field(
        None, description="PEM file with the authorities of the receiver's certificate."
    )
    otlp_client_certificate: Path | None = Field(
        None, description="PEM file with our certificate for mutual TLS."
    )
    otlp_client_key: Path | None = Field(
        None, description="PEM file with the key of our certificate, if it is in another file."
    )
    otlp_compression: Literal["gzip", "none"] = Field(
        "gzip", description="Compression of requests to the receiver."
    )
    # the default is that of OpenTelemetry for its own exporters
    otlp_timeout: float = Field(
        10.0, gt=0, le=600, description="Longest time of one request to the receiver, in seconds."
    )
    log_anonymous: bool = Field(
        default=True, description="Record successful actions of anonymous actors."
    )
    level: Level | None = Field(
        None, description="One level for everything that the policy records."
    )
    exclude_paths: Names = Field(
        ("/health", "/healthz", "/livez", "/readyz", "/metrics", "/docs", "/redoc",
         "/openapi.json", "/favicon.ico", "/static"),
        description="Path prefixes whose requests are recorded only if they wrote to the database.",
    )  # fmt: skip
    sensitive_paths: Names = Field(
        (), description="Path prefixes whose reads are recorded, at level metadata."
    )
    # most bodies of JSON are below 10 kB; a larger limit also lets a hostile body cost more work
    # (redaction.budget); at most 10 MB, as two copies of it are in memory for each open request
    body_limit: int = Field(
        10_000,
        ge=0,
        le=10_000_000,
        description="Bytes that are copied of a request body, and of a response body.",
    )
    # at least what path, query and headers may have together (28,672 characters, see
    # http.request_metadata); at most a little below the usual size of a spool file, 8 MiB
    record_limit: int = Field(
        262_144, ge=32_768, le=8_000_000,
        description="Bytes of one record. Further changes go into further records; other "
        "parts that are too large are left out, and the record names them. At "
        "most 400000 over OTLP.",
    )  # fmt: skip
    capture_request_body: bool = Field(default=True, description="Copy request bodies.")
    capture_response_body: bool = Field(default=True, description="Copy response bodies.")
    capture_socket_messages: bool = Field(
        default=False,
        description="Copy the messages of WebSockets, too: `body_limit` bytes in each direction.",
    )
    capture_headers: Annotated[Names, AfterValidator(header_names)] = Field(
        ("content-type", "content-length", "accept", "origin", "referer"),
        description="Request and response headers to record, in lower case.",
    )
    redact_fields: Names = Field(
        (), description="Field names to redact, in addition to the defaults."
    )
    redact_allow: Names = Field(
        (), description="Whole field names that must not be redacted; `pin` does not allow `x-pin`."
    )
    redact_paths: Names = Field(
        (), description="Paths within a document to redact, such as customer.*.iban."
    )
    redact_rules_off: Annotated[
        tuple[Literal["card", "ssn", "iban"], ...], NoDecode, BeforeValidator(listed)
    ] = Field((), description="Rules for values that are not applied.")
    redact_emails: bool = Field(default=False, description="Redact e-mail addresses in values.")
    redact_spans: bool = Field(
        default=False,
        description="Redact also the URLs that tracing puts on the app's own server span.",
    )
    redact_mode: Literal["replace", "omit", "hmac"] = Field(
        "replace", description="Replacement of a redacted value; hmac needs a key."
    )
    hmac_key: SecretStr | None = Field(
        None, description="Key for hashing redacted values, so that equal ones can be found."
    )
    hmac_key_file: Path | None = Field(
        None, description="File with the hashing key; it wins over the key itself."
    )
    hmac_key_id: str = Field(
        "k1",
        pattern=r"^[A-Za-z0-9_-]{1,32}$",
        description="Name of the hashing key in each hash; change it together with the key.",
    )
    hmac_previous_keys: Annotated[dict[str, SecretStr], NoDecode, BeforeValidator(mapped)] = Field(
        {}, description="Earlier hashing keys by id, to find values that were hashed with them."
    )
    jwt_key: SecretStr | None = Field(
        None, description="Secret (HS*) or public key in PEM (RS*, PS*, ES*) of bearer tokens."
    )
    jwt_jwks_url: str | None = Field(
        None, description="URL of the issuer's JWK set; fetched in the background."
    )
    jwt_jwks_file: Path | None = Field(None, description="File with the issuer's JWK set.")
    # for so long a key is still accepted that its issuer has withdrawn; more often than twice a
    # minute is a load on the issuer; after a day (jwks.KEPT) keys count as too old, and there has
    # to be time for more than one try before
    jwt_jwks_refresh: float = Field(
        300.0, ge=30, le=43_200, description="Seconds between two readings of the JWK sets."
    )
    jwt_jwks_insecure_http: bool = Field(
        default=False, description="Fetch JWK sets over plain HTTP also from other machines."
    )
    jwt_issuers: Issuers = Field(
        (), description="Several issuers, each with its own keys; best set in the file."
    )
    jwt_unverified_behind_gateway: bool = Field(
        default=False,
        description="Trust bearer tokens without a check, because a gateway has checked "
        "them; records then say that the actor is not verified.",
    )
    jwt_cookie: str | None = Field(
        None, description="Cookie with a token, where no Authorization header has one."
    )
    jwt_schemes: Annotated[Names, AfterValidator(header_names)] = Field(
        ("Bearer",), description="Schemes of the Authorization header that carry tokens."
    )
    jwt_algorithms: Names = Field((), description="Accepted signature algorithms.")
    jwt_audience: Names = Field(
        (), description="The `aud` that a token must have; of several, one is enough."
    )
    jwt_issuer: str | None = Field(None, description="The `iss` that a token must have.")
    # RFC 7519 allows "no more than a few minutes"
    jwt_leeway: float = Field(
        0.0, ge=0, le=600, description="Tolerated clock difference in seconds."
    )
    jwt_actor_claim: str = Field("sub", description="Claim with the actor's id.")
    jwt_role_claim: str = Field("actor_type", description="Claim with the actor's role.")
    jwt_tenant_claim: str = Field("tenant_id", description="Claim with the tenant's id.")
    jwt_email_claim: str = Field("email", description="Claim with the actor's e-mail.")
    jwt_roles_claim: str = Field("roles", description="Claim with the list of the actor's roles.")
    jwt_session_claim: str = Field("sid", description="Claim with the session's id.")
    jwt_tenant_slug_claim: str = Field(
        "tenant_slug", description="Claim with the tenant's readable name."
    )
    actor_type_aliases: Aliases = Field(
        {}, description="Map of the app's own roles to canonical ones."
    )
    actor_order: Names = Field(
        ("app", "state", "user", "session", "jwt", "api_key", "certificate", "callable"),
        description="Sources of the actor, in this order; a source that is not listed is not used.",
    )
    actor_session_key: str | None = Field(
        None,
        description="Key of request.session (Starlette's SessionMiddleware) that holds the user's "
        "id, such as user_id or user.id.",
    )
    actor_resolver: Hook | None = Field(
        None,
        description="Callable (or module:name) that gets the ASGI scope and returns the actor.",
    )
    api_key_header: HeaderName | None = Field(
        None, description="Header with an API key; only its keyed hash is kept."
    )
    client_certificate_header: HeaderName | None = Field(
        None,
        description="Header with the client certificate or its subject, set by a trusted proxy.",
    )
    tenant_order: Names = Field(
        ("app", "state", "jwt", "header", "path", "subdomain", "callable"),
        description="Sources of the tenant, in this order; a source that is not listed is "
        "not used.",
    )
    tenant_resolver: Hook | None = Field(
        None,
        description="Callable (or module:name) that gets the ASGI scope and returns the tenant.",
    )
    tenant_path_parameter: str | None = Field(None, description="Path parameter with the tenant.")
    tenant_domain: str | None = Field(
        None, description="Domain whose subdomains are tenants, such as example.com."
    )
    tenant_header: HeaderName | None = Field(
        None,
        description="Header with the tenant, asked after the application and the token; only if "
        "nobody outside can send it.",
    )
    trusted_proxies: Names = Field(
        (), description="Addresses or networks whose forwarded headers are trusted."
    )
    forwarded_header: HeaderName = Field(
        "X-Forwarded-For",
        description="Header in which trusted proxies give addresses: this one, or Forwarded.",
    )
    session_cookie: str | None = Field(
        None, description="Name of the session's cookie; only its keyed hash is kept."
    )
    policy_file: Path | None = Field(
        None, description="TOML file with policy rules; they go before the defaults."
    )
    policy_rules: PolicyRules = Field(
        (), description="Policy rules; they go before those of the file."
    )
    request_id_header: HeaderName = Field(
        "X-Request-ID", description="Header of the request id, in and out; empty: none is added."
    )
    request_log: bool = Field(
        default=False,
        description="Write one line of JSON for each request on the logger otel_audit.requests.",
    )
    # longer than requests usually take: each action that takes longer has a second record
    long_action_after: OptionalSeconds = Field(
        30.0, gt=0, le=86_400,
        description="Seconds after which a running action is recorded as started; off: never.",
    )  # fmt: skip
    orm: Literal["observed", "transactional", "off"] = Field(
        "observed",
        description="When database changes are recorded. observed: after their transaction; "
        "transactional: in it; off: never.",
    )
    outbox_dsn: SecretStr | None = Field(
        None,
        description="The application's database, with a role that reads and deletes in "
        "audit.outbox; by default the audit store's.",
    )
    outbox_relay: bool = Field(
        default=True,
        description="Relay the outbox from this process; otherwise run `otel-audit relay`.",
    )
    # entries of this process rouse the relay at once; a shorter pause only costs more empty SELECTs
    outbox_interval: float = Field(
        1.0, gt=0, le=3600,
        description="Seconds between two checks of the outbox for entries of other processes.",
    )  # fmt: skip
    entity_names: EntityNames = Field(
        {},
        description="Map of classes, tables or derived nouns to the nouns of entities, "
        "targets and events, such as UserAccount=user.",
    )
    orm_outside_actions: bool = Field(
        default=True, description="Record transactions outside of any action: scripts, start-up."
    )
    orm_include_tables: Names = Field(
        (), description="Tables whose changes are recorded; empty: all."
    )
    orm_exclude_tables: Names = Field((), description="Tables whose changes are not recorded.")
    orm_include_models: Names = Field(
        (), description="Mapped classes that are recorded; empty: all."
    )
    orm_exclude_models: Names = Field((), description="Mapped classes that are not recorded.")
    orm_include_columns: Names = Field(
        (), description="Columns, or table.column, whose values are recorded; empty: all."
    )
    orm_exclude_columns: Names = Field(
        (), description="Columns, or table.column, whose values are not recorded."
    )
    orm_keep_rolled_back: bool = Field(
        default=False, description="Record rolled-back changes, too, and mark them."
    )
    orm_fetch_unknown: bool = Field(
        default=False,
        description="Read before-values that are not loaded, with one SELECT a row.",
    )
    orm_before_images: Names = Field(
        (),
        description="Tables whose bulk UPDATE and DELETE are also recorded row by row.",
    )
    # they are read inside the application's transaction, which waits, and its locks last longer
    orm_max_before_images: int = Field(
        1_000, ge=1, le=1_000_000,
        description="Most rows of such a statement; if there are more, none is read.",
    )  # fmt: skip
    # as many are in memory for each open transaction; further ones wait in a file (_util.spill)
    orm_max_entries: int = Field(
        1_000,
        ge=1,
        le=100_000,
        description="Most changes in one record; the others go into further records.",
    )
    span_payload: Literal["summary", "full"] = Field(
        "summary", description="Part of the record that is set on the app's own server span."
    )
    child_spans: bool = Field(
        default=False,
        description="Set actor and tenant also on the app's other spans of an action.",
    )
    baggage_send: bool = Field(
        default=False,
        description="Pass the ids of actor and tenant to called services, as W3C Baggage.",
    )
    baggage_trust: bool = Field(
        default=False,
        description="Trust actor and tenant in a caller's baggage if no other source has "
        "them; only if nobody outside can send baggage.",
    )
    # 20,000 records of 2.5 KB have 50 MB of text; with a spool, further ones wait on disk alone
    queue_size: int = Field(
        20_000, ge=1, description="Most records in memory that wait for the store."
    )
    # the size of OpenTelemetry's own batches; 1 MB of records ends a batch earlier
    batch_size: int = Field(512, ge=1, le=10_000, description="Records in one write.")
    # records are in the store so much later; less makes more and smaller transactions there
    batch_interval: float = Field(
        0.2,
        ge=0,
        le=60,
        description="Longest wait of a record for others of its batch, in seconds.",
    )
    # below the 30 s after which Kubernetes kills a container; what is left is in the spool
    shutdown_timeout: float = Field(
        10.0,
        ge=0,
        le=600,
        description="Longest wait for delivery at shutdown, in seconds: at the end of the lifespan "
        "and at the exit of the process together.",
    )
    connect_timeout: float = Field(
        5.0, gt=0, le=120, description="Longest time of connecting to the store, in seconds."
    )
    delivery: Literal["spool", "strict"] = Field(
        "spool",
        description="When a handler runs. spool: at once, and records wait on disk for the "
        "store; strict: once the store has its intent.",
    )
    # a COMMIT takes milliseconds; while the store is away, each request waits so long for nothing
    strict_timeout: float = Field(
        2.0, gt=0, le=120,
        description="Seconds that a request waits for its intent; then it is refused.",
    )  # fmt: skip
    flagged_spans: bool = Field(
        default=True,
        description="Record each span of the app's own tracing that has audit.flagged=true.",
    )
    stream_records: bool = Field(
        default=True,
        description="Record the start, life and orderly end of each process.",
    )
    # less than half of the 15 minutes after which `otel-audit gaps` calls a process cut off
    heartbeat_interval: float = Field(
        300.0, ge=0, le=86_400,
        description="Seconds without a record after which a process records that it lives; "
        "0: never.",
    )  # fmt: skip
    # a restart or failover of the store takes less: alerts are to be about what does not heal
    unhealthy_after: float = Field(
        300.0, gt=0,
        description="Seconds that a record may wait; then the health report calls it overdue.",
    )  # fmt: skip
    health_path: str = Field(
        "", pattern="^(/.*)?$", description="Path of the health endpoint; empty: no endpoint."
    )
    spool_dir: Path | None = Field(
        None,
        description="Directory of the spool: records that wait for the store; by default in the "
        "user's state directory.",
    )
    spool_fsync: Literal["never", "interval", "always"] = Field(
        "interval",
        description="When the spool is synced to disk: never, every 100 ms, or before the "
        "end of each answer.",
    )
    # the smallest is four of the smallest files: one that is written, one in reserve for actions
    # under way, and room for what waits (delivery.spool.settings)
    spool_max_bytes: int = Field(
        1024 * 1024 * 1024, ge=16_384, le=2**63 - 1,  # a metric carries it, in 64 bits
        description="Most bytes of a service's spools; at least four times the bytes of one file.",
    )  # fmt: skip
    spool_segment_bytes: int = Field(
        8 * 1024 * 1024, ge=4096, le=1024 * 1024 * 1024, description="Bytes of one spool file."
    )
    spool_max_age: OptionalSeconds = Field(
        None, gt=0,
        description="Seconds that a record may wait; then new actions are refused; off: never.",
    )  # fmt: skip
    spool_key: SecretStr | None = Field(
        None, description="32 bytes in hex: the key that encrypts the spool."
    )
    spool_full: Literal["refuse", "drop"] = Field(
        "refuse", description="At the bound: refuse audited requests, or count and report losses."
    )

    signing_key_file: Path | None = Field(
        None, description="File with the ledger's private key; make one with otel-audit keygen."
    )
    signing_key: SecretStr | None = Field(
        None, description="The ledger's private key itself; the file wins."
    )
    signer: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        description="Callable (module:name) that returns the signer, for a key management "
        "service; it wins over a key.",
    )
    verify_keys: Names = Field(
        (), description="Public keys of the ledger, or files with one, for verification."
    )
    anchor: Names = Field(
        (),
        description="Anchors of the checkpoints: file:PATH, dir:PATH, https://…, log:, "
        "python:module:name.",
    )
    seal: bool = Field(
        default=False,
        description="Seal also in this process, if its role may; a separate process is safer.",
    )
    # until a row is sealed, whoever owns the database can change it unnoticed
    seal_interval: float = Field(
        1.0, ge=0.01, le=3600, description="Seconds between two rounds of sealing."
    )
    seal_batch: int = Field(
        5000, ge=1, le=100_000, description="Most rows in one block of the ledger."
    )
    archive: str | None = Field(
        None, description="Archive of months: file:PATH, or s3://BUCKET/PREFIX."
    )
    retention_file: Path | None = Field(
        None, description="Retention policy: how long records are kept, and where."
    )
    keys_dsn: SecretStr | None = Field(
        None,
        description="Separate database for the keys of personal values. With it the values "
        "are stored encrypted, and can be erased.",
    )
    keys_kek_file: Path | None = Field(
        None, description="File with the key that encrypts those keys: 32 bytes in hex."
    )
    keys_kek: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        description="Callable (module:name) that returns an object to encrypt those keys, "
        "for a key management service; it wins over the file.",
    )
    personal: Names = Field(
        ("actor.email", "source.address", "source.user_agent", "source.session_id"),
        description="Personal values; also request.path, request.query, request.body, "
        "response.body, error.message, metadata.NAME, request.headers.NAME, "
        "response.headers.NAME, changes.ENTITY.COLUMN.",
    )
    record_views: Literal["required", "tried", "off"] = Field(
        "required",
        description="Whether a look at the trail is recorded in it. required: before anything "
        "is shown, or nothing is shown; tried: if that is possible; off: never.",
    )
    trace_url: str | None = Field(
        None,
        description="Address of the viewer's links to traces: "
        "`https://traces.example/trace/{trace_id}`.",
    )

    serve_tokens_file: Path | None = Field(
        None, description="The OTLP sink's file of accepted tokens and certificates."
    )
    serve_no_auth: Literal["no", "loopback", "anywhere"] = Field(
        "no", description="Senders that the OTLP sink accepts without authentication."
    )
    serve_verify: Literal["off", "record", "require"] = Field(
        "off",
        description="What the OTLP sink does with the signatures of audit log records: nothing; "
        "note what it finds; or put into quarantine all without a valid one, spans included.",
    )
    serve_trust_file: Path | None = Field(
        None, description="The file of signers that the OTLP sink trusts."
    )
    # our exporter sends 3.5 MB at most, a Collector's batches are larger; one decompressed message
    # fits twice into what may be under way, since a sender may have half of that (backpressure)
    serve_max_body_bytes: int = Field(
        24 * 1024 * 1024, ge=1024, description="Bytes of one request to the OTLP sink, as received."
    )
    serve_max_message_bytes: int = Field(
        32 * 1024 * 1024, ge=1024, le=2**31 - 1,  # no message of Protobuf is larger
        description="Bytes of one request, decompressed.",
    )  # fmt: skip
    serve_max_in_flight_bytes: int = Field(
        64 * 1024 * 1024, ge=1024,
        description="Bytes of all requests under way; above it the sink answers 429.",
    )  # fmt: skip
    # more than otel_audit_otlp.encoding.LARGEST_RECORD, or the sink refuses what we send
    serve_max_record_bytes: int = Field(
        1024 * 1024, ge=1024,
        description="Bytes of one record in the sink; a larger one goes to quarantine.",
    )  # fmt: skip
    serve_body_timeout: float = Field(
        20.0, gt=0, le=600, description="Seconds until a request's body must have arrived."
    )
    # while one waits for its COMMIT, the other one stores the next group
    serve_connections: int = Field(
        2, ge=1, le=64, description="The OTLP sink's connections to the store."
    )
    serve_retry_after: int = Field(
        5, ge=1, le=3600,
        description="Seconds after which senders shall try again while the store is away.",
    )  # fmt: skip

    def __init__(self, **values: Any) -> None:
        """Read the settings from arguments, environment and file, in this order.

        Args:
            **values: Settings by name; they win over environment and file.
        """
        refuse_unknown_variables(os.environ, AuditConfig.model_fields)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError(visible(explain(error, AuditConfig.model_fields))) from None
        except OSError as error:
            raise ConfigurationError(f"{CONFIG_FILE}: {error.strerror}") from None
        except ValueError as error:
            raise ConfigurationError(visible(f"{CONFIG_FILE}: {error}")) from None
        except RecursionError:
            raise ConfigurationError(f"{CONFIG_FILE}: nested too deeply") from None

    @model_validator(mode="before")
    @classmethod
    def _readable(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name, value in values.items():
            why = unreadable(value, secret=name in _named("SecretStr"))
            if why is None and name in _named("Path"):
                why = no_path(str(value))
            if why is not None:
                raise ValueError(f"{PREFIX}{str(name).upper()}: {why}")
        with_home = _named("Path") | TEXTS_WITH_PATHS
        return {
            name: at_home(str(name), value) if name in with_home else value
            for name, value in values.items()
        }

    @model_validator(mode="before")
    @classmethod
    def _endpoint_alone_means_otlp(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("otlp_endpoint") and not values.get("dsn"):
            return {"exporter": "otlp", **values}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.dsn is not None and self.exporter == "postgres":
            refuse_unfit_dsn("DSN", self.dsn)
        if self.outbox_dsn is not None:
            refuse_unfit_dsn("OUTBOX_DSN", self.outbox_dsn)
        if self.jwt_key is not None and not self.jwt_algorithms:
            raise ValueError(
                f"{PREFIX}JWT_ALGORITHMS: name the accepted algorithms of {PREFIX}JWT_KEY: "
                "RS256 or alike for a public key, HS256 for a secret"
            )
        if self.enabled and self.exporter == "postgres" and self.dsn is None:
            raise ValueError(f"{PREFIX}DSN: missing, and {PREFIX}ENABLED is true")
        if self.exporter == "otlp" and self.enabled is not False and not self.otlp_endpoint:
            raise ValueError(
                f"{PREFIX}OTLP_ENDPOINT: missing, and {PREFIX}EXPORTER is otlp; name the receiver, "
                "such as http://127.0.0.1:4318"
            )
        if self.delivery == "strict" and self.exporter != "postgres":
            raise ValueError(
                f"{PREFIX}DELIVERY=strict needs a store that says when it has an intent: "
                f"{PREFIX}EXPORTER=postgres"
            )
        if (
            self.orm == "transactional"
            and self.outbox_relay
            and self.exporter in ("otlp", "console")
            and self.outbox_asyncpg_dsn is None
        ):
            raise ValueError(
                f"{PREFIX}OUTBOX_DSN: missing, and {PREFIX}ORM is transactional; name the "
                f"application's database, or set {PREFIX}OUTBOX_RELAY=false and run "
                "`otel-audit relay`"
            )
        if self.required and not self.active:
            raise ValueError(
                f"{PREFIX}REQUIRED is true, but auditing is off: set {PREFIX}DSN or "
                f"{PREFIX}OTLP_ENDPOINT (or {PREFIX}EXPORTER=console), and do not set "
                f"{PREFIX}ENABLED=false"
            )
        return self

    @property
    def has_spool(self) -> bool:
        """Whether records wait on disk: not those for the console, and there are none for none."""
        return self.exporter not in ("console", "none")

    @property
    def spool_path(self) -> Path:
        """Where the spool is.

        Raises:
            ConfigurationError: It is not said, and this user has no home directory.
        """
        return self.spool_dir or user_state_directory(f"{PREFIX}SPOOL_DIR")

    @property
    def active(self) -> bool:
        """Whether there is anything to do: enabled, or not said and a destination is set."""
        if self.enabled is not None:
            return self.enabled
        return self.dsn is not None or self.exporter != "postgres"

    @property
    def asyncpg_dsn(self) -> str | None:
        """The DSN as asyncpg takes it."""
        return None if self.dsn is None else plain_dsn(self.dsn.get_secret_value())

    @property
    def outbox_asyncpg_dsn(self) -> str | None:
        """The DSN of the outbox as asyncpg takes it: its own, or the store's."""
        found = self.outbox_dsn if self.outbox_dsn is not None else self.dsn
        return None if found is None else plain_dsn(found.get_secret_value())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - ours takes its place
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic names it
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take arguments, then the environment, then the TOML file."""
        environment = EnvironmentSource(settings_cls)
        named = os.environ.get(CONFIG_FILE, "").strip()
        if not named:
            return init_settings, environment
        try:
            file = expanded(CONFIG_FILE, named)
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        if not file.is_file():
            raise ConfigurationError(f"{CONFIG_FILE}: there is no file {visible(named[:SHOWN])}")
        return init_settings, environment, TomlConfigSettingsSource(settings_cls, file)


@functools.cache
def _named(kind: str) -> frozenset[str]:
    """Settings of a type; secrets may hold any character there is."""
    fields = AuditConfig.model_fields.items()
    return frozenset(name for name, field in fields if kind in repr(field.annotation))
