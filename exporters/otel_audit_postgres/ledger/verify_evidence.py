"""Verify an evidence bundle of otel-audit: python verify.py [evidence.json] [public key ...].

Needs Python 3.8 or newer, no other package and no network. Without a public key as an argument the
one in the bundle is used; then compare the key that is printed with the one that the log's operator
published. Exit status 0 if everything holds, else 1.

Sources: RFC 9162 (2.1: tree and proofs), RFC 8032 (5.1.7: Ed25519), C2SP signed-note and
tlog-checkpoint.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import sys
import uuid
from pathlib import Path
from typing import Any, Tuple

Point = Tuple[int, int, int, int]  # noqa: UP006 - for Python 3.8
P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P


class Bad(Exception):  # noqa: N818 - short, and caught below
    """Something does not hold."""


def need(condition: object, what: str) -> None:
    """Raise unless a condition holds."""
    if not condition:
        raise Bad(what)


def sha256(*parts: bytes) -> bytes:
    """Hash the concatenation of parts."""
    return hashlib.sha256(b"".join(parts)).digest()


def unbase64(text: str) -> bytes:
    """Decode base64 of the canonical spelling."""
    raw = base64.b64decode(text, validate=True)
    need(base64.b64encode(raw).decode() == text, "base64 is not canonical")
    return raw


# Ed25519: points of -x^2 + y^2 = 1 + d x^2 y^2 as (X, Y, Z, T) with x = X/Z, y = Y/Z, xy = T/Z


def add(p: Point, q: Point) -> Point:
    """Add two points (RFC 8032, 5.1.4)."""
    a, b = (p[1] - p[0]) * (q[1] - q[0]), (p[1] + p[0]) * (q[1] + q[0])
    c, d = 2 * p[3] * q[3] * D, 2 * p[2] * q[2]
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(scalar: int, point: Point) -> Point:
    """Multiply a point."""
    total = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            total = add(total, point)
        point, scalar = add(point, point), scalar >> 1
    return total


def decompress(raw: bytes) -> Point:
    """Read a point from 32 bytes (RFC 8032, 5.1.3)."""
    number = int.from_bytes(raw, "little")
    sign, y = number >> 255, number & (2**255 - 1)
    need(len(raw) == 32 and y < P, "not a point")
    u, v = y * y - 1, D * y * y + 1
    x = u * v**3 * pow(u * v**7, (P - 5) // 8, P) % P
    if (v * x * x - u) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    need((v * x * x - u) % P == 0 and not (x == 0 and sign), "not a point")
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


BASE = decompress(b"\x58" + b"\x66" * 31)


def signature_holds(key: bytes, message: bytes, signature: bytes) -> bool:
    """Verify an Ed25519 signature (RFC 8032, 5.1.7)."""
    need(len(key) == 32 and len(signature) == 64, "a key or signature has the wrong length")
    s = int.from_bytes(signature[32:], "little")
    if s >= ORDER:
        return False
    hashed = hashlib.sha512(signature[:32] + key + message).digest()
    k = int.from_bytes(hashed, "little") % ORDER
    left = times(s, BASE)
    right = add(decompress(signature[:32]), times(k, decompress(key)))
    same_x = (left[0] * right[2] - right[0] * left[2]) % P == 0
    return same_x and (left[1] * right[2] - right[1] * left[2]) % P == 0


def read_key(text: str) -> tuple[str, bytes, bytes]:
    """Read name, id and bytes of a public key."""
    name, key_id, encoded = text.split("+", 2)
    raw = unbase64(encoded)
    need(raw[:1] == b"\x01" and len(raw) == 33, "not an Ed25519 key")
    computed = sha256(name.encode(), b"\n", raw)[:4]
    need(computed.hex() == key_id, "the key's id is not its own")
    return name, computed, raw[1:]


def read_checkpoint(note: str, keys: list[str]) -> tuple[str, int, bytes]:
    """Verify a signed checkpoint; return origin, size and root."""
    text, signatures = note.split("\n\n")
    text += "\n"
    signed = False
    need(signatures.endswith("\n"), "not a signed note")
    for line in signatures.splitlines():
        dash, name, encoded = line.split(" ")
        need(dash == "\u2014", "not a signed note")
        blob = unbase64(encoded)
        for key_name, key_id, key in map(read_key, keys):
            if (key_name, key_id) == (name, blob[:4]):
                need(signature_holds(key, text.encode(), blob[4:]), "a signature does not hold")
                signed = True
    origin, leaves, encoded_root = text.split("\n")[:3]
    need(signed, f"the checkpoint of log {origin} is not signed by a known key")
    need(leaves == str(int(leaves)), "not a checkpoint")
    return origin, int(leaves), unbase64(encoded_root)


def included(leaf: bytes, index: int, size: int, proof: list[bytes]) -> bytes:
    """The root that an inclusion proof leads to (RFC 9162, 2.1.3.2)."""
    need(0 <= index < size, "no such leaf in this log")
    place, last = index, size - 1
    for step in proof:
        need(last > 0, "a proof is too long")
        if place & 1 or place == last:
            leaf = sha256(b"\x01", step, leaf)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            leaf = sha256(b"\x01", leaf, step)
        place, last = place >> 1, last >> 1
    need(last == 0, "a proof is too short")
    return leaf


def consistent(
    old: tuple[str, int, bytes], new: tuple[str, int, bytes], proof: list[bytes]
) -> None:
    """Check that a log only grew (RFC 9162, 2.1.4.2)."""
    need(1 <= old[1] <= new[1], "the later checkpoint is smaller")
    if old[1] == new[1]:
        need(old[2] == new[2] and not proof, "two logs of one size differ")
        return
    steps = ([] if old[1] & (old[1] - 1) else [old[2]]) + proof
    need(steps, "a proof is too short")
    place, last = old[1] - 1, new[1] - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    before = after = steps[0]
    for step in steps[1:]:
        need(last > 0, "a proof is too long")
        if place & 1 or place == last:
            before, after = sha256(b"\x01", step, before), sha256(b"\x01", step, after)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            after = sha256(b"\x01", after, step)
        place, last = place >> 1, last >> 1
    need(last == 0 and before == old[2] and after == new[2], "the log did not only grow")


def check_record(record: dict[str, Any], size: int, root: bytes) -> str:
    """Verify that a record's exact text is in the log; return a line about it."""
    need(set(record) == {"payload", "recorded_at", "leaf", "proof"}, "unknown fields")
    payload = record["payload"].encode()
    record_id = uuid.UUID(json.loads(payload)["record_id"])
    entry = b"otel-audit leaf 1\n" + record_id.bytes + sha256(payload)
    leaf = sha256(b"\x00", entry, struct.pack(">q", record["recorded_at"]))
    proof = [unbase64(step) for step in record["proof"]]
    need(included(leaf, record["leaf"], size, proof) == root, f"{record_id} is not in the log")
    return f"record {record_id}: leaf {record['leaf']}, unchanged"


