"""Key-encryption keys behind a callable, as a key management service would be."""

from __future__ import annotations

import hashlib
import hmac

from otel_audit.errors import OtelAuditError


class Wrapper:
    """Wraps by a keyed stream and a tag: enough to tell keys apart here, and no more."""

    def __init__(self, secret):
        self._secret = secret

    def wrap(self, key, context):
        pad = hashlib.shake_256(self._secret + context).digest(len(key))
        box = bytes(one ^ other for one, other in zip(key, pad, strict=True))
        return hmac.digest(self._secret, context + box, "sha256") + box

    def unwrap(self, wrapped, context):
        tag, box = wrapped[:32], wrapped[32:]
        if not hmac.compare_digest(tag, hmac.digest(self._secret, context + box, "sha256")):
            raise OtelAuditError("another key wrapped it")
        pad = hashlib.shake_256(self._secret + context).digest(len(box))
        return bytes(one ^ other for one, other in zip(box, pad, strict=True))

    def subject_hash(self, text):
        return hmac.digest(self._secret, b"subject" + text, "sha256")


def first():
    return Wrapper(b"first")


def second():
    return Wrapper(b"second")


def none():
    return object()
