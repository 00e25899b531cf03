"""A fast upstream to measure against: chat completions of about 1 kB, streams of 50 events 10 ms apart.

It parses only the HTTP that the measured servers send (content-length, keep-alive), and no JSON. Each reply is
different, so that a gateway can find a conversation by its replies. `GET /last` returns the body of the last request
for a completion. The process prints its port and serves until its standard input closes. It binds to 127.0.0.1 only.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import sys
from typing import Any

import uvloop

EVENTS = 50
GAP_S = 0.010
WORDS = "the gateway answers with plain words that carry no meaning at all but take their time to be read "

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.I)
_number = itertools.count(1)


def completion_response(number: int) -> bytes:
    """Returns the response with a completion that has this number in its id and its text."""
    text = f"Reply {number:08d}: " + (WORDS * 8)[:720]
    body = (
        b'{"id":"chatcmpl-%08d","object":"chat.completion","created":1700000000,"model":"bench","choices":[{"index":0,'
        b'"message":{"role":"assistant","content":"%b","refusal":null},"logprobs":null,"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":100,"completion_tokens":150,"total_tokens":250}}'
    ) % (number, text.encode())
    return json_response(body)


def json_response(body: bytes, status: bytes = b"200 OK") -> bytes:
    """Returns a response with a JSON body."""
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
    return head % (status, len(body), body)


def chunk_event(number: int, delta: bytes, finish: bytes = b"null") -> bytes:
    """Returns an event of a stream with a delta, both as JSON, as a chunk of the body."""
    data = b'data: {"id":"c-%08d","object":"chat.completion.chunk",' % number
    return http_chunk(data + b'"choices":[{"index":0,"delta":%b,"finish_reason":%b}]}\n\n' % (delta, finish))


def http_chunk(data: bytes) -> bytes:
    """Returns a chunk of a body of the transfer encoding `chunked` (RFC 9112 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
WORD_LIST = WORDS.split()


class Mock(asyncio.Protocol):
    """A connection of a client."""

    last = b""  # the body of the last request for a completion, on any connection

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport: Any = None
        self.buffer = b""
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.timer is not None:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Answers each complete request."""
        self.buffer = self.buffer + data if self.buffer else data
        head_end = self.buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self.buffer[:head_end]
        length = _LENGTH.search(head)
        end = head_end + 4 + (int(length[1]) if length else 0)
        if len(self.buffer) < end:
            return
        body, self.buffer = self.buffer[head_end + 4 : end], self.buffer[end:]
        self.serve(head, body)

    def serve(self, head: bytes, body: bytes) -> None:
        """Answers a request. Subclasses serve other dialects."""
        target = head.split(b" ", 2)[1]
        if target.endswith(b"/chat/completions"):
            Mock.last = body
            number = next(_number)
            if b'"stream":true' in body or b'"stream": true' in body:
                first = chunk_event(number, b'{"role":"assistant","content":""}')
                first += chunk_event(number, b'{"content":"Reply %08d:"}' % number)
                self.transport.write(STREAM_HEAD + first)
                self.timer = self.loop.call_later(GAP_S, self.write_event, number, 1, self.loop.time())
            else:
                self.transport.write(completion_response(number))
        elif target.endswith(b"/models"):
            self.transport.write(json_response(b'{"object":"list","data":[{"id":"bench","object":"model"}]}'))
        elif target == b"/last":
            self.transport.write(json_response(Mock.last))
        else:
            self.transport.write(json_response(b'{"error":{"message":"not here"}}', b"404 Not Found"))

    def write_event(self, number: int, index: int, began_at: float) -> None:
        """Writes an event of a stream and schedules the next one, or ends the stream."""
        if self.transport is None:
            return
        if index < EVENTS:
            word = WORD_LIST[index % len(WORD_LIST)].encode()
            self.transport.write(chunk_event(number, b'{"content":" %b"}' % word))
            self.timer = self.loop.call_at(
                began_at + (index + 1) * GAP_S, self.write_event, number, index + 1, began_at
            )
        else:
            self.timer = None
            end = chunk_event(number, b"{}", b'"stop"') + http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
            self.transport.write(end)


async def main(protocol: type[Mock] = Mock) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # returns when the process that started this one ends
    server.close()


if __name__ == "__main__":
    uvloop.run(main())
