"""Every path on which tokens are known, each with a model of its own: the sums are the upstream's, to the token."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anthropic
import openai
import orjson
import pytest
from letta_client import Letta
from openai.types.responses import ResponseUsage

from gateway.core.memory.baseline_texts import BASELINE_TEXTS
from gateway.settings import ModelSettings, UpstreamSettings
from storage.usage_records import SHOWN_COUNTERS
from tests.agents.batches.batch_world import MODELS, serve_batches
from tests.agents.batches.batch_world import USAGE as ITEM_USAGE
from tests.agents.test_peers import ASK
from tests.doubles.anthropic_upstream import StrictAnthropic, message
from tests.doubles.upstream import Call, Reply, StrictUpstream, call_tools, fail, raw, say
from tests.gateway.responses.socket_client import SocketClient, open_socket
from tests.gateway.sdk import World, agent, are_idle, remember
from tests.meaning import vector_of
from tests.patience import PATIENCE_S, becomes

TOKEN = "the-owner"
OWNER = {"x-mnemogate-admin": TOKEN}
NOTE = {"label": "human", "new_string": "Has a cat."}


class Used(NamedTuple):
    """What the upstream has counted for some calls."""

    calls: int
    input: int
    output: int
    cached: int = 0
    written: int = 0
    reasoning: int = 0


class Paths:
    """A gateway before three upstreams: OpenAI's, one without responses, and Claude's."""

    def __init__(self, world: World, claude: StrictAnthropic) -> None:
        self.world, self.claude, self.sdk = world, claude, world.sdk

    def queue(self, *replies: Reply) -> None:
        self.world.upstream.queue(*replies)


def chat_usage(prompt: int, completion: int, cached: int = 0, reasoning: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


USAGE = chat_usage(40, 3)


def chats(paths: Paths, model: str) -> Used:
    """Memory on and off, whole and streamed, with and without the usage asked for."""
    for n, memory in enumerate(("on", "off")):
        for stream in (False, True):
            paths.queue(say("Hello.", usage=chat_usage(40 + n, 3, 16, 1)))
            paths.world.chat(user="alice", headers={"x-mnemogate-memory": memory}).say(
                "Hi", model=model, stream=stream
            )
    return Used(4, 2 * 40 + 2 * 41, 12, 64, reasoning=4)


def tool_rounds(paths: Paths, model: str) -> Used:
    """Hidden rounds of a profile."""
    paths.queue(
        call_tools(Call("memory_insert", NOTE), usage=chat_usage(50, 5)),
        say("Noted.", usage=chat_usage(60, 2, 48)),
    )
    paths.world.chat(user="alice", headers={"x-mnemogate-agent": "helper"}).say("I have a cat.", model=model)
    return Used(2, 110, 7, 48)


def reported(usages: Sequence[ResponseUsage | None]) -> Used:
    """Returns what responses have used, each of which has reported it."""
    counted = [each for each in usages if each is not None]
    assert len(counted) == len(usages)
    cached = sum(each.input_tokens_details.cached_tokens for each in counted)
    reasoning = sum(each.output_tokens_details.reasoning_tokens for each in counted)
    tokens = sum(each.input_tokens for each in counted), sum(each.output_tokens for each in counted)
    return Used(len(counted), *tokens, cached, reasoning=reasoning)


def responses_passed_on(paths: Paths, model: str) -> Used:
    """Responses that the upstream makes, whole and streamed, with memory and without."""
    found = []
    for user in ("alice", openai.omit):
        found.append(paths.sdk.responses.create(model=model, input="Hi", user=user).usage)
        stream = paths.sdk.responses.create(model=model, input="Hi", stream=True, user=user)
        found.append([*stream][-1].response.usage)  # type: ignore[union-attr]
    return reported(found)


def responses_by_chat(paths: Paths, model: str) -> Used:
    """Responses by way of chat completions, and over a socket."""
    paths.queue(*(say("Hello.", usage=chat_usage(30, 4, 8, 2)) for _ in range(3)))
    paths.sdk.responses.create(model=model, input="Hi", user="alice")
    assert [*paths.sdk.responses.create(model=model, input="Hi", user="alice", stream=True)]
    with open_socket(paths.world.gateway) as socket:
        assert SocketClient(socket).ask(model=model, input="Hi")["status"] == "completed"
    return Used(3, 90, 12, 24, reasoning=6)


def responses_passed_on_in_background(paths: Paths, model: str) -> Used:
    """Responses that the upstream makes while nobody waits; what each has used is counted once."""
    found = []
    for user in ("alice", openai.omit):
        made = paths.sdk.responses.create(model=model, input="Hi", user=user, background=True)
        becomes(lambda id=made.id: paths.sdk.responses.retrieve(id).status == "completed")
        found.append(paths.sdk.responses.retrieve(made.id).usage)
    return reported(found)


def responses_in_background(paths: Paths, model: str) -> Used:
    """Responses that are made while nobody waits."""
    paths.queue(*(say("Hello.", usage=chat_usage(35, 4, 8)) for _ in range(2)))
    for _ in range(2):
        made = paths.sdk.responses.create(model=model, input="Hi", user="alice", background=True)
        becomes(lambda id=made.id: paths.sdk.responses.retrieve(id).status == "completed")
    return Used(2, 70, 8, 16)


def messages_native(paths: Paths, model: str) -> Used:
    """The Messages API before Claude: what was read from the cache and written to it is input, too."""
    usage = {
        "input_tokens": 20,
        "cache_creation_input_tokens": 300,
        "cache_read_input_tokens": 1000,
        "output_tokens": 7,
    }
    paths.claude.queue(*(message(text="Hello.", usage=usage) for _ in range(4)))
    ask_messages(paths, model)
    return Used(4, 4 * 1320, 28, 4000, 1200)


def messages_translated(paths: Paths, model: str) -> Used:
    """The Messages API before another model."""
    paths.queue(*(say("Hello.", usage=chat_usage(25, 6, 5)) for _ in range(4)))
    ask_messages(paths, model)
    return Used(4, 100, 24, 20)


def ask_messages(paths: Paths, model: str) -> None:
    with anthropic.Anthropic(
        base_url=paths.world.gateway.url, api_key="sk", max_retries=0, timeout=PATIENCE_S
    ) as claude:
        fields: Any = {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]}
        for user in ("alice", ""):
            headers = {"x-mnemogate-user": user} if user else {}
            assert claude.messages.create(**fields, extra_headers=headers).content
            with claude.messages.stream(**fields, extra_headers=headers) as stream:
                assert stream.get_final_text() == "Hello."


def runs_of_agents(paths: Paths, model: str) -> Used:
    """Steps of an agent's run, with a client that waits and without one."""
    with Letta(base_url=paths.world.gateway.url, api_key="sk", max_retries=0, timeout=PATIENCE_S) as letta:
        blocks: Any = [{"label": "human", "value": ""}]
        agent = letta.agents.create(model=f"openai/{model}", memory_blocks=blocks, tools=["memory_insert"])
        for background in (False, True):
            paths.queue(
                call_tools(Call("memory_insert", NOTE, "c1"), usage=chat_usage(70, 8)),
                say("Noted.", usage=chat_usage(80, 3, 64)),
            )
            if background:
                run = letta.agents.messages.create_async(agent.id, input="Hi")
                becomes(lambda id=run.id: letta.runs.retrieve(id).status == "completed")
            else:
                letta.agents.messages.create(agent.id, input="Hi")
    return Used(4, 300, 22, 128)


