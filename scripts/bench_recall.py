"""Measures the share of a question's evidence that reaches the note: `scripts/bench recall`.

A memory is written, a question is asked, and the share of its evidence turns in the note is printed for several token
budgets. The sets (scripts/talk/sets.py) are LongMemEval's oracle questions in large and in small histories, with short
turns and with exchanged roles; and generated chats of two people, projects, wishes, and chats in other languages. The
two halves of each set are printed apart: one to develop on, one held out. For chats the result of a plain BM25 is
printed as well (scripts/talk/plain.py). LongMemEval (MIT) comes from a source distribution on PyPI, which is downloaded
once into `.cache/`; nothing else uses the network.

--set: only some sets. All sets have 34,000 messages and 9,000 questions: an hour with an embedder that takes 50 ms.
--memories 3: only the first 3 memories of each half.
--quick: only the budget of 1,000 tokens.
--embedder local: a second time with vectors. --no-words: only with vectors.

These print something else instead:
--table: a row for each set.
--rules: the changes of the figures without each rule of recall (scripts/talk/rules.py).
--size 10000: the time of a question in one memory of so many messages, made of many sessions in a row.
--whole: the share of a set's evidence in the note for "Who am I?", and the tokens of the note.
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
from typing import Any, NamedTuple

import orjson

from adapters.base import Embedder
from adapters.types import EmbeddingResult
from gateway.core.agent import AgentSpec
from gateway.core.conversation.kind import ConversationKind
from gateway.core.memory.rules import RULES
from gateway.core.memory.standing import is_standing
from gateway.core.memory.transcript import on_one_line
from gateway.core.prompt import note_text
from gateway.core.prompt.summary import SummaryPlan
from gateway.core.request.identity import USER_NAME_HEADER, IdentityRules, identify
from gateway.core.upstream.endpoint_form import EndpointForm
from gateway.core.upstream.policy import Target
from gateway.dialects.chat.parse import parse
from gateway.run.background.embed import EMBED_JOB, EmbeddingService
from gateway.run.background.embedder import MeteredEmbedder
from gateway.run.background.job_context import JobContext
from gateway.run.background.learner import LEARN_JOB, LearningService
from gateway.run.background.question_embedder import QuestionEmbedder
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.memory_context import MemoryRequest
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.prompt_body import make_body
from gateway.run.memory.query_vectors import EmbedQuery
from gateway.settings import MemorySettings
from scripts.fill import new_agent, write_conversation
from scripts.talk.dialogue import Turn
from scripts.talk.embedders import make_embedder
from scripts.talk.memories import AskedMessage, MemoryCase, history_of
from scripts.talk.plain import PlainSearch
from scripts.talk.rules import RULES as RULES_OF_RECALL
from scripts.talk.sets import Set, make_sets, sentences_of, sessions_of
from storage.commands import CommittedTurn
from storage.open import open_store
from storage.search.document import Document
from storage.sql.store import Store

CACHE = Path(".cache").resolve()
TARGET = Target("bench", "m")
# Long, so that no result depends on how busy the machine is.
_EMBEDDER_WAIT_MS = 10_000.0
# The source distribution that has LongMemEval's questions, and their file in it.
PACKAGE = "graphiti-core==0.31.2"
MEMBER = "tests/evals/data/longmemeval_data/longmemeval_oracle.json"
BUDGETS = (1_000, 2_000, 4_000)
# The kinds of messages for which a note is of no use.
NEEDLESS = ("foreign question", "foreign request", "small talk", "other small talk", "errand")
WITH_NOTE = ", with a note"
# The beginnings of a note's lines with a user's words.
SOURCES = ("user: ", "learned: User said: ")
# The least length of a part of a turn that identifies the turn. Chosen, not measured.
PART_CHARS = 24


class NoServices:
    """Stands in for the background services, which the bench runs by itself."""

    makes_summaries = False

    def report_outdated_index(self, agent_row: int, messages: int | None = None) -> None: ...

    def report_pending_edits(self) -> None: ...

    def report_stored_turn(self, agent_row: int, messages: int, *_: object) -> None: ...

    def report_filling_window(self, turn: CommittedTurn, wanted: SummaryPlan) -> None: ...


# Takes a question and a budget of tokens, and returns the prompt in which the question would go upstream.
Ask = Callable[[str, int], Awaitable[Prompt]]


def fetch_questions() -> list[dict[str, Any]]:
    """Returns the questions, downloaded with pip the first time."""
    path = CACHE / "longmemeval_oracle.json"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        (CACHE / ".gitignore").write_text("*\n")
        options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(CACHE)]
        for pip in (["pip"], [sys.executable, "-m", "pip"], ["uvx", "pip"]):
            try:
                if subprocess.run([*pip, "download", *options, PACKAGE], check=False).returncode == 0:
                    break
            except FileNotFoundError:
                continue
        else:
            sys.exit(f"bench recall: could not download {PACKAGE} with pip")
        archive = next(CACHE.glob("graphiti_core-*.tar.gz"))
        with tarfile.open(archive) as tar:
            member = next(each for each in tar.getmembers() if each.name.endswith(MEMBER))
            file = tar.extractfile(member)
            assert file is not None
            path.write_bytes(file.read())
        archive.unlink()
    questions: list[dict[str, Any]] = json.loads(path.read_bytes())
    return questions


class CachingEmbedder:
    """An embedder that makes the vector of a text once, since many histories have the same sessions."""

    is_local = True

    def __init__(self, embedder: Embedder) -> None:
        self.name = embedder.name
        self._embedder = embedder
        self._vectors: dict[str, bytes] = {}

    async def embed(self, texts: Sequence[str]) -> EmbeddingResult:
        if len(texts) == 1:  # a question that was not asked before
            return await self._embedder.embed(texts)
        new_texts = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new_texts:
            embedded = await self._embedder.embed(new_texts)
            self._vectors.update(zip(new_texts, embedded.vectors, strict=True))
        return EmbeddingResult([self._vectors[text] for text in texts])

    async def aclose(self) -> None:
        await self._embedder.aclose()


@contextlib.asynccontextmanager
async def serve_memory(memory: MemoryCase, embedder: Embedder | None) -> AsyncIterator[Ask]:
    """Writes a memory into a store on disk. Yields the function that asks it, by the gateway's own way of a request."""
    with tempfile.TemporaryDirectory() as folder:
        metered_embedder = None if embedder is None else MeteredEmbedder(embedder)
        store = await _write_memory(Path(folder) / "bench.db", memory, metered_embedder)
        search: EmbedQuery | None = None
        if metered_embedder is not None:
            search = QuestionEmbedder(store, metered_embedder, _EMBEDDER_WAIT_MS).embed_query
        headers = [] if memory.name is None else [(USER_NAME_HEADER, memory.name.encode())]
        identity = identify(headers, {"user": "reader"}, IdentityRules("default"), "default")
        name_field = {"name": memory.name} if memory.has_name_in_messages else {}

        @cache
        def keeper_of(budget: int) -> MemoryKeeper:
            settings = MemorySettings(recall_tokens=budget, recall_deadline_ms=10_000)
            return MemoryKeeper(store, settings, lambda: memory.asked_at, NoServices(), search)

        async def ask(question: str, budget: int) -> Prompt:
            body = orjson.dumps(
                {"model": "m", "messages": [{"role": "user", "content": question, **name_field}]}
            )
            keeper = keeper_of(budget)
            request = MemoryRequest(
                chat=parse(body),
                identity=identity,
                spec=AgentSpec("default"),
                now=memory.asked_at,
                target=TARGET,
                kind=ConversationKind.CLIENT,
            )
            return await keeper.composer.make_prompt(await keeper.begin(request), EndpointForm(), ())

        yield ask
        await store.close()


