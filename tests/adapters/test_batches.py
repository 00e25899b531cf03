"""What every way to batches owes the gateway: one suite over OpenAI's, Anthropic's and the local one."""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, BinaryIO

import orjson
import pytest
from starlette.responses import HTMLResponse

from adapters.anthropic import DEFAULT_VERSION
from adapters.batch import local, result_lines
from adapters.batch.anthropic import AnthropicBatches
from adapters.batch.batch_provider import BatchPart, BatchProvider, PartResult
from adapters.batch.local import LocalBatches
from adapters.batch.openai import OpenAIBatches
from adapters.errors import (
    BatchOutcomeUnknown,
    ProviderError,
    ProviderRefused,
    ProviderReplyBroken,
    ProviderUnreachable,
    UnreadableResults,
)
from adapters.openai import OpenAICompatible
from adapters.reply_quota import REPLIES
from tests.doubles.batches import AnthropicBatchServer, BatchServer, OpenAIBatchServer, Outcome
from tests.doubles.upstream import Gate, Reply, StrictUpstream, UpstreamRequest, fail, raw, say
from tests.patience import comes

Json = dict[str, Any]
Outcomes = Mapping[str, Outcome]
SEEN = ("a-1", "b-1", "c-1", "d-1")


class Bench:
    """A provider, and the server that it speaks to."""

    def __init__(self, provider: BatchProvider, server: BatchServer | StrictUpstream) -> None:
        self.provider = provider
        self.server = server

    @property
    def batches(self) -> BatchServer:
        assert isinstance(self.server, BatchServer)
        return self.server

    async def submit(self, *names: str, mark: str = "mark") -> str:
        return await self.provider.submit(part(len(names), mark), self.file(names))

    def file(self, names: tuple[str, ...]) -> BinaryIO:
        return io.BytesIO(b"".join(self.provider.make_line(name, body_of(name)) for name in names))

    async def read(self, id: str) -> dict[str, PartResult]:
        """Returns all results, when they are there."""
        found: dict[str, PartResult] = {}
        while True:
            state = await self.provider.poll(id)
            if state.has_results:
                found |= {each.custom_id: each async for each in self.provider.read_results(id)}
            if state.is_over:
                return found
            await asyncio.sleep(0)


def part(count: int, mark: str = "mark") -> BatchPart:
    return BatchPart(mark, time.time(), count)


def body_of(name: str) -> bytes:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": name}]
    return orjson.dumps({"model": "claude-opus-4-6", "messages": messages, "max_tokens": 100})


def said_in(result: PartResult) -> Any:
    return json.loads(result.body)["choices"][0]["message"]["content"]


@asynccontextmanager
async def bench_of(kind: str, outcomes: Outcomes = {}, *, held: bool = False) -> AsyncIterator[Bench]:  # noqa: B006
    def answer(custom_id: str, body: Json) -> Outcome:
        return outcomes.get(custom_id, Outcome(text=f"To {custom_id}"))

    makers: dict[str, tuple[type[BatchServer], Callable[..., BatchProvider], str]] = {
        "openai": (OpenAIBatchServer, OpenAIBatches, "sk-own"),
        "anthropic": (AnthropicBatchServer, AnthropicBatches, "sk-ant-own"),
    }
    if kind == "local":
        upstream = StrictUpstream(script=lambda request: _live(request, outcomes))
        with upstream:
            provider: BatchProvider = LocalBatches(OpenAICompatible("up", upstream.base_url, key="sk-own"))
            yield Bench(provider, upstream)
            await provider.aclose()
        return
    server_of, provider_of, key = makers[kind]
    with server_of(answer, held=held) as server:
        provider = provider_of(server.base_url, key, {"x-own": "1"}, time.time)
        yield Bench(provider, server)
        await provider.aclose()


def _live(request: UpstreamRequest, outcomes: Outcomes) -> Reply:
    name = request.json["messages"][-1]["content"]
    outcome = outcomes.get(name, Outcome(text=f"To {name}"))
    return say(outcome.text) if outcome.kind == "succeeded" else fail(outcome.status, outcome.message)


KINDS = ["openai", "anthropic", "local"]
REMOTE = ["openai", "anthropic"]


