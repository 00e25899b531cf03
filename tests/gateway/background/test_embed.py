"""Recall by meaning through the real gateway, with an embedder that has a strict `/embeddings`."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from gateway.core.memory.baseline_texts import BASELINE_TEXTS
from gateway.core.prompt.note_query import QUERY_CHARS
from gateway.core.upstream.policy import Policy
from gateway.errors import BadRequest, SettingsError
from gateway.offline_work import perform_operation
from gateway.provider_factory import make_embedder
from gateway.run.admin.forgetting.forget_operations import ForgetOperations
from gateway.run.admin.memory.show import ShowOperation
from gateway.run.admin.transfer.transfer_operations import TransferOperations
from gateway.run.background import embed
from gateway.run.background.embed import (
    BATCH_TEXTS,
    MAX_FAILURES,
    TEXT_CHARS,
    EmbeddingService,
)
from gateway.run.background.question_embedder import QuestionEmbedder
from gateway.run.memory.query_vectors import QueryVectors
from gateway.run.memory.recall import STREAM_TIME_DIVISOR
from gateway.run.memory.trial import TrialRunner
from gateway.settings import DatabaseSettings, MemorySettings, Settings, UpstreamSettings
from storage.errors import StoreFailed
from storage.forget_commands import ForgetTarget
from storage.job_records import JobState
from storage.records import Scope, Vector
from storage.search import vector_blobs
from storage.sql.recall import Recall
from tests.doubles.openai_rules import Refusal
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, call_tools, fail, raw, say
from tests.gateway.background.learner import Learner
from tests.gateway.sdk import World, agent, remember
from tests.meaning import unit_bytes, vector_of
from tests.patience import PATIENCE_S, becomes
from tests.stored import save_passage, url_of

IDLE_S = 200.0
TORTOISE = "My tortoise likes dandelions."
# More facts than a memory section has room for.
FOODS = (
    "figs",
    "eels",
    "plums",
    "kale",
    "rice",
    "nuts",
    "beans",
    "peas",
    "corn",
    "leeks",
    "mint",
    "beets",
    "oats",
)
# The failures in a row after which questions are not embedded for a while.
MAX_QUESTION_FAILURES = Policy().breaker_failures
QUESTION = "Which nourishment suits reptiles?"  # no message has a word of it
JSON = {"content-type": "application/json"}


class EmbeddingWorld:
    """A gateway with an embedder."""

    def __init__(self, world: World, embedding_server: StrictUpstream) -> None:
        self.world = world
        self.embedder = embedding_server
        # The monotonic clock of the embedding services, in seconds.
        self.tick = 0.0
        app = world.gateway.app
        background = app.services.background
        assert background.embedding is not None
        assert background.question_embedder is not None
        self.embedding: EmbeddingService = background.embedding
        self.questions: QuestionEmbedder = background.question_embedder
        self.embedding._clock = self.questions._clock = lambda: self.tick
        becomes(lambda: self.embedding.embedder.baseline is not None)

    def pass_idle_time(self, seconds: float = IDLE_S, *, ends: bool = True) -> None:
        """Moves the clock, and waits for the jobs that are due.

        ends: whether the jobs have to end; False: they may also have failed once.
        """
        self.tick += seconds
        self.make_jobs_due(seconds)
        busy = (JobState.PENDING, JobState.RUNNING, *([JobState.RETRYING] if ends else []))
        self.wait_for_jobs(lambda counts: not any(counts[state] for state in busy))

    def make_jobs_due(self, seconds: float = IDLE_S) -> None:
        """Moves the world's clock, and not the monotonic clock, by which the pauses after failures are measured."""
        self.world.settle()
        self.world.clock.sleep(seconds)

        async def step() -> None:
            await self.embedding.schedule.perform_due()
            self.world.store.jobs.wake()

        self.world.gateway.call(step())

    def wait_for_jobs(self, holds: Callable[[Mapping[JobState, int]], bool]) -> None:
        self.world.wait_for_jobs(holds)
        self.world.settle()

    def mention(self, *texts: str, others: int = 6, user: str = "alice") -> None:
        """Sends texts in a conversation, and then `others` more texts that are about other things."""
        chat = self.world.chat(user=user)
        for text in (*texts, *(f"Entry {i}: item{i} of list{i}." for i in range(others))):
            chat.say(text)

    def ask_in_new_chat(self, question: str = QUESTION, user: str = "alice", **options: Any) -> str:
        """Asks in a new conversation. Returns the question with its note, as it went upstream."""
        self.world.chat(user=user).say(question, **options)
        content: str = self.world.upstream.last.messages[-1]["content"]
        return content

    def has_vector(self, wait_ms: float = 10_000.0) -> bool:
        """Returns whether `QUESTION` gets a vector within `wait_ms` milliseconds."""
        asking = self.questions.embed_query([self.get_agent_row()], QUESTION, wait_ms)
        return self.world.gateway.call(asking) is not None

    @property
    def embedded_texts(self) -> list[list[str]]:
        """The texts of each call of the embedder, without the call with `BASELINE_TEXTS`."""
        calls = [orjson.loads(request.body)["input"] for request in self.embedder.requests]
        return [texts for texts in calls if texts != list(BASELINE_TEXTS)]

    def count_vectors(self) -> int:
        """Returns the number of stored vectors, one for each chunk."""
        return int(self.world.query("SELECT count(*) FROM vectors")[0])

    def list_on_disk(self, *texts: str) -> list[str]:
        """Returns the texts whose vectors are in the bytes of the database or its log."""
        data = self.world.data()
        return [text for text in texts if unit_bytes(text)[:24] in data or unit_bytes(text)[-24:] in data]

    def get_agent_row(self, user: str = "alice") -> int:
        rows = self.world.query("SELECT id FROM agents WHERE subject = ?", f"user:{user}")
        return int(rows[0])