async def _write_memory(path: Path, memory: MemoryCase, embedder: MeteredEmbedder | None) -> Store:
    """Returns a new store with a memory that is indexed, embedded and learned from."""
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
        await write_conversation(
            store, agent, f"s{number}", turns, memory.name if memory.has_name_in_messages else None
        )
    while await store.search_index.advance(agent.id):
        pass
    # Learns by rules, as a gateway without a background model does.
    learning = LearningService(store, None, MemorySettings(), lambda: memory.asked_at)
    await store.jobs.enqueue(LEARN_JOB, agent.id, LEARN_JOB)
    while (job := await store.jobs.leases.claim([LEARN_JOB], lease_s=600.0, tries=1)) is not None:
        await learning.run_job(JobContext(job, store.jobs))
    while await store.search_index.advance(agent.id):
        pass
    if embedder is None:
        return store
    embedding = EmbeddingService(store, embedder, MemorySettings(), time.time)
    await store.jobs.enqueue(EMBED_JOB, agent.id, EMBED_JOB)
    while (job := await store.jobs.leases.claim([EMBED_JOB], lease_s=600.0, tries=1)) is not None:
        await embedding.run_job(JobContext(job, store.jobs))
    assert not await store.vectors.lacks(agent.id, embedder.name)
    return store


