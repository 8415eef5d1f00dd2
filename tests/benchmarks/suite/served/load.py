"""Makes load, in a process of its own: reads what to ask on standard input, a line of JSON each.

Bounded: so many connections, each of which asks again when it is answered, for so many seconds, or
until so many requests are answered in all.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

try:
    import uvloop
except ImportError:
    uvloop = None

PATIENCE = 600.0
"""Seconds, where requests are counted."""


class Client(asyncio.Protocol):
    """One connection that is kept open; the answers must say their length."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.head = b""
        self.left = -1
        self.status = 0
        self.first = 0.0
        self.answer: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(exc or ConnectionResetError("closed"))

    def data_received(self, data: bytes) -> None:
        if self.left < 0:
            if not self.first:
                self.first = time.perf_counter()
            self.head += data
            head, found, body = self.head.partition(b"\r\n\r\n")
            if not found:
                return
            self.head = b""
            self.status = int(head[9:12])
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            self.left = int(length or 0) - len(body)
        else:
            self.left -= len(data)
        if self.left <= 0 and self.answer is not None and not self.answer.done():
            self.answer.set_result(None)

    async def ask(self, request: bytes) -> int:
        self.left, self.first = -1, 0.0
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        await self.answer
        return self.status


def request(asked: dict[str, Any]) -> bytes:
    body = (asked.get("body") or "").encode() or b"x" * asked.get("body_size", 0)
    lines = [f"{asked['method']} {asked['path']} HTTP/1.1", "Host: shop", "User-Agent: bench"]
    lines += [f"{name}: {value}" for name, value in asked["headers"].items()]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def load(asked: dict[str, Any]) -> dict[str, Any]:
    wanted = request(asked)
    latencies: list[float] = []
    firsts: list[float] = []
    wrong: list[int] = []
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(Client, "127.0.0.1", asked["port"]))[1]
        for _ in range(asked["connections"])
    ]
    began = time.perf_counter()
    ends = began + asked.get("seconds", PATIENCE)
    most = asked.get("requests", sys.maxsize)

    async def work(client: Client) -> None:
        now = time.perf_counter()
        while now < ends and len(latencies) < most:
            status = await client.ask(wanted)
            after = time.perf_counter()
            latencies.append(after - now)
            firsts.append(client.first - now)
            if status != asked["status"]:
                wrong.append(status)
            now = after

    await asyncio.gather(*(work(client) for client in clients))
    elapsed = time.perf_counter() - began
    for client in clients:
        client.transport.close()
    latencies.sort()
    firsts.sort()
    return {
        "requests": len(latencies),
        "seconds": elapsed,
        "p50_ms": latencies[len(latencies) // 2] * 1e3,
        "p99_ms": latencies[int(len(latencies) * 0.99)] * 1e3,
        "first_byte_p50_ms": firsts[len(firsts) // 2] * 1e3,
        "wrong": wrong[:5],
    }


async def main() -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await load(json.loads(line))), flush=True)


if __name__ == "__main__":
    if uvloop is not None:
        uvloop.run(main())
    else:
        asyncio.run(main())
