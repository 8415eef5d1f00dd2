"""`otel-audit serve`: the OTLP sink, and its tokens."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from otel_audit._util.loopback import is_loopback
from otel_audit.cli.options import dsn_option, json_option
from otel_audit.cli.terminal import echo, echo_json
from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError, MissingExtraError
from otel_audit.setting_values import PREFIX

_IN_CLEAR = (
    "Tokens and records travel in clear to {host}: give --tls-cert and --tls-key, or put a proxy "
    "that speaks TLS in front"
)
_path = click.Path(path_type=Path)
_PORT = click.IntRange(0, 65535)
"""Port 0 is one that the system chooses."""


@click.group(invoke_without_command=True)
@dsn_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=_PORT, default=4318, show_default=True, help="Port of OTLP/HTTP.")
@click.option("--grpc-port", type=_PORT, help="Receive OTLP over gRPC, too, on this port.")
@click.option("--tokens", type=_path, help="File of accepted tokens and certificates.")
@click.option("--tls-cert", type=_path, help="The server's certificate, PEM.")
@click.option("--tls-key", type=_path, help="Its key, PEM, if it is in another file.")
@click.option("--tls-client-ca", type=_path, help="Authorities of client certificates, PEM.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Processes that share the port.",
)
@click.option(
    "--connections", type=click.IntRange(1, 1_000_000), default=1000, show_default=True,
    help="Most connections at once.",
)  # fmt: skip
@click.option(
    "--insecure-no-auth",
    is_flag=False,
    flag_value="loopback",
    type=click.Choice(["loopback", "anywhere"]),
    help="Accept senders without a token: from this machine, or =anywhere.",
)
@click.option(
    "--seal", is_flag=True, help="Seal the ledger, too, with OTEL_AUDIT_SIGNING_KEY_FILE."
)
@click.pass_context
def serve(  # noqa: PLR0913, PLR0917 - one for each option
    context: click.Context,
    dsn: str | None,
    host: str,
    port: int,
    grpc_port: int | None,
    tokens: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    workers: int,
    connections: int,
    insecure_no_auth: str | None,
    seal: bool,
) -> None:
    """Receive records over OTLP and store them.

    Each answer comes after COMMIT.

    POST /v1/traces takes audit-flagged spans, POST /v1/audit takes audit log records, both in
    protobuf or JSON. GET /health and GET /ready are for probes. Runs until SIGTERM or SIGINT. Any
    number may run at the same time.
    """
    if context.invoked_subcommand is not None:
        return
    given = {
        "DSN": dsn,
        "SERVE_TOKENS_FILE": tokens,
        "SERVE_NO_AUTH": insecure_no_auth,
        "SEAL": "true" if seal else None,
    }
    # worker processes read the same
    os.environ.update(
        {f"{PREFIX}{name}": str(value) for name, value in given.items() if value is not None}
    )
    config = AuditConfig()
    _refuse_open_door(config, host)
    try:
        from otel_audit.server.access_log import to_stderr
        from otel_audit.server.uvicorn_server import Listening, run
    except ImportError as error:
        raise MissingExtraError("otel-audit serve", "server") from error
    to_stderr()
    if tls_cert is None and not is_loopback(host):
        echo(_IN_CLEAR.format(host=host), colour="yellow", err=True)
    listening = Listening(
        host, port, tls_cert, tls_key, tls_client_ca, grpc_port, connections, workers
    )
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again once all is finished
        run(listening, shutdown_timeout=config.shutdown_timeout)


def _refuse_open_door(config: AuditConfig, host: str) -> None:
    if config.serve_no_auth == "loopback" and not is_loopback(host):
        raise ConfigurationError(
            f"--insecure-no-auth accepts this machine only, and --host is {host}: make a token "
            "(otel-audit serve token new NAME), or say --insecure-no-auth=anywhere"
        )


@serve.group()
def token() -> None:
    """Make tokens."""


@token.command()
@click.argument("name")
@click.option("--tenant", help="Bind it to a tenant: it cannot send for another.")
@click.option("--service", help="Bind it to a service.name: it cannot send for another.")
@click.option("--days", type=click.IntRange(1, 3650), help="Days until it expires.")
@click.option("--file", type=_path, help="Add it to this file; otherwise its lines are printed.")
@json_option
def new(  # noqa: PLR0913, PLR0917 - one for each option
    name: str,
    tenant: str | None,
    service: str | None,
    days: int | None,
    file: Path | None,
    as_json: bool,
) -> None:
    """Make a token and print it, once.

    Only its hash is kept. To rotate: make another one of the same NAME, give it to the sender,
    then delete the earlier entry; a server that runs sees the change within a second.
    """
    from otel_audit.server.credentials import new_token

    expires = None if days is None else datetime.now(UTC) + timedelta(days=days)
    secret, lines = new_token(name, tenant=tenant, service=service, expires=expires)
    if as_json:
        if file is not None:
            _append(file, lines)
        echo_json({"name": name, "token": secret, "entry": lines, "file": file})
        return
    if file is None:
        echo(*lines.split("\n"))
    else:
        _append(file, lines)
        echo(f"added {name} to {file}", err=True)
    echo(secret)


def _append(file: Path, lines: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as target:
        target.write(("\n" if target.tell() else "") + lines)