@pytest.fixture
def embedding_server() -> Iterator[StrictUpstream]:
    """The upstream of the embedder. The chats have another one."""
    with StrictUpstream(key="sk-emb") as strict:
        strict.endpoints.vector_of = vector_of
        yield strict


def make_upstreams(
    upstream: StrictUpstream, embedding_server: StrictUpstream
) -> tuple[UpstreamSettings, ...]:
    return (
        UpstreamSettings("up", base_url=upstream.base_url, models=("m",)),
        UpstreamSettings("emb", base_url=embedding_server.base_url, api_key="sk-emb"),
    )


@contextmanager
def serve_embedder(
    upstream: StrictUpstream, embedding_server: StrictUpstream, tmp_path: Path, **memory: Any
) -> Iterator[EmbeddingWorld]:
    memory = {"embedder": "emb/vec", "embedder_wait_ms": 10_000, **memory}
    with remember(
        upstream, tmp_path, agent(), memory=memory, upstreams=make_upstreams(upstream, embedding_server)
    ) as world:
        yield EmbeddingWorld(world, embedding_server)


@pytest.fixture
def world(
    upstream: StrictUpstream, embedding_server: StrictUpstream, tmp_path: Path
) -> Iterator[EmbeddingWorld]:
    with serve_embedder(upstream, embedding_server, tmp_path) as running:
        yield running


# -- searches


@pytest.mark.parametrize("others", [2, 60])
def test_a_message_without_a_word_of_the_question_is_recalled(world: EmbeddingWorld, others: int) -> None:
    world.mention(TORTOISE, others=others)
    world.pass_idle_time()
    assert TORTOISE in world.ask_in_new_chat()
    assert "Entry" not in world.ask_in_new_chat()
    # Small talk is no question.
    assert world.ask_in_new_chat("Thank you!") == "Thank you!"
    assert TORTOISE not in world.ask_in_new_chat(user="bob")


def test_without_an_embedder_words_decide(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path, agent()) as world:
        chat = world.chat(user="alice")
        for text in (TORTOISE, *(f"Entry {i}: item{i} of list{i}." for i in range(6))):
            chat.say(text)
        world.pass_time(1000)
        world.chat(user="alice").say(QUESTION)
        assert world.upstream.last.messages[-1]["content"] == QUESTION
        assert world.query("SELECT count(*) FROM vectors") == [0]
        assert world.query("SELECT count(*) FROM embedded") == [0]


def test_the_search_tool_and_the_operators_search_use_vectors(world: EmbeddingWorld) -> None:
    chat = world.world.chat(user="alice", model="agent/helper")
    for text in (TORTOISE, *(f"Entry {i}: item{i} of list{i}." for i in range(6))):
        chat.say(text)
    world.pass_idle_time()
    search = call_tools(Call("conversation_search", {"query": QUESTION, "limit": 1}), text=None)
    world.world.upstream.queue(search, say("Dandelions."))
    world.world.chat(user="alice", model="agent/helper").say("Look it up.")
    assert TORTOISE in str(world.world.upstream.last.messages[-1]["content"])
    embed_query = world.world.gateway.app.services.background.embed_query
    trial = TrialRunner(world.world.store, 1000, world.world.clock, embed_query)
    operation = ShowOperation(world.world.store, trial)
    arguments = {"project": "default", "user": "alice", "profile": "helper", "query": QUESTION}

    async def show() -> Any:
        return await operation.show(arguments)

    assert TORTOISE in world.world.gateway.call(show())["text"].partition("Would be recalled")[2]


def test_a_question_as_long_as_a_book_is_cut(world: EmbeddingWorld) -> None:
    """An embedder would refuse the whole question, and then get no question for a while."""
    world.mention(TORTOISE)
    world.pass_idle_time()
    asking = world.questions.embed_query([world.get_agent_row()], "word " * 100_000, 1000.0)
    assert world.world.gateway.call(asking) is not None
    assert max(map(len, world.embedded_texts[-1])) <= QUERY_CHARS


def test_a_question_for_several_memories_is_embedded_once_if_one_of_them_has_vectors(
    world: EmbeddingWorld,
) -> None:
    world.mention(TORTOISE)
    world.pass_idle_time()
    world.world.chat(user="bob").say("Hi.")
    world.world.settle()
    alice, bob = world.get_agent_row(), world.get_agent_row("bob")
    calls = len(world.embedded_texts)
    for agents, is_embedded in (([bob], False), ([bob, alice], True)):
        asking = world.questions.embed_query(agents, QUESTION, 10_000.0)
        assert (world.world.gateway.call(asking) is not None) is is_embedded
    assert world.embedded_texts[calls:] == [[QUESTION]]


