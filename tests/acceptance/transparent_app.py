"""Endpoints that show whether anything stands between an application and its client.

Run by uvicorn, with ``AUDITED=1`` audited and without it plain. ``GET /events`` tells, and forgets,
what the endpoints have seen, in order.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import BackgroundTasks, FastAPI, Request, WebSocket
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.middleware.gzip import GZipMiddleware
from starlette.websockets import WebSocketDisconnect

import otel_audit

PAUSE = 0.05
FILE = Path("data.bin")
EVENTS: list[str] = []

app = FastAPI(telemetry={"tracing": False})
app.add_middleware(GZipMiddleware, minimum_size=2000)
inner = FastAPI(telemetry={"tracing": False})
app.mount("/inner", inner)


@app.get("/up")
async def up() -> str:
    return "up"


@app.get("/events")
async def events() -> list[str]:
    found = EVENTS.copy()
    EVENTS.clear()
    return found


@app.post("/echo")
async def echo(request: Request) -> Response:
    return Response(await request.body(), media_type="application/octet-stream")


@app.post("/model")
async def model(body: dict[str, Any]) -> dict[str, Any]:
    return {"got": body}


@app.post("/unread")
async def unread() -> JSONResponse:
    return JSONResponse({"read": False})


@app.post("/twice")
async def twice(request: Request) -> dict[str, int]:
    first = await request.body()
    return {"first": len(first), "second": len(await request.body())}


@app.post("/pieces")
async def pieces(request: Request) -> StreamingResponse:
    async def mirrored() -> AsyncIterator[bytes]:
        async for chunk in request.stream():
            if chunk:
                yield chunk.swapcase()

    return StreamingResponse(mirrored(), media_type="text/plain")


@app.post("/stream")
async def stream() -> StreamingResponse:
    return StreamingResponse(chunks(5), media_type="text/csv")


@app.post("/sse")
async def sse() -> StreamingResponse:
    async def feed() -> AsyncIterator[bytes]:
        async for chunk in chunks(3):
            yield b"data: " + chunk + b"\n"

    return StreamingResponse(feed(), media_type="text/event-stream")


@app.post("/endless")
async def endless() -> StreamingResponse:
    return StreamingResponse(chunks(10_000), media_type="text/csv")


@app.post("/breaks")
async def breaks() -> StreamingResponse:
    async def some() -> AsyncIterator[bytes]:
        yield b"first\n"
        raise RuntimeError("it broke in the middle")

    return StreamingResponse(some(), media_type="text/csv")


@app.post("/waits")
async def waits(request: Request) -> None:
    EVENTS.append("waits")
    while not await request.is_disconnected():  # noqa: ASYNC110 - what is tested
        await asyncio.sleep(PAUSE / 5)
    EVENTS.append("the client has gone")


async def chunks(count: int) -> AsyncIterator[bytes]:
    number = 0
    try:
        for number in range(count):
            EVENTS.append(f"chunk {min(number, 1)}")
            yield b"line %d\n" % number
            await asyncio.sleep(PAUSE)
    finally:
        EVENTS.append("the end" if number == count - 1 else "cut off")


@app.api_route("/file", methods=["GET", "HEAD"])
async def file() -> FileResponse:
    return FileResponse(FILE, filename="report.bin")


@app.post("/nothing", status_code=204)
async def nothing() -> None: ...


@app.post("/unchanged")
async def unchanged() -> Response:
    return Response(status_code=304, headers={"etag": '"v1"'})


@app.post("/twins")
async def twins() -> Response:
    response = Response(b"ok")
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    response.raw_headers.append((b"X-Mixed-Case", b"\xe9"))
    return response


@app.post("/big")
async def big() -> dict[str, str]:
    return {"text": "tea " * 20_000}


@app.post("/raises")
async def raises() -> None:
    raise RuntimeError("it broke")


@app.post("/later")
async def later(tasks: BackgroundTasks) -> str:
    async def work() -> None:
        await asyncio.sleep(PAUSE)
        EVENTS.append("worked")

    tasks.add_task(work)
    EVENTS.append("answered")
    return "accepted"


@inner.post("/echo/{name}")
async def inner_echo(name: str, request: Request) -> dict[str, str]:
    return {"name": name, "path": request.url.path, "root": request.scope["root_path"]}


@app.websocket("/socket")
async def socket(websocket: WebSocket) -> None:
    await websocket.accept(subprotocol="tea", headers=[(b"x-own", b"1")])
    try:
        while (text := await websocket.receive_text()) != "bye":
            await websocket.send_text(text.upper())
            await websocket.send_bytes(text.encode())
        await websocket.close(4001, "bye")
    except WebSocketDisconnect as gone:
        EVENTS.append(f"disconnect {gone.code}")


@app.websocket("/refused")
async def refused(websocket: WebSocket) -> None:
    await websocket.close(1008)


if os.environ.get("AUDITED"):
    otel_audit.instrument(app)