def agents_that_ask(paths: Paths, model: str) -> Used:
    """The run of an agent that another one asks."""
    with Letta(base_url=paths.world.gateway.url, api_key="sk", max_retries=0, timeout=PATIENCE_S) as letta:
        agent = letta.agents.create(name="bob", model=f"openai/{model}", memory_blocks=[])
        asking = letta.agents.create(
            name="ann", model=f"openai/{model}", memory_blocks=[], tools=[ASK], include_base_tools=False
        )
        paths.queue(
            call_tools(
                Call(ASK, {"message": "How are you?", "other_agent_id": agent.id}), usage=chat_usage(61, 9)
            ),
            say("I am well.", usage=chat_usage(62, 4)),
            say("Bob is well.", usage=chat_usage(63, 5)),
        )
        letta.agents.messages.create(asking.id, input="Hi")
    return Used(3, 61 + 62 + 63, 9 + 4 + 5)


def other_endpoints(paths: Paths, model: str) -> Used:
    """Embeddings, completions, rerank, images and transcriptions, in the words in which each reports it."""

    def reply(usage: Any, padding: int = 0) -> Reply:
        body = {
            "object": "list",
            "data": [{"b64_json": "A" * padding}],
            "results": [],
            "text": "Hi.",
            "usage": usage,
        }
        return raw(json.dumps(body).encode(), content_type="application/json")

    sdk = paths.sdk
    paths.queue(reply(chat_usage(11, 0)))
    sdk.embeddings.create(model=model, input="a")
    paths.queue(reply(chat_usage(12, 5)))
    sdk.completions.create(model=model, prompt="Hi")
    paths.queue(reply({"prompt_tokens": 13, "total_tokens": 13}))
    asked = json.dumps({"model": model, "query": "a", "documents": ["b"]}).encode()
    kind = {"content-type": "application/json"}
    assert paths.world.gateway.ask("POST", "/v1/rerank", asked, kind).status == 200
    paths.queue(reply({"input_tokens": 14, "output_tokens": 4160, "total_tokens": 4174}, padding=200_000))
    sdk.images.generate(model=model, prompt="A cat")
    paths.queue(reply({"type": "tokens", "input_tokens": 15, "output_tokens": 3, "total_tokens": 18}))
    sdk.audio.transcriptions.create(model=model, file=("a.wav", b"RIFF", "audio/wav"))
    return Used(5, 11 + 12 + 13 + 14 + 15, 5 + 4160 + 3)