@pytest.fixture
def offline_settings(upstream: StrictUpstream, embedding_server: StrictUpstream, tmp_path: Path) -> Settings:
    """The settings of a gateway that has stopped: alice has mentioned the tortoise, and her memory has vectors."""
    with serve_embedder(upstream, embedding_server, tmp_path) as world:
        world.mention(TORTOISE)
        world.pass_idle_time()
        settings = world.world.gateway.app.services.settings
    file = tmp_path / "memory.db"
    return replace(settings, database=DatabaseSettings(str(file), url_of(file)))


def test_the_operators_search_uses_vectors_without_a_gateway(offline_settings: Settings) -> None:
    for question, is_recalled in ((QUESTION, True), ("What is a quasar?", False)):
        arguments = {"project": "default", "user": "alice", "query": question}
        before = count_background_tokens(offline_settings)
        shown = asyncio.run(perform_operation(offline_settings, "memory-show", arguments))
        assert (TORTOISE in shown["text"].partition("Would be recalled")[2]) is is_recalled
        assert count_background_tokens(offline_settings) > before


def test_an_operation_that_fails_without_a_gateway_counts_the_tokens_of_its_embedder(
    offline_settings: Settings,
) -> None:
    before = count_background_tokens(offline_settings)
    arguments = {"project": "default", "user": "alice", "query": QUESTION, "why": "often"}
    with pytest.raises(BadRequest):
        asyncio.run(perform_operation(offline_settings, "memory-show", arguments))
    assert count_background_tokens(offline_settings) > before


@pytest.mark.sqlite
def test_an_operation_answers_without_a_gateway_if_its_usage_cannot_be_written(
    offline_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(offline_settings.database.path)) as connection:
        connection.execute(
            "CREATE TRIGGER usage_is_full BEFORE INSERT ON usage BEGIN SELECT RAISE(ABORT, 'no more usage'); END"
        )
    arguments = {"project": "default", "user": "alice", "query": QUESTION}
    shown = asyncio.run(perform_operation(offline_settings, "memory-show", arguments))
    assert TORTOISE in shown["text"].partition("Would be recalled")[2]
    assert "Usage was not written" in caplog.text


def count_background_tokens(settings: Settings) -> int:
    """Returns the background tokens of all days, projects and models."""
    usage = asyncio.run(perform_operation(settings, "usage", {}))
    return sum(row["background_input_tokens"] for row in usage["data"])


def test_passages_and_facts_have_vectors_as_messages_do(world: EmbeddingWorld) -> None:
    world.mention()
    world.pass_idle_time()

    id = world.get_agent_row()

    async def save() -> None:
        await save_passage(world.world.store, id, "A tortoise note on dandelions.", at=5.0)
        world.embedding.schedule.enqueue_now([id])

    world.world.gateway.call(save())
    world.pass_idle_time()
    assert "saved note: A tortoise note on dandelions." in world.ask_in_new_chat()


def test_a_fact_that_a_person_has_stated_is_embedded_without_a_turn(world: EmbeddingWorld) -> None:
    world.mention()
    world.pass_idle_time()
    store, id = world.world.store, world.get_agent_row()

    async def state() -> None:
        alice = await store.agents.find_by_id(id)
        assert alice is not None
        await store.facts.remember(alice, TORTOISE, "tortoise", "person", world.world.clock.now)

    world.world.gateway.call(state())
    world.pass_idle_time()
    assert world.embedded_texts[-1] == [TORTOISE]


def test_a_memory_is_embedded_when_it_is_idle_or_has_enough_new_messages(world: EmbeddingWorld) -> None:
    chat = world.world.chat(user="alice")
    chat.say("First.")
    world.world.settle()
    assert world.embedded_texts == []
    for n in range(8):
        chat.say(f"Turn {n}.")
    world.wait_for_jobs(lambda counts: world.embedded_texts != [] and not any(counts.values()))
    assert world.embedded_texts[0][:2] == ["First.", "Ok."]
    chat.say("The last.")
    world.pass_idle_time()
    assert world.embedded_texts[-1][-2:] == ["The last.", "Ok."]


def test_a_long_memory_is_embedded_batch_by_batch(world: EmbeddingWorld) -> None:
    words = "word " * 400
    world.mention(words, others=70)
    world.pass_idle_time()
    sizes = [len(texts) for texts in world.embedded_texts]
    assert sum(sizes) == 142
    assert max(sizes) <= BATCH_TEXTS
    assert max(len(text) for texts in world.embedded_texts for text in texts) <= TEXT_CHARS
    assert world.world.query("SELECT seq FROM embedded") == [142]


