"""The cost of a stream: the gateway's processor time per 100 events, for OpenAI's dialect and for Anthropic's.

One mock upstream, one gateway, each a process of its own; streams come one after another, in interleaved rounds. The
events of a stream come together or 1 ms apart (a wake-up for each). Only text events are counted, the rest is paid.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import load
import mock_upstream
import orjson
import uvloop
from mock_upstream import STREAM_HEAD, Mock, framed

EVENTS = 400
GAP_S = 0.001
SETTLE_S = 0.3  # chosen: what is done after a reply counts for the streams that caused it
GOAL = 3.0  # Anthropic's events may cost at most so much of OpenAI's
WORDS = [f" word{number}" for number in range(EVENTS)]
users = itertools.count(1)
MODELS = {"OpenAI": "gpt-bench", "Anthropic": "claude-bench"}
ARRIVALS = {"together": ("", 5), "apart": ("-apart", 1)}  # five times the streams, as /proc counts in 10 ms
UPSTREAM = '[[upstreams]]\nname = "{0}"\nkind = "{0}"\nmodels = ["{2}*"]\napi_key = "sk-bench"\n'
UPSTREAM += 'base_url = "http://127.0.0.1:{1}/v1"\n'


def chat_events() -> list[bytes]:
    head = b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"gpt-bench",'
    one = head + b'"choices":[{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}]}\n\n'
    texts = [one % (b'{"content":"%b"}' % word.encode(), b"null") for word in WORDS]
    begun = one % (b'{"role":"assistant","content":""}', b"null")
    return [begun, *texts, one % (b"{}", b'"stop"'), b"data: [DONE]\n\n"]


def message_events() -> list[bytes]:
    message = b'{"id":"msg_bench","type":"message","role":"assistant","model":"claude-bench","content":[],'
    message += b'"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":25,"output_tokens":1}}'
    delta = b'"index":0,"delta":{"type":"text_delta","text":"%b"}'
    end = b'"delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":%d}' % EVENTS
    events = [
        (b"message_start", b'"message":' + message),
        (b"content_block_start", b'"index":0,"content_block":{"type":"text","text":""}'),
        *((b"content_block_delta", delta % word.encode()) for word in WORDS),
        (b"content_block_stop", b'"index":0'),
        (b"message_delta", end),
    ]
    encoded = [b'event: %b\ndata: {"type":"%b",%b}\n\n' % (kind, kind, rest) for kind, rest in events]
    return [*encoded, b'event: message_stop\ndata: {"type":"message_stop"}\n\n']


class Upstream(Mock):
    def serve(self, head: bytes, body: bytes) -> None:
        events = message_events() if b" /v1/messages" in head else chat_events()
        pieces = [STREAM_HEAD, *map(framed, events), b"0\r\n\r\n"]
        self.send(pieces if b"bench-apart" in body else [b"".join(pieces)])

    def send(self, pieces: list[bytes]) -> None:
        if self.transport is not None:
            self.transport.write(pieces[0])
            self.timer = self.loop.call_later(GAP_S, self.send, pieces[1:]) if pieces[1:] else None


class Streams:
    """A number of streams, each of a user of its own; every reply is checked."""

    def __init__(self, count: int, model: str, headers: bytes) -> None:
        self.left, self.model, self.headers, self.wrong = count, model, headers, 0

    def next_request(self, worker: int) -> bytes | None:
        self.left -= 1
        asked = [{"role": "user", "content": "Tell me about the harbour."}]
        body = {"model": self.model, "user": f"u{next(users)}", "stream": True, "messages": asked}
        return load.chat_request(orjson.dumps(body), self.headers) if self.left >= 0 else None

    def take_reply(self, worker: int, body: bytes) -> None:
        self.wrong += load.read_stream_text(body) != "".join(WORDS)


async def measure(port: int, pid: int, count: int, model: str, headers: bytes) -> float:
    """Returns the gateway's processor time for some streams, in seconds."""
    flow, before = Streams(count, model, headers), load.read_cpu_s(pid)
    result = await load.drive(port, flow, 1)
    await asyncio.sleep(SETTLE_S)
    if result.errors or flow.wrong or len(result.total_ms) != count:
        raise SystemExit(f"{model}: {flow.wrong} of {count} texts wrong, {result.errors[:3]}")
    return load.read_cpu_s(pid) - before


async def bench(port: int, pid: int, rounds: int, count: int) -> None:
    memories = {"off": load.MEMORY_OFF_HEADER, "on": b""}
    cells = list(itertools.product(memories, ARRIVALS, MODELS))
    spent = dict.fromkeys(cells, 0.0)
    for turn in range(-1, rounds):  # the first only warms
        for memory, arrival, variant in cells if turn % 2 else reversed(cells):
            suffix, times = ARRIVALS[arrival]
            streams = count * times if turn >= 0 else 2
            took = await measure(port, pid, streams, MODELS[variant] + suffix, memories[memory]) / streams
            spent[memory, arrival, variant] += took if turn >= 0 else 0.0
    print(f"gateway CPU ms per 100 events; {rounds} rounds of {count} streams ({count * 5} together)")
    print("memory  events    OpenAI  Anthropic  ratio  goal")
    for memory, arrival in itertools.product(memories, ARRIVALS):
        chat, claude = (spent[memory, arrival, variant] * 1e5 / (rounds * EVENTS) for variant in MODELS)
        print(
            f"{memory:<6}  {arrival:<8}  {chat:6.2f}  {claude:9.2f}  {claude / (chat or float('nan')):5.2f}  {GOAL}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench anthropic", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--streams", type=int, default=10, help="of each kind and round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mnemogate-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        port = stack.enter_context(load.run_mock(folder / "log", __file__, "--mock"))
        rows = "".join(UPSTREAM.format(way.lower(), port, model) for way, model in MODELS.items())
        gateway = stack.enter_context(load.serve_gateway(folder, "[server]\naccess_log = false\n" + rows))
        uvloop.run(bench(gateway.port, gateway.pid, options.rounds, options.streams))


if __name__ == "__main__":
    uvloop.run(mock_upstream.main(Upstream)) if sys.argv[1:] == ["--mock"] else main()
