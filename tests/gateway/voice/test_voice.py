"""Voice stacks over sockets: a call with preemptive answers, barge-in and tools, and memory that has what was heard.

What the stacks send is imitated here: the bodies and headers that LiveKit Agents 1.8.9 and Pipecat 1.14.0 were seen to
send (both through OpenAI's async SDK, always streamed, usage always asked for), and those that Vapi and ElevenLabs
document. LiveKit itself is in test_livekit.py. The upstream is strict: what it does not know must not come; it speaks
OpenAI's dialect or Anthropic's, whose order of turns an interrupted call must not break.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.settings import UpstreamSettings
from tests.doubles.anthropic_upstream import StrictAnthropic
from tests.doubles.upstream import Call, Gate, StrictUpstream, UpstreamRequest, call_tools, say
from tests.gateway.sdk import World, agent, remember

# Of a stream that is let go the SDK leaves its own iterators to the garbage collector, which may come between.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <async_generator object:pytest.PytestUnraisableExceptionWarning"
)

Json = dict[str, Any]
WEATHER: Json = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,
        "description": "The weather in a city.",
        "parameters": {
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "type": "object",
            "additionalProperties": False,
        },
    },
}
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Stack:
    """body: besides model, messages and stream. session: a header that is new with every request."""

    name: str
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    session: str | None = None


USAGE = {"stream_options": {"include_usage": True}}
STACKS = (
    Stack(
        "livekit",
        {**USAGE, "tools": [WEATHER], "user": "alice"},
        {"X-LiveKit-Room-ID": "room-1", "User-Agent": "LiveKit Agents/1.8.9 (python 3.11.7)"},
        session="X-LiveKit-Session-ID",
    ),
    Stack("pipecat", {**USAGE, "tools": [WEATHER]}, {"x-mnemogate-user": "alice"}),
    Stack(
        "vapi",
        {
            "temperature": 0,
            "max_tokens": 250,
            "call": {"id": "call-1", "type": "inboundPhoneCall"},
            "customer": {"number": "+4712345678"},
            "phoneNumber": {"id": "p-1"},
            "metadata": {"n": 1, "deep": {"a": None}},
        },
    ),
    Stack(
        "elevenlabs",
        {
            "temperature": 0,
            "max_tokens": 500,
            "user_id": "alice",
            "elevenlabs_extra_body": {"tier": "gold"},
            "tools": [WEATHER],
        },
    ),
)


@dataclass
class Caller:
    """A voice agent's side of a call: it keeps what was said, and asks whenever it thinks it might be time."""

    world: World
    stack: Stack
    client: openai.AsyncOpenAI
    heard: list[Json] = field(default_factory=lambda: [{"role": "system", "content": "You answer a phone."}])

    async def words(self, *after: Json, model: str = "m") -> AsyncIterator[Any]:
        """The deltas of one request, for what was heard and `after`."""
        headers = dict(self.stack.headers)
        if self.stack.session is not None:
            headers[self.stack.session] = f"session-{next(_numbers)}"
        stream = await self.client.chat.completions.create(
            model=model,
            messages=[*self.heard, *after],  # type: ignore[misc]
            stream=True,
            extra_body=dict(self.stack.body),
            extra_headers=headers,
        )
        try:
            async for chunk in stream:
                for choice in chunk.choices:
                    yield choice.delta
        finally:
            await stream.close()

    async def generate(self, *after: Json) -> str:
        return "".join([delta.content or "" async for delta in self.words(*after)])

    async def speak(self, text: str) -> str:
        """A turn as it should be."""
        said = await self.generate(user(text))
        self.heard += [user(text), bot(said)]
        return said

    async def ask_in_vain(self, text: str, until: str) -> None:
        """Preemptive: begun on a partial transcript, and let go when the caller went on speaking."""
        count = len(self.world.upstream.requests)
        async with aclosing(self.words(user(text))) as words:
            async for delta in words:
                if until in (delta.content or ""):
                    break
        await self.world.upstream.requests[count].gone.wait()

    async def later(self, text: str) -> str:
        """What the model is sent when the same person calls again, weeks later."""
        self.world.pass_time(1_000_000)
        stack = Stack(
            self.stack.name,
            {**self.stack.body, **({"call": {"id": "call-2"}} if "call" in self.stack.body else {})},
            {**self.stack.headers, **({"X-LiveKit-Room-ID": "room-2"} if self.stack.session else {})},
            self.stack.session,
        )
        await Caller(self.world, stack, self.client).speak(text)
        *_, (role, content) = lines(self.world.upstream.last)
        assert role == "user"
        return content.removesuffix(text)

    def events(self, count: int) -> int:
        """A place in a stream, counted in OpenAI's events: three of Claude's come before the first word, not one."""
        return count + 2 if isinstance(self.world.upstream, StrictAnthropic) else count


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def bot(text: str) -> Json:
    return {"role": "assistant", "content": text}


