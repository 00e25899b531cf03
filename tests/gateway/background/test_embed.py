"""Recall by meaning through the real gateway, with an embedder that has a strict `/embeddings`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
from gateway.errors import SettingsError
from gateway.offline_work import perform_operation
from gateway.provider_factory import make_embedder
from gateway.run.admin.forget_operations import ForgetOperations
from gateway.run.admin.show import ShowOperation
from gateway.run.admin.transfer_operations import TransferOperations
from gateway.run.background import embed
from gateway.run.background.embed import (
    BATCH_TEXTS,
    MAX_FAILURES,
    TEXT_CHARS,
    EmbeddingService,
)
from gateway.run.background.question_embedder import QuestionEmbedder
from gateway.run.memory.query_vectors import QueryVectors
from gateway.run.memory.recall import STREAM_TIME_PARTS
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
from tests.patience import PATIENCE_S
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
IN_A_ROW = Policy().breaker_failures
QUESTION = "Which nourishment suits reptiles?"  # no message has a word of it
JSON = {"content-type": "application/json"}


class EmbeddingWorld:
    """A gateway with an embedder."""

    def __init__(self, world: World, embedder: StrictUpstream) -> None:
        self.world = world
        self.embedder = embedder
        self.tick = 0.0
        app = world.gateway.app
        background = app.services.background
        assert background.embedding is not None
        assert background.question_embedder is not None
        self.embedding: EmbeddingService = background.embedding
        self.questions: QuestionEmbedder = background.question_embedder
        self.embedding._clock = self.questions._clock = lambda: self.tick

        async def wait_for_baseline() -> None:
            async with asyncio.timeout(PATIENCE_S):
                while self.embedding.embedder.baseline is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)

        world.gateway.call(wait_for_baseline())

    def pass_idle_time(self, seconds: float = IDLE_S, *, ends: bool = True) -> None:
        """Moves the clock, and waits until the due jobs have ended, or with `ends=False` have failed once."""
        self.tick += seconds
        self.make_jobs_due(seconds)
        busy = (JobState.PENDING, JobState.RUNNING, *([JobState.RETRYING] if ends else []))
        self.wait_for_jobs(lambda counts: not any(counts[state] for state in busy))

    def make_jobs_due(self, seconds: float = IDLE_S) -> None:
        """Moves the world's clock alone: the pauses after failures are measured by the monotonic clock `tick`."""
        self.world.settle()
        self.world.clock.sleep(seconds)

        async def step() -> None:
            await self.embedding.schedule.step()
            self.world.store.jobs.wake()

        self.world.gateway.call(step())

    def wait_for_jobs(self, holds: Callable[[Mapping[JobState, int]], bool]) -> None:
        self.world.wait_for_jobs(holds)
        self.world.settle()

    def mention(self, *texts: str, others: int = 6, user: str = "alice") -> None:
        """Mentions texts in a conversation, with other texts from which they differ."""
        chat = self.world.chat(user=user)
        for text in (*texts, *(f"Entry {i}: item{i} of list{i}." for i in range(others))):
            chat.say(text)

    def ask_in_new_chat(self, question: str = QUESTION, user: str = "alice", **options: Any) -> str:
        """Asks in a new conversation. Returns the question as the upstream got it, with its note."""
        self.world.chat(user=user).say(question, **options)
        content: str = self.world.upstream.last.messages[-1]["content"]
        return content

    def has_vector(self, wait_ms: float = 10_000.0) -> bool:
        """Returns whether the embedder gives `QUESTION` a vector within so many milliseconds."""
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
        found = self.world.query("SELECT id FROM agents WHERE subject = ?", f"user:{user}")
        return int(found[0])


@pytest.fixture
def other() -> Iterator[StrictUpstream]:
    """The upstream of the embedder, which is not that of the chats."""
    with StrictUpstream(key="sk-emb") as strict:
        strict.endpoints.vector_of = vector_of
        yield strict


def places(upstream: StrictUpstream, other: StrictUpstream) -> tuple[UpstreamSettings, ...]:
    return (
        UpstreamSettings("up", base_url=upstream.base_url, models=("m",)),
        UpstreamSettings("emb", base_url=other.base_url, api_key="sk-emb"),
    )


@contextmanager
def serve_embedder(
    upstream: StrictUpstream, other: StrictUpstream, tmp_path: Path, **memory: Any
) -> Iterator[EmbeddingWorld]:
    memory = {"embedder": "emb/vec", "embedder_wait_ms": 10_000, **memory}
    with remember(upstream, tmp_path, agent(), memory=memory, upstreams=places(upstream, other)) as world:
        yield EmbeddingWorld(world, other)