def _count_present(texts: Iterable[str], note: str, section: str) -> int:
    """Returns the number of texts that are in a note or a memory section, as a whole or as a part.

    A part of a text is in a line that was cut, or is a fact: a fact is a sentence of a text.
    """
    facts = [line.removeprefix("- ") for line in section.splitlines() if line.startswith("- ")]
    facts += [
        line.removeprefix("learned: User said: ")
        for line in note.splitlines()
        if line.startswith("learned: ")
    ]
    lines = [line.partition(": ")[2] for line in note.splitlines()]
    cut_parts = (part for line in lines if "..." in line for part in line.split("..."))
    parts = [part for part in map(str.strip, cut_parts) if len(part) >= PART_CHARS] + facts
    joined_note = on_one_line(note)
    return sum(
        on_one_line(text) in joined_note or any(part and part in on_one_line(text) for part in parts)
        for text in texts
    )


class EvidenceShares:
    """The shares of the evidence that notes have, by kind of question and budget.

    A question without evidence has the share 1 with a note, and 0 without a note. It does not count for "all".
    """

    def __init__(self) -> None:
        self.shares: dict[tuple[str, int], list[float]] = defaultdict(list)

    def add(
        self, memory: MemoryCase, question: AskedMessage, budget: int, note: str, section: str = ""
    ) -> None:
        """Counts the evidence of one question in its note and in the memory section."""
        if not question.evidence:
            self.shares[f"{question.kind}{WITH_NOTE}", budget].append(float(bool(note)))
            return
        texts: Sequence[str] = question.sentences
        if not texts:
            texts = [document.text for document in memory.history if document.seq in question.evidence]
        for kind in (question.kind, "all"):
            self.shares[kind, budget].append(_count_present(texts, note, section) / len(texts))

    def mean(self, kind: str) -> float | None:
        """Returns the mean share of a kind within the first budget, in percent, or None without such questions."""
        shares = self.shares.get((kind, BUDGETS[0]))
        return 100 * statistics.mean(shares) if shares else None

    def measure_needless(self) -> float | None:
        """Returns the percentage of the messages in `NEEDLESS` that have a note, or None without such messages."""
        kinds = [f"{kind}{WITH_NOTE}" for kind in NEEDLESS]
        shares = [share for kind in kinds for share in self.shares.get((kind, BUDGETS[0]), ())]
        return 100 * statistics.mean(shares) if shares else None

    def print(self, name: str, budgets: Sequence[int], kind: str = "all") -> None:
        """Prints a line with the number of questions and the mean share at each budget."""
        row = [self.shares[kind, budget] for budget in budgets]
        print(
            f"{name:48}{len(row[0]):>5}" + "".join(f"{100 * statistics.mean(shares):7.1f}%" for shares in row)
        )