def check(bundle: dict[str, Any], keys: list[str]) -> list[str]:
    """Verify a bundle; return lines about what was proved."""
    keys = keys or bundle["keys"]
    lines = [f"key {key}" for key in keys]
    if bundle["format"] == "otel-audit consistency 1":
        need(set(bundle) == {"format", "keys", "old", "new", "proof"}, "unknown fields")
        old, new = (read_checkpoint(bundle[name], keys) for name in ("old", "new"))
        need(old[0] == new[0], "the checkpoints are of different logs")
        consistent(old, new, [unbase64(step) for step in bundle["proof"]])
        return [*lines, f"log {new[0]}: {new[1]} rows begin with the {old[1]} of before"]
    need(bundle["format"] == "otel-audit evidence 1", "not an evidence bundle")
    need(set(bundle) == {"format", "keys", "checkpoint", "records"}, "unknown fields")
    need(bundle["records"], "there are no records")
    origin, size, root = read_checkpoint(bundle["checkpoint"], keys)
    lines.append(f"log {origin}: {size} rows")
    return [*lines, *(check_record(record, size, root) for record in bundle["records"])]


def plain(text: str) -> str:
    """Escape control characters: a bundle is untrusted text."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def main(arguments: list[str]) -> int:
    """Verify the bundle that the arguments name; return the exit status."""
    name = arguments[0] if arguments else "evidence.json"
    try:
        content = Path(name).read_bytes()
    except (OSError, ValueError) as error:  # nothing was checked, so nothing is said of it
        print(f"cannot read {plain(name)}: {plain(str(error))}", file=sys.stderr)
        return 2
    try:
        lines = check(json.loads(content.decode()), arguments[1:])
    except (Bad, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        print(f"DOES NOT HOLD: {plain(str(error))}")
        return 1
    print("\n".join([*map(plain, lines), "HOLDS"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
