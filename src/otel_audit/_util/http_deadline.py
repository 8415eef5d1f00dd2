"""An opener of `urllib` whose time limit is for a whole answer.

The limit that `urllib` takes is for each read of the socket: a server that sends a byte now and
then holds its reader for ever.
"""

from __future__ import annotations

import functools
import http.client
import io
import time
import urllib.request
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


def opener_until(
    until: float, *handlers: urllib.request.BaseHandler
) -> urllib.request.OpenerDirector:
    """Make an opener.

    Args:
        until: Monotonic seconds at which an answer must have been read, headers and body. A read
            that comes later, or lasts longer, raises TimeoutError.
        handlers: In addition to those for HTTP and HTTPS, or in the place of others.
    """
    return urllib.request.build_opener(_Http(until), _Https(until), *handlers)


class _Limited(urllib.request.AbstractHTTPHandler):
    def __init__(self, until: float) -> None:
        super().__init__()
        self._until = until

    def do_open(self, http_class: Any, req: Any, **settings: Any) -> Any:
        """Open a connection; how `urllib` itself does it depends on Python's version."""
        limited = functools.partial(_connection, http_class, self._until)
        return super().do_open(limited, req, **settings)


class _Http(_Limited, urllib.request.HTTPHandler):
    pass


class _Https(_Limited, urllib.request.HTTPSHandler):
    pass


def _connection(
    of: Callable[..., http.client.HTTPConnection], until: float, *args: Any, **settings: Any
) -> http.client.HTTPConnection:
    made = of(*args, **settings)
    # also the answer of a proxy that is asked for a tunnel
    made.response_class = functools.partial(_Response, until)  # type: ignore[assignment]
    return made


class _Response(http.client.HTTPResponse):
    def __init__(self, until: float, sock: socket.socket, *args: Any, **settings: Any) -> None:
        super().__init__(sock, *args, **settings)
        self.fp = io.BufferedReader(_Reads(self.fp.detach(), sock, until))


class _Reads(io.RawIOBase):
    """Reads of a socket, each with the time that is left."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, until: float) -> None:
        self._raw, self._sock, self._until = raw, sock, until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
