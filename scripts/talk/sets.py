"""The sets of memories by which recall is measured: LongMemEval, whole and shortened, and generated dialogues.

Each set has two halves. Rules are developed on the first half, and have to hold on the second.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gateway.core.dates import DAY_S
from gateway.core.prompt.note_choice import choose_hits
from gateway.core.prompt.note_text import render_note
from scripts.talk import kinds
from scripts.talk.dialogue import ASSISTANT, USER, Question, Turn, make_dialogue, make_later_sessions
from scripts.talk.languages import FACTS, make_chats
from scripts.talk.memories import AskedMessage, MemoryCase, Session, history_of
from scripts.talk.projects import make_project_memories
from scripts.talk.wishes import make_english_wishes
from storage.records import Message

# The sessions of other questions in a history of LongMemEval.
OTHER_SESSIONS = 45
SEED = 1
# The generated dialogues of a half.
DIALOGUES = 8
# The questions that were asked before in the dialogues with earlier questions.
EARLIER_QUESTIONS = 300
# The mark of the notes that a model repeats.
_MARK = "a2b3c4d5"
# The share of friends' turns that address the other one by name.
_NAMED_SHARE = 0.2

_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Set:
    """Memories of one kind, in two halves."""

    name: str
    # Returns the memories of a half: 0 is the one to develop on, 1 the one that is held out.
    half: Callable[[int], Iterable[MemoryCase]]


def _parse_date(text: str) -> float:
    return datetime.strptime(text, "%Y/%m/%d (%a) %H:%M").replace(tzinfo=UTC).timestamp()


def sessions_of(question: dict[str, Any]) -> list[tuple[str, float, list[dict[str, Any]]]]:
    """Returns the sessions of a LongMemEval question's own history: their ids, times and turns."""
    dates = map(_parse_date, question["haystack_dates"])
    return list(zip(question["haystack_session_ids"], dates, question["haystack_sessions"], strict=True))


def make_long_cases(questions: Sequence[dict[str, Any]], limit: int, form: str = "") -> Iterator[MemoryCase]:
    """Returns LongMemEval's questions, shuffled, each with its sessions among `OTHER_SESSIONS` of other questions.

    limit: the most questions; 0: all.
    form: "" as they are; "cut": the assistant's turns are cut to two sentences; "exchanged": they are cut, and user and
        assistant exchange their turns.
    """
    order = [q for q in questions if any(t.get("has_answer") for s in q["haystack_sessions"] for t in s)]
    random.Random(SEED).shuffle(order)
    for question in order[: limit or None]:
        own_sessions = sessions_of(question)
        ids = {id for id, _, _ in own_sessions}
        other_sessions = [
            session_row for other in questions if other is not question for session_row in sessions_of(other)
        ]
        pool = [(at, session) for id, at, session in other_sessions if id not in ids]
        sessions = random.Random(f"{SEED} {question['question_id']}").sample(pool, OTHER_SESSIONS)
        sessions = [(at, [{**turn, "has_answer": False} for turn in session]) for at, session in sessions]
        sessions = sorted(
            [*sessions, *((at, session) for _, at, session in own_sessions)],
            key=lambda dated_session: dated_session[0],
        )
        history, marked = history_of((at, _make_turns(session, form)) for at, session in sessions)
        case = AskedMessage(question["question_type"], question["question"], frozenset(marked[0]))
        yield MemoryCase(history, [case], _parse_date(question["question_date"]))


def make_small_cases(questions: Sequence[dict[str, Any]], limit: int) -> Iterator[MemoryCase]:
    """Returns memories of one question's sessions, some 22 messages each, with a question that has other sessions.

    limit: the most memories; 0: all.
    """
    order = random.Random(SEED).sample(list(questions), len(questions))
    for question, other in itertools.islice(itertools.pairwise([*order, order[0]]), limit or None):
        own_sessions = sorted(sessions_of(question), key=lambda session: session[1])
        history, marked = history_of((at, _make_turns(session, "")) for _, at, session in own_sessions)
        questions_asked = [AskedMessage("foreign question", other["question"], frozenset())]
        if 0 in marked:
            questions_asked.append(AskedMessage("question", question["question"], frozenset(marked[0])))
        yield MemoryCase(history, questions_asked, _parse_date(question["question_date"]))


def _make_turns(session: Sequence[dict[str, Any]], form: str) -> list[Turn]:
    turns = [Turn(t["role"], t["content"], {0} if t.get("has_answer") else set()) for t in session]
    if not form:
        return turns
    for turn in turns:
        if turn.role == ASSISTANT:
            turn.text = " ".join(_SENTENCE.split(" ".join(turn.text.split()))[:2])
    if form == "exchanged":
        for turn in turns:
            turn.role = ASSISTANT if turn.role == USER else USER
        if turns[0].role == ASSISTANT:
            turns.insert(0, Turn(USER, "Hello."))
    return turns