def streams_of_other_endpoints(paths: Paths, model: str) -> Used:
    """Completions, an image and a transcription that come piece by piece: the last event has the usage."""

    def events(*sent: Any) -> Reply:
        body = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in sent)
        return raw(body + b"data: [DONE]\n\n", content_type="text/event-stream")

    sdk = paths.sdk
    choice = {"index": 0, "text": "Hi.", "finish_reason": "stop"}
    whole = {"object": "text_completion", "choices": [choice], "usage": None}
    paths.queue(events(whole, {**whole, "choices": [], "usage": chat_usage(21, 6)}))
    options: Any = {"include_usage": True}
    assert [*sdk.completions.create(model=model, prompt="Hi", stream=True, stream_options=options)]
    paths.queue(events(whole, {**whole, "choices": [], "usage": chat_usage(24, 5)}))
    shown = [*sdk.completions.create(model=model, prompt="Hi", stream=True)]
    assert [(each.choices[0].text, each.usage) for each in shown] == [("Hi.", None)]
    image = {"input_tokens": 22, "output_tokens": 300, "total_tokens": 322}
    done = {"type": "image_generation.completed", "b64_json": "A" * 200_000, "usage": image}
    paths.queue(events({"type": "image_generation.partial_image", "b64_json": "A" * 9000}, done))
    assert [*sdk.images.generate(model=model, prompt="A cat", stream=True)]
    text = {"type": "tokens", "input_tokens": 23, "output_tokens": 4, "total_tokens": 27}
    done = {"type": "transcript.text.done", "text": "Hi.", "usage": text}
    paths.queue(events({"type": "transcript.text.delta", "delta": "Hi."}, done))
    sound = ("a.wav", b"RIFF", "audio/wav")
    assert [*sdk.audio.transcriptions.create(model=model, file=sound, stream=True)]
    return Used(4, 21 + 24 + 22 + 23, 6 + 5 + 300 + 4)


def compactions(paths: Paths, model: str) -> Used:
    """A summary that a client of the Responses API asks for."""
    paths.queue(say("They spoke of a cat.", usage=chat_usage(81, 7)))
    paths.sdk.responses.compact(model=model, input="My cat is called Miso.")
    return Used(1, 81, 7)