@pytest.mark.parametrize("kind", KINDS)
async def test_each_request_has_its_result(kind: str) -> None:
    async with bench_of(kind) as bench:
        found = await bench.read(await bench.submit(*SEEN))
        assert {name: said_in(each) for name, each in found.items()} == {n: f"To {n}" for n in SEEN}
        usage = json.loads(found["a-1"].body)["usage"]
        assert usage["prompt_tokens"] > 0


@pytest.mark.parametrize("kind", REMOTE)
async def test_an_sdk_that_is_not_installed_is_named_with_the_line_to_run(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench_of(kind) as bench:
        assert bench.provider.missing_package is None
        monkeypatch.setitem(sys.modules, kind, None)
        named = f"{kind}.*pip install -e '\\.\\[batches\\]'"
        assert re.search(named, bench.provider.missing_package or "")
        for ask in (
            lambda: bench.submit("a-1"),
            lambda: bench.provider.poll("b"),
            lambda: bench.provider.cancel("b"),
            lambda: bench.provider.discard("b", part(1, "own")),
            lambda: bench.provider.find(part(1, "own"), {"a-1"}),
            lambda: _list(bench.provider.read_results("b"), []),
        ):
            with pytest.raises(ProviderUnreachable, match=named):
                await ask()


@pytest.mark.parametrize("kind", REMOTE)
async def test_results_say_what_became_of_each(kind: str) -> None:
    outcomes = {
        "b-1": Outcome("errored", message="Too long.", status=400),
        "c-1": Outcome("errored", message="Busy.", status=529, error_type="overloaded_error"),
        "d-1": Outcome("expired"),
        "e-1": Outcome("cancelled"),
        "f-1": Outcome(times=0),
        "g-1": Outcome(times=2),
    }
    async with bench_of(kind, outcomes) as bench:
        bench.batches.is_shuffled = True
        id = await bench.submit("a-1", *outcomes)
        listed = [each async for each in bench.provider.read_results(id)]
        found = {each.custom_id: each for each in listed}
        assert found.keys() == {"a-1", "b-1", "c-1", "d-1", "e-1", "g-1"}
        assert [each.custom_id for each in listed].count("g-1") == 2
        assert (found["b-1"].outcome, found["b-1"].message, found["b-1"].is_transient) == (
            "errored", "Too long.", False,
        )  # fmt: skip
        assert (found["c-1"].outcome, found["c-1"].is_transient) == ("errored", True)
        assert (found["d-1"].outcome, found["e-1"].outcome) == ("expired", "cancelled")


async def test_local_says_what_an_upstream_said() -> None:
    outcomes = {"b-1": Outcome("errored", message="No.", status=400), "c-1": Outcome("errored", status=500)}
    async with bench_of("local", outcomes) as bench:
        found = await bench.read(await bench.submit("a-1", "b-1", "c-1"))
        assert (found["b-1"].message, found["b-1"].is_transient) == ("No.", False)
        assert (found["c-1"].outcome, found["c-1"].is_transient) == ("errored", True)


async def test_local_says_what_an_upstream_said_with_half_a_character() -> None:
    async with bench_of("local") as bench:
        assert isinstance(bench.server, StrictUpstream)
        error = rb'{"error": {"message": "No \ud83d"}}'
        bench.server.script = lambda request: raw(error, content_type="application/json", status=400)
        found = await bench.read(await bench.submit("a-1"))
        assert found["a-1"].message == "No \ufffd"


async def test_local_gives_up_a_request_whose_reply_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_RESULT_BYTES", 100_000)
    async with bench_of("local") as bench:
        assert isinstance(bench.server, StrictUpstream)
        bench.server.script = lambda request: say("x" * 100_000)
        found = await bench.read(await bench.submit("a-1"))
        assert found["a-1"].message == "the reply is larger than 100000 bytes"
        assert (found["a-1"].outcome, found["a-1"].is_transient) == ("errored", False)


async def test_local_asks_again_where_other_replies_take_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REPLIES, "left_bytes", 0)
    async with bench_of("local") as bench:
        assert isinstance(bench.server, StrictUpstream)
        bench.server.script = lambda request: say("x" * 200_000)
        found = await bench.read(await bench.submit("a-1"))
        assert found["a-1"].message.startswith("all replies under way are larger")
        assert (found["a-1"].outcome, found["a-1"].is_transient) == ("errored", True)