def test_the_next_batch_is_enqueued_with_the_end_of_the_one_before(
    world: EmbeddingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a gateway that is killed between the two leaves no message without a vector."""
    world.embedding.schedule.every = 1_000
    world.mention(others=70)
    jobs = world.world.store.jobs
    enqueue = jobs.enqueue

    async def enqueue_once(*args: Any) -> int:
        monkeypatch.setattr(jobs, "enqueue", fail_to_enqueue)
        return await enqueue(*args)

    async def fail_to_enqueue(*args: Any) -> int:
        raise StoreFailed("no disk")

    monkeypatch.setattr(jobs, "enqueue", enqueue_once)
    world.pass_idle_time()
    assert world.world.query("SELECT seq FROM embedded") == [140]


def test_another_embedder_makes_all_vectors_again_at_the_next_start(
    upstream: StrictUpstream, embedding_server: StrictUpstream, tmp_path: Path
) -> None:
    with serve_embedder(upstream, embedding_server, tmp_path) as world:
        world.mention(TORTOISE)
        world.pass_idle_time()
    with serve_embedder(upstream, embedding_server, tmp_path, embedder="emb/better") as world:
        world.pass_idle_time()
        assert set(world.world.query("SELECT model FROM vectors")) == {"emb/better"}
        assert orjson.loads(embedding_server.last.body)["model"] == "better"
        assert TORTOISE in world.ask_in_new_chat()


def test_a_section_without_room_for_all_facts_shows_those_nearest_to_the_first_message(
    upstream: StrictUpstream,
    embedding_server: StrictUpstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared, compare = list[Vector](), vector_blobs.compare

    def count(joined: Any, query: Vector) -> Any:
        compared.append(query)
        return compare(joined, query)

    monkeypatch.setattr(vector_blobs, "compare", count)
    with serve_embedder(upstream, embedding_server, tmp_path, background_model=None) as world:
        learner, wish = Learner(world.world), "I never buy dandelions for my tortoise."
        world.mention(wish, *(f"I never eat {food} for dinner at home." for food in FOODS))
        learner.pass_idle_time()
        assert len(learner.list_facts()) == 1 + len(FOODS)
        world.pass_idle_time()
        count_before = len(world.embedded_texts)
        compared.clear()
        chat = world.world.chat(user="alice")
        chat.say(QUESTION)
        first = world.world.upstream.last.messages[0]["content"]
        # The wish is the oldest fact, and newer ones have no room.
        assert wish.rstrip(".") in first
        assert any(food not in first for food in FOODS)
        # Section and note use one vector of the message, which is compared once.
        assert world.embedded_texts[count_before:] == [[QUESTION]]
        assert len(compared) == 1
        chat.say("And what else?")
        assert world.world.upstream.last.messages[0]["content"] == first
        # A fact that has no vector yet is shown too.
        world.mention("I always feed the cat before work.", others=0)
        learner.pass_idle_time()
        assert "I always feed the cat" in read_new_section(world, QUESTION)


@pytest.mark.parametrize("is_forgotten", [False, True])
def test_the_nearest_fact_is_still_shown_after_another_fact_ends(
    upstream: StrictUpstream, embedding_server: StrictUpstream, tmp_path: Path, is_forgotten: bool
) -> None:
    with serve_embedder(upstream, embedding_server, tmp_path, background_model=None) as world:
        learner, wish = Learner(world.world), "I never buy dandelions for my tortoise"
        world.mention(f"{wish}.", *(f"I never eat {food} for dinner at home." for food in FOODS))
        learner.pass_idle_time()
        world.pass_idle_time()
        chat = world.world.chat(user="alice")
        chat.say(QUESTION)
        section = world.world.upstream.last.messages[0]["content"]
        assert wish in section
        shown = next(food for food in FOODS if f"never eat {food}" in section)
        world.world.clock.now -= 10_000  # the provider's cache holds
        if is_forgotten:
            number = next(fact.seq for fact in learner.list_facts() if shown in fact.text)
            forgetting = ForgetOperations(world.world.store, world.world.clock)
            world.world.gateway.call(
                forgetting.forget({"project": "default", "user": "alice", "fact": number})
            )
        else:
            world.mention(f"I always eat {shown} for dinner at home.", others=0)
            learner.pass_idle_time()
        world.world.clock.now -= 10_000
        chat.say("And what else?")
        first, *_, last = world.world.upstream.last.messages
        changed = (first if is_forgotten else last)["content"]
        assert f"never eat {shown}" not in changed
        assert wish in changed


def test_the_nearest_facts_are_chosen_among_all_standing_facts(
    upstream: StrictUpstream, embedding_server: StrictUpstream, tmp_path: Path
) -> None:
    """They are not only chosen among the newest: a person has dozens after some months."""
    with serve_embedder(upstream, embedding_server, tmp_path, background_model=None) as world:
        learner, wish = Learner(world.world), "I never buy dandelions for my tortoise."
        pairs = [*combinations(FOODS, 2)][:40]
        world.mention(wish, *(f"I never eat {one} with {other} at home." for one, other in pairs), others=0)
        learner.pass_idle_time()
        assert len(learner.list_facts()) == 1 + len(pairs)
        world.pass_idle_time()
        assert wish.rstrip(".") in read_new_section(world, QUESTION)


def test_the_time_in_which_the_section_chooses_facts_counts_for_the_deadline_of_recall(
    upstream: StrictUpstream,
    embedding_server: StrictUpstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a first reply would wait for the vectors of a large memory, and then as long again for the search."""
    limit_ms = 1000 * PATIENCE_S
    options: dict[str, Any] = {"background_model": None, "recall_deadline_ms": limit_ms}
    with serve_embedder(upstream, embedding_server, tmp_path, **options) as world:
        learner = Learner(world.world)
        world.mention(*(f"I never eat {food} for dinner at home." for food in FOODS))
        learner.pass_idle_time()
        world.pass_idle_time()
        late_s, given_ms = 0.0, dict[str, float]()
        clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + late_s)
        for module in ("request_search", "recall", "query_vectors"):
            monkeypatch.setattr(f"gateway.run.memory.{module}.time", clock)
        vector_of, compare, search = QueryVectors.find_vector, Recall.compare, Recall.search

        async def embed_slowly(self: QueryVectors, *args: Any) -> Any:
            nonlocal late_s
            late_s += 0 if self._vectors else PATIENCE_S / 4
            return await vector_of(self, *args)

        async def compare_slowly(self: Recall, *args: Any, **options: Any) -> Any:
            nonlocal late_s
            late_s += PATIENCE_S / 4
            given_ms["compare"] = options["deadline_ms"]
            return await compare(self, *args, **options)

        async def search_and_note(self: Recall, *args: Any, **options: Any) -> Any:
            given_ms["search"] = options["deadline_ms"]
            return await search(self, *args, **options)

        monkeypatch.setattr(QueryVectors, "find_vector", embed_slowly)
        monkeypatch.setattr(Recall, "compare", compare_slowly)
        monkeypatch.setattr(Recall, "search", search_and_note)
        read_new_section(world, QUESTION)
        assert given_ms["compare"] <= limit_ms * (2 / 3 - 1 / 4)
        assert given_ms["search"] <= limit_ms / 2


