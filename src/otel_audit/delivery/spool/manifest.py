"""A spool's manifest, a small file next to its segments."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final
from zlib import crc32

FORMAT: Final = 2
"""Version of which kinds of files and frames there are; the bytes of a frame have their own."""

READABLE: Final = frozenset({1, FORMAT})
"""Versions that are adopted. In the first each action was closed by a whole record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A spool's label.

    Attributes:
        format: `FORMAT` of the writer.
        service: Its service's name.
        producer_id: Its own id, the directory's name.
        pid: The process that writes it.
        host: The host's name.
        boot_id: The host's boot, if the system says it.
        started_at: Unix nanoseconds; for the person who looks at the file.
        key_id: The key that encrypts its payloads; empty if they are in clear.
        destination: Digest of where its records belong; empty where the writer did not say.
        device: Number of the mounted file system that the writer sees it on; 0 where unknown.
        lease: Seconds within which the writer touches its lock's file, as long as it lives; 0
            where it does not.
        watermarks: Whether the writer notes in its lock's file how much there is.
    """

    format: int = -1
    service: str = ""
    producer_id: str = ""
    pid: int = 0
    host: str = ""
    boot_id: str = ""
    started_at: int = 0
    key_id: str = ""
    destination: str = ""
    device: int = 0
    lease: float = 0.0
    watermarks: bool = False


def belongs_elsewhere(label: Manifest, destination: str | None) -> bool:
    """Return whether a spool's records are meant for another destination than this one."""
    return destination is not None and label.destination not in ("", destination)


def label_of_this_process(
    service: str, producer_id: str, key_id: str, destination: str = "", lease: float = 0.0
) -> Manifest:
    """Describe this process."""
    return Manifest(
        format=FORMAT,
        service=service,
        producer_id=producer_id,
        pid=os.getpid(),
        host=socket.gethostname(),
        boot_id=boot_id(),
        started_at=time.time_ns(),
        key_id=key_id,
        destination=destination,
        lease=lease,
        watermarks=True,
    )


def encode_label(label: Manifest) -> bytes:
    """Write a label as a line of JSON and a line with its CRC-32 in hex."""
    body = json.dumps(asdict(label)).encode()
    return body + f"\n{crc32(body):08x}\n".encode()


def decode_label(text: bytes) -> Manifest | None:
    """Read a label; of one of another version, what can be read. None if it is damaged."""
    body, _, checksum = text.removesuffix(b"\n").rpartition(b"\n")
    if f"{crc32(body):08x}".encode() != checksum:
        return None
    try:
        found: Any = json.loads(body)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    return Manifest(
        **{
            field.name: found[field.name]
            for field in fields(Manifest)
            if type(found.get(field.name)) is type(field.default)
        }
    )


def boot_id() -> str:
    """Name the boot of this machine's kernel; empty if the system does not say it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