def lines(request: UpstreamRequest) -> list[tuple[str, str]]:
    """What went up, line by line: who says it, and the text; results of calls are a tool's."""
    found: list[tuple[str, str]] = []
    for message in request.messages:
        content = message["content"]
        if not isinstance(content, list):
            found.append((message["role"], content or ""))
            continue
        for block in content:
            if block["type"] == "tool_result":
                found.append(("tool", block["content"]))
            else:
                found.append((message["role"], block.get("text", "")))
    return found


@pytest.fixture(params=["openai", "anthropic"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    kind: Any = request.param
    with StrictAnthropic() if kind == "anthropic" else StrictUpstream() as upstream:
        there = (UpstreamSettings("up", kind, upstream.base_url),)
        with remember(upstream, tmp_path, agent(), upstreams=there) as made:
            yield made


@pytest.fixture(params=STACKS, ids=[stack.name for stack in STACKS])
async def caller(world: World, request: pytest.FixtureRequest) -> AsyncIterator[Caller]:
    async with world.async_client() as client:
        yield Caller(world, request.param, client)


def inputs(world: World) -> str:
    return str(world.query("SELECT input FROM exchanges WHERE active <> 0 ORDER BY id"))


async def test_preemptive_answers_that_were_let_go_leave_no_trace(caller: Caller) -> None:
    await caller.speak("Hello.")
    for n, partial in enumerate(("I would", "I would like", "I would like a table")):
        draft = f"Draft{n} about tables"
        caller.world.upstream.queue(
            say(draft, tokens=[f"Draft{n}", " about", " tables"], hold_after={caller.events(3): Gate()})
        )
        await caller.ask_in_vain(partial, "about")
    assert await caller.speak("I would like a table for two.") == "Ok."
    await caller.speak("At eight.")
    assert len(caller.world.query("SELECT 1 FROM exchanges WHERE active <> 0")) == 3
    note = await caller.later("Which table would I like, draft or not?")
    assert "a table for two" in note
    assert "Draft" not in note
    assert note.count("I would like") == 1


async def test_a_preemptive_answer_that_ended_unheard_is_not_what_happened(caller: Caller) -> None:
    """R1: finished, thrown away without a sign, and asked again for a longer transcript."""
    await caller.speak("Hello.")
    for partial in ("I fly to", "I fly to Lisbon"):
        caller.world.upstream.queue(say(f"Unheard answer on flights for {partial!r}."))
        await caller.generate(user(partial))
    caller.world.upstream.queue(say("Lisbon on Monday, noted."))
    await caller.speak("I fly to Lisbon on Monday.")
    await caller.speak("Thanks.")
    assert inputs(caller.world).count("I fly to") == 1
    note = await caller.later("When do I fly to Lisbon, what was the answer on flights?")
    assert "Lisbon on Monday" in note
    assert "Unheard" not in note


@pytest.mark.parametrize("caller", [STACKS[0], STACKS[2]], ids=["livekit", "vapi"], indirect=True)
@pytest.mark.parametrize("left", ["We have soup", "We have soup...", "We have soup —", None])
async def test_after_a_barge_in_only_what_was_spoken_is_known(caller: Caller, left: str | None) -> None:
    """R2: the answer was complete before the caller cut in; None: not a word of it was spoken."""
    await caller.speak("Hello.")
    caller.world.upstream.queue(say("We have soup and a secret menu with oysters."))
    await caller.generate(user("What is there to eat?"))
    caller.heard += [user("What is there to eat?"), *([bot(left)] if left else [])]
    await caller.speak("Stop. I take the soup.")
    sent = lines(caller.world.upstream.last)
    assert [text for role, text in sent if role == "assistant"] == ["Ok.", *([left] if left else [])]
    await caller.speak("Goodbye.")
    note = await caller.later("What did I take, soup, and what was on the secret menu?")
    assert "I take the soup" in note
    assert "oysters" not in note


def words_of(messages: list[Json]) -> list[str]:
    """What was said, in either dialect."""
    spoken = [m["content"] for m in messages if m["role"] != "system"]
    blocks = [[{"text": each}] if isinstance(each, str) else each for each in spoken]
    return [block["text"] for each in blocks for block in each if "text" in block]


async def test_every_question_stands_however_short_the_replies_were_cut(caller: Caller) -> None:
    """An impatient caller: answers are let go half spoken, or are cut to a word or two, and begin all alike."""
    dice = random.Random(0)
    said: list[str] = []
    for number in range(12):
        question = f"Item {number} is {chr(97 + number) * 4}."
        words = [*[f"Well, {name}" for name in ("this", "here")][number % 2].split(), "is item", f"{number}."]
        tokens = [f" {word}" if i else word for i, word in enumerate(words)]
        until = dice.choice([None, 0, 1])  # let go so many words after the first; None: it ended
        if until is None:
            caller.world.upstream.queue(say("".join(tokens), tokens=tokens))
            await caller.generate(user(question))
        else:
            caller.world.upstream.queue(
                say("".join(tokens), tokens=tokens, hold_after={caller.events(until + 2): Gate()})
            )
            await caller.ask_in_vain(question, tokens[until].strip())
        heard = dice.choice(["", words[0], " ".join(words[:2])])
        if until == 0 and heard:
            heard = words[0]
        caller.heard += [user(question), *([bot(heard)] if heard else [])]
        said += [question, heard]
    await caller.speak("Goodbye.")
    assert words_of(caller.world.upstream.last.messages)[:-1] == [text for text in said if text]
    stored = caller.world.query("SELECT input, shown_reply FROM exchanges WHERE active <> 0 ORDER BY seq")
    stored_texts = [m["content"] for input, reply in stored for m in [*json.loads(input), json.loads(reply)]]
    assert stored_texts == [text for text in [*said, "Goodbye.", "Ok."] if text]
    note = await caller.later("Which items are dddd, hhhh and llll?")
    assert all(f"user: Item {number} is" in note for number in (3, 7, 11))


async def test_retries_of_one_request_are_one_turn(caller: Caller) -> None:
    """R3: LiveKit repeats the whole request after a silence of ten seconds."""
    await caller.speak("Hello.")
    for _ in range(3):
        caller.world.upstream.queue(say("never", hold_before_headers=Gate()))
        count = len(caller.world.upstream.requests)
        asking = asyncio.ensure_future(caller.generate(user("My dog is Rex.")))
        await caller.world.upstream.request_gate(count + 1).wait()
        asking.cancel()
        await caller.world.upstream.requests[count].gone.wait()
    await caller.speak("My dog is Rex.")
    await caller.speak("Bye.")
    assert inputs(caller.world).count("My dog is Rex.") == 1
    assert "Rex" in await caller.later("What is my dog called?")


@pytest.mark.parametrize("caller", [each for each in STACKS if "tools" in each.body], indirect=True)
async def test_a_tool_runs_while_the_caller_interrupts(caller: Caller) -> None:
    """R14: the calls stay next to their results, and the placeholder is the client's business."""
    caller.world.upstream.queue(call_tools(Call("get_weather", {"city": "Oslo"}, id="call_1")))
    calls: list[Json] = []
    async for delta in caller.words(user("How is the weather in Oslo?")):
        for piece in delta.tool_calls or ():
            if piece.id:
                calls.append({"id": piece.id, "type": "function", "function": {"name": "", "arguments": ""}})
            calls[-1]["function"]["name"] += piece.function.name or ""
            calls[-1]["function"]["arguments"] += piece.function.arguments or ""
    caller.heard += [
        user("How is the weather in Oslo?"),
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": calls[0]["id"], "content": "IN_PROGRESS"},
    ]
    caller.world.upstream.queue(say("One moment."))
    await caller.speak("And hurry, my name is Ola.")
    caller.heard[3] = {"role": "tool", "tool_call_id": calls[0]["id"], "content": "Rain."}
    caller.world.upstream.queue(say("It rains, Ola."))
    said = await caller.generate()
    assert said == "It rains, Ola."
    sent = [line for line in lines(caller.world.upstream.last) if line[0] != "system"]
    assert [role for role, _ in sent[:3]] == ["user", "assistant", "tool"]
    assert sent[2] == ("tool", "Rain.")


async def test_a_call_streams_word_by_word(caller: Caller) -> None:
    """R6, R10: no word waits for the next, and the usage comes last where it was asked for."""
    gate = Gate()
    caller.world.upstream.queue(say("One two", tokens=["One", " two"], hold_after={caller.events(2): gate}))
    got = []
    async for delta in caller.words(user("Count.")):
        got.append(delta.content)
        if delta.content == "One":
            gate.open()  # had it been held back, this would never come
    assert [each for each in got if each] == ["One", " two"]
