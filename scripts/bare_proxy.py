"""A bare proxy of uvicorn, uvloop, httptools and aiohttp, as a floor for the bench.

It has no keys, limits, errors, metrics or cancelling: the difference to the gateway is what the gateway costs.
"""

from __future__ import annotations

import sys
from typing import Any

import aiohttp
import uvicorn
from yarl import URL

UPSTREAM = URL(f"http://127.0.0.1:{sys.argv[2]}/v1/chat/completions")
KEPT = (b"content-type", b"content-length")
session: aiohttp.ClientSession | None = None


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Passes each request to the upstream, and its reply back piece by piece."""
    global session
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    if session is None:
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
        )
    if scope["method"] != "POST":  # a client that checks whether the proxy serves
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
        return
    body, has_more = b"", True
    while has_more:
        message = await receive()
        body, has_more = body + message["body"], message.get("more_body", False)
    async with session.post(UPSTREAM, data=body, headers={"content-type": "application/json"}) as reply:
        headers = [(k.lower(), v) for k, v in reply.raw_headers if k.lower() in KEPT]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        async for data in reply.content.iter_any():
            await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    uvicorn.run(
        app, port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False, log_level="error"
    )