async def test_local_gives_a_busy_upstream_time() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    with StrictUpstream() as upstream:
        upstream.queue(fail(429, retry_after="7"), fail(429), say("At last."))
        provider = LocalBatches(OpenAICompatible("up", upstream.base_url), sleep)
        bench = Bench(provider, upstream)
        found = await bench.read(await bench.submit("a-1"))
        assert said_in(found["a-1"]) == "At last."
        assert slept == [7.0, 4.0]
        upstream.script = lambda request: fail(429)
        found = await bench.read(await bench.submit("b-1", mark="other"))
        assert (found["b-1"].outcome, found["b-1"].is_transient) == ("errored", True)
        assert slept[2:] == [2.0, 4.0, 8.0, 16.0]
        await provider.aclose()


async def test_local_makes_four_calls_at_once() -> None:
    gate, seen, full = Gate(), [], Gate()

    def script(asked: UpstreamRequest) -> Reply:
        seen.append(asked)
        if len(seen) == 4:
            full.open()
        return say("Ok.", hold_before_headers=gate)

    with StrictUpstream(script=script) as upstream:
        provider = LocalBatches(OpenAICompatible("up", upstream.base_url))
        bench = Bench(provider, upstream)
        id = await bench.submit(*(f"n-{n}" for n in range(9)))
        await full.wait()
        assert len(seen) == 4
        gate.open()
        assert len(await bench.read(id)) == 9
        await provider.aclose()


async def test_local_logs_the_fault_that_ends_a_batch(caplog: pytest.LogCaptureFixture) -> None:
    async with bench_of("local") as bench:
        lines = io.BytesIO(b"\xff {}\n")  # no UTF-8
        id = await bench.provider.submit(part(1), lines)
        assert await bench.read(id) == {}
        await bench.provider.discard(id, part(1))
        [record] = await comes(lambda: caplog.records)
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], ExceptionGroup)
        assert isinstance(record.exc_info[1].exceptions[0], UnicodeDecodeError)
        assert lines.closed


async def test_local_closes_the_lines_of_a_batch_that_never_began() -> None:
    async with bench_of("local") as bench:
        lines = bench.file(("a-1",))
        id = await bench.provider.submit(part(1), lines)
        await bench.provider.cancel(id)
        assert lines.closed


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unknown_batch_is_gone(kind: str) -> None:
    async with bench_of(kind) as bench:
        state = await bench.provider.poll("batch_404")
        assert state.is_gone
        assert state.is_over


@pytest.mark.parametrize("kind", KINDS)
async def test_a_batch_is_found_by_its_mark(kind: str) -> None:
    async with bench_of(kind) as bench:
        await bench.submit("a-1", mark="another")
        id = await bench.submit("b-1", "c-1", mark="own")
        await bench.submit("d-1", "e-1", mark="third")
        ids = {"b-1", "c-1"}
        assert await bench.provider.find(part(2, "own"), ids) == id
        assert await bench.provider.find(part(2, "none"), {"x-1"}) is None


@pytest.mark.parametrize("kind", REMOTE)
async def test_a_batch_is_found_although_its_creation_was_not_answered(kind: str) -> None:
    async with bench_of(kind) as bench:
        bench.batches.drops_create_reply = True
        with pytest.raises(ProviderError):
            await bench.submit("a-1", "b-1", mark="own")
        assert len(bench.batches.batches) == 1
        found = await bench.provider.find(part(2, "own"), {"a-1", "b-1"})
        assert found == bench.batches.batches[0].id


async def test_anthropic_is_unsure_while_a_batch_is_under_way() -> None:
    async with bench_of("anthropic", held=True) as bench:
        id = await bench.submit("a-1", "b-1")
        with pytest.raises(BatchOutcomeUnknown):
            await bench.provider.find(part(2), {"a-1", "b-1"})
        # One that is too large cannot be it.
        assert await bench.provider.find(part(1), {"x-1"}) is None
        bench.batches.finish()
        assert await bench.provider.find(part(2), {"a-1", "b-1"}) == id
        # Some of its requests may be nobody's any more.
        assert await bench.provider.find(part(2), {"b-1"}) == id


@pytest.mark.parametrize("kind", REMOTE)
async def test_not_over_before_it_has_ended(kind: str) -> None:
    async with bench_of(kind, held=True) as bench:
        id = await bench.submit("a-1")
        assert not (await bench.provider.poll(id)).is_over
        bench.batches.finish()
        state = await bench.provider.poll(id)
        assert state.is_over
        assert state.has_results


