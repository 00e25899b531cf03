"""Clients without an SDK: HTTP libraries, with code that reads the lines of a stream and parses JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import aiohttp
import httpx
import requests

from tests.clients.base import TIMEOUT_S, Completion, ErrorReport, Json, RequestClient


class _StatusError(Exception):
    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(status)
        self.report = ErrorReport(
            status,
            json.loads(body)["error"]["message"],
            headers.get("retry-after") or headers.get("Retry-After"),
        )


class _ErrorEvent(Exception):
    def __init__(self, error: Json) -> None:
        super().__init__(error["message"])
        self.report = ErrorReport(None, error["message"], None)


class _Bare(RequestClient):
    def __init__(self, url: str, model: str, headers: Mapping[str, str]) -> None:
        self.url = f"{url}/chat/completions"
        self.model = model
        self.headers = {**headers, "authorization": "Bearer sk-app", "content-type": "application/json"}

    def _make_body(self, messages: Sequence[Json], **fields: Any) -> bytes:
        return json.dumps({"model": self.model, "messages": messages, **fields}).encode()

    async def complete(self, messages: Sequence[Json], **fields: Any) -> Completion:
        reply = json.loads(await self.post(self._make_body(messages, **fields)))
        return Completion(reply["choices"][0]["message"], reply["usage"])

    async def stream_chunks(self, messages: Sequence[Json], **fields: Any) -> AsyncIterator[Json]:
        async with contextlib.aclosing(self.lines(self._make_body(messages, stream=True, **fields))) as lines:
            ended = False
            async for line in lines:
                if line.startswith("data: ") and line != "data: [DONE]":
                    assert not ended
                    chunk = json.loads(line.removeprefix("data: "))
                    if "error" in chunk:
                        raise _ErrorEvent(chunk["error"])
                    yield chunk
                ended = ended or line == "data: [DONE]"
            assert ended

    async def post(self, body: bytes) -> bytes:
        """Posts a body, and returns the body of the reply. Raises: _StatusError."""
        raise NotImplementedError

    def lines(self, body: bytes) -> AsyncIterator[str]:
        """Posts a body, and yields the lines of the reply. Raises: _StatusError."""
        raise NotImplementedError

    def read_error(self, error: Exception) -> ErrorReport:
        assert isinstance(error, _StatusError | _ErrorEvent)
        return error.report

    async def aclose(self) -> None: ...


class Httpx(_Bare):
    def __init__(self, url: str, model: str, headers: Mapping[str, str]) -> None:
        super().__init__(url, model, headers)
        self._client = httpx.AsyncClient(headers=self.headers, timeout=TIMEOUT_S)

    async def post(self, body: bytes) -> bytes:
        reply = await self._client.post(self.url, content=body)
        if reply.status_code != 200:
            raise _StatusError(reply.status_code, reply.headers, reply.content)
        return reply.content

    async def lines(self, body: bytes) -> AsyncIterator[str]:
        async with self._client.stream("POST", self.url, content=body) as reply:
            if reply.status_code != 200:
                raise _StatusError(reply.status_code, reply.headers, await reply.aread())
            rest = b""
            # `aiter_lines` would also end a line at U+2028, which a string in JSON may have.
            async for data in reply.aiter_bytes():
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    yield line.decode()

    async def aclose(self) -> None:
        await self._client.aclose()


class Aiohttp(_Bare):
    _session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self.headers, timeout=aiohttp.ClientTimeout(TIMEOUT_S)
            )
        return self._session

    async def post(self, body: bytes) -> bytes:
        async with self.session.post(self.url, data=body) as reply:
            content = await reply.read()
            if reply.status != 200:
                raise _StatusError(reply.status, reply.headers, content)
            return content

    async def lines(self, body: bytes) -> AsyncIterator[str]:
        async with self.session.post(self.url, data=body) as reply:
            if reply.status != 200:
                raise _StatusError(reply.status, reply.headers, await reply.read())
            async for line in reply.content:
                yield line.decode().rstrip("\r\n")

    async def aclose(self) -> None:
        await self.session.close()


class _BareSync(_Bare):
    """A client whose library is not async: its calls run in a thread."""

    def post_sync(self, body: bytes) -> bytes:
        raise NotImplementedError

    def lines_sync(self, body: bytes) -> Iterator[str]:
        raise NotImplementedError

    async def post(self, body: bytes) -> bytes:
        return await asyncio.to_thread(self.post_sync, body)

    async def lines(self, body: bytes) -> AsyncIterator[str]:
        with contextlib.closing(self.lines_sync(body)) as lines:  # type: ignore[type-var]
            while (line := await asyncio.to_thread(next, lines, None)) is not None:
                yield line


class Requests(_BareSync):
    def __init__(self, url: str, model: str, headers: Mapping[str, str]) -> None:
        super().__init__(url, model, headers)
        self._session = requests.Session()

    def post_sync(self, body: bytes) -> bytes:
        reply = self._session.post(self.url, data=body, headers=self.headers, timeout=TIMEOUT_S)
        if reply.status_code != 200:
            raise _StatusError(reply.status_code, reply.headers, reply.content)
        return reply.content

    def lines_sync(self, body: bytes) -> Iterator[str]:
        with self._session.post(
            self.url, data=body, headers=self.headers, timeout=TIMEOUT_S, stream=True
        ) as reply:
            if reply.status_code != 200:
                raise _StatusError(reply.status_code, reply.headers, reply.content)
            for line in reply.iter_lines(chunk_size=None):
                yield line.decode()

    async def aclose(self) -> None:
        self._session.close()


class Urllib(_BareSync):
    """The standard library: HTTP/1.1 with `connection: close`."""

    def _open(self, body: bytes) -> Any:
        request = urllib.request.Request(self.url, body, self.headers)
        try:
            return urllib.request.urlopen(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            with error:
                raise _StatusError(error.code, dict(error.headers), error.read()) from error

    def post_sync(self, body: bytes) -> bytes:
        with self._open(body) as reply:
            content: bytes = reply.read()
            return content

    def lines_sync(self, body: bytes) -> Iterator[str]:
        with self._open(body) as reply:
            for line in reply:
                yield line.decode().rstrip("\r\n")