@pytest.fixture
def made(upstream: StrictUpstream, other: StrictUpstream, tmp_path: Path) -> Iterator[EmbeddingWorld]:
    with serve_embedder(upstream, other, tmp_path) as running:
        yield running


# -- what it is for


@pytest.mark.parametrize("others", [2, 60])
def test_what_shares_no_word_with_the_question_is_recalled(made: EmbeddingWorld, others: int) -> None:
    made.mention(TORTOISE, others=others)
    made.pass_idle_time()
    assert TORTOISE in made.ask_in_new_chat()
    assert "Entry" not in made.ask_in_new_chat()
    # Small talk is no question.
    assert made.ask_in_new_chat("Thank you!") == "Thank you!"
    assert TORTOISE not in made.ask_in_new_chat(user="bob")


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


def test_the_models_own_search_and_the_operators_look_use_it_too(made: EmbeddingWorld) -> None:
    chat = made.world.chat(user="alice", model="agent/helper")
    for text in (TORTOISE, *(f"Entry {i}: item{i} of list{i}." for i in range(6))):
        chat.say(text)
    made.pass_idle_time()
    search = call_tools(Call("conversation_search", {"query": QUESTION, "limit": 1}), text=None)
    made.world.upstream.queue(search, say("Dandelions."))
    made.world.chat(user="alice", model="agent/helper").say("Look it up.")
    assert TORTOISE in str(made.world.upstream.last.messages[-1]["content"])
    embed_query = made.world.gateway.app.services.background.embed_query
    trial = TrialRunner(made.world.store, 1000, made.world.clock, embed_query)
    operation = ShowOperation(made.world.store, trial)
    arguments = {"project": "default", "user": "alice", "profile": "helper", "query": QUESTION}

    async def show() -> Any:
        return await operation.show(arguments)

    assert TORTOISE in made.world.gateway.call(show())["text"].partition("Would be recalled")[2]


def test_a_question_as_long_as_a_book_is_cut_for_it(made: EmbeddingWorld) -> None:
    """An embedder refuses what is too long, and is then asked by nobody for a while."""
    made.mention(TORTOISE)
    made.pass_idle_time()
    asking = made.questions.embed_query([made.get_agent_row()], "word " * 100_000, 1000.0)
    assert made.world.gateway.call(asking) is not None
    assert max(map(len, made.embedded_texts[-1])) <= QUERY_CHARS


def test_a_question_of_several_memories_is_embedded_once_where_one_of_them_has_vectors(
    made: EmbeddingWorld,
) -> None:
    made.mention(TORTOISE)
    made.pass_idle_time()
    made.world.chat(user="bob").say("Hi.")
    made.world.settle()
    alice, bob = made.get_agent_row(), made.get_agent_row("bob")
    calls = len(made.embedded_texts)
    for agents, is_embedded in (([bob], False), ([bob, alice], True)):
        asking = made.questions.embed_query(agents, QUESTION, 10_000.0)
        assert (made.world.gateway.call(asking) is not None) is is_embedded
    assert made.embedded_texts[calls:] == [[QUESTION]]


def test_the_operators_search_uses_it_without_a_gateway_too(
    upstream: StrictUpstream, other: StrictUpstream, tmp_path: Path
) -> None:
    with serve_embedder(upstream, other, tmp_path) as made:
        made.mention(TORTOISE)
        made.pass_idle_time()
        settings = made.world.gateway.app.services.settings
    file = tmp_path / "memory.db"
    here = replace(settings, database=DatabaseSettings(str(file), url_of(file)))
    for question, is_recalled in ((QUESTION, True), ("What is a quasar?", False)):
        whose = {"project": "default", "user": "alice"}
        before = count_background_tokens(here)
        shown = asyncio.run(perform_operation(here, "memory-show", {**whose, "query": question}))
        assert (TORTOISE in shown["text"].partition("Would be recalled")[2]) is is_recalled
        assert count_background_tokens(here) > before


def count_background_tokens(settings: Settings) -> int:
    """Returns the background tokens of all days, projects and models."""
    usage = asyncio.run(perform_operation(settings, "usage", {}))
    return sum(row["background_input_tokens"] for row in usage["data"])


