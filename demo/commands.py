"""Runs a command to its end."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from pathlib import Path


class CommandError(RuntimeError):
    """A command failed; the message is what it said."""


def our_program(name: str) -> str:
    """A command of the environment that this Python belongs to."""
    return str(Path(sys.executable).with_name(name))


def our_command(arguments: str) -> str:
    """A command line of otel-audit that can be pasted where the demonstration was started."""
    program = our_program("otel-audit")
    short = os.path.relpath(program)
    return f"{shlex.quote(min(program, short, key=len))} {arguments}"


async def output_of(program: str, *arguments: str, expected: tuple[int, ...] = (0,)) -> bytes:
    """Run a command and give what it writes.

    Raises:
        CommandError: Its exit status is not an expected one.
    """
    process = await asyncio.create_subprocess_exec(
        program, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        output, complaint = await process.communicate()
    finally:
        if process.returncode is None:  # we were interrupted
            process.kill()
            await process.wait()
    if process.returncode not in expected:
        name = Path(program).name
        raise CommandError(
            f"{name} ended with status {process.returncode}:\n{complaint.decode(errors='replace')}"
        )
    return output
