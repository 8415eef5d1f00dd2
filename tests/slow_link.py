"""A link that carries only so many bytes a second, before a server that listens on this machine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

_PIECE = 4096


@asynccontextmanager
async def slow_link(
    target: str | tuple[str, int], rate: float = 0, silent: asyncio.Event | None = None
) -> AsyncIterator[int]:
    """Carry what is sent to a port of this machine on to a server, at a rate.

    Args:
        target: A Unix socket, or host and port.
        rate: Bytes a second towards the server, of all connections together; 0: any.
        silent: From when this is set on, nothing is carried, and nothing is closed.

    Yields:
        The port.
    """
    free = asyncio.Lock()
    under_way: set[asyncio.Task[None]] = set()

    async def carry(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pace: float
    ) -> None:
        with contextlib.suppress(ConnectionError, OSError):
            while piece := await reader.read(_PIECE):
                if pace:
                    async with free:
                        await asyncio.sleep(len(piece) / pace)
                await _wait_if_silent(silent)
                writer.write(piece)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        under_way.add(task := asyncio.current_task())  # type: ignore[arg-type]
        open_ends = [writer]
        try:
            if isinstance(target, str):
                back, there = await asyncio.open_unix_connection(target)
            else:
                back, there = await asyncio.open_connection(*target)
            open_ends.append(there)
            await asyncio.gather(carry(reader, there, rate), carry(back, writer, 0))
        except OSError:
            writer.close()
        except asyncio.CancelledError:
            # what is left open is reported in whichever test runs when it is collected
            for end in open_ends:
                end.transport.abort()
            raise
        finally:
            under_way.discard(task)  # type: ignore[arg-type]

    # a small buffer, so that the sender feels the rate
    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2 * _PIECE)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(under_way):
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await asyncio.sleep(0)  # what was aborted is closed in the loop's next turn


async def _wait_if_silent(silent: asyncio.Event | None) -> None:
    if silent is not None and silent.is_set():
        await asyncio.Event().wait()


def behind(dsn: str, port: int) -> str:
    return f"postgresql://postgres@127.0.0.1:{port}/{dsn.partition('?')[0].rpartition('/')[2]}"


def socket_of(dsn: str) -> str:
    return parse_qs(urlsplit(dsn).query)["host"][0] + "/.s.PGSQL.5432"
