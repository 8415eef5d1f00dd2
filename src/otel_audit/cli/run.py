"""`otel-audit run`: start a program audited."""

from __future__ import annotations

import click

from otel_audit_bootstrap import run as bootstrap


# it parses for itself, as it must work where click cannot be imported
@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    add_help_option=False,
    options_metavar="[--console] [--required] [--service NAME]",
)
@click.argument("command", nargs=-1, metavar="CMD...", type=click.UNPROCESSED)
def run(command: tuple[str, ...]) -> None:
    """Start a program audited: otel-audit run uvicorn app:app."""
    bootstrap.main(command)