def sentences_of(questions: Sequence[dict[str, Any]]) -> list[str]:
    """Returns sentences of medium length from the users' turns of LongMemEval."""
    sentences: dict[str, None] = {}
    for question in questions:
        for session in question["haystack_sessions"]:
            for turn in session:
                if turn["role"] == USER and not turn.get("has_answer"):
                    for sentence in _SENTENCE.split(" ".join(turn["content"].split())):
                        if 6 <= len(sentence.split()) <= 24 and "{" not in sentence:
                            sentences[sentence] = None
    return list(sentences)


def make_friends(sentences: Sequence[str], half: int, *, is_named: bool) -> Iterator[MemoryCase]:
    """Returns memories of dialogues whose questions name the people. is_named: the value of `has_name_in_messages`."""
    for place in range(DIALOGUES):
        dialogue = make_dialogue(f"friends {half} {place}", half, sentences[half::2], by_name=True)
        pick = random.Random(f"names {half} {place}")
        for _, turns in dialogue.sessions:
            for turn in turns:
                # People address each other by name, at the beginning or the end of a turn.
                if pick.random() < _NAMED_SHARE:
                    other = dialogue.names[ASSISTANT if turn.role == USER else USER]
                    turn.text = pick.choice((f"{other}! {turn.text}", f"{turn.text} Right, {other}?"))
        history, marked = history_of(dialogue.sessions)
        questions = [_make_asked_message(question, marked) for question in dialogue.questions]
        yield MemoryCase(history, questions, dialogue.sessions[-1][0] + DAY_S, dialogue.names[USER], is_named)


def make_generated(sentences: Sequence[str], half: int, number: int, before: int) -> Iterator[MemoryCase]:
    """Returns memories of generated dialogues.

    number: the number of dialogues.
    before: the number of questions that were asked in each dialogue before.
    """
    own_sentences = sentences[half::2]
    for place in range(number):
        seed = f"{SEED} {half} {place}"
        dialogue = make_dialogue(seed, half, own_sentences)
        sessions = list(dialogue.sessions)
        if before:
            sessions += make_later_sessions(
                dialogue, seed, before, list(_render_notes(dialogue.sessions, seed))
            )
        history, marked = history_of(sessions)
        questions = [_make_asked_message(question, marked) for question in dialogue.questions]
        yield MemoryCase(history, questions, sessions[-1][0] + DAY_S)


def _make_asked_message(question: Question, marked: dict[int, set[int]]) -> AskedMessage:
    return AskedMessage(
        question.kind, question.text, frozenset(seq for mark in question.marks for seq in marked[mark])
    )


def _render_notes(sessions: Sequence[Session], seed: str) -> Iterator[str]:
    """Returns notes with some turns, which a model may repeat in its replies."""
    history, _ = history_of(sessions)
    pick = random.Random(seed)
    for _ in range(20):
        messages = [Message(d.seq, d.seq, d.role, d.text, d.at, 1) for d in pick.sample(history, 6)]
        yield render_note(choose_hits(messages, "").hits, [], sessions[-1][0], mark=_MARK)


def make_sets(questions: Sequence[dict[str, Any]], limit: int) -> Iterator[Set]:
    """Makes all sets, one after the other. limit: the most questions of LongMemEval; 0: all."""
    sentences = sentences_of(questions)
    others = [
        (at, _make_turns(session, "")) for question in questions for _, at, session in sessions_of(question)
    ]
    for language in FACTS:
        yield Set(language, lambda half, language=language: make_chats(language, half))
    for language in FACTS:
        yield Set(
            f"{language}, courteous",
            lambda half, language=language: make_chats(language, half, is_courteous=True),
        )
    for name, form in (
        ("LongMemEval", ""),
        ("LongMemEval, cut", "cut"),
        ("LongMemEval, exchanged", "exchanged"),
    ):
        yield Set(
            name,
            lambda half, form=form: itertools.islice(make_long_cases(questions, limit, form), half, None, 2),
        )
    yield Set(
        "small memories", lambda half: itertools.islice(make_small_cases(questions, limit), half, None, 2)
    )
    for language in kinds.WISHES:
        yield Set(
            f"wishes, {language}", lambda half, language=language: kinds.make_wish_memories(language, half)
        )
    yield Set("kinds", lambda half: kinds.make_kind_memories(half, sentences[half::2]))
    for name, is_short in (("projects", False), ("projects, short turns", True)):
        yield Set(
            name,
            lambda half, is_short=is_short: make_project_memories(
                half, sentences[half::2], others[half::2], is_short=is_short
            ),
        )
    for name, is_named in (("friends", False), ("friends, named messages", True)):
        yield Set(name, lambda half, is_named=is_named: make_friends(sentences, half, is_named=is_named))
    yield Set("wishes", lambda half: make_english_wishes(sentences[half::2], half))
    for name, before in (
        ("short talk", 0),
        (f"short talk, {EARLIER_QUESTIONS} asked before", EARLIER_QUESTIONS),
    ):
        yield Set(name, lambda half, before=before: make_generated(sentences, half, DIALOGUES, before))
