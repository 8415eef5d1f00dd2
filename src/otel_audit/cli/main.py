"""The command group, and what all commands share."""

from __future__ import annotations

import logging
import re
import traceback
from typing import Any, Final

import click

from otel_audit._util.printable import log_to_stderr, visible
from otel_audit._util.ratelimited_log import place_of
from otel_audit.cli.archive import archive
from otel_audit.cli.dev import dev
from otel_audit.cli.doctor import doctor
from otel_audit.cli.export import export
from otel_audit.cli.gaps import gaps
from otel_audit.cli.history import history, show
from otel_audit.cli.hold import hold
from otel_audit.cli.init import init
from otel_audit.cli.keygen import keygen
from otel_audit.cli.ledger import begin_anchor, moved
from otel_audit.cli.map_record import map_record
from otel_audit.cli.migrate import maintain, migrate
from otel_audit.cli.options import is_dsn_given
from otel_audit.cli.policy import policy
from otel_audit.cli.prove import prove
from otel_audit.cli.quarantine import quarantine
from otel_audit.cli.redact import redact
from otel_audit.cli.relay import relay
from otel_audit.cli.report import report
from otel_audit.cli.retention import retention
from otel_audit.cli.run import run
from otel_audit.cli.seal import seal
from otel_audit.cli.search import search
from otel_audit.cli.serve import serve
from otel_audit.cli.stats import stats
from otel_audit.cli.stream import stream
from otel_audit.cli.subject import subject
from otel_audit.cli.terminal import echo, escape_unencodable, is_pipe_closed, without_controls
from otel_audit.cli.uninstall import uninstall
from otel_audit.cli.verify import verify
from otel_audit.cli.web import web
from otel_audit.errors import InvalidInputError, OtelAuditError

_DSN: Final = re.compile(r"\bOTEL_AUDIT_DSN\b")
_INTERRUPTED: Final = 130
"""What a shell calls the end by SIGINT: 128 and the signal's number."""


_SECTIONS: Final = (
    ("Look", ("search", "history", "show", "stats", "map", "web", "export", "report")),
    ("Check", ("doctor", "verify", "gaps", "prove", "policy", "redact", "quarantine")),
    ("Run", ("dev", "run", "serve", "seal", "relay", "stream")),
    ("Set up", ("init", "migrate", "maintain", "keygen", "begin-anchor", "moved", "uninstall")),
    ("Keep and forget", ("retention", "archive", "hold", "subject")),
)


class _WrongUse(click.ClickException):
    """A query or an id that cannot be read: wrong use, without the command's usage line."""

    exit_code = click.UsageError.exit_code


class _Group(click.Group):
    """Turns this package's errors into one line and exit status 1, and Ctrl-C into 130."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by what they are for."""
        left = {name: self.commands[name] for name in self.list_commands(ctx)}
        sections = [
            (title, [(name, left.pop(name)) for name in names if name in left])
            for title, names in _SECTIONS
        ]
        widest = max(map(len, self.commands))
        for title, found in [*sections, ("More", list(left.items()))]:
            if found:
                with formatter.section(title):
                    formatter.write_dl(
                        [
                            (name.ljust(widest), command.get_short_help_str(formatter.width))
                            for name, command in found
                        ]
                    )

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.ClickException as error:
            raise without_controls(error) from None

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except OtelAuditError as error:
            raise _as_click(ctx, error) from error
        except KeyboardInterrupt:
            echo("interrupted", err=True)
            ctx.exit(_INTERRUPTED)
        except click.exceptions.NoArgsIsHelpError:
            raise  # its message is our own help, of several lines
        except click.ClickException as error:
            raise without_controls(error) from None
        except (click.exceptions.Exit, click.Abort):
            raise
        except OSError as error:
            if isinstance(error, BrokenPipeError) and is_pipe_closed():
                raise  # `| head` has enough: click ends quietly
            raise click.ClickException(visible(str(error))) from error
        except Exception as error:
            if ctx.params["traceback"]:
                echo(*"".join(traceback.format_exception(error)).splitlines(), err=True)
            raise click.ClickException(
                f"unexpected [{place_of(error)}]: a defect of otel-audit's, please report it with "
                "what `otel-audit --traceback …` prints"
            ) from error


def _as_click(context: click.Context, error: OtelAuditError) -> click.ClickException:
    """One line, in the words of the command line: the option that was given, not the setting."""
    text = visible(str(error))
    if is_dsn_given(context):
        text = _DSN.sub("--dsn", text)
    return _WrongUse(text) if isinstance(error, InvalidInputError) else click.ClickException(text)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="otel-audit")
@click.option("--traceback", is_flag=True, help="Print where an unexpected error comes from.")
def cli(traceback: bool) -> None:  # noqa: ARG001 - read by the group
    """Set up, check and search an audit trail made by otel-audit.

    Settings are read from OTEL_AUDIT_* variables and from the file that OTEL_AUDIT_CONFIG_FILE
    names; options given here win.
    """
    escape_unencodable()
    log_to_stderr(logging.WARNING)


cli.add_command(archive)
cli.add_command(begin_anchor)
cli.add_command(dev)
cli.add_command(doctor)
cli.add_command(export)
cli.add_command(gaps)
cli.add_command(history)
cli.add_command(hold)
cli.add_command(init)
cli.add_command(keygen)
cli.add_command(maintain)
cli.add_command(map_record)
cli.add_command(migrate)
cli.add_command(moved)
cli.add_command(policy)
cli.add_command(prove)
cli.add_command(quarantine)
cli.add_command(redact)
cli.add_command(relay)
cli.add_command(report)
cli.add_command(retention)
cli.add_command(run)
cli.add_command(seal)
cli.add_command(search)
cli.add_command(serve)
cli.add_command(show)
cli.add_command(stats)
cli.add_command(stream)
cli.add_command(subject)
cli.add_command(uninstall)
cli.add_command(verify)
cli.add_command(web)