class SetResult:
    """The evidence that was found for one set, by halves, and the tokens and times of its notes."""

    def __init__(self) -> None:
        # The shares of the two halves, with the gateway's recall and with a plain BM25.
        self.shares = (EvidenceShares(), EvidenceShares())
        self.plain_shares = (EvidenceShares(), EvidenceShares())
        # The tokens of each note, and of each memory section, by budget.
        self.note_tokens: dict[int, list[int]] = defaultdict(list)
        self.section_tokens: dict[int, list[int]] = defaultdict(list)
        self.times_ms: list[float] = []

    def add(
        self, half: int, memory: MemoryCase, question: AskedMessage, budget: int, prompt: Prompt, note: str
    ) -> None:
        """Counts one question."""
        self.shares[half].add(memory, question, budget, note, prompt.system)
        self.note_tokens[budget].append(note_text.estimate_tokens(note))
        self.section_tokens[budget].append(note_text.estimate_tokens(prompt.system))
        self.times_ms.append(prompt.recall.search_ms)

    def join_halves(self) -> EvidenceShares:
        """Returns the shares of both halves together."""
        total = EvidenceShares()
        for shares_of_half in self.shares:
            for key, shares in shares_of_half.shares.items():
                total.shares[key] += shares
        return total

    def print(self, name: str, budgets: Sequence[int]) -> None:
        """Prints the share of the evidence, of the halves and by kinds of questions."""
        print(f"\n{name + ': evidence recall, tokens':48}{'n':>5}" + "".join(f"{b:>8}" for b in budgets))
        total = self.join_halves()
        for kind in sorted({kind for kind, _ in total.shares} - {"all"}):
            total.print("  " + kind, budgets, kind)
        total.print("all", budgets)
        for half, half_name in enumerate(("the half for developing", "the half held out")):
            self.shares[half].print(half_name, budgets)
            if self.plain_shares[half].shares:
                self.plain_shares[half].print("  a plain BM25", budgets)
        for text_name, tokens in (("note", self.note_tokens), ("memory section", self.section_tokens)):
            mean = "".join(f"{statistics.mean(tokens[budget]):8.0f}" for budget in budgets)
            print(f"{f'tokens in the {text_name}, mean':53}{mean}")
        print(_describe_times(self.times_ms))


async def measure(
    set_: Set, embedder: Embedder | None, budgets: Sequence[int], *, asks_plain: bool
) -> SetResult:
    """Asks the questions of a set.

    asks_plain: True: a plain BM25 is asked as well, about memories with several questions.
    """
    measured = SetResult()
    for half in (0, 1):
        for memory in set_.half(half):
            search = PlainSearch(memory.history) if asks_plain and len(memory.questions) > 1 else None
            async with serve_memory(memory, embedder) as ask:
                for question, budget in itertools.product(memory.questions, budgets):
                    prompt, note = await _ask_question(question.text, ask, budget)
                    measured.add(half, memory, question, budget, prompt, note)
                    if search is not None:
                        hits = search.ask(question.text, budget)
                        measured.plain_shares[half].add(memory, question, budget, hits)
    return measured


class HalvesTable:
    """The evidence found in both halves of each set within the first of the budgets, by words and with vectors.

    It also has the percentage of needless notes, and the tokens of the notes.
    """

    def __init__(self) -> None:
        # The results of each set: by words, and with vectors.
        self.measured: dict[str, list[SetResult]] = defaultdict(list)

    async def ask(self, set_: Set, embedder: Embedder | None) -> None:
        """Asks a set."""
        self.measured[set_.name].append(
            await measure(set_, embedder, BUDGETS[:1], asks_plain=embedder is None)
        )

    def print(self) -> None:
        """Prints a row for each set: developing half and half held out, with a stroke between them."""
        print("| set | questions | plain BM25, % | words, % | `local`, % | needless notes, % | tokens |")
        print("|---|---|---|---|---|---|---|")
        for name, measured in self.measured.items():
            question_count = sum(len(half.shares["all", BUDGETS[0]]) for half in measured[0].shares)
            plain = _render_halves([half.mean("all") for half in measured[0].plain_shares])
            shares = [_render_halves([half.mean("all") for half in each.shares]) for each in measured]
            noise = ", ".join(
                _render_halves([half.measure_needless() for half in each.shares]) for each in measured
            )
            tokens = ", ".join(f"{statistics.mean(each.note_tokens[BUDGETS[0]]):.0f}" for each in measured)
            local = shares[-1] if shares[1:] else ""
            print(f"| {name} | {question_count} | {plain} | {shares[0]} | {local} | {noise} | {tokens} |")


def _render_halves(shares: Sequence[float | None]) -> str:
    """Returns the percentages of both halves, such as "61.5 / 60.2"."""
    return " / ".join(f"{share:.1f}" for share in shares if share is not None)


class QuestionPrompt(NamedTuple):
    """The prompt of a question, and the note in it."""

    prompt: Prompt
    note: str


async def _ask_question(text: str, ask: Ask, budget: int) -> QuestionPrompt:
    prompt = await ask(text, budget)
    content = str(make_body(prompt)["messages"][-1]["content"])
    return QuestionPrompt(prompt, content.removesuffix(text))