def read_new_section(world: EmbeddingWorld, text: str) -> str:
    """Begins a conversation with a text, and returns its memory section."""
    world.world.chat(user="alice").say(text)
    section: str = world.world.upstream.last.messages[0]["content"]
    return section


# -- failures


def make_reply(*vectors: Any) -> Reply:
    data = [{"index": i, "embedding": each} for i, each in enumerate(vectors)]
    return Reply(headers=JSON, body=[orjson.dumps({"data": data})])


NOT_A_NUMBER = raw(b'{"data": [{"index": 0, "embedding": [NaN, 1]}]}', content_type="application/json")


@pytest.mark.parametrize(
    "reply",
    [
        fail(500),
        fail(401),
        fail(404),
        Reply(cut_before_headers=True),
        make_reply([1, 2]),
        make_reply(),
        NOT_A_NUMBER,
        make_reply([1], [1, 2], [1], [1, 2]),
    ],
    ids=["500", "401", "404", "cut", "one for four", "none", "NaN", "of two lengths"],
)
def test_an_embedder_that_fails_is_tried_again_and_no_client_notices(
    world: EmbeddingWorld, reply: Reply
) -> None:
    chat = world.world.chat(user="alice")
    assert chat.say(TORTOISE) == "Ok."
    assert chat.say("It is slow.") == "Ok."
    world.embedder.queue(reply, reply)
    world.pass_idle_time(ends=False)
    (job,) = world.world.query("SELECT state || ' ' || error FROM jobs")
    assert job.startswith("retrying the embedder ")
    assert "tortoise" not in job
    world.embedder.forget_replies()
    world.embedder.queue(reply)  # the question gets no vector either
    assert TORTOISE in world.ask_in_new_chat("What does my tortoise like?")
    assert world.count_vectors() == 0
    world.embedder.forget_replies()
    world.pass_idle_time(3600)
    assert world.count_vectors() == 1


def test_an_embedder_that_stays_down_leaves_a_dead_letter_and_the_next_turn_tries_again(
    world: EmbeddingWorld,
) -> None:
    world.world.chat(user="alice").say(TORTOISE)
    world.embedder.queue(*[fail(503)] * 8)
    for n in range(8):
        world.pass_idle_time(3600, ends=False)
        world.wait_for_jobs(
            lambda counts, n=n: len(world.embedded_texts) > n and not counts[JobState.RUNNING]
        )  # type: ignore[misc]
    assert world.world.query("SELECT state FROM jobs") == ["dead"]
    world.tick += 1000
    world.world.chat(user="alice").say("And then?")
    world.pass_idle_time()
    assert world.count_vectors() == 1


def test_after_failures_in_a_row_the_jobs_of_other_memories_wait_without_failing(
    world: EmbeddingWorld,
) -> None:
    world.embedder.queue(*[fail(500)] * MAX_FAILURES)
    for user in ("alice", "bob"):
        world.world.chat(user=user).say(TORTOISE)
    world.pass_idle_time(ends=False)
    world.wait_for_jobs(lambda counts: counts[JobState.RETRYING] == 2 and not counts[JobState.RUNNING])
    for user in ("carol", "dora"):
        world.world.chat(user=user).say(TORTOISE)
    world.make_jobs_due()
    world.wait_for_jobs(lambda counts: counts[JobState.PENDING] == 2 and not counts[JobState.RUNNING])
    assert world.world.query("SELECT attempt FROM jobs ORDER BY id") == [1, 1, 0, 0]
    assert len(world.embedded_texts) == MAX_FAILURES
    world.pass_idle_time(3600)
    assert world.count_vectors() == 4


def test_a_failure_among_many_calls_holds_up_no_other_memory(world: EmbeddingWorld) -> None:
    """If one call in fifty failed and all memories paused for it, the embedder would never catch up."""
    for users in (range(4), range(4, 8)):
        world.embedder.queue(fail(500))
        for n in users:
            world.world.chat(user=f"user{n}").say(TORTOISE)
        world.make_jobs_due()
        world.wait_for_jobs(lambda counts: not (counts[JobState.PENDING] or counts[JobState.RUNNING]))
    assert world.count_vectors() == 7
    assert len(world.embedded_texts) == 4 + 5, "the failed call is made again"


def test_a_busy_embedder_gets_no_call_before_its_retry_time(world: EmbeddingWorld) -> None:
    world.world.chat(user="alice").say(TORTOISE)
    world.embedder.queue(fail(429, retry_after="500"))
    world.pass_idle_time(ends=False)
    ((tries, due),) = world.world.query("SELECT tries, due FROM jobs")
    assert tries == 0
    assert due - world.world.clock.now > 400
    world.pass_idle_time(1000)
    assert world.count_vectors() == 1