def compactions_of_agents(paths: Paths, model: str) -> Used:
    """A summary that a client of an agent asks for."""
    with Letta(base_url=paths.world.gateway.url, api_key="sk", max_retries=0, timeout=PATIENCE_S) as letta:
        agent = letta.agents.create(model=f"openai/{model}", memory_blocks=[], include_base_tools=False)
        for text in ("My cat is called Miso.", "My dog is called Rex.", "What are they called?"):
            paths.queue(say("Noted.", usage=chat_usage(82, 3)))
            letta.agents.messages.create(agent.id, input=text)
        paths.queue(say("They spoke of a cat and a dog.", usage=chat_usage(83, 9)))
        letta.agents.messages.compact(agent.id)
    return Used(4, 3 * 82 + 83, 3 * 3 + 9)


# The names are those of the models, and say by which upstream they are answered.
ROWS: dict[str, tuple[str, Callable[[Paths, str], Used]]] = {
    "chats": ("up", chats),
    "tool-rounds": ("up", tool_rounds),
    "responses-passed-on": ("up", responses_passed_on),
    "responses-passed-on-in-background": ("up", responses_passed_on_in_background),
    "responses-by-chat": ("plain", responses_by_chat),
    "responses-in-background": ("plain", responses_in_background),
    "messages-native": ("claude", messages_native),
    "messages-translated": ("up", messages_translated),
    "runs": ("up", runs_of_agents),
    "agents-that-ask": ("up", agents_that_ask),
    "other-endpoints": ("up", other_endpoints),
    "streams-of-other-endpoints": ("up", streams_of_other_endpoints),
    "compactions": ("plain", compactions),
    "compactions-of-agents": ("up", compactions_of_agents),
}


@pytest.fixture
def paths(upstream: StrictUpstream, tmp_path: Path) -> Iterator[Paths]:
    takes: Any = {"responses": "stored", "stream_usage": True}
    plain: Any = {"responses": False, "stream_usage": True}
    with StrictAnthropic(models=("messages-native",)) as claude:
        upstreams = (
            UpstreamSettings("up", base_url=upstream.base_url, takes=takes),
            UpstreamSettings("plain", base_url=upstream.base_url, takes=plain),
            UpstreamSettings("claude", "anthropic", claude.base_url, api_key="sk"),
        )
        models = tuple(ModelSettings(name, name, by) for name, (by, _) in ROWS.items())
        given: dict[str, Any] = {"upstreams": upstreams, "models": models, "admin_token": TOKEN}
        with remember(upstream, tmp_path, agent(model="tool-rounds"), **given) as world:
            yield Paths(world, claude)


def usage_by_model(world: World) -> list[dict[str, Any]]:
    world.settle()
    asked = "/v1/manage/usage?by=model,user,key"
    rows: list[dict[str, Any]] = world.gateway.ask("GET", asked, headers=OWNER).json["data"]
    return rows


@pytest.mark.agents
def test_the_sums_are_the_upstreams_own(paths: Paths) -> None:
    counted = {name: ask(paths, name) for name, (_, ask) in ROWS.items()}
    paths.world.settle()
    reply = paths.world.gateway.ask("GET", "/v1/manage/usage?by=model", headers=OWNER)
    found = {
        row["model"]: Used(
            *(row[name] for name in ("calls", "input_tokens", "output_tokens", "cached_tokens")),
            row["cache_write_tokens"],
            row["reasoning_tokens"],
        )
        for row in reply.json["data"]
        if row["model"]
    }
    assert found == counted
    assert all(
        row["estimated_input_tokens"] == row["estimated_output_tokens"] == 0 for row in reply.json["data"]
    )


def test_another_model_that_answers_has_the_tokens(upstream: StrictUpstream, tmp_path: Path) -> None:
    models = (ModelSettings("m", "m", "up", fallbacks=("n",)), ModelSettings("n", "n", "up"))
    with remember(upstream, tmp_path, models=models, admin_token=TOKEN) as world:
        for memory in ("on", "off"):
            upstream.queue(fail(503), say("Hello.", usage=USAGE))
            world.chat(user="alice", headers={"x-mnemogate-memory": memory}).say("Hi", model="m")
        (row,) = usage_by_model(world)
    names = (
        "model",
        "requests",
        "errors",
        "calls",
        "input_tokens",
        "output_tokens",
        "estimated_input_tokens",
    )
    assert [row[name] for name in names] == ["n", 2, 0, 2, 80, 6, 0]