class RuleTable:
    """The worth of each rule of recall: the sets asked without it, within the first of the budgets."""

    def __init__(self) -> None:
        # The results by set, and by rule; "" has all rules.
        self.measured: dict[str, dict[str, SetResult]] = defaultdict(lambda: defaultdict(SetResult))

    async def ask(self, set_: Set, embedder: Embedder | None) -> None:
        """Asks a set with all rules, and without each of them."""
        for half in (0, 1):
            for memory in set_.half(half):
                async with serve_memory(memory, embedder) as ask:
                    for rule in (None, *RULES_OF_RECALL):
                        measured = self.measured[set_.name]["" if rule is None else rule.name]
                        with rule.turned_off() if rule is not None else contextlib.nullcontext():
                            for question in memory.questions:
                                prompt, note = await _ask_question(question.text, ask, BUDGETS[0])
                                measured.add(half, memory, question, BUDGETS[0], prompt, note)

    def print(self) -> None:
        """Prints a row for each rule and a column for each set.

        A cell has points of evidence / points of needless notes, where the set has questions that need none / percent
        of the notes' tokens; "." stands for no change.
        """
        sets = list(self.measured)
        print(f"\n| without | {' | '.join(sets)} |\n|{'---|' * (len(sets) + 1)}")
        cells = [_render_cell(self.measured[name][""]) for name in sets]
        print(f"| (with all rules) | {' | '.join(cells)} |")
        for rule in RULES_OF_RECALL:
            cells = [_render_cell(by_rule[rule.name], by_rule[""]) for by_rule in self.measured.values()]
            print(f"| {rule.name} | {' | '.join(cells)} |")


def _render_cell(measured: SetResult, base: SetResult | None = None) -> str:
    """Returns evidence, needless notes and tokens, or with `base` their differences from the result `base`."""
    own_shares, tokens = measured.join_halves(), statistics.mean(measured.note_tokens[BUDGETS[0]])
    shares = own_shares.mean("all"), own_shares.measure_needless()
    if base is None:
        return " / ".join([*(f"{share:.1f}" for share in shares if share is not None), f"{tokens:.0f}"])
    base_shares, base_tokens = base.join_halves(), statistics.mean(base.note_tokens[BUDGETS[0]])
    parts = [
        f"{share - other:+.1f}" if abs(share - other) >= 0.05 else "."
        for share, other in zip(
            shares, (base_shares.mean("all"), base_shares.measure_needless()), strict=True
        )
        if share is not None and other is not None
    ]
    change = 100 * (tokens / base_tokens - 1) if base_tokens else 0.0
    parts.append(f"{change:+.0f}%" if abs(change) >= 0.5 else ".")
    return "." if {*parts} == {"."} else " / ".join(parts)


def _describe_times(times_ms: Sequence[float]) -> str:
    ordered = sorted(times_ms)
    return (
        f"query time: p50 {ordered[len(ordered) // 2]:.2f} ms, p95 {ordered[int(len(ordered) * 0.95)]:.2f} ms"
    )


async def time_large_memory(
    questions: Sequence[dict[str, Any]], size: int, embedder: Embedder | None
) -> None:
    """Prints the times of questions in a memory of `size` messages."""
    sessions = [(at, session) for question in questions for _, at, session in sessions_of(question)]
    sessions.sort(key=lambda dated_session: dated_session[0])
    lengths = itertools.accumulate(len(session) for _, session in itertools.cycle(sessions))
    count = 1 + sum(1 for _ in itertools.takewhile(lambda length: length < size, lengths))
    history, _ = history_of(
        (at, [Turn(turn["role"], turn["content"]) for turn in session])
        for at, session in itertools.islice(itertools.cycle(sessions), count)
    )
    memory = MemoryCase(history[:size], [], history[-1].at)
    times_ms, cpu_times_ms = list[float](), list[float]()
    async with serve_memory(memory, embedder) as ask:
        for question in questions:
            cpu_before_s = time.process_time()
            times_ms.append((await ask(question["question"], BUDGETS[0])).recall.search_ms)
            cpu_times_ms.append((time.process_time() - cpu_before_s) * 1000)
    print(f"one memory of {size} messages, {len(questions)} questions", _describe_times(times_ms), sep="\n")
    # The CPU time of the whole beginning of the turn. It depends less on other work of the machine.
    print("of the processor: " + _describe_times(cpu_times_ms))


