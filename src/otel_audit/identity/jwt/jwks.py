"""An issuer's JWK set, read again and again in the background and never waited for."""

from __future__ import annotations

import logging
import threading
import time
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit._util.http_deadline import opener_until
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.identity.jwt.token import TokenError

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_audit.identity.jwt.keys import VerificationKey

_logger = logging.getLogger(__name__)

UNKNOWN_KEY_INTERVAL: Final = 30.0
"""Seconds between two reads for the same missing key, and between two tries to read keys that have
grown old."""

FIRST_PAUSE: Final = 1.0
"""Seconds between a read and one for a key that was not missed before. Each read that has not
brought its key doubles it, up to `UNKNOWN_KEY_INTERVAL`: invented keys have the set read no
more often."""

RETRY_INTERVAL: Final = 5.0
"""Seconds between two tries to read the keys while there are none yet."""

_MISSED: Final = 64
"""Keys that are remembered as missing: a client can invent any number of names."""

KEPT: Final = 86_400.0
"""Seconds that keys are used for while they cannot be read again."""

TIMEOUT: Final = 10.0
LARGEST: Final = 1_048_576
"""Seconds and bytes that a fetch may take."""


@dataclass(frozen=True, slots=True)
class _Keys:
    keys: tuple[VerificationKey, ...]
    read_at: float


class KeySet:
    """The keys of one issuer, as last read.

    A read runs in its own thread, for as long as it takes; no request waits for it. There is no
    lock, and a fork leaves nothing behind that the child would miss.

    Attributes:
        generation: Grows when the keys change, so that results of older keys are recognized.
    """

    def __init__(
        self,
        read: Callable[[], bytes],
        parse: Callable[[bytes], tuple[VerificationKey, ...]],
        *,
        refresh: float,
        name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Remember how to read the set; it is not read yet.

        Args:
            read: Returns the set's JSON; may take long, may raise anything.
            parse: Makes keys of it.
            refresh: Seconds after which it is read again.
            name: The setting that says where it is, for log lines.
            clock: Monotonic seconds.
        """
        self.generation = 0
        self._read = read
        self._parse = parse
        self._refresh = refresh
        self._name = name
        self._clock = clock
        self._current: _Keys | None = None
        self._text = b""
        self._tried_at: float | None = None
        self._pause = FIRST_PAUSE
        self._missed: dict[str | None, float] = {}
        self._thread: threading.Thread | None = None

    def current(self) -> tuple[VerificationKey, ...]:
        """Return the keys as last read, and begin to read them again if they are old.

        Raises:
            TokenError: ``keys_not_loaded``.
        """
        current, now = self._current, self._clock()
        if current is None or now - current.read_at >= self._refresh:
            self._read_soon(RETRY_INTERVAL if current is None else UNKNOWN_KEY_INTERVAL)
        if current is None or now - current.read_at >= KEPT:
            raise TokenError("keys_not_loaded")
        return current.keys

    def ask_again(self, key_id: str | None = None) -> None:
        """Read the keys again, because one was missing: the issuer may have begun to sign with it.

        The set is read at once. There are pauses for a key that a read did not bring, and between
        reads for keys of which each has another name.

        Args:
            key_id: Its ``kid``.
        """
        now = self._clock()
        missed_at = self._missed.get(key_id)
        if missed_at is not None and now - missed_at < UNKNOWN_KEY_INTERVAL:
            return
        if self._read_soon(self._pause, key_id):
            while len(self._missed) >= _MISSED:
                self._missed.pop(next(iter(self._missed)), None)
            self._missed[key_id] = now

    def load(self) -> None:
        """Read the set now, in this thread.

        Raises:
            OSError: It cannot be read.
            UnusableKeyError: It is not a JWK set.
        """
        text = self._read()
        keys = self._parse(text)
        # first the keys: what is checked with the old ones must not count as checked with these
        self._current = _Keys(keys, self._clock())
        if text != self._text:
            self._text = text
            self.generation += 1

    def _read_soon(self, interval: float, wanted: str | None = None) -> bool:
        """Begin to read; return whether it was begun."""
        # after a fork the parent's thread counts as dead here, and a new one may start
        if self._thread is not None and self._thread.is_alive():
            return False
        now = self._clock()
        if self._tried_at is not None and now - self._tried_at < interval:
            return False
        self._tried_at = now
        thread = threading.Thread(
            target=self._try, args=(wanted,), name="otel-audit-jwks", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # no more threads, or the interpreter is on its way out
            self._failed(error)
            return False
        self._thread = thread
        return True

    def _try(self, wanted: str | None) -> None:
        try:
            with suppress_instrumentation():
                self.load()
        except Exception as error:  # noqa: BLE001 - whatever the network or the file brings
            self._failed(error)
        if wanted is None:
            return
        current = self._current
        if current is not None and any(key.key_id == wanted for key in current.keys):
            self._pause = FIRST_PAUSE
        else:
            self._pause = min(2 * self._pause, UNKNOWN_KEY_INTERVAL)

    def _failed(self, error: Exception) -> None:
        log_limited(
            _logger, f"jwks {self._name}", "%s: the JWK set cannot be read", self._name, error=error
        )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: keys come from the configured URL only."""

    def redirect_request(self, *_: Any) -> None:
        return None


def fetch(url: str) -> bytes:
    """Fetch a JWK set.

    Args:
        url: ``https``, or ``http`` where that was allowed.

    Raises:
        OSError: It cannot be had within 10 seconds, headers and body, answers other than 200,
            redirects, or is larger than 1 MiB.
    """
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 - the scheme was checked
    opener = opener_until(time.monotonic() + TIMEOUT, _NoRedirect())
    with opener.open(request, timeout=TIMEOUT) as response:
        text: bytes = response.read(LARGEST + 1)
        if response.status != HTTPStatus.OK:
            raise OSError("the answer is not 200")
    if len(text) > LARGEST:
        raise OSError("the answer is too large")
    return text