@pytest.mark.parametrize("cut", [None, 3])
def test_tokens_that_no_upstream_reports_are_estimated(
    upstream: StrictUpstream, tmp_path: Path, cut: int | None
) -> None:
    """A stream of an upstream that reports none, and one that breaks off before it does."""
    takes: Any = {"stream_usage": cut is not None}
    upstreams = (UpstreamSettings("up", base_url=upstream.base_url, takes=takes),)
    with remember(upstream, tmp_path, upstreams=upstreams, admin_token=TOKEN) as world:
        upstream.queue(say("abcdefghijkl", tokens=["abcd", "efgh", "ijkl"], cut_after=cut))
        reply = world.post(
            [{"role": "user", "content": "Hi"}], {"x-mnemogate-memory": "off"}, user="alice", stream=True
        )
        (row,) = usage_by_model(world)
    assert ("ijkl" in reply.body.decode()) == (cut is None)
    assert (row["calls"], row["requests"], row["errors"]) == (1, 1, 0 if cut is None else 1)
    assert row["input_tokens"] == row["estimated_input_tokens"] == len(upstream.last.body) // 4
    assert row["output_tokens"] == row["estimated_output_tokens"] == (3 if cut is None else 2)


# -- what is asked for a memory, and not for a request

TORTOISE = "My tortoise likes dandelions."
QUESTION = "Which nourishment suits reptiles?"
BACKGROUND = ("background_input_tokens", "background_output_tokens")


@pytest.fixture
def learner(upstream: StrictUpstream, tmp_path: Path) -> Iterator[Learner]:
    """A gateway that learns by a model and searches by an embedder, both upstreams'."""
    with StrictUpstream(key="sk-emb") as other:
        other.endpoints.vector_of = vector_of
        upstreams = (
            UpstreamSettings("up", base_url=upstream.base_url, models=("m", "small")),
            UpstreamSettings("emb", base_url=other.base_url, api_key="sk-emb"),
        )
        memory = {"background_model": "small", "embedder": "emb/vec", "embedder_wait_ms": 10_000}
        with remember(
            upstream, tmp_path, agent(), memory=memory, upstreams=upstreams, admin_token=TOKEN
        ) as world:
            found = Learner(world)
            found.embedder = other
            yield found


class Learner:
    """A world with a background model and an embedder."""

    embedder: StrictUpstream

    def __init__(self, world: World) -> None:
        self.world = world

    def rest(self) -> None:
        """Lets time go by until all that was said is learned and has vectors."""
        self.world.settle()
        self.world.clock.sleep(500)
        background = self.world.gateway.app.services.background

        async def step() -> None:
            assert background.learning is not None
            assert background.embedding is not None
            await background.learning.schedule.perform_due()
            await background.embedding.schedule.perform_due()
            self.world.store.jobs.wake()

        self.world.gateway.call(step())
        self.world.wait_for_jobs(are_idle)