def test_passages_and_facts_have_vectors_as_messages_do(made: EmbeddingWorld) -> None:
    made.mention()
    made.pass_idle_time()

    id = made.get_agent_row()

    async def save() -> None:
        await save_passage(made.world.store, id, "A tortoise note on dandelions.", at=5.0)
        made.embedding.schedule.enqueue_now([id])

    made.world.gateway.call(save())
    made.pass_idle_time()
    assert "saved note: A tortoise note on dandelions." in made.ask_in_new_chat()


def test_a_fact_that_a_person_has_stated_is_embedded_without_a_turn(made: EmbeddingWorld) -> None:
    made.mention()
    made.pass_idle_time()
    store, id = made.world.store, made.get_agent_row()

    async def state() -> None:
        alice = await store.agents.find_by_id(id)
        assert alice is not None
        await store.facts.remember(alice, TORTOISE, "tortoise", "person", made.world.clock.now)

    made.world.gateway.call(state())
    made.pass_idle_time()
    assert made.embedded_texts[-1] == [TORTOISE]


def test_a_memory_is_embedded_when_it_rests_or_when_enough_was_said(made: EmbeddingWorld) -> None:
    chat = made.world.chat(user="alice")
    chat.say("First.")
    made.world.settle()
    assert made.embedded_texts == []
    for n in range(8):
        chat.say(f"Turn {n}.")
    made.wait_for_jobs(lambda counts: made.embedded_texts != [] and not any(counts.values()))
    assert made.embedded_texts[0][:2] == ["First.", "Ok."]
    chat.say("The last.")
    made.pass_idle_time()
    assert made.embedded_texts[-1][-2:] == ["The last.", "Ok."]


def test_a_long_memory_is_embedded_batch_by_batch(made: EmbeddingWorld) -> None:
    words = "word " * 400
    made.mention(words, others=70)
    made.pass_idle_time()
    sizes = [len(texts) for texts in made.embedded_texts]
    assert sum(sizes) == 142
    assert max(sizes) <= BATCH_TEXTS
    assert max(len(text) for texts in made.embedded_texts for text in texts) <= TEXT_CHARS
    assert made.world.query("SELECT seq FROM embedded") == [142]


