"""A way to PostgreSQL that loses the connection in the middle of COMMIT, where a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from sqlalchemy import make_url

Lost = Literal["answer", "commit"]
"""What does not arrive: the server's answer to COMMIT, or COMMIT itself."""


class CommitProxy:
    """Forwards everything on loopback, and breaks the connection at the next COMMIT if armed.

    It reads the client's side of PostgreSQL's protocol, version 3: a first message of length and
    content, then messages of type, length and content.

    Attributes:
        lose: What shall be lost with the next COMMIT; None: nothing.
        commits: How many COMMITs have come from clients.
        broken: How many connections were broken.
    """

    def __init__(self, server_dsn: str) -> None:
        self._server_dsn = server_dsn
        self.lose: Lost | None = None
        self.commits = 0
        self.broken = 0
        self.port = 0

    def url(self, driver: str = "postgresql+asyncpg") -> str:
        """The same database through here, without TLS, in which nothing could be seen."""
        there = make_url(self._server_dsn)
        return (
            there.set(drivername=driver, host="127.0.0.1", port=self.port, query={})
            .update_query_dict({"ssl": "disable"})
            .render_as_string(hide_password=False)
        )

    async def serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """Serve one connection, until one of its ends closes it or it is lost."""
        server, to_server = await self._dial()
        answers = asyncio.create_task(_forward(server, to_client))
        try:
            await self._requests(client, to_server, server, answers)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            answers.cancel()
            to_client.transport.abort()
            to_server.transport.abort()

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        there = make_url(self._server_dsn)
        host, port = str(there.query.get("host") or there.host), there.port or 5432
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def _requests(
        self,
        client: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        answers: asyncio.Task[None],
    ) -> None:
        kind = b""
        while True:
            length = await client.readexactly(4)
            content = await client.readexactly(int.from_bytes(length, "big") - 4)
            commits = kind == b"Q" and content.strip(b"\0; ").upper() == b"COMMIT"
            self.commits += commits
            lose = self.lose if commits else None
            if lose == "answer":
                # nobody but us hears the answer; once it is there, the commit has happened
                answers.cancel()
                await asyncio.gather(answers, return_exceptions=True)
            if lose != "commit":
                to_server.write(kind + length + content)
                await to_server.drain()
            if lose == "answer":
                assert (await server.readexactly(1)) == b"C"
            if lose is not None:
                self.broken += 1
                return
            kind = await client.readexactly(1)


async def _forward(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(65_536):
        target.write(data)
        await target.drain()
    target.close()


@asynccontextmanager
async def commit_proxy(server_dsn: str) -> AsyncIterator[CommitProxy]:
    """Forward to a server's database while the block runs.

    Args:
        server_dsn: The database; its server is reached by Unix socket or TCP.
    """
    proxy = CommitProxy(server_dsn)
    listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield proxy
