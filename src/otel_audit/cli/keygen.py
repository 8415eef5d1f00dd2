"""`otel-audit keygen`: make the ledger's key."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import secrets
from pathlib import Path

import click

from otel_audit.cli.options import json_option
from otel_audit.cli.terminal import echo, echo_json


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--name",
    help="The log's name in its checkpoints: audit.example.com/orders. Default: a random name.",
)
@json_option
def keygen(file: Path, name: str | None, as_json: bool) -> None:
    """Make a signing key (Ed25519) in FILE and FILE.pub.

    The private half is in FILE, the public one in FILE.pub. With FILE, anybody can sign any
    history: keep it where only the sealer runs. Give FILE.pub to the verifiers.
    """
    from otel_audit_postgres.ledger.keys import generate, write_key_files

    key = generate(name or f"otel-audit/{secrets.token_hex(8)}")
    public = write_key_files(key, file)
    if as_json:
        echo_json({"private_key": str(file), "public_key": str(public), "key": key.public.text()})
        return
    echo(f"private key: {file} (only you can read it)")
    echo(f"public key:  {public}")
    echo(key.public.text())