def test_the_next_batch_is_enqueued_with_the_end_of_the_one_before(
    made: EmbeddingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that dies between the two leaves nothing that is not embedded."""
    made.embedding.schedule.every = 1_000
    made.mention(others=70)
    jobs = made.world.store.jobs
    enqueue = jobs.enqueue

    async def only_once(*args: Any) -> int:
        monkeypatch.setattr(jobs, "enqueue", dies)
        return await enqueue(*args)

    async def dies(*args: Any) -> int:
        raise StoreFailed("no disk")

    monkeypatch.setattr(jobs, "enqueue", only_once)
    made.pass_idle_time()
    assert made.world.query("SELECT seq FROM embedded") == [140]


def test_another_embedder_starts_over_at_the_next_start(
    upstream: StrictUpstream, other: StrictUpstream, tmp_path: Path
) -> None:
    with serve_embedder(upstream, other, tmp_path) as made:
        made.mention(TORTOISE)
        made.pass_idle_time()
    with serve_embedder(upstream, other, tmp_path, embedder="emb/better") as made:
        made.pass_idle_time()
        assert set(made.world.query("SELECT model FROM vectors")) == {"emb/better"}
        assert orjson.loads(other.last.body)["model"] == "better"
        assert TORTOISE in made.ask_in_new_chat()


def test_a_section_without_room_for_all_shows_what_is_nearest_to_the_first_message(
    upstream: StrictUpstream, other: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared, compare = list[Vector](), vector_blobs.compare

    def count(joined: Any, query: Vector) -> Any:
        compared.append(query)
        return compare(joined, query)

    monkeypatch.setattr(vector_blobs, "compare", count)
    with serve_embedder(upstream, other, tmp_path, background_model=None) as made:
        learner, wish = Learner(made.world), "I never buy dandelions for my tortoise."
        made.mention(wish, *(f"I never eat {food} for dinner at home." for food in FOODS))
        learner.pass_idle_time()
        assert len(learner.list_facts()) == 1 + len(FOODS)
        made.pass_idle_time()
        asked = len(made.embedded_texts)
        compared.clear()
        chat = made.world.chat(user="alice")
        chat.say(QUESTION)
        first = made.world.upstream.last.messages[0]["content"]
        # It is the oldest, and others had no room.
        assert wish.rstrip(".") in first
        assert any(food not in first for food in FOODS)
        # Section and note have one vector of the message, which is compared once.
        assert made.embedded_texts[asked:] == [[QUESTION]]
        assert len(compared) == 1
        chat.say("And what else?")
        assert made.world.upstream.last.messages[0]["content"] == first
        # So does what the embedder has not seen yet.
        made.mention("I always feed the cat before work.", others=0)
        learner.pass_idle_time()
        assert "I always feed the cat" in section_after(made, QUESTION)


@pytest.mark.parametrize("is_forgotten", [False, True])
def test_what_was_near_stays_in_sight_where_another_fact_ends(
    upstream: StrictUpstream, other: StrictUpstream, tmp_path: Path, is_forgotten: bool
) -> None:
    with serve_embedder(upstream, other, tmp_path, background_model=None) as made:
        learner, wish = Learner(made.world), "I never buy dandelions for my tortoise"
        made.mention(f"{wish}.", *(f"I never eat {food} for dinner at home." for food in FOODS))
        learner.pass_idle_time()
        made.pass_idle_time()
        chat = made.world.chat(user="alice")
        chat.say(QUESTION)
        section = made.world.upstream.last.messages[0]["content"]
        assert wish in section
        shown = next(food for food in FOODS if f"never eat {food}" in section)
        made.world.clock.now -= 10_000  # the provider's cache holds
        if is_forgotten:
            number = next(fact.seq for fact in learner.list_facts() if shown in fact.text)
            forgetting = ForgetOperations(made.world.store, made.world.clock)
            made.world.gateway.call(
                forgetting.forget({"project": "default", "user": "alice", "fact": number})
            )
        else:
            made.mention(f"I always eat {shown} for dinner at home.", others=0)
            learner.pass_idle_time()
        made.world.clock.now -= 10_000
        chat.say("And what else?")
        first, *_, last = made.world.upstream.last.messages
        changed = (first if is_forgotten else last)["content"]
        assert f"never eat {shown}" not in changed
        assert wish in changed


def test_the_nearest_is_chosen_among_all_that_holds(
    upstream: StrictUpstream, other: StrictUpstream, tmp_path: Path
) -> None:
    """Not among the newest few: a person has dozens after some months."""
    with serve_embedder(upstream, other, tmp_path, background_model=None) as made:
        learner, wish = Learner(made.world), "I never buy dandelions for my tortoise."
        pairs = [*combinations(FOODS, 2)][:40]
        made.mention(wish, *(f"I never eat {one} with {other} at home." for one, other in pairs), others=0)
        learner.pass_idle_time()
        assert len(learner.list_facts()) == 1 + len(pairs)
        made.pass_idle_time()
        assert wish.rstrip(".") in section_after(made, QUESTION)


def test_the_time_that_the_section_takes_to_choose_is_a_part_of_that_for_recall(
    upstream: StrictUpstream, other: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a first reply waits for the vectors of a large memory, and then as long again for the search."""
    limit_ms = 1000 * PATIENCE_S
    options: dict[str, Any] = {"background_model": None, "recall_deadline_ms": limit_ms}
    with serve_embedder(upstream, other, tmp_path, **options) as made:
        learner = Learner(made.world)
        made.mention(*(f"I never eat {food} for dinner at home." for food in FOODS))
        learner.pass_idle_time()
        made.pass_idle_time()
        late_s, given_ms = 0.0, dict[str, float]()
        clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + late_s)
        for module in ("note_search", "recall", "query_vectors"):
            monkeypatch.setattr(f"gateway.run.memory.{module}.time", clock)
        vector_of, compare, search = QueryVectors.find_vector, Recall.compare, Recall.search

        async def embed_slowly(self: QueryVectors, *asked: Any) -> Any:
            nonlocal late_s
            late_s += 0 if self._vectors else PATIENCE_S / 4
            return await vector_of(self, *asked)

        async def compare_slowly(self: Recall, *asked: Any, **options: Any) -> Any:
            nonlocal late_s
            late_s += PATIENCE_S / 4
            given_ms["compare"] = options["deadline_ms"]
            return await compare(self, *asked, **options)

        async def search_and_note(self: Recall, *asked: Any, **options: Any) -> Any:
            given_ms["search"] = options["deadline_ms"]
            return await search(self, *asked, **options)

        monkeypatch.setattr(QueryVectors, "find_vector", embed_slowly)
        monkeypatch.setattr(Recall, "compare", compare_slowly)
        monkeypatch.setattr(Recall, "search", search_and_note)
        section_after(made, QUESTION)
        assert given_ms["compare"] <= limit_ms * (2 / 3 - 1 / 4)
        assert given_ms["search"] <= limit_ms / 2