def test_work_for_a_memory_is_its_users_background(learner: Learner) -> None:
    """The background model, the embedder and the vectors of questions: key 0, and in no other column."""
    world, learned = learner.world, chat_usage(90, 6)
    world.upstream.script = lambda request: say(
        "Ok.", usage=learned if request.json["model"] == "small" else USAGE
    )
    for text in (TORTOISE, *(f"Entry {n}: item{n} of list{n}." for n in range(5))):
        world.chat(user="alice").say(text)
    learner.rest()
    world.chat(user="alice").say(QUESTION)
    assert TORTOISE in world.upstream.last.messages[-1]["content"]

    def background() -> list[dict[str, Any]]:
        return [row for row in usage_by_model(world) if any(row[name] for name in BACKGROUND)]

    def counted() -> dict[tuple[str, str], tuple[int, ...]]:
        return {(row["model"], row["user"]): tuple(row[name] for name in BACKGROUND) for row in background()}

    def reported() -> dict[tuple[str, str], tuple[int, ...]]:
        embedded = [orjson.loads(request.body)["input"] for request in learner.embedder.requests]
        assert [QUESTION] in embedded
        learnings = sum(request.json["model"] == "small" for request in world.upstream.requests)
        return {
            ("small", "alice"): (90 * learnings, 6 * learnings),
            ("vec", "alice"): (sum(map(len, embedded)) - len(BASELINE_TEXTS), 0),
            ("vec", ""): (len(BASELINE_TEXTS), 0),  # with which each vector is compared, of no memory
        }

    becomes(lambda: counted() == reported())  # what was said last is still being embedded
    found = background()
    for row in found:
        assert row["key"] == 0
        assert not any(row[name] for name in SHOWN_COUNTERS if name not in BACKGROUND)
    (own,) = [row for row in usage_by_model(world) if row["model"] == "m"]
    assert (own["calls"], own["requests"], own["errors"]) == (7, 7, 0)
    assert (own["input_tokens"], own["output_tokens"]) == (7 * 40, 7 * 3)


def test_a_vector_that_fails_or_is_late_is_no_error_of_its_request(learner: Learner) -> None:
    world = learner.world
    world.chat(user="alice").say(TORTOISE)
    learner.rest()
    learner.embedder.queue(fail(500))
    world.chat(user="alice").say(QUESTION)
    (own,) = [row for row in usage_by_model(world) if row["model"] == "m"]
    assert (own["calls"], own["requests"], own["errors"]) == (2, 2, 0)


@pytest.mark.agents
@pytest.mark.parametrize("model", MODELS)
def test_batches_of_agents_count_their_items(model: str, tmp_path: Path) -> None:
    with serve_batches(tmp_path, admin_token=TOKEN) as world:
        world.upstream.script = lambda request: say("Hello.", usage=ITEM_USAGE)
        world.wait_for_end(world.create_batch(world.create_agents(3, model), "Who are you?"))
        rows = usage_by_model(world.world)
        (row,) = [each for each in rows if each["batch_input_tokens"]]
        assert (row["batch_input_tokens"], row["batch_output_tokens"]) == (
            3 * ITEM_USAGE["prompt_tokens"],
            3 * ITEM_USAGE["completion_tokens"],
        )
        assert sum(each["input_tokens"] + each["output_tokens"] for each in rows) == 0


@pytest.mark.agents
def test_a_reply_of_a_batch_that_is_not_stored_counts(tmp_path: Path) -> None:
    with serve_batches(tmp_path, held=True, admin_token=TOKEN) as world:
        agents, letta = world.create_agents(2), world.letta
        letta.agents.messages.create(agents[0], input="My pin is 1234.", override_model="up/m")
        batch = world.create_batch(agents, "Who are you?")
        world.wait_for(batch, lambda _: len(world.openai.batches) == 1)
        message = next(
            m for m in letta.agents.messages.list(agents[0]).items if m.message_type == "user_message"
        )
        world.ask("DELETE", f"/v1/agents/{agents[0]}/messages/{message.id}")
        world.openai.finish()
        assert world.wait_for_end(batch)["counts"]["failed"] == 1
        (row,) = [each for each in usage_by_model(world.world) if each["batch_input_tokens"]]
        assert (row["batch_input_tokens"], row["batch_output_tokens"]) == (
            2 * ITEM_USAGE["prompt_tokens"],
            2 * ITEM_USAGE["completion_tokens"],
        )


def test_only_the_requests_of_files_and_providers_batches_count(paths: Paths) -> None:
    sdk = paths.sdk
    file = sdk.files.create(file=("a.jsonl", b"{}"), purpose="batch")
    sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    sdk.fine_tuning.jobs.list()
    rows = usage_by_model(paths.world)
    assert sum(row["requests"] for row in rows) == 3
    assert sum(row["calls"] for row in rows) == 3
    assert not any(row[name] for row in rows for name in SHOWN_COUNTERS if name.endswith("_tokens"))