async def measure_whole_memory(set_: Set) -> None:
    """Prints the share of the evidence in the note for "Who am I?", and the tokens of the note."""
    lines, answering_lines, shares, tokens = 0, 0, list[float](), list[int]()
    for memory in itertools.chain(set_.half(0), set_.half(1)):
        evidence = frozenset().union(*(question.evidence for question in memory.questions))
        texts = [
            on_one_line(document.text)
            for document in memory.history
            if document.seq in evidence and document.role == "user"
        ]
        async with serve_memory(memory, None) as ask:
            _, note = await _ask_question("Who am I?", ask, BUDGETS[0])
        selected = [
            line.removeprefix(source)
            for line in note.splitlines()
            for source in SOURCES
            if line.startswith(source)
        ]
        lines += len(selected)
        answering_lines += sum(any(_is_part_of(line, text) for text in texts) for line in selected)
        if texts:
            shares.append(
                statistics.mean(any(_is_part_of(line, text) for line in selected) for text in texts)
            )
        tokens.append(note_text.estimate_tokens(note))
    print(
        f"{set_.name}: {len(tokens)} memories, {lines} lines, "
        f"{100 * answering_lines / lines:.1f}% of them answer a question; "
        f"{100 * statistics.mean(shares):.1f}% of the turns asked for are in it; {statistics.mean(tokens):.0f} tokens, "
        f"at most {max(tokens)}"
    )


def _is_part_of(line: str, text: str) -> bool:
    """Returns whether a line of a note is a text or a part of it."""
    parts = [part for part in map(str.strip, line.split("...")) if part]
    return bool(parts) and all(part in text for part in parts)


def main() -> None:
    """Asks the sets of the command line's options, and prints the shares of evidence."""
    parser = argparse.ArgumentParser(prog="scripts/bench recall", description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=0, help="how many of LongMemEval (0: all)")
    parser.add_argument(
        "--set",
        action="append",
        help="only the set of this name, or the sets with these words in their names",
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
    """Performs the measurements of the options, and prints them."""
    questions = fetch_questions()
    sets = select_sets([*make_sets(questions, options.questions)], options.set)
    if options.memories:
        sets = [_with_first_memories(set_, options.memories) for set_ in sets]
    if options.whole:
        sentences = sentences_of(questions)
        standing = sum(map(is_standing, sentences))
        print(f"the rule takes {standing} of {len(sentences)} other sentences for what always holds")
        for set_ in sets:
            await measure_whole_memory(set_)
        return
    embedders: list[Embedder | None] = [] if options.no_words else [None]
    if options.embedder:
        embedders.append(CachingEmbedder(make_embedder(options.embedder)))
    halves = HalvesTable()
    for embedder in embedders:
        print(f"vectors: {embedder.name if embedder else 'none'}")
        if options.size:
            await time_large_memory(questions, options.size, embedder)
            continue
        await _ask_with(embedder, sets, options, halves)
        if embedder is not None:
            await embedder.aclose()
    if options.table:
        halves.print()


async def _ask_with(
    embedder: Embedder | None, sets: Sequence[Set], options: argparse.Namespace, halves: HalvesTable
) -> None:
    """Asks the sets with an embedder, or by words alone. Prints the result, or adds it to the table of halves."""
    if options.rules:
        rules = RuleTable()
        for set_ in sets:
            await rules.ask(set_, embedder)
        rules.print()
    elif options.table:
        for set_ in sets:
            await halves.ask(set_, embedder)
    else:
        budgets = BUDGETS[:1] if options.quick else BUDGETS
        for set_ in sets:
            (await measure(set_, embedder, budgets, asks_plain=True)).print(set_.name, budgets)


def select_sets(sets: Sequence[Set], names: Sequence[str] | None) -> list[Set]:
    """Returns the sets of these names. A name that no set has selects the sets with the name as a part of theirs."""
    chosen: list[Set] = []
    for name in names or [""]:
        chosen += [set_ for set_ in sets if set_.name == name] or [set_ for set_ in sets if name in set_.name]
    return chosen


def _with_first_memories(set_: Set, memories: int) -> Set:
    """Returns a set with the first memories of each half."""
    return Set(set_.name, lambda half: itertools.islice(set_.half(half), memories))


if __name__ == "__main__":
    main()