def section_after(made: EmbeddingWorld, text: str) -> str:
    """The memory section of a new conversation."""
    made.world.chat(user="alice").say(text)
    section: str = made.world.upstream.last.messages[0]["content"]
    return section


# -- faults


def vectors(*given: Any) -> Reply:
    data = [{"index": i, "embedding": each} for i, each in enumerate(given)]
    return Reply(headers=JSON, body=[orjson.dumps({"data": data})])


NOT_A_NUMBER = raw(b'{"data": [{"index": 0, "embedding": [NaN, 1]}]}', content_type="application/json")


@pytest.mark.parametrize(
    "reply",
    [
        fail(500),
        fail(401),
        fail(404),
        Reply(cut_before_headers=True),
        vectors([1, 2]),
        vectors(),
        NOT_A_NUMBER,
        vectors([1], [1, 2], [1], [1, 2]),
    ],
    ids=["500", "401", "404", "cut", "one for four", "none", "NaN", "of two lengths"],
)
def test_an_embedder_that_fails_is_tried_again_and_no_client_notices(
    made: EmbeddingWorld, reply: Reply
) -> None:
    chat = made.world.chat(user="alice")
    assert chat.say(TORTOISE) == "Ok."
    assert chat.say("It is slow.") == "Ok."
    made.embedder.queue(reply, reply)
    made.pass_idle_time(ends=False)
    (job,) = made.world.query("SELECT state || ' ' || error FROM jobs")
    assert job.startswith("retrying the embedder ")
    assert "tortoise" not in job
    made.embedder.forget_replies()
    made.embedder.queue(reply)  # the question's vector cannot be had either
    assert TORTOISE in made.ask_in_new_chat("What does my tortoise like?")
    assert made.count_vectors() == 0
    made.embedder.forget_replies()
    made.pass_idle_time(3600)
    assert made.count_vectors() == 1


def test_one_that_stays_down_leaves_a_dead_letter_and_the_next_turn_tries_again(made: EmbeddingWorld) -> None:
    made.world.chat(user="alice").say(TORTOISE)
    made.embedder.queue(*[fail(503)] * 8)
    for n in range(8):
        made.pass_idle_time(3600, ends=False)
        made.wait_for_jobs(lambda counts, n=n: len(made.embedded_texts) > n and not counts[JobState.RUNNING])  # type: ignore[misc]
    assert made.world.query("SELECT state FROM jobs") == ["dead"]
    made.tick += 1000
    made.world.chat(user="alice").say("And then?")
    made.pass_idle_time()
    assert made.count_vectors() == 1


def test_after_failures_in_a_row_the_jobs_of_other_memories_wait_without_failing(
    made: EmbeddingWorld,
) -> None:
    made.embedder.queue(*[fail(500)] * MAX_FAILURES)
    for user in ("alice", "bob"):
        made.world.chat(user=user).say(TORTOISE)
    made.pass_idle_time(ends=False)
    made.wait_for_jobs(lambda counts: counts[JobState.RETRYING] == 2 and not counts[JobState.RUNNING])
    for user in ("carol", "dora"):
        made.world.chat(user=user).say(TORTOISE)
    made.make_jobs_due()
    made.wait_for_jobs(lambda counts: counts[JobState.PENDING] == 2 and not counts[JobState.RUNNING])
    assert made.world.query("SELECT attempt FROM jobs ORDER BY id") == [1, 1, 0, 0]
    assert len(made.embedded_texts) == MAX_FAILURES
    made.pass_idle_time(3600)
    assert made.count_vectors() == 4


def test_a_failure_among_many_calls_holds_up_no_other_memory(made: EmbeddingWorld) -> None:
    """An embedder that fails one call in fifty would never catch up if all rested for that."""
    for users in (range(4), range(4, 8)):
        made.embedder.queue(fail(500))
        for n in users:
            made.world.chat(user=f"user{n}").say(TORTOISE)
        made.make_jobs_due()
        made.wait_for_jobs(lambda counts: not (counts[JobState.PENDING] or counts[JobState.RUNNING]))
    assert made.count_vectors() == 7
    assert len(made.embedded_texts) == 4 + 5, "the one that failed is tried again"


def test_one_that_is_busy_is_left_alone_for_as_long_as_it_says(made: EmbeddingWorld) -> None:
    made.world.chat(user="alice").say(TORTOISE)
    made.embedder.queue(fail(429, retry_after="500"))
    made.pass_idle_time(ends=False)
    ((tries, due),) = made.world.query("SELECT tries, due FROM jobs")
    assert tries == 0
    assert due - made.world.clock.now > 400
    made.pass_idle_time(1000)
    assert made.count_vectors() == 1


