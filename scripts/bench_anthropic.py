"""Measures the gateway's processor time for 100 events of a stream, in OpenAI's dialect and in Anthropic's.

A mock upstream and the gateway have a process each. Streams come one after another, in interleaved rounds. The events
of a stream come together, or 1 ms apart, so that each wakes the gateway. The time of a stream is divided by its text
events alone.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import orjson
import uvloop

from scripts import load, mock_upstream
from scripts.mock_upstream import STREAM_HEAD, Mock, http_chunk

EVENTS = 400
GAP_S = 0.001
SETTLE_S = 0.3  # for the work after a reply, which counts for its stream; chosen, not measured
GOAL = 3.0  # times the cost of OpenAI's events that Anthropic's may cost
WORDS = [f" word{number}" for number in range(EVENTS)]
users = itertools.count(1)
MODELS = {"OpenAI": "gpt-bench", "Anthropic": "claude-bench"}
# How events arrive: the end of the model's name by which the mock knows it, and how many times the streams are asked.
ARRIVALS = {"together": ("", 5), "apart": ("-apart", 1)}
UPSTREAM = '[[upstreams]]\nname = "{0}"\nkind = "{0}"\nmodels = ["{2}*"]\napi_key = "sk-bench"\n'
UPSTREAM += 'base_url = "http://127.0.0.1:{1}/v1"\n'


def chat_events() -> list[bytes]:
    head = b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"gpt-bench",'
    template = head + b'"choices":[{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}]}\n\n'
    texts = [template % (b'{"content":"%b"}' % word.encode(), b"null") for word in WORDS]
    beginning = template % (b'{"role":"assistant","content":""}', b"null")
    return [beginning, *texts, template % (b"{}", b'"stop"'), b"data: [DONE]\n\n"]


def message_events() -> list[bytes]:
    """Returns the events of a stream in Anthropic's dialect."""
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
    encoded = [b'event: %b\ndata: {"type":"%b",%b}\n\n' % (name, name, fields) for name, fields in events]
    return [*encoded, b'event: message_stop\ndata: {"type":"message_stop"}\n\n']


class Upstream(Mock):
    """Streams the same text in the dialect of the request, its events together or apart."""

    def serve(self, head: bytes, body: bytes) -> None:
        events = message_events() if b" /v1/messages" in head else chat_events()
        pieces = [STREAM_HEAD, *map(http_chunk, events), b"0\r\n\r\n"]
        self.send(pieces if b"bench-apart" in body else [b"".join(pieces)])

    def send(self, pieces: list[bytes]) -> None:
        if self.transport is not None:
            self.transport.write(pieces[0])
            self.timer = self.loop.call_later(GAP_S, self.send, pieces[1:]) if pieces[1:] else None


class Streams:
    """The flow of a number of streams, each of a new user. Each reply is checked."""

    def __init__(self, count: int, model: str, headers: bytes) -> None:
        self.remaining, self.model, self.headers = count, model, headers
        self.wrong_replies = 0

    def next_request(self, worker: int) -> bytes | None:
        self.remaining -= 1
        messages = [{"role": "user", "content": "Tell me about the harbour."}]
        body = {"model": self.model, "user": f"u{next(users)}", "stream": True, "messages": messages}
        return load.chat_request(orjson.dumps(body), self.headers) if self.remaining >= 0 else None

    def take_reply(self, worker: int, body: bytes) -> None:
        self.wrong_replies += load.read_stream_text(body) != "".join(WORDS)


async def measure(port: int, pid: int, count: int, model: str, headers: bytes) -> float:
    """Returns the gateway's processor time for some streams, in seconds."""
    flow, cpu_before_s = Streams(count, model, headers), load.read_cpu_s(pid)
    result = await load.drive(port, flow, 1)
    await asyncio.sleep(SETTLE_S)
    if result.errors or flow.wrong_replies or len(result.total_ms) != count:
        raise SystemExit(f"{model}: {flow.wrong_replies} of {count} texts wrong, {result.errors[:3]}")
    return load.read_cpu_s(pid) - cpu_before_s


async def bench(port: int, pid: int, rounds: int, count: int) -> None:
    """Measures all cells of the table in rounds, and prints the table.

    rounds: the number of rounds that count.
    count: the number of streams of a cell in a round.
    """
    memories = {"off": load.MEMORY_OFF_HEADER, "on": b""}
    cells = list(itertools.product(memories, ARRIVALS, MODELS))
    spent = dict.fromkeys(cells, 0.0)
    for number in range(-1, rounds):  # the first round, which imports modules, does not count
        for memory, arrival, variant in cells if number % 2 else reversed(cells):
            suffix, times = ARRIVALS[arrival]
            streams = count * times if number >= 0 else 2
            model = MODELS[variant] + suffix
            cost_s = await measure(port, pid, streams, model, memories[memory]) / streams
            spent[memory, arrival, variant] += cost_s if number >= 0 else 0.0
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
        rows = "".join(UPSTREAM.format(dialect.lower(), port, model) for dialect, model in MODELS.items())
        gateway = stack.enter_context(load.serve_gateway(folder, "[server]\naccess_log = false\n" + rows))
        uvloop.run(bench(gateway.port, gateway.pid, options.rounds, options.streams))


if __name__ == "__main__":
    uvloop.run(mock_upstream.main(Upstream)) if sys.argv[1:] == ["--mock"] else main()