def make_vector_or_refuse(text: str) -> list[float]:
    if "forbidden" in text:
        raise Refusal("Your input was rejected by our safety system.", "input")
    return vector_of(text)


def test_a_refused_text_leaves_the_other_texts_their_vectors(world: EmbeddingWorld) -> None:
    world.embedder.endpoints.vector_of = make_vector_or_refuse
    world.mention(TORTOISE, "A forbidden word.")
    world.pass_idle_time()
    assert TORTOISE in world.ask_in_new_chat()
    assert world.world.query("SELECT seq FROM embedded") == [16]
    assert world.list_on_disk("A forbidden word.", TORTOISE) == [TORTOISE]


def test_a_refused_text_in_a_batch_of_its_own_leaves_the_other_texts_their_vectors(
    world: EmbeddingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.embedder.endpoints.vector_of = make_vector_or_refuse
    world.embedding.schedule.every = 1_000  # one job has all texts
    monkeypatch.setattr(embed, "BATCH_TEXTS", 15)
    world.mention(TORTOISE)
    world.world.upstream.queue(say("A forbidden word."))
    world.mention("The sixteenth text is", others=0)
    world.pass_idle_time()
    assert world.world.query("SELECT seq FROM embedded") == [16]
    assert world.embedded_texts.count(["A forbidden word."]) == 1
    assert world.list_on_disk("A forbidden word.", TORTOISE) == [TORTOISE]


def test_refused_texts_at_the_beginning_of_a_later_batch_leave_the_other_texts_their_vectors(
    world: EmbeddingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.embedder.endpoints.vector_of = make_vector_or_refuse
    world.embedding.schedule.every = 1_000  # one job has all texts
    monkeypatch.setattr(embed, "BATCH_TEXTS", 14)
    world.mention(TORTOISE)
    world.world.upstream.queue(say("A forbidden answer."))
    world.mention("A forbidden question.", "Another forbidden question.", "Blue whales sing.", others=0)
    world.pass_idle_time()
    assert world.world.query("SELECT seq FROM embedded") == [20]
    assert world.list_on_disk("A forbidden question.", "Blue whales sing.") == ["Blue whales sing."]


def test_an_embedder_that_refuses_everything_is_not_called_for_each_text(world: EmbeddingWorld) -> None:
    world.embedding.schedule.every = 1_000  # no text is embedded before the refusals
    world.mention(TORTOISE, others=20)
    world.embedder.queue(*[fail(400)] * 50)
    before = len(world.embedder.requests)
    world.pass_idle_time(ends=False)
    assert world.world.query("SELECT state FROM jobs") == ["retrying"]
    assert len(world.embedder.requests) - before == 2  # with the messages, and with other texts


def test_messages_get_their_vectors_after_an_expired_key_is_replaced(world: EmbeddingWorld) -> None:
    """Gemini answers an expired key with a 400, as it answers a text that it refuses."""
    world.mention(TORTOISE, others=0)
    world.embedder.queue(*[fail(400, "API key expired.")] * 8)
    world.pass_idle_time(ends=False)
    assert world.count_vectors() == 0
    world.embedder.forget_replies()
    world.pass_idle_time(3600)
    assert world.list_on_disk(TORTOISE) == [TORTOISE]


def test_the_texts_after_refused_texts_at_the_beginning_of_a_memory_are_embedded(
    world: EmbeddingWorld,
) -> None:
    world.embedder.endpoints.vector_of = make_vector_or_refuse
    world.world.upstream.queue(say("A forbidden answer."))
    world.mention("A forbidden question.", "Another forbidden question.", TORTOISE, others=0)
    world.pass_idle_time()
    assert world.list_on_disk(TORTOISE) == [TORTOISE]


# -- questions while the embedder fails


@pytest.fixture
def world_with_vectors(world: EmbeddingWorld) -> EmbeddingWorld:
    """A gateway in which the memory of alice has vectors."""
    world.mention(TORTOISE)
    world.pass_idle_time()
    return world


@pytest.mark.parametrize("reply", [fail(500), fail(401), fail(429)])
def test_after_one_failure_the_next_question_is_embedded(
    world_with_vectors: EmbeddingWorld, reply: Reply
) -> None:
    world_with_vectors.embedder.queue(reply)
    assert world_with_vectors.ask_in_new_chat() == QUESTION
    again = QUESTION.replace("suits", "is best for")  # the same question again would get the same note
    assert TORTOISE in world_with_vectors.ask_in_new_chat(again)
    for _ in range(MAX_QUESTION_FAILURES):
        world_with_vectors.embedder.queue(reply)
        assert not world_with_vectors.has_vector()
        assert world_with_vectors.has_vector(), "failures with a success between them are not in a row"


def test_after_failures_in_a_row_one_question_probes_the_embedder(
    world_with_vectors: EmbeddingWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world_with_vectors.embedder.queue(*[fail(500)] * MAX_QUESTION_FAILURES)
    assert [world_with_vectors.has_vector() for _ in range(MAX_QUESTION_FAILURES)] == [
        False
    ] * MAX_QUESTION_FAILURES
    count = len(world_with_vectors.embedded_texts)
    assert not world_with_vectors.has_vector()
    world_with_vectors.tick += Policy().breaker_s
    world_with_vectors.embedder.queue(fail(500))
    assert not world_with_vectors.has_vector()
    assert not world_with_vectors.has_vector(), "the pause begins again"
    world_with_vectors.tick += Policy().breaker_s
    gate = Gate()
    arrived = world_with_vectors.embedder.request_gate(len(world_with_vectors.embedder.requests) + 1)
    world_with_vectors.embedder.queue(
        replace(make_reply([1.0] * len(vector_of(QUESTION))), hold_before_headers=gate)
    )
    with ThreadPoolExecutor() as threads:
        probe = threads.submit(world_with_vectors.has_vector)
        arrived.wait_sync()
        assert not world_with_vectors.has_vector(), "only one question probes"
        gate.open()
        assert probe.result(PATIENCE_S)
    assert world_with_vectors.has_vector()
    assert len(world_with_vectors.embedded_texts) == count + 3
    assert len([each for each in caplog.messages if "words alone" in each]) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_question_pauses_no_other(world_with_vectors: EmbeddingWorld, status: int) -> None:
    world_with_vectors.embedder.queue(*[fail(status)] * 2 * MAX_QUESTION_FAILURES)
    assert not any(world_with_vectors.has_vector() for _ in range(2 * MAX_QUESTION_FAILURES))
    assert world_with_vectors.has_vector()


def test_no_question_is_embedded_before_the_retry_time(world_with_vectors: EmbeddingWorld) -> None:
    world_with_vectors.embedder.queue(fail(429, retry_after="20"))
    count = len(world_with_vectors.embedded_texts)
    assert not world_with_vectors.has_vector()
    world_with_vectors.tick += 19
    assert not world_with_vectors.has_vector()
    assert len(world_with_vectors.embedded_texts) == count + 1
    world_with_vectors.tick += 1
    assert world_with_vectors.has_vector()


def test_an_embedder_too_slow_for_short_waits_is_called_for_longer_ones(
    world_with_vectors: EmbeddingWorld,
) -> None:
    """Requests of voice agents wait less."""
    gate = Gate()
    world_with_vectors.embedder.queue(
        *[Reply(hold_before_headers=gate, headers=JSON, body=[b"{}"])] * MAX_QUESTION_FAILURES
    )
    assert not any(world_with_vectors.has_vector(1.0) for _ in range(MAX_QUESTION_FAILURES))
    gate.open()
    world_with_vectors.embedder.forget_replies()
    assert not world_with_vectors.has_vector(1000.0), "short waits are not begun any more"
    assert world_with_vectors.has_vector()


def test_a_stream_that_gets_no_vector_in_time_still_searches_by_words(
    upstream: StrictUpstream,
    embedding_server: StrictUpstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []

    async def find_no_vector(
        self: QuestionEmbedder, agent_rows: Sequence[int], query: str, wait_ms: float
    ) -> None:
        waits.append(wait_ms)

    monkeypatch.setattr(QuestionEmbedder, "embed_query", find_no_vector)
    with serve_embedder(upstream, embedding_server, tmp_path) as world:
        world.mention(TORTOISE)
        assert TORTOISE in world.ask_in_new_chat("What does my tortoise like?", stream=True)
        assert TORTOISE in world.ask_in_new_chat("What does my slow tortoise like?")
    whole = 50_000.0  # the tests' time for recall
    streamed = whole / STREAM_TIME_DIVISOR
    assert 0 < waits[-2] <= streamed * 2 / 3
    assert streamed < waits[-1] <= whole * 2 / 3


def test_without_a_wait_no_question_is_embedded(
    upstream: StrictUpstream, embedding_server: StrictUpstream, tmp_path: Path
) -> None:
    with serve_embedder(upstream, embedding_server, tmp_path, embedder_wait_ms=0) as world:
        world.mention(TORTOISE)
        world.pass_idle_time()
        count = len(embedding_server.requests)
        assert world.ask_in_new_chat() == QUESTION
        assert len(embedding_server.requests) == count


def test_tokens_of_the_embedder_count_towards_the_daily_budget(
    upstream: StrictUpstream, embedding_server: StrictUpstream, tmp_path: Path
) -> None:
    with serve_embedder(upstream, embedding_server, tmp_path, background_daily_tokens=3) as world:
        world.world.chat(user="alice").say(TORTOISE)
        world.pass_idle_time()
        app = world.world.gateway.app
        assert world.world.gateway.call(app.services.accounting.meter.count_background_tokens("default")) == 2
        world.world.gateway.call(app.services.accounting.meter.write())
        spent = world.world.query('SELECT "user", model, background_input_tokens FROM usage')
        assert ("alice", "vec", 2) in spent
        world.world.chat(user="alice").say("More.")
        world.pass_idle_time()
        world.world.chat(user="alice").say("Even more.")
        world.pass_idle_time(ends=False)
        assert world.world.query("SELECT state FROM jobs") == ["retrying"]
        assert ["Even more.", "Ok."] not in world.embedded_texts  # though alone, as a question
        world.pass_idle_time(100_000)
        assert ["Even more.", "Ok."] in world.embedded_texts


def test_tokens_of_questions_count_towards_no_daily_budget(world: EmbeddingWorld) -> None:
    world.mention(TORTOISE)
    world.pass_idle_time()
    meter = world.world.gateway.app.services.accounting.meter
    before = world.world.gateway.call(meter.count_background_tokens("default"))
    assert TORTOISE in world.ask_in_new_chat()
    world.world.gateway.call(meter.write())
    assert world.world.gateway.call(meter.count_background_tokens("default")) == before
    sums = "SELECT sum(background_input_tokens), sum(question_tokens) FROM usage WHERE project = 'default'"
    ((spent, questions),) = world.world.query(sums)
    assert spent - questions == before < spent


# -- forgetting and import


def test_a_forgotten_message_has_no_vector_and_gets_none_from_a_running_job(
    world: EmbeddingWorld, database_kind: str
) -> None:
    world.mention(TORTOISE, "My sister plays the cello.", others=3)
    world.pass_idle_time()
    assert world.list_on_disk(TORTOISE, "My sister plays the cello.") == [
        TORTOISE,
        "My sister plays the cello.",
    ]
    store, id = world.world.store, world.get_agent_row()

    async def forget(target: ForgetTarget) -> None:
        assert await store.forgetting.run(await store.forgetting.begin(id, target))
        # PostgreSQL is swept once a minute.
        assert await store.forgetting.sweep() or database_kind == "postgresql"

    world.world.gateway.call(forget(ForgetTarget(message_seqs=[1])))
    assert world.list_on_disk(TORTOISE, "My sister plays the cello.") == ["My sister plays the cello."]

    gate = Gate()
    world.world.chat(user="alice").say("The password of the cellar is swordfish.")
    world.embedder.queue(
        Reply(
            hold_before_headers=gate,
            headers=JSON,
            body=[
                orjson.dumps(
                    {
                        "data": [
                            {"index": i, "embedding": vector_of(text)}
                            for i, text in enumerate(("The password of the cellar is swordfish.", "Ok."))
                        ]
                    }
                )
            ],
        )
    )
    count = len(world.embedder.requests)
    arrived = world.embedder.request_gate(count + 1)
    world.world.settle()
    world.world.clock.sleep(IDLE_S)

    async def step() -> None:
        await world.embedding.schedule.perform_due()
        store.jobs.wake()

    world.world.gateway.call(step())
    arrived.wait_sync()
    world.world.gateway.call(forget(ForgetTarget(is_all=True)))
    gate.open()
    world.wait_for_jobs(lambda counts: not any(counts.values()))
    texts = [TORTOISE, "My sister plays the cello.", "The password of the cellar is swordfish.", "Ok."]
    assert world.list_on_disk(*texts) == []
    assert world.count_vectors() == 0
    assert world.world.query("SELECT count(*) FROM embedded") == [0]


def test_a_memory_that_is_imported_is_embedded_again(world: EmbeddingWorld) -> None:
    world.mention(TORTOISE)
    world.pass_idle_time()
    store = world.world.store
    transfer = TransferOperations(store, follow_up_jobs=("embed",))

    async def move() -> str:
        lines: list[str] = []
        place = None
        while True:
            answer = await transfer.export({"project": "default", "user": "alice", "from": place})
            lines += answer["lines"]
            place = answer["next"]
            if place is None:
                break
        to = {"project": "default", "user": "carol"}
        await transfer.restore({**to, "lines": lines, "end": True})
        return "".join(lines)

    exported = world.world.gateway.call(move())
    assert "vector" not in exported
    world.wait_for_jobs(lambda counts: not any(counts.values()))
    assert TORTOISE in world.ask_in_new_chat(user="carol")


# -- settings


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "elsewhere/vec",
            "memory.embedder: unknown name 'elsewhere/vec'; known are claude-*, claude/MODEL, m, up/MODEL; "
            "'local' is the one in this process",
        ),
        ("claude/vec", "memory.embedder: 'claude' (anthropic) has no embeddings"),
    ],
)
def test_an_impossible_embedder_is_refused_at_the_start(name: str, message: str) -> None:
    settings = Settings(
        memory=MemorySettings(embedder=name),
        upstreams=(
            UpstreamSettings("up", base_url="http://127.0.0.1:9/v1", models=("m",)),
            UpstreamSettings("claude", kind="anthropic", models=("claude-*",)),
        ),
    )
    with pytest.raises(SettingsError) as refused:
        make_embedder(settings)
    assert message in refused.value.message


def test_a_local_embedder_that_is_not_installed_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("adapters.local_embeddings.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"memory\.embedder: 'local' cannot be used.*\.\[local\]"):
        make_embedder(Settings(memory=MemorySettings(embedder="local")))


def test_there_is_no_embedder_unless_the_settings_name_one() -> None:
    assert make_embedder(Settings()) is None


def test_a_conversation_without_a_user_has_no_vectors(world: EmbeddingWorld) -> None:
    headers = {"x-mnemogate-conversation": "c1"}
    chat = world.world.chat(headers=headers)
    for n in range(12):
        chat.say(f"Turn {n}.")
    world.pass_idle_time()
    assert world.world.query("SELECT subject FROM agents") == ["conversation:c1"]
    assert world.embedded_texts == []


def test_a_job_brings_the_index_up_to_date_before_it_embeds(world: EmbeddingWorld) -> None:
    world.world.chat(user="alice").say(TORTOISE)
    world.pass_idle_time()

    async def read() -> Any:
        agent = await world.world.store.agents.find(Scope("default", "default", "user:alice"))
        assert agent is not None
        return await world.world.store.recall.search(agent, "tortoise")

    assert world.world.gateway.call(read())[0].text == TORTOISE