def picky(text: str) -> list[float]:
    if "forbidden" in text:
        raise Refusal("Your input was rejected by our safety system.", "input")
    return vector_of(text)


def test_a_text_that_it_refuses_does_not_keep_the_others_out(made: EmbeddingWorld) -> None:
    made.embedder.endpoints.vector_of = picky
    made.mention(TORTOISE, "A forbidden word.")
    made.pass_idle_time()
    assert TORTOISE in made.ask_in_new_chat()
    assert made.world.query("SELECT seq FROM embedded") == [16]
    assert made.list_on_disk("A forbidden word.", TORTOISE) == [TORTOISE]


def test_a_refused_text_that_is_a_batch_of_its_own_does_not_keep_the_others_out(
    made: EmbeddingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.embedder.endpoints.vector_of = picky
    made.embedding.schedule.every = 1_000  # all texts are those of one job
    monkeypatch.setattr(embed, "BATCH_TEXTS", 15)
    made.mention(TORTOISE)
    made.world.upstream.queue(say("A forbidden word."))
    made.mention("The sixteenth text is", others=0)
    made.pass_idle_time()
    assert made.world.query("SELECT seq FROM embedded") == [16]
    assert made.embedded_texts.count(["A forbidden word."]) == 1
    assert made.list_on_disk("A forbidden word.", TORTOISE) == [TORTOISE]


def test_refused_texts_at_the_beginning_of_a_later_batch_do_not_keep_the_others_out(
    made: EmbeddingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.embedder.endpoints.vector_of = picky
    made.embedding.schedule.every = 1_000  # all texts are those of one job
    monkeypatch.setattr(embed, "BATCH_TEXTS", 14)
    made.mention(TORTOISE)
    made.world.upstream.queue(say("A forbidden answer."))
    made.mention("A forbidden question.", "Another forbidden question.", "Blue whales sing.", others=0)
    made.pass_idle_time()
    assert made.world.query("SELECT seq FROM embedded") == [20]
    assert made.list_on_disk("A forbidden question.", "Blue whales sing.") == ["Blue whales sing."]


def test_one_that_refuses_everything_is_not_asked_for_each_text(made: EmbeddingWorld) -> None:
    made.embedding.schedule.every = 1_000  # nothing is embedded before it refuses
    made.mention(TORTOISE, others=20)
    made.embedder.queue(*[fail(400)] * 50)
    before = len(made.embedder.requests)
    made.pass_idle_time(ends=False)
    assert made.world.query("SELECT state FROM jobs") == ["retrying"]
    assert len(made.embedder.requests) - before == 2  # with the messages, and with other texts


def test_an_account_that_has_run_out_leaves_no_message_without_a_vector(made: EmbeddingWorld) -> None:
    """Gemini answers an expired key with a 400, as it does a text that it does not take."""
    made.mention(TORTOISE, others=0)
    made.embedder.queue(*[fail(400, "API key expired.")] * 8)
    made.pass_idle_time(ends=False)
    assert made.count_vectors() == 0
    made.embedder.forget_replies()
    made.pass_idle_time(3600)
    assert made.list_on_disk(TORTOISE) == [TORTOISE]


def test_a_memory_that_begins_with_refused_texts_is_embedded_after_them(made: EmbeddingWorld) -> None:
    made.embedder.endpoints.vector_of = picky
    made.world.upstream.queue(say("A forbidden answer."))
    made.mention("A forbidden question.", "Another forbidden question.", TORTOISE, others=0)
    made.pass_idle_time()
    assert made.list_on_disk(TORTOISE) == [TORTOISE]


# -- questions, while it fails


@pytest.fixture
def known(made: EmbeddingWorld) -> EmbeddingWorld:
    """With a memory that has vectors."""
    made.mention(TORTOISE)
    made.pass_idle_time()
    return made


@pytest.mark.parametrize("reply", [fail(500), fail(401), fail(429)])
def test_after_one_failure_the_next_question_is_asked(known: EmbeddingWorld, reply: Reply) -> None:
    known.embedder.queue(reply)
    assert known.ask_in_new_chat() == QUESTION
    again = QUESTION.replace("suits", "is best for")  # the same question again would get the same note
    assert TORTOISE in known.ask_in_new_chat(again)
    for _ in range(IN_A_ROW):
        known.embedder.queue(reply)
        assert not known.has_vector()
        assert known.has_vector(), "however many there were, they were not in a row"


def test_after_failures_in_a_row_one_question_asks_whether_it_answers_again(
    known: EmbeddingWorld, caplog: pytest.LogCaptureFixture
) -> None:
    known.embedder.queue(*[fail(500)] * IN_A_ROW)
    assert [known.has_vector() for _ in range(IN_A_ROW)] == [False] * IN_A_ROW
    count = len(known.embedded_texts)
    assert not known.has_vector()
    known.tick += Policy().breaker_s
    known.embedder.queue(fail(500))
    assert not known.has_vector()
    assert not known.has_vector(), "it rests again"
    known.tick += Policy().breaker_s
    gate = Gate()
    arrived = known.embedder.request_gate(len(known.embedder.requests) + 1)
    known.embedder.queue(replace(vectors([1.0] * len(vector_of(QUESTION))), hold_before_headers=gate))
    with ThreadPoolExecutor() as threads:
        probe = threads.submit(known.has_vector)
        arrived.wait_sync()
        assert not known.has_vector(), "only one asks"
        gate.open()
        assert probe.result(PATIENCE_S)
    assert known.has_vector()
    assert len(known.embedded_texts) == count + 3
    assert len([each for each in caplog.messages if "words alone" in each]) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_question_that_it_refuses_holds_up_no_other(known: EmbeddingWorld, status: int) -> None:
    known.embedder.queue(*[fail(status)] * 2 * IN_A_ROW)
    assert not any(known.has_vector() for _ in range(2 * IN_A_ROW))
    assert known.has_vector()


def test_no_question_is_asked_before_its_retry_after(known: EmbeddingWorld) -> None:
    known.embedder.queue(fail(429, retry_after="20"))
    count = len(known.embedded_texts)
    assert not known.has_vector()
    known.tick += 19
    assert not known.has_vector()
    assert len(known.embedded_texts) == count + 1
    known.tick += 1
    assert known.has_vector()


def test_one_too_slow_for_callers_in_haste_is_asked_for_the_others(known: EmbeddingWorld) -> None:
    """Voice agents' requests have less time."""
    gate = Gate()
    known.embedder.queue(*[Reply(hold_before_headers=gate, headers=JSON, body=[b"{}"])] * IN_A_ROW)
    assert not any(known.has_vector(1.0) for _ in range(IN_A_ROW))
    gate.open()
    known.embedder.forget_replies()
    assert not known.has_vector(1000.0), "those in haste do not wait any more"
    assert known.has_vector()


def test_a_stream_that_waits_for_a_vector_in_vain_has_time_for_words(
    upstream: StrictUpstream, other: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def none(self: QuestionEmbedder, agent_rows: Sequence[int], query: str, wait_ms: float) -> None:
        waits.append(wait_ms)

    monkeypatch.setattr(QuestionEmbedder, "embed_query", none)
    with serve_embedder(upstream, other, tmp_path) as made:
        made.mention(TORTOISE)
        assert TORTOISE in made.ask_in_new_chat("What does my tortoise like?", stream=True)
        assert TORTOISE in made.ask_in_new_chat("What does my slow tortoise like?")
    whole = 50_000.0  # the tests' time for recall
    streamed = whole / STREAM_TIME_PARTS
    assert 0 < waits[-2] <= streamed * 2 / 3
    assert streamed < waits[-1] <= whole * 2 / 3


def test_with_no_time_to_wait_a_question_is_not_embedded(
    upstream: StrictUpstream, other: StrictUpstream, tmp_path: Path
) -> None:
    with serve_embedder(upstream, other, tmp_path, embedder_wait_ms=0) as made:
        made.mention(TORTOISE)
        made.pass_idle_time()
        count = len(other.requests)
        assert made.ask_in_new_chat() == QUESTION
        assert len(other.requests) == count


def test_what_it_costs_counts_towards_the_day(
    upstream: StrictUpstream, other: StrictUpstream, tmp_path: Path
) -> None:
    with serve_embedder(upstream, other, tmp_path, background_daily_tokens=3) as made:
        made.world.chat(user="alice").say(TORTOISE)
        made.pass_idle_time()
        app = made.world.gateway.app
        assert made.world.gateway.call(app.services.accounting.meter.count_background_tokens("default")) == 2
        made.world.gateway.call(app.services.accounting.meter.write())
        spent = made.world.query('SELECT "user", model, background_input_tokens FROM usage')
        assert ("alice", "vec", 2) in spent
        made.world.chat(user="alice").say("More.")
        made.pass_idle_time()
        made.world.chat(user="alice").say("Even more.")
        made.pass_idle_time(ends=False)
        assert made.world.query("SELECT state FROM jobs") == ["retrying"]
        assert ["Even more.", "Ok."] not in made.embedded_texts  # though alone, as a question
        made.pass_idle_time(100_000)
        assert ["Even more.", "Ok."] in made.embedded_texts


def test_what_questions_cost_counts_towards_no_day(made: EmbeddingWorld) -> None:
    made.mention(TORTOISE)
    made.pass_idle_time()
    meter = made.world.gateway.app.services.accounting.meter
    before = made.world.gateway.call(meter.count_background_tokens("default"))
    assert TORTOISE in made.ask_in_new_chat()
    made.world.gateway.call(meter.write())
    assert made.world.gateway.call(meter.count_background_tokens("default")) == before
    sums = "SELECT sum(background_input_tokens), sum(question_tokens) FROM usage WHERE project = 'default'"
    ((spent, questions),) = made.world.query(sums)
    assert spent - questions == before < spent


# -- forgetting and carrying


def test_what_is_forgotten_has_no_vector_and_gets_none_from_a_job_under_way(
    made: EmbeddingWorld, database_kind: str
) -> None:
    made.mention(TORTOISE, "My sister plays the cello.", others=3)
    made.pass_idle_time()
    assert made.list_on_disk(TORTOISE, "My sister plays the cello.") == [
        TORTOISE,
        "My sister plays the cello.",
    ]
    store, id = made.world.store, made.get_agent_row()

    async def forget(target: ForgetTarget) -> None:
        assert await store.forgetting.run(await store.forgetting.begin(id, target))
        # A server sweeps once a minute.
        assert await store.forgetting.sweep() or database_kind == "postgresql"

    made.world.gateway.call(forget(ForgetTarget(messages=[1])))
    assert made.list_on_disk(TORTOISE, "My sister plays the cello.") == ["My sister plays the cello."]

    gate = Gate()
    made.world.chat(user="alice").say("The password of the cellar is swordfish.")
    made.embedder.queue(
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
    count = len(made.embedder.requests)
    arrived = made.embedder.request_gate(count + 1)
    made.world.settle()
    made.world.clock.sleep(IDLE_S)

    async def step() -> None:
        await made.embedding.schedule.step()
        store.jobs.wake()

    made.world.gateway.call(step())
    arrived.wait_sync()
    made.world.gateway.call(forget(ForgetTarget(is_all=True)))
    gate.open()
    made.wait_for_jobs(lambda counts: not any(counts.values()))
    texts = [TORTOISE, "My sister plays the cello.", "The password of the cellar is swordfish.", "Ok."]
    assert made.list_on_disk(*texts) == []
    assert made.count_vectors() == 0
    assert made.world.query("SELECT count(*) FROM embedded") == [0]


def test_a_memory_that_is_imported_is_embedded_again(made: EmbeddingWorld) -> None:
    made.mention(TORTOISE)
    made.pass_idle_time()
    store = made.world.store
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

    exported = made.world.gateway.call(move())
    assert "vector" not in exported
    made.wait_for_jobs(lambda counts: not any(counts.values()))
    assert TORTOISE in made.ask_in_new_chat(user="carol")


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


def test_a_local_one_that_is_not_installed_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.local_embeddings.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"memory\.embedder: 'local' cannot be used.*\.\[local\]"):
        make_embedder(Settings(memory=MemorySettings(embedder="local")))


def test_no_embedder_is_asked_unless_the_settings_name_one() -> None:
    assert make_embedder(Settings()) is None


def test_a_conversation_without_a_user_has_no_vectors(made: EmbeddingWorld) -> None:
    headers = {"x-mnemogate-conversation": "c1"}
    chat = made.world.chat(headers=headers)
    for n in range(12):
        chat.say(f"Turn {n}.")
    made.pass_idle_time()
    assert made.world.query("SELECT subject FROM agents") == ["conversation:c1"]
    assert made.embedded_texts == []


def test_the_index_is_what_is_embedded(made: EmbeddingWorld) -> None:
    """A job brings the index up to date itself: nothing else has to have run before."""
    made.world.chat(user="alice").say(TORTOISE)
    made.pass_idle_time()

    async def read() -> Any:
        found = await made.world.store.agents.find(Scope("default", "default", "user:alice"))
        assert found is not None
        return await made.world.store.recall.search(found, "tortoise")

    assert made.world.gateway.call(read())[0].text == TORTOISE
