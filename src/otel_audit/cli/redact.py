"""`otel-audit redact`: see what redaction makes of a document."""

from __future__ import annotations

from dataclasses import asdict
from typing import BinaryIO

import click

from otel_audit.cli.terminal import echo, echo_columns, echo_json, echo_json_text
from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError
from otel_audit.redaction import Redactor
from otel_audit.redaction.hashing import KeyedHash
from otel_audit.redaction.json_values import NotUnderstoodError
from otel_audit.redaction.walker import parse_json


@click.command()
@click.argument("file", type=click.File("rb"), default="-")
@click.option(
    "--explain", is_flag=True, help="List what would be removed and by which rule; never a value."
)
@click.option(
    "--hash", "as_hash", is_flag=True, help="Print the hash of one value under each key, to search."
)
@click.option("--json", "as_json", is_flag=True, help="With --explain or --hash: print JSON.")
def redact(file: BinaryIO, explain: bool, as_hash: bool, as_json: bool) -> None:
    """Redact the JSON document in FILE by the configured rules.

    FILE - is standard input. Prints the redacted document, or with --explain each place and the
    rule that acts there. With --hash FILE holds one value, as text: a redacted value is searched by
    its hash, under the current key and each earlier one.
    """
    config = AuditConfig()
    raw = file.read()
    if as_hash:
        _print_hashes(config, raw, as_json=as_json)
        return
    redactor = Redactor.from_config(config)
    if not explain:
        redacted = redactor.json_or_none(raw)
        if redacted is None:
            raise click.ClickException(
                "not a JSON document, or too large: it is withheld as a whole"
            )
        echo_json_text(redacted.decode())
        return
    try:
        document = parse_json(raw)
    except NotUnderstoodError:
        raise click.ClickException("not a JSON document: it is withheld as a whole") from None
    if as_json:
        echo_json([asdict(finding) for finding in redactor.explain(document)])
    else:
        _print_findings(redactor, document)


def _print_hashes(config: AuditConfig, raw: bytes, *, as_json: bool) -> None:
    hashes = KeyedHash.from_config(config).candidates(raw.removesuffix(b"\n").removesuffix(b"\r"))
    if not hashes:
        raise ConfigurationError("redact --hash: no key is set: set OTEL_AUDIT_HMAC_KEY")
    if as_json:
        echo_json(hashes)
        return
    for one in hashes:
        echo(one)


def _print_findings(redactor: Redactor, document: object) -> None:
    findings = redactor.explain(document)
    if not findings:
        echo("Nothing would be removed.")
        return
    echo_columns(("path", "rule"), [(finding.path, finding.rule) for finding in findings])