@pytest.mark.parametrize("kind", REMOTE)
async def test_items_of_a_cancelled_batch_are_cancelled(kind: str) -> None:
    async with bench_of(kind, held=True) as bench:
        id = await bench.submit("a-1", "b-1")
        await bench.provider.cancel(id)
        found = await bench.read(id)
        assert {each.outcome for each in found.values()} == {"cancelled"}
        await bench.provider.cancel(id)  # nothing is left to be done


@pytest.mark.parametrize("kind", REMOTE)
@pytest.mark.parametrize("cut", [10, 700])
async def test_results_that_break_off_are_an_error_and_can_be_read_again(kind: str, cut: int) -> None:
    async with bench_of(kind) as bench:
        id = await bench.submit(*SEEN)
        bench.batches.results_cut_at = cut
        with pytest.raises(ProviderReplyBroken):
            await bench.read(id)
        assert len(await bench.read(id)) == len(SEEN)


@pytest.mark.parametrize("kind", REMOTE)
async def test_an_answer_that_is_no_batch_is_broken(kind: str) -> None:
    async with bench_of(kind) as bench:
        bench.batches.fixed_response = HTMLResponse("<p>Hello")
        with pytest.raises(ProviderReplyBroken):
            await bench.provider.poll("batch_1")


@pytest.mark.parametrize("kind", REMOTE)
async def test_lines_that_are_no_results_hold_back_no_others(kind: str) -> None:
    outcomes = {"b-1": Outcome("errored", message="No.", status=400)}
    async with bench_of(kind, outcomes) as bench:
        id = await bench.submit("a-1", "b-1", "c-1")
        body, result = b"[" * 300 + b"]" * 300, b'{"type":"errored","error":{"error":{"type":[]}}}'
        odd = b'{"custom_id":"d-1","response":{"status_code":200,"body":{"x":%b}},"result":%b}' % (
            body,
            result,
        )
        bench.batches.results_prefix = b"[1]\n\n<p>\n" + odd + b"\n"
        found: list[str] = []
        with pytest.raises(UnreadableResults, match="3 lines"):
            await _list(bench.provider.read_results(id), found)
        assert sorted(found) == ["a-1", "b-1", "c-1"]


async def test_a_line_without_end_is_not_buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_lines, "MAX_RESULT_BYTES", 100)

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b'{"n": "', b"x" * 90, b"y" * 90, b'"}\n{"n": 1}\n{"n": ', b"2}"):
            yield piece

    found: list[str] = []
    with pytest.raises(UnreadableResults, match="1 lines"):
        await _list(
            result_lines.parse_results(pieces(), lambda line: PartResult(str(line["n"]), "expired")), found
        )
    assert found == ["1", "2"]


async def test_half_a_character_makes_no_line_unreadable() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield rb"""{"n": "1 \ud83d"}
            {"n": "2 \ud83d\ude00 \\ud83d"}
            {"n": "3 \ud83d}
            """

    found: list[str] = []
    with pytest.raises(UnreadableResults, match="1 lines"):
        await _list(
            result_lines.parse_results(pieces(), lambda line: PartResult(line["n"], "expired")), found
        )
    assert found == ["1 \ufffd", "2 \U0001f600 \\ud83d"]


async def _list(results: AsyncIterator[PartResult], found: list[str]) -> None:
    async for result in results:
        found.append(result.custom_id)


@pytest.mark.parametrize("kind", REMOTE)
async def test_a_batch_that_is_refused_is_not_made_and_says_why(kind: str) -> None:
    async with bench_of(kind) as bench:
        bench.batches.create_refusals = [(400, "The queue is full.")]
        with pytest.raises(ProviderRefused, match="The queue is full"):
            await bench.submit("a-1")
        assert not bench.batches.batches


async def test_a_file_of_which_no_batch_was_made_is_deleted() -> None:
    async with bench_of("openai") as bench:
        await bench.submit("a-1", mark="another")
        bench.batches.create_refusals = [(503, "Busy.")]
        with pytest.raises(ProviderRefused, match="Busy"):
            await bench.submit("b-1", mark="own")
        server: Any = bench.server
        assert [each["filename"] for each in server.listed_files] == ["another.jsonl", "own.jsonl"]
        assert await bench.provider.find(part(1, "own"), {"b-1"}) is None
        assert [each["filename"] for each in server.listed_files] == ["another.jsonl"]


async def test_a_batch_whose_file_is_rejected_is_over_without_results() -> None:
    async with bench_of("openai") as bench:
        bench.batches.failure_message = "The file is malformed."
        state = await bench.provider.poll(await bench.submit("a-1"))
        assert (state.is_over, state.has_results, state.message) == (True, False, "The file is malformed.")


@pytest.mark.parametrize("kind", REMOTE)
async def test_a_call_without_an_id_gets_one(kind: str) -> None:
    """Of another model's: as in a request that is answered live."""
    call = {"id": None, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": None, "content": "Done."},
    ]
    async with bench_of(kind) as bench:
        line = bench.provider.make_line(
            "a-1", orjson.dumps({**json.loads(body_of("a-1")), "messages": messages})
        )
        assert line.count(b'"call_unnamed_1_0"') == 2


async def test_a_request_that_claude_has_no_word_for() -> None:
    provider = AnthropicBatches("http://127.0.0.1:1/v1", "sk-ant-own", {}, time.time)
    with pytest.raises(ProviderRefused, match="seed"):
        provider.make_line("a-1", orjson.dumps({**json.loads(body_of("a-1")), "seed": 7}))


async def test_temperature_goes_with_the_version_that_takes_it() -> None:
    async with bench_of("anthropic") as bench:
        line = bench.provider.make_line(
            "a-1", orjson.dumps({**json.loads(body_of("a-1")), "temperature": 0.5})
        )
        await bench.provider.submit(part(1), io.BytesIO(line))
        assert bench.batches.batches[0].requests["a-1"]["temperature"] == 0.5


async def test_an_argument_of_a_tool_that_is_called_temperature_asks_for_no_older_version() -> None:
    parameters = {"type": "object", "properties": {"temperature": {"type": "number"}}}
    tools = [{"type": "function", "function": {"name": "heat", "parameters": parameters}}]
    async with bench_of("anthropic") as bench:
        line = bench.provider.make_line("a-1", orjson.dumps({**json.loads(body_of("a-1")), "tools": tools}))
        await bench.provider.submit(part(1), io.BytesIO(line))
        assert isinstance(bench.batches, AnthropicBatchServer)
        assert bench.batches.api_versions == [DEFAULT_VERSION]


async def test_the_event_loop_goes_on_while_the_lines_of_a_batch_are_looked_through() -> None:
    loop_ran = threading.Event()
    waits: list[bool] = []

    class Lines(io.BytesIO):
        def __next__(self) -> bytes:
            if not waits:
                waits.append(loop_ran.wait(5))
            return super().__next__()

    async with bench_of("anthropic") as bench:
        lines = Lines(bench.provider.make_line("a-1", body_of("a-1")))
        asyncio.get_running_loop().call_soon(loop_ran.set)
        await bench.provider.submit(part(1), lines)
        assert waits == [True]


@pytest.mark.parametrize("kind", REMOTE)
async def test_the_files_and_batches_at_the_provider_are_deleted(kind: str) -> None:
    async with bench_of(kind) as bench:
        id = await bench.submit("a-1")
        await bench.provider.discard(id, part(1))
        server: Any = bench.batches
        expected = ["file-1", f"file-out-{id}"] if kind == "openai" else [id]
        assert server.deleted == expected


async def test_a_running_batch_at_anthropic_does_not_count_as_deleted() -> None:
    async with bench_of("anthropic", held=True) as bench:
        id = await bench.submit("a-1")
        with pytest.raises(ProviderRefused, match="Cancel it first"):
            await bench.provider.discard(id, part(1))
        bench.batches.finish()
        await bench.provider.discard(id, part(1))
        server: Any = bench.batches
        assert server.deleted == [id]
        await bench.provider.discard("msgbatch_404", part(1))  # nothing is left to be done


@pytest.mark.parametrize("kind", REMOTE)
async def test_a_provider_without_a_server_is_unreachable(kind: str) -> None:
    maker: Callable[..., BatchProvider] = OpenAIBatches if kind == "openai" else AnthropicBatches
    provider = maker("http://127.0.0.1:9/v1", "sk-own", {}, time.time)
    with pytest.raises(ProviderUnreachable):
        await provider.poll("batch_1")
    await provider.aclose()


def test_the_sdks_are_loaded_with_the_first_batch() -> None:
    check = "import sys, gateway.app; assert not {'openai', 'anthropic'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", check], check=True)
